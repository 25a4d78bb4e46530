# SPDX-License-Identifier: BSD-3-Clause
"""Compiles BPF programs with bcc, without kernel headers and in a child process.

bcc (the distribution's ``python3-bpfcc``; what PyPI calls bcc is another package) brings
clang as a library and requires a kernel source folder, of which it includes eight files.
``bpf/bcc`` replaces that folder, so a program that compiles here compiles on every host, with
or without ``linux-headers``.  A program that reads the kernel's structures declares them
itself, at the offsets given by BTF (`bcc_layouts`).

Importing bcc takes about 120 MiB.  A long-running process compiles in a child process and
keeps only the instructions (`compile_functions`); a short-lived tool may import bcc itself
(`open_bcc`).
"""

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mptcpd_ebpf.probes.bcc_layouts import kernel_layouts
from mptcpd_ebpf.probes.btf import BtfError
from mptcpd_ebpf.runtime.resources import bpf_sources

_KERNEL_SOURCE = "BCC_KERNEL_SOURCE"
_COMPILE_SECONDS = 300
"""Time limit of a compilation; an emulated machine needs most of a minute."""
_MESSAGE_LINES = 5
_environment = threading.Lock()


class BccUnavailable(Exception):  # noqa: N818 — a state of the machine, not a bug
    """bcc is missing or fails; the text says why and what to do."""


class CompileJob(msgspec.Struct, frozen=True):
    """What the child process compiles."""

    text: str
    flags: list[str]
    functions: list[str]
    declares: str | None = None


def _bcc() -> Any:
    """bcc's module.  Raises BccUnavailable."""
    try:
        import bcc
    except (ImportError, OSError) as error:
        raise BccUnavailable(
            f"bcc cannot be imported ({error}): install the distribution's python3-bpfcc and "
            "run under its own Python"
        ) from None
    if not hasattr(bcc, "BPF"):
        raise BccUnavailable(
            f"{bcc.__file__} is not the BPF compiler collection but an unrelated package of "
            "that name: uninstall it and install the distribution's python3-bpfcc"
        )
    return bcc


@contextmanager
def _stand_in() -> Iterator[None]:
    """Points bcc at the stand-in headers, and restores the working folder, which bcc changes."""
    with _environment:
        before, folder = os.environ.get(_KERNEL_SOURCE), os.getcwd()
        os.environ[_KERNEL_SOURCE] = str(bpf_sources() / "bcc")
        try:
            yield
        finally:
            os.chdir(folder)
            if before is None:
                del os.environ[_KERNEL_SOURCE]
            else:
                os.environ[_KERNEL_SOURCE] = before


def open_bcc(text: str, flags: Sequence[str] = ()) -> Any:
    """A ``bcc.BPF`` of a program; its compiler's messages go to stderr.

    flags: of clang, ``-DNAME=VALUE`` and the like.

    Raises BccUnavailable.
    """
    bcc = _bcc()
    # The program's own definitions override those that bcc puts before it.
    arguments = [*flags, "-Wno-macro-redefined"]
    with _stand_in():
        try:
            return bcc.BPF(text=text.encode(), cflags=arguments)
        except Exception as error:  # bcc raises nothing more special
            raise BccUnavailable(f"bcc refuses the program: {error}") from None


def compile_functions(
    text: str,
    functions: Sequence[str],
    defines: Mapping[str, int] | None = None,
    declares: Path | None = None,
) -> dict[str, bytes]:
    """The instructions of each of `functions`, not yet loaded; bcc's memory is not kept.

    `text` names maps by ``bpf_pseudo_fd(1, FD)``: there are no relocations.  It includes
    files of ``bpf/`` by their names.
    declares: a BPF object that declares the kernel structures and fields that the program
    reads; their layouts are put before it (`bcc_layouts`).

    Raises BccUnavailable, with the compiler's first message.
    """
    flags = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    job = CompileJob(
        text, [f"-I{bpf_sources()}", *flags], list(functions), str(declares) if declares else None
    )
    try:
        done = subprocess.run(
            [sys.executable, "-IP", "-m", __spec__.name],
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=_COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BccUnavailable(f"bcc's compiler: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        # A compiler's error is the first line, one of ours the last.
        kept = [line for line in said if "error:" in line][:_MESSAGE_LINES] or said[-1:]
        raise BccUnavailable("; ".join(kept) or f"bcc's compiler ended with {done.returncode}")
    return msgspec.json.decode(done.stdout, type=dict[str, bytes])


def main() -> None:
    """The child process: reads a `CompileJob`, writes the instructions of its functions."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=CompileJob)
    try:
        text = job.text
        if job.declares is not None:
            text = kernel_layouts(Path(job.declares)) + text
        module = open_bcc(text, job.flags)
        codes = {name: base64.b64encode(module.dump_func(name)) for name in job.functions}
    except (BccUnavailable, BtfError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.write(msgspec.json.encode({n: c.decode() for n, c in codes.items()}).decode())


if __name__ == "__main__":
    main()
