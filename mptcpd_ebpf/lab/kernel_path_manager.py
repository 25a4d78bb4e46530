# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the in-kernel path manager in a lab's hosts: limits and endpoints (ip-mptcp(8))."""

from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.lab import Lab

_MOST = "8"
"""The highest limit that the kernel accepts (MPTCP_PM_ADDR_MAX in net/mptcp/protocol.h)."""


def raise_limits(*hosts: Host) -> None:
    """Lets these hosts have as many subflows per connection as the kernel can.

    The same limit holds for subflows to announced addresses.  The default is two subflows and
    no announced address.
    """
    for host in hosts:
        host.run(["ip", "mptcp", "limits", "set", "subflows", _MOST, "add_addr_accepted", _MOST])


def add_endpoint(host: Host, ip: str, *words: str) -> None:
    """Adds an endpoint; `words` are its flags and options as ip-mptcp(8) takes them."""
    host.run(["ip", "mptcp", "endpoint", "add", ip, *words])


def allow_joins(lab: Lab) -> None:
    """Makes every path of the client after the first a subflow of new connections."""
    raise_limits(lab.client, lab.server)
    for path in lab.paths[1:]:
        add_endpoint(lab.client, path.client_ip, "dev", path.client_if, "subflow")
