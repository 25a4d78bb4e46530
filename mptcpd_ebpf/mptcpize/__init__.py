# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP for programs that use TCP.

Three ways, from the lightest to the widest: `environment` runs one program with the
preload library, `units` gives that environment to a systemd service, `mptcpify` makes the kernel
do it with a BPF program, for static binaries too.
"""
