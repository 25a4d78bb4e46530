# SPDX-License-Identifier: BSD-3-Clause
"""Shared by all commands: exit codes, signals, logging, capabilities, files at run time."""
