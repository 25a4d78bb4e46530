# SPDX-License-Identifier: BSD-3-Clause
"""The lab's exceptions, and what is wrong with plain data before it becomes one."""

from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
"""The way to a value: keys and list positions."""

Problem = tuple[KeyPath, str]
"""Where in plain data something is wrong, and what."""


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
    """The error for a command that there is not: UnavailableError for the lab's own tools."""
    package = _PACKAGES.get(command)
    if package is None:
        return LabError(f"{command}: no such command")
    return UnavailableError(f"{command}: no such command; Debian's package {package} has it")


class LabError(Exception):
    """Something about a lab that a person can put right; the message says what."""


class UnavailableError(LabError):
    """This machine cannot hold a lab (privilege, kernel, missing tool)."""
