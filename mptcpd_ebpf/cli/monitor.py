# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf monitor``: events as they happen, one line each.

With a daemon the lines come from its event stream, which includes decisions; without, from the
kernel's path managers and the local network.
"""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import click

from mptcpd_ebpf.cli import _filters, _operator, _options
from mptcpd_ebpf.control import client, dispatch, views
from mptcpd_ebpf.control.schema import SCHEMA
from mptcpd_ebpf.core.filters import Filter, Network
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


@click.command()
@_filters.token
@_filters.address
@_filters.interface
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, each with a schema.")
@_options.netns_option
@_operator.reaching
def command(
    token: str | None,
    address: Network | None,
    interface: str | None,
    as_json: bool,
    control: str | None,
    direct: bool,
) -> None:
    """Show events as they happen, until Ctrl-C.

    Connections, subflows and announced addresses; links, addresses and default routes;
    from a daemon also alarms, what its plugins decide and why.
    """
    path = dispatch.control_path(control, direct)
    only = Filter(token=token, address=address, interface=interface)
    for record in _from_kernel() if path is None else _from_daemon(path):
        if not fits(record, only):
            continue
        at = time.time()
        if as_json:
            click.echo(json.dumps({"schema": SCHEMA, "t": round(at, 6), **record}))
        else:
            click.echo(f"{_clock(at)}  {line(record)}")


def _from_daemon(path: str) -> Iterator[dict[str, Any]]:
    for name, data in client.stream(path, "/v1/events"):
        if name == "event":
            yield _flat(data)
        elif name == "decision":
            yield {"event": "Decision", **data}
    raise Failure(f"the daemon at {path} ended", ExitCode.NO_DAEMON)


def _from_kernel() -> Iterator[dict[str, Any]]:
    from mptcpd_ebpf import api

    try:
        with api.PmEvents.open() as connections, api.NetworkMonitor() as network:
            click.echo("listening to the kernel", err=True)
            for event in api.follow(connections, network):
                yield views.event(event)
    except api.KernelError as error:
        raise Failure(str(error), dispatch.exit_code(error)) from None


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Adds the name of the subflow, which the measurement of an event holds."""
    measurement = record.get("measurement")
    if isinstance(measurement, dict):
        return {**record, **{name: measurement[name] for name in ("token", "local", "remote")}}
    return record


def fits(record: dict[str, Any], only: Filter) -> bool:
    """Whether an event or decision is asked for; a decision names its parts in `command`."""
    command = record.get("command")
    named = {**record, **(command if isinstance(command, dict) else {})}
    addresses = [named.get(name) for name in _ADDRESSES]
    return (
        only.fits_token(named.get("token"))
        and only.fits_address(each for each in addresses if isinstance(each, str))
        and (only.interface is None or only.fits_interface(_interface(named)))
    )


_ADDRESSES = ("local", "remote", "ip", "local_ip", "remote_ip", "gateway")


def _interface(named: dict[str, Any]) -> str | None:
    """The interface that an event is about, by its name or index."""
    if named.get("event") == "LinkChanged":
        return str(named["name"])
    if named.get("interface"):
        return str(named["interface"])
    index = named.get("if_index") or (named.get("measurement") or {}).get("if_index")
    try:
        return socket.if_indextoname(index) if index else None
    except OSError:
        return None  # it is gone


# --- the picture


def _clock(at: float) -> str:
    # Truncated, not rounded, so that no event seems to be in the next second.
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"


_NAMED = ("event", "token", "local", "remote")


def line(record: dict[str, Any]) -> str:
    """One event in one line: its name, its connection or subflow, and every field that is set."""
    if record["event"] == "Decision":
        refused = f" [not done: {record['refused']}]" if record["refused"] else ""
        whom = " ".join(filter(None, (record["token"], record["subflow"])))
        return f"{record['plugin']}: {record['action']} {whom}: {record['reason']}{refused}"
    words = [record["event"]]
    if record.get("token"):
        words.append(record["token"])
    if record.get("local"):
        remote = record.get("remote")
        words.append(f"{record['local']} → {remote}" if remote else record["local"])
    words += [
        f"{name}={_value(value)}"
        for name, value in record.items()
        if name not in _NAMED and value not in (None, False, 0, "") and not isinstance(value, dict)
    ]
    return "  ".join(words)


def _value(value: Any) -> str:
    if value is True:
        return "yes"
    return str(len(value)) if isinstance(value, list) else str(value)
