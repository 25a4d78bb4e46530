# SPDX-License-Identifier: BSD-3-Clause
"""The model as JSON and as tables: exact names and units; what is not known is null or a dash."""

import pytest
from msgspec import structs

from mptcpd_ebpf.cli import _text, ls, monitor
from mptcpd_ebpf.control import views
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import AddEndpoint, Cause, CreateSubflow, Decision
from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Owner
from mptcpd_ebpf.core.model import Connection, Link, State, Subflow, World
from mptcpd_ebpf.core.token import token_of, token_text

LOCAL, REMOTE = SockAddr("10.0.0.1", 4000), SockAddr("2001:db8::1", 80)
EPOCH_NS = 1_000_000_000_000_000_000

CAUSE = Cause(seq=9, event="AlarmRaised", rule="alarm")


def world(connection: Connection, *subflows: Subflow) -> World:
    connection.subflows.update({subflow.key: subflow for subflow in subflows})
    known = World(connections={connection.token: connection})
    known.links[3] = Link(3, "wlan0", up=True, running=True)
    return known


def test_what_is_not_measured_is_null_and_a_dash_and_never_zero() -> None:
    subflow = Subflow(0xAB, LOCAL, REMOTE)
    connection = Connection(0xAB, LOCAL, REMOTE, state=State.ESTABLISHED)
    shown = views.connections(world(connection, subflow), EPOCH_NS)
    (only,) = shown["connections"]
    assert only["token"] == "000000ab"
    for field in (
        "server_side",
        "path_manager",
        "pid",
        "comm",
        "stalled_ms",
        "bytes_acked",
        "bytes_received",
    ):
        assert only[field] is None
    known = {"local", "remote", "state", "backup"}
    (row,) = only["subflows"]
    assert {name for name, value in row.items() if value is not None} == known
    cells = ls.table(shown).splitlines()[2].split()
    assert not [cell for cell in cells if cell == "0"]
    assert cells.count(_text.UNKNOWN) == 13


def test_measured_values_keep_their_names_and_units() -> None:
    numbers = {
        field.name: index
        for index, field in enumerate(structs.fields(Measurement), start=100)
        if field.type == int | None
    }
    measured = Measurement(at=1, token=0xAB, local=LOCAL, remote=REMOTE, **numbers)  # type: ignore[arg-type]
    subflow = Subflow(
        0xAB, LOCAL, REMOTE, local_id=1, remote_id=2, if_index=3, opened_at=5_500_000_000,
        measured=measured,
    )  # fmt: skip
    connection = Connection(
        0xAB, LOCAL, REMOTE, state=State.ESTABLISHED, server_side=True, in_kernel=False,
        stalled_us=1500, bytes_acked=7, bytes_received=8, owner=Owner(pid=9, comm="curl"),
        announced={4: SockAddr("10.9.9.9", 0)},
    )  # fmt: skip
    (only,) = views.connections(world(connection, subflow), EPOCH_NS)["connections"]
    assert (only["pid"], only["comm"], only["stalled_ms"]) == (9, "curl", 1.5)
    assert (only["bytes_acked"], only["bytes_received"]) == (7, 8)
    assert only["path_manager"] == "userspace"
    assert only["announced"] == [{"id": 4, "ip": "10.9.9.9", "port": None}]
    (row,) = only["subflows"]
    assert row["remote"] == "[2001:db8::1]:80"
    assert (row["local_id"], row["remote_id"], row["interface"]) == (1, 2, "wlan0")
    assert row["holes_ms"] == numbers["holes_us"] / 1000
    assert row["opened_at"] == 1_000_000_005.5
    same = {name: value for name, value in row.items() if name in numbers and "_id" not in name}
    for name in ("opened_at", "state"):  # in the view these have another meaning
        del same[name]
    assert len(same) == 16
    assert same == {name: numbers[name] for name in same}


def test_closed_connections_and_subflows_are_not_shown() -> None:
    closed = Connection(1, LOCAL, REMOTE, state=State.CLOSED)
    assert views.connections(world(closed), EPOCH_NS)["connections"] == []
    live = Connection(1, LOCAL, REMOTE, state=State.OPENING)
    subflow = Subflow(1, LOCAL, REMOTE, state=State.CLOSED)
    (only,) = views.connections(world(live, subflow), EPOCH_NS)["connections"]
    assert only["subflows"] == []


def test_the_backup_flag_of_either_side_is_shown() -> None:
    for ours, peers in ((True, False), (False, True)):
        subflow = Subflow(1, LOCAL, REMOTE, backup=ours, backup_by_peer=peers)
        connection = Connection(1, LOCAL, REMOTE, state=State.ESTABLISHED)
        shown = views.connections(world(connection, subflow), EPOCH_NS)
        assert shown["connections"][0]["subflows"][0]["backup"] is True
        assert " backup " in ls.table(shown)


def test_a_decision_names_its_subflow_if_its_command_does() -> None:
    create = CreateSubflow(reason="why", token=0xAB, local_ip="10.0.0.1", local_id=2, remote=REMOTE)
    endpoint = AddEndpoint(reason="why", ip="10.0.0.1")
    made = [
        Decision(
            id=1, at=5_500_000_000, plugin="p", cause=CAUSE, command=command, refused="too many"
        )
        for command in (create, endpoint)
    ]
    first, second = (views.decision(each, EPOCH_NS) for each in made)
    assert (first["action"], first["token"]) == ("CreateSubflow", "000000ab")
    assert first["subflow"] == "10.0.0.1 → [2001:db8::1]:80"
    assert first["t"] == 1_000_000_005.5
    assert first["cause"] == {"seq": 9, "event": "AlarmRaised", "rule": "alarm"}
    assert first["refused"] == "too many"
    assert (second["token"], second["subflow"]) == (None, None)
    assert second["command"]["ip"] == "10.0.0.1"


def test_an_event_shows_its_inner_records() -> None:
    measured = Measurement(at=1, token=0xAB, local=LOCAL, remote=REMOTE)
    shown = views.event(AlarmRaised(kind=AlarmKind.LOSS, measurement=measured, value=30, limit=20))
    assert (shown["event"], shown["kind"], shown["value"]) == ("AlarmRaised", "loss", 30)
    assert shown["measurement"]["token"] == "000000ab"
    assert shown["measurement"]["remote"] == "[2001:db8::1]:80"


def test_numbers_as_text() -> None:
    assert [_text.size(n) for n in (0, 999, 1000, 99_499, 999_600, 10**18)] == [
        "0 B", "999 B", "1.0 kB", "99.5 kB", "1.0 MB", "1000 PB",
    ]  # fmt: skip
    assert [_text.milliseconds(us) for us in (None, 0, 9_994, 20_000, 1_500_000)] == [
        "–", "0.00", "9.99", "20.0", "1500",
    ]  # fmt: skip


def test_a_token_is_written_in_hexadecimal_digits_only() -> None:
    for text in ("1a2b3c4d", "1A2B3C4D", "0x1a2b3c4d"):
        assert token_of(text) == 0x1A2B3C4D
    assert token_text(token_of("b")) == "0000000b"
    for wrong in ("", "0x", "0x1_0", "+1", "-1", " 1", "1\n", "123456789", "xyz", 7, None):
        with pytest.raises(ValueError, match="is no token: give the eight hexadecimal digits"):
            token_of(wrong)


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0.9997, ".999"), (0.0004, ".000"), (0.25, ".250")]
)
def test_a_second_has_a_thousand_milliseconds(fraction: float, shown: str) -> None:
    assert monitor._clock(1_000_000 + fraction).endswith(shown)
