# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's path-manager events as a source of a trace tool: with what it lost.

Listening has an effect: in userspace mode the kernel refuses joins while nobody listens,
and now somebody does.
"""

from mptcpd_ebpf.core.events import Event, EventsLost
from mptcpd_ebpf.kernel import sysctl
from mptcpd_ebpf.kernel.pm_events import RECEIVE_BUFFER, PmEvents
from mptcpd_ebpf.trace.trace_programs import Cost


class Events:
    """The subscription of the present namespace."""

    def __init__(self, *, receive_buffer: int = RECEIVE_BUFFER) -> None:
        """Raises MptcpMissing, NotPermitted without CAP_NET_ADMIN."""
        self._events = PmEvents.open(receive_buffer=receive_buffer)
        self._lost = 0

    def means(self) -> list[str]:
        """How it sees, and what it does to the kernel."""
        if sysctl.PathManagerSetting().current() != "userspace":
            return ["mptcp_pm events"]
        return [
            "mptcp_pm events",
            "which, the path manager being userspace, makes the kernel accept joins meanwhile",
        ]

    def fileno(self) -> int:
        return self._events.fileno()

    def read(self) -> list[Event]:
        """The events that wait; never blocks.  What was lost is an `EventsLost` among them."""
        events = self._events.read()
        self._lost += sum(isinstance(event, EventsLost) for event in events)
        return events

    @property
    def lost(self) -> dict[str, int]:
        """How often the socket's buffer was full: the kernel does not say how many were lost."""
        return {"times the events' buffer was full": self._lost}

    def cost(self) -> Cost:
        """Nothing that the kernel accounts for."""
        return Cost(0, 0)

    def close(self) -> None:
        self._events.close()
