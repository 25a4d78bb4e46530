# SPDX-License-Identifier: BSD-3-Clause
"""``python -m mptcpd_ebpf``: the same as the command ``mptcpd-ebpf``."""

import sys

from mptcpd_ebpf.cli import main

sys.exit(main())
