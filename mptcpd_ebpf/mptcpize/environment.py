# SPDX-License-Identifier: BSD-3-Clause
"""The environment in which a program's TCP sockets become MPTCP ones.

Two variables do it.  ``LD_PRELOAD`` names the preload library (preload/mptcp_preload.c)
for programs that call libc's socket(); ``GODEBUG=multipathtcp=1`` is for Go programs,
which call the kernel directly (net/dial.go: 1 is listeners and dialers).  What the
variables held before is kept: other preloads stay, and stay in front.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from mptcpd_ebpf.runtime import resources
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

PRELOAD = "LD_PRELOAD"
GODEBUG = "GODEBUG"
DEBUG = "MPTCPD_EBPF_PRELOAD_DEBUG"
"""Makes the preload library report each socket on stderr."""

_GO_SETTING = "multipathtcp"
_PRELOAD_SEPARATORS = re.compile(r"[ :]+")  # ld.so(8)


def library() -> Path:
    """The preload library, as a path that LD_PRELOAD can hold.

    Raises `Failure` if it is missing, or if ld.so would misread its path: blanks and colons
    are separators, ``$`` starts a token such as ``$ORIGIN``, and there is no escape.
    """
    try:
        path = resources.preload_library()
    except FileNotFoundError as error:
        raise Failure(str(error), ExitCode.CHECK_FAILED) from None
    if re.search(r"[\s:$]", str(path)):
        raise Failure(
            f"{path}: LD_PRELOAD cannot hold a path with a blank, ':' or '$'; "
            "install mptcpd-ebpf under another folder",
            ExitCode.CHECK_FAILED,
        )
    return path


def with_preload(value: str, library: str) -> str:
    """`value` of LD_PRELOAD with `library` last, once.

    Last, so that another wrapper of socket() comes first and calls ours as the next one.
    """
    others = [name for name in _PRELOAD_SEPARATORS.split(value) if name and name != library]
    return ":".join([*others, library])


def with_multipath(value: str) -> str:
    """`value` of GODEBUG with ``multipathtcp=1``, in place of another setting of it."""
    settings = [item for item in value.split(",") if item and item.split("=")[0] != _GO_SETTING]
    return ",".join([*settings, f"{_GO_SETTING}=1"])


def for_program(base: Mapping[str, str], library: str, *, debug: bool = False) -> dict[str, str]:
    """A copy of `base` with which a program uses MPTCP."""
    changed = dict(base)
    changed[PRELOAD] = with_preload(base.get(PRELOAD, ""), library)
    changed[GODEBUG] = with_multipath(base.get(GODEBUG, ""))
    if debug:
        changed[DEBUG] = "1"
    return changed
