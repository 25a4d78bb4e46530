# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf status``: what the daemon is doing, in a few lines or as JSON."""

import json
import time

import click

from mptcpd_ebpf.cli import _options, _text
from mptcpd_ebpf.control import client
from mptcpd_ebpf.control.schema import JournalView, NewConnectionsView, PathSummary, Status


@click.command()
@_options.netns_option
@_options.control
@_options.as_json
def command(control: str | None, as_json: bool) -> None:
    """Show what the daemon is doing: plugins, probes, counts, losses."""
    status: Status = client.get(control or client.default_path(), "/v1/status")
    click.echo(json.dumps(status) if as_json else text(status))


def text(status: Status) -> str:
    """The status as lines of name and value."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["started_at"]))
    lost = {cause: n for cause, n in status["events_lost"].items() if n}
    lost |= {cause: n for cause, n in (status["probes"]["lost"] or {}).items() if n}
    if status["log_messages_dropped"]:
        lost["log messages"] = status["log_messages_dropped"]
    lines = [
        ("daemon", f"{status['version']}, process {status['pid']}, since {since}"),
        ("namespace", str(status["netns"])),
        ("deciding", _deciding(status)),
        ("pending restart", ", ".join(status["pending_restart"]) or "none"),
        ("kernel's path manager", status["path_manager"] or "unknown"),
        ("probes", f"{status['probes']['backend']}: {status['probes']['reason']}"),
        ("new connections", _new_connections(status["new_connections"], status["dry_run"])),
        ("connections", f"{status['connections']} with {status['subflows']} subflows"),
        ("decisions", f"{status['decisions']}, {status['decisions_refused']} of them refused"),
        *(("path", path(each)) for each in status["paths"]),
        ("journal", _journal(status["journal"])),
        ("lost", ", ".join(f"{n} {cause}" for cause, n in lost.items()) or "nothing"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _new_connections(view: NewConnectionsView, dry_run: bool) -> str:
    if not view["steers"]:
        return f"start where the routes say ({view['reason']})"
    steered = [
        f"{each['family']} start on {each['interface']} ({each['local']}) since "
        f"{time.strftime('%H:%M:%S', time.localtime(each['since']))}: {each['reason']}"
        for each in view["steered"]
    ]
    how = "dry run, nothing is sent: " * dry_run
    return how + ("; ".join(steered) or "start on the default route, which works")


def path(summary: PathSummary) -> str:
    """``fibre (10.0.1.2 → 10.0.9.1) away since 03:25:04, probe 3 of 10: nothing came back …``."""
    ends = f"{summary['local_ip']} → {summary['remote_ip']}"
    name = f"{summary['interface']} ({ends})" if summary["interface"] else ends
    since = time.strftime("%H:%M:%S", time.localtime(summary["since"]))
    probes = ""
    if summary["state"] == "away":
        answered, needed = summary["probes_answered"], summary["probes_needed"]
        probes = f", {answered} of {needed} probes answered"
    return f"{name} {summary['state']} since {since}{probes}: {summary['reason']}"


def _journal(journal: JournalView | None) -> str:
    if journal is None:
        return "off (journal.enabled)"
    if journal["problem"] is not None:
        return journal["problem"].removeprefix("journal: ")
    dropped = journal["records_dropped"]
    lost = f", {dropped} events could not be written" if dropped else ""
    return f"{journal['path']}, {_text.size(journal['bytes'])}{lost}"


def _deciding(status: Status) -> str:
    if not status["plugins"]:
        return "no: no plugin is configured, observing only"
    plugins = [
        f"{plugin['name']} (excluded: {plugin['excluded']})" if plugin["excluded"]
        else plugin["name"]
        for plugin in status["plugins"]
    ]  # fmt: skip
    how = "paused: " if status["paused"] else "dry run, nothing is sent: " * status["dry_run"]
    return how + ", ".join(plugins)
