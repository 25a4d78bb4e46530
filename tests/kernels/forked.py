# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin: the project's programs run as forks of the test process, which has imported
them.

An emulated processor takes 2 to 4 seconds to start Python and import a daemon, more than the rest
of most tests. With this plugin subprocess.Popen works as usual up to execve(2) - pipes, session,
folder, namespace - and then the child runs the program or text in the forked interpreter. It is a
child of the tests with its own pid, signals and exit code. Other programs, and those started
through a program that does more than change the network namespace, are executed.
"""

import asyncio
import atexit
import contextlib
import ctypes
import faulthandler
import functools
import gc
import importlib
import io
import logging
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

PROGRAM = str(Path(sys.executable).parent / "mptcpd-ebpf")
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_PR_SET_NAME = 15  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)
_start: Any = subprocess.Popen.__init__

Steps = list[Callable[[], None]]
"""Changes of the network namespace, and then the program."""


def pytest_configure() -> None:
    """Imports the modules that the programs import."""
    for name in ("__main__", "plugin", "lab.traffic.process"):
        importlib.import_module(f"mptcpd_ebpf.{name}")
    for package in ("cli", "control", "core", "daemon", "kernel", "trace"):
        folder = importlib.import_module(f"mptcpd_ebpf.{package}").__path__
        for module in pkgutil.iter_modules(folder, f"mptcpd_ebpf.{package}."):
            importlib.import_module(module.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around every test but those marked ``starts_anew``, whose subject is the start itself."""
    if item.get_closest_marker("starts_anew"):
        return (yield)
    with forking():
        return (yield)


@contextlib.contextmanager
def forking() -> Generator[None]:
    """Within, subprocess.Popen forks where it can."""
    subprocess.Popen.__init__ = _fork_or_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = _start  # type: ignore[method-assign]


def _fork_or_start(self: "subprocess.Popen[Any]", args: Any, *rest: Any, **options: Any) -> None:
    steps = steps_of(args)
    plain = not rest and "preexec_fn" not in options and options.get("close_fds", True)
    if steps and plain:
        kept = {0, 1, 2, *options.get("pass_fds", ())}
        options["preexec_fn"] = functools.partial(_become, steps, kept, options.get("env"))
    _start(self, args, *rest, **options)


def steps_of(args: Any) -> Steps:
    """The plan of a command that a fork can run; None for one that has to be executed. A fork can
    run the project's programs after any number of ``unshare --net --`` and ``nsenter --net=FILE
    --``.
    """
    if not isinstance(args, Sequence) or isinstance(args, str | bytes):
        return []
    words = [os.fspath(word) for word in args]
    steps: Steps = []
    while words[2:3] == ["--"]:
        if words[:2] == ["unshare", "--net"]:
            steps.append(_new_namespace)
        elif words[0] == "nsenter" and words[1].startswith("--net="):
            steps.append(functools.partial(_enter, words[1].removeprefix("--net=")))
        else:
            return []
        words = words[3:]
    match words:
        case [program, *_] if program == PROGRAM:
            return [*steps, functools.partial(_module, "mptcpd_ebpf.__main__", words)]
        case [python, "-c", text, *arguments] if python == sys.executable:
            return [*steps, functools.partial(_text, text, ["-c", *arguments])]
        case [python, "-m", module, *_] if python == sys.executable:
            if module.startswith("mptcpd_ebpf."):
                return [*steps, functools.partial(_module, module, words[2:])]
    return []


def _new_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def _enter(file: str) -> None:
    namespace = os.open(file, os.O_RDONLY)
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns to {file}")
    os.close(namespace)


def _module(module: str, argv: list[str]) -> None:
    """Not through runpy, which pytest's import hook does not support: the programs have a
    main()."""
    sys.argv = argv
    importlib.import_module(module).main()


def _text(text: str, argv: list[str]) -> None:
    sys.argv = argv
    sys.path.insert(0, "")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(text, "<string>", "exec"), main.__dict__)


def _become(steps: Steps, kept: set[int], environment: dict[str, str] | None) -> NoReturn:
    """In the child, in place of execve(2)."""
    code = 1
    with contextlib.suppress(BaseException):
        _forget(kept)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        code = _run(steps)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _run(steps: Steps) -> int:
    """The exit code of a Python that does this; minus a signal's number if that ends it."""
    try:
        for step in steps:
            step()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return (ending.code or 0) & 0xFF
        print(ending.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forget(kept: set[int]) -> None:
    """Releases what execve(2) would have ended: files, handlers, and the tests' state."""
    # Objects of the tests hold numbers of closed files, which others get: none may be collected.
    gc.freeze()
    faulthandler.disable()
    atexit._clear()
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
        with contextlib.suppress(OSError):  # the one that was listed is closed already
            os.close(number)
    for each in signal.valid_signals():
        if callable(signal.getsignal(each)):
            signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.stdin = _stream(0, "r", "surrogateescape")
    sys.stdout = _stream(1, "w", "surrogateescape")
    sys.stderr = _stream(2, "w", "backslashreplace")
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    asyncio._set_running_loop(None)
    _libc.prctl(_PR_SET_NAME, b"python", 0, 0, 0)


def _stream(number: int, mode: str, errors: str) -> io.TextIOWrapper:
    binary: Any = io.open(number, f"{mode}b", closefd=False)  # noqa: SIM115, UP020 - it stays open
    return io.TextIOWrapper(
        binary,
        encoding="utf-8",
        errors=errors,
        line_buffering=number == 2,
        write_through="PYTHONUNBUFFERED" in os.environ,
    )
