# SPDX-License-Identifier: BSD-3-Clause
"""What one event or measurement says about one subflow: its identity, state and numbers."""

from msgspec.structs import replace

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.core.model import Connection, State, Subflow, SubflowKey, World

SubflowName = tuple[int, SubflowKey]
"""Token and addresses; a later subflow can have the same name."""

TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_CLOSE_WAIT = 1, 2, 3, 8
_LIVE = {
    None: State.ESTABLISHED,  # the source cannot see it
    TCP_ESTABLISHED: State.ESTABLISHED,
    TCP_CLOSE_WAIT: State.ESTABLISHED,
    TCP_SYN_SENT: State.OPENING,
    TCP_SYN_RECV: State.OPENING,
}


def is_about(measured: Measurement, subflow: Subflow) -> bool:
    """Whether a measurement with a subflow's name belongs to that subflow."""
    held = subflow.measured
    return held is None or (not held.closed and same_socket(held, measured))


def same_socket(one: Measurement, other: Measurement) -> bool:
    """Whether two measurements of one name can belong to one socket; unknown cookies match."""
    return one.cookie is None or other.cookie is None or one.cookie == other.cookie


def name_of(subflow: Subflow | Measurement) -> SubflowName:
    return (subflow.token, (subflow.local, subflow.remote))


def is_live(found: Measurement) -> bool:
    """Whether its subflow is open or opening, by its TCP state."""
    return found.state in _LIVE and not found.closed


def is_still(subflow: Subflow, found: Measurement) -> bool:
    """Whether a live subflow that was found is the known one, and not another of its name."""
    held = subflow.measured
    return held is None or (same_socket(held, found) and not (held.closed and held.at < found.at))


def state_of(found: Measurement) -> State:
    """The state of a live subflow."""
    return _LIVE[found.state]


def take_over(subflow: Subflow, measured: Measurement) -> None:
    """Updates a subflow with a newer measurement; what netlink reported stays."""
    subflow.measured = measured
    if measured.opened_at is not None:
        subflow.opened_at = measured.opened_at
    if subflow.local_id is None:
        subflow.local_id = measured.local_id
    if subflow.remote_id is None:
        subflow.remote_id = measured.remote_id
    if subflow.if_index is None:
        subflow.if_index = measured.if_index
    if measured.backup is not None and measured.at >= subflow.backup_set_at:
        subflow.backup = measured.backup


def add_up(
    connection: Connection, subflow: Subflow, held: Measurement | None, measured: Measurement
) -> None:
    """Adds a subflow's newest numbers to those of its connection.

    They are cumulative, so neither the order of arrival nor the end of a subflow
    changes the sum.
    """
    if measured.owner is not None:
        connection.owner = _owner(connection.owner, measured.owner, initial=subflow.initial)
    if measured.stalled_us is not None:
        before = (held.stalled_us or 0) if held is not None else 0
        connection.stalled_us = (connection.stalled_us or 0) + measured.stalled_us - before
    if measured.connection_bytes_acked is not None:
        connection.bytes_acked = max(connection.bytes_acked or 0, measured.connection_bytes_acked)
    if measured.connection_bytes_received is not None:
        connection.bytes_received = max(
            connection.bytes_received or 0, measured.connection_bytes_received
        )
    if measured.connection_reinjected is not None:
        connection.reinjected = max(connection.reinjected or 0, measured.connection_reinjected)


def _owner(known: Owner | None, told: Owner, *, initial: bool) -> Owner:
    """The owner of a connection: the initial subflow's, if it is known. Most measurements know
    less about it than one after a lookup of processes, and remove nothing that is known.
    """
    if known is None:
        return told
    if known.pid is not None and (told.pid is None or not initial):
        return known
    if known.pid is not None and known.pid != told.pid:
        return told
    names = Owner.__struct_fields__
    fields = {name: getattr(told, name) for name in names if getattr(told, name) is not None}
    return replace(known, **fields)


def from_join(event: ev.SubflowEstablished | ev.SubflowClosed, world: World, now: int) -> Subflow:
    return Subflow(
        event.token,
        event.local,
        event.remote,
        local_id=event.local_id,
        remote_id=event.remote_id,
        if_index=event.if_index or world.interface_of(event.local.ip),
        backup_by_peer=event.backup,
        opened_at=now,
    )


def from_measurement(found: Measurement, world: World) -> Subflow:
    return Subflow(
        found.token,
        found.local,
        found.remote,
        state=state_of(found),
        initial=bool(found.initial),
        local_id=found.local_id,
        remote_id=found.remote_id,
        if_index=found.if_index or world.interface_of(found.local.ip),
        backup=bool(found.backup),
        backup_by_peer=bool(found.backup_by_peer),
        opened_at=found.opened_at,
    )
