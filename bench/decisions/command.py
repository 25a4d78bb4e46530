# SPDX-License-Identifier: BSD-3-Clause
"""``python -m bench decisions``: runs cells by arms by repetitions, then reports."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bench.decisions import records, report
from bench.decisions.arms import ARMS, QUICK_ARMS
from bench.decisions.cells import PARTS, Cell, all_cells, chosen
from bench.decisions.measure import measure
from mptcpd_ebpf.runtime.exit_codes import ExitCode

_DESCRIPTION = """Compare path managers in the lab, and report: docs/decisions.md.

Repetition by repetition and cell by cell, all arms run one after the other with the same seed, in
an order that rotates.  Raw results are appended to build/bench-decisions/COMMIT.jsonl."""


class Plan(Struct, frozen=True):
    """What is run."""

    cells: list[Cell]
    arms: list[str]
    repetitions: int


class Job(Struct, frozen=True):
    """One run."""

    cell: Cell
    arm: str
    repetition: int


def jobs(plan: Plan) -> Iterator[Job]:
    """All runs of a plan, in order.  A quiet period is not compared with anything."""
    for repetition in range(plan.repetitions):
        for number, cell in enumerate(plan.cells):
            first = (repetition + number) % len(plan.arms)
            for arm in plan.arms[first:] + plan.arms[:first]:
                if not (cell.part == "calm" and arm == "alone"):
                    yield Job(cell, arm, repetition)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m bench decisions",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--quick", action="store_true", help="a stratified subset, 5 s, once; about 10 minutes")
    add("--cells", metavar="REGEX", default="", help="only cells whose name matches")
    add("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    add("--arms", metavar="ARM,…", help=f"of {', '.join(ARMS)}; default: all")
    add("--seconds", type=float, help="length of a transfer (10)")
    add("--quiet-seconds", type=float, help="length of a quiet period (600)")
    add("--repetitions", type=int, help="of everything (5)")
    add("--resume", action="store_true", help="skip what was measured for this commit")
    add("--list", action="store_true", help="only list the cells")
    add("--report", action="store_true", help="only report what was measured")
    add("--results", type=Path, metavar="FILE", help="raw results; default: this commit's")
    add("--write", action="store_true", help="write the report into docs/decisions.md")
    return found


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for.  Raises ValueError for an unknown arm or a wrong expression."""
    try:
        re.compile(options.cells)
    except re.error as error:
        raise ValueError(f"--cells {options.cells}: {error}") from None
    arms = (options.arms or ",".join(QUICK_ARMS if options.quick else ARMS)).split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"no arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
    seconds = options.seconds or (5.0 if options.quick else 10.0)
    quiet = options.quiet_seconds or (15.0 if options.quick else 600.0)
    return Plan(
        cells=chosen(
            all_cells(seconds, quiet),
            parts=options.part or list(PARTS),
            pattern=options.cells,
            quick=options.quick,
        ),
        arms=arms,
        repetitions=options.repetitions or (1 if options.quick else 5),
    )


def main(argv: Sequence[str]) -> int:
    found = parser()
    options = found.parse_args(argv)
    try:
        plan = plan_of(options)
    except ValueError as error:
        print(f"bench decisions: {error}", file=sys.stderr)
        return ExitCode.USAGE
    if options.list:
        for cell in plan.cells:
            print(cell.id)
        return ExitCode.OK
    commit = records.commit()
    store = records.Records(options.results or records.FOLDER / f"{commit}.jsonl")
    if not options.report:
        run(plan, store, commit, resume=options.resume)
    _report(records.comparable(store.read()), all_cells(10.0, 600.0), write=options.write)
    return ExitCode.OK


def _report(runs: list[records.Run], cells: list[Cell], *, write: bool) -> None:
    """Prints the report; or writes it into the document, with its pictures."""
    if not write:
        print(report.report(runs, cells))
        return
    from bench.decisions import pictures  # matplotlib takes a second

    names = pictures.draw(runs, cells, report.DOCUMENT.parent)
    old = report.DOCUMENT.read_text() if report.DOCUMENT.exists() else ""
    text = report.report(runs, cells, names)
    report.DOCUMENT.write_text(report.with_report(old, text))


def run(plan: Plan, store: records.Records, commit: str, *, resume: bool) -> None:
    """Runs a plan, and notes each run as soon as it has ended."""
    done = {run.key for run in store.read() if run.error is None} if resume else set()
    todo = [
        job
        for job in jobs(plan)
        if (commit, job.cell.id, job.arm, job.repetition, job.cell.length_s) not in done
    ]
    for number, job in enumerate(todo, start=1):
        found = measure(job.cell, job.arm, job.repetition, commit)
        store.add(found)
        what = found.error or _in_short(found)
        print(
            f"{number}/{len(todo)} {job.cell.id} {job.arm} #{job.repetition}: {what}",
            file=sys.stderr,
            flush=True,
        )


def _in_short(run: records.Run) -> str:
    flows = [flow for each in run.alone for flow in each.flows] or run.flows
    rates = [f"{flow.mbit:.1f} Mbit/s" for flow in flows if flow.mbit is not None]
    left = sum(each.leaves for each in records.switches(run.acts))
    return f"{', '.join(rates) or f'{sum(len(f.latencies) for f in flows)} messages'}" + (
        f", left a path {left} times" if left else ""
    )
