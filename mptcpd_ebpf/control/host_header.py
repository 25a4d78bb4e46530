# SPDX-License-Identifier: BSD-3-Clause
"""Whether a request is meant for this host: the defence against DNS rebinding.

A web page can make a browser send requests to any address under a name that the page's author
controls, and read the answers.  The browser then sends that name in the Host header.
"""

import ipaddress
import socket
from collections.abc import Sequence


def names_this_host(names: Sequence[str], host: str) -> bool:
    """Whether a Host header holds an address, ``localhost``, this host's name, or one of `names`.

    A port after it is ignored.
    """
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return name in ("localhost", own, *map(str.lower, names))
    return True
