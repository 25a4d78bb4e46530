# SPDX-License-Identifier: BSD-3-Clause
"""The options of a TCP header (RFC 9293, 3.1), split; their meaning is not interpreted here."""

END_OF_LIST, NO_OPERATION, MPTCP_KIND = 0, 1, 30
"""Kinds; 30 is MPTCP's (RFC 8684, 3)."""


def split_options(area: bytes) -> tuple[list[bytes], bytes]:
    """The well-formed options at the head of an options area, and the rest.

    Each begins with its kind.  The rest begins at the end-of-list, or at the first option whose
    length cannot be right.
    """
    options = []
    at = 0
    while at < len(area) and area[at] != END_OF_LIST:
        if area[at] == NO_OPERATION:
            length = 1
        else:
            length = area[at + 1] if at + 1 < len(area) else 0
            if length < 2 or at + length > len(area):
                break
        options.append(area[at : at + length])
        at += length
    return options, area[at:]
