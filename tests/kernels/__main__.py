# SPDX-License-Identifier: BSD-3-Clause
"""make test-kernels: the tests on real namespaces, on Debian's kernels, in virtual machines.

    make test-kernels                                       all kernels, the whole of tests/netns
    make test-kernels ARGS='6.1 newest --subset'            what continuous integration runs
    make test-kernels ARGS='6.12 -- tests/netns/mptcpize/test_exec.py -k preload'
    make test-kernels ARGS='6.18 --run "mptcpd-ebpf doctor"'

Arguments after ``--`` go to the guest's pytest in place of ``tests/netns``.  Consoles and
reports stay under build/kernels/KERNEL/.  Exit code 0 if every kernel passed, else 1.
"""

import argparse
import fcntl
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

from tests.kernels import boots, debian, machine, table
from tests.kernels.debian import UnavailableError
from tests.tree import ROOT

FOLDER = ROOT / "build" / "kernels"
SUBSET = ROOT / "tests" / "kernels" / "subset.txt"


def main() -> int:
    arguments = sys.argv[1:]
    tests_at = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:tests_at])
    chosen = arguments[tests_at + 1 :] or ["tests/netns"]
    if options.subset:
        chosen = [line for line in SUBSET.read_text().splitlines() if not line.startswith("#")]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"test-kernels: another run works in {FOLDER}: wait for it", file=sys.stderr)
            return 1
        if options.run:
            return _show(options)
        if not _compiled(chosen):
            return 1
        outcomes = _run(options, chosen)
    for outcome in outcomes:
        for test, why in outcome.failed.items():
            print(f"\n===== {outcome.release}: {test}\n{why}")
    print(f"\n{table.render(outcomes)}")
    forgiven = options.allow_missing
    return 0 if all(each.good or (each.missing and forgiven) for each in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make test-kernels", usage="make test-kernels ARGS='[OPTION …] [KERNEL …] [-- TEST …]'"
    )
    parser.add_argument(
        "kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(debian.WANTED)}; default: all"
    )
    parser.add_argument("--subset", action="store_true", help=f"only the tests of {SUBSET.name}")
    parser.add_argument(
        "--run", metavar="COMMAND", help="in place of the tests, in the source tree"
    )
    parser.add_argument(
        "--headers", action="store_true", help="with the kernel's headers, for tests that use BCC"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="a kernel that cannot be had is no failure"
    )
    parser.add_argument(
        "--minutes", type=float, default=180, help="limit of one kernel; default: 180"
    )
    parser.add_argument(
        "--smp",
        type=int,
        default=1,
        help="processors of one machine; default: 1, see docs/kernels.md",
    )
    parser.add_argument(
        "--machines",
        type=int,
        default=os.cpu_count() or 1,
        help="how many run side by side; default: one a processor of the host",
    )
    return parser


def _compiled(tests: list[str]) -> bool:
    """Compiles the Python files that the guests import, which takes them minutes; False if that
    fails."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", "mptcpd_ebpf"], cwd=ROOT, check=True)
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-q", *tests]
    done = subprocess.run(collect, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{done.stdout}test-kernels: pytest cannot collect the tests", file=sys.stderr)
    return not done.returncode


def _run(options: argparse.Namespace, tests: list[str]) -> list[table.Outcome]:
    """One outcome per kernel, in the given order."""
    outcomes: dict[str, table.Outcome] = {}
    kernels: queue.SimpleQueue[debian.Kernel] = queue.SimpleQueue()
    for wanted, kernel in _kernels(options):
        if isinstance(kernel, debian.Kernel):
            kernels.put(kernel)
        else:
            outcomes[wanted] = table.Outcome(wanted=wanted, missing=kernel)

    def work() -> None:
        while True:
            try:
                kernel = kernels.get_nowait()
            except queue.Empty:
                return
            outcomes[kernel.wanted] = _run_one(kernel, tests, options)

    # Each machine ends with the thread that started it, and the threads with this process.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(options.machines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[each] for each in _wanted(options)]


def _wanted(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(options.kernels or debian.WANTED))


def _kernels(options: argparse.Namespace) -> Iterator[tuple[str, debian.Kernel | str]]:
    """The request and its kernel, or the reason why there is none."""
    try:
        _install()
        archive = debian.Archive(debian.cache_folder())
    except UnavailableError as error:
        yield from ((each, str(error)) for each in _wanted(options))
        return
    for each in _wanted(options):
        try:
            yield each, archive.get(each, options.headers)
        except UnavailableError as error:
            print(f"{each}: cannot be had: {error}", flush=True)
            yield each, str(error)


def _show(options: argparse.Namespace) -> int:
    """One command on one kernel after the other; its output, as it was."""
    failed = False
    for wanted, kernel in _kernels(options):
        if isinstance(kernel, str):
            failed = True
            continue
        print(f"\n===== {kernel.release}: {options.run}", flush=True)
        said, trouble = boots.show(
            kernel, options.run, FOLDER / wanted, options.smp, options.minutes * 60
        )
        print(said + trouble, flush=True)
        failed = failed or bool(trouble)
    return int(failed)


def _install() -> None:
    """Installs the missing packages of a machine; raises UnavailableError."""
    if machine.missing_programs():
        packages = ROOT / "scripts" / "apt-packages-kernels"
        done = subprocess.run([ROOT / "scripts" / "apt-install", packages], check=False)
        if done.returncode or machine.missing_programs():
            missing = ", ".join(machine.missing_programs()) or "packages"
            raise UnavailableError(f"{missing} could not be installed from {packages.name}")


def _run_one(kernel: debian.Kernel, tests: list[str], options: argparse.Namespace) -> table.Outcome:
    folder = FOLDER / kernel.wanted
    print(f"{kernel.release}: testing, console in {folder / 'console'}", flush=True)
    try:
        outcome = boots.run(kernel, tests, folder, options.smp, options.minutes * 60)
    except UnavailableError as error:
        return table.Outcome(wanted=kernel.wanted, missing=str(error))
    if outcome.trouble:
        console = (folder / "console").read_text(errors="replace").splitlines()
        print("\n".join([f"{kernel.release}: the console's last lines:", *console[-30:]]))
    print(f"{kernel.release}: {outcome.passed} passed, {outcome.seconds:.0f} s", flush=True)
    return outcome


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
