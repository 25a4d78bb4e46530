# SPDX-License-Identifier: BSD-3-Clause
"""What mptcpd's users ask for and mptcpd has no counterpart of."""

import json
from typing import Any

from mptcpd_ebpf.control import client
from tests.side_by_side.scenario import Fault, Scenario, Step
from tests.side_by_side.scenarios.steps import A, B, connect, joined
from tests.side_by_side.stage import Stage


def ours_reads(text: str) -> Step:
    """Ours is given a configuration of its own; there is no way to say this to mptcpd."""

    def write(stage: Stage) -> None:
        if stage.name == "ours":
            file = stage.folder / "ours.yaml"
            file.write_text("path_manager: addr_adv\n" + text)
            stage.arguments += ["--config", str(file)]
        else:
            stage.arguments.append("--addr-flags=subflow")

    return write


def probes(stage: Stage) -> None:
    """Ours measures, as it does unless it is told not to."""
    if stage.name == "ours":
        stage.arguments.append("--probes=auto")


MEASURED = ("srtt_us", "min_rtt_us", "rttvar_us", "retransmits", "lost", "timeouts")


def listing(stage: Stage) -> tuple[str, ...]:
    """What the daemon can tell of its host's connections."""
    said = stage.ask("ls", "--json")
    connections = json.loads(said)["connections"] if said else []
    return tuple(map(_listed, connections))


def _listed(connection: dict[str, Any]) -> str:
    up = [each for each in connection["subflows"] if each["state"] == "established"]
    known = sum(all(each[name] is not None for name in MEASURED) for each in up)
    return f"ls: a connection with {len(up)} subflows, RTT and loss of {known}"


def decisions(stage: Stage) -> tuple[str, ...]:
    """What a program can learn of the first address's endpoint, over the control socket."""
    if stage.name == "mptcpd":
        return ()
    found = client.get(str(stage.folder / "ours.sock"), "/v1/decisions")["decisions"]
    return tuple(
        f"api: {made['plugin']} made an endpoint of {made['command']['ip']}, for {made['reason']}"
        for made in found
        if made["action"] == "AddEndpoint" and made["command"]["ip"] == "10.0.1.1"
    )


def ready(stage: Stage) -> bool:
    """Ours makes no endpoints where its plugin is another; mptcpd takes addr_adv instead."""
    if stage.name == "mptcpd":
        return stage.settle()
    stage.await_readiness()
    return True


def changed_configuration(stage: Stage) -> None:
    """The file asks for backup endpoints from now on; ours is told to read it."""
    if stage.name == "ours":
        file = stage.folder / "ours.yaml"
        file.write_text(file.read_text().replace("[subflow]", "[subflow, backup]"))
        stage.ask("reload")


WANTED = [
    Scenario(
        name="what connections are there?",
        faults=(Fault.LISTING, Fault.NUMBERS),
        needs=("/sys/kernel/btf/vmlinux",),
        where="client",
        before=[probes],
        steps=[connect, joined],
        look=listing,
        table=("10.1.1.2 subflow", "10.2.1.2 subflow"),
        wire=("MP_JOIN out path1 id 2",),
        after=("10.1.1.2 subflow",),
        said=("ls: a connection with 2 subflows, RTT and loss of 2",),
        theirs={"said": ()},
        better="connections and subflows are listed, with what was measured",
    ),
    Scenario(
        name="who made that endpoint, and why?",
        faults=(Fault.API,),
        before=[A],
        look=decisions,
        table=("10.0.1.1 subflow",),
        said=("api: addr_adv made an endpoint of 10.0.1.1, for 10.0.1.1 on a is usable",),
        theirs={"said": ()},
        better="HTTP and JSON over a Unix socket: what is, what was decided and why, orders",
    ),
    Scenario(
        name="a second subflow on the same path, `--path-manager=ndiffports`",
        faults=(Fault.ALGORITHMS,),
        where="client",
        arguments=("--path-manager=ndiffports",),
        steps=[connect],
        barrier=ready,
        path_manager="userspace",
        limits=(2, 0),
        wire=("MP_JOIN out path0 id 1",),
        theirs={
            "path_manager": "kernel",
            "limits": (5, 5),
            "table": ("10.1.1.2 subflow", "10.2.1.2 subflow"),
            "wire": ("MP_JOIN out path1 id 2",),
        },
        better="adaptive, fullmesh, ndiffports, backup, refresh, reconnect",
    ),
    Scenario(
        name="only one interface is to be used",
        faults=(Fault.INTERFACES,),
        before=[ours_reads("interfaces: {allow: [a, z]}\n"), A, B],
        table=("10.0.1.1 subflow",),
        limits=(4, 4),
        theirs={"table": ("10.0.1.1 subflow", "10.0.2.1 subflow"), "limits": (5, 5)},
        better="interfaces.allow and interfaces.deny",
    ),
    Scenario(
        name="one interface is to be backup",
        faults=(Fault.FLAGS,),
        before=[
            ours_reads(
                "plugins: {addr_adv: {rules: [{interface: b, flags: [subflow, backup]}]}}\n"
            ),
            A,
            B,
        ],
        table=("10.0.1.1 subflow", "10.0.2.1 subflow backup"),
        theirs={"table": ("10.0.1.1 subflow", "10.0.2.1 subflow")},
        better="flags by interface and by address",
    ),
    Scenario(
        name="the configuration changes",
        faults=(Fault.RELOAD,),
        usual=("--notify-flags=existing,skip_link_local,skip_loopback",),
        before=[ours_reads("plugins: {addr_adv: {flags: [subflow]}}\n"), A],
        steps=[changed_configuration],
        table=("10.0.1.1 subflow backup",),
        theirs={"table": ("10.0.1.1 subflow",)},
        better="`mptcpd-ebpf reload`",
    ),
]
