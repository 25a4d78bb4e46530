# SPDX-License-Identifier: BSD-3-Clause
"""The exit codes of all commands, and the exception that carries one to `main`.

The numbers follow sysexits.h where it has one.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes, the same for all commands."""

    OK = 0
    CHECK_FAILED = 1
    """`doctor` found something that fails."""
    USAGE = 64
    """The command line is wrong (EX_USAGE)."""
    NO_DAEMON = 69
    """No daemon answers at the control socket (EX_UNAVAILABLE)."""
    NO_MPTCP = 71
    """The kernel has no MPTCP, or lacks the requested feature (EX_OSERR)."""
    HELD = 75
    """Another daemon holds the namespace or the control path (EX_TEMPFAIL)."""
    PRIVILEGE = 77
    """Not allowed (EX_NOPERM)."""
    CONFIG = 78
    """The configuration is wrong (EX_CONFIG)."""
    NOT_EXECUTABLE = 126
    """`exec` found the program but cannot run it, as shells count it."""
    NOT_FOUND = 127
    """`exec` found no such program, as shells count it."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it."""


class Failure(Exception):  # noqa: N818 - a reported problem, not a bug
    """A problem to be reported to the user: what happened, where, and the fix.

    `main` prints the text after ``mptcpd-ebpf: `` and exits with `exit_code`.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code
