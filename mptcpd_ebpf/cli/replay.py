# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf replay``: a recorded run again, as it was or with another configuration."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.config import plugin_loader, plugin_set, settings
from mptcpd_ebpf.config.recorded_plugin import recorded_plugin
from mptcpd_ebpf.control import describe, views
from mptcpd_ebpf.control.schema import SCHEMA
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import Decision
from mptcpd_ebpf.core.configuration import PluginSpec
from mptcpd_ebpf.core.recording import Record, RecordingError, read, replay
from mptcpd_ebpf.core.rehearsal import Change, rehearse
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--plugin", metavar="NAME", help="The plugin that decides instead of the recorded.")
@click.option(
    "--preset", metavar="PRESET", help="The preset of adaptive; the same as --set preset=PRESET."
)
@click.option(
    "--set",
    "changes",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the plugin, as under plugins: NAME: in the configuration.",
)
@click.option(
    "--plugin-dir",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="A folder searched for plugins before the shipped ones.",
)
@_options.as_json
def command(
    file: Path,
    plugin: str | None,
    preset: str | None,
    changes: tuple[str, ...],
    plugin_dir: Path | None,
    as_json: bool,
) -> None:
    """Replay what 'mptcpd-ebpf daemon --record FILE' wrote.

    Without options, every decision is made again and compared with the recorded one: exit code 0
    if all are the same, 1 at the first that differs.

    With --plugin, --preset or --set, the decisions that would have differed are listed: '-' was
    decided in the recorded run only, '+' in the replay only. The measurements are those that the
    recorded decisions led to, so only the first difference is certain.
    """
    if preset is not None:
        changes = (*changes, f"preset={preset}")
    records = _records(file)
    if plugin is None and not changes:
        _same_again(records, plugin_dir, as_json)
    else:
        _rehearse(records, plugin, changes, plugin_dir, as_json)


def _records(file: Path) -> list[Record]:
    try:
        with file.open("rb") as lines:
            return list(read(lines)[1])
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", ExitCode.USAGE) from None
    except RecordingError as error:
        raise Failure(f"{file}: {error}", ExitCode.CHECK_FAILED) from None


def _same_again(records: list[Record], plugin_dir: Path | None, as_json: bool) -> None:
    count = 0
    for record, decided in replay(records, lambda spec: recorded_plugin(spec, plugin_dir)):
        if msgspec.json.encode(decided) != msgspec.json.encode(record.decisions):
            event = type(record.event).__name__
            raise Failure(
                f"event {record.seq} ({event}): recorded {_words(record.decisions)}; "
                f"replayed {_words(decided)}",
                ExitCode.CHECK_FAILED,
            )
        count += len(decided)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "events": len(records), "decisions": count}))
    else:
        click.echo(f"{len(records)} events, {count} decisions: all as recorded")


def _words(decisions: list[Decision]) -> str:
    return "; ".join(map(describe.decision, decisions)) or "no decision"


def _rehearse(
    records: list[Record],
    plugin: str | None,
    changes: tuple[str, ...],
    plugin_dir: Path | None,
    as_json: bool,
) -> None:
    name = plugin or _deciding(records)
    recorded = _options_of(records, name) if plugin is None else {}
    options = recorded | _read_options(changes)
    _check(name, options, plugin_dir)
    spec = PluginSpec(name=name, options=options)
    start = records[0].now if records else 0
    count: Counter[str] = Counter()
    steps = rehearse(
        records,
        lambda each: plugin_set.make(each.name, each.options, plugin_dir)[0],
        _change(spec, serves_all=plugin is not None),
    )
    for step in steps:
        count["recorded"] += len(step.record.decisions)
        count["rehearsed"] += len(step.decided)
        for sign, decisions in (("-", step.only_recorded), ("+", step.only_rehearsed)):
            for decision in decisions:
                count[sign] += 1
                seconds = (decision.at - start) / 1e9
                if as_json:
                    shown = views.decision(decision, 0)
                    click.echo(
                        json.dumps({"schema": SCHEMA, "only": sign, "after_s": seconds} | shown)
                    )
                else:
                    click.echo(f"{sign} {seconds:9.3f}  {describe.decision(decision)}")
    if not as_json:
        click.echo(
            f"{count['-']} of the recorded decisions would not have been made, "
            f"{count['+']} others would"
        )


def _deciding(records: list[Record]) -> str:
    """The plugin that served the connections of the recorded run."""
    for record in records:
        if isinstance(record.event, ev.Configured) and record.event.config.default_plugin:
            return record.event.config.default_plugin
    raise Failure("no plugin decided in the recorded run; choose one with --plugin", ExitCode.USAGE)


def _options_of(records: list[Record], name: str) -> dict[str, Any]:
    for record in reversed(records):
        if isinstance(record.event, ev.Configured):
            for spec in record.event.plugins:
                if spec.name == name:
                    return dict(spec.options)
    return {}


def _read_options(changes: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise Failure(f"--set {change}: it is KEY=VALUE", ExitCode.USAGE)
        try:
            found[key] = msgspec.yaml.decode(value)
        except msgspec.DecodeError as error:
            raise Failure(f"--set {change}: {error}", ExitCode.USAGE) from None
    return found


def _check(name: str, options: dict[str, Any], plugin_dir: Path | None) -> None:
    """Raises `Failure` with every mistake, as for a configuration file."""
    text = msgspec.yaml.encode({"plugins": {name: options}}).decode()
    settings.parse(text, "--set", {"plugin_dir": str(plugin_dir)} if plugin_dir else {},
                   plugin_loader.options_of)  # fmt: skip


def _change(spec: PluginSpec, *, serves_all: bool) -> Change:
    def change(event: ev.Configured) -> ev.Configured:
        others = [each for each in event.plugins if each.name != spec.name and not serves_all]
        config = event.config
        if serves_all:
            config = replace(config, default_plugin=spec.name, rules=[])
        return replace(event, config=config, plugins=[*others, spec])

    return change
