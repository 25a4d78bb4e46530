# SPDX-License-Identifier: BSD-3-Clause
"""The lines of the trace tools: one module for each tool, one struct for each kind of line."""
