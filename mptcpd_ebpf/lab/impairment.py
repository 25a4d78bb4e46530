# SPDX-License-Identifier: BSD-3-Clause
"""The impairment of a path in one direction, as plain data.

Both backends use the same record: netem (tc-netem(8)) and the NFQUEUE emulator.  With jitter
the delay is uniform in delay ± jitter, as in netem without a distribution table.  To each packet
apply first loss, then the delay, then the rate limit with its queue (a token bucket,
tc-tbf(8)).
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from mptcpd_ebpf.lab.errors import KeyPath, LabError, Problem, in_words

Direction = Literal["up", "down", "both"]
"""up: from a path's first host (the client) to its second; down: the reverse."""


class Burst(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gilbert-Elliott loss: two states, each with its own loss; all in per cent per packet."""

    enter_percent: float
    """Probability of a change from the good state to the bad one."""
    leave_percent: float
    """Probability of the change back; 100 / leave_percent is the mean burst in packets."""
    loss_percent: float = 100.0
    """Loss in the bad state."""
    good_loss_percent: float = 0.0


class Impairment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The impairment of one direction of a path.  The default is none."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Each packet's delay is uniform in delay ± jitter; at most `delay_ms`."""
    reorder: bool = False
    """With it jitter may reorder packets; without it the order is kept."""
    loss_percent: float = 0.0
    burst: Burst | None = None
    """Loss in bursts, instead of `loss_percent`."""
    rate_mbit: float | None = None
    """Mbit/s; None is unlimited."""
    queue_ms: float = 50.0
    """Capacity of the queue before the rate limit, in milliseconds at that rate."""


FIELDS = frozenset(Impairment.__struct_fields__)

_RANGES = {
    "delay_ms": (0, 60_000),
    "jitter_ms": (0, 60_000),
    "loss_percent": (0, 100),
    "rate_mbit": (0.01, 100_000),
    "queue_ms": (1, 60_000),
}


def problems(value: Impairment) -> Iterator[Problem]:
    """The invalid values, each with its field."""
    for name, (low, high) in _RANGES.items():
        yield from _out_of_range((name,), getattr(value, name), low, high)
    if value.burst is not None:
        for name in value.burst.__struct_fields__:
            yield from _out_of_range(("burst", name), getattr(value.burst, name), 0, 100)
        if value.loss_percent:
            yield ("burst",), "give loss_percent or burst, not both"
    if value.jitter_ms > value.delay_ms:
        reason = f"{value.jitter_ms:g} is above delay_ms, {value.delay_ms:g}"
        yield ("jitter_ms",), f"{reason}: a packet cannot arrive before it is sent"


def _out_of_range(path: KeyPath, value: float | None, low: float, high: float) -> Iterator[Problem]:
    if value is not None and not low <= value <= high:
        yield path, f"{value:g} is not in {low:g}…{high:.0f}"


def judged(base: Impairment, changes: dict[str, Any]) -> tuple[Impairment, list[Problem]]:
    """`base` with `changes`, and its problems.

    With an unknown field or a wrong type the result is `base`, and nothing else is checked.
    """
    wrong: list[Problem] = []
    for name, value in changes.items():
        if name not in FIELDS:
            wrong.append(((name,), f"a path has no such field; it has {', '.join(sorted(FIELDS))}"))
            continue
        try:
            msgspec.convert({name: value}, Impairment)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at ")[0]
            wrong.append(((name,), f"{reason[:1].lower()}{reason[1:]}"))
    if wrong:
        return base, wrong
    value = msgspec.convert({**_fields(base), **changes}, Impairment)
    return value, list(problems(value))


def changed(base: Impairment, changes: dict[str, Any], *, where: str) -> Impairment:
    """`base` with `changes`, checked.

    Raises LabError naming `where` and each field that is unknown, of a wrong type or out
    of range.
    """
    value, wrong = judged(base, changes)
    if wrong:
        raise LabError(f"{where}: {in_words(wrong)}")
    return value


def _fields(value: Impairment) -> dict[str, Any]:
    return {name: getattr(value, name) for name in FIELDS}
