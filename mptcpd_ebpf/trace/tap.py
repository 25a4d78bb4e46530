# SPDX-License-Identifier: BSD-3-Clause
"""Hears the MPTCP signals on every interface of the namespace, and not the data.

The packets are chosen in the kernel (bpf/trace_tap.bpf.c): SYN, RST and MPTCP options other
than an ordinary DSS come through.
"""

import time
from collections.abc import Iterable, Mapping

from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.trace.frame import Trace
from mptcpd_ebpf.trace.signals import Signal, read
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms


class Tap(TracePrograms):
    """What passes the interfaces of one namespace."""

    def __init__(self, netns: int) -> None:
        """Raises BpfUnavailable."""
        super().__init__("trace_tap", constants={"own_netns": netns})

    def hooks(self) -> list[str]:
        return [f"{hook} (SYN, RST, TCP option 30)" for hook in super().hooks()]

    def signals(self) -> list[Signal]:
        """The signals since the last call; never blocks."""
        heard = (
            read(
                packet["headers"][: packet["length"]],
                at=packet["at"],
                outgoing=bool(packet["outgoing"]),
                cookie=packet["cookie"],
            )
            for packet in self.read("trace_packet")
        )
        return [signal for signal in heard if signal]


class BothSides:
    """The packets and the kernel's records, read so that neither overtakes what it follows from.

    A record of a subflow that is to send comes before the packet, one of what a packet did
    after it; so each batch of packets stands between the records that may be its reason and
    those that may be its result.
    """

    def __init__(self, kernel: TracePrograms, tap: Tap) -> None:
        self._kernel = kernel
        self._tap = tap
        self._late: list[Record] = []

    def read(self) -> tuple[list[Record], list[Signal], list[Record]]:
        """The new records, the new packets, and the records whose packets have all been told.

        Every record is once in the first list and once in the last, there perhaps a call later.
        """
        begun = time.monotonic_ns()
        signals = self._tap.signals()
        records = self._kernel.read("trace_record")
        due = [*self._late, *records]
        self._late = [record for record in due if record["at"] >= begun]
        return records, signals, [record for record in due if record["at"] < begun]


def open_with_tap(
    trace: Trace, programs: Iterable[str], constants: Mapping[str, int]
) -> tuple[TracePrograms, Tap]:
    """The tracing programs and the tap of a tool that needs both.  Raises BpfUnavailable."""
    kernel = TracePrograms("trace", programs, constants)
    try:
        tap = Tap(constants["own_netns"])
    except BpfUnavailable:
        kernel.close()
        raise
    trace.means += [*kernel.hooks(), *tap.hooks()]
    return trace.open(kernel), trace.open(tap)
