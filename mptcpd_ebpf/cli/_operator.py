# SPDX-License-Identifier: BSD-3-Clause
"""What the commands for the path managers share: arguments, options, output."""

import errno
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.control.schema import CarriedOut
from mptcpd_ebpf.core.address import canonical, parse_sockaddr
from mptcpd_ebpf.core.token import token_of, token_text
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

F = TypeVar("F", bound=Callable[..., Any])

_NOT_ALLOWED = (errno.EPERM, errno.EACCES)


class WholeNumber(click.IntRange):
    """click's own type under a name that its error messages can show."""

    name = "whole number"


address_ids = WholeNumber(0, 255)
ports = WholeNumber(1, 65535)


# --- how arguments are read


def address(value: str) -> str:
    """An IP address, canonical."""
    try:
        return canonical(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no IP address") from None


def address_and_port(value: str) -> str:
    """``a.b.c.d:port`` or ``[ip6]:port``."""
    try:
        return str(parse_sockaddr(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def hexadecimal_token(value: str) -> str:
    """A connection's token, in the hexadecimal digits that ``ls`` shows."""
    try:
        return token_text(token_of(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


token = click.argument("token", type=hexadecimal_token, metavar="TOKEN")
local = click.argument("local", type=address_and_port, metavar="LOCAL:PORT")
remote = click.argument("remote", type=address_and_port, metavar="REMOTE:PORT")

our_address = click.argument("ip", type=address, metavar="ADDRESS")

interface = click.option(
    "--dev", "interface", metavar="NAME", help="Use the address on this interface alone."
)

reason = click.option("--reason", metavar="TEXT", help="Why: shown in the log.")


def reaching(function: F) -> F:
    """The options that choose between the daemon and the kernel."""
    return _options.control(_options.direct(function))


def ordering(function: F) -> F:
    """The options of a command that changes something."""
    return reaching(reason(_options.as_json(function)))


def finish(done: CarriedOut, as_json: bool) -> None:
    """Prints what became of a command.  Raises `Failure` if it was not carried out."""
    if as_json:
        click.echo(json.dumps(done))
    if done["explanation"] is not None:
        who = "the daemon refused it: " if done["errno"] is None else ""
        away = "; --direct goes past the daemon" if done["errno"] is None else ""
        raise Failure(
            f"{done['action']}: {who}{done['explanation']}{away}",
            ExitCode.PRIVILEGE if done["errno"] in _NOT_ALLOWED else ExitCode.CHECK_FAILED,
        )
    if not as_json:
        click.echo(f"{done['action']}: done by the {done['through']}")
    if done["caveat"] is not None:
        click.echo(f"mptcpd-ebpf: {done['caveat']}", err=True)
