# SPDX-License-Identifier: BSD-3-Clause
"""make test-kernels: the tests on real namespaces, on Debian's kernels, in virtual machines.

    make test-kernels                                       all kernels, the whole of tests/netns
    make test-kernels ARGS='6.1 newest --subset'            what continuous integration runs
    make test-kernels ARGS='6.12 -- tests/netns/test_exec.py -k preload'

What follows ``--`` goes to the guest's pytest in place of ``tests/netns``.  Consoles and
reports stay under build/kernels/KERNEL/.  Exit code 0 if every kernel passed, else 1.
"""

import argparse
import fcntl
import subprocess
import sys
import time
from pathlib import Path

from tests.kernels import debian, machine, table
from tests.kernels.debian import UnavailableError

TREE = Path(__file__).resolve().parents[2]
FOLDER = TREE / "build" / "kernels"
GUEST = TREE / "tests" / "kernels" / "guest.sh"
SUBSET = TREE / "tests" / "kernels" / "subset.txt"
SLOWNESS = 8
"""How much longer than on the host a test may take when every instruction is emulated."""
BOOTS = 4
"""How often a guest may die of the emulator before that counts."""
TEST_SECONDS = 120  # pyproject.toml's timeout of one test, on the host


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
        outcomes = _run(options.kernels or list(debian.WANTED), chosen, options.minutes * 60)
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
        "--allow-missing", action="store_true", help="a kernel that cannot be had is no failure"
    )
    parser.add_argument(
        "--minutes", type=float, default=60, help="limit of one machine; default: 60"
    )
    return parser


def _run(kernels: list[str], tests: list[str], limit_s: float) -> list[table.Outcome]:
    try:
        _install()
        archive = debian.Archive(debian.cache_folder())
    except UnavailableError as error:
        return [table.Outcome(wanted=wanted, missing=str(error)) for wanted in kernels]
    return [_run_one(archive, wanted, tests, limit_s) for wanted in kernels]


def _install() -> None:
    """Installs what a machine needs and is not there; raises UnavailableError."""
    if machine.missing_programs():
        packages = TREE / "scripts" / "apt-packages-kernels"
        done = subprocess.run([TREE / "scripts" / "apt-install", packages], check=False)
        if done.returncode or machine.missing_programs():
            missing = ", ".join(machine.missing_programs()) or "packages"
            raise UnavailableError(f"{missing} could not be installed from {packages.name}")


def _run_one(
    archive: debian.Archive, wanted: str, tests: list[str], limit_s: float
) -> table.Outcome:
    folder = FOLDER / wanted
    started = time.monotonic()
    try:
        kernel = archive.get(wanted)
        print(f"{kernel.release}: testing, console in {folder / 'console'}", flush=True)
        pytest = [f"--timeout={TEST_SECONDS * SLOWNESS}", *tests]
        command = [
            "/bin/bash", str(GUEST), str(kernel.modules), str(TREE), str(SLOWNESS), *pytest
        ]  # fmt: skip
        for _ in range(BOOTS):
            trouble = machine.run(kernel, command, [TREE], folder, limit_s)
            if not _patched_under_its_feet(folder):
                break
            print(f"{kernel.release}: the emulator's race with code patching; again", flush=True)
        else:
            raise UnavailableError(f"{kernel.release}: the emulator killed it {BOOTS} times")
    except UnavailableError as error:
        return table.Outcome(wanted=wanted, missing=str(error))
    report = (folder / "report").read_text(errors="replace")
    outcome = table.read(wanted, kernel.release, report, trouble)
    if outcome.trouble:
        console = (folder / "console").read_text(errors="replace").splitlines()
        print("\n".join(["the console's last lines:", *console[-30:]]))
    seconds = time.monotonic() - started
    print(f"{kernel.release}: {outcome.passed} passed, {seconds:.0f} s", flush=True)
    return outcome


def _patched_under_its_feet(folder: Path) -> bool:
    """Whether the guest died of the int3 that the kernel plants while it patches its code.

    One emulated processor may run it from a stale translation: QEMU's fault, not the
    kernel's nor ours, and gone with another boot.
    """
    console = (folder / "console").read_text(errors="replace")
    return "Oops: int3" in console and "Kernel panic" in console


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
