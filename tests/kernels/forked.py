# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin: programs of ours start as forks of the tests' process, which has imported them.

An emulated processor takes 2 to 4 seconds to start Python and import a daemon, more than
most tests take for all the rest.  With this plugin subprocess.Popen does what it does up to
execve(2) - pipes, environment, session, namespace - and then the child runs the module or
the text that it was to start, instead of another Python.  It is a child of the tests as it
would have been, with its own pid, signals and exit code.  What is not Python of ours, or
starts through a program that is more than a change of the network namespace, is started.
"""

import asyncio
import atexit
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import io
import logging
import os
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
_MODULE = "mptcpd_ebpf"
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_PR_SET_NAME = 15  # include/uapi/linux/prctl.h
_EARLY = (
    "mptcpd_ebpf.__main__",
    "mptcpd_ebpf.service",
    "mptcpd_ebpf.lab.keeper",
    "mptcpd_ebpf.lab.traffic.process",
)
_libc = ctypes.CDLL(None, use_errno=True)
_execute = subprocess.Popen.__init__


def pytest_configure(config: pytest.Config) -> None:
    for name in (*_EARLY, *_commands()):
        importlib.import_module(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around every test but those marked ``starts_anew``, whose subject is the start itself."""
    if item.get_closest_marker("starts_anew"):
        return (yield)
    subprocess.Popen.__init__ = _start  # type: ignore[method-assign]
    try:
        return (yield)
    finally:
        subprocess.Popen.__init__ = _execute  # type: ignore[method-assign]


def _commands() -> list[str]:
    folder = Path(importlib.import_module("mptcpd_ebpf.cli").__file__ or "").parent
    return [f"mptcpd_ebpf.cli.{each.stem}" for each in folder.glob("[a-z]*.py")]


def _start(self: "subprocess.Popen[Any]", args: Any, *rest: Any, **options: Any) -> None:
    inside = None if rest or "preexec_fn" in options else as_fork(args)
    if inside is None or not options.get("close_fds", True):
        _execute(self, args, *rest, **options)
        return
    kept = [0, 1, 2, *options.get("pass_fds", ())]
    environment = options.get("env")

    def become() -> None:
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        _become(inside, kept)

    _execute(self, args, *rest, preexec_fn=become, **options)


Inside = tuple[list[Callable[[], None]], Callable[[], None]]
"""Changes of the network namespace, then what to run."""


def as_fork(args: Any) -> Inside | None:
    """What a command comes to if a fork can do it; None for one that has to be started.

    That is ours after any number of ``unshare --net --`` and ``nsenter --net=FILE --``.
    """
    if not isinstance(args, Sequence) or isinstance(args, str):
        return None
    words = [os.fspath(word) for word in args]
    changes: list[Callable[[], None]] = []
    while len(words) > 3 and words[2] == "--":
        if words[:2] == ["unshare", "--net"]:
            changes.append(_new_namespace)
        elif words[0] == "nsenter" and words[1].startswith("--net="):
            changes.append(lambda file=words[1].removeprefix("--net="): _enter(file))  # type: ignore[misc]
        else:
            return None
        words = words[3:]
    match words:
        case [program, *arguments] if program == PROGRAM:
            argv = [program, *arguments]
            return changes, lambda: _program(argv)
        case [python, "-c", text, *arguments] if python == sys.executable:
            return changes, lambda: _text(text, ["-c", *arguments])
        case [python, "-m", module, *arguments] if (
            python == sys.executable and module.partition(".")[0] == _MODULE
        ):
            return changes, lambda: _module(module, arguments)
    return None


def _new_namespace() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def _enter(file: str) -> None:
    namespace = os.open(file, os.O_RDONLY)
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns to {file}")
    os.close(namespace)


def _program(argv: list[str]) -> None:
    sys.argv = argv
    importlib.import_module("mptcpd_ebpf.__main__").main()


def _text(text: str, argv: list[str]) -> None:
    sys.argv = argv
    sys.path.insert(0, "")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(text, "<string>", "exec"), main.__dict__)


def _module(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    # Not runpy, which pytest's import hook does not know: the modules that we start have a main.
    importlib.import_module(module).main()


def _become(inside: Inside, kept: list[int]) -> NoReturn:
    """In the child, in place of execve(2): what is this process's own begins anew, and it runs."""
    code = 1
    try:
        _forget(kept)
        changes, run = inside
        for change in changes:
            change()
        code = _code(run)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def _code(run: Callable[[], None]) -> int:
    """The exit code of a Python that runs this; minus a signal's number if that ends it."""
    try:
        run()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return (ending.code or 0) & 0xFF
        print(ending.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    return 0


def _forget(kept: list[int]) -> None:
    """Gives up what execve(2) would have ended: files, handlers, and what the tests set up."""
    # Objects of the tests hold numbers of closed files, which others get: none may be collected.
    gc.freeze()
    faulthandler.disable()
    atexit._clear()
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept:
            with contextlib.suppress(OSError):  # the listing's own is closed already
                os.close(number)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.stdin = sys.__stdin__ = _stream(0, "r")
    sys.stdout = sys.__stdout__ = _stream(1, "w")
    sys.stderr = sys.__stderr__ = _stream(2, "w")
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    asyncio._set_running_loop(None)
    _libc.prctl(_PR_SET_NAME, b"python", 0, 0, 0)


def _stream(number: int, mode: str) -> io.TextIOWrapper:
    binary = open(number, f"{mode}b", closefd=False)
    errors = "backslashreplace" if number == 2 else "surrogateescape"
    return io.TextIOWrapper(
        binary,
        encoding="utf-8",
        errors=errors,
        line_buffering=number == 2,
        write_through="PYTHONUNBUFFERED" in os.environ,
    )
