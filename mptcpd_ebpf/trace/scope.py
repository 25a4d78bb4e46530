# SPDX-License-Identifier: BSD-3-Clause
"""The filters that all tools share, and the connection and process of each subflow.

The kernel's records have token and addresses; the process is known from the call that opened the
connection, or is looked up by the connection's socket (kernel.owners).  An unknown value does not
match a filter for it.
"""

import os
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from mptcpd_ebpf.core.address import SockAddr, parse_sockaddr
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.core.token import token_of, token_text
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.probes.records import address
from mptcpd_ebpf.trace.trace_programs import Record

_U32 = 0xFFFFFFFF
_LOOK_AGAIN_NS = 50_000_000
MOST_KNOWN = 8192
"""Number of subflows, and of connections, that are kept: the most recently used ones."""

Flow = tuple[SockAddr, SockAddr]
"""Local, remote."""


@dataclass(kw_only=True)
class Subject:
    """A subflow, as far as it is known."""

    token: int | None
    local: SockAddr
    remote: SockAddr
    local_id: int | None = None
    remote_id: int | None = None
    joined: bool | None = None
    cookie: int | None = None
    owner: Owner | None = None

    @property
    def name(self) -> str:
        return f"{self.local} → {self.remote}"

    def fields(self) -> dict[str, Any]:
        """The members of `lines.base.SubflowFields`."""
        owner = self.owner or Owner()
        return {
            "token": None if self.token is None else token_text(self.token),
            "local": str(self.local),
            "remote": str(self.remote),
            "local_id": self.local_id,
            "remote_id": self.remote_id,
            "initial": None if self.joined is None else not self.joined,
            "pid": owner.pid,
            "comm": owner.comm,
        }


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The filters of a run: a subflow must pass all that are given."""

    pid: int | None = None
    comm: str | None = None
    cgroups: frozenset[int] = frozenset()
    """Inodes of cgroup v2 folders."""
    token: int | None = None
    address: IPv4Network | IPv6Network | SockAddr | None = None

    @property
    def needs_owner(self) -> bool:
        """Whether a filter needs the subflow's process."""
        return self.pid is not None or self.comm is not None or bool(self.cgroups)

    @property
    def is_restricted(self) -> bool:
        """Whether there is any filter."""
        return self != Scope()

    def matches(self, place: SockAddr) -> bool:
        """Whether an address matches the address filter; port 0 matches any port."""
        if self.address is None or isinstance(self.address, SockAddr):
            wanted = self.address
            if wanted is None or wanted == place:
                return True
            return not place.port and wanted.ip == place.ip
        return ip_address(place.ip) in self.address

    def admits(self, subject: Subject) -> bool:
        owner = subject.owner or Owner()
        return (
            (self.token is None or subject.token == self.token)
            and (
                self.address is None or self.matches(subject.local) or self.matches(subject.remote)
            )
            and (self.pid is None or owner.pid == self.pid)
            and (self.comm is None or owner.comm == self.comm)
            and (not self.cgroups or owner.cgroup in self.cgroups)
        )


def parse_address(text: str) -> IPv4Network | IPv6Network | SockAddr:
    """Parses an address, a prefix, or an address with a port.  Raises ValueError."""
    try:
        return ip_network(text)
    except ValueError:
        if "/" in text or ":" not in text:
            raise ValueError(
                f"{text!r} is not an address, prefix, or address:port ([address]:port)"
            ) from None
        return parse_sockaddr(text)


def parse_token(text: str) -> int:
    """Parses a token in hexadecimal, as all commands print it.  Raises ValueError."""
    try:
        token = token_of(text)
    except ValueError:
        token = 0  # no connection has it
    if not token:
        raise ValueError(
            f"{text!r} is not a token: give the 8 hexadecimal digits that 'trace doctor' lists"
        )
    return token


def cgroups_below(folder: Path) -> frozenset[int]:
    """The ids (inodes) of a cgroup v2 folder and of all below it.

    Raises ValueError if it is not a cgroup v2 folder.
    """
    if not (folder / "cgroup.procs").exists() or not (folder / "cgroup.controllers").exists():
        raise ValueError(f"{folder} is not a folder of the cgroup v2 file system")
    return frozenset(os.stat(path).st_ino for path, _, _ in os.walk(folder))


@dataclass
class Directory:
    """The connection and process of each known subflow.

    It keeps `MOST_KNOWN` entries and drops the least recently used ones, because the number of
    connections during a trace is not limited.
    """

    by_flow: dict[Flow, Subject] = field(default_factory=dict)
    by_cookie: dict[int, Subject] = field(default_factory=dict)
    owners: dict[int, Owner] = field(default_factory=dict)
    """By token."""
    _looked_at: int = 0

    def look(self) -> diag.Snapshot:
        """Adds all open connections with their processes, and returns them."""
        self._looked_at = time.monotonic_ns()
        snapshot = diag.snapshot()
        for connection in snapshot.connections:
            if connection.owner and connection.owner.pid is not None:
                self._owned(connection.token, connection.owner)
        for measured in snapshot.subflows:
            self.of_measurement(measured)
        return snapshot

    def of_measurement(self, measured: Measurement) -> Subject:
        if measured.owner and measured.owner.pid is not None:
            self._owned(measured.token, measured.owner)
        return self._learn(
            Subject(
                token=measured.token,
                local=measured.local,
                remote=measured.remote,
                local_id=measured.local_id,
                remote_id=measured.remote_id,
                joined=None if measured.initial is None else not measured.initial,
                cookie=measured.cookie,
            )
        )

    def of_record(self, record: Record) -> Subject:
        """The subflow of a trace_record, with what is known from earlier records."""
        token = record["token"] or None
        if token and record["pid"] != _U32:
            owner = Owner(
                pid=record["pid"],
                uid=record["uid"],
                cgroup=record["cgroup"],
                comm=name_of(record["comm"]),
            )
            _put_last(self.owners, token, owner)
        return self._learn(
            Subject(
                token=token,
                local=address(record["local_ip"], record["local_port"]),
                remote=address(record["remote_ip"], record["remote_port"]),
                local_id=_known_id(record["local_id"]),
                remote_id=_known_id(record["remote_id"]),
                joined=bool(record["joined"]) if token else None,
                cookie=record["cookie"] or None,
            )
        )

    def of_share(self, cookie: int, share: Record) -> Subject:
        """The subflow of a trace_share, with what is known from records."""
        return self._learn(
            Subject(
                token=share["token"],
                local=address(share["local_ip"], share["local_port"]),
                remote=address(share["remote_ip"], share["remote_port"]),
                joined=bool(share["joined"]),
                cookie=cookie,
            )
        )

    def of_event(self, token: int, local: SockAddr, remote: SockAddr) -> Subject:
        """The subflow of a connection between two addresses."""
        known = self.by_flow.get((local, remote))
        if known is not None:
            known.token = known.token or token
            return known
        return self._learn(Subject(token=token, local=local, remote=remote))

    def of_flow(self, local: SockAddr, remote: SockAddr) -> Subject:
        """The subflow between two addresses; its token is None if it is unknown."""
        known = self.by_flow.get((local, remote))
        return known or Subject(token=None, local=local, remote=remote)

    def _learn(self, new: Subject) -> Subject:
        known = self.by_cookie.get(new.cookie or 0)
        if known is None:
            known = new
        else:
            known.token = known.token or new.token
            self._move(known, new.local, new.remote)
            for name in ("local_id", "remote_id", "joined"):
                if getattr(new, name) is not None:
                    setattr(known, name, getattr(new, name))
        if known.cookie:
            _put_last(self.by_cookie, known.cookie, known)
        if known.local.port:
            _put_last(self.by_flow, (known.local, known.remote), known)
        if known.owner is None and known.token:
            known.owner = self.owners.get(known.token)
        return known

    def sent_by(self, cookie: int, local: SockAddr, remote: SockAddr) -> None:
        """Adds the port of a socket from a segment: the record of connect(2) comes before the
        kernel assigns one."""
        known = self.by_cookie.get(cookie)
        if known is not None and not known.local.port:
            self._move(known, local, remote)
            _put_last(self.by_flow, (local, remote), known)

    def _move(self, known: Subject, local: SockAddr, remote: SockAddr) -> None:
        if not local.port or not remote.port or (known.local, known.remote) == (local, remote):
            return
        if self.by_flow.get((known.local, known.remote)) is known:
            del self.by_flow[known.local, known.remote]
        known.local, known.remote = local, remote

    def _owned(self, token: int, owner: Owner) -> None:
        """Adds a process found in /proc, unless the one that opened the connection is known."""
        _put_last(self.owners, token, self.owners.get(token, owner))

    def find_owner(self, subject: Subject) -> None:
        """Looks up an unknown process, at most 20 times a second."""
        if subject.owner or not subject.token:
            return
        if subject.token not in self.owners and (
            time.monotonic_ns() - self._looked_at > _LOOK_AGAIN_NS
        ):
            self.look()
        subject.owner = self.owners.get(subject.token)

    def forget(self, subject: Subject) -> None:
        """Removes a subflow that has ended."""
        if subject.cookie:
            self.by_cookie.pop(subject.cookie, None)
        if self.by_flow.get((subject.local, subject.remote)) is subject:
            del self.by_flow[subject.local, subject.remote]


K = TypeVar("K")
V = TypeVar("V")


def bound(known: dict[K, V]) -> None:
    """Keeps the newest `MOST_KNOWN` entries: if records are lost, some ends are never seen."""
    if len(known) > MOST_KNOWN:  # a dictionary keeps the order of insertion
        del known[next(iter(known))]


def _put_last(known: dict[K, V], key: K, value: V) -> None:
    known.pop(key, None)
    known[key] = value
    bound(known)


def _known_id(value: int) -> int | None:
    return None if value > 255 else value
