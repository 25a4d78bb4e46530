# SPDX-License-Identifier: BSD-3-Clause
"""The daemon: moves events from the kernel to the engine and commands back."""
