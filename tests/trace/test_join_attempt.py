# SPDX-License-Identifier: BSD-3-Clause
"""The counters of refusals that fit a join."""

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
def test_a_counter_fits_the_direction_and_the_stage(
    outgoing: bool, third: bool, counters: set[str]
) -> None:
    one = attempt(outgoing=outgoing, third=third)
    assert {name for name in COUNTED if fits(name, one)} == counters


def test_both_hmac_counters_mean_a_wrong_syn_ack_for_own_joins() -> None:
    """Linux 6.18.15 counts a wrong SYN/ACK as a wrong third packet."""
    own = attempt(outgoing=True, third=False)
    assert "in the SYN/ACK" in meaning("MPJoinSynAckHMacFailure", own)
    assert "in the SYN/ACK" in meaning("MPJoinAckHMacFailure", own)
    incoming = attempt(outgoing=False, third=True)
    assert "in the third packet" in meaning("MPJoinAckHMacFailure", incoming)
