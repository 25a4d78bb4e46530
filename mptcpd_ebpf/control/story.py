# SPDX-License-Identifier: BSD-3-Clause
"""The story of a run: what was seen, what was done about it, and what came of it.

A pure function over records (`core.recording.Record`), of a running daemon or of a recording.
Each entry is one line with its time, the connection and the path that it is about, and the same as
data.  The kernel's answer to a command and the time until its effect are part of the command's
entry.  Samples, probes of paths and timers make no entries of their own.
"""

from collections.abc import Callable, Iterable
from typing import Any

from mptcpd_ebpf.control import describe, views
from mptcpd_ebpf.control.schema import StoryEntry
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.alarm_text import alarm_text
from mptcpd_ebpf.core.commands import (
    ChangingCommand,
    ConnectionCommand,
    CreateSubflow,
    Decision,
)
from mptcpd_ebpf.core.recording import Record
from mptcpd_ebpf.core.token import token_text

MS = 1_000_000


def tell(
    records: Iterable[Record], epoch_ns: int, interfaces: dict[str, str] | None = None
) -> list[StoryEntry]:
    """The entries, oldest first.

    `interfaces`: names of interfaces by local address, as far as known before the first record.
    """
    teller = _Teller(epoch_ns, dict(interfaces or {}))
    for record in records:
        teller.take(record)
    return teller.entries


class _Teller:
    def __init__(self, epoch_ns: int, interfaces: dict[str, str]) -> None:
        self._epoch_ns = epoch_ns
        self._interface_of = interfaces
        self._links: dict[int, str] = {}
        self._decisions: dict[int, StoryEntry] = {}
        self._joins: dict[tuple[int, str, SockAddr], tuple[int, StoryEntry]] = {}
        self._opened: dict[tuple[int, SockAddr, SockAddr], int] = {}
        self._now = 0
        self.entries: list[StoryEntry] = []

    def take(self, record: Record) -> None:
        self._now = record.now
        handler = _TELL.get(type(record.event))
        if handler is not None:
            handler(self, record.event)
        for decision in record.decisions:
            if isinstance(decision.command, ChangingCommand) and not decision.command.routine:
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
        self.entries.append(entry)
        return entry

    def _path(self, local_ip: str) -> str:
        return self._interface_of.get(local_ip, local_ip)

    # --- decisions and what came of them

    def _decided(self, decision: Decision) -> None:
        command = decision.command
        local = getattr(command, "local", None)
        local_ip = local.ip if local is not None else getattr(command, "local_ip", None)
        rule = f"{decision.plugin}, rule {decision.cause.rule}"
        entry = self._add(
            "decision",
            f"{describe.action(command)}: {command.reason} ({rule})",
            token=command.token if isinstance(command, ConnectionCommand) else None,
            local_ip=local_ip,
            data=dict(views.decision(decision, self._epoch_ns)),
        )
        if decision.refused is not None:
            entry["outcome"] = f"not sent: {decision.refused}"
            return
        self._decisions[decision.id] = entry
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
        self._subflow(text, event)

    def _subflow(
        self, text: str, event: ev.SubflowEstablished | ev.SubflowClosed | ev.SubflowPriority
    ) -> None:
        if event.if_index in self._links:
            self._interface_of.setdefault(event.local.ip, self._links[event.if_index])
        self._add(
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
        text = f"alarm {event.kind}: {alarm_text(event)}"
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

_TELL: dict[type[ev.Event], Callable[[_Teller, Any], None]] = {
    ev.ConnectionEstablished: _Teller._connection,
    ev.ConnectionClosed: _Teller._connection_closed,
    ev.AddressAnnounced: _Teller._announced,
    ev.AddressWithdrawn: _Teller._withdrawn,
    ev.SubflowEstablished: _Teller._established,
    ev.SubflowClosed: _Teller._closed,
    ev.SubflowPriority: _Teller._priority,
    ev.AlarmRaised: _Teller._alarm,
    ev.StartUnanswered: _Teller._unanswered,
    ev.LinkChanged: _Teller._link,
    ev.LinkRemoved: _Teller._link_removed,
    ev.LocalAddressChanged: _Teller._address,
    ev.LocalAddressRemoved: _Teller._address_removed,
    ev.DefaultRouteAdded: _Teller._route,
    ev.DefaultRouteRemoved: _Teller._route,
    ev.Resynchronised: _Teller._whole_state,
    ev.CommandAnswered: _Teller._answered,
    **dict.fromkeys(_DAEMON, _Teller._daemon),
}


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
