# SPDX-License-Identifier: BSD-3-Clause
"""Whatever a plugin decides: the rate holds, and every command that waits is sent or void."""

from hypothesis import example, given
from hypothesis import strategies as st

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.admission import HOLD, Admission
from mptcpd_ebpf.core.commands import (
    Cause,
    Command,
    DestroySubflow,
    SetBackup,
    WithdrawAddress,
)
from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.guard import Taking
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.model import Connection, State, Subflow, World
from tests.core.scenario import FIBRE, MS, RADIO, SATELLITE, SECOND, SERVER, START, measured

CAUSE = Cause(seq=1, event="Tick", rule="test")
RATE = 3
PATHS = (FIBRE, RADIO, SATELLITE)
TOKENS = range(1, 7)

Steps = list[tuple[str, int, int, int]]
"""Kind, token, number of the path, nanoseconds before it."""


def steps_of(*kinds: str) -> st.SearchStrategy[Steps]:
    step = st.tuples(
        st.sampled_from(kinds),
        st.sampled_from(TOKENS),
        st.integers(0, len(PATHS) - 1),
        st.sampled_from([0] * 8 + [MS, 50 * MS, 400 * MS, SECOND]),
    )
    return st.lists(step, min_size=10, max_size=120)


ALL = steps_of("destroy", "destroy", "demote", "restore", "withdraw", "alarm", "answers")


def world() -> World:
    connections = {}
    for token in TOKENS:
        connection = Connection(token, *FIBRE, state=State.ESTABLISHED)
        for number, (local, remote) in enumerate(PATHS):
            subflow = Subflow(token, local, remote, local_id=number)
            connection.subflows[subflow.key] = subflow
        connections[token] = connection
    return World(connections=connections)


def command(kind: str, token: int, local: SockAddr, address_id: int) -> Taking:
    if kind == "withdraw":
        return WithdrawAddress(token=token, address_id=address_id, reason="test")
    if kind == "destroy":
        return DestroySubflow(token=token, local=local, remote=SERVER, reason="test")
    backup = kind == "demote"
    return SetBackup(token=token, local=local, remote=SERVER, backup=backup, reason="test")


class Run:
    """An admission, its clock, and what became of each command."""

    def __init__(self) -> None:
        self.admission = Admission(per_second=RATE)
        self.world = world()
        self.now = START
        self.sent: list[tuple[int, Command]] = []
        self.waiting: list[Command] = []
        self.longest_wait = 0

    def step(self, kind: str, token: int, number: int, pause: int) -> None:
        self.wait(pause)
        local, remote = PATHS[number]
        subflow = self.world.connections[token].subflows[local, remote]
        if kind == "alarm":
            found = measured(subflow.key, self.now, token, idle_us=300_000)
            subflow.measured = found
            self.admission.evidence.alarm(
                subflow, AlarmRaised(kind=AlarmKind.NO_PROGRESS, measurement=found)
            )
        elif kind == "answers":
            subflow.measured = measured(subflow.key, self.now, token, idle_us=0)
            self.admission.sampled(self.now)
        else:
            made = command(kind, token, local, number)
            verdict = self.admission.admit("test", CAUSE, made, self.world, self.now)
            if verdict.held:
                if made not in self.waiting:
                    self.waiting.append(made)
            elif verdict.refused is None:
                self.sent.append((self.now, made))
        self.retry()

    def wait(self, nanoseconds: int) -> None:
        until = self.now + nanoseconds
        while (deadline := self.admission.deadline) is not None and deadline <= until:
            assert deadline > self.now
            self.now = deadline
            self.retry()
        self.now = until
        self.retry()

    def retry(self) -> None:
        for held, refused in self.admission.retry(self.world, self.now):
            self.waiting.remove(held.command)
            self.longest_wait = max(self.longest_wait, self.now - held.at)
            if refused is None:
                self.sent.append((self.now, held.command))
        self.admission.summaries(self.world, self.now)
        self.admission.asks_for_sample(self.now)


@given(ALL)
@example([("destroy", 1, 0, 0)] * 7 + [("withdraw", 2, 0, 0)] + [("destroy", 2, 0, 0)] * 2)
def test_every_command_that_waits_is_sent_or_void_in_time(
    steps: Steps,
) -> None:
    run = Run()
    for step in steps:
        run.step(*step)
    run.wait(2 * HOLD)
    assert run.waiting == []
    assert run.longest_wait <= HOLD
    assert run.admission.deadline is None


@given(steps_of("destroy"))
def test_without_evidence_the_rate_of_a_path_holds(
    steps: Steps,
) -> None:
    run = Run()
    for step in steps:
        run.step(*step)
    run.wait(2 * HOLD)
    for local, _ in PATHS:
        times = [
            at for at, made in run.sent if isinstance(made, DestroySubflow) and made.local == local
        ]
        for at in times:
            assert sum(at <= other < at + SECOND for other in times) <= RATE


@given(steps_of("destroy", "withdraw", "alarm"))
def test_commands_for_one_subflow_keep_their_order(
    steps: Steps,
) -> None:
    """A withdrawal that comes after its destruction is a request for an id that is gone."""
    run = Run()
    asked: dict[tuple[int, int], list[str]] = {}
    for kind, token, number, pause in steps:
        if kind == "alarm":
            run.step(kind, token, number, pause)
        elif kind not in asked.get((token, number), []):
            asked.setdefault((token, number), []).append(kind)
            run.step(kind, token, number, pause)
    run.wait(2 * HOLD)
    for (token, number), kinds in asked.items():
        local = PATHS[number][0]
        pair = [command(kind, token, local, number) for kind in kinds]
        sent = [made for _, made in run.sent if made in pair]
        assert sent == [made for made in pair if made in sent]
