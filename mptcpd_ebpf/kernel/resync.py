# SPDX-License-Identifier: BSD-3-Clause
"""Reads the complete state of one network namespace: at start, and after events were lost."""

from mptcpd_ebpf.core.events import Resynchronised
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.kernel import diag, rtnetlink
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester


def snapshot(subflows: list[Measurement] | None = None) -> Resynchronised:
    """Reads connections, subflows, links, addresses and default routes.

    `subflows` are those that a better source has just measured (the probes' iterator); without it,
    inet_diag's are used. Subscribe before calling it: changes during the read then arrive as
    events, and events state what is, so that a duplicate does no harm. Raises NetlinkRefused.
    """
    with Requester(NETLINK_ROUTE) as requester:
        links = rtnetlink.links(requester)
        addresses = rtnetlink.addresses(requester)
        routes = rtnetlink.default_routes(requester)
    found = diag.snapshot()
    return Resynchronised(
        connections=found.connections,
        subflows=found.subflows if subflows is None else subflows,
        links=links,
        addresses=addresses,
        routes=routes,
    )
