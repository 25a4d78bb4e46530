# SPDX-License-Identifier: BSD-3-Clause
"""`refresh`: the slowest subflow is closed when its successor is established."""

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import Command, CreateSubflow, DestroySubflow, RequestSample
from mptcpd_ebpf.core.model import SECOND
from tests.core.scenario import FIBRE, SERVER, START, StartedEngine, connect, joined, left, measured

SECOND_PORT = (SockAddr(FIBRE[0].ip, 40011), SERVER)
SUCCESSOR = (SockAddr(FIBRE[0].ip, 40012), SERVER)
MIB = 1 << 20


class Scene:
    """A connection with two subflows on one path, the configured number."""

    def __init__(self) -> None:
        plugin = load("refresh")
        self.engine = StartedEngine(plugin(plugin.Options(subflows=2)), default_plugin="refresh")
        self.now = START
        self.engine.handle(ev.LinkChanged(if_index=1, name="f", up=True, running=True), START)
        address = ev.LocalAddressChanged(if_index=1, ip=FIBRE[0].ip, prefix_len=24)
        self.engine.handle(address, START)
        connect(self.engine, SECOND_PORT)

    def tell(self, event: ev.Event) -> list[Command]:
        outcome = self.engine.handle(event, self.now)
        assert not outcome.faults
        return [decision.command for decision in outcome.decisions]

    def sample(self, fibre: int, second: int, *more: int) -> list[Command]:
        """Bytes acknowledged so far."""
        moved = zip((FIBRE, SECOND_PORT, SUCCESSOR), (fibre, second, *more), strict=False)
        measurements = [measured(key, self.now, bytes_acked=value) for key, value in moved]
        return self.tell(ev.Sampled(measurements=measurements))

    def look(self) -> list[Command]:
        """The next interval is over."""
        self.now += 3 * SECOND
        return self.tell(ev.Tick())


def test_the_slowest_goes_an_interval_after_its_successor_came() -> None:
    scene = Scene()
    assert any(isinstance(command, RequestSample) for command in scene.look())
    assert scene.sample(0, 0) == []
    scene.look()
    (join,) = scene.sample(8 * MIB, MIB)
    assert isinstance(join, CreateSubflow)
    assert scene.tell(joined(SUCCESSOR)) == []
    scene.look()
    (end,) = scene.sample(16 * MIB, 2 * MIB, MIB)
    assert isinstance(end, DestroySubflow)
    assert (end.local, end.remote) == SECOND_PORT
    assert scene.tell(left(SECOND_PORT)) == [], "there are as many as wanted"


def test_a_subflow_is_kept_when_the_peer_accepts_no_more() -> None:
    scene = Scene()
    scene.look()
    scene.sample(0, 0)
    scene.look()
    scene.sample(8 * MIB, MIB)
    assert scene.tell(joined(SUCCESSOR)) == []
    scene.tell(left(SUCCESSOR, error=104))
    scene.look()
    assert not any(isinstance(c, DestroySubflow) for c in scene.sample(16 * MIB, 2 * MIB))


def test_who_watches_changes_nothing() -> None:
    scene = Scene()
    scene.look()
    scene.sample(0, 0)
    assert scene.sample(8 * MIB, MIB) == [], "nobody here asked for it"
    scene.look()
    (join,) = scene.sample(8 * MIB, MIB)
    assert isinstance(join, CreateSubflow)
