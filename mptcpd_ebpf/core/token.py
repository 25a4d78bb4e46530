# SPDX-License-Identifier: BSD-3-Clause
"""Tokens as people write and read them: eight hexadecimal digits (RFC 8684, 3.2)."""

import re
from typing import Any


def token_text(token: int) -> str:
    """A token as it is shown everywhere: eight hexadecimal digits."""
    return f"{token:08x}"


_TOKEN = re.compile(r"(?:0x)?([0-9a-fA-F]{1,8})")


def token_of(text: Any) -> int:
    """The token that people write: up to eight hexadecimal digits.  Raises ValueError."""
    found = _TOKEN.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{text!r} is no token: give the eight hexadecimal digits that 'ls' shows")
    return int(found[1], 16)
