# SPDX-License-Identifier: BSD-3-Clause
"""The kinds of traffic, as plain data."""

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from mptcpd_ebpf.lab.errors import LabError

_Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
_Count = Annotated[int, Meta(ge=1, le=10_000_000)]
_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_Buffer = Annotated[int, Meta(ge=1, le=1 << 30)]
_Transport = Literal["mptcp", "tcp"]
_Family = Literal["4", "6"]
_OneWay = Literal["up", "down"]


class Workload(Struct, frozen=True, kw_only=True, tag=True, tag_field="workload"):
    """The fields of all workloads."""

    transport: _Transport = "mptcp"
    congestion: str | None = "cubic"
    """TCP_CONGESTION of both ends; None: the system's default."""
    path: int | str = 0
    """The path, by number or name, whose addresses the first subflow uses."""
    family: _Family | None = None
    """None: IPv4 if the lab has it."""
    send_buffer: _Buffer | None = None
    """SO_SNDBUF, bytes; the kernel doubles it."""
    receive_buffer: _Buffer | None = None
    """SO_RCVBUF, bytes; the kernel doubles it."""
    drain_s: _Seconds = 10.0
    """How long to wait, after the last send, for data that has not arrived yet."""


class RequestResponse(Workload, frozen=True, kw_only=True, tag=True):
    """The client sends a request every interval, whatever is unanswered; the server answers."""

    size: _Bytes = 2000
    """Bytes of a request."""
    response_size: _Bytes = 2000
    interval_ms: Annotated[float, Meta(gt=0, le=86_400_000)] = 50.0
    count: _Count | None = None
    """The number of requests; None: until `Running.stop`."""


class Bulk(Workload, frozen=True, kw_only=True, tag=True):
    """As much data as possible in one direction, until `bytes`, `seconds` or `Running.stop`."""

    bytes: _Bytes | None = None
    seconds: _Seconds | None = None
    direction: _OneWay = "up"
    """up: the client sends."""
    chunk: _Bytes = 65_536
    """The arrival time of every so many bytes is noted."""


class Stream(Workload, frozen=True, kw_only=True, tag=True):
    """Messages at a fixed rate in one direction, until `seconds` or `Running.stop`."""

    rate_mbit: Annotated[float, Meta(ge=0.001, le=100_000)] = 2.0
    size: _Bytes = 1200
    """Bytes per message."""
    seconds: _Seconds | None = None
    direction: _OneWay = "up"


class ShortConnections(Workload, frozen=True, kw_only=True, tag=True):
    """Connections one after the other, each with one request and its response.

    Each has `drain_s` from its start to the complete response; one that fails or takes longer is
    an unanswered message, and the next one starts.
    """

    count: _Count = 100
    size: _Bytes = 100
    response_size: _Bytes = 1000
    parallel: Annotated[int, Meta(ge=1, le=500)] = 1
    """How many are open at a time, at most 500: select(2) is limited to 1024 descriptors."""


AnyWorkload = RequestResponse | Bulk | Stream | ShortConnections

Address = tuple[str, int]


def check(workload: AnyWorkload) -> None:
    """Raises LabError with the field's name for an invalid workload."""
    for field in msgspec.structs.fields(workload):
        value = getattr(workload, field.name)
        where = f"traffic: {type(workload).__name__}: {field.name} is {value!r}"
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            reason = str(error)
            raise LabError(f"{where}: {reason[:1].lower()}{reason[1:]}") from None
        if isinstance(value, float) and math.isnan(value):
            raise LabError(f"{where}: not a number")


class EndTask(Struct, kw_only=True):
    """The task of one end's process: its workload and addresses; a server has no remote."""

    workload: AnyWorkload
    local: Address
    remote: Address | None = None
