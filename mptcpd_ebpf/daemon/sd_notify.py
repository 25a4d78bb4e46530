# SPDX-License-Identifier: BSD-3-Clause
"""Reports the daemon's state to the service manager (sd_notify(3)), if there is one.

If the service manager asks for a watchdog (sd_watchdog_enabled(3)), the event loop sends the
keep-alive messages.  When the loop hangs, for example in a plugin's C call that never returns, they
stop, and the service manager restarts the daemon.
"""

import asyncio
import os
import socket


def notify(state: str, *descriptors: int) -> None:
    """Sends assignments, such as ``READY=1``, one a line, and descriptors to ``$NOTIFY_SOCKET``."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            if descriptors:
                socket.send_fds(sock, [state.encode()], list(descriptors))
            else:
                sock.send(state.encode())
    except OSError:
        pass  # the daemon works without a service manager


def feed_watchdog() -> None:
    """Sends keep-alive messages from the running loop, two in each watchdog interval."""
    interval_us = _watchdog_us()
    if interval_us:
        _feed(asyncio.get_running_loop(), interval_us / 2e6)


def _feed(loop: asyncio.AbstractEventLoop, pause_s: float) -> None:
    notify("WATCHDOG=1")
    loop.call_later(pause_s, _feed, loop, pause_s)


def _watchdog_us() -> int:
    """The watchdog interval in microseconds, 0 if there is none for this process."""
    try:
        pid = int(os.environ.get("WATCHDOG_PID", os.getpid()))
        interval = int(os.environ.get("WATCHDOG_USEC", 0))
    except ValueError:
        return 0
    return interval if pid == os.getpid() and interval > 0 else 0
