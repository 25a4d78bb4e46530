# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf`` and ``python -m mptcpd_ebpf``: the command line, begun with what is in a hurry.

A daemon and a trace answer signals before the imports, which take most of their start.
"""

import sys
from typing import NoReturn

from mptcpd_ebpf import early_signals


def main() -> NoReturn:
    """Runs the command line and exits."""
    if sys.argv[1:2] in (["daemon"], ["trace"]):
        early_signals.take(hangup=sys.argv[1] == "daemon")
    from mptcpd_ebpf import cli

    cli.main()


if __name__ == "__main__":
    main()
