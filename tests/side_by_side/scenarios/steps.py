# SPDX-License-Identifier: BSD-3-Clause
"""Steps and initial states that several groups of scenarios use."""

from tests.side_by_side.scenario import Step
from tests.side_by_side.stage import Stage


def veth(name: str, *addresses: str, up: bool = True) -> Step:
    return lambda stage: stage.host.veth(name, *addresses, up=up)


def sysctl(setting: str) -> Step:
    return lambda stage: stage.host.run("sysctl", "-qw", setting)


def restart(stage: Stage) -> None:
    stage.stop()
    stage.start()


def connect(stage: Stage) -> None:
    stage.connect()


def joined(stage: Stage) -> None:
    """Waits until the connection has a second subflow."""
    stage.within(lambda: any("MP_JOIN" in words for words in stage.spoken()))


def carrier(stage: Stage) -> None:
    """The second path loses its carrier."""
    assert stage.lab is not None
    stage.lab.paths[1].carrier(False)


A = veth("a", "10.0.1.1/24")
B = veth("b", "10.0.2.1/24")
ONE = ("10.0.1.1 subflow",)
BOTH = ("10.0.1.1 subflow", "10.0.2.1 subflow")
ADD_A = "addr add 10.0.1.1/24 dev a"
DEL_A = "addr del 10.0.1.1/24 dev a"
