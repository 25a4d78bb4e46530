# SPDX-License-Identifier: BSD-3-Clause
"""The parts of a lab, and every address in it.  Pure data.

A path joins two hosts through a router of its own:

    client ── path's name ── [near  router  far] ── path's name ── server

Path i (from 1) has 10.i.1.0/24 on its first host's side and 10.i.2.0/24 on the other;
the router is .1, the host .2; with IPv6 fd00:i:1::/64 and fd00:i:2::/64 likewise.
Paths that share a bottleneck continue through two more routers; the bottleneck's own
impairment applies to the link between these.  The second host then has one interface, named
as the bottleneck, with the addresses of all these paths.
"""

import os
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct, field

from mptcpd_ebpf.lab import impairment, schedule
from mptcpd_ebpf.lab.errors import LabError, Problem
from mptcpd_ebpf.lab.impairment import FIELDS, Impairment, judged
from mptcpd_ebpf.lab.schedule import Step, Target

IpVersion = Literal["4", "6", "both"]
BackendName = Literal["auto", "netem", "nfqueue"]

NEAR, FAR = "near", "far"
"""A router's interfaces: to the first host, to the second."""
MAX_PATHS = 8
BACKEND_VARIABLE = "MPTCP_LAB_BACKEND"
_IFNAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")  # IFNAMSIZ is 16 with the final NUL
_NO_INTERFACES = ("lo", "all", "default")  # of every namespace, and of /proc/sys/net/*/conf


def default_backend() -> BackendName:
    """The default backend: the environment's MPTCP_LAB_BACKEND, or auto."""
    name = os.environ.get(BACKEND_VARIABLE, "auto")
    try:
        backend: BackendName = msgspec.convert(name, BackendName)
    except msgspec.ValidationError:
        names = ", ".join(get_args(BackendName))
        raise LabError(f"{BACKEND_VARIABLE} is {name!r}, none of {names}") from None
    return backend


class _Directed(Impairment, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An impairment of both directions, and the differences of each."""

    name: str = ""
    up: dict[str, Any] = field(default_factory=dict)
    """Impairment fields that differ from the first host to the second."""
    down: dict[str, Any] = field(default_factory=dict)
    """Impairment fields that differ in the reverse direction."""

    def directions(self) -> tuple[Impairment, Impairment]:
        """The impairments as declared: up, down."""
        base = Impairment(**{name: getattr(self, name) for name in FIELDS})
        return judged(base, self.up)[0], judged(base, self.down)[0]

    def problems(self) -> Iterator[Problem]:
        """The invalid values, each with its key."""
        base = Impairment(**{name: getattr(self, name) for name in FIELDS})
        wrong = list(impairment.problems(base))
        yield from wrong
        if not wrong:  # else each direction would repeat the problem
            for side, changes in (("up", self.up), ("down", self.down)):
                for path, reason in judged(base, changes)[1]:
                    yield (side, *path), reason


class Path(_Directed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One path between two hosts.

    `name` is also the name of its interfaces on the hosts; the default is path0, path1, …
    """

    nat: bool = False
    """The router replaces the first host's address by its own (masquerade)."""
    bottleneck: str | None = None
    """The name of the bottleneck on the path."""
    between: tuple[str, str] = ("client", "server")


class Bottleneck(_Directed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link that several paths share, with an impairment of its own."""


class Topology(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a lab is made from; a YAML file of `mptcpd-ebpf lab up` holds one."""

    paths: list[Path] = field(default_factory=lambda: [Path(), Path()])
    bottlenecks: list[Bottleneck] = field(default_factory=list)
    hosts: list[str] = field(default_factory=lambda: ["client", "server"])
    ip: IpVersion = "4"
    backend: BackendName = field(default_factory=default_backend)
    seed: int | None = None
    """Makes loss and jitter repeatable: the same packets are lost and delayed."""
    schedule: list[Step] = field(default_factory=list)
    """Timed faults; `Lab.schedule` and `mptcpd-ebpf lab up` start them."""


class Addresses(Struct, frozen=True, kw_only=True):
    """The addresses of one end of a link: IPv4 and IPv6, None where not used."""

    v4: str | None
    v6: str | None

    def each(self) -> list[tuple[str, int]]:
        """(address, prefix length) of those in use."""
        return [(ip, length) for ip, length in ((self.v4, 24), (self.v6, 64)) if ip]


def subnet(path: int, side: int, ip: IpVersion) -> tuple[Addresses, Addresses]:
    """(router's, host's) addresses of path `path` (from 0) on side 1 near, 2 far, 3 between."""
    v4, v6 = ip in ("4", "both"), ip in ("6", "both")
    return tuple(  # type: ignore[return-value]
        Addresses(
            v4=f"10.{path + 1}.{side}.{host}" if v4 else None,
            v6=f"fd00:{path + 1}:{side}::{host}" if v6 else None,
        )
        for host in (1, 2)
    )


def network_of(ip: str) -> str:
    """The network of one of the lab's addresses (see `subnet`)."""
    return f"{ip.rpartition('::')[0]}::/64" if ":" in ip else f"{ip.rpartition('.')[0]}.0/24"


def named(topology: Topology) -> Topology:
    """The topology with default names filled in."""
    paths = [
        path if path.name else msgspec.structs.replace(path, name=f"path{index}")
        for index, path in enumerate(topology.paths)
    ]
    return msgspec.structs.replace(topology, paths=paths)


def problems(topology: Topology) -> Iterator[Problem]:
    """The problems that prevent a topology (with its names) from being built, with their keys."""
    paths, hosts, necks = topology.paths, topology.hosts, topology.bottlenecks
    if not 1 <= len(paths) <= MAX_PATHS:
        yield ("paths",), f"a lab has one to {MAX_PATHS} paths, not {len(paths)}"
    interfaces = [("paths", i, path.name) for i, path in enumerate(paths)]
    interfaces += [("bottlenecks", i, neck.name) for i, neck in enumerate(necks)]
    for (kind, i, _), reason in _bad_names(interfaces):
        yield (kind, i, "name"), reason
    for kind, i, name in interfaces:
        if name in _NO_INTERFACES:
            yield (kind, i, "name"), f"{name!r} is the kernel's own name"
    for (kind, i, _), reason in _bad_names([("hosts", i, name) for i, name in enumerate(hosts)]):
        yield (kind, i), reason
    for i, host in enumerate(hosts):
        if host.startswith(("router-", "neck-")):
            yield ("hosts", i), f"{host!r}: this prefix is reserved for the lab's routers"
    for i, neck in enumerate(necks):
        ends = {path.between for path in paths if path.bottleneck == neck.name}
        if not ends:
            yield ("bottlenecks", i), "no path goes through it"
        elif len(ends) > 1:
            yield ("bottlenecks", i), "its paths must join the same two hosts"
        yield from ((("bottlenecks", i, *key), reason) for key, reason in neck.problems())
    for i, path in enumerate(paths):
        yield from ((("paths", i, *key), reason) for key, reason in _path_problems(path, topology))
    targets = _targets(topology)
    for key, reason in schedule.problems(topology.schedule, targets):
        yield ("schedule", *key), reason


def _path_problems(path: Path, topology: Topology) -> Iterator[Problem]:
    yield from path.problems()
    known = ", ".join(topology.hosts) or "none"
    for host in path.between:
        if host not in topology.hosts:
            yield (
                ("between",),
                f"there is no host {host!r} (there are {known}); "
                "say which two it joins, as in between: [a, b]",
            )
    if path.between[0] == path.between[1]:
        yield ("between",), f"it joins {path.between[0]} with itself"
    if path.bottleneck is None:
        return
    if path.name == FAR:
        yield ("name",), f"{FAR!r} is taken by the bottleneck's own interface"
    necks = [neck.name for neck in topology.bottlenecks]
    if path.bottleneck not in necks:
        known = ", ".join(necks) or "none"
        yield ("bottleneck",), f"there is no bottleneck {path.bottleneck!r}; there are {known}"


def _targets(topology: Topology) -> dict[str | int, Target]:
    """The paths and bottlenecks of a schedule's steps."""
    targets: dict[str | int, Target] = {}
    for i, path in enumerate(topology.paths):
        now = path.directions()
        targets[path.name] = targets[i] = Target(
            declared=now, now=now, bottleneck=False, nat=path.nat
        )
    for neck in topology.bottlenecks:
        now = neck.directions()
        targets[neck.name] = Target(declared=now, now=now, bottleneck=True, nat=False)
    return targets


_Named = tuple[str, int, str]
"""A list of the topology, the position in it, and the name there."""


def _bad_names(names: list[_Named]) -> Iterator[tuple[_Named, str]]:
    seen = set()
    for entry in names:
        name = entry[2]
        if not _IFNAME.fullmatch(name):
            yield entry, f"{name!r}: a name is a letter, then up to 14 letters, digits, - and _"
        elif name in seen:
            yield entry, f"the name {name!r} is taken"
        seen.add(name)
