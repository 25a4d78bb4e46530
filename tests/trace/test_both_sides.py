# SPDX-License-Identifier: BSD-3-Clause
"""`BothSides` orders packets and the kernel's records, whenever they arrive."""

import time
from collections.abc import Callable
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.trace.tap import BothSides, Tap
from mptcpd_ebpf.trace.trace_programs import TracePrograms


class Sources:
    """A fake tap and fake programs; `between` runs after a call has fetched its packets."""

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


def both(sources: Sources) -> BothSides:
    return BothSides(cast(TracePrograms, sources), cast(Tap, sources))


@given(st.lists(st.sampled_from(["before", "amid"]), max_size=6))
def test_a_packet_is_returned_before_its_record(moments: list[str]) -> None:
    sources = Sources()
    sides = both(sources)
    returned: list[tuple[str, str]] = []
    new: list[str] = []

    def call() -> None:
        records, signals, followed = sides.read()
        new.extend(record["name"] for record in records)
        returned.extend(("packet", str(signal)) for signal in signals)
        returned.extend(("record", record["name"]) for record in followed)

    for number, moment in enumerate(moments):

        def happens(name: str = str(number)) -> None:
            sources.packet_then_record(name)

        sources.between = happens if moment == "amid" else lambda: None
        if moment == "before":
            happens()
        call()
    sources.between = lambda: None
    call()
    names = [str(number) for number in range(len(moments))]
    assert new == names
    for name in names:
        assert returned.index(("packet", name)) < returned.index(("record", name))
    assert len(returned) == 2 * len(names)
