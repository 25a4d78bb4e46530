# SPDX-License-Identifier: BSD-3-Clause
"""Fails if a page of the built documentation shows markup that was not rendered.

``scripts/check_docs.py FOLDER`` names each file and line.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_RAW = re.compile(
    r"\.\. [a-z-]+::"  # a directive of reStructuredText
    r"|(?<![\w`:]):(?:ref|doc|option|prog|nested|class|func|meth|mod):(?=[`\w ])"
    r"|^```"
)
_VERBATIM = re.compile(r"<(pre|code)\b.*?</\1>", re.S)


def raw_markup(page: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each piece of markup outside verbatim text."""
    shown = _VERBATIM.sub(lambda found: "\n" * found[0].count("\n"), page)
    for number, line in enumerate(shown.splitlines(), start=1):
        if found := _RAW.search(line):
            yield number, found[0]


def main(folder: Path) -> int:
    """1 if there is any."""
    failed = False
    for file in sorted(folder.rglob("*.html")):
        for number, text in raw_markup(file.read_text()):
            failed = True
            print(f"{file}:{number}: {text!r} was not rendered", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
