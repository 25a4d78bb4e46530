# SPDX-License-Identifier: BSD-3-Clause
"""Names that come from outside, as text that a terminal, a log and JSON can hold.

A process chooses its own name, and whoever creates an interface or a cgroup chooses theirs: with
escape sequences, line ends or bytes that are not UTF-8.
"""


def name_of(raw: bytes) -> str:
    """A name that the kernel reports, up to its NUL: printable text.

    ``\\x1b`` and the like stand for what is not printable or not UTF-8; printable text is as it is.
    """
    return printable(raw.partition(b"\0")[0].decode("utf-8", "surrogateescape"))


def printable(text: str, keep: str = "") -> str:
    """`text` with escapes in place of control and format characters, line ends and lone surrogates,
    except the characters in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else _escaped(ord(char)) for char in text
    )


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, by Python's surrogateescape
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
