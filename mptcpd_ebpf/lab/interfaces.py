# SPDX-License-Identifier: BSD-3-Clause
"""What happens to a path's interfaces, addresses and router, and how it is undone.

`Faults` says what has befallen a path, and each fault lasts until it is taken back by
its own opposite; `wanted` derives from all of them together what must be up and who has
addresses; `PathInterfaces.bring` carries out what differs.  So faults can be combined and
ended in any order.

A host loses its carrier when the other end of its cable goes down; its own configuration
stays as it was.  That end is set up again by the same lines that set it up first.

The second host of a path through a bottleneck has one interface for all paths of that
bottleneck, plugged into the bottleneck's own router.  Its carrier is therefore one for
all these paths, and the path's router has no part in it.
"""

import msgspec
from msgspec import Struct

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.schedule import ENDS, End
from mptcpd_ebpf.lab.topology import FAR, NEAR
from mptcpd_ebpf.lab.wiring import SCRATCH, Plan, connect, neck_routers


class Faults(Struct, frozen=True, kw_only=True):
    """What has befallen the interfaces of a path; the default is nothing."""

    carrier_off: frozenset[End] = frozenset()
    """The hosts whose interface has lost its carrier for a reason of its own."""
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


class PathState(Struct, frozen=True, kw_only=True):
    """What must be so with a path's interfaces."""

    interface: bool
    """The first host has its interface; without it the router has no `near`."""
    near: bool
    """The router's end of the cable to the first host is up."""
    far: bool
    """The router's end of the cable towards the second host is up."""
    last: bool
    """The bottleneck's end of the cable to the second host is up; `far` without a bottleneck."""
    addresses: frozenset[End]
    """The hosts that have the path's addresses, and the first host's rules with them."""


def state_under(faults: Faults, *, bottleneck: bool) -> PathState:
    """What all faults together leave of a path."""
    interface = not faults.interface_removed
    powered = not faults.router_off
    served = "server" not in faults.carrier_off
    far = powered and (bottleneck or served)
    gone = faults.address_removed | (frozenset() if interface else {"client"})
    return PathState(
        interface=interface,
        near=interface and powered and "client" not in faults.carrier_off,
        far=far,
        last=served if bottleneck else far,
        addresses=frozenset(ENDS) - gone,
    )


class FarEnd:
    """The far end of the second host's cable, which all paths of a bottleneck share."""

    def __init__(self) -> None:
        self.off = False


class _Plug(Struct, frozen=True):
    """One end of a cable that can be taken down, and who notices."""

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
        """What has befallen them, with what another path of the bottleneck did to the far_end."""
        return self._faults.carrier("server", on=not self._far_end.off)

    def bring(self, faults: Faults) -> None:
        """Makes everything so that these faults hold and no others."""
        bottleneck = self.path.bottleneck is not None
        old = state_under(self.faults, bottleneck=bottleneck)
        new = state_under(faults, bottleneck=bottleneck)
        if old != new:
            self._change(old, new)
        self._faults = faults
        self._far_end.off = "server" in faults.carrier_off

    def _change(self, old: PathState, new: PathState) -> None:
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

    def _take_address(self, end: End, new: PathState) -> None:
        host = self._host(end)
        lines = []
        if end == "server" or new.interface:  # they go with the interface, its rules do not
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
        """What can be taken down, by the field of `PathState`."""
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
