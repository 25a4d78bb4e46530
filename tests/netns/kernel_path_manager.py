# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the in-kernel path manager that tests need: limits and endpoints."""

from mptcpd_ebpf.lab import Host, Lab

MOST = "8"
"""The highest limit that the kernel accepts (MPTCP_PM_ADDR_MAX in net/mptcp/protocol.h)."""


def raise_limits(*hosts: Host) -> None:
    """These hosts accept and make as many subflows as the kernel can, announced addresses too."""
    for host in hosts:
        host.run(["ip", "mptcp", "limits", "set", "subflows", MOST, "add_addr_accepted", MOST])


def add_endpoint(host: Host, ip: str, *words: str) -> None:
    """Adds an endpoint; `words` are its flags and options as ip-mptcp(8) takes them."""
    host.run(["ip", "mptcp", "endpoint", "add", ip, *words])


def allow_joins(lab: Lab) -> None:
    """Every path of the client after the first becomes a subflow of new connections."""
    raise_limits(lab.client, lab.server)
    for path in lab.paths[1:]:
        add_endpoint(lab.client, path.client_ip, "dev", path.client_if, "subflow")
