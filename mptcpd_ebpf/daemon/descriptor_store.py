# SPDX-License-Identifier: BSD-3-Clause
"""The service manager keeps the subscription to the path manager's events over a restart.

While nothing is subscribed, the kernel refuses joins of connections in userspace mode.  systemd
holds a descriptor that the daemon gives it (sd_pid_notify_with_fds(3)), and hands it to the next
daemon (sd_listen_fds(3)).  It closes it when the service is stopped for good.
"""

import logging
import os

from mptcpd_ebpf.daemon.sd_notify import notify
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.runtime import netns

log = logging.getLogger("mptcpd-ebpf")

NAME = "pm-events"
"""Of the descriptor, among those of the service."""
_FIRST = 3
"""SD_LISTEN_FDS_START."""


def subscribe() -> PmEvents:
    """The kept subscription, without the events that waited in it, or a new one that is kept.

    The caller reads the kernel's state next, which is newer than those events.  Raises KernelError.
    """
    kept = _received().get(NAME)
    if kept is not None:
        if netns.is_of(kept):
            events = PmEvents.adopt(kept)
            events.discard()
            log.info("the subscription to the kernel's events was kept since the former daemon")
            return events
        os.close(kept)
        notify(f"FDSTOREREMOVE=1\nFDNAME={NAME}")
    events = PmEvents.open()
    # Without FDPOLL=0, systemd drops a socket as soon as events overflow in it.
    notify(f"FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0", events.fileno())
    return events


def _received() -> dict[str, int]:
    """The descriptors that the service manager handed to this process, by name, closed on exec.

    Their environment variables are removed: they are not for children.
    """
    given = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS")}
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdecimal():
        return {}
    descriptors = range(_FIRST, _FIRST + int(given["LISTEN_FDS"]))
    found: dict[str, int] = {}
    for name, descriptor in zip(names, descriptors, strict=False):
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            continue  # it is not open
        found[name] = descriptor
    return found
