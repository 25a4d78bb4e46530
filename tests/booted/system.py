# SPDX-License-Identifier: BSD-3-Clause
"""A whole Debian with systemd as process 1, on this kernel: systemd-nspawn on an overlay.

The tree of `scripts/system-tree` is the lower layer, so a system starts in a second and changes
nothing of it.  A run boots the system, executes one script in it as a service, and powers off.
The mounts are in a mount namespace of nspawn's own and end with it.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.tree import ROOT
from tests.waiting import SLOWNESS, runs

BASE = ROOT / "build" / "system" / "base"
DEBS = ROOT / "build" / "deb"
FOLDER = "run-"
"""Prefix of a system's folder beside the base, before the pid of the test."""
_GROUP = "mptcpd-ebpf-test-"

# Also when the test's process is killed, nspawn ends, and its container with it.
_START = ("setpriv", "--pdeathsig=TERM", "unshare", "--mount", "--propagation=private")
_NSPAWN = """
set -e
for group; do echo $$ > "$group/cgroup.procs"; done
mount -t overlay overlay merged -o "lowerdir=$LOWER,upperdir=upper,workdir=work"
exec systemd-nspawn -D merged --boot --register=no --keep-unit --private-network \\
    --capability=all --system-call-filter='bpf perf_event_open keyctl' -M "$NAME" --quiet
"""

_CHECK_SERVICE = """
[Unit]
After=multi-user.target
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=oneshot
ExecStart=/root/check
TimeoutStartSec=infinity
"""

_PRELUDE = """\
#!/bin/bash
exec > /root/output 2>&1
trap 'echo $? > /root/code; sync' EXIT
trap 'echo "line $LINENO: $BASH_COMMAND"; journalctl --no-pager -u mptcpd-ebpf' ERR
set -eExu -o pipefail
eventually() {
    { set +x; } 2> /dev/null
    for _ in $(seq 300); do
        if "$@" > /dev/null; then set -x; return; fi
        sleep 0.1
    done
    echo "in vain: $*"
    return 1
}
property() { systemctl show -p "$1" --value mptcpd-ebpf; }
state() { [ "$(property ActiveState)" = "$1" ]; }
path_manager() { [ "$(cat /proc/sys/net/mptcp/path_manager)" = "$1" ]; }
"""


class System:
    """An installed system in `folder`: it can be booted again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = folder / "upper"
        """Its files that differ from the base's; read and write them while it is off."""
        for name in ("upper", "work", "merged"):
            (folder / name).mkdir()
        self.write("etc/systemd/system/check.service", _CHECK_SERVICE)
        wanted = self.files / "etc/systemd/system/multi-user.target.wants"
        wanted.mkdir()
        (wanted / "check.service").symlink_to("../check.service")
        (self.files / "etc/systemd/system/default.target").symlink_to(
            "/lib/systemd/system/multi-user.target"
        )

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """A file of the system, by its path without the first slash."""
        file = self.files / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def add(self, source: Path, name: str) -> None:
        """A copy of a file."""
        target = self.files / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def run(self, script: str, within_s: float = 60.0) -> str:
        """Boots, runs a bash script as root, and powers off.

        Returns the output; fails the test with it if a command of the script fails.
        """
        self.write("root/check", _PRELUDE + script, 0o755)
        code, output = self.files / "root/code", self.files / "root/output"
        code.unlink(missing_ok=True)
        with (self._folder / "console").open("wb") as console, _cgroups() as groups:
            process = subprocess.Popen(
                [*_START, "sh", "-c", _NSPAWN, "sh", *groups],
                cwd=self._folder,
                env={**os.environ, "LOWER": str(BASE), "NAME": f"mptcpd-{os.getpid()}"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
            try:
                process.wait(within_s * SLOWNESS)
            except subprocess.TimeoutExpired:
                pass  # `code` is missing then
            finally:
                _end(process)
        said = output.read_text(errors="replace") if output.exists() else ""
        ended = code.read_text().strip() if code.exists() else None
        if ended is None:  # of the boot, not of the script
            said += "\n--- console\n" + (self._folder / "console").read_text(errors="replace")
        assert ended == "0", f"exit code {ended}\n{said}"
        return said


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends nspawn, with which its container ends."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(sent)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10 * SLOWNESS)


def sweep() -> None:
    """Removes what tests that were killed have left."""
    left = [*BASE.parent.glob(f"{FOLDER}*")]
    for hierarchy in _hierarchies():
        left += hierarchy.glob(f"{_GROUP}*")
    for path in left:
        pid = path.name.removeprefix(FOLDER).removeprefix(_GROUP).partition("-")[0]
        if not runs(int(pid)):
            (shutil.rmtree if path.parent == BASE.parent else _remove)(path)


def _hierarchies() -> Iterator[Path]:
    """Where the cgroup hierarchies that systemd uses are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            yield Path(mount)


@contextmanager
def _cgroups() -> Iterator[list[str]]:
    """A cgroup of our own in each hierarchy; removed afterwards."""
    made = []
    try:
        for hierarchy in _hierarchies():
            group = hierarchy / f"{_GROUP}{os.getpid()}"
            group.mkdir()
            made.append(group)
        yield [str(group) for group in made]
    finally:
        for group in made:
            _remove(group)


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10 * SLOWNESS
    for folder, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                os.rmdir(folder)
                break
            except OSError:  # its processes are still ending
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def newer(deb: Path, folder: Path) -> Path:
    """The same package with a higher version."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    changed = [f"{line}+1" if line.startswith("Version: ") else line for line in lines]
    control.write_text("\n".join(changed) + "\n")
    result = folder / "newer.deb"
    subprocess.run(["dpkg-deb", "-b", tree, result], check=True, stdout=subprocess.DEVNULL)
    return result
