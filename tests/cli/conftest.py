# SPDX-License-Identifier: BSD-3-Clause
"""A recording for commands that read one."""

from pathlib import Path

import pytest

from mptcpd_ebpf.config import plugin_set
from mptcpd_ebpf.config.recorded_plugin import recorded_plugin
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.configuration import CoreConfig, PluginSpec
from mptcpd_ebpf.core.engine import Engine
from mptcpd_ebpf.core.recording import Head, Record, encode
from tests.core.scenario import FIBRE, RADIO, START, created, established, truth

HEAD = Head(version="0", epoch_ns=0, netns=1)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A connection that adaptive joins on a second interface."""
    spec = PluginSpec(name="adaptive", options={}, digest=plugin_set.make("adaptive", {})[1])
    events: list[ev.AnyEvent] = [
        ev.Started(seed=1),
        truth(
            connections=[],
            links=[
                ev.LinkChanged(if_index=number, name=name, up=True, running=True)
                for number, name in ((2, "fibre"), (3, "radio"))
            ],
            addresses=[
                ev.LocalAddressChanged(if_index=number, ip=key[0].ip, prefix_len=24)
                for number, key in ((2, FIBRE), (3, RADIO))
            ],
            routes=[ev.DefaultRouteAdded(if_index=number, ipv6=False) for number in (2, 3)],
        ),
        ev.Configured(config=CoreConfig(default_plugin="adaptive"), plugins=[spec]),
        created(),
        established(),
        ev.CommandAnswered(decision_id=1),
    ]
    engine = Engine(recorded_plugin)
    lines: list[Head | Record] = [HEAD]
    for number, event in enumerate(events, start=1):
        decisions = engine.handle(event, START + number).decisions
        lines.append(Record(seq=number, now=START + number, event=event, decisions=decisions))
    file = tmp_path / "run.jsonl"
    file.write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    return file
