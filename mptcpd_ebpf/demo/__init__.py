# SPDX-License-Identifier: BSD-3-Clause
"""The main job, shown: the same traffic and faults without and with path management."""
