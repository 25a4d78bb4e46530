# SPDX-License-Identifier: BSD-3-Clause
"""The whole truth of one network namespace, read anew: at start, and after events were lost."""

from collections.abc import Callable

from mptcpd_ebpf.core.events import Resynchronised
from mptcpd_ebpf.kernel import diag, network
from mptcpd_ebpf.kernel.transport import NETLINK_ROUTE, Requester


def resynchronise(
    sockets: Callable[[], diag.Snapshot] = diag.snapshot,
) -> Resynchronised:
    """Reads connections, subflows, links, addresses and default routes.

    `sockets` finds the connections; the probes' iterator sees more than inet_diag.
    Subscribe before calling it: what changes meanwhile then comes as events, and events
    tell what is, so hearing of something twice does no harm.
    Raises NetlinkRefusedError.
    """
    with Requester(NETLINK_ROUTE) as requester:
        links = network.links(requester)
        addresses = network.addresses(requester)
        routes = network.default_routes(requester)
    connections, subflows = sockets()
    return Resynchronised(
        connections=connections,
        subflows=subflows,
        links=links,
        addresses=addresses,
        routes=routes,
    )
