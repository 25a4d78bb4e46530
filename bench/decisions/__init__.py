# SPDX-License-Identifier: BSD-3-Clause
"""Do decisions pay? Path managers compared over many conditions: ``python -m bench decisions``.

cells.py      the conditions: paths, traffic, faults; plain data
arms.py       the path managers that are compared
measure.py    one run of one arm in one cell
records.py    raw results as JSON lines under build/bench-decisions/
estimates.py  means with intervals
goodput.py    what follows from the records of transfers
latency.py    … of messages under faults, and of quiet paths
report.py     tables with the targets, into docs/decisions.md
pictures.py   the same as SVG
command.py    the command line
"""
