# SPDX-License-Identifier: BSD-3-Clause
"""The story of a run: what was seen, what was done about it, and what came of it.

A pure function over records (`core.recording.Record`), of a running daemon or of a recording.
Each entry is one line with its time, the connection and the path that it is about, and the same as
data.  The kernel's answer to a command and the time until its effect are part of the command's
entry, as is what was measured of the connection before and after it (`control.effects`).  Samples,
probes of paths and timers make no entries of their own.
"""

from collections.abc import Callable, Iterable
from typing import Any

from mptcpd_ebpf.control import describe, views
from mptcpd_ebpf.control.effects import Effects, effect_text
from mptcpd_ebpf.control.schema import StoryEntry
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.alarm_text import alarm_text, limit_text
from mptcpd_ebpf.core.commands import (
    ActingCommand,
    ConnectionCommand,
    CreateSubflow,
    Decision,
    DestroySubflow,
    SetBackup,
)
from mptcpd_ebpf.core.engine import DRY_RUN
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import SubflowKey
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.core.token import token_text

MS = 1_000_000


def tell(
    records: Iterable[Record], epoch_ns: int, interfaces: dict[str, str] | None = None
) -> list[StoryEntry]:
    """The entries, oldest first.

    `interfaces`: names of interfaces by local address, as far as known before the first record.
    """
    teller = Teller(epoch_ns, interfaces)
    for record in records:
        teller.take(record)
    return teller.finish()


class Teller:
    """`tell`, one record at a time."""

    def __init__(self, epoch_ns: int, interfaces: dict[str, str] | None = None) -> None:
        self._epoch_ns = epoch_ns
        self._interface_of = dict(interfaces or {})
        self._links: dict[int, str] = {}
        self._decisions: dict[int, StoryEntry] = {}
        self._joins: dict[tuple[int, str, SockAddr], tuple[int, StoryEntry]] = {}
        self._opened: dict[tuple[int, SockAddr, SockAddr], int] = {}
        self._effects = Effects()
        self._effective: list[tuple[StoryEntry, int, int]] = []
        self._closings: dict[tuple[int, SubflowKey], StoryEntry] = {}
        self._finals: dict[tuple[int, SubflowKey], str] = {}
        self._now = 0
        self._entries: list[StoryEntry] = []

    def finish(self) -> list[StoryEntry]:
        """The entries, oldest first, with the effects of the decisions."""
        for entry, token, at in self._effective:
            effect = self._effects.of(token, at)
            if effect is not None:
                entry["outcome"] = "; ".join(filter(None, (entry["outcome"], effect_text(effect))))
                entry["data"]["effect"] = effect
        return self._entries

    def take(self, record: Record) -> None:
        self._now = record.now
        handler = _TELL.get(type(record.event))
        if handler is not None:
            handler(self, record.event)
        for decision in record.decisions:
            if isinstance(decision.command, ActingCommand):
                self._decided(decision)

    def _add(
        self,
        kind: str,
        text: str,
        *,
        token: int | None = None,
        local_ip: str | None = None,
        path: str | None = None,
        data: dict[str, Any],
    ) -> StoryEntry:
        entry: StoryEntry = {
            "t": round((self._now + self._epoch_ns) / 1e9, 6),
            "kind": kind,
            "token": None if token is None else token_text(token),
            "path": path or (self._path(local_ip) if local_ip is not None else None),
            "local_ip": local_ip,
            "text": text,
            "outcome": None,
            "data": data,
        }
        self._entries.append(entry)
        return entry

    def _path(self, local_ip: str) -> str:
        return self._interface_of.get(local_ip, local_ip)

    # --- decisions and what came of them

    def _decided(self, decision: Decision) -> None:
        command = decision.command
        local = getattr(command, "local", None)
        local_ip = local.ip if local is not None else getattr(command, "local_ip", None)
        rule = f"{decision.plugin}, rule {decision.cause.rule}"
        token = command.token if isinstance(command, ConnectionCommand) else None
        action = describe.action(command)
        if token is not None:
            action = action.removesuffix(f" of {token_text(token)}")
        would = "dry run: would " if decision.refused == DRY_RUN else ""
        entry = self._add(
            "decision",
            f"{would}{action}: {command.reason} ({rule})",
            token=token,
            local_ip=local_ip,
            data=dict(views.decision(decision, self._epoch_ns)),
        )
        if decision.refused is not None:
            entry["outcome"] = f"not sent: {decision.refused}"
            return
        self._decisions[decision.id] = entry
        if isinstance(command, CreateSubflow | DestroySubflow | SetBackup):
            self._effects.decided(command.token, self._now)
            self._effective.append((entry, command.token, self._now))
        if isinstance(command, CreateSubflow):
            name = (command.token, command.local_ip, command.remote)
            self._joins[name] = (self._now, entry)

    def _answered(self, event: ev.CommandAnswered) -> None:
        entry = self._decisions.pop(event.decision_id, None)
        if entry is not None:
            entry["outcome"] = (
                f"the kernel refused: {event.explanation or event.errno}" if event.errno else "done"
            )

    def _established(self, event: ev.SubflowEstablished) -> None:
        key = (event.token, event.local, event.remote)
        self._opened[key] = self._now
        asked = self._joins.pop((event.token, event.local.ip, event.remote), None)
        text = f"subflow {event.local} → {event.remote} established"
        if asked is not None:
            text += f" {(self._now - asked[0]) / MS:.0f} ms after the join was requested"
            asked[1]["outcome"] = f"established after {(self._now - asked[0]) / MS:.0f} ms"
        self._subflow(text, event)

    def _closed(self, event: ev.SubflowClosed) -> None:
        opened = self._opened.pop((event.token, event.local, event.remote), None)
        text = f"subflow {event.local} → {event.remote} closed"
        if opened is not None:
            text += f" after {(self._now - opened) / 1e9:.1f} s"
        elif asked := self._joins.pop((event.token, event.local.ip, event.remote), None):
            asked[1]["outcome"] = "the join failed"
        if event.reset_reason is not None:
            text += f", MP_TCPRST reason {event.reset_reason}"
        elif event.error:
            text += f", errno {event.error}"
        entry = self._subflow(text, event)
        name = (event.token, (event.local, event.remote))
        entry["outcome"] = self._finals.pop(name, None)
        if entry["outcome"] is None:
            self._closings[name] = entry

    def _ended(self, event: ev.SubflowEnded) -> None:
        measured = event.measurement
        self._effects.note(measured)
        name = (measured.token, (measured.local, measured.remote))
        text = _carried_text(measured)
        if (entry := self._closings.pop(name, None)) is not None:
            entry["outcome"] = text
        else:
            self._finals[name] = text

    def _sampled(self, event: ev.Sampled) -> None:
        for measured in event.measurements:
            self._effects.note(measured)

    def _subflow(
        self, text: str, event: ev.SubflowEstablished | ev.SubflowClosed | ev.SubflowPriority
    ) -> StoryEntry:
        if event.if_index in self._links:
            self._interface_of.setdefault(event.local.ip, self._links[event.if_index])
        return self._add(
            "subflow", text, token=event.token, local_ip=event.local.ip, data=views.event(event)
        )

    def _priority(self, event: ev.SubflowPriority) -> None:
        what = "backup" if event.backup else "regular"
        self._subflow(f"the peer marks {event.local} → {event.remote} as {what}", event)

    # --- what was seen

    def _connection(self, event: ev.ConnectionEstablished) -> None:
        side = "server" if event.server_side else "client"
        self._add(
            "connection",
            f"connection {event.local} → {event.remote} established ({side} side)",
            token=event.token,
            local_ip=event.local.ip,
            data=views.event(event),
        )
        self._opened[event.token, event.local, event.remote] = self._now
        self._effects.established(event.token, self._now)

    def _connection_closed(self, event: ev.ConnectionClosed) -> None:
        self._add("connection", "connection closed", token=event.token, data=views.event(event))

    def _announced(self, event: ev.AddressAnnounced) -> None:
        text = f"the peer announces {event.ip} as id {event.address_id}"
        self._add("address", text, token=event.token, data=views.event(event))

    def _withdrawn(self, event: ev.AddressWithdrawn) -> None:
        text = f"the peer withdraws address id {event.address_id}"
        self._add("address", text, token=event.token, data=views.event(event))

    def _alarm(self, event: ev.AlarmRaised) -> None:
        measured = event.measurement
        self._effects.note(measured)
        text = f"alarm {event.kind}: {alarm_text(event)}"
        if (measured.token, (measured.local, measured.remote)) in self._closings:
            text = f"alarm {event.kind} of the closed subflow: {alarm_text(event)}"
        if event.limit:
            text += f"; limit {limit_text(event)}"
        if measured.srtt_us is not None:
            text += f"; srtt {measured.srtt_us / 1000:.0f} ms, {measured.in_flight or 0} in flight"
        self._add(
            "alarm", text, token=measured.token, local_ip=measured.local.ip, data=views.event(event)
        )

    def _unanswered(self, event: ev.StartUnanswered) -> None:
        text = f"a new connection to {event.remote} got no answer"
        self._add("alarm", text, local_ip=event.local_ip, data=views.event(event))

    def _link(self, event: ev.LinkChanged) -> None:
        known = event.if_index in self._links
        self._links[event.if_index] = event.name
        state = "has a carrier" if event.up and event.running else "has no carrier"
        if not event.up:
            state = "is down"
        if known or not event.loopback:
            self._add("network", f"{event.name} {state}", path=event.name, data=views.event(event))

    def _link_removed(self, event: ev.LinkRemoved) -> None:
        name = self._links.pop(event.if_index, f"interface {event.if_index}")
        self._add("network", f"{name} was removed", path=name, data=views.event(event))

    def _address(self, event: ev.LocalAddressChanged) -> None:
        name = self._links.get(event.if_index)
        if name is not None:
            self._interface_of[event.ip] = name
        state = "tentative" if event.tentative else "deprecated" if event.deprecated else "usable"
        text = f"address {event.ip}/{event.prefix_len} is {state}"
        self._add("network", text, local_ip=event.ip, data=views.event(event))

    def _address_removed(self, event: ev.LocalAddressRemoved) -> None:
        text = f"address {event.ip} was removed"
        self._add("network", text, local_ip=event.ip, data=views.event(event))

    def _route(self, event: ev.DefaultRouteAdded | ev.DefaultRouteRemoved) -> None:
        what = "added" if isinstance(event, ev.DefaultRouteAdded) else "removed"
        name = self._links.get(event.if_index, f"interface {event.if_index}")
        via = f" via {event.gateway}" if event.gateway else ""
        text = f"default route{via} in table {event.table} {what}"
        self._add("network", text, path=name, data=views.event(event))

    def _whole_state(self, event: ev.Resynchronised) -> None:
        for link in event.links:
            self._links[link.if_index] = link.name
        for address in event.addresses:
            if address.if_index in self._links:
                self._interface_of[address.ip] = self._links[address.if_index]
        if not event.at_start:
            self._add("daemon", "the kernel's state was read again", data={})

    def _daemon(self, event: ev.Event) -> None:
        self._add("daemon", _DAEMON[type(event)](event), data=views.event(event))


_DAEMON: dict[type[ev.Event], Callable[[Any], str]] = {
    ev.EventsLost: lambda event: f"events were lost from {event.source}",
    ev.PluginExcluded: lambda event: f"plugin {event.plugin} is excluded: {event.error}",
    ev.Paused: lambda _: "paused",
    ev.Resumed: lambda _: "resumed",
    ev.Configured: lambda event: (
        "configured: " + (", ".join(spec.name for spec in event.plugins) or "no plugins")
    ),
    ev.Stopping: lambda _: "the daemon stops",
}

_TELL: dict[type[ev.Event], Callable[[Teller, Any], None]] = {
    ev.ConnectionEstablished: Teller._connection,
    ev.ConnectionClosed: Teller._connection_closed,
    ev.AddressAnnounced: Teller._announced,
    ev.AddressWithdrawn: Teller._withdrawn,
    ev.SubflowEstablished: Teller._established,
    ev.SubflowClosed: Teller._closed,
    ev.SubflowPriority: Teller._priority,
    ev.SubflowEnded: Teller._ended,
    ev.Sampled: Teller._sampled,
    ev.AlarmRaised: Teller._alarm,
    ev.StartUnanswered: Teller._unanswered,
    ev.LinkChanged: Teller._link,
    ev.LinkRemoved: Teller._link_removed,
    ev.LocalAddressChanged: Teller._address,
    ev.LocalAddressRemoved: Teller._address_removed,
    ev.DefaultRouteAdded: Teller._route,
    ev.DefaultRouteRemoved: Teller._route,
    ev.Resynchronised: Teller._whole_state,
    ev.CommandAnswered: Teller._answered,
    **dict.fromkeys(_DAEMON, Teller._daemon),
}


def _carried_text(measured: Measurement) -> str:
    """What a subflow did in its life, from its final record."""
    parts = []
    if measured.bytes_acked is not None and measured.bytes_received is not None:
        parts.append(
            f"sent {measured.bytes_acked / 1e3:.0f} kB, "
            f"received {measured.bytes_received / 1e3:.0f} kB"
        )
    if measured.srtt_us is not None:
        parts.append(f"srtt {measured.srtt_us / 1000:.0f} ms")
    if measured.retransmits and measured.segments_out:
        parts.append(f"{measured.retransmits} of {measured.segments_out} segments retransmitted")
    waited_us = (measured.stalled_us or 0) + (measured.holes_us or 0)
    if waited_us >= 1000:
        parts.append(f"the connection waited {waited_us / 1e6:.3f} s for it")
    return "; ".join(parts)


def tokens(entries: Iterable[StoryEntry], prefix: str) -> list[str]:
    """The connections whose token begins with `prefix`, in the order of their first entry."""
    found = (each["token"] for each in entries)
    return list(dict.fromkeys(token for token in found if token and token.startswith(prefix)))


def about(
    entries: Iterable[StoryEntry], *, token: str | None = None, path: str | None = None
) -> list[StoryEntry]:
    """The entries about one connection (a prefix of its token), or one interface or address.

    The story of a connection includes what happened to the network meanwhile.
    """
    found = list(entries)
    if token is not None:
        tokens = [each["token"] or "" for each in found]
        mine = [index for index, each in enumerate(tokens) if each.startswith(token)]
        if not mine:
            return []
        chosen = set(mine)
        paths = {found[index]["path"] for index in mine}
        found = [
            each
            for index, each in enumerate(found)
            if index in chosen
            or (mine[0] < index < mine[-1] and each["token"] is None and each["path"] in paths)
        ]
    if path is not None:
        found = [each for each in found if path in (each["path"], each["local_ip"])]
    return found
