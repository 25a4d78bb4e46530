# SPDX-License-Identifier: BSD-3-Clause
"""A replay gives the recorded decisions, also in another process and under another hash seed."""

import os
import re
import subprocess
import sys
from random import Random

import msgspec

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.events import AnyEvent, Event
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from tests.core.scenario import MS, SERVER, START
from tests.tree import ROOT

REPLAY = """
import sys
import msgspec
from mptcpd_ebpf.core.events import AnyEvent
from tests.core.scenario import StartedEngine
from tests.core.test_storms import Vandal

decode = msgspec.json.Decoder(tuple[int, AnyEvent]).decode
engine = StartedEngine(
    Vandal(), default_plugin=Vandal.name, seed=42, destructive_per_second=5
)
for line in sys.stdin.buffer:
    now, event = decode(line)
    outcome = engine.handle(event, now)
    assert not outcome.faults, outcome.faults
    for decision in outcome.decisions:
        sys.stdout.buffer.write(msgspec.json.encode(decision) + b"\\n")
    for final in outcome.finals:
        sys.stdout.buffer.write(msgspec.json.encode(final) + b"\\n")
"""


def recording() -> bytes:
    """Connections, joins, alarms, samples and ends, a line each: the time and the event."""
    chance = Random(7)
    lines = []
    for step in range(1500):
        now = START + step * 5 * MS
        lines.append(msgspec.json.encode((now, _event(chance, now))))
    return b"\n".join(lines) + b"\n"


def _event(chance: Random, now: int) -> Event:
    token = chance.randrange(1, 20)
    local = SockAddr(f"10.0.{chance.randrange(4)}.2", 40000 + token)
    names = {"token": token, "local": local, "remote": SERVER}
    found = msgspec.convert(
        {**names, "at": now, "state": chance.choice([1, 1, 2]), "local_id": local.port % 5},
        Measurement,
    )
    kinds = [
        ev.ConnectionCreated,
        ev.ConnectionEstablished,
        ev.SubflowEstablished,
        ev.SubflowEstablished,
        ev.SubflowEstablished,
        ev.SubflowClosed,
    ]
    kind = chance.randrange(len(kinds) + 6)
    if kind < len(kinds):
        named: Event = msgspec.convert(names, kinds[kind])
        return named
    match kind - len(kinds):
        case 0 | 1:
            return ev.AlarmRaised(kind=AlarmKind.LOSS, measurement=found)
        case 2:
            return ev.SubflowEnded(measurement=msgspec.structs.replace(found, closed=True))
        case 3:
            return ev.Sampled(measurements=[found])
        case 4:
            return ev.CommandAnswered(decision_id=chance.randrange(1, 2000))
        case _:
            return ev.Tick()


def replay(recorded: bytes, hash_seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", REPLAY],
        input=recorded,
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout


def test_two_hash_seeds_the_same_decisions() -> None:
    recorded = recording()
    first = replay(recorded, "1")
    assert first.count(b"\n") > 1000
    assert b"DestroySubflow" in first
    assert re.search(rb'"waited":[1-9]', first)  # held back and sent later
    assert replay(recorded, "2") == first


def test_a_recording_reads_back_as_it_was_written() -> None:
    decode = msgspec.json.Decoder(tuple[int, AnyEvent]).decode
    for line in recording().splitlines():
        assert msgspec.json.encode(decode(line)) == line
