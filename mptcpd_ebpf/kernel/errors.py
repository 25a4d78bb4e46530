# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong with the kernel, as exceptions whose text is for users. Each names the place,
the cause and the fix in one line; the commands print it and choose their exit code by the class.
The names state the problem, to which "…Error" would add nothing.
"""

import errno
import os


class KernelError(Exception):
    """Base of all: the kernel cannot or does not do what was requested."""


class MptcpMissing(KernelError):  # noqa: N818
    """This kernel has no MPTCP."""


class NotPermitted(KernelError):  # noqa: N818
    """The process lacks a capability, or the place is read-only."""


class NamespaceTaken(KernelError):  # noqa: N818
    """Another daemon holds this network namespace."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class NetlinkRefused(KernelError):  # noqa: N818
    """A netlink request was answered with an error."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.errno = code


def errno_words(code: int) -> str:
    """``EINVAL (Invalid argument)``."""
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"
