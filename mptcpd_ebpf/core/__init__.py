# SPDX-License-Identifier: BSD-3-Clause
"""The pure core: events in, commands out; no sockets, no clock, no files."""
