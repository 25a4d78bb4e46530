# SPDX-License-Identifier: BSD-3-Clause
"""Turns a topology into namespaces, links, addresses and routes.

Routing makes joins work over every path: the first host has a table per path, selected by
source address (ip-rule(8)), so that packets from path i's address leave by path i; and each
router has a route to *every* address of both its hosts through the host's interface on that
path, because a subflow of path i may have the other host's initial address, which belongs to
path 0, as its destination.  The second host routes by destination.

All lines are made as text first and passed to ``ip -batch``, one process per namespace, with
`replace` instead of `add`, so that the same lines set up a router again after a restart.
Interfaces are written with ``dev``: without it ip(8) takes some names for its own keywords or
abbreviations of these.
"""

import hashlib
from collections.abc import Sequence

from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.topology import (
    FAR,
    NEAR,
    Addresses,
    Path,
    Topology,
    network_of,
    subnet,
)

SCRATCH = "_scratch"
"""A namespace without links of its own, from which all links are made: before Linux 6.14 the
kernel refuses a new link if the maker's namespace has a link of that name already, whatever
the link's own namespace."""
FIRST_TABLE = 101
FIRST_METRIC = 100

SYSCTLS = {
    # A join to the peer's initial address arrives on another path than that of the address.
    "ipv4.conf.all.rp_filter": 0,
    "ipv4.conf.default.rp_filter": 0,
}
ROUTER_SYSCTLS = SYSCTLS | {"ipv4.ip_forward": 1}
ROUTER_SYSCTLS6 = {"ipv6.conf.all.forwarding": 1}
NO_DAD = {
    # With it, link-local addresses are tentative for a second, and neighbours unknown.
    "ipv6.conf.all.accept_dad": 0,
    "ipv6.conf.default.accept_dad": 0,
    "ipv6.conf.default.dad_transmits": 0,
}
NO_IPV6 = {"ipv6.conf.all.disable_ipv6": 1, "ipv6.conf.default.disable_ipv6": 1}


class Plan:
    """The links, addresses and routes of one topology."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.ip = topology.ip
        self.single_packets = False
        """Hosts send no super-packets; for a backend that would drop them as a whole."""

    def path_nets(self, index: int) -> tuple[tuple[Addresses, Addresses], ...]:
        """Path `index`'s ((router, host) near, (router, host) far) addresses."""
        return subnet(index, 1, self.ip), subnet(index, 2, self.ip)

    def address_of(self, host: str, index: int) -> Addresses:
        """The addresses of `host`, one of the two ends, on path `index`."""
        near, far = self.path_nets(index)
        return near[1] if self.topology.paths[index].between[0] == host else far[1]

    def paths_of(self, host: str) -> list[int]:
        return [i for i, path in enumerate(self.topology.paths) if host in path.between]

    def members(self, neck: str) -> list[int]:
        return [i for i, path in enumerate(self.topology.paths) if path.bottleneck == neck]

    def routers(self) -> list[str]:
        """Labels of all routers: one per path, two per bottleneck."""
        names = [router_of(path) for path in self.topology.paths]
        for neck in self.topology.bottlenecks:
            names += neck_routers(neck.name)
        return names

    # --- links

    def links(self) -> list[tuple[str, str, str, str]]:
        """(namespace, interface, namespace, interface) of every veth pair."""
        pairs = []
        for path in self.topology.paths:
            near, far = path.between
            router = router_of(path)
            pairs.append((near, path.name, router, NEAR))
            if path.bottleneck is None:
                pairs.append((far, path.name, router, FAR))
            else:
                pairs.append((router, FAR, neck_routers(path.bottleneck)[0], path.name))
        for neck in self.topology.bottlenecks:
            first, second = neck_routers(neck.name)
            host = self.topology.paths[self.members(neck.name)[0]].between[1]
            pairs.append((first, FAR, second, NEAR))
            pairs.append((second, FAR, host, neck.name))
        return pairs

    def far_interface(self, index: int) -> str:
        """The interface on the second host that carries path `index`."""
        path = self.topology.paths[index]
        return path.bottleneck or path.name

    # --- addresses and routes, as ip(8) lines

    def host_lines(self, host: str) -> list[str]:
        lines = ["link set dev lo up"]
        for index in self.paths_of(host):
            lines += self.host_path_lines(host, index)
        return lines

    def host_path_lines(self, host: str, index: int) -> list[str]:
        """One path's address, rule and routes on one of its hosts."""
        path = self.topology.paths[index]
        (near_router, near_host), (far_router, far_host) = self.path_nets(index)
        first = path.between[0] == host
        interface = path.name if first else self.far_interface(index)
        mine, router, other = (
            (near_host, near_router, far_host) if first else (far_host, far_router, near_host)
        )
        others = [other]
        if not first and path.nat:
            others.append(self._router_far(index))
        lines = [self.host_link_line(host, index), *_address_lines(interface, mine)]
        lines += _neighbour_lines(interface, router, *self._gateway(index, first))
        for (ip, _), (gateway, _) in zip(mine.each(), router.each(), strict=True):
            via = f"via {gateway} dev {interface}"
            if first:
                table = FIRST_TABLE + index
                lines += [
                    f"route replace default {via} table {table}",
                    _rule("add", ip, table),
                ]
            lines.append(f"route replace default {via} metric {FIRST_METRIC + index}")
            for target in others:
                for there, _ in target.each():
                    if (":" in there) == (":" in ip) and network_of(there) != network_of(ip):
                        lines.append(f"route replace {network_of(there)} {via}")
        return lines

    def host_link_line(self, host: str, index: int) -> str:
        """Sets up the interface of one of a path's hosts."""
        path = self.topology.paths[index]
        interface = path.name if path.between[0] == host else self.far_interface(index)
        single = " gso_max_segs 1" if self.single_packets else ""
        return f"link set dev {interface} up{single}"

    def _gateway(self, index: int, first: bool) -> tuple[str, str]:
        """The router's end of a path's link to one of its hosts: label, interface."""
        path = self.topology.paths[index]
        if first:
            return router_of(path), NEAR
        if path.bottleneck is None:
            return router_of(path), FAR
        return neck_routers(path.bottleneck)[1], FAR

    def drop_rules(self, index: int) -> list[str]:
        """Removes the source rules of a path on its first host."""
        host = self.topology.paths[index].between[0]
        return [
            _rule("del", ip, FIRST_TABLE + index) for ip, _ in self.address_of(host, index).each()
        ]

    def router_lines(self, index: int) -> list[str]:
        """A path's router."""
        return [
            "link set dev lo up",
            *self.router_near_lines(index),
            *self.router_far_lines(index),
        ]

    def router_near_lines(self, index: int) -> list[str]:
        """The router's side towards the first host."""
        path = self.topology.paths[index]
        router, host = self.path_nets(index)[0]
        lines = [f"link set dev {NEAR} up", *_address_lines(NEAR, router)]
        lines += _neighbour_lines(NEAR, host, path.between[0], path.name)
        lines += self._routes_to_all(path.between[0], host, NEAR)
        return lines

    def router_far_lines(self, index: int) -> list[str]:
        """The router's side towards the second host, or towards the bottleneck."""
        path = self.topology.paths[index]
        if path.bottleneck is None:
            beyond, cable = self.path_nets(index)[1][1], (path.between[1], path.name)
        else:
            beyond = subnet(index, 3, self.ip)[1]
            cable = (neck_routers(path.bottleneck)[0], path.name)
        lines = [f"link set dev {FAR} up", *_address_lines(FAR, self._router_far(index))]
        lines += _neighbour_lines(FAR, beyond, *cable)
        lines += self._routes_to_all(path.between[1], beyond, FAR)
        return lines

    def neck_lines(self, neck: str) -> tuple[list[str], list[str]]:
        """The two routers of a bottleneck."""
        first, second = (["link set dev lo up", f"link set dev {x} up"] for x in (FAR, NEAR))
        second.append(f"link set dev {FAR} up")
        number = [n.name for n in self.topology.bottlenecks].index(neck)
        left, right = subnet(100 + number, 1, self.ip)
        first += _address_lines(FAR, left)
        second += _address_lines(NEAR, right)
        first_label, second_label = neck_routers(neck)
        first += _neighbour_lines(FAR, right, second_label, NEAR)
        second += _neighbour_lines(NEAR, left, first_label, FAR)
        for index in self.members(neck):
            path = self.topology.paths[index]
            (_, near_host), (far_router, far_host) = self.path_nets(index)
            router, here = subnet(index, 3, self.ip)
            first += [f"link set dev {path.name} up", *_address_lines(path.name, here)]
            first += _routes([near_host, router], router, path.name)
            first += self._routes_to_all(path.between[1], right, FAR)
            first += _neighbour_lines(path.name, router, router_of(path), FAR)
            second += _address_lines(FAR, far_router)
            second += _neighbour_lines(FAR, far_host, path.between[1], neck)
            second += _routes([near_host, router], left, NEAR)
        last = self.members(neck)[0]
        host, beyond = self.topology.paths[last].between[1], self.path_nets(last)[1][1]
        second += self._routes_to_all(host, beyond, FAR, on_link=self.members(neck))
        return first, second

    def _router_far(self, index: int) -> Addresses:
        """A path router's own address on its far side."""
        if self.topology.paths[index].bottleneck is None:
            return subnet(index, 2, self.ip)[0]
        return subnet(index, 3, self.ip)[0]

    def _routes_to_all(
        self, host: str, via: Addresses, interface: str, *, on_link: Sequence[int] = ()
    ) -> list[str]:
        """Routes to every address of `host` that is not on the link itself."""
        lines = []
        gateways = {":" in ip: ip for ip, _ in via.each()}
        for index in sorted(set(self.paths_of(host)) - set(on_link)):
            for ip, _ in self.address_of(host, index).each():
                gateway = gateways[":" in ip]
                if ip != gateway:
                    lines.append(f"route replace {ip} via {gateway} dev {interface}")
        return lines


def router_of(path: Path) -> str:
    return f"router-{path.name}"


def neck_routers(neck: str) -> list[str]:
    return [f"neck-{neck}-{NEAR}", f"neck-{neck}-{FAR}"]


def connect(pairs: list[tuple[Host, str, Host, str]]) -> list[str]:
    """ip(8) lines, for the scratch namespace, that make veth pairs between hosts."""
    return [
        f"link add name {if_a} address {mac(a.label, if_a)} netns {a.name} type veth "
        f"peer name {if_b} address {mac(b.label, if_b)} netns {b.name}"
        for a, if_a, b, if_b in pairs
    ]


def mac(label: str, interface: str) -> str:
    """An interface's MAC address: locally administered, derived from label and name."""
    digest = hashlib.sha256(f"{label}/{interface}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _rule(verb: str, ip: str, table: int) -> str:
    return f"{'-6 ' if ':' in ip else ''}rule {verb} from {ip} lookup {table} pref {table}"


def _address_lines(interface: str, addresses: Addresses) -> list[str]:
    return [
        f"address replace {ip}/{length} dev {interface}" + (" nodad" if ":" in ip else "")
        for ip, length in addresses.each()
    ]


def _neighbour_lines(interface: str, addresses: Addresses, label: str, its: str) -> list[str]:
    """Permanent neighbour entries for the other end of a link.

    netem's loss applies to everything an interface sends.  Without these entries a blackhole
    would also drop ARP and neighbour discovery, and its effect would outlast it.
    """
    return [
        f"neighbour replace {ip} lladdr {mac(label, its)} dev {interface} nud permanent"
        for ip, _ in addresses.each()
    ]


def _routes(targets: list[Addresses], via: Addresses, interface: str) -> list[str]:
    gateways = {":" in ip: ip for ip, _ in via.each()}
    lines = []
    for target in targets:
        for ip, _ in target.each():
            gateway = gateways[":" in ip]
            if network_of(ip) != network_of(gateway):
                lines.append(f"route replace {network_of(ip)} via {gateway} dev {interface}")
    return lines
