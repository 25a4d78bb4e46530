# SPDX-License-Identifier: BSD-3-Clause
"""How the kernel is heard and given orders without BPF; docs/kernel.md has the map."""
