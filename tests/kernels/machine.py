# SPDX-License-Identifier: BSD-3-Clause
"""A virtual machine that boots a kernel with the host's own files and runs the tests in it.

QEMU emulates every instruction (TCG), so this works without hardware virtualisation. The guest
sees the host's root folder through virtiofs, read-only, with an overlay in memory: it has the
host's programs, this source tree and its venv, can write anywhere, and its changes are lost when
it stops. It boots from an initramfs of busybox, the modules that some kernels need for virtiofs,
and the command to run. Its output goes to two serial ports, each a file of the host: the console,
and the output of tests/kernels/report.py. If the guest hangs or its kernel panics, both contain
the output so far.
"""

import lzma
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from mptcpd_ebpf.lab.waiting import wait_until
from tests.kernels.debian import Kernel, UnavailableError

QEMU = "qemu-system-x86_64"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"  # Debian 12: package qemu-system-common
BUSYBOX = "/bin/busybox"
MODPROBE = "/sbin/modprobe"
MEMORY_MIB = 3072
_TAG = "hostroot"
_START_SECONDS = 20
# What a kernel may have as modules and needs before it sees the host's files.
_EARLY_MODULES = ("virtio_pci", "virtiofs", "overlay")

_INIT = """#!/bin/busybox sh
fail() {{ echo "kernels: $1 failed"; busybox poweroff -f; }}
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module || fail "loading $module"; done
mount -t virtiofs {tag} /host -o ro || fail 'mounting the files of the host'
mount -t tmpfs memory /memory -o size=80% || fail 'mounting memory'
mkdir /memory/upper /memory/work
mount -t overlay root /root -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work \\
    || fail 'layering memory over the files'
exec switch_root /root {command}
"""


# Only files are shared, no /proc and no mounted namespaces, which would outlive their
# owners here; so each place that may be a mount of its own is named.  virtiofsd locks a
# file in /run that is named after the socket, the same for every machine.
_SHARE = """
set -e
mkdir -p root
mount --bind / root
for place; do mount --bind "$place" "root$place"; done
mount -t tmpfs tmpfs /run
exec {virtiofsd} --socket-path=fs.sock -o source="$PWD/root" -o cache=always
"""


def missing_programs() -> list[str]:
    """What a machine needs and this host does not have."""
    return [each for each in (QEMU, VIRTIOFSD, BUSYBOX, MODPROBE) if shutil.which(each) is None]


def run(
    kernel: Kernel,
    command: list[str],
    places: list[Path],
    folder: Path,
    processors: int,
    limit_s: float,
    silence_s: float,
) -> str:
    """Runs a command as the guest's process 1 until it powers off; returns how that ended.

    `places` are the folders of the host that the command needs besides its system.
    ``console`` and ``report`` in `folder`, the files behind the two serial ports, grow. Returns ""
    for a machine that powered off, else the reason: it is stopped after `limit_s`, or when it
    reported nothing for `silence_s`.  Raises UnavailableError if the machine cannot be started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _make_initramfs(kernel, command, folder)
    (folder / "fs.sock").unlink(missing_ok=True)
    with open(folder / "host.log", "w") as log:
        files = _start(_share([kernel.root, *places]), folder, log.fileno())
        try:
            _wait_for_socket(files, folder)
            machine = _start(_qemu(kernel, processors), folder, log.fileno())
            try:
                return _watch(machine, folder, limit_s, silence_s)
            finally:
                _end(machine)
        finally:
            _end(files)
            (folder / "fs.sock").unlink(missing_ok=True)
            (folder / "initramfs").unlink(missing_ok=True)


def _share(places: list[Path]) -> list[str]:
    script = _SHARE.format(virtiofsd=VIRTIOFSD)
    return ["unshare", "--mount", "bash", "-c", script, "share", *map(str, places)]


def _qemu(kernel: Kernel, processors: int) -> list[str]:
    # -cx16: with QEMU 7.2's plain "max" kernels from 6.18 on panic.
    return [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", str(processors),
        "-m", f"{MEMORY_MIB}M",
        "-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on",
        "-numa", "node,memdev=memory",
        "-chardev", "socket,id=files,path=fs.sock",
        "-device", f"vhost-user-fs-pci,chardev=files,tag={_TAG}",
        "-chardev", "file,id=console,path=console,append=on", "-serial", "chardev:console",
        "-chardev", "file,id=report,path=report,append=on", "-serial", "chardev:report",
        "-kernel", str(kernel.image), "-initrd", "initramfs",
        "-append", "console=ttyS0 quiet oops=panic panic=-1",
    ]  # fmt: skip


def _start(command: list[str], folder: Path, log: int) -> "subprocess.Popen[bytes]":
    """Starts a process of low priority that the kernel kills when this process ends. Its working
    folder is `folder`, which keeps the socket's path below the limit of 108 bytes.
    """
    return subprocess.Popen(
        ["nice", "setpriv", "--pdeathsig", "KILL", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_socket(files: "subprocess.Popen[bytes]", folder: Path) -> None:
    socket = folder / "fs.sock"
    wait_until(lambda: socket.exists() or files.poll() is not None, _START_SECONDS, pause_s=0.05)
    if not socket.exists():
        log = (folder / "host.log").read_text().strip().splitlines() or ["no answer"]
        raise UnavailableError(f"{VIRTIOFSD} does not work here: {log[-1]}")


def _watch(
    machine: "subprocess.Popen[bytes]", folder: Path, limit_s: float, silence_s: float
) -> str:
    started = heard = time.monotonic()
    said = 0
    while (now := time.monotonic()) < started + limit_s:
        report = folder / "report"
        size = report.stat().st_size if report.exists() else 0
        if size != said:
            said, heard = size, now
        elif now > heard + silence_s:
            return f"nothing reported for {silence_s:.0f} s, stopped"
        try:
            code = machine.wait(1)
        except subprocess.TimeoutExpired:
            continue
        if code == 0:
            return ""
        log = (folder / "host.log").read_text().strip().splitlines() or ["it said nothing"]
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UnavailableError(f"{QEMU}: {ended}: {log[-1]}")
    return f"not finished after {limit_s:.0f} s, stopped"


def _make_initramfs(kernel: Kernel, command: list[str], folder: Path) -> None:
    tree = folder / "initramfs.d"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "dev", "modules", "host", "memory", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin" / "busybox")
    modules = _early_modules(kernel)
    for module in modules:
        (tree / "modules" / module.stem).write_bytes(
            lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()
        )
    init = tree / "init"
    init.write_text(
        _INIT.format(
            modules=" ".join(module.stem for module in modules),
            tag=_TAG,
            command=shlex.join(command),
        )
    )
    init.chmod(0o755)
    names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with open(folder / "initramfs", "wb") as archive:
        subprocess.run(
            [BUSYBOX, "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=archive,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    shutil.rmtree(tree)


def _early_modules(kernel: Kernel) -> list[Path]:
    """The files of the early modules that are not built in, in the order of loading."""
    files: dict[Path, None] = {}
    for name in _EARLY_MODULES:
        shown = subprocess.run(
            [MODPROBE, "-d", str(kernel.root), "-S", kernel.release, "--show-depends", name],
            capture_output=True,
            text=True,
            check=False,
        )
        if shown.returncode:
            raise UnavailableError(f"{kernel.release} has no {name}: {shown.stderr.strip()}")
        for line in shown.stdout.splitlines():
            kind, _, path = line.partition(" ")
            if kind == "insmod":
                files[Path(path.strip())] = None
    return list(files)
