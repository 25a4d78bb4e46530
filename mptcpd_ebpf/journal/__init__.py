# SPDX-License-Identifier: BSD-3-Clause
"""The journal: what happened, in an SQLite file that outlives the daemon."""
