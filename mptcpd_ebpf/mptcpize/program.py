# SPDX-License-Identifier: BSD-3-Clause
"""Replaces this process by another program, without side effects of the Python interpreter.

The program replaces this process (execve(2)): it keeps the pid, the open descriptors
and the parent, so signals, exit code, job control, socket activation and systemd's
notifications are its own.  Two effects of the interpreter are undone first: the signals
that Python ignores, and the LC_CTYPE that it may add to the environment (PEP 538).
"""

import errno
import os
import shutil
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)

_SHELL = "/bin/sh"

_ELF64 = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr, elf(5)
_SEGMENT64 = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_PT_INTERP = 3


def original_environment() -> dict[str, str]:
    """The environment that this process was started with.

    `os.environ` may differ: in the C locale Python sets LC_CTYPE before it reads it.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            block = file.read()
    except OSError:
        return dict(os.environ)
    pairs = (entry.partition(b"=") for entry in block.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def find(name: str, environment: Mapping[str, str]) -> str:
    """The file that a shell would run for `name`.

    Raises `Failure` with the shells' codes: 127 if there is none, 126 if it cannot be run.
    """
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    if found:
        return found
    if os.sep in name and os.path.exists(name):
        raise Failure(f"{name}: is not an executable file", ExitCode.NOT_EXECUTABLE)
    where = "" if os.sep in name else " in PATH"
    raise Failure(f"{name}: no such program{where}", ExitCode.NOT_FOUND)


def become(path: str, arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replaces this process by `path`; `arguments` start with the program's own name.

    A file without a ``#!`` line goes to the shell, as with execvp(3).
    Raises `Failure` if the kernel refuses it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        try:
            os.execve(path, [*arguments], environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve(_SHELL, [_SHELL, path, *arguments[1:]], environment)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", ExitCode.NOT_EXECUTABLE) from None


def preload_obstacle(path: str) -> str | None:
    """Why the dynamic loader will not preload anything into `path`; None if it will.

    Checks what ld.so(8) checks: set-user-ID and file capabilities, and whether the ELF file
    names a loader.  Scripts and foreign formats count as reachable.
    """
    with suppress(OSError):
        mode = os.stat(path).st_mode
        if mode & 0o6000 and os.geteuid() != 0:
            return "it is set-user-ID or set-group-ID, and ld.so then ignores preloads"
        if "security.capability" in os.listxattr(path):
            return "it has file capabilities, and ld.so then ignores preloads"
    with suppress(OSError, struct.error), open(path, "rb") as file:
        header = _ELF64.unpack(file.read(_ELF64.size))
        if not header[0].startswith(b"\x7fELF"):
            return None
        if not header[0].startswith(b"\x7fELF\x02"):
            return "it is a 32-bit program, and the preload library is not"
        offset, size, count = header[5], header[9], header[10]
        file.seek(offset)
        kinds = [_SEGMENT64.unpack_from(file.read(size))[0] for _ in range(count)]
        if _PT_INTERP not in kinds:
            return "it is statically linked, and no loader preloads anything"
    return None
