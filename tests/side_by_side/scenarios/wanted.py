# SPDX-License-Identifier: BSD-3-Clause
"""What mptcpd's users ask for and mptcpd has no counterpart of."""

import json

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


def listing(stage: Stage) -> tuple[str, ...]:
    """What the daemon can tell of its host's connections."""
    said = stage.ask("ls", "--json")
    connections = json.loads(said)["connections"] if said else []
    return tuple(
        "ls: a connection with {} subflows".format(
            [subflow["state"] for subflow in one["subflows"]].count("established")
        )
        for one in connections
    )


def changed_configuration(stage: Stage) -> None:
    """The file asks for backup endpoints from now on; ours is told to read it."""
    if stage.name == "ours":
        file = stage.folder / "ours.yaml"
        file.write_text(file.read_text().replace("[subflow]", "[subflow, backup]"))
        stage.ask("reload")


WANTED = [
    Scenario(
        name="what connections are there?",
        faults=(Fault.WANTED,),
        where="client",
        steps=[connect, joined],
        look=listing,
        table=("10.1.1.2 subflow", "10.2.1.2 subflow"),
        wire=("MP_JOIN out path1 id 2",),
        after=("10.1.1.2 subflow",),
        said=("ls: a connection with 2 subflows",),
        theirs={"said": ()},
        better="connections and subflows are listed, with what was measured",
    ),
    Scenario(
        name="only one interface is to be used",
        faults=(Fault.WANTED,),
        before=[ours_reads("interfaces: {allow: [a, z]}\n"), A, B],
        table=("10.0.1.1 subflow",),
        limits=(4, 4),
        theirs={"table": ("10.0.1.1 subflow", "10.0.2.1 subflow"), "limits": (5, 5)},
        better="interfaces.allow and interfaces.deny",
    ),
    Scenario(
        name="one interface is to be backup",
        faults=(Fault.WANTED,),
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
        faults=(Fault.WANTED,),
        usual=("--notify-flags=existing,skip_link_local,skip_loopback",),
        before=[ours_reads("plugins: {addr_adv: {flags: [subflow]}}\n"), A],
        steps=[changed_configuration],
        table=("10.0.1.1 subflow backup",),
        theirs={"table": ("10.0.1.1 subflow",)},
        better="`mptcpd-ebpf reload`",
    ),
]
