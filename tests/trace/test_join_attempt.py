# SPDX-License-Identifier: BSD-3-Clause
"""Which counter of refusals speaks of which join."""

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.trace.join_attempt import COUNTED, Attempt, fits, meaning
from mptcpd_ebpf.trace.signals import Flag, Signal

HERE, THERE = SockAddr("10.1.1.2", 40001), SockAddr("10.1.2.2", 443)


def attempt(*, outgoing: bool, third: bool) -> Attempt:
    syn = Signal(1, outgoing, HERE, THERE, Flag.SYN, 1, [])
    ack = syn._replace(flags=Flag.ACK) if third else None
    return Attempt(syn, token=1, third=ack)


@pytest.mark.parametrize(
    ("outgoing", "third", "counters"),
    [
        (True, False, {"MPJoinSynAckHMacFailure", "MPJoinAckHMacFailure"}),
        (False, False, {"MPJoinNoTokenFound", "MismatchPortSynRx"}),
        (False, True, {"MPJoinAckHMacFailure", "MismatchPortAckRx", "MPJoinRejected"}),
    ],
)
def test_a_counter_fits_the_direction_and_the_step(
    outgoing: bool, third: bool, counters: set[str]
) -> None:
    one = attempt(outgoing=outgoing, third=third)
    assert {name for name in COUNTED if fits(name, one)} == counters


def test_whichever_counter_moved_a_join_of_ours_had_a_wrong_syn_ack() -> None:
    """Linux 6.18.15 counts it as a wrong third packet."""
    ours = attempt(outgoing=True, third=False)
    assert "in the SYN/ACK" in meaning("MPJoinSynAckHMacFailure", ours)
    assert "in the SYN/ACK" in meaning("MPJoinAckHMacFailure", ours)
    theirs = attempt(outgoing=False, third=True)
    assert "in the third packet" in meaning("MPJoinAckHMacFailure", theirs)
