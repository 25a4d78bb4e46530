# SPDX-License-Identifier: BSD-3-Clause
"""The paths of this host: from which address to which peers, in which state, with which figures.

A pure view of the model: what plugins use a path for is in `World.paths`, as they reported it.
Rates come from two readings of the subflows' counters (`Rates`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mptcpd_ebpf.control.schema import SCHEMA, Paths, PathSummary, PathView, PeerView
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import (
    SECOND,
    LocalAddress,
    PathReport,
    State,
    Subflow,
    SubflowKey,
    World,
)
from mptcpd_ebpf.core.roles import Role

PEERS = 50
"""Peers that are listed for a path, those that are not active first; a server may have any
number."""

LEAST_NS, MOST_NS = SECOND // 5, 60 * SECOND
"""Between two readings whose difference is a rate."""


class Rates:
    """Rates of subflows, from the newest two readings that are far enough apart."""

    def __init__(self) -> None:
        self._before: dict[tuple[int, SubflowKey], Measurement] = {}
        self._now: dict[tuple[int, SubflowKey], Measurement] = {}

    def read(self, measured: Iterable[Measurement], now: int) -> None:
        """Takes a reading of all subflows; `now`: CLOCK_MONOTONIC nanoseconds."""
        newest = max((each.at for each in self._now.values()), default=0)
        if now - newest >= LEAST_NS:
            self._before = self._now
        self._now = {(each.token, (each.local, each.remote)): each for each in measured}

    def of(self, subflow: Subflow) -> tuple[float, float] | None:
        """Bytes per second sent and received; None if not known."""
        name = (subflow.token, subflow.key)
        before, now = self._before.get(name), self._now.get(name)
        if before is None or now is None or before.cookie != now.cookie:
            return None
        passed = now.at - before.at
        if not LEAST_NS <= passed <= MOST_NS:
            return None
        sent = (now.bytes_sent or 0) - (before.bytes_sent or 0)
        received = (now.bytes_received or 0) - (before.bytes_received or 0)
        return max(0, sent) * SECOND / passed, max(0, received) * SECOND / passed


@dataclass(slots=True)
class _Peer:
    subflows: list[Subflow] = field(default_factory=list)
    report: PathReport | None = None


def paths(world: World, subflows: Iterable[Subflow], rates: Rates, epoch_ns: int) -> Paths:
    """All paths, in the order of the interfaces.

    `subflows`: the live ones, with their newest measurements.
    """
    found: dict[str, dict[str, _Peer]] = {}
    for address in world.addresses.values():
        if _is_shown(world, address):
            found.setdefault(address.ip, {})
    for subflow in subflows:
        if subflow.state is not State.CLOSED:
            peers = found.setdefault(subflow.local.ip, {})
            peers.setdefault(subflow.remote.ip, _Peer()).subflows.append(subflow)
    for (local_ip, remote_ip), report in world.paths.items():
        unused = report.state is Role.ACTIVE and remote_ip not in found.get(local_ip, ())
        if local_ip in found and not unused:
            found[local_ip].setdefault(remote_ip, _Peer()).report = report
    views = [_path(world, ip, peers, rates, epoch_ns) for ip, peers in found.items()]
    return {"schema": SCHEMA, "paths": views}


def _is_shown(world: World, address: LocalAddress) -> bool:
    """Loopback and what the configuration excludes carry no subflow unless one is there."""
    link = world.links.get(address.if_index)
    return (
        link is not None
        and not link.loopback
        and world.interface_allowed(link.name)
        and world.lets_in(address)
    )


def _path(world: World, ip: str, peers: dict[str, _Peer], rates: Rates, epoch_ns: int) -> PathView:
    if_index = world.interface_of(ip)
    subflows = [subflow for peer in peers.values() for subflow in peer.subflows]
    if if_index is None:
        if_index = next((s.if_index for s in subflows if s.if_index is not None), None)
    link = world.links.get(if_index) if if_index is not None else None
    views = [_peer(peer_ip, peer, epoch_ns) for peer_ip, peer in peers.items()]
    views.sort(key=lambda view: _ORDER.index(view["state"]))
    if link is not None and not (link.up and link.running):
        state, reason = "down", "the interface is down or has no carrier"
    elif not views:
        state, reason = "unused", "no connection uses it"
    else:
        state, reason = views[0]["state"], views[0]["reason"]
    carrying = [subflow for subflow in subflows if subflow.state is State.ESTABLISHED]
    measured = [subflow.measured for subflow in carrying if subflow.measured is not None]
    rtts = [each.srtt_us for each in measured if each.srtt_us]
    segments = [each.segments_out for each in measured if each.segments_out is not None]
    retransmits = [each.retransmits for each in measured if each.retransmits is not None]
    known = [rate for rate in map(rates.of, carrying) if rate is not None]
    return {
        "interface": link.name if link is not None else None,
        "local_ip": ip,
        "state": state,
        "reason": reason,
        "since": views[0]["since"] if views and state == views[0]["state"] else None,
        "connections": len({subflow.token for subflow in carrying}),
        "subflows": len(carrying),
        "backup_subflows": sum(s.backup or s.backup_by_peer for s in carrying),
        "srtt_us": sum(rtts) // len(rtts) if rtts else None,
        "srtt_max_us": max(rtts, default=None),
        "retransmits": sum(retransmits) if retransmits else None,
        "segments_out": sum(segments) if segments else None,
        "sent_bytes_per_s": sum(sent for sent, _ in known) if known else None,
        "received_bytes_per_s": sum(received for _, received in known) if known else None,
        "peer_count": len(views),
        "peers": views[:PEERS],
    }


_ORDER = ("away", "standby", "opening", "active", "unused")
"""States of a path to one peer, those that need attention first."""


def _peer(ip: str, peer: _Peer, epoch_ns: int) -> PeerView:
    report = peer.report
    carrying = [subflow for subflow in peer.subflows if subflow.state is State.ESTABLISHED]
    regular = [s for s in carrying if not (s.backup or s.backup_by_peer)]
    away = report is not None and report.state is Role.AWAY
    if report is not None and (away or report.state is Role.STANDBY):
        state, reason = report.state.value, report.reason
    elif regular:
        state, reason = "active", report.reason if report is not None else ""
    elif carrying:
        by_us = any(subflow.backup for subflow in carrying)
        who = "this host" if by_us else "the peer"
        state, reason = "standby", f"{who} marked its subflows as backup"
    elif peer.subflows:
        state, reason = "opening", "the join is not answered yet"
    else:
        state, reason = "unused", "no connection uses it"
    told = report is not None and report.state.value == state
    return {
        "ip": ip,
        "state": state,
        "reason": reason,
        "since": round((report.since + epoch_ns) / 1e9, 6) if report and told else None,
        "plugin": report.plugin if report is not None and told else None,
        "probes_answered": report.probes_answered if report is not None and away else None,
        "probes_needed": report.probes_needed if report is not None and away else None,
        "subflows": len(carrying),
    }


def not_active(world: World, epoch_ns: int) -> list[PathSummary]:
    """The paths that a plugin keeps away or on standby."""
    return [
        {
            "interface": world.interface_name(world.interface_of(local_ip)),
            "local_ip": local_ip,
            "remote_ip": remote_ip,
            "state": report.state.value,
            "reason": report.reason,
            "since": round((report.since + epoch_ns) / 1e9, 6),
            "plugin": report.plugin,
            "probes_answered": report.probes_answered,
            "probes_needed": report.probes_needed,
        }
        for (local_ip, remote_ip), report in world.paths.items()
        if report.state is not Role.ACTIVE
    ]
