# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's path-manager events as a source of a trace tool.

Listening has an effect: under the userspace path manager the kernel refuses joins unless a
process listens to its events, and this source listens.
"""

from mptcpd_ebpf.core.events import Event, EventsLost
from mptcpd_ebpf.kernel import sysctl
from mptcpd_ebpf.kernel.pm_events import RECEIVE_BUFFER, PmEvents
from mptcpd_ebpf.trace.trace_programs import Cost


class Events:
    """A subscription to the events of the current namespace."""

    def __init__(self, *, receive_buffer: int = RECEIVE_BUFFER) -> None:
        """Raises MptcpMissing, NotPermitted without CAP_NET_ADMIN."""
        self._events = PmEvents.open(receive_buffer=receive_buffer)
        self._lost = 0

    def means(self) -> list[str]:
        """The source's name, and its effect on the kernel."""
        if sysctl.PathManagerSetting().current() != "userspace":
            return ["mptcp_pm events"]
        return [
            "mptcp_pm events",
            "meanwhile the kernel accepts joins, because the path manager is userspace",
        ]

    def fileno(self) -> int:
        return self._events.fileno()

    def read(self) -> list[Event]:
        """The pending events; never blocks.  An `EventsLost` among them stands for lost ones."""
        events = self._events.read()
        self._lost += sum(isinstance(event, EventsLost) for event in events)
        return events

    @property
    def lost(self) -> dict[str, int]:
        """How often the socket's buffer was full; the kernel does not count the lost events."""
        return {"times the events' buffer was full": self._lost}

    def cost(self) -> Cost:
        """Zero: the kernel does not account for it."""
        return Cost(0, 0)

    def close(self) -> None:
        self._events.close()
