# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf ls``: connections and their subflows, as a table or as JSON."""

import json
import time

import click

from mptcpd_ebpf.cli import _filters, _options, _text
from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Connections, ConnectionView, SubflowView
from mptcpd_ebpf.core.filters import Filter, Network
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_HEADINGS = ("", "SUBFLOW", "IF", "STATE", "RTT ms", "MIN", "VAR", "SENT", "ACKED", "RECEIVED",
             "RETRANS", "LOST", "HOLES", "RTO", "CWND", "FLIGHT")  # fmt: skip
_LEFT = 4
"""Columns of text, aligned to the left; the others are numbers."""


_WATCH_S = 1.0


@click.command()
@_filters.token
@_filters.connections
@click.option("--watch", is_flag=True, help="Show them anew every second, until Ctrl-C.")
@_options.netns_option
@_options.control
@_options.direct
@_options.as_json
def command(
    token: str | None,
    address: Network | None,
    interface: str | None,
    process: str | None,
    state: str | None,
    watch: bool,
    control: str | None,
    direct: bool,
    as_json: bool,
) -> None:
    """Show the MPTCP connections and what their subflows measure.

    \b
    RTT, MIN, VAR  smoothed, least and variation of the round-trip time, milliseconds
    SENT, ACKED    bytes sent, and acknowledged by the peer
    RECEIVED       bytes received in order
    RETRANS, LOST  segments sent again; segments taken for lost
    HOLES          time in which received data waited for data of this subflow, milliseconds
    RTO            retransmission timeouts in a row, right now
    CWND, FLIGHT   congestion window and segments in flight
    stalled        time for which the sender was blocked by a slow path

    Unknown values are shown as –, and as null in --json. The values are read when the command
    runs. Without a daemon they come from the kernel's socket diagnosis, which has neither LOST,
    HOLES and stalled, which only probes measure, nor the age of a subflow.
    """
    only = Filter(token=token, address=address, interface=interface, process=process, state=state)
    while True:
        answer = filtered(_asked(control, direct), only)
        if as_json:
            click.echo(json.dumps(answer))
        else:
            if watch:
                click.clear()
            click.echo(table(answer) if answer["connections"] else "no MPTCP connections")
        if not watch:
            return
        time.sleep(_WATCH_S)


def filtered(answer: Connections, only: Filter) -> Connections:
    """The connections and subflows that a filter leaves."""
    by_subflow = any((only.address, only.interface, only.state))
    shown: list[ConnectionView] = []
    for connection in answer["connections"]:
        if not only.fits_token(connection["token"]) or not only.fits_process(
            connection["pid"], connection["comm"]
        ):
            continue
        subflows = [
            subflow
            for subflow in connection["subflows"]
            if only.fits_address((subflow["local"], subflow["remote"]))
            and only.fits_interface(subflow["interface"])
            and only.fits_state(_state(subflow))
        ]
        if subflows or not by_subflow:
            shown.append({**connection, "subflows": subflows})
    return {"schema": answer["schema"], "connections": shown}


def _asked(control: str | None, direct: bool) -> Connections:
    """The daemon's answer; without a daemon, or with --direct, the kernel's."""
    silence = None
    if not direct:
        try:
            answer: Connections = client.get(control or client.default_path(), "/v1/connections")
        except Failure as failure:
            if control is not None or failure.exit_code != ExitCode.NO_DAEMON:
                raise
            silence = failure
        else:
            return answer
    from mptcpd_ebpf.control import dispatch  # msgspec and more: only where no daemon answers

    if silence is not None:
        if dispatch.control_path(control, direct) is not None:
            raise silence
        click.echo("mptcpd-ebpf: no daemon runs here; this is what the kernel reports", err=True)
    return dispatch.connections_of_kernel()


def table(answer: Connections) -> str:
    """The connections as text, each followed by its subflows, columns aligned over all."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for connection in answer["connections"]:
        rows += [_subflow(subflow) for subflow in connection["subflows"]]
    lines = _text.aligned(rows, _LEFT)
    shown = [lines[0]]
    at = 1
    for connection in answer["connections"]:
        shown.append(_connection(connection))
        shown += lines[at : at + len(connection["subflows"])]
        at += len(connection["subflows"])
    return "\n".join(shown)


def _connection(connection: ConnectionView) -> str:
    side = {True: "server", False: "client", None: "side unknown"}[connection["server_side"]]
    if connection["pid"] is None:
        owner = "process unknown"
    else:
        owner = f"{connection['comm'] or '?'}[{connection['pid']}]"
    stalled = connection["stalled_ms"]
    facts = [
        connection["token"],
        side,
        owner,
        f"{connection['local']} → {connection['remote']}",
        f"acked {_text.size(connection['bytes_acked'])}",
        f"received {_text.size(connection['bytes_received'])}",
        f"stalled {_text.UNKNOWN if stalled is None else f'{stalled:.0f} ms'}",
    ]
    if connection["announced"]:
        facts.append("announced " + ", ".join(a["ip"] for a in connection["announced"]))
    return "  ".join(facts)


def _state(subflow: SubflowView) -> str:
    return "backup" if subflow["backup"] else subflow["state"]


def _subflow(subflow: SubflowView) -> tuple[str, ...]:
    ids = f"{_text.number(subflow['local_id'])}>{_text.number(subflow['remote_id'])}"
    return (
        f"  {ids}",
        f"{subflow['local']} → {subflow['remote']}",
        subflow["interface"] or _text.UNKNOWN,
        _state(subflow),
        _text.milliseconds(subflow["srtt_us"]),
        _text.milliseconds(subflow["min_rtt_us"]),
        _text.milliseconds(subflow["rttvar_us"]),
        _text.size(subflow["bytes_sent"]),
        _text.size(subflow["bytes_acked"]),
        _text.size(subflow["bytes_received"]),
        _text.number(subflow["retransmits"]),
        _text.number(subflow["lost"]),
        _text.UNKNOWN if subflow["holes_ms"] is None else f"{subflow['holes_ms']:.0f}",
        _text.number(subflow["timeouts"]),
        _text.number(subflow["cwnd"]),
        _text.number(subflow["in_flight"]),
    )
