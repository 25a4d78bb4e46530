# SPDX-License-Identifier: BSD-3-Clause
"""The control API: what a running daemon answers, and how commands ask it."""
