# SPDX-License-Identifier: BSD-3-Clause
"""Events → model, one at a time: the change and the notice of each."""

import pytest
from msgspec.structs import replace

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.model import State
from mptcpd_ebpf.core.pairing import GRACE
from tests.core.scenario import (
    FIBRE,
    MS,
    RADIO,
    SECOND,
    SERVER,
    START,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_SYN_SENT,
    TOKEN,
    Listener,
    alarm,
    created,
    ended,
    established,
    gone,
    joined,
    left,
    leftovers,
    measured,
)

# --- connections


def test_a_connection_is_created_with_its_initial_subflow() -> None:
    net = Listener()
    assert net.tell(created(server_side=True, deny_join_id0=True)) == ["new_connection"]
    connection = net.connection
    assert (connection.state, connection.server_side, connection.deny_join_id0) == (
        State.OPENING,
        True,
        True,
    )
    initial = net.subflow(FIBRE)
    assert (initial.initial, initial.local_id, initial.usable) == (True, 0, True)
    assert net.tell(established(server_side=True)) == ["connection_established"]
    assert net.connection.state is State.ESTABLISHED


def test_established_without_created_makes_the_connection() -> None:
    net = Listener()
    assert net.tell(established()) == ["new_connection", "connection_established"]
    assert list(net.connection.subflows) == [FIBRE]
    assert net.tell(created()) == []
    assert net.connection.state is State.ESTABLISHED


def test_nothing_is_reported_twice() -> None:
    net = Listener(created(), established())
    assert net.tell(created(), established()) == []


def test_a_closed_connection_takes_its_subflows_along() -> None:
    net = Listener(created(), established(), joined())
    connection = net.connection
    assert net.tell(gone()) == ["subflow_closed", "subflow_closed", "connection_closed"]
    assert connection.state is State.CLOSED
    assert connection.subflows == {}
    assert net.tell(gone(), left(), joined()) == []


def test_a_token_used_again_ends_the_former_connection() -> None:
    net = Listener(created(), established())
    former = net.connection
    told = net.tell(created(key=RADIO))
    assert told == ["subflow_closed", "connection_closed", "new_connection"]
    assert former.state is State.CLOSED
    assert net.connection.state is State.OPENING
    assert list(net.connection.subflows) == [RADIO]


# --- addresses of the peer


def test_announced_addresses_come_and_go() -> None:
    net = Listener(created())
    announce = ev.AddressAnnounced(token=TOKEN, address_id=3, ip="10.9.9.9", port=8443)
    assert net.tell(announce) == ["new_address"]
    assert net.connection.announced == {3: SockAddr("10.9.9.9", 8443)}
    assert net.tell(ev.AddressWithdrawn(token=TOKEN, address_id=3)) == ["address_removed"]
    assert net.connection.announced == {}
    # The kernel also reports ids that were announced before the daemon started.
    assert net.tell(ev.AddressWithdrawn(token=TOKEN, address_id=9)) == ["address_removed"]


def test_an_unknown_connection_is_ignored() -> None:
    net = Listener()
    strangers = [
        ev.AddressAnnounced(token=TOKEN, address_id=3, ip="10.9.9.9"),
        ev.AddressWithdrawn(token=TOKEN, address_id=3),
        ev.SubflowPriority(token=TOKEN, local=RADIO[0], remote=RADIO[1], backup=True),
        joined(),
        left(),
        gone(),
    ]
    assert net.tell(*strangers) == []
    assert leftovers(net.tracker) == {}


# --- joins


def test_a_join_and_its_end() -> None:
    net = Listener(created(), established())
    assert net.tell(joined(local_id=5, remote_id=2, if_index=8)) == ["new_subflow"]
    subflow = net.subflow(RADIO)
    assert (subflow.local_id, subflow.remote_id, subflow.if_index) == (5, 2, 8)
    assert not subflow.initial
    assert net.connection.local_ids == {"10.0.2.2": 5}
    assert net.tell(left(error=110, reset_reason=4)) == ["subflow_closed"]
    assert (subflow.state, subflow.error, subflow.reset_reason) == (State.CLOSED, 110, 4)
    assert list(net.connection.subflows) == [FIBRE]


def test_the_backup_bit_of_events_is_the_peers_wish() -> None:
    net = Listener(created(), joined(backup=True))
    assert (net.subflow(RADIO).backup, net.subflow(RADIO).backup_by_peer) == (False, True)
    priority = ev.SubflowPriority(token=TOKEN, local=RADIO[0], remote=RADIO[1], backup=False)
    assert net.tell(priority) == ["subflow_priority"]
    assert not net.subflow(RADIO).backup_by_peer


def test_a_subflow_whose_socket_holds_an_error_is_not_usable() -> None:
    net = Listener(created(), joined(error=104))
    assert not net.subflow(RADIO).usable


def test_a_failed_join_is_reported_once_as_closed() -> None:
    net = Listener(created(), established())
    assert net.tell(left(error=111)) == ["subflow_closed"]
    assert list(net.connection.subflows) == [FIBRE]
    net.wait(GRACE)
    assert [final.error for final in net.finals] == [111]


def test_the_interface_is_the_one_that_holds_the_address() -> None:
    net = Listener(
        ev.LocalAddressChanged(if_index=4, ip="10.0.1.2", prefix_len=24),
        created(),
        joined(),
    )
    assert (net.subflow(FIBRE).if_index, net.subflow(RADIO).if_index) == (4, None)
    net.tell(alarm(measured(RADIO, if_index=6)))
    assert net.subflow(RADIO).if_index == 6


# --- pending joins, which only a sample shows


def syn_sent(at: int = START) -> ev.Sampled:
    return ev.Sampled(measurements=[measured(RADIO, at, state=TCP_SYN_SENT, backup=True)])


def test_a_pending_join_is_in_the_model_without_a_notice() -> None:
    net = Listener(created(), established())
    assert net.tell(syn_sent()) == ["sampled"]
    assert net.subflow(RADIO).state is State.OPENING
    assert not net.subflow(RADIO).usable
    subflow = net.subflow(RADIO)
    assert net.tell(joined(local_id=1)) == ["new_subflow"]
    assert net.subflow(RADIO) is subflow
    assert (subflow.state, subflow.backup, subflow.local_id) == (State.ESTABLISHED, True, 1)


def test_a_join_that_is_not_there_any_more_failed() -> None:
    net = Listener(created(), established(), syn_sent())
    assert net.tell(ev.Sampled(measurements=[])) == ["subflow_closed", "sampled"]
    assert list(net.connection.subflows) == [FIBRE]
    assert net.tell(left()) == []


def test_a_join_that_succeeded_before_netlink_said_so_is_kept() -> None:
    net = Listener(created(), established(), syn_sent())
    done = measured(RADIO, START + MS, state=TCP_ESTABLISHED)
    assert net.tell(ev.Sampled(measurements=[done])) == ["sampled"]
    assert RADIO in net.connection.subflows
    assert net.tell(joined()) == ["new_subflow"]


@pytest.mark.parametrize("state", [TCP_CLOSE, 4, 5, 9, 10, 11, 12, None])
def test_other_tcp_states_of_unknown_sockets_make_no_subflow(state: int | None) -> None:
    net = Listener(created(), established())
    assert net.tell(ev.Sampled(measurements=[measured(RADIO, state=state)])) == ["sampled"]
    assert list(net.connection.subflows) == [FIBRE]


# --- numbers


def test_a_newer_measurement_replaces_an_older_one_only() -> None:
    net = Listener(created())
    net.tell(alarm(measured(at=START + 2, srtt_us=200)))
    net.tell(alarm(measured(at=START + 1, srtt_us=100)))
    assert net.subflow(FIBRE).measured == measured(at=START + 2, srtt_us=200)


def test_numbers_of_the_connection_do_not_fall_when_a_subflow_ends() -> None:
    net = Listener(created(), joined())
    net.tell(alarm(measured(FIBRE, stalled_us=100, connection_bytes_acked=5000)))
    net.tell(alarm(measured(RADIO, stalled_us=70, connection_bytes_acked=4000)))
    net.tell(left())
    net.tell(ended(RADIO, START + 1, stalled_us=90, connection_reinjected=800))
    connection = net.connection
    assert (connection.stalled_us, connection.bytes_acked, connection.reinjected) == (
        190,
        5000,
        800,
    )


def test_a_value_without_a_source_stays_unknown() -> None:
    net = Listener(created())
    net.tell(alarm(measured()))
    connection = net.connection
    assert (connection.stalled_us, connection.bytes_acked, connection.reinjected) == (None,) * 3
    assert connection.owner is None


def test_the_initial_subflow_names_the_owner() -> None:
    net = Listener(created(), joined())
    net.tell(alarm(measured(RADIO, owner=Owner(pid=1, comm="listener"))))
    net.tell(alarm(measured(FIBRE, owner=Owner(pid=2, comm="curl"))))
    net.tell(alarm(measured(RADIO, at=START + 1, owner=Owner(pid=1, comm="listener"))))
    assert net.connection.owner == Owner(pid=2, comm="curl")


def test_a_measurement_that_knows_less_of_the_owner_takes_nothing_back() -> None:
    """inet_diag's owners have only the user unless processes are looked up; the probes' have no
    path."""
    whole = Owner(pid=2, comm="curl", cgroup=7, cgroup_path="/user.slice", uid=1000)
    net = Listener(created())
    net.tell(alarm(measured(owner=Owner(cgroup=7, uid=1000))))
    net.tell(alarm(measured(at=START + 1, owner=whole)))
    net.tell(alarm(measured(at=START + 2, owner=Owner(cgroup=7, uid=1000))))
    assert net.connection.owner == whole
    net.tell(alarm(measured(at=START + 3, owner=Owner(pid=2, comm="wget", cgroup=7, uid=1000))))
    assert net.connection.owner == replace(whole, comm="wget")


def test_a_measurement_older_than_our_mark_does_not_undo_it() -> None:
    net = Listener(created(), joined())
    subflow = net.subflow(RADIO)
    subflow.backup, subflow.backup_set_at = True, START + 10
    net.tell(alarm(measured(RADIO, START + 5, backup=False)))
    assert subflow.backup
    net.tell(alarm(measured(RADIO, START + 11, backup=False)))
    assert not subflow.backup


def test_ids_from_netlink_are_not_overwritten() -> None:
    net = Listener(created(), joined(local_id=3))
    net.tell(alarm(measured(RADIO, local_id=9, remote_id=4)))
    assert (net.subflow(RADIO).local_id, net.subflow(RADIO).remote_id) == (3, 4)


# --- final records


def test_a_subflow_is_final_after_both_final_records() -> None:
    net = Listener(created(), joined())
    assert net.tell(left()) == ["subflow_closed"]
    assert net.tell(ended(srtt_us=7)) == ["SubflowFinal"]
    assert net.finals[0].measured == measured(RADIO, srtt_us=7, closed=True, state=TCP_CLOSE)
    assert net.wait(2 * GRACE) == []


def test_final_when_the_probes_spoke_first() -> None:
    net = Listener(created(), joined())
    assert net.tell(ended()) == []
    assert not net.subflow(RADIO).usable
    assert net.tell(left(error=5)) == ["subflow_closed", "SubflowFinal"]
    assert net.finals[0].error == 5
    assert net.wait(2 * GRACE) == []


def test_netlink_is_not_waited_for_longer_than_the_grace() -> None:
    net = Listener(created(), joined(), ended())
    assert net.tracker.deadline == START + GRACE
    assert net.wait(GRACE - 1) == []
    assert net.wait(1) == ["subflow_closed", "SubflowFinal"]
    assert list(net.connection.subflows) == [FIBRE]
    # It can arrive minutes later, when the application has read all data.
    net.now += 600 * SECOND
    assert net.tell(left()) == []
    assert net.tracker.deadline is None


def test_the_probes_are_not_waited_for_longer_than_the_grace() -> None:
    net = Listener(created(), joined(), left())
    assert net.wait(GRACE - 1) == []
    assert net.wait(1) == ["SubflowFinal"]
    assert net.tell(ended(at=net.now)) == []


def test_a_final_record_is_never_overwritten() -> None:
    net = Listener(created(), joined())
    net.tell(ended(at=START + 5, srtt_us=7))
    net.tell(alarm(measured(RADIO, START + 4, srtt_us=9)))
    assert not net.subflow(RADIO).usable
    measurement = net.subflow(RADIO).measured
    assert measurement is not None
    assert measurement.srtt_us == 7


def test_probes_ahead_of_netlink_are_kept_aside() -> None:
    net = Listener()
    assert net.tell(alarm(measured(srtt_us=1)), alarm(measured(RADIO, srtt_us=2))) == []
    assert net.tell(created(), joined()) == ["new_connection", "new_subflow"]
    assert net.subflow(FIBRE).measured == measured(srtt_us=1)
    assert net.subflow(RADIO).measured == measured(RADIO, srtt_us=2)


def test_of_the_probes_words_kept_aside_the_newest_counts() -> None:
    net = Listener(alarm(measured(at=START + 2, srtt_us=2)), alarm(measured(at=START, srtt_us=1)))
    net.tell(created())
    assert net.subflow(FIBRE).measured == measured(at=START + 2, srtt_us=2)


def test_late_records_of_a_closed_subflow_do_not_reach_its_successor() -> None:
    net = Listener(created(), joined())
    net.tell(ended(at=START + 5), alarm(measured(RADIO, START + 4, srtt_us=9)))
    net.tell(left(), joined())
    assert net.subflow(RADIO).measured is None


def test_probes_of_what_netlink_never_names_are_forgotten() -> None:
    net = Listener(alarm(measured(srtt_us=1)))
    assert net.wait(GRACE) == []
    net.tell(created())
    assert net.subflow(FIBRE).measured is None


# --- the same addresses, several subflows


def test_a_name_used_again_is_another_subflow() -> None:
    net = Listener(created(), joined(), left())
    net.tell(joined())
    net.tell(ended(at=START + 1, srtt_us=1))
    assert net.subflow(RADIO).usable
    assert [final.measured and final.measured.srtt_us for final in net.finals] == [1]
    net.tell(alarm(measured(RADIO, START + 2, srtt_us=2)))
    net.tell(left(), ended(at=START + 3, srtt_us=3))
    assert [final.measured and final.measured.srtt_us for final in net.finals] == [1, 3]


def test_probes_two_subflows_ahead_are_paired_in_order() -> None:
    net = Listener(created())
    net.tell(ended(at=START + 1, srtt_us=1), ended(at=START + 2, srtt_us=2))
    net.tell(joined(), left(error=1), joined(), left(error=2))
    finals = [(final.error, final.measured and final.measured.srtt_us) for final in net.finals]
    assert finals == [(1, 1), (2, 2)]


def test_netlink_two_subflows_ahead_is_paired_in_order() -> None:
    net = Listener(created())
    net.tell(joined(), left(error=1), joined(), left(error=2))
    net.tell(ended(at=START + 1, srtt_us=1), ended(at=START + 2, srtt_us=2))
    finals = [(final.error, final.measured and final.measured.srtt_us) for final in net.finals]
    assert finals == [(1, 1), (2, 2)]


def test_the_cookie_distinguishes_subflows_with_the_same_addresses() -> None:
    net = Listener(created(), joined())
    net.tell(alarm(measured(RADIO, START + 1, cookie=11)))
    # The probes' final record of the first is lost, netlink's is late.
    net.tell(alarm(measured(RADIO, START + 2, cookie=12, srtt_us=2)))
    net.tell(left(), joined())
    assert net.subflow(RADIO).measured == measured(RADIO, START + 2, cookie=12, srtt_us=2)


def test_measurements_of_a_new_subflow_do_not_reach_its_closed_predecessor() -> None:
    net = Listener(created(), joined(), left())
    net.now += 100 * MS
    net.tell(joined())
    newborn = measured(RADIO, net.now, opened_at=net.now, srtt_us=2)
    assert net.tell(alarm(newborn)) == ["alarm"]
    assert net.subflow(RADIO).measured == newborn


# --- no leftovers


def test_the_tracker_removes_closed_connections() -> None:
    net = Listener(created(), established(), joined(), syn_sent())
    net.tell(alarm(measured(srtt_us=1)), ended(FIBRE))
    net.tell(alarm(measured((SockAddr("10.0.7.7", 1), SERVER))))
    net.wait(GRACE)
    net.tell(left(), gone())
    net.wait(GRACE)
    assert leftovers(net.tracker) == {}
    assert net.tracker.deadline is None
