# SPDX-License-Identifier: BSD-3-Clause
"""Tells the service manager how we are (sd_notify(3)); without one, nothing happens.

A watchdog, where it wants one (sd_watchdog_enabled(3)), is fed from the event loop: what
stops the loop for good, such as a plugin inside a C call that never returns, stops the
feeding, and the service manager starts the daemon anew.
"""

import asyncio
import os
import socket


def notify(state: str) -> None:
    """Sends one assignment, such as ``READY=1``, to ``$NOTIFY_SOCKET``."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        pass  # a service manager that does not listen is no reason to stop serving


def feed_watchdog() -> None:
    """Feeds the service manager's watchdog from the running loop, twice in its interval."""
    interval_us = _watchdog_us()
    if interval_us:
        _feed(asyncio.get_running_loop(), interval_us / 2e6)


def _feed(loop: asyncio.AbstractEventLoop, pause_s: float) -> None:
    notify("WATCHDOG=1")
    loop.call_later(pause_s, _feed, loop, pause_s)


def _watchdog_us() -> int:
    """Its interval in microseconds, 0 if there is none for this process."""
    try:
        meant_for = int(os.environ.get("WATCHDOG_PID", os.getpid()))
        interval = int(os.environ.get("WATCHDOG_USEC", 0))
    except ValueError:
        return 0
    return interval if meant_for == os.getpid() and interval > 0 else 0
