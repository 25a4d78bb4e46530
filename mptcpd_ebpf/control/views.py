# SPDX-License-Identifier: BSD-3-Clause
"""The core's model and records as plain data, of the types in `schema`.

Pure functions.  The core counts CLOCK_MONOTONIC nanoseconds; callers pass `epoch_ns`, the number to
add to get nanoseconds since 1970.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

from msgspec import Struct

from mptcpd_ebpf.control.schema import (
    SCHEMA,
    Announced,
    Connections,
    ConnectionView,
    DecisionView,
    SubflowView,
)
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import AnyCommand, Decision
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.events import Event
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import Connection, State, Subflow, World
from mptcpd_ebpf.core.sighting import (
    add_up,
    from_measurement,
    is_about,
    is_live,
    state_of,
    take_over,
)
from mptcpd_ebpf.core.token import token_text

_PATH_MANAGER = {True: "kernel", False: "userspace", None: None}


def connections(world: World, epoch_ns: int, measured: Iterable[Measurement] = ()) -> Connections:
    """What ``ls`` shows: all live connections, without those that wait for a final record.

    `measured`: newer measurements, which are shown in place of the model's.  The model stays as it
    is.
    """
    return {
        "schema": SCHEMA,
        "connections": [
            _connection(world, connection, epoch_ns) for connection in at_present(world, measured)
        ],
    }


def at_present(world: World, measured: Iterable[Measurement] = ()) -> list[Connection]:
    """The live connections with newer measurements, as copies where these change something."""
    newer: dict[int, list[Measurement]] = {}
    for each in measured:
        newer.setdefault(each.token, []).append(each)
    return [
        _with(newer.get(token, ()), connection, world)
        for token, connection in world.connections.items()
        if connection.state is not State.CLOSED
    ]


def _with(newer: Sequence[Measurement], connection: Connection, world: World) -> Connection:
    """A copy of a connection with newer measurements, and the joins that only they contain."""
    if not newer:
        return connection
    shown = copy(connection)
    shown.subflows = dict(connection.subflows)
    for each in newer:
        key = (each.local, each.remote)
        known = connection.subflows.get(key)
        if known is None:
            if is_live(each) and state_of(each) is State.OPENING:
                shown.subflows[key] = from_measurement(each, world)
            continue
        held = known.measured
        if is_about(each, known) and (held is None or held.at <= each.at):
            shown.subflows[key] = subflow = copy(known)
            take_over(subflow, each)
            add_up(shown, subflow, held, each)
    return shown


def decision(made: Decision, epoch_ns: int) -> DecisionView:
    """One decision, with its command's fields in `command`."""
    fields_of = fields(made.command)
    local, remote = fields_of.get("local", fields_of.get("local_ip")), fields_of.get("remote")
    return {
        "id": made.id,
        "t": _seconds(made.at + epoch_ns),
        "plugin": made.plugin,
        "cause": {"seq": made.cause.seq, "event": made.cause.event, "rule": made.cause.rule},
        "action": type(made.command).__name__,
        "token": fields_of.get("token"),
        "subflow": f"{local} → {remote}" if local is not None and remote is not None else None,
        "reason": made.command.reason,
        "refused": made.refused,
        "waited": made.waited / 1e9,
        "command": fields_of,
    }


def fields(command: AnyCommand) -> dict[str, Any]:
    """A command's fields: tokens in hexadecimal, addresses as text, endpoint flags by name."""
    return _plain_struct(command)


def flag_names(flags: EndpointFlag) -> list[str]:
    """The names of flags, as `core.endpoints.endpoint_flags` reads them."""
    return [flag.name.lower() for flag in EndpointFlag if flag in flags and flag.name]


def event(happened: Event) -> dict[str, Any]:
    """One event: its fields, tokens in hexadecimal, addresses as text."""
    return {"event": type(happened).__name__, **_plain_struct(happened)}


_UNSEEN = Measurement(at=0, token=0, local=SockAddr("", 0), remote=SockAddr("", 0))


def _connection(world: World, connection: Connection, epoch_ns: int) -> ConnectionView:
    owner = connection.owner
    stalled_us = connection.stalled_us
    return {
        "token": token_text(connection.token),
        "server_side": connection.server_side,
        "path_manager": _PATH_MANAGER[connection.in_kernel],
        "local": str(connection.local),
        "remote": str(connection.remote),
        "pid": owner.pid if owner else None,
        "comm": owner.comm if owner else None,
        "stalled_ms": None if stalled_us is None else stalled_us / 1000,
        "bytes_acked": connection.bytes_acked,
        "bytes_received": connection.bytes_received,
        "announced": [
            _announced(address_id, address) for address_id, address in connection.announced.items()
        ],
        "subflows": [
            _subflow(world, subflow, epoch_ns)
            for subflow in connection.subflows.values()
            if subflow.state is not State.CLOSED
        ],
    }


def _announced(address_id: int, address: SockAddr) -> Announced:
    return {"id": address_id, "ip": address.ip, "port": address.port or None}


def _subflow(world: World, subflow: Subflow, epoch_ns: int) -> SubflowView:
    seen = subflow.measured or _UNSEEN
    return {
        "local": str(subflow.local),
        "remote": str(subflow.remote),
        "local_id": subflow.local_id,
        "remote_id": subflow.remote_id,
        "interface": world.interface_name(subflow.if_index),
        "state": subflow.state.value,
        "backup": subflow.backup or subflow.backup_by_peer,
        "srtt_us": seen.srtt_us,
        "min_rtt_us": seen.min_rtt_us,
        "rtt_us": seen.rtt_us,
        "rttvar_us": seen.rttvar_us,
        "retransmits": seen.retransmits,
        "lost": seen.lost,
        "timeouts": seen.timeouts,
        "segments_out": seen.segments_out,
        "bytes_sent": seen.bytes_sent,
        "bytes_acked": seen.bytes_acked,
        "bytes_received": seen.bytes_received,
        "segments_in": seen.segments_in,
        "out_of_order": seen.out_of_order,
        "rcv_rtt_us": seen.rcv_rtt_us,
        "holes_ms": None if seen.holes_us is None else seen.holes_us / 1000,
        "cwnd": seen.cwnd,
        "in_flight": seen.in_flight,
        "opened_at": None if subflow.opened_at is None else _seconds(subflow.opened_at + epoch_ns),
    }


def _seconds(ns: int) -> float:
    """Nanoseconds as seconds, rounded to microseconds, which is as exact as a float can be."""
    return round(ns / 1e9, 6)


def _plain_struct(record: Struct) -> dict[str, Any]:
    return {name: _plain(name, getattr(record, name)) for name in record.__struct_fields__}


def _plain(name: str, value: Any) -> Any:
    if name == "token":
        return token_text(value)
    if isinstance(value, EndpointFlag):
        return flag_names(value)
    if isinstance(value, SockAddr):
        return str(value)
    if isinstance(value, Struct):
        return _plain_struct(value)
    if isinstance(value, list):
        return [_plain("", item) for item in value]
    return value
