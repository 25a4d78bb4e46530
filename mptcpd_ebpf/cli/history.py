# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf history``: what happened to paths and connections, from the journal."""

import time
from pathlib import Path

import click
import msgspec

from mptcpd_ebpf.cli import _filters, _options, _text
from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import Status
from mptcpd_ebpf.core.filters import Filter, Network
from mptcpd_ebpf.journal import entries as e
from mptcpd_ebpf.journal import history, location
from mptcpd_ebpf.journal.store import read_only
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

_POLL_S = 1.0


@click.command()
@_filters.token_argument
@_filters.since
@click.option("--path", metavar="PATH", help="Only this path: its interface or local address.")
@_filters.connections
@click.option("--watch", is_flag=True, help="Continue with what happens from now on, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, each with a schema.")
@click.option(
    "--journal",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read this file.  [default: the running daemon's, else the one it would write]",
)
@_options.netns_option
@_options.control
def command(
    token: str | None,
    since: float,
    path: str | None,
    address: Network | None,
    interface: str | None,
    process: str | None,
    state: str | None,
    watch: bool,
    as_json: bool,
    file: Path | None,
    control: str | None,
) -> None:
    """Show what happened: which paths were left, why, and when they came back.

    Without TOKEN or --process: paths, links, addresses, default routes, and the daemon itself.
    With them: the paths of these connections, their subflows, alarms, and what was decided and
    why. The command reads the daemon's journal, also when no daemon runs; the newest second may
    be missing. docs/journal.md describes the file and the lines of --json.
    """
    db = read_only(file or _file(control))
    only = Filter(token=token, address=address, interface=interface, process=process, state=state)
    query = history.Query(since=since, only=only, path=path)
    shown: set[tuple[object, ...]] = set()
    try:
        while True:
            for entry in history.read(db, query):
                name = _name(entry)
                if name not in shown:
                    shown.add(name)
                    click.echo(msgspec.json.encode(entry).decode() if as_json else line(entry))
            if not watch:
                break
            time.sleep(_POLL_S)
    finally:
        db.close()
    if not shown and not as_json:
        click.echo("nothing happened", err=True)


def _file(control: str | None) -> Path:
    """The running daemon's journal, or the file it would write.  Raises `Failure`."""
    try:
        status: Status = client.get(control or client.default_path(), "/v1/status")
    except Failure as failure:
        if control is not None or failure.exit_code != ExitCode.NO_DAEMON:
            raise
        return location.default_path()
    if status["journal"] is None:
        raise Failure(
            "the daemon writes no journal: set journal.enabled to true and restart it, or name a "
            "file with --journal",
            ExitCode.CONFIG,
        )
    if status["journal"]["problem"] is not None:
        click.echo(f"mptcpd-ebpf: incomplete: {status['journal']['problem']}", err=True)
    return Path(status["journal"]["path"])


def _name(entry: e.Entry) -> tuple[object, ...]:
    """What makes an entry new: a path's return is news."""
    if isinstance(entry, e.PathEntry):
        return (entry.t, entry.local_ip, entry.state, entry.ended)
    return msgspec.structs.astuple(entry)


# --- one line each


def line(entry: e.Entry) -> str:
    """An entry as one line: local time and what happened."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.t))
    return f"{when}  {_words(entry)}"


def _words(entry: e.Entry) -> str:
    match entry:
        case e.PathEntry():
            return _path(entry)
        case e.NetworkEntry(subject="link"):
            return f"{entry.interface}: link {entry.what}"
        case e.NetworkEntry(subject="address"):
            return f"{entry.interface or 'unknown interface'}: address {entry.ip} {entry.what}"
        case e.NetworkEntry():
            via = f" via {entry.ip}" if entry.ip else ""
            where = entry.interface or "unknown interface"
            return f"{where}: default route{via} {entry.what} ({entry.detail})"
        case e.DaemonEntry():
            detail = f" ({entry.detail})" if entry.detail else ""
            return f"daemon: {entry.what}{detail}"
        case e.ConnectionEntry():
            return _connection(entry)
        case e.SubflowEntry():
            return _subflow(entry)
        case e.AlarmEntry():
            where = f" on {entry.interface}" if entry.interface else ""
            return (
                f"{entry.token}: alarm {entry.alarm}{where}: {entry.value} (limit "
                f"{entry.threshold}), RTT {_text.milliseconds(entry.srtt_us)} ms, "
                f"{_text.number(entry.in_flight)} segments in flight"
            )
        case e.DecisionEntry():
            return f"{entry.plugin}: {entry.description}: {entry.reason}{_outcome(entry)}"
        case _:
            return ""


def _path(entry: e.PathEntry) -> str:
    name = entry.interface or entry.local_ip
    why = entry.reason.partition(";")[0]
    peers = f" to {len(entry.peers)} peers" if len(entry.peers) > 1 else ""
    words = f"{name}: {entry.state}{peers} ({why})"
    if entry.connections_moved:
        count = entry.connections_moved
        took = _text.duration(entry.moved_s or 0)
        words += f", {count} connection{'s' * (count > 1)} moved in {took}"
    if entry.ended is None or entry.lasted_s is None:
        return f"{words}, not back yet"
    back = time.strftime("%H:%M:%S", time.localtime(entry.ended))
    what = "back" if entry.recovered else "not probed any more"
    return f"{words}, {what} {back} after {_text.duration(entry.lasted_s)} ({entry.ended_reason})"


def _connection(entry: e.ConnectionEntry) -> str:
    owner = f", {entry.comm or '?'}[{entry.pid}]" if entry.pid is not None else ""
    words = f"{entry.token}: connection {entry.what}: {entry.local} → {entry.remote}{owner}"
    if entry.what == "opened":
        return words
    acked, received = _text.size(entry.bytes_acked), _text.size(entry.bytes_received)
    return f"{words}, acked {acked}, received {received}"


def _subflow(entry: e.SubflowEntry) -> str:
    where = f" on {entry.interface}" if entry.interface else ""
    what = "join failed" if entry.what == "failed" else f"subflow {entry.what}"
    words = f"{entry.token}: {what}{where}: {entry.local} → {entry.remote}"
    if entry.what == "closed":
        words += (
            f", RTT {_text.milliseconds(entry.srtt_us)} ms, acked "
            f"{_text.size(entry.bytes_acked)}, received {_text.size(entry.bytes_received)}, "
            f"{_text.number(entry.retransmits)} of {_text.number(entry.segments_out)} segments "
            "retransmitted"
        )
    if entry.error:
        words += f", errno {entry.error}"
    if entry.reset_reason is not None:
        words += f", MP_TCPRST reason {entry.reset_reason}"
    return words


def _outcome(entry: e.DecisionEntry) -> str:
    if entry.refused is not None:
        return f" [not done: {entry.refused}]"
    if entry.errno:
        return f" [failed: {entry.explanation or f'errno {entry.errno}'}]"
    return "" if entry.errno == 0 else " [no answer]"
