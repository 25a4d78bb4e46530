# SPDX-License-Identifier: BSD-3-Clause
"""Tells the service manager how we are (sd_notify(3)); without one, nothing happens."""

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
