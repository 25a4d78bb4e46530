# SPDX-License-Identifier: BSD-3-Clause
"""mptcpd.conf: every key, missing ones, mistakes, and options that override it."""

from typing import Any

from tests.side_by_side.scenario import Fault, Scenario, Step
from tests.side_by_side.scenarios.steps import ONE, A
from tests.side_by_side.stage import Stage

THEIR_FOLDER = "/usr/lib/x86_64-linux-gnu/mptcpd"
LEAST = f"[core]\nlog=stderr\nplugin-dir={THEIR_FOLDER}\npath-manager=addr_adv\n"
USUAL = LEAST + "addr-flags=subflow\nnotify-flags=existing,skip_link_local,skip_loopback\n"
SIGNAL = ("10.0.1.1 signal",)
NOTHING_DONE = (2, 0)


def file(text: str, mode: int = 0o644) -> Step:
    """mptcpd.conf for this stage."""

    def write(stage: Stage) -> None:
        stage.configuration = stage.folder / "mptcpd.conf"
        stage.configuration.write_text(text)
        stage.configuration.chmod(mode)

    return write


def configured(
    what: str, text: str, *arguments: str, table: tuple[str, ...] = ONE, mode: int = 0o644
) -> Scenario:
    """Both read it with the same meaning."""
    return Scenario(
        name=f"mptcpd.conf, {what}",
        usual=(),
        arguments=arguments,
        before=[file(text, mode), A],
        table=table,
    )


def refused(
    what: str,
    text: str,
    *,
    theirs: dict[str, Any],
    better: str,
    mode: int = 0o644,
    faults: tuple[Fault, ...] = (),
) -> Scenario:
    """Ours exits with place, cause and fix; mptcpd as `theirs` states."""
    return Scenario(
        name=f"mptcpd.conf, {what}",
        faults=faults,
        usual=(),
        before=[file(text, mode), A],
        exit_code=78,
        limits=NOTHING_DONE if "limits" in theirs else None,
        theirs=theirs,
        better=better,
    )


MISSPELT = "a misspelt name is refused, with its line and the valid names"

CONFIGURATION = [
    configured("every key", f"{USUAL}load-plugins=addr_adv\n"),
    configured("no addr-flags", f"{LEAST}notify-flags=existing\n", table=("10.0.1.1",)),
    configured("no notify-flags", f"{LEAST}addr-flags=subflow\n", table=()),
    configured(
        "flags subflow and backup",
        USUAL.replace("=subflow", "=subflow,backup"),
        table=("10.0.1.1 subflow backup",),
    ),
    configured("the command line beats it", USUAL, "--addr-flags=signal", table=SIGNAL),
    configured("spaces around the equals sign", USUAL.replace("=", " = ")),
    configured("spaces in a list", USUAL.replace(",", ", ")),
    configured("a comment and an empty line", f"# mine\n\n{USUAL}"),
    configured("an unknown key", f"{USUAL}colour=blue\n"),
    configured("an unknown group", f"{USUAL}[else]\naddr-flags=signal\n"),
    configured("a key twice", f"{USUAL}addr-flags=signal\n"),
    configured("no plugin-dir", USUAL.replace(f"plugin-dir={THEIR_FOLDER}\n", "")),
    configured("no path-manager", USUAL.replace("path-manager=addr_adv\n", "")),
    configured("no group", USUAL.replace("[core]\n", ""), table=()),
    configured("empty", "", table=()),
    refused(
        "everyone can write it",
        USUAL,
        mode=0o666,
        theirs={"exit_code": 1},
        better="a separate exit code for a wrong configuration",
    ),
    refused(
        "an unknown log",
        USUAL.replace("log=stderr", "log=nowhere"),
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better=MISSPELT,
    ),
    refused(
        "an unknown flag",
        USUAL.replace("=subflow", "=subflow,fast"),
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better=MISSPELT,
    ),
    refused(
        "an unknown path manager",
        USUAL.replace("addr_adv", "nonsense"),
        faults=(Fault.REPLACED,),
        theirs={"exit_code": 0, "table": ONE, "limits": (4, 4)},
        better="an unknown plugin is an error; no other is loaded in its place",
    ),
    refused(
        "a line without an equals sign",
        f"{USUAL}nonsense\n",
        theirs={"exit_code": 0, "limits": (3, 0)},
        better="reports the wrong line; mptcpd ignores the whole file silently",
    ),
]
