# SPDX-License-Identifier: BSD-3-Clause
"""The demo: the same traffic and faults without and with path management."""
