# SPDX-License-Identifier: BSD-3-Clause
"""Vocabulary of the core's tests: addresses of two connections, short names for events."""

from collections import deque
from dataclasses import asdict
from typing import Any

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.configuration import CoreConfig
from mptcpd_ebpf.core.engine import Engine, Outcome
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.model import Connection, Subflow, SubflowKey
from mptcpd_ebpf.core.plugin import Notice, Plugin
from mptcpd_ebpf.core.plugin_host import RunHandler, run_handler
from mptcpd_ebpf.core.tracker import SubflowFinal, Tracker
from mptcpd_ebpf.testing import configured

MS = 1_000_000
SECOND = 1000 * MS
START = 1000 * SECOND
"""The fake clock's first value: the core may not assume a machine that has just booted."""

TOKEN = 0x1A2B3C4D
SERVER = SockAddr("10.0.9.1", 443)
FIBRE: SubflowKey = (SockAddr("10.0.1.2", 40001), SERVER)
"""The initial subflow."""
RADIO: SubflowKey = (SockAddr("10.0.2.2", 40002), SERVER)
SATELLITE: SubflowKey = (SockAddr("10.0.3.2", 40003), SERVER)

TCP_ESTABLISHED, TCP_SYN_SENT, TCP_CLOSE = 1, 2, 7


def created(token: int = TOKEN, key: SubflowKey = FIBRE, **more: Any) -> ev.ConnectionCreated:
    return ev.ConnectionCreated(token=token, local=key[0], remote=key[1], **more)


def established(
    token: int = TOKEN, key: SubflowKey = FIBRE, **more: Any
) -> ev.ConnectionEstablished:
    return ev.ConnectionEstablished(token=token, local=key[0], remote=key[1], **more)


def gone(token: int = TOKEN) -> ev.ConnectionClosed:
    return ev.ConnectionClosed(token=token)


def joined(key: SubflowKey = RADIO, token: int = TOKEN, **more: Any) -> ev.SubflowEstablished:
    return ev.SubflowEstablished(token=token, local=key[0], remote=key[1], **more)


def left(key: SubflowKey = RADIO, token: int = TOKEN, **more: Any) -> ev.SubflowClosed:
    return ev.SubflowClosed(token=token, local=key[0], remote=key[1], **more)


def measured(
    key: SubflowKey = FIBRE, at: int = START, token: int = TOKEN, **more: Any
) -> Measurement:
    return Measurement(at=at, token=token, local=key[0], remote=key[1], **more)


def alarm(measurement: Measurement, kind: AlarmKind = AlarmKind.RTT) -> ev.AlarmRaised:
    return ev.AlarmRaised(kind=kind, measurement=measurement)


def ended(key: SubflowKey = RADIO, at: int = START, **more: Any) -> ev.SubflowEnded:
    return ev.SubflowEnded(measurement=measured(key, at, closed=True, state=TCP_CLOSE, **more))


def truth(
    *subflows: Measurement,
    connections: list[ev.LiveConnection] | None = None,
    **network: Any,
) -> ev.Resynchronised:
    """A Resynchronised; without `connections`, the default connection of these tests."""
    if connections is None:
        connections = [ev.LiveConnection(token=TOKEN, local=FIBRE[0], remote=FIBRE[1])]
    return ev.Resynchronised(
        connections=connections,
        subflows=list(subflows),
        links=network.get("links", []),
        addresses=network.get("addresses", []),
        routes=network.get("routes", []),
    )


class StartedEngine(Engine):
    """An engine that is started and configured with existing plugins.

    `config`: fields of `CoreConfig`; the connections have no plugin unless stated.
    """

    def __init__(
        self,
        *plugins: Plugin,
        seed: int = 0,
        joins_marked: bool = True,
        steers: bool = False,
        run: RunHandler = run_handler,
        **config: Any,
    ) -> None:
        self._known: dict[str, Plugin] = {}
        super().__init__(lambda spec: self._known[spec.name], run)
        self.handle(ev.Started(seed=seed, joins_marked=joins_marked, steers=steers), START)
        self.configure(*plugins, **config)

    def configure(self, *plugins: Plugin, now: int = START, **config: Any) -> Outcome:
        self._known = {plugin.name: plugin for plugin in plugins}
        return self.handle(configured(*plugins, config=CoreConfig(**config)), now)

    def exclude_failed(self, outcome: Outcome, now: int = START) -> Outcome:
        """Handles the events that the daemon makes of an outcome's faults; returns the outcome."""
        for fault in outcome.faults:
            self.handle(
                ev.PluginExcluded(
                    plugin=fault.plugin, handler=fault.handler, error=fault.error, call=fault.call
                ),
                now,
            )
        return outcome


class Listener:
    """A tracker with a clock, and all its notices so far."""

    def __init__(self, *events: ev.Event) -> None:
        self.tracker = Tracker()
        self.now = START
        self.told: list[str] = []
        self.finals: list[Subflow] = []
        self.tell(*events)

    def tell(self, *events: ev.Event) -> list[str]:
        """Applies events at the present time; returns the names of the notices."""
        names = []
        for event in events:
            notices = self.tracker.apply(event, self.now) + self.tracker.expire(self.now)
            self.finals += [n.subflow for n in notices if isinstance(n, SubflowFinal)]
            names += [
                n.handler.__name__ if isinstance(n, Notice) else type(n).__name__ for n in notices
            ]
        self.told += names
        return names

    def wait(self, nanoseconds: int) -> list[str]:
        self.now += nanoseconds
        return self.tell(ev.Tick())

    @property
    def connection(self) -> Connection:
        return self.tracker.world.connections[TOKEN]

    def subflow(self, key: SubflowKey) -> Subflow:
        return self.connection.subflows[key]


def connect(
    engine: Engine,
    *keys: SubflowKey,
    token: int = TOKEN,
    now: int = START,
    initial: SubflowKey = FIBRE,
) -> Connection:
    """A connection in `engine`, fully established, with its initial subflow and joins."""
    engine.handle(created(token, initial), now)
    engine.handle(established(token, initial), now)
    for number, key in enumerate(keys, start=1):
        engine.handle(joined(key, token, local_id=number, remote_id=0), now)
    return engine.world.connections[token]


def picture(tracker: Tracker) -> dict[str, Any]:
    """A tracker's world as plain data, to compare."""
    return asdict(tracker.world)


def leftovers(keeper: object, path: str = "") -> dict[str, int]:
    """The non-empty containers of an object and its members, by path. It walks the objects rather
    than a list of names, so that containers added later are included.
    """
    found: dict[str, int] = {}
    names = [*getattr(keeper, "__dict__", ()), *getattr(keeper, "__slots__", ())]
    for name in names:
        value = getattr(keeper, name)
        here = f"{path}{name}"
        if isinstance(value, dict | list | set | deque):
            found |= {here: len(value)} if value else {}
        elif type(value).__module__.startswith("mptcpd_ebpf.core"):
            found |= leftovers(value, f"{here}.")
    return found


def refused(outcome: Outcome) -> list[str | None]:
    return [decision.refused for decision in outcome.decisions]
