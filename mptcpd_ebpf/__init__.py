# SPDX-License-Identifier: BSD-3-Clause
"""Keeps Multipath TCP connections on good paths."""

__version__ = "0.1.0"
