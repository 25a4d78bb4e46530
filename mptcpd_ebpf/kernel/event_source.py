# SPDX-License-Identifier: BSD-3-Clause
"""What events are read from: netlink subscriptions and probes."""

from collections.abc import Sequence
from typing import Protocol

from mptcpd_ebpf.core.events import Event


class EventSource(Protocol):
    """A descriptor to wait for, and the events behind it."""

    def fileno(self) -> int:
        """Readable when events wait."""
        ...

    def read(self) -> Sequence[Event]:
        """The events that wait, at most one batch; empty if there are none.  Never blocks."""
        ...
