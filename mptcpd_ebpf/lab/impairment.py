# SPDX-License-Identifier: BSD-3-Clause
"""What a path does to packets, in one direction, as plain data.

Both backends take the same record: netem (tc-netem(8)) and the NFQUEUE emulator.
Jitter is uniform in delay ± jitter, which is netem's meaning without a distribution
table.  The order of things on the way: loss, delay, then the rate limit with its
queue (a token bucket, tc-tbf(8)).
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from mptcpd_ebpf.lab.errors import LabError

Direction = Literal["up", "down", "both"]
"""up: from a path's first host (the client) to its second; down: the way back."""


class Burst(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gilbert-Elliott: two states, each with its own loss; all in per cent per packet."""

    enter_percent: float
    """Chance to go from the good state to the bad one."""
    leave_percent: float
    """Chance to go back; 100 / leave_percent is the mean burst in packets."""
    loss_percent: float = 100.0
    """Loss in the bad state."""
    good_loss_percent: float = 0.0


class Impairment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction of a path.  The default does nothing."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Each packet's delay is uniform in delay ± jitter; at most `delay_ms`."""
    reorder: bool = False
    """Jitter may put a packet before an earlier one; without it order is kept."""
    loss_percent: float = 0.0
    burst: Burst | None = None
    """Loss in bursts; takes the place of `loss_percent`."""
    rate_mbit: float | None = None
    """Mbit/s; None is unlimited."""
    queue_ms: float = 50.0
    """How much time's worth of packets the queue before the rate limit holds."""


FIELDS = frozenset(Impairment.__struct_fields__)


def changed(base: Impairment, changes: dict[str, Any], *, where: str) -> Impairment:
    """`base` with `changes`, checked.

    Raises LabError naming `where` and the field for an unknown field, a wrong type or
    a value out of range.
    """
    unknown = sorted(set(changes) - FIELDS)
    if unknown:
        raise LabError(f"{where}: a path has no {unknown[0]!r}; it has {', '.join(sorted(FIELDS))}")
    try:
        value = msgspec.convert({**_fields(base), **changes}, Impairment)
    except msgspec.ValidationError as error:
        raise LabError(f"{where}: {error}") from None
    check(value, where=where)
    return value


def check(value: Impairment, *, where: str) -> None:
    """Raises LabError for values that no path can have."""
    burst = value.burst
    percents = {"loss_percent": value.loss_percent}
    if burst is not None:
        percents |= {f"burst.{name}": getattr(burst, name) for name in burst.__struct_fields__}
        if value.loss_percent:
            raise LabError(f"{where}: give loss_percent or burst, not both")
    for name, percent in percents.items():
        if not 0 <= percent <= 100:
            raise LabError(f"{where}: {name} is {percent:g}, not in 0…100")
    for name in ("delay_ms", "jitter_ms"):
        if not 0 <= getattr(value, name) <= 60_000:
            raise LabError(f"{where}: {name} is {getattr(value, name):g}, not in 0…60000")
    if value.jitter_ms > value.delay_ms:
        raise LabError(
            f"{where}: jitter_ms {value.jitter_ms:g} is above delay_ms {value.delay_ms:g}: "
            "a packet cannot arrive before it was sent"
        )
    if value.rate_mbit is not None and not 0.01 <= value.rate_mbit <= 100_000:
        raise LabError(f"{where}: rate_mbit is {value.rate_mbit:g}, not in 0.01…100000")
    if not 1 <= value.queue_ms <= 60_000:
        raise LabError(f"{where}: queue_ms is {value.queue_ms:g}, not in 1…60000")


def _fields(value: Impairment) -> dict[str, Any]:
    return {name: getattr(value, name) for name in FIELDS}
