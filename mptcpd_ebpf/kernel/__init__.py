# SPDX-License-Identifier: BSD-3-Clause
"""Talks to the kernel without BPF: netlink, socket diagnosis, sysctls. docs/kernel.md gives an
overview."""
