# SPDX-License-Identifier: BSD-3-Clause
"""Markup that was not rendered is found in a page, and rendered or quoted markup is not."""

import pytest

from scripts.check_docs import raw_markup


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("<p>.. option:: --x</p>", [(1, ".. option::")]),
        ("<p>fine</p>\n<p>see :ref:`there`</p>", [(2, ":ref:")]),
        ("```python\n", [(1, "```")]),
        ("<pre>\n.. option:: --x\n</pre><code>:ref:`x`</code>", []),
        ("<p>10:30: a time, and a.b:c</p>", []),
    ],
)
def test_raw_markup(page: str, found: list[tuple[int, str]]) -> None:
    assert list(raw_markup(page)) == found
