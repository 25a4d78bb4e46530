# SPDX-License-Identifier: BSD-3-Clause
"""The lines of the trace tools: one struct for each kind, its text, and its file format."""
