# SPDX-License-Identifier: BSD-3-Clause
"""Captures MPTCP signalling on every interface of the namespace, without the data.

A BPF program (bpf/trace_tap.bpf.c) selects the packets: those with SYN, RST or an MPTCP option
other than an ordinary DSS.
"""

import time
from collections.abc import Iterable, Mapping

from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.trace.frame import Trace
from mptcpd_ebpf.trace.signals import Signal, read
from mptcpd_ebpf.trace.trace_programs import Record, TracePrograms


class Tap(TracePrograms):
    """The signals that pass the interfaces of one namespace."""

    def __init__(self, netns: int) -> None:
        """Raises BpfUnavailable."""
        super().__init__("trace_tap", constants={"own_netns": netns})

    def hooks(self) -> list[str]:
        return [f"{hook} (SYN, RST, TCP option 30)" for hook in super().hooks()]

    def signals(self) -> list[Signal]:
        """The signals since the last call; never blocks."""
        found = (
            read(
                packet["headers"][: packet["length"]],
                at=packet["at"],
                outgoing=bool(packet["outgoing"]),
                cookie=packet["cookie"],
            )
            for packet in self.read("trace_packet")
        )
        return [signal for signal in found if signal]


class BothSides:
    """Reads packets and the kernel's records so that causes come before their effects.

    The record of a subflow that is about to send precedes its packet; the record of a packet's
    effect follows the packet.  So each batch of packets is returned between the records that may
    be its causes and those that may be its effects.
    """

    def __init__(self, kernel: TracePrograms, tap: Tap) -> None:
        self._kernel = kernel
        self._tap = tap
        self._late: list[Record] = []

    def read(self) -> tuple[list[Record], list[Signal], list[Record]]:
        """The new records, the new packets, and the records whose packets have been returned.

        Every record is once in the first list, and once in the last list of this or the next call.
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
    """Opens the tracing programs and the tap for a tool.  Raises BpfUnavailable."""
    kernel = TracePrograms("trace", programs, constants)
    try:
        tap = Tap(constants["own_netns"])
    except BpfUnavailable:
        kernel.close()
        raise
    trace.means += [*kernel.hooks(), *tap.hooks()]
    return trace.open(kernel), trace.open(tap)
