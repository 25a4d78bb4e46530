# SPDX-License-Identifier: BSD-3-Clause
"""What the packets and the kernel's records are read as, whenever they come."""

import time
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.trace.tap import BothSides, Tap
from mptcpd_ebpf.trace.trace_programs import TracePrograms


class Ends:
    """A tap and a kernel's side; `between` happens after the packets of a call were fetched."""

    def __init__(self) -> None:
        self.packets: list[Any] = []
        self.records: list[Any] = []
        self.between: Callable[[], None] = lambda: None

    def signals(self) -> list[Any]:
        fetched, self.packets = self.packets, []
        self.between()
        return fetched

    def read(self, _kind: str) -> list[Any]:
        fetched, self.records = self.records, []
        return fetched

    def packet_then_record(self, name: str) -> None:
        self.packets.append(name)
        self.records.append({"name": name, "at": time.monotonic_ns()})


def both(ends: Ends) -> BothSides:
    return BothSides(cast(TracePrograms, ends), cast(Tap, ends))


@given(st.lists(st.sampled_from(["before", "amid"]), max_size=6))
def test_no_record_overtakes_the_packet_that_it_follows_from(moments: list[str]) -> None:
    ends = Ends()
    sides = both(ends)
    told: list[tuple[str, str]] = []
    new: list[str] = []

    def call() -> None:
        records, signals, followed = sides.read()
        new.extend(record["name"] for record in records)
        told.extend(("packet", str(signal)) for signal in signals)
        told.extend(("record", record["name"]) for record in followed)

    for number, moment in enumerate(moments):

        def happens(name: str = str(number)) -> None:
            ends.packet_then_record(name)

        ends.between = happens if moment == "amid" else lambda: None
        if moment == "before":
            happens()
        call()
    ends.between = lambda: None
    call()
    names = [str(number) for number in range(len(moments))]
    assert new == names
    for name in names:
        assert told.index(("packet", name)) < told.index(("record", name))
    assert len(told) == 2 * len(names)
