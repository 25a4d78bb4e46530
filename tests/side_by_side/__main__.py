# SPDX-License-Identifier: BSD-3-Clause
"""Prints, or with ``--write`` puts into docs/migrating-from-mptcpd.md, the scenarios' table.

`pytest tests/side_by_side` proves what it says.
"""

import sys

from tests.side_by_side.report import BEGIN, DOCUMENT, END, generated, parts
from tests.side_by_side.scenarios import SCENARIOS

body = generated(SCENARIOS)
if sys.argv[1:] == ["--write"]:
    head, _, tail = parts(DOCUMENT.read_text())
    DOCUMENT.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}")
else:
    print(body)
