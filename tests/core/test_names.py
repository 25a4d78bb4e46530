# SPDX-License-Identifier: BSD-3-Clause
"""Names from outside: whatever they hold, terminals, logs and JSON get printable text."""

import json
import unicodedata

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mptcpd_ebpf.core.names import name_of, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"python3", "python3"),
        (b"python3\0\0rest", "python3"),
        ("Zürich/日本 1".encode(), "Zürich/日本 1"),
        (b"user\\x2dslice", "user\\x2dslice"),
        (b"\x1b[2Jx\n\ty", "\\x1b[2Jx\\x0a\\x09y"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b\N{LINE SEPARATOR}".encode(), "a\\u202eb\\u2028"),
        ("\N{TAG SPACE}".encode(), "\\U000e0020"),
        ("日".encode()[:2], "\\xe6\\x97"),
        (b"\xc2\x9b1m", "\\x9b1m"),
    ],
)
def test_what_is_not_printable_is_escaped(raw: bytes, shown: str) -> None:
    assert name_of(raw) == shown


@given(st.binary())
@example(bytes(range(256)))
def test_any_bytes_become_one_printable_line_that_json_holds(raw: bytes) -> None:
    text = name_of(raw)
    assert not any(unicodedata.category(char).startswith("C") for char in text)
    assert len(text.splitlines()) <= 1
    assert msgspec.json.decode(msgspec.json.encode(text)) == text
    assert json.loads(json.dumps(text)) == text
    assert name_of(text.encode()) == text


@given(st.text(st.characters()), st.sampled_from(["", "\n", "\n\t"]))
def test_text_keeps_what_is_printable_and_what_is_asked_for(text: str, keep: str) -> None:
    shown = printable(text, keep)
    assert all(char.isprintable() or char in keep for char in shown)
    kept = "".join(char for char in text if char.isprintable() or char in keep)
    remaining = iter(shown)
    assert all(char in remaining for char in kept), "in the same order"
    shown.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_printable_text_is_as_it_was(text: str) -> None:
    assert printable(text) == text
