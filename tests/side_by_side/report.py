# SPDX-License-Identifier: BSD-3-Clause
"""The generated part of docs/migrating-from-mptcpd.md: an index by complaint, and a table.

It is generated from the scenarios' expectations, which their test compares with both daemons.
"""

from tests.side_by_side.scenario import ELSEWHERE, Fault, Scenario, Seen
from tests.side_by_side.stage import Manager
from tests.tree import ROOT

DOCUMENT = ROOT / "docs" / "migrating-from-mptcpd.md"
BEGIN = "<!-- side by side: made by python -m tests.side_by_side --write -->"
END = "<!-- side by side: end -->"


def words(seen: Seen, other: Seen) -> str:
    """One outcome, without what is usual or equal in the `other`."""
    parts = []
    if seen.exit_code or other.exit_code:
        parts.append(_ending(seen.exit_code))
    if not seen.exit_code:
        parts.append(", ".join(seen.table) or "no endpoint")
    # The lines that the other lacks are enough.
    said = [line for line in seen.said if line not in other.said] or seen.said
    parts += ["; ".join(words) for words in (seen.wire, said) if words]
    if seen.path_manager != other.path_manager:
        parts.append(f"path manager {seen.path_manager}")
    if seen.limits != other.limits and seen.limits:
        parts.append("limits {} subflows, {} addresses".format(*seen.limits))
    if seen.unresponsive:
        parts.append("no reaction to later events")
    return "<br>".join(parts)


def _ending(exit_code: int) -> str:
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def rows(scenarios: list[Scenario]) -> list[str]:
    """A line of the table per scenario."""
    lines = []
    for number, scenario in enumerate(scenarios, 1):
        seen: dict[Manager, Seen] = {
            "mptcpd": scenario.expected("mptcpd"),
            "ours": scenario.expected("ours"),
        }
        theirs = words(seen["mptcpd"], seen["ours"])
        ours = words(seen["ours"], seen["mptcpd"]) if scenario.theirs else "the same"
        name = f"`{scenario.name}`" if scenario.name.startswith("-") else scenario.name
        lines.append(f"| {number} | {name} | {theirs} | {ours} | {scenario.better} |")
    return lines


def index(scenarios: list[Scenario]) -> list[str]:
    """A line per complaint: its scenarios, and what ours does."""
    lines = []
    kind = ""
    for fault in Fault:
        played = [(n, s) for n, s in enumerate(scenarios, 1) if fault in s.faults]
        numbers = ", ".join(str(number) for number, _ in played) or "–"
        answers = "; ".join(dict.fromkeys(s.better for _, s in played if s.better))
        same = fault.kind == kind
        kind = fault.kind
        lines.append(
            f"| {'' if same else kind} | {fault.complaint} | {numbers} | "
            f"{answers or ELSEWHERE[fault]} |"
        )
    return lines


def generated(scenarios: list[Scenario]) -> str:
    """The text between the marks."""
    return "\n".join(
        [
            "| complaint of mptcpd's users | | scenarios | mptcpd-ebpf |",
            "|---|---|---|---|",
            *index(scenarios),
            "",
            "| | scenario | mptcpd | mptcpd-ebpf | why they differ |",
            "|---|---|---|---|---|",
            *rows(scenarios),
        ]
    )


def parts(text: str) -> tuple[str, str, str]:
    """The text before, between and after the marks.  Raises ValueError without them."""
    head, begin, rest = text.partition(BEGIN + "\n")
    body, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT}: no lines {BEGIN!r} and {END!r}")
    return head, body.strip("\n"), tail
