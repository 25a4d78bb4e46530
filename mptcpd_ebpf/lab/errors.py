# SPDX-License-Identifier: BSD-3-Clause
"""The lab's exceptions, and problems found in plain data."""

from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
"""Where a value is in plain data: keys and list positions."""

Problem = tuple[KeyPath, str]
"""A mistake in plain data: where it is, and its reason."""


def in_words(problems: Iterable[Problem]) -> str:
    """Problems as one line: ``burst.enter_percent: 120 is not in 0…100; …``."""
    return "; ".join(f"{'.'.join(map(str, path))}: {reason}" for path, reason in problems)


_PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "ss": "iproute2",
    "iptables": "iptables",
    "iptables-restore": "iptables",
    "ip6tables": "iptables",
    "ip6tables-restore": "iptables",
    "nft": "nftables",
}
"""The Debian packages of the tools that the lab itself runs."""


def no_such_command(command: str) -> "LabError":
    """The error for a missing command: UnavailableError for the lab's own tools."""
    package = _PACKAGES.get(command)
    if package is None:
        return LabError(f"{command}: no such command")
    return UnavailableError(f"{command}: no such command; install Debian's package {package}")


class LabError(Exception):
    """A problem with a lab that the user can fix; the message says what and how."""


class UnavailableError(LabError):
    """This machine cannot run a lab (privilege, kernel, missing tool)."""
