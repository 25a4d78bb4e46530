# SPDX-License-Identifier: BSD-3-Clause
"""Features that mptcpd's users request and mptcpd lacks."""

import json
from typing import Any

from mptcpd_ebpf.control import client
from tests.side_by_side.scenario import Fault, Scenario, Step
from tests.side_by_side.scenarios.steps import A, B, connect, joined
from tests.side_by_side.stage import Stage


def ours_reads(text: str) -> Step:
    """Gives ours a configuration that mptcpd cannot express."""

    def write(stage: Stage) -> None:
        if stage.name == "ours":
            file = stage.folder / "ours.yaml"
            file.write_text("path_manager: addr_adv\n" + text)
            stage.arguments += ["--config", str(file)]
        else:
            stage.arguments.append("--addr-flags=subflow")

    return write


def probes(stage: Stage) -> None:
    """Ours measures, which is its default."""
    if stage.name == "ours":
        stage.arguments.append("--probes=auto")


MEASURED = ("srtt_us", "min_rtt_us", "rttvar_us", "retransmits", "lost", "timeouts")


def listing(stage: Stage) -> tuple[str, ...]:
    """The daemon's list of its host's connections."""
    said = stage.ask("ls", "--json")
    connections = json.loads(said)["connections"] if said else []
    return tuple(map(_listed, connections))


def _listed(connection: dict[str, Any]) -> str:
    up = [each for each in connection["subflows"] if each["state"] == "established"]
    known = sum(all(each[name] is not None for name in MEASURED) for each in up)
    return f"ls: a connection with {len(up)} subflows, RTT and loss of {known}"


def decisions(stage: Stage) -> tuple[str, ...]:
    """What the control socket reports about the first address's endpoint."""
    if stage.name == "mptcpd":
        return ()
    found = client.get(str(stage.folder / "ours.sock"), "/v1/decisions")["decisions"]
    return tuple(
        f"api: {made['plugin']} made an endpoint of {made['command']['ip']}, for {made['reason']}"
        for made in found
        if made["action"] == "AddEndpoint" and made["command"]["ip"] == "10.0.1.1"
    )


def ready(stage: Stage) -> bool:
    """Ours adds no endpoints with another plugin; mptcpd loads addr_adv instead."""
    if stage.name == "mptcpd":
        return stage.settle()
    stage.await_readiness()
    return True


def changed_configuration(stage: Stage) -> None:
    """Changes the file to backup endpoints, and reloads ours."""
    if stage.name == "ours":
        file = stage.folder / "ours.yaml"
        file.write_text(file.read_text().replace("[subflow]", "[subflow, backup]"))
        stage.ask("reload")


WANTED = [
    Scenario(
        name="list of connections",
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
        better="lists connections and subflows with their measurements",
    ),
    Scenario(
        name="which plugin made an endpoint, and why",
        faults=(Fault.API,),
        before=[A],
        look=decisions,
        table=("10.0.1.1 subflow",),
        said=("api: addr_adv made an endpoint of 10.0.1.1, for 10.0.1.1 on a is usable",),
        theirs={"said": ()},
        better="HTTP and JSON over a Unix socket: state, decisions with reasons, commands",
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
        better="plugins adaptive, fullmesh, ndiffports, backup, refresh, reconnect",
    ),
    Scenario(
        name="only one interface allowed",
        faults=(Fault.INTERFACES,),
        before=[ours_reads("interfaces: {allow: [a, z]}\n"), A, B],
        table=("10.0.1.1 subflow",),
        limits=(4, 4),
        theirs={"table": ("10.0.1.1 subflow", "10.0.2.1 subflow"), "limits": (5, 5)},
        better="the keys interfaces.allow and interfaces.deny",
    ),
    Scenario(
        name="one interface as backup",
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
