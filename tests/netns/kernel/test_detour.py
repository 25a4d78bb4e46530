# SPDX-License-Identifier: BSD-3-Clause
"""The route of a join, looked up before the join: Linux 6.1 needs this."""

import errno
import socket

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import CreateSubflow
from mptcpd_ebpf.kernel.detour import detour
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from mptcpd_ebpf.lab import Lab


def asked(lab: Lab, *, interface: str | None, ipv6: bool) -> CommandAnswer | None:
    """About a join from the second path's address to where the first one leads."""
    first, second = lab.paths
    remote = first.server_ip6 if ipv6 else first.server_ip
    local = second.client_ip6 if ipv6 else second.client_ip
    assert local is not None
    assert remote is not None

    def ask() -> CommandAnswer | None:
        return detour(
            CreateSubflow(
                token=1,
                local_ip=local,
                local_id=1,
                remote=SockAddr(remote, 80),
                reason="a test",
                if_index=socket.if_nametoindex(interface) if interface else 0,
            )
        )

    return lab.client.call(ask)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_join_with_routes_over_another_interface_is_refused(ipv6: bool) -> None:
    with Lab(ip="both") as lab:
        first, second = lab.paths
        ip = second.client_ip6 if ipv6 else second.client_ip
        rule = ["ip", "-6" if ipv6 else "-4", "rule", "del", "from", str(ip)]
        assert asked(lab, interface=second.client_if, ipv6=ipv6) is None
        lab.client.run(rule)
        refused = asked(lab, interface=second.client_if, ipv6=ipv6)
        assert refused is not None
        assert refused.errno == errno.ENETUNREACH
        assert f"leaves by {first.client_if} and not by {second.client_if}" in refused.explanation
        assert f"ip rule add from {ip}" in refused.explanation
        assert asked(lab, interface=first.client_if, ipv6=ipv6) is None
        assert asked(lab, interface=None, ipv6=ipv6) is None


def test_where_no_route_leads_the_kernel_has_the_word() -> None:
    with Lab() as lab:
        lab.client.run(["ip", "route", "flush", "table", "main"])
        for path in lab.paths:
            lab.client.run(["ip", "rule", "del", "from", path.client_ip])
        assert asked(lab, interface=lab.paths[1].client_if, ipv6=False) is None
