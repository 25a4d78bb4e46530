# SPDX-License-Identifier: BSD-3-Clause
"""The daemon's host: plugin folders that others can write, and logs."""

import shutil
import socket
from pathlib import Path

from mptcpd_ebpf.runtime.resources import plugin_folder
from tests.side_by_side.scenario import Scenario, Step
from tests.side_by_side.scenarios.steps import ONE, A
from tests.side_by_side.stage import Stage

THEIR_PLUGIN = Path("/usr/lib/x86_64-linux-gnu/mptcpd/addr_adv.so")
JOURNAL = "/run/systemd/journal/socket"
EMPTY_RUN = f"mount -t tmpfs none /run && mkdir -p {Path(JOURNAL).parent}"
AT_FAULT = "a separate exit code for a wrong configuration"


def folder(mode: int, *, plugin: int | None = 0o644) -> Step:
    """A plugin-dir with addr_adv in it, with these modes."""

    def make(stage: Stage) -> None:
        made = stage.folder / "plugins"
        made.mkdir()
        source = THEIR_PLUGIN if stage.name == "mptcpd" else plugin_folder() / "addr_adv.py"
        if plugin is not None:
            Path(shutil.copy(source, made)).chmod(plugin)
        made.chmod(mode)
        stage.arguments.append(f"--plugin-dir={made}")

    return make


def journal(stage: Stage) -> None:
    """A journal for this stage's daemon only."""
    file = stage.folder / "journal"
    listening = stage.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    listening.bind(str(file))
    listening.setblocking(False)
    stage.mounts += [EMPTY_RUN, f"touch {JOURNAL}", f"mount --bind {file} {JOURNAL}"]
    stage.journal = listening


def no_journal(stage: Stage) -> None:
    stage.mounts.append(EMPTY_RUN)


def entries(stage: Stage) -> tuple[str, ...]:
    """Whether the journal contains a start."""
    assert stage.journal is not None
    try:
        while True:
            entry = stage.journal.recv(65536)
            if b"MESSAGE" in entry and "the journal has it" not in stage.noted:
                stage.noted.append("the journal has it")
    except BlockingIOError:
        return tuple(stage.noted)


SURROUNDINGS = [
    Scenario(
        name="a plugin folder that only root can write",
        before=[folder(0o755), A],
        table=ONE,
    ),
    Scenario(
        name="a plugin folder that everyone can write",
        before=[folder(0o777), A],
        exit_code=78,
        theirs={"exit_code": 1},
        better=AT_FAULT,
    ),
    Scenario(
        name="an empty plugin folder that everyone can write",
        before=[folder(0o777, plugin=None), A],
        exit_code=78,
        theirs={"exit_code": 1},
        better=AT_FAULT,
    ),
    Scenario(
        name="a plugin that everyone can write",
        before=[folder(0o755, plugin=0o666), A],
        exit_code=78,
        limits=(2, 0),
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="a user who can write a plugin gets the daemon's privileges",
    ),
    Scenario(
        name="a plugin folder without plugins",
        before=[folder(0o755, plugin=None), A],
        table=ONE,
        limits=(4, 4),
        theirs={"exit_code": 1, "table": (), "limits": (2, 0)},
        better="looks up the name among the shipped plugins",
    ),
    Scenario(
        name="--log=journal",
        before=[journal, A],
        arguments=("--log=journal",),
        look=entries,
        table=ONE,
        said=("the journal has it",),
    ),
    Scenario(
        name="--log=journal without a journal",
        before=[no_journal, A],
        arguments=("--log=journal",),
        exit_code=78,
        limits=(2, 0),
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="a log without a receiver is an error at start",
    ),
]
