# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf demo``: the main job, shown on this machine's kernel."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

if TYPE_CHECKING:
    from mptcpd_ebpf.demo.findings import Report


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option(
    "--picture",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("mptcpd-ebpf-demo.png"),
    show_default=True,
    help="Where to draw RTT, loss and decisions over time.",
)
def command(as_json: bool, picture: Path) -> None:
    """Show what path management is good for, in two minutes.

    Two hosts in network namespaces of their own, two paths: fibre with 10 ms and mobile
    with 40 ms each way, 20 Mbit/s each.  While a client sends a request every 50 ms,
    fibre loses 30 % both ways, then takes 290 ms longer each way, then swallows
    everything, and heals each time; a bulk transfer follows.  First under the kernel's
    own path manager, then under the daemon with the plugin 'adaptive'.  Needs root;
    nothing stays behind but the picture.
    """
    if os.geteuid() != 0:
        raise Failure("the demo makes network namespaces: run it as root", ExitCode.PRIVILEGE)
    if not os.access(picture.absolute().parent, os.W_OK):
        raise Failure(
            f"--picture {picture}: that folder cannot be written; choose another place",
            ExitCode.USAGE,
        )
    # The lab and rich: only this command pays for them.
    from mptcpd_ebpf.demo import findings, live, scenario
    from mptcpd_ebpf.lab import LabError, UnavailableError

    signal.signal(signal.SIGTERM, _end)
    stream = sys.stderr if as_json else sys.stdout
    timing = scenario.Timing()
    try:
        with live.View(
            "1. the kernel's own path manager (the daemon only observes)", stream
        ) as view:
            without = scenario.run("kernel", timing, view)
        with live.View("2. mptcpd-ebpf daemon --path-manager=adaptive", stream) as view:
            managed = scenario.run("adaptive", timing, view)
    except UnavailableError as error:
        raise Failure(str(error), ExitCode.NO_MPTCP) from None
    except LabError as error:
        raise Failure(str(error), ExitCode.CHECK_FAILED) from None
    report = findings.compare(without, managed)
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(table(report))
        click.echo(findings.conclusion(report))
    # Last, so that a machine on which matplotlib cannot run loses nothing but the picture.
    try:
        from mptcpd_ebpf.demo.picture import draw
    except (ImportError, RuntimeError) as error:  # NumPy raises the latter below x86-64-v2
        words = f"the picture cannot be drawn on this machine: {error}"
        raise Failure(words, ExitCode.CHECK_FAILED) from None
    draw(without, managed, picture)
    if not as_json:
        click.echo(f"Picture: {picture}")


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Leaves through every `with`, so that the lab is removed too."""
    raise SystemExit(128 + number)


def table(report: "Report") -> str:
    """The phases side by side."""
    lines = [
        "latency in ms         in-kernel path manager        adaptive"
        "                   action   return",
        "phase         n       p50    p99    max        p50    p99    max         after    after",
    ]
    for phase in report["phases"]:
        before, after = phase["without"], phase["with"]
        lines.append(
            f"{phase['fault']:10s} {after['n']:5d}  "
            + " ".join(_cell(before[key]) for key in ("p50_ms", "p99_ms", "max_ms"))
            + "     "
            + " ".join(_cell(after[key]) for key in ("p50_ms", "p99_ms", "max_ms"))
            + f"     {_cell(phase['fault_to_action_ms'])}ms {_cell(phase['heal_to_return_ms'])}ms"
        )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'–' if value is None else f'{value:.0f}':>7s}"
