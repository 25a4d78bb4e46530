# SPDX-License-Identifier: BSD-3-Clause
"""mptcpize beside ``mptcpd-ebpf enable``, ``disable`` and ``exec``.

mptcpize asks systemctl where a unit's file is and edits that file.  Here a script answers
in systemctl's place, and /tmp is an empty one of mptcpize's own, to see what it leaves
there.  Ours is given the same unit below a ``--root``.
"""

import subprocess
from pathlib import Path

from tests.netns.daemon_process import PROGRAM
from tests.side_by_side.scenario import Fault, Scenario, Step
from tests.side_by_side.stage import Stage

MPTCPIZE = "/usr/bin/mptcpize"
UNIT = """\
[Unit]
Description=Demo

[Service]
Environment=FIRST=1
Environment="SECOND=2 3"
ExecStart=/bin/true
"""
SYSTEMCTL = """\
#!/bin/sh
[ "$1" = show ] && echo FragmentPath=/mnt/demo.service
exit 0
"""
APART = 'mount --bind "$0" /mnt && mount -t tmpfs none /tmp && PATH="/mnt/bin:$PATH"'
SOCKET = "import socket; print(socket.socket().proto)"


def unit(stage: Stage) -> None:
    """A unit file with an environment."""
    file = _unit(stage)
    file.parent.mkdir(parents=True)
    file.write_text(UNIT)
    if stage.name == "mptcpd":
        tool = file.parent / "bin" / "systemctl"
        tool.parent.mkdir()
        tool.write_text(SYSTEMCTL)
        tool.chmod(0o755)


def convert(*actions: str) -> Step:
    """Runs `enable` and `disable`, and notes the changes of the unit and of /tmp."""

    def do(stage: Stage) -> None:
        file = _unit(stage)
        if stage.name == "mptcpd":
            calls = " && ".join(f"{MPTCPIZE} {action} demo >&2" for action in actions)
            script = f"{APART}; {calls} && ls /tmp"
            left = _output("unshare", "--mount", "sh", "-c", script, str(file.parent))
        else:
            for action in actions:
                _output(PROGRAM, action, "demo", "--root", str(stage.folder))
            left = ""
        kept = [line for line in UNIT.splitlines() if line in file.read_text().splitlines()]
        lost = [line for line in UNIT.splitlines() if line not in kept]
        stage.noted += [f"the unit has lost {line}" for line in lost]
        if left.split():
            stage.noted.append(f"{len(left.split())} files left in /tmp")
        if file.read_text() == UNIT:
            stage.noted.append("the unit's file is as it was")
        drop_ins = list(file.parent.glob("demo.service.d/*.conf"))
        stage.noted += [f"a drop-in beside it: {drop_in.name}" for drop_in in drop_ins]

    return do


def wrap(stage: Stage) -> None:
    """Notes which protocol a program's TCP socket has."""
    start = [MPTCPIZE, "run"] if stage.name == "mptcpd" else [PROGRAM, "exec"]
    protocol = _output(*start, "/usr/bin/python3", "-c", SOCKET)
    stage.noted.append(f"socket() without a protocol gives {protocol.strip()}")


def _unit(stage: Stage) -> Path:
    return stage.folder / "etc" / "systemd" / "system" / "demo.service"


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOST = ("the unit has lost Environment=FIRST=1", 'the unit has lost Environment="SECOND=2 3"')
AS_IT_WAS = "the unit's file is as it was"
DROP_IN = "a drop-in; the unit's file and environment are unchanged"

CONVERTER = [
    Scenario(
        name="mptcpize enable",
        faults=(Fault.ENVIRONMENT, Fault.LITTER),
        needs=(MPTCPIZE,),
        daemon=False,
        before=[unit, convert("enable")],
        said=(AS_IT_WAS, "a drop-in beside it: zz-mptcpd-ebpf.conf"),
        theirs={"said": (*LOST, "1 files left in /tmp")},
        better=DROP_IN,
    ),
    Scenario(
        name="mptcpize enable and disable",
        faults=(Fault.ENVIRONMENT, Fault.LITTER),
        needs=(MPTCPIZE,),
        daemon=False,
        before=[unit, convert("enable", "disable")],
        said=(AS_IT_WAS,),
        theirs={"said": (*LOST, "2 files left in /tmp")},
        better=DROP_IN,
    ),
    Scenario(
        name="mptcpize run",
        needs=(MPTCPIZE,),
        daemon=False,
        before=[wrap],
        said=("socket() without a protocol gives 0",),
    ),
]
