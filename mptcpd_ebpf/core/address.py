# SPDX-License-Identifier: BSD-3-Clause
"""Addresses as the core knows them: canonical text, an IPv4-mapped IPv6 address as IPv4.

Dual-stack sockets report AF_INET6 with ``::ffff:a.b.c.d`` for what is IPv4 on the
wire (RFC 4291, 2.5.5.2); addresses are normalised where they enter, so that a subflow has the same
key whichever source reported it.
"""

import ipaddress
from typing import Annotated, NamedTuple

from msgspec import Meta

Network = Annotated[str, Meta(extra={"check": ipaddress.ip_network})]
"""In a configuration: an address, or a network such as ``10.0.0.0/8``."""


class SockAddr(NamedTuple):
    """An IP address in canonical text and a TCP port in host order."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


_MAPPED = "::ffff:"


def canonical(ip: str) -> str:
    """The canonical spelling of an address; IPv4-mapped becomes IPv4.

    Raises ValueError for what is not an address.
    """
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def unmapped(ip: str) -> str:
    """`canonical` for the text of inet_ntop: only the mapping can differ, so it is cheap."""
    return ip[len(_MAPPED) :] if ip.startswith(_MAPPED) and "." in ip else ip


def is_ipv6(ip: str) -> bool:
    return ":" in ip


def parse_sockaddr(text: str) -> SockAddr:
    """Parses ``a.b.c.d:port`` or ``[ip6]:port``.  Raises ValueError naming the text."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address and port as [address]:port")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r}: no port in 0…65535 after the last colon")
    try:
        return SockAddr(canonical(host), int(port))
    except ValueError:
        raise ValueError(f"{text!r}: {host!r} is no IP address") from None
