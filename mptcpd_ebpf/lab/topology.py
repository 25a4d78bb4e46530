# SPDX-License-Identifier: BSD-3-Clause
"""What a lab consists of, and every address in it.  Pure data.

A path joins two hosts through a router of its own:

    client ── path's name ── [near  router  far] ── path's name ── server

Path i (from 1) has 10.i.1.0/24 on its first host's side and 10.i.2.0/24 on the other;
the router is .1, the host .2; with IPv6 fd00:i:1::/64 and fd00:i:2::/64 likewise.
Paths that share a bottleneck go on through two more routers, on whose common link
the bottleneck's own impairment works; the second host then has one interface, named
as the bottleneck, with the addresses of all these paths.
"""

import os
import re
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct, field

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.impairment import FIELDS, Impairment, changed, check
from mptcpd_ebpf.lab.schedule import Step, check_steps

IpVersion = Literal["4", "6", "both"]
BackendName = Literal["auto", "netem", "nfqueue"]

MAX_PATHS = 8
BACKEND_VARIABLE = "MPTCP_LAB_BACKEND"
_IFNAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")  # IFNAMSIZ is 16 with the end


def default_backend() -> BackendName:
    """The backend of labs that name none: the environment's MPTCP_LAB_BACKEND, or auto."""
    name = os.environ.get(BACKEND_VARIABLE, "auto")
    try:
        backend: BackendName = msgspec.convert(name, BackendName)
    except msgspec.ValidationError:
        names = ", ".join(get_args(BackendName))
        raise LabError(f"{BACKEND_VARIABLE} is {name!r}, none of {names}") from None
    return backend


class _Directed(Impairment, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An impairment of both directions, and what differs in each."""

    name: str = ""
    up: dict[str, Any] = field(default_factory=dict)
    """Impairment fields that differ from the first host to the second."""
    down: dict[str, Any] = field(default_factory=dict)
    """Impairment fields that differ on the way back."""

    def directions(self) -> tuple[Impairment, Impairment]:
        """The impairments as declared: up, down.  Raises LabError for what cannot be."""
        base = Impairment(**{name: getattr(self, name) for name in FIELDS})
        check(base, where=self.name)
        return (
            changed(base, self.up, where=f"{self.name}.up"),
            changed(base, self.down, where=f"{self.name}.down"),
        )


class Path(_Directed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way between two hosts.

    Its `name` is that of its hosts' interfaces; the default is path0, path1, …
    """

    nat: bool = False
    """The router hides the first host behind its own address (masquerade)."""
    bottleneck: str | None = None
    """Name of the bottleneck that the path goes through."""
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
    """Makes loss and jitter repeatable: the same packets meet the same fate."""
    schedule: list[Step] = field(default_factory=list)
    """Faults by the clock; `Lab.schedule` and `mptcpd-ebpf lab up` start them."""


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
    """The network of one of the lab's addresses, as `subnet` lays them out."""
    return f"{ip.rpartition('::')[0]}::/64" if ":" in ip else f"{ip.rpartition('.')[0]}.0/24"


def parse(document: Any) -> Topology:
    """A topology from plain data (a YAML document) or its fields.

    Raises LabError with the key path for what is wrong.
    """
    try:
        return checked(msgspec.convert(msgspec.to_builtins(document), Topology))
    except (TypeError, msgspec.ValidationError) as error:
        raise LabError(f"topology: {error}") from None


def checked(topology: Topology) -> Topology:
    """The topology with default names filled in.  Raises LabError for what cannot be built."""
    if not 1 <= len(topology.paths) <= MAX_PATHS:
        raise LabError(f"a lab has one to {MAX_PATHS} paths, not {len(topology.paths)}")
    paths = [
        path if path.name else msgspec.structs.replace(path, name=f"path{index}")
        for index, path in enumerate(topology.paths)
    ]
    named = [("path", path.name) for path in paths]
    named += [("bottleneck", neck.name) for neck in topology.bottlenecks]
    _unique(named)
    _unique([("host", host) for host in topology.hosts])
    for host in topology.hosts:
        if host.startswith(("router-", "neck-")):
            raise LabError(f"host {host!r}: names that begin so are the lab's own routers'")
    necks = {neck.name: neck for neck in topology.bottlenecks}
    for neck in topology.bottlenecks:
        neck.directions()
        ends = {path.between for path in paths if path.bottleneck == neck.name}
        if len(ends) != 1:
            raise LabError(f"bottleneck {neck.name}: its paths must join the same two hosts")
    for path in paths:
        path.directions()
        for host in path.between:
            if host not in topology.hosts:
                raise LabError(f"path {path.name}: there is no host {host!r}")
        if path.between[0] == path.between[1]:
            raise LabError(f"path {path.name}: it joins {path.between[0]} with itself")
        if path.bottleneck is not None and path.bottleneck not in necks:
            raise LabError(f"path {path.name}: there is no bottleneck {path.bottleneck!r}")
    check_steps(topology.schedule)
    return msgspec.structs.replace(topology, paths=paths)


def _unique(names: list[tuple[str, str]]) -> None:
    seen = set()
    for kind, name in names:
        if not _IFNAME.fullmatch(name):
            raise LabError(
                f"{kind} {name!r}: a name is a letter, then up to 14 letters, digits, - and _"
            )
        if name in seen:
            raise LabError(f"{kind} {name!r}: the name is taken")
        seen.add(name)
