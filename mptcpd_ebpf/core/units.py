# SPDX-License-Identifier: BSD-3-Clause
"""Times are nanoseconds everywhere in the core; these make them readable."""

MS = 1_000_000
SECOND = 1000 * MS
