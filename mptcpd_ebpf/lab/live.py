# SPDX-License-Identifier: BSD-3-Clause
"""A link or path of a running lab, and all changes and faults it can undergo."""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from mptcpd_ebpf.lab.backends import Backend
from mptcpd_ebpf.lab.emulation import DOWN, UP
from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.impairment import Direction, Impairment, changed
from mptcpd_ebpf.lab.interfaces import FarEnd, Faults, PathInterfaces
from mptcpd_ebpf.lab.middlebox import (
    OptionStripper,
    expire_nat,
    inject_resets,
)
from mptcpd_ebpf.lab.schedule import OPTION_SUBTYPES, End, Target
from mptcpd_ebpf.lab.waiting import wait_until
from mptcpd_ebpf.lab.wiring import Plan

P = ParamSpec("P")
T = TypeVar("T")
L = TypeVar("L", bound="LiveLink")


def _locked(method: Callable[Concatenate[L, P], T]) -> Callable[Concatenate[L, P], T]:
    """Makes a method atomic with respect to other threads' changes of the same lab.

    A schedule runs in a thread of its own beside the test.
    """

    @wraps(method)
    def locked(self: L, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


def directions(direction: Direction) -> list[int]:
    """The indices of a direction's name; raises LabError for an unknown name."""
    try:
        return {"up": [UP], "down": [DOWN], "both": [UP, DOWN]}[direction]
    except KeyError:
        raise LabError(f"direction {direction!r} is none of up, down, both") from None


class LiveLink:
    """A link that can be impaired: a path's own, or a bottleneck."""

    def __init__(
        self,
        name: str,
        number: int,
        backend: Backend,
        declared: tuple[Impairment, Impairment],
        lock: RLock,
    ) -> None:
        self.name = name
        self.lock = lock
        """Held during every change of the lab; one lock for all links."""
        self._number = number
        self._backend = backend
        self._declared = declared
        self._now = list(declared)
        self._blackholed = [False, False]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def target(self) -> Target:
        """The link as the checks of schedules see it."""
        return Target(declared=self._declared, now=(self.up, self.down), bottleneck=True, nat=False)

    @property
    def up(self) -> Impairment:
        """The present impairment from the first host to the second."""
        return self._now[UP]

    @property
    def down(self) -> Impairment:
        return self._now[DOWN]

    @property
    def blackholed(self) -> tuple[bool, bool]:
        """Whether all packets are dropped: up, down."""
        return self._blackholed[UP], self._blackholed[DOWN]

    @_locked
    def set(self, /, *, direction: Direction = "both", **changes: Any) -> None:
        """Changes fields of the impairment at once; the others stay.

        `changes` are fields of `Impairment`.  Packets in flight keep their delay and are not
        overtaken.  Raises LabError for a wrong field or value.
        """
        which = directions(direction)
        where = f"{self.name}.set"
        wanted = {index: changed(self._now[index], changes, where=where) for index in which}
        for index, value in wanted.items():
            self._now[index] = value
        self._apply(which)

    @_locked
    def blackhole(self, direction: Direction = "both") -> None:
        """Drops every packet, while links and routes stay up."""
        which = directions(direction)
        for index in which:
            self._blackholed[index] = True
        self._apply(which)

    @_locked
    def heal(self) -> None:
        """Restores the declared impairment."""
        self._now = list(self._declared)
        self._blackholed = [False, False]
        self._apply([UP, DOWN])

    @_locked
    def apply_declared(self) -> None:
        """Applies the declared impairment to a new link, if there is any."""
        if any(value != Impairment() for value in self._declared):
            self._apply([UP, DOWN])

    def _apply(self, which: list[int]) -> None:
        self._backend.apply(
            self._number, {index: (self._now[index], self._blackholed[index]) for index in which}
        )


class LivePath(LiveLink):
    """A path while its lab runs."""

    def __init__(
        self,
        index: int,
        plan: Plan,
        hosts: dict[str, Host],
        router: Host,
        backend: Backend,
        far_end: FarEnd,
        lock: RLock,
    ) -> None:
        path = plan.topology.paths[index]
        super().__init__(path.name, index, backend, path.directions(), lock)
        self.path = path
        """The path as declared."""
        self.index = index
        self.router = router
        self._plan = plan
        self._client = hosts[path.between[0]]
        near, far = plan.path_nets(index)
        self.client_if = path.name
        """The first host's interface."""
        self.server_if = plan.far_interface(index)
        self.client_ip6, self.server_ip6 = near[1].v6, far[1].v6
        self.client_ip = near[1].v4 or near[1].v6 or ""
        """The first host's address: IPv4, or IPv6 in a lab without IPv4."""
        self.server_ip = far[1].v4 or far[1].v6 or ""
        self._interfaces = PathInterfaces(index, plan, hosts, router, far_end)
        self._stripper = OptionStripper(router)
        self._dropped: list[tuple[str, ...]] = [(), ()]

    def target(self) -> Target:
        return msgspec.structs.replace(super().target(), bottleneck=False, nat=self.path.nat)

    def subflows(self) -> int:
        """How many TCP connections or subflows the first host has from this path's addresses."""
        near = self._plan.address_of(self.path.between[0], self.index)
        argv = ["ss", "-Htn", "state", "established"]
        count = 0
        for ip, _ in near.each():
            # Without brackets, ss(8) takes what follows an address's last colon for a port.
            source = f"[{ip}]" if ":" in ip else ip
            count += self._client.run([*argv, "src", source]).stdout.count("\n")
        return count

    def wait_for_subflow(self, within_s: float = 10.0) -> None:
        """Waits for a subflow on this path; raises LabError after `within_s` seconds."""
        if not wait_until(self.subflows, within_s):
            raise LabError(f"path {self.name}: no subflow after {within_s:g} s")

    @property
    def faults(self) -> Faults:
        """The present faults of the path's interfaces, addresses and router."""
        return self._interfaces.faults

    @property
    def stripped(self) -> tuple[bool, bool]:
        """Whether MPTCP options are removed: up, down."""
        return UP in self._stripper.active, DOWN in self._stripper.active

    @property
    def dropped(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The MPTCP options whose packets are dropped: up, down."""
        return self._dropped[UP], self._dropped[DOWN]

    # --- faults that the hosts notice: links, addresses, routers.  Each lasts until its own
    #     opposite or `heal`, whatever else happens meanwhile

    @_locked
    def carrier(self, on: bool, *, end: End = "client") -> None:
        """Takes the carrier from the interface at `end`, or restores it.

        Behind a bottleneck all paths share the second host's interface.
        """
        self._set_faults(self.faults.carrier(end, on=on))

    @_locked
    def remove_address(self, *, end: End = "client") -> None:
        """Removes the path's addresses from its interface at `end`, with rules and routes."""
        self._set_faults(self.faults.address(end, there=False))

    @_locked
    def restore_address(self, *, end: End = "client") -> None:
        self._set_faults(self.faults.address(end, there=True))

    @_locked
    def remove_interface(self) -> None:
        """Deletes the first host's interface, as when a USB modem is unplugged."""
        self._set_faults(self.faults.interface(there=False))

    @_locked
    def restore_interface(self) -> None:
        """Makes the interface again, with its addresses and routes."""
        self._set_faults(self.faults.interface(there=True))

    @_locked
    def power_off_router(self) -> None:
        """Stops the router: its neighbours lose their carrier, packets in flight are lost.

        Behind a bottleneck the second host is no neighbour and keeps its carrier.
        """
        self._set_faults(self.faults.router(on=False))

    @_locked
    def power_on_router(self) -> None:
        """Starts the router again, with its configuration and without any NAT binding."""
        self._set_faults(self.faults.router(on=True))

    def _set_faults(self, new: Faults) -> None:
        old = self.faults
        if old.router_off and not new.router_off and self.path.nat:
            expire_nat(self.router)
        self._interfaces.apply(new)
        if new.interface_removed != old.interface_removed:
            there = not new.interface_removed
            self._backend.interface(self._number, DOWN, there=there)
            if there:
                self._apply([UP, DOWN])
        if new.router_off and not old.router_off:
            self._backend.flush(self._number)

    # --- faults of middleboxes

    def expire_nat(self) -> int:
        """Removes every binding of the path's NAT; returns how many there were.

        Packets of earlier connections are then dropped silently, in both directions.
        """
        if not self.path.nat:
            raise LabError(f"path {self.name} has no NAT: declare Path(nat=True)")
        return expire_nat(self.router)

    @_locked
    def strip_mptcp(self, direction: Direction = "both") -> None:
        """Removes MPTCP options from every packet (they become NOPs)."""
        self._stripper.strip(directions(direction))

    @_locked
    def drop_mptcp(self, *options: str, direction: Direction = "both") -> None:
        """Drops packets that carry one of these MPTCP options, and lets all others pass.

        `options` are names of `OPTION_SUBTYPES`: "add-addr", "mp-join", …  They replace those
        given before for the same direction; without options all packets pass again.
        """
        for option in options:
            if option not in OPTION_SUBTYPES:
                raise LabError(
                    f"no MPTCP option {option!r}; there are {', '.join(OPTION_SUBTYPES)}"
                )
        wanted = dict.fromkeys(directions(direction), options)
        if all(self._dropped[index] == options for index in wanted):
            return
        subtypes = sorted(OPTION_SUBTYPES[option] for option in options)
        self._backend.drop_options(self._number, dict.fromkeys(wanted, subtypes))
        for index in wanted:
            self._dropped[index] = options

    def inject_resets(self, *, within_s: float = 1.0) -> int:
        """Resets the TCP connections that are active on this path, towards both ends.

        Each packet is answered with a forged RST that has the sequence number its sender
        expects, until no packets pass any more or `within_s` seconds are over.  Connections
        opened meanwhile are not reset.  Returns how many connections (subflows) were reset,
        counted by address pair: one behind a NAT counts twice.
        """
        return self.router.call(inject_resets, within_s)

    @_locked
    def heal(self) -> None:
        """Restores everything declared: impairment, interfaces, addresses, options."""
        self._stripper.clear()
        self.drop_mptcp()
        self._set_faults(Faults())
        super().heal()
