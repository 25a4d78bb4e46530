# SPDX-License-Identifier: BSD-3-Clause
"""What traffic to make, as plain data."""

from typing import Literal

from msgspec import Struct


class Workload(Struct, frozen=True, kw_only=True, tag=True, tag_field="workload"):
    """What all workloads share."""

    transport: Literal["mptcp", "tcp"] = "mptcp"
    congestion: str | None = "cubic"
    """TCP_CONGESTION of both ends; None leaves the system's."""
    path: int | str = 0
    """The path, by number or name, whose addresses the first subflow uses."""
    family: Literal["4", "6"] | None = None
    """None: IPv4 if the lab has it."""
    send_buffer: int | None = None
    """SO_SNDBUF, bytes; the kernel doubles it."""
    receive_buffer: int | None = None
    """SO_RCVBUF, bytes; the kernel doubles it."""
    drain_s: float = 10.0
    """How long to wait for what was sent and has not arrived when all is sent."""


class RequestResponse(Workload, frozen=True, kw_only=True, tag=True):
    """The client sends a request every interval, answered or not; the server answers each."""

    size: int = 2000
    """Bytes of a request."""
    response_size: int = 2000
    interval_ms: float = 50.0
    count: int | None = None
    """Requests; None goes on until `Running.stop`."""


class Bulk(Workload, frozen=True, kw_only=True, tag=True):
    """As much as goes, in one direction, until `bytes`, `seconds` or `Running.stop`."""

    bytes: int | None = None
    seconds: float | None = None
    direction: Literal["up", "down"] = "up"
    """up: the client sends."""
    chunk: int = 65_536
    """Bytes after whose arrival the time is noted."""


class Stream(Workload, frozen=True, kw_only=True, tag=True):
    """Messages at a fixed rate in one direction, until `seconds` or `Running.stop`."""

    rate_mbit: float = 2.0
    size: int = 1200
    """Bytes of a message."""
    seconds: float | None = None
    direction: Literal["up", "down"] = "up"


class ShortConnections(Workload, frozen=True, kw_only=True, tag=True):
    """Connections one after the other, each with one request and its response."""

    count: int = 100
    size: int = 100
    response_size: int = 1000
    parallel: int = 1
    """How many are open at a time."""


AnyWorkload = RequestResponse | Bulk | Stream | ShortConnections

Address = tuple[str, int]


class Order(Struct, kw_only=True):
    """What a process is told: its workload and addresses; a server has no remote."""

    workload: AnyWorkload
    local: Address
    remote: Address | None = None
