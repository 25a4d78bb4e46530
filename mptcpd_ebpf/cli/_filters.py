# SPDX-License-Identifier: BSD-3-Clause
"""The filter options that ``ls``, ``monitor`` and ``history`` share, and the namespace they look
into."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mptcpd_ebpf.core import filters

F = TypeVar("F", bound=Callable[..., Any])


def _read(reader: Callable[[str], Any]) -> Callable[..., Any]:
    """A callback that reads an option's value; a ValueError is a usage error."""

    def callback(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            return reader(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


token = click.option(
    "--token",
    metavar="TOKEN",
    callback=_read(filters.token_prefix),
    help="Only this connection; the first digits of its token are enough.",
)
token_argument = click.argument(
    "token", metavar="[TOKEN]", required=False, callback=_read(filters.token_prefix)
)
address = click.option(
    "--address",
    metavar="ADDRESS",
    callback=_read(filters.network),
    help="Only what has this address at either end; a network such as 10.0.0.0/8 too.",
)
interface = click.option(
    "--interface", metavar="NAME", help="Only this local interface; * and ? as in a shell."
)
process = click.option(
    "--process", metavar="PID|NAME", help="Only connections of this process; * and ? in a name."
)
state = click.option("--state", metavar="STATE", help="Only what is in this state.")


def connections(function: F) -> F:
    """All filters, for commands that show connections."""
    for option in (state, process, interface, address):
        function = option(function)
    return function


def duration(text: str) -> int | None:
    """Seconds of ``90s``, ``15m``, ``2h`` or ``7d``; None if the text is no duration."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = text[:-1], text[-1:]
    return int(number) * units[unit] if number.isdecimal() and unit in units else None


def duration_or_time(text: str) -> float:
    """Seconds since 1970 of a moment: ``90s``, ``15m``, ``2h``, ``7d`` ago, or a local time.

    Raises ValueError.
    """
    ago = duration(text)
    if ago is not None:
        return time.time() - ago
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"):
        try:
            return time.mktime(time.strptime(text, form))
        except ValueError:
            continue
    for form in ("%H:%M:%S", "%H:%M"):
        try:
            clock = time.strptime(text, form)
        except ValueError:
            continue
        today = time.localtime()
        return time.mktime((*today[:3], *clock[3:6], *today[6:8], -1))
    raise ValueError(
        f"{text!r}: give a duration such as 90s, 15m, 2h or 7d, or a time such as 03:25 or "
        "'2026-01-31 03:25'"
    )


since = click.option(
    "--since",
    metavar="TIME",
    default="1d",
    show_default=True,
    callback=_read(duration_or_time),
    help="From when on: 15m, 2h, 7d ago, 03:25 today, or '2026-01-31 03:25'.",
)
