# SPDX-License-Identifier: BSD-3-Clause
"""Runs the measurements and writes docs/benchmarks.md: ``python -m bench [--quick] [NAME…]``.

A measurement is a module here whose name does not begin with an underscore.  It has a
NAME, and `run(quick)`, which returns markdown.  They run one after the other, never at
the same time.  Each has a section in the document, which a full run of it replaces; the others
stay. `--quick` takes few samples and only prints.

`python -m bench decisions` compares path managers instead; it has options of its own.
"""

import argparse
import re
import signal
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from bench._machine import load, machine
from mptcpd_ebpf.lab import LabError
from mptcpd_ebpf.runtime.exit_codes import ExitCode

FOLDER = Path(__file__).resolve().parent
DOCUMENT = FOLDER.parent / "docs" / "benchmarks.md"
HEAD = """<!-- SPDX-License-Identifier: BSD-3-Clause -->
# Benchmarks

Written by `make bench` (root).  `make bench ARGS=NAME` measures one section anew, `ARGS="--quick
NAME"` only prints, from few samples.  Ratios compare what ran in one run, alternating.  A spread is
least…most.  A figure that misses its target says so.
"""
_SECTION = re.compile(r"^<!-- section (\w+) -->\n(.*?)(?=^<!-- section |\Z)", re.M | re.S)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.USAGE, f"bench: {message}\n")


def main() -> int:
    # SIGTERM removes labs and daemons like any other exit.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if sys.argv[1:2] == ["decisions"]:
        return int(import_module("bench.decisions.command").main(sys.argv[2:]))
    names = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    parser = _Parser(prog="python -m bench", description="Measure, into docs/benchmarks.md.")
    parser.add_argument("--quick", action="store_true", help="few samples, print only")
    parser.add_argument("name", nargs="*", help=f"which of {', '.join(names)}; default: all")
    options = parser.parse_args()
    if unknown := [name for name in options.name if name not in names]:
        parser.error(f"no measurement {', '.join(unknown)}; there are {', '.join(names)}")
    failed = False
    for name in options.name or names:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            section = _measure(name, options.quick)
        except (LabError, OSError) as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            failed = True
            continue
        print(section, flush=True)
        if not options.quick:
            old = DOCUMENT.read_text() if DOCUMENT.exists() else ""
            DOCUMENT.write_text(with_section(old, name, section))
    return ExitCode.CHECK_FAILED if failed else ExitCode.OK


def _measure(name: str, quick: bool) -> str:
    module = import_module(f"bench.{name}")
    before, when = load(), datetime.now(UTC)
    result: str = module.run(quick)
    took = (datetime.now(UTC) - when).total_seconds()
    return (
        f"## {module.NAME}\n\n"
        f"`{sys.executable.rpartition('/')[2]} -m bench {name}`, {when:%Y-%m-%d %H:%M} UTC, "
        f"{took:.0f} s; {machine()}; load average before {before}, after {load()}.\n\n"
        f"{result.strip()}\n"
    )


def with_section(document: str, name: str, section: str) -> str:
    """The document with one section new or replaced, in the order of names."""
    sections = {each[1]: each[2].strip() for each in _SECTION.finditer(document)}
    sections[name] = section.strip()
    parts = [f"<!-- section {each} -->\n{sections[each]}\n" for each in sorted(sections)]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    sys.exit(main())
