# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf`` and ``python -m mptcpd_ebpf``: the command line, begun with what is in a hurry.

A daemon answers signals before the imports, which take most of its start.
"""

import sys
from typing import NoReturn

from mptcpd_ebpf import early_signals


def main() -> NoReturn:
    """Runs the command line and exits."""
    if sys.argv[1:2] == ["daemon"]:
        early_signals.take()
    from mptcpd_ebpf import cli

    cli.main()


if __name__ == "__main__":
    main()
