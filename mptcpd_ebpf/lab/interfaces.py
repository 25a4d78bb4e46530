# SPDX-License-Identifier: BSD-3-Clause
"""What happens to a path's interfaces, addresses and router, and how it is undone.

A host loses its carrier when the router's end of the veth goes down; the host's own
configuration stays as it was.  A router that comes back is configured by the same
lines that set it up first.  Everything here may be asked for twice: what is so
already stays so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.wiring import FAR, NEAR, WORKSHOP, connect, neck_routers

if TYPE_CHECKING:
    from mptcpd_ebpf.lab.host import Host
    from mptcpd_ebpf.lab.wiring import Plan


class Interfaces:
    """The links of path `index`, seen from its two hosts ("client" and "server")."""

    def __init__(self, index: int, plan: Plan, hosts: dict[str, Host], router: Host) -> None:
        self.index = index
        self.plan = plan
        self.path = plan.topology.paths[index]
        self.hosts = hosts
        self.router = router
        self.router_is_off = False
        self.removed = False
        self._without_carrier: set[str] = set()
        self._without_address: set[str] = set()

    def carrier(self, on: bool, end: str) -> None:
        host, interface, setup = self._opposite(end)
        if on == (end not in self._without_carrier):
            return
        if on:
            self._without_carrier.discard(end)
            host.batch("ip", setup)
            self._wait_for(end)
        else:
            self._without_carrier.add(end)
            host.batch("ip", [f"link set dev {interface} down"])

    def remove_address(self, end: str) -> None:
        if end in self._without_address or (end == "client" and self.removed):
            return
        label = self._label(end)
        interface = self._interface(end)
        lines = [
            f"address del {ip}/{length} dev {interface}"
            for ip, length in self.plan.address_of(label, self.index).each()
        ]
        if end == "client":
            lines += self.plan.drop_rules(self.index)
        self.hosts[label].batch("ip", lines)
        self._without_address.add(end)

    def restore_address(self, end: str) -> None:
        if end in self._without_address:
            label = self._label(end)
            self.hosts[label].batch("ip", self.plan.host_path_lines(label, self.index))
            self._without_address.discard(end)

    def remove_interface(self) -> None:
        if not self.removed:
            rules = [] if "client" in self._without_address else self.plan.drop_rules(self.index)
            lines = [*rules, f"link del dev {self.path.name}"]
            self.hosts[self.path.between[0]].batch("ip", lines)
            self.removed = True

    def restore_interface(self) -> bool:
        """Returns whether there was anything to do."""
        if not self.removed:
            return False
        host = self.hosts[self.path.between[0]]
        cable = connect([(host, self.path.name, self.router, NEAR)])
        self.hosts[WORKSHOP].batch("ip", cable)
        self.router.batch("ip", self.plan.router_lines(self.index))
        host.batch("ip", self.plan.host_path_lines(host.label, self.index))
        self.removed = False
        self._without_address.discard("client")
        self._without_carrier.discard("client")
        self._wait_for("client")
        return True

    def power_off_router(self) -> None:
        if not self.router_is_off:
            sides = [FAR] if self.removed else [NEAR, FAR]
            self.router.batch("ip", [f"link set dev {side} down" for side in sides])
            self.router_is_off = True

    def power_on_router(self) -> None:
        if not self.router_is_off:
            return
        if self.removed:
            raise LabError(f"path {self.path.name}: restore its interface first")
        self.router.batch("ip", self.plan.router_lines(self.index))
        self.router_is_off = False
        self._without_carrier.clear()
        self._wait_for("client")
        if self.path.bottleneck is None:
            self._wait_for("server")

    def _wait_for(self, end: str) -> None:
        self.hosts[self._label(end)].wait_until_running([self._interface(end)])

    def _label(self, end: str) -> str:
        try:
            return self.path.between[("client", "server").index(end)]
        except ValueError:
            raise LabError(f"end {end!r} is neither client nor server") from None

    def _interface(self, end: str) -> str:
        return self.path.name if end == "client" else self.plan.far_interface(self.index)

    def _opposite(self, end: str) -> tuple[Host, str, list[str]]:
        """Who holds the other end of the host's cable, by what, and how it is set up."""
        self._label(end)
        lines = self.plan.router_lines(self.index)
        if end == "client":
            return self.router, NEAR, lines
        if self.path.bottleneck is None:
            return self.router, FAR, lines
        second = neck_routers(self.path.bottleneck)[1]
        return self.hosts[second], FAR, self.plan.neck_lines(self.path.bottleneck)[1]
