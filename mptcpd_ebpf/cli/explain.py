# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf explain``: what was seen, what was done and what came of it."""

import json
import time
from itertools import groupby
from pathlib import Path

import click

from mptcpd_ebpf.cli import _filters, _options
from mptcpd_ebpf.control import client, story
from mptcpd_ebpf.control.schema import SCHEMA, Story, StoryEntry
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


@click.command()
@click.argument("token", required=False)
@click.option("--path", metavar="NAME", help="Of this interface, or of this address of ours.")
@click.option("--since", metavar="TIME", help="Only what is not older than this: 90s, 10m, 2h.")
@click.option(
    "--recording",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Of a run that 'daemon --record FILE' wrote, instead of the running daemon's.",
)
@_options.control
@_options.as_json
def command(
    token: str | None,
    path: str | None,
    since: str | None,
    recording: Path | None,
    control: str | None,
    as_json: bool,
) -> None:
    """Tell the story of a connection or a path, in order: seen, done, and what came of it.

    TOKEN is a connection's token as 'ls' shows it, or its first digits; connections that are
    closed are known too. Without TOKEN and --path, everything is told. The daemon remembers the
    newest 5000 events that matter.
    """
    if recording is not None:
        told = _of_recording(recording)
    else:
        told = client.get(control or client.default_path(), "/v1/story")
    if token is not None:
        token = _whole_token(told["entries"], token.lower().removeprefix("0x"))
    entries = story.about(told["entries"], token=token, path=path)
    if path is not None and not entries:
        raise Failure(
            f"nothing is known of {path}; it is the name of an interface or an address of ours",
            ExitCode.CHECK_FAILED,
        )
    if since is not None:
        # A recording's story ends with its last entry, not now.
        end = time.time() if recording is None else max((e["t"] for e in entries), default=0.0)
        entries = [each for each in entries if each["t"] >= end - _duration(since)]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "entries": entries}))
    elif not entries:
        click.echo("nothing has happened")
    else:
        click.echo("\n".join(lines(entries)))


def _whole_token(entries: list[StoryEntry], prefix: str) -> str:
    found = story.tokens(entries, prefix)
    if not found:
        raise Failure(
            f"nothing is known of connection {prefix}; 'mptcpd-ebpf ls' lists the open ones",
            ExitCode.CHECK_FAILED,
        )
    if len(found) > 1:
        shown = ", ".join(found[:8]) + (" …" if len(found) > 8 else "")
        raise Failure(
            f"{len(found)} connections begin with {prefix}: {shown}; give more digits",
            ExitCode.USAGE,
        )
    return found[0]


def _of_recording(file: Path) -> Story:
    from mptcpd_ebpf.core.recording import RecordingError, read

    try:
        with file.open("rb") as text:
            head, records = read(text)
            return {"schema": SCHEMA, "entries": story.tell(records, head.epoch_ns)}
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", ExitCode.USAGE) from None
    except RecordingError as error:
        raise Failure(f"{file}: {error}", ExitCode.CHECK_FAILED) from None


def _duration(text: str) -> int:
    seconds = _filters.duration(text)
    if seconds is None:
        raise click.BadParameter(f"{text!r}: write it as 90s, 10m, 2h or 1d", param_hint="--since")
    return seconds


def lines(entries: list[StoryEntry]) -> list[str]:
    """One line an entry, and one more for what came of a decision.

    Times are those of the local clock, and seconds since the first entry.  Of several alarms of one
    kind and subflow in a row, the first is shown and the others are counted.
    """
    shown = []
    day = None
    start = entries[0]["t"] if entries else 0.0
    for _, group in groupby(enumerate(entries), key=lambda each: _alike(*each)):
        (_, entry), *others = group
        at = time.localtime(entry["t"])
        if (today := time.strftime("%Y-%m-%d", at)) != day:
            shown.append(today)
            day = today
        clock = time.strftime("%H:%M:%S", at) + f".{int(entry['t'] % 1 * 1000):03d}"
        where = f"{entry['token'] or '':<8}  {entry['path'] or ''}"
        elapsed = f"{entry['t'] - start:+.3f}"
        shown.append(f"{clock} {elapsed:>9}  {entry['kind']:<10}  {where:<15}  {entry['text']}")
        if entry["outcome"]:
            shown.append(f"{_MARGIN}→ {entry['outcome']}")
        if others:
            last = others[-1][1]["t"] - start
            shown.append(f"{_MARGIN}and {len(others)} more until {last:+.3f}")
    return shown


_MARGIN = " " * 53


def _alike(number: int, entry: StoryEntry) -> tuple[object, ...]:
    """Equal for alarms that are shown together; an entry of another kind stands alone."""
    if entry["kind"] != "alarm":
        return (number,)
    data = entry["data"]
    return (data.get("kind"), *(data["measurement"].get(each) for each in _SUBFLOW))


_SUBFLOW = ("token", "local", "remote")
