# SPDX-License-Identifier: BSD-3-Clause
"""The emulator's decisions about packets, without a kernel: verdicts, order, options."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab import emulator
from mptcpd_ebpf.lab.emulator import ACCEPT, DROP, Queue, mptcp_subtypes


class Kernel:
    """Stands in for the kernel's socket: supplies packet ids and records verdicts."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.queued: list[int] = []
        self.fates: list[tuple[int, int]] = []

    def setblocking(self, _: bool) -> None:
        pass

    def recv(self, _: int) -> bytes:
        if not self.waiting:
            raise BlockingIOError
        self.queued.append(self.waiting[0])
        return bytes(24) + self.waiting.pop(0).to_bytes(4, "big")

    def send(self, message: bytes) -> None:
        kind = struct.unpack_from("=H", message, 4)[0]
        if kind == emulator._MSG_CONFIG:
            return
        verdict, last = struct.unpack_from(">II", message, 24)
        batch = kind == emulator._MSG_VERDICT_BATCH
        for packet in [p for p in self.queued if p == last or (batch and p <= last)]:
            self.queued.remove(packet)
            self.fates.append((packet, verdict))


def queue(seed: str = "s", **spec: Any) -> tuple[Queue, Kernel]:
    kernel = Kernel()
    original = emulator._socket_in
    emulator._socket_in = lambda _: kernel  # type: ignore[assignment, return-value]
    try:
        made = Queue("", 0, seed)
    finally:
        emulator._socket_in = original
    made.set(spec)
    return made, kernel


def pass_through(made: Queue, kernel: Kernel, arrivals: list[tuple[int, int]]) -> None:
    """Supplies packets as (time, how many), then releases everything that is due."""
    number = 0
    for at, count in arrivals:
        kernel.waiting += range(number, number + count)
        number += count
        while made.receive(at):
            pass
        made.release(at)
    made.release(1 << 62)


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 50_000_000), st.integers(0, 100)), min_size=1, max_size=12
).map(lambda rows: sorted(rows))
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "delay_ms": st.floats(0, 20),
        "jitter_ms": st.floats(0, 20),
        "reorder": st.booleans(),
        "loss_percent": st.floats(0, 100),
        "blackhole": st.booleans(),
    },
)


@given(ARRIVALS, SPECS, SPECS)
def test_every_packet_gets_one_verdict_whatever_changes_meanwhile(
    arrivals: list[tuple[int, int]], first: dict[str, Any], second: dict[str, Any]
) -> None:
    made, kernel = queue(**{"delay_ms": 1, **first})
    half = len(arrivals) // 2
    number = 0
    for part, spec in ((arrivals[:half], second), (arrivals[half:], {})):
        for at, count in part:
            kernel.waiting += range(number, number + count)
            number += count
            while made.receive(at):
                pass
            made.release(at)
        made.set({"delay_ms": 1, **spec})
    made.release(1 << 62)
    assert sorted(packet for packet, _ in kernel.fates) == list(range(number))
    assert not kernel.queued


@given(ARRIVALS, SPECS)
def test_without_reorder_the_order_is_kept(
    arrivals: list[tuple[int, int]], spec: dict[str, Any]
) -> None:
    made, kernel = queue(**{"delay_ms": 1, **spec, "reorder": False})
    pass_through(made, kernel, arrivals)
    packets = [packet for packet, _ in kernel.fates]
    assert packets == sorted(packets)


def test_no_packet_is_released_before_it_is_due() -> None:
    made, kernel = queue(delay_ms=10)
    kernel.waiting = [0, 1, 2]
    made.receive(1_000_000)
    made.release(10_999_999)
    assert kernel.fates == []
    assert made.next_due() == 11_000_000
    made.release(11_000_000)
    assert kernel.fates == [(0, ACCEPT), (1, ACCEPT), (2, ACCEPT)]


def test_packets_do_not_overtake_after_a_change_to_a_shorter_delay() -> None:
    made, kernel = queue(delay_ms=10)
    kernel.waiting = [0]
    made.receive(0)
    made.set({"delay_ms": 1})
    kernel.waiting = [1]
    made.receive(0)
    made.release(1_000_000)
    assert kernel.fates == []
    made.release(10_000_000)
    assert kernel.fates == [(0, ACCEPT), (1, ACCEPT)]


def test_a_blackhole_drops_all_packets_and_a_flush_drops_delayed_ones() -> None:
    made, kernel = queue(blackhole=True)
    pass_through(made, kernel, [(0, 5)])
    assert {verdict for _, verdict in kernel.fates} == {DROP}
    made, kernel = queue(delay_ms=10)
    kernel.waiting = [0, 1]
    made.receive(0)
    made.flush()
    assert kernel.fates == [(0, DROP), (1, DROP)]


def losses(seed: str, **spec: Any) -> list[int]:
    made, kernel = queue(seed, **spec)
    pass_through(made, kernel, [(n, 50) for n in range(100)])
    return [packet for packet, verdict in kernel.fates if verdict == DROP]


def test_a_seed_determines_which_packets_are_lost() -> None:
    once = losses("a", loss_percent=20)
    assert losses("a", loss_percent=20) == once
    assert losses("b", loss_percent=20) != once
    assert losses("a", loss_percent=20, delay_ms=10, jitter_ms=10) == once
    assert 0.16 < len(once) / 5000 < 0.24


def test_loss_bursts_have_the_declared_mean_length() -> None:
    burst = {
        "enter_percent": 2,
        "leave_percent": 25,
        "loss_percent": 100,
        "good_loss_percent": 0,
    }
    lost = losses("a", burst=burst)
    runs = sum(packet - 1 not in lost for packet in lost)
    assert 3 < len(lost) / runs < 5
    assert 0.05 < len(lost) / 5000 < 0.1


# --- options


def segment(options: bytes, *, ipv6: bool = False, protocol: int = 6) -> bytes:
    options += bytes(-len(options) % 4)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, (20 + len(options)) << 2, 16, 0, 0, 0) + options
    if ipv6:
        return struct.pack(">IHBB32x", 6 << 28, len(tcp), protocol, 64) + tcp
    return struct.pack(">BBHHHBBH8x", 0x45, 0, 20 + len(tcp), 0, 0, 64, protocol, 0) + tcp


TIMESTAMPS = bytes([1, 1, 8, 10]) + bytes(8)
DSS = bytes([30, 8, 0x20, 1]) + bytes(4)
ADD_ADDR = bytes([30, 16, 0x30, 2]) + bytes(12)


@pytest.mark.parametrize("ipv6", [False, True])
def test_all_subtypes_of_a_segment_are_found(ipv6: bool) -> None:
    assert mptcp_subtypes(segment(TIMESTAMPS + DSS + ADD_ADDR, ipv6=ipv6)) == {2, 3}
    assert mptcp_subtypes(segment(TIMESTAMPS, ipv6=ipv6)) == frozenset()
    assert mptcp_subtypes(segment(DSS, ipv6=ipv6, protocol=17)) == frozenset()


def test_options_after_the_end_of_list_are_ignored() -> None:
    assert mptcp_subtypes(segment(bytes([0]) + DSS)) == frozenset()
    assert mptcp_subtypes(segment(b"") + DSS) == frozenset()
    assert mptcp_subtypes(segment(bytes([8, 0]) + DSS)) == frozenset()


@given(st.binary(max_size=130), st.booleans())
def test_no_packet_raises(data: bytes, as_options: bool) -> None:
    found = mptcp_subtypes(segment(data[:40]) if as_options else data)
    assert found <= set(range(16))
