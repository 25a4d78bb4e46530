# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf`` and ``python -m mptcpd_ebpf``: the command line, begun with what is in a hurry.

A daemon and a trace answer signals before the imports, which take most of their start.
"""

import sys
from typing import TYPE_CHECKING, NoReturn

from mptcpd_ebpf.runtime import startup_signals

if TYPE_CHECKING:
    from mptcpd_ebpf.config.settings import Settings


def main() -> NoReturn:
    """Runs the command line and exits."""
    if sys.argv[1:2] in (["daemon"], ["trace"]):
        startup_signals.take(hangup=sys.argv[1] == "daemon")
    try:
        from mptcpd_ebpf import cli

        cli.main(serve=_serve)
    except MemoryError:
        sys.exit("mptcpd-ebpf: out of memory: raise the limit (ulimit -v; a service: MemoryMax=)")


def _serve(settings: "Settings") -> int:
    """Commands may not import the daemon, so the one that runs it gets it from here."""
    from mptcpd_ebpf.daemon import service

    return service.run(settings)


if __name__ == "__main__":
    main()
