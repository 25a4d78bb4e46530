# SPDX-License-Identifier: BSD-3-Clause
"""Path probes through the engine: exactly one result for each, and to peers only."""

import errno
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, Decision, ProbePath
from mptcpd_ebpf.core.model import MS, SECOND, Connection
from mptcpd_ebpf.core.plugin import Context, Plugin
from mptcpd_ebpf.testing import PluginTest

WITHIN = 300 * MS
PEER = "10.0.9.1"


class Prober(Plugin):
    """Probes once for each connection, and notes what came of it."""

    name = "prober"

    def __init__(self, target: str = PEER) -> None:
        super().__init__()
        self.target = target
        self.results: list[int | None] = []
        self.errors: list[int] = []
        self.refusals: list[str | None] = []

    def connection_established(self, ctx: Context, connection: Connection) -> Iterator[Command]:
        yield ProbePath(
            local_ip="10.0.1.2", remote=SockAddr(self.target, 443), within=WITHIN, reason="a test"
        )

    def path_probed(self, ctx: Context, decision: Decision, rtt_us: int | None) -> tuple[()]:
        assert isinstance(decision.command, ProbePath)
        self.results.append(rtt_us)
        return ()

    def answered(self, ctx: Context, decision: Decision, errno: int, explanation: str) -> tuple[()]:
        self.errors.append(errno)
        return ()

    def refused(self, ctx: Context, decision: Decision) -> tuple[()]:
        self.refusals.append(decision.refused)
        return ()


class Run(PluginTest):
    """`rtt_us` answers the probes; None: nothing does. `unsent` is the kernel's errno."""

    def __init__(self, prober: Prober, rtt_us: int | None = None, *, unsent: int = 0) -> None:
        self.rtt_us, self.unsent = rtt_us, unsent
        super().__init__(prober)
        self.connect("10.0.1.2", PEER)

    def probe(self, command: ProbePath) -> int | None:
        if self.unsent:
            raise OSError(self.unsent, "by the test")
        return self.rtt_us


def test_an_answer_arrives_once() -> None:
    prober = Prober()
    run = Run(prober, rtt_us=1234)
    run.wait(10 * SECOND)
    assert (prober.results, prober.errors) == ([1234], [0])
    assert run.engine.deadline is None


def test_without_an_answer_the_plugin_gets_none_at_the_deadline() -> None:
    prober = Prober()
    run = Run(prober)
    run.wait(WITHIN - 1)
    assert prober.results == []
    run.wait(1)
    assert prober.results == [None]


def test_a_late_answer_changes_nothing() -> None:
    prober = Prober()
    run = Run(prober)
    run.wait(SECOND)
    number = run.decisions[0].id
    run.handle(ev.PathProbed(decision_id=number, rtt_us=900_000, size=56))
    run.handle(ev.PathProbed(decision_id=number + 1, rtt_us=1, size=56))
    assert prober.results == [None]


def test_what_was_not_sent_has_no_result() -> None:
    prober = Prober()
    run = Run(prober, unsent=errno.EPERM)
    run.wait(SECOND)
    assert (prober.errors, prober.results) == ([errno.EPERM], [])
    assert run.engine.deadline is None


@pytest.mark.parametrize("target", ["192.0.2.1", "127.0.0.1"])
def test_strangers_are_not_probed(target: str) -> None:
    prober = Prober(target)
    run = Run(prober, rtt_us=1)
    run.wait(SECOND)
    assert prober.refusals == ["no connection leads there"]
    assert (prober.results, prober.errors) == ([], [])


def test_an_announced_address_may_be_probed() -> None:
    prober = Prober("10.0.9.7")
    run = Run(prober)
    connection = run.engine.world.connections[1]
    run.handle(ev.AddressAnnounced(token=1, address_id=4, ip="10.0.9.7"))
    assert connection.announced
    run.handle(
        ev.ConnectionCreated(token=2, local=SockAddr("10.0.1.2", 9), remote=SockAddr(PEER, 1))
    )
    established = ev.ConnectionEstablished(
        token=2, local=SockAddr("10.0.1.2", 9), remote=SockAddr(PEER, 1)
    )
    run.handle(established)
    assert prober.errors == [0]
