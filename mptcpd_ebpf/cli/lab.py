# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf lab``: hosts, paths and faults in namespaces, to try things by hand."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_SAMPLE = """\
paths:
  - {name: fibre, delay_ms: 10, rate_mbit: 20}
  - {name: lte, delay_ms: 40, rate_mbit: 20}
"""


def _lab_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from mptcpd_ebpf.lab.keeper import RequestError, check_name

    try:
        check_name(value)
    except RequestError as error:
        raise click.BadParameter(str(error)) from None
    return value


_name = click.option(
    "-n",
    "--name",
    default="lab",
    show_default=True,
    callback=_lab_name,
    help="Which lab, where several are up.",
)
_direction = click.option(
    "--direction",
    type=click.Choice(["up", "down", "both"]),
    default="both",
    show_default=True,
    help="up: from the client to the server.",
)


@contextmanager
def _failures(failed: ExitCode = ExitCode.CHECK_FAILED) -> Iterator[None]:
    """The lab's errors as messages with exit codes."""
    from mptcpd_ebpf.lab.errors import LabError, UnavailableError
    from mptcpd_ebpf.lab.keeper import NotUpError, RequestError, TakenError

    if os.geteuid() != 0:
        raise Failure("a lab is root's: it makes network namespaces", ExitCode.PRIVILEGE)
    try:
        yield
    except NotUpError as error:
        raise Failure(str(error), ExitCode.NO_DAEMON) from None
    except UnavailableError as error:
        no_mptcp = not os.path.exists("/proc/sys/net/mptcp/enabled")
        code = ExitCode.NO_MPTCP if no_mptcp else ExitCode.CHECK_FAILED
        raise Failure(str(error), code) from None
    except TakenError as error:
        raise Failure(f"{error}: name another with --name", ExitCode.HELD) from None
    except RequestError as error:
        raise Failure(str(error), ExitCode.USAGE) from None
    except LabError as error:
        raise Failure(str(error), failed) from None


@click.group()
def command() -> None:
    """Hosts, paths and faults in network namespaces.

    'up' builds a lab: a client, a server, and a router per path; 'set' and 'fault'
    change its paths while traffic runs; 'down' removes everything.

    \b
    Try it:
      mptcpd-ebpf lab up
      mptcpd-ebpf lab exec client ping -c3 10.1.2.2
      mptcpd-ebpf lab set fibre loss_percent=30
      mptcpd-ebpf lab fault fibre blackhole
      mptcpd-ebpf lab fault fibre heal
      mptcpd-ebpf lab down
    """


@command.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@_name
def up(file: str | None, name: str) -> None:
    """Build the lab of a YAML FILE, and start its schedule.

    Without FILE it has two paths, fibre (10 ms each way) and lte (40 ms), 20 Mbit/s
    each.  docs/lab.md explains the keys.
    """
    with _failures(failed=ExitCode.CONFIG):
        from mptcpd_ebpf.lab.file import loads, read

        try:
            topology = loads(_SAMPLE, "the default lab") if file is None else read(file)
        except OSError as error:
            raise Failure(f"{file}: {error.strerror}", ExitCode.CONFIG) from None
    with _failures():
        from mptcpd_ebpf.lab import keeper

        keeper.up(name, topology)
        _print(keeper.ask(name, {"show": True}))


@command.command("set")
@click.argument("path")
@click.argument("changes", nargs=-1, required=True, metavar="FIELD=VALUE...")
@_direction
@_name
def set_(path: str, changes: tuple[str, ...], direction: str, name: str) -> None:
    """Change a PATH (or bottleneck) at once.

    Fields: delay_ms, jitter_ms, reorder, loss_percent, burst, rate_mbit, queue_ms; the
    values are JSON, null takes a limit away.
    """
    values = dict(_change(change) for change in changes)
    _step(name, {"at": 0, "path": path, "set": values, "direction": direction})


def _change(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is not FIELD=VALUE")
    try:
        return field, json.loads(value)
    except ValueError:
        raise click.UsageError(f"{text!r}: {value!r} is no JSON value") from None


@command.command()
@click.argument("path")
@click.argument("kind", metavar="FAULT")
@_direction
@click.option(
    "--end",
    type=click.Choice(["client", "server"]),
    default="client",
    show_default=True,
    help="Whose carrier or address.",
)
@click.option("--option", "options", multiple=True, help="For drop-mptcp: add-addr, mp-join, …")
@_name
def fault(
    path: str, kind: str, direction: str, end: str, options: tuple[str, ...], name: str
) -> None:
    """Do something worse to a PATH, or heal it.

    \b
    FAULT is one of
      blackhole                             swallows every packet
      carrier-off, carrier-on               the interface at --end loses its carrier
      remove-address, restore-address       the addresses at --end
      remove-interface, restore-interface   the client's interface
      router-off, router-on                 the path's router
      expire-nat                            the NAT forgets its bindings
      strip-mptcp                           MPTCP options are removed from all packets
      drop-mptcp                            packets with --option are dropped
      inject-resets                         what talks on the path gets a RST
      heal                                  everything back to what was declared
    """
    step = {"at": 0, "path": path, "fault": kind, "direction": direction, "end": end}
    _step(name, step | {"options": list(options)})


def _step(name: str, step: dict[str, Any]) -> None:
    with _failures():
        from mptcpd_ebpf.lab import keeper

        if step["path"].isdecimal():
            step["path"] = int(step["path"])
        keeper.ask(name, {"step": step})


@command.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, with a schema number.")
@_name
def show(as_json: bool, name: str) -> None:
    """Show a lab: its hosts' namespaces, its paths, and what they do to packets.

    The exit code is 1 if paths are not impaired as shown, because their emulator died.
    """
    with _failures():
        from mptcpd_ebpf.lab import keeper

        record = keeper.ask(name, {"show": True})
    if as_json:
        click.echo(json.dumps(record))
    else:
        _print(record)
    _must_work(record)


def _must_work(record: dict[str, Any]) -> None:
    if record["trouble"]:
        raise Failure(record["trouble"], ExitCode.CHECK_FAILED)


@command.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@_name
def exec_(host: str, argv: tuple[str, ...], name: str) -> NoReturn:
    """Run a COMMAND on a HOST of the lab."""
    with _failures():
        from mptcpd_ebpf.lab import keeper, namespaces

        record = keeper.ask(name, {"show": True})
        hosts = {h["name"]: h["namespace"] for h in record["hosts"] + record["routers"]}
        if host not in hosts:
            raise keeper.RequestError(f"there is no host {host!r}; there are {', '.join(hosts)}")
        _must_work(record)
        with namespaces.entered(hosts[host]):
            try:
                os.execvp(argv[0], argv)
            except FileNotFoundError:
                code = ExitCode.NOT_FOUND
                raise Failure(f"{argv[0]}: no such command", code) from None
            except OSError as error:
                code = ExitCode.NOT_EXECUTABLE
                raise Failure(f"{argv[0]}: {error.strerror}", code) from None


@command.command()
@_name
def down(name: str) -> None:
    """Take a lab down, with every process in it."""
    with _failures():
        from mptcpd_ebpf.lab import keeper

        keeper.ask(name, {"down": True})


@command.command()
def clean() -> None:
    """Remove what labs of ended processes left behind. Every new lab does this too. Labs in use
    are not touched.
    """
    with _failures():
        from mptcpd_ebpf.lab.namespaces import remove_leftovers

        for name in remove_leftovers():
            click.echo(f"removed {name}")


# --- the picture of `show`


def _print(record: dict[str, Any]) -> None:
    click.echo(f"backend  {record['backend']}")
    for host in record["hosts"]:
        click.echo(f"host     {host['name']:<15} namespace {host['namespace']}")
    for path in record["paths"]:
        near, far = (", ".join(ips) for ips in path["addresses"])
        through = f" through {path['bottleneck']}" if path["bottleneck"] else ""
        nat = ", NAT" if path["nat"] else ""
        ends = f"{path['between'][0]} {near} to {path['between'][1]} {far}"
        click.echo(f"path     {path['name']:<15} {ends}{through}{nat}")
        for words in _fault_words(path["faults"]):
            click.echo(f"           {words}")
        _print_link(path)
    for neck in record["bottlenecks"]:
        click.echo(f"shared   {neck['name']}")
        _print_link(neck)
    schedule = record["schedule"]
    if schedule is not None:
        error = f": {schedule['error']}" if schedule["error"] else ""
        click.echo(f"schedule {schedule['done']} of {schedule['steps']} steps done{error}")


def _fault_words(faults: dict[str, Any]) -> Iterator[str]:
    if faults["router_off"]:
        yield "ROUTER OFF"
    if faults["interface_removed"]:
        yield "INTERFACE REMOVED at the client"
    for end in faults["carrier_off"]:
        yield f"CARRIER OFF at the {end}"
    for end in faults["address_removed"]:
        yield f"ADDRESS REMOVED at the {end}"


def _print_link(link: dict[str, Any]) -> None:
    if link["up"] == link["down"]:
        click.echo(f"           both   {_words(link['up'])}")
    else:
        for direction in ("up", "down"):
            click.echo(f"           {direction:<6} {_words(link[direction])}")


def _burst(burst: dict[str, float]) -> str:
    lost, otherwise = burst["loss_percent"], burst["good_loss_percent"]
    words = f"bursts (enter {burst['enter_percent']:g} %, leave {burst['leave_percent']:g} %"
    words += f", loss {lost:g} %" if lost != 100 else ""
    return words + (f", otherwise {otherwise:g} %)" if otherwise else ")")


_WORDS: list[tuple[str, Callable[[Any], str]]] = [
    ("delay_ms", lambda value: f"delay {value:g} ms"),
    ("jitter_ms", lambda value: f"± {value:g} ms"),
    ("reorder", lambda _: "reordering"),
    ("loss_percent", lambda value: f"loss {value:g} %"),
    ("burst", _burst),
    ("rate_mbit", lambda value: f"rate {value:g} Mbit/s"),
    ("queue_ms", lambda value: f"queue {value:g} ms"),
    ("blackhole", lambda _: "BLACKHOLE"),
    ("strip_mptcp", lambda _: "MPTCP STRIPPED"),
    ("drop_mptcp", lambda value: f"DROPPED: {', '.join(value)}"),
]


def _words(impairment: dict[str, Any]) -> str:
    shown = dict(impairment)
    if shown["rate_mbit"] is None:
        shown["queue_ms"] = None  # the queue is the rate limit's
    words = [say(shown[field]) for field, say in _WORDS if shown.get(field)]
    return ", ".join(words) or "unimpaired"
