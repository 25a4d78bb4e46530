# SPDX-License-Identifier: BSD-3-Clause
"""Applies and removes faults of a path's interfaces, addresses and router.

`Faults` holds the faults of a path; each lasts until its own opposite removes it.
`state_under` derives from all faults together what must be up and which hosts have addresses;
`PathInterfaces.apply` makes the difference.  So faults can be combined and ended in any order.

A host loses its carrier when the other end of its veth pair goes down; its own configuration
does not change.  That other end is set up again with the same lines as at first.

The second host of a path through a bottleneck has one interface for all paths of that
bottleneck, connected to the bottleneck's own router.  All these paths therefore share its
carrier, which does not depend on the path's router.
"""

import msgspec
from msgspec import Struct

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.schedule import ENDS, End
from mptcpd_ebpf.lab.topology import FAR, NEAR
from mptcpd_ebpf.lab.wiring import SCRATCH, Plan, connect, neck_routers


class Faults(Struct, frozen=True, kw_only=True):
    """The faults of a path's interfaces; the default is none."""

    carrier_off: frozenset[End] = frozenset()
    """The hosts whose interface has lost its carrier, apart from the effects of other faults."""
    address_removed: frozenset[End] = frozenset()
    interface_removed: bool = False
    """The first host's."""
    router_off: bool = False

    def carrier(self, end: End, *, on: bool) -> "Faults":
        """With the carrier of one host lost, or not."""
        return msgspec.structs.replace(self, carrier_off=_changed(self.carrier_off, end, not on))

    def address(self, end: End, *, there: bool) -> "Faults":
        """With the addresses of one host removed, or not."""
        ends = _changed(self.address_removed, end, not there)
        return msgspec.structs.replace(self, address_removed=ends)

    def interface(self, *, there: bool) -> "Faults":
        return msgspec.structs.replace(self, interface_removed=not there)

    def router(self, *, on: bool) -> "Faults":
        return msgspec.structs.replace(self, router_off=not on)


def _changed(ends: frozenset[End], end: End, member: bool) -> frozenset[End]:
    if end not in ENDS:
        raise LabError(f"end {end!r} is neither client nor server")
    return ends | {end} if member else ends - {end}


class Role(Struct, frozen=True, kw_only=True):
    """The state of a path's interfaces."""

    interface: bool
    """The first host's interface exists; without it the router has no `near`."""
    near: bool
    """The router's interface to the first host is up."""
    far: bool
    """The router's interface towards the second host is up."""
    last: bool
    """The bottleneck's interface to the second host is up; equals `far` without a bottleneck."""
    addresses: frozenset[End]
    """The hosts that have the path's addresses; the first host also has their rules."""


def state_under(faults: Faults, *, bottleneck: bool) -> Role:
    """The state of a path's interfaces while these faults last."""
    interface = not faults.interface_removed
    powered = not faults.router_off
    served = "server" not in faults.carrier_off
    far = powered and (bottleneck or served)
    gone = faults.address_removed | (frozenset() if interface else {"client"})
    return Role(
        interface=interface,
        near=interface and powered and "client" not in faults.carrier_off,
        far=far,
        last=served if bottleneck else far,
        addresses=frozenset(ENDS) - gone,
    )


class FarEnd:
    """Whether the second host's link is down; all paths of a bottleneck share it."""

    def __init__(self) -> None:
        self.off = False


class _Plug(Struct, frozen=True):
    """One end of a veth pair that can be taken down, and the end that loses its carrier."""

    host: Host
    interface: str
    setup: list[str]
    other: Host
    its: str


class PathInterfaces:
    """The links of path `index`; `far_end` is the same for all paths of a bottleneck."""

    def __init__(
        self, index: int, plan: Plan, hosts: dict[str, Host], router: Host, far_end: FarEnd
    ) -> None:
        self.index = index
        self.plan = plan
        self.path = plan.topology.paths[index]
        self.hosts = hosts
        self.router = router
        self._far_end = far_end
        self._faults = Faults()

    @property
    def faults(self) -> "Faults":
        """Their faults, including what another path of the bottleneck did to the far end."""
        return self._faults.carrier("server", on=not self._far_end.off)

    def apply(self, faults: Faults) -> None:
        """Changes the interfaces so that exactly these faults hold."""
        bottleneck = self.path.bottleneck is not None
        old = state_under(self.faults, bottleneck=bottleneck)
        new = state_under(faults, bottleneck=bottleneck)
        if old != new:
            self._change(old, new)
        self._faults = faults
        self._far_end.off = "server" in faults.carrier_off

    def _change(self, old: Role, new: Role) -> None:
        for end in ENDS:
            if end in old.addresses and end not in new.addresses:
                self._take_address(end, new)
        if old.interface and not new.interface:
            self._client().batch("ip", [f"link del dev {self.path.name}"])
        if new.interface and not old.interface:
            self._make_interface()
        plugs = self._plugs()
        for name, plug in plugs.items():
            if getattr(old, name) and not getattr(new, name) and (name != "near" or new.interface):
                plug.host.batch("ip", [f"link set dev {plug.interface} down"])
                plug.other.wait_until_running([plug.its], running=False)
        for end in ENDS:
            if end in new.addresses and end not in old.addresses:
                host = self._host(end)
                host.batch("ip", self.plan.host_path_lines(host.label, self.index))
        up = [p for name, p in plugs.items() if getattr(new, name) and not getattr(old, name)]
        for plug in up:
            plug.host.batch("ip", plug.setup)
        for plug in up:
            plug.host.wait_until_running([plug.interface])
            plug.other.wait_until_running([plug.its])

    def _take_address(self, end: End, new: Role) -> None:
        host = self._host(end)
        lines = []
        if end == "server" or new.interface:  # the kernel removes them with the interface
            interface = self.path.name if end == "client" else self.plan.far_interface(self.index)
            lines = [
                f"address del {ip}/{length} dev {interface}"
                for ip, length in self.plan.address_of(host.label, self.index).each()
            ]
        if end == "client":
            lines += self.plan.drop_rules(self.index)
        host.batch("ip", lines)

    def _make_interface(self) -> None:
        cable = connect([(self._client(), self.path.name, self.router, NEAR)])
        self.hosts[SCRATCH].batch("ip", cable)
        self._client().batch("ip", [self.plan.host_link_line(self._client().label, self.index)])

    def _plugs(self) -> dict[str, _Plug]:
        """The ends that can be taken down, by the field of `Role`."""
        server = self._host("server")
        far_interface = self.plan.far_interface(self.index)
        plugs = {
            "near": _Plug(
                self.router,
                NEAR,
                self.plan.router_near_lines(self.index),
                self._client(),
                self.path.name,
            )
        }
        far_lines = self.plan.router_far_lines(self.index)
        neck = self.path.bottleneck
        if neck is None:
            plugs["far"] = _Plug(self.router, FAR, far_lines, server, far_interface)
            return plugs
        first, second = (self.hosts[label] for label in neck_routers(neck))
        plugs["far"] = _Plug(self.router, FAR, far_lines, first, self.path.name)
        plugs["last"] = _Plug(second, FAR, self.plan.neck_lines(neck)[1], server, far_interface)
        return plugs

    def _client(self) -> Host:
        return self._host("client")

    def _host(self, end: End) -> Host:
        return self.hosts[self.path.between[ENDS.index(end)]]
