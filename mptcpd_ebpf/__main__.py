# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf`` and ``python -m mptcpd_ebpf``: the command line, begun with what is in a hurry.

A daemon and a trace answer signals before the imports, which take most of their start.
"""

import resource
import sys
from typing import TYPE_CHECKING, NoReturn

from mptcpd_ebpf.runtime import startup_signals
from mptcpd_ebpf.runtime.exit_codes import ExitCode

if TYPE_CHECKING:
    from mptcpd_ebpf.config.settings import Settings


def main() -> NoReturn:
    """Runs the command line and exits."""
    if sys.argv[1:2] == ["daemon"]:
        _require_memory()
    if sys.argv[1:2] in (["daemon"], ["trace"]):
        startup_signals.take(hangup=sys.argv[1] == "daemon")
    from mptcpd_ebpf import cli

    cli.main(serve=_serve)


MEMORY_NEEDED = 128 << 20
"""Bytes of address space: 60 MiB for the start, the rest for some thousands of connections."""


def _require_memory() -> None:
    """Exits with a message, since without memory an import can fail with any exception."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= soft < MEMORY_NEEDED:
        print(
            f"mptcpd-ebpf: at most {soft >> 20} MiB of address space are allowed, and the daemon "
            f"needs {MEMORY_NEEDED >> 20}: raise the limit (ulimit -v; a service: LimitAS=)",
            file=sys.stderr,
        )
        sys.exit(ExitCode.PRIVILEGE)


def _serve(settings: "Settings") -> int:
    """Commands may not import the daemon, so the one that runs it gets it from here."""
    from mptcpd_ebpf.daemon import service

    return service.run(settings)


if __name__ == "__main__":
    main()
