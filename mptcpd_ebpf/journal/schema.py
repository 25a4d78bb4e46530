# SPDX-License-Identifier: BSD-3-Clause
"""The tables of the journal.  docs/journal.md describes them for people who query the file.

`VERSION` is incremented when a table or column changes its meaning or is removed.  Times are
seconds since 1970 (UTC), tokens are eight hexadecimal digits, addresses are text.  What is not
known is NULL, never 0.
"""

VERSION = 1
"""``PRAGMA user_version`` of the file."""

APPLICATION_ID = 0x4D50544A
"""``PRAGMA application_id``: "MPTJ"."""

COUNTERS = (
    "segments_out",
    "bytes_sent",
    "bytes_acked",
    "segments_in",
    "bytes_received",
    "retransmits",
    "lost",
    "stalled_us",
    "holes_us",
)
"""Columns of `subflows` and `samples` that count from the opening of the subflow, named after the
fields of `core.measurement.Measurement`."""

FIGURES = ("srtt_us", "min_rtt_us", "rttvar_us", *COUNTERS)
"""Columns of `subflows` that hold its newest measurement, in the end the final one."""

_COUNTER_COLUMNS = ",\n    ".join(f"{name} INTEGER" for name in COUNTERS)
_FIGURE_COLUMNS = ",\n    ".join(f"{name} INTEGER" for name in FIGURES)

TABLES = f"""
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started REAL NOT NULL,
    last_written REAL NOT NULL,
    ended REAL,
    version TEXT NOT NULL,
    records_dropped INTEGER NOT NULL DEFAULT 0,
    alarms_left_out INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE connections (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    token TEXT NOT NULL,
    local TEXT NOT NULL,
    remote TEXT NOT NULL,
    server_side INTEGER,
    opened REAL,
    closed REAL,
    pid INTEGER,
    comm TEXT,
    bytes_acked INTEGER,
    bytes_received INTEGER,
    reinjected INTEGER
);
CREATE TABLE subflows (
    id INTEGER PRIMARY KEY,
    connection INTEGER NOT NULL,
    token TEXT NOT NULL,
    local TEXT NOT NULL,
    remote TEXT NOT NULL,
    local_ip TEXT NOT NULL,
    remote_ip TEXT NOT NULL,
    interface TEXT,
    initial INTEGER NOT NULL,
    opened REAL,
    closed REAL,
    failed INTEGER NOT NULL DEFAULT 0,
    backup INTEGER,
    error INTEGER,
    reset_reason INTEGER,
    {_FIGURE_COLUMNS}
);
CREATE TABLE samples (
    subflow INTEGER NOT NULL,
    t REAL NOT NULL,
    step_s INTEGER NOT NULL DEFAULT 0,
    srtt_us INTEGER,
    srtt_max_us INTEGER,
    cwnd INTEGER,
    in_flight INTEGER,
    {_COUNTER_COLUMNS},
    PRIMARY KEY (subflow, t)
) WITHOUT ROWID;
CREATE TABLE alarms (
    id INTEGER PRIMARY KEY,
    t REAL NOT NULL,
    subflow INTEGER,
    token TEXT NOT NULL,
    local TEXT NOT NULL,
    remote TEXT NOT NULL,
    interface TEXT,
    kind TEXT NOT NULL,
    value INTEGER NOT NULL,
    threshold INTEGER NOT NULL,
    srtt_us INTEGER,
    in_flight INTEGER
);
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    t REAL NOT NULL,
    plugin TEXT NOT NULL,
    cause_event TEXT NOT NULL,
    cause_rule TEXT NOT NULL,
    action TEXT NOT NULL,
    description TEXT NOT NULL,
    token TEXT,
    local TEXT,
    remote TEXT,
    local_ip TEXT,
    remote_ip TEXT,
    reason TEXT NOT NULL,
    routine INTEGER NOT NULL,
    refused TEXT,
    answered REAL,
    errno INTEGER,
    explanation TEXT
);
CREATE TABLE paths (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    t REAL NOT NULL,
    plugin TEXT NOT NULL,
    interface TEXT,
    local_ip TEXT NOT NULL,
    remote_ip TEXT NOT NULL,
    state TEXT,
    reason TEXT NOT NULL,
    lasted_s REAL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    t REAL NOT NULL,
    kind TEXT NOT NULL,
    what TEXT NOT NULL,
    interface TEXT,
    ip TEXT,
    detail TEXT
);
CREATE INDEX connections_by_token ON connections (token);
CREATE INDEX subflows_by_connection ON subflows (connection);
CREATE INDEX subflows_by_token ON subflows (token);
CREATE INDEX subflows_by_closing ON subflows (closed);
CREATE INDEX samples_by_age ON samples (step_s, t);
CREATE INDEX alarms_by_time ON alarms (t);
CREATE INDEX decisions_by_time ON decisions (t);
"""
