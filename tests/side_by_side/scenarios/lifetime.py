# SPDX-License-Identifier: BSD-3-Clause
"""Start, signals, overflow and other managers."""

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.side_by_side.scenario import Fault, Scenario, Step
from tests.side_by_side.scenarios.steps import ONE, A
from tests.side_by_side.stage import MPTCPD, USUAL, Stage
from tests.waiting import SLOWNESS, until

OVERFLOW_S = 30.0
SECOND_S = {"mptcpd": 1.0, "ours": 30.0 * SLOWNESS}
"""Time for a second daemon to detect the first; mptcpd does not check."""


def interrupt(stage: Stage) -> None:
    stage.stop(signal.SIGINT)


def terminate(stage: Stage) -> None:
    stage.stop(signal.SIGTERM)


def hang_up(stage: Stage) -> None:
    stage.send(signal.SIGHUP)
    if stage.name == "mptcpd":
        stage.within(lambda: not stage.runs)


def overflow(stage: Stage) -> None:
    """Causes more address events than its socket buffer holds, while it is stopped."""
    stage.send(signal.SIGSTOP)
    flips = ["addr add 192.0.2.1/32 dev lo", "addr del 192.0.2.1/32 dev lo"] * 1000

    def dropped() -> bool:
        stage.host.batch(flips)
        return _dropped(stage)

    try:
        until(dropped, "the socket loses messages", OVERFLOW_S)
    finally:
        stage.send(signal.SIGCONT)


def _dropped(stage: Stage) -> bool:
    """Whether a routing socket of this namespace lost messages."""
    lines = stage.host.run("cat", "/proc/net/netlink").splitlines()[1:]
    return any(line.split()[1] == "0" and int(line.split()[8]) for line in lines)


def second_daemon(stage: Stage) -> None:
    """Starts a second daemon of the same kind and notes its exit."""
    command = [word.replace("ours.sock", "second.sock") for word in stage.command()]
    with subprocess.Popen(
        [*stage.host.prefix, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as second:
        try:
            stage.noted.append(f"the second ends with {second.wait(SECOND_S[stage.name])}")
        except subprocess.TimeoutExpired:
            second.terminate()
            stage.noted.append("both run")


def running_beside(program: str, name: str) -> Step:
    """Starts a program under a name in the namespace; it stops with the stage."""

    def start(stage: Stage) -> None:
        file = Path(shutil.copy(program, stage.folder / name))
        arguments = ["600"] if program.endswith("sleep") else USUAL
        process = subprocess.Popen(
            [*stage.host.prefix, str(file), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stage.stack.callback(process.wait)
        stage.stack.callback(process.kill)

    return start


def names(name: str) -> Callable[[Stage], tuple[str, ...]]:
    """Whether the log has a warning with that name."""
    return lambda stage: (
        (f"log: {name} is named",)
        if any(name in line for line in stage.log.splitlines() if " WARNING " in line)
        else ()
    )


def other_has_begun(stage: Stage) -> None:
    until(lambda: bool(stage.host.table), "the other has set an endpoint")


LIFETIME = [
    *(
        Scenario(
            name=number.name,
            faults=(Fault.EXIT,),
            before=[A],
            steps=[ends],
            limits=(2, 0),
            theirs={"table": ONE, "limits": (3, 3)},
            better="removes its endpoints at exit (`on_exit: keep` keeps them)",
        )
        for number, ends in ((signal.SIGTERM, terminate), (signal.SIGINT, interrupt))
    ),
    Scenario(
        name="SIGHUP",
        faults=(Fault.RELOAD,),
        before=[A],
        steps=[hang_up],
        table=ONE,
        limits=(4, 4),
        theirs={"exit_code": -signal.SIGHUP, "limits": (3, 3)},
        better="reads the configuration again and keeps running",
    ),
    Scenario(
        name="a netlink overflow",
        faults=(Fault.DEAF,),
        before=[A],
        steps=[overflow],
        table=ONE,
        limits=(4, 4),
        theirs={"unresponsive": True, "limits": (3, 3)},
        better="detects lost events and reads all state again",
    ),
    Scenario(
        name="a second daemon in the namespace",
        before=[A],
        steps=[second_daemon],
        table=ONE,
        said=("the second ends with 75",),
        theirs={"said": ("both run",)},
        better="two daemons would undo each other's changes; the second one names the first",
    ),
    Scenario(
        name="NetworkManager is running",
        faults=(Fault.OVERLAP,),
        before=[running_beside("/bin/sleep", "NetworkManager"), A],
        look=names("NetworkManager"),
        table=ONE,
        said=("log: NetworkManager is named",),
        theirs={"said": ()},
        better="names the other manager of endpoints, and the fix",
    ),
    Scenario(
        name="an mptcpd is already running",
        faults=(Fault.OVERLAP,),
        before=[A, running_beside(MPTCPD, "mptcpd"), other_has_begun],
        look=names("mptcpd"),
        table=ONE,
        said=("log: mptcpd is named",),
        after=ONE,
        put_back=False,
        theirs={"said": ()},
        better="names the other manager of endpoints, and the fix",
    ),
]
