# SPDX-License-Identifier: BSD-3-Clause
"""The calls that plugins get: one in C for mptcpd, its counterpart in Python for ours.

Both write down their callbacks (recorder.c, recorder.py), and the lines are compared.
mptcpd's is built when it is needed, which takes a compiler and libmptcpd's headers.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AnnounceAddress,
    DestroySubflow,
    KernelCommand,
    SetBackup,
    WithdrawAddress,
)
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.kernel.pm_events import PmEvents
from tests.side_by_side.scenario import Fault, Scenario, Step
from tests.side_by_side.scenarios.steps import connect, joined
from tests.side_by_side.stage import LAST, Stage

HERE = Path(__file__).parents[1]
HEADERS = Path("/usr/include/mptcpd/plugin.h")
COMPILER = "gcc"
TOOLS = (COMPILER, str(HEADERS))
FIRST, SECOND = "10.1.1.2", "10.2.1.2"
WHY = "the scenario"

missing = [
    what for what in (COMPILER, str(HEADERS)) if not shutil.which(what) and not Path(what).exists()
]


def recording(*names: str, rules: str = "") -> Step:
    """Plugins under these names in a separate folder; the first serves by default."""

    def prepare(stage: Stage) -> None:
        folder = stage.folder / "plugins"
        folder.mkdir(mode=0o755)
        for name in names:
            if stage.name == "mptcpd":
                file = folder / f"{name}.so"
                build = [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", f"-DNAME={name}"]
                subprocess.run([*build, "-o", file, HERE / "recorder.c"], check=True)
            else:
                file = Path(shutil.copyfile(HERE / "recorder.py", folder / f"{name}.py"))
            file.chmod(0o644)
        stage.environment["RECORD"] = str(stage.folder / "record")
        stage.arguments += [f"--plugin-dir={folder}", f"--path-manager={names[0]}"]
        stage.arguments += [f"--load-plugins={','.join(names)}"]
        if rules and stage.name == "ours":
            file = stage.folder / "ours.yaml"
            file.write_text(rules)
            stage.arguments += ["--config", str(file)]

    return prepare


def connect_to(port: int) -> Step:
    return lambda stage: stage.connect(port=port)


def record(stage: Stage) -> list[str]:
    file = stage.folder / "record"
    return file.read_text().splitlines() if file.exists() else []


def told(stage: Stage) -> tuple[str, ...]:
    """The plugins' calls about connections."""
    return tuple(line for line in record(stage) if "new_local_address" not in line)


def told_of_last(stage: Stage) -> bool:
    """Waits for a plugin's call about the last address, which follows all others."""
    stage.await_readiness()
    before = len(record(stage))
    return stage.attempt(
        lambda: stage.host.ip(f"addr add {LAST}/24 dev z"),
        lambda: any(f"new_local_address {LAST}" in line for line in record(stage)[before:]),
        lambda: stage.host.ip(f"addr del {LAST}/24 dev z"),
    )


def peer_decides(stage: Stage) -> None:
    """This test is the server's path manager; it waits until the server accepts joins."""
    assert stage.lab is not None
    stage.lab.server.sysctl("mptcp.pm_type", 1)
    with stage.lab.server.entered():
        stage.stack.enter_context(PmEvents.open())


def peer(command: Callable[[int, list[Measurement]], KernelCommand]) -> Step:
    """Sends a path-manager command on the server, with its token and subflows."""

    def do(stage: Stage) -> None:
        assert stage.lab is not None
        with stage.lab.server.entered(), PmClient() as pm:
            found = diag.snapshot(with_owners=False)
            (connection,) = found.connections
            answer = pm.execute_now(command(connection.token, found.subflows))
        assert answer.errno == 0, answer.explanation
        stage.connections[0].exchange()

    return do


def backup(ip: str, wanted: bool) -> Callable[[int, list[Measurement]], KernelCommand]:
    """For the subflow from the client's address `ip`."""

    def command(token: int, subflows: list[Measurement]) -> KernelCommand:
        local, remote = ends(subflows, ip)
        return SetBackup(token=token, local=local, remote=remote, backup=wanted, reason=WHY)

    return command


def destroy(ip: str) -> Callable[[int, list[Measurement]], KernelCommand]:
    def command(token: int, subflows: list[Measurement]) -> KernelCommand:
        local, remote = ends(subflows, ip)
        return DestroySubflow(token=token, local=local, remote=remote, reason=WHY)

    return command


def ends(subflows: list[Measurement], ip: str) -> tuple[SockAddr, SockAddr]:
    (found,) = (each for each in subflows if each.remote.ip == ip)
    return found.local, found.remote


def reset_second(stage: Stage) -> None:
    """The server's host answers segments on the second path with a reset."""
    assert stage.lab is not None
    rule = "iptables -A INPUT -i path1 -p tcp -j REJECT --reject-with tcp-reset"
    stage.lab.server.run(rule.split())
    stage.connections[0].exchange()


def close(stage: Stage) -> None:
    stage.connections[0].close()


ENDS = "10.1.1.2 10.1.2.2"
SECOND_ENDS = "10.2.1.2 10.1.2.2"
BEGINS = (
    f"first: new_connection {ENDS} server_side=0",
    f"first: connection_established {ENDS} server_side=0",
)
ENDPOINT = "mptcp endpoint add 10.2.1.2 dev path1 subflow"
JOINED = f"first: new_subflow {SECOND_ENDS} backup"
CLOSED = "first: subflow_closed"
PRIORITY = f"first: subflow_priority {SECOND_ENDS} backup"
ANNOUNCED = ("first: new_address 10.2.2.2 id=5", "first: address_removed id=5")
TABLE = ("10.2.1.2 subflow",)


def plugin_scenario(
    name: str,
    *steps: Step,
    wire: tuple[str, ...] = (),
    ours: tuple[str, ...] = (),
    theirs: tuple[str, ...] = (),
    faults: tuple[Fault, ...] = (Fault.BACKUP,),
    better: str,
) -> Scenario:
    """A plugin, and a connection with a second subflow, followed by `steps`."""
    return Scenario(
        name=f"a plugin, {name}",
        faults=faults,
        needs=TOOLS,
        where="client",
        before=[peer_decides, recording("first"), ENDPOINT],
        steps=[connect, joined, *steps],
        barrier=told_of_last,
        look=told,
        table=TABLE,
        after=TABLE,
        wire=tuple(sorted(("MP_JOIN out path1 id 1", *wire))),
        said=(*BEGINS, f"{JOINED}=0", *ours),
        theirs={"said": (*BEGINS, f"{JOINED}=1", *theirs)},
        better=better,
    )


PLUGINS = [
    Scenario(
        name="a plugin, a connection that closes",
        needs=TOOLS,
        where="client",
        before=[recording("first")],
        steps=[connect, close],
        barrier=told_of_last,
        look=told,
        wire=("FIN out path0",),
        said=(*BEGINS, f"{CLOSED} {ENDS} backup=0 error=0", "first: connection_closed"),
        theirs={"said": (*BEGINS, "first: connection_closed")},
        better="plugins also learn that the last subflow ended",
    ),
    plugin_scenario("a second subflow", better="reports the backup flag"),
    plugin_scenario(
        "the peer makes a subflow backup and normal again",
        peer(backup(SECOND, True)),
        peer(backup(SECOND, False)),
        wire=("MP_PRIO in path1 backup", "MP_PRIO in path1 normal"),
        ours=(f"{PRIORITY}=1", f"{PRIORITY}=0"),
        theirs=(f"{PRIORITY}=1", f"{PRIORITY}=1"),
        better="reports the backup flag",
    ),
    plugin_scenario(
        "the peer closes a subflow",
        peer(destroy(SECOND)),
        wire=("FIN in path1",),
        ours=(f"{CLOSED} {SECOND_ENDS} backup=0 error=0",),
        theirs=(f"{CLOSED} {SECOND_ENDS} backup=1",),
        faults=(Fault.BACKUP, Fault.ERRORS),
        better="reports the backup flag and the error",
    ),
    plugin_scenario(
        "a subflow is reset",
        peer(backup(FIRST, True)),
        reset_second,
        wire=("MP_PRIO in path0 backup", "RST in path1"),
        ours=(f"{PRIORITY}=1".replace(SECOND, FIRST), f"{CLOSED} {SECOND_ENDS} backup=0 error=104"),
        theirs=(f"{PRIORITY}=1".replace(SECOND, FIRST), f"{CLOSED} {SECOND_ENDS} backup=1"),
        faults=(Fault.BACKUP, Fault.ERRORS),
        better="reports the backup flag, the error and the reason of a reset",
    ),
    plugin_scenario(
        "the peer announces an address and withdraws it",
        peer(
            lambda token, _: AnnounceAddress(token=token, ip="10.2.2.2", address_id=5, reason=WHY)
        ),
        peer(lambda token, _: WithdrawAddress(token=token, address_id=5, reason=WHY)),
        wire=("ADD_ADDR in id 5 10.2.2.2", "RM_ADDR in id 5"),
        ours=ANNOUNCED,
        theirs=ANNOUNCED,
        better="reports the backup flag",
    ),
    Scenario(
        name="two plugins, two connections",
        faults=(Fault.CHOICE,),
        needs=TOOLS,
        where="client",
        before=[recording("first", "second", rules="rules: [{remote_port: 7002, plugin: second}]")],
        steps=[connect_to(7001), connect_to(7002)],
        barrier=told_of_last,
        look=told,
        said=(*BEGINS, *(line.replace("first", "second") for line in BEGINS)),
        theirs={"said": (*BEGINS, *BEGINS)},
        better="rules select the plugin of each connection",
    ),
]
