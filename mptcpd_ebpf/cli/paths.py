# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf paths``: each path with its state, why, and what it carries."""

import json
import time

import click

from mptcpd_ebpf.cli import _filters, _options, _text
from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Paths, PathView, PeerView
from mptcpd_ebpf.core.filters import Filter, Network

_HEADINGS = ("PATH", "ADDRESS", "STATE", "PEERS", "CONNS", "RTT ms", "RETRANS %", "SENT/s",
             "RECEIVED/s")  # fmt: skip
_LEFT = 3
"""Columns of text, aligned to the left; the others are numbers."""
_FOR_RATES_S = 0.5
_WATCH_S = 1.0


@click.command()
@_filters.address
@_filters.interface
@_filters.state
@click.option("--watch", is_flag=True, help="Show them anew every second, until Ctrl-C.")
@_options.as_json
@_options.netns_option
@_options.control
def command(
    address: Network | None,
    interface: str | None,
    state: str | None,
    watch: bool,
    as_json: bool,
    control: str | None,
) -> None:
    """Show the paths: from which address, in which state and why, and what they carry.

    \b
    active   carries data                standby  only while no active path can
    away     abandoned and probed        unused   no connection uses it
    down     no carrier                  opening  a join is not answered yet

    \b
    RTT ms     mean smoothed round-trip time of its subflows
    RETRANS %  segments that its subflows sent again, of all since they opened
    SENT/s     bytes in the last half second or longer

    An address with several peers has the state of the path that needs most attention, and these
    are listed below it. --json has all fields (docs/control.md). It needs a running daemon;
    'history' tells what became of the paths before.
    """
    path = control or client.default_path()
    only = Filter(address=address, interface=interface, state=state)
    while True:
        answer = _filtered(_asked(path), only)
        if as_json:
            click.echo(json.dumps(answer))
        else:
            if watch:
                click.clear()
            click.echo("\n".join(table(answer)) if answer["paths"] else "no paths")
        if not watch:
            return
        time.sleep(_WATCH_S)


def _asked(path: str) -> Paths:
    """The daemon's answer, with rates: the first one after a while has none."""
    answer: Paths = client.get(path, "/v1/paths")
    if any(each["subflows"] and each["sent_bytes_per_s"] is None for each in answer["paths"]):
        time.sleep(_FOR_RATES_S)
        answer = client.get(path, "/v1/paths")
    return answer


def _filtered(answer: Paths, only: Filter) -> Paths:
    shown = [
        path
        for path in answer["paths"]
        if only.fits_interface(path["interface"])
        and only.fits_state(path["state"], *(peer["state"] for peer in path["peers"]))
        and only.fits_address([path["local_ip"], *(peer["ip"] for peer in path["peers"])])
    ]
    return {"schema": answer["schema"], "paths": shown}


def table(answer: Paths) -> list[str]:
    """The paths as lines; the reason of a state that is not active follows its path."""
    lines = _text.aligned([_HEADINGS, *map(_row, answer["paths"])], _LEFT)
    shown = [lines[0]]
    for path, line in zip(answer["paths"], lines[1:], strict=True):
        shown.append(line)
        shown += [f"  {words}" for words in _details(path)]
    return shown


def _row(path: PathView) -> tuple[str, ...]:
    return (
        path["interface"] or _text.UNKNOWN,
        path["local_ip"],
        path["state"],
        str(path["peer_count"]),
        str(path["connections"]),
        _text.milliseconds(path["srtt_us"]),
        _share(path["retransmits"], path["segments_out"]),
        _rate(path["sent_bytes_per_s"]),
        _rate(path["received_bytes_per_s"]),
    )


def _share(part: int | None, whole: int | None) -> str:
    return f"{100 * part / whole:.1f}" if part is not None and whole else _text.UNKNOWN


def _rate(bytes_per_s: float | None) -> str:
    return _text.size(None if bytes_per_s is None else round(bytes_per_s))


def _details(path: PathView) -> list[str]:
    if path["state"] == "down":
        return [path["reason"]]
    return [_peer(peer) for peer in path["peers"] if peer["state"] != "active" or peer["since"]]


def _peer(peer: PeerView) -> str:
    words = f"to {peer['ip']}: {peer['state']}"
    if peer["since"] is not None:
        at = time.strftime("%H:%M:%S", time.localtime(peer["since"]))
        words += f" since {at} ({_text.duration(time.time() - peer['since'])})"
    if peer["probes_needed"] is not None:
        words += f", {peer['probes_answered']} of {peer['probes_needed']} probes answered"
    reason = peer["reason"].partition(";")[0]
    return f"{words}: {reason}" if reason else words
