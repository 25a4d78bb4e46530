# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf replay``: a recorded run again, as it was or with another configuration."""

import json
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from msgspec.structs import replace

from mptcpd_ebpf.cli import _options
from mptcpd_ebpf.config import plugin_loader, plugin_set, settings
from mptcpd_ebpf.config.recorded_plugin import recorded_plugin
from mptcpd_ebpf.control import describe, views
from mptcpd_ebpf.control.schema import SCHEMA
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import AnyCommand, Decision
from mptcpd_ebpf.core.configuration import PluginSpec
from mptcpd_ebpf.core.model import World
from mptcpd_ebpf.core.plugin_host import Fault
from mptcpd_ebpf.core.recording import Head, Record, RecordingError, read, replay
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
    recorded decisions led to (an open loop), so only the first difference is certain; what follows
    shows the tendency.
    """
    if preset is not None:
        changes = (*changes, f"preset={preset}")
    head, records = _recording(file)
    if plugin is None and not changes:
        _same_again(records, plugin_dir, as_json)
    else:
        _rehearse(head, records, plugin, changes, plugin_dir, as_json)


def _recording(file: Path) -> tuple[Head, list[Record]]:
    try:
        with file.open("rb") as lines:
            head, records = read(lines)
            return head, list(records)
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
    head: Head,
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
    steps = rehearse(
        records,
        lambda each: plugin_set.make(each.name, each.options, plugin_dir)[0],
        _change(spec, serves_all=plugin is not None),
    )
    differences: list[Difference] = []
    faults: list[Fault] = []
    equal = 0
    for step in steps:
        equal += step.equal
        faults += step.faults
        for only, decisions in (
            ("recorded", step.only_recorded),
            ("replayed", step.only_rehearsed),
        ):
            for decision in decisions:
                path = _path(decision, step.world)
                differences.append(Difference(only, (decision.at - start) / 1e9, path, decision))
    if as_json:
        _print_json(head, spec, differences, equal, faults)
    else:
        _print_text(differences, equal)
    if faults:
        first = faults[0]
        raise Failure(
            f"plugin {first.plugin}: {first.handler}() raised {first.error}; "
            "it decided nothing from then on",
            ExitCode.CHECK_FAILED,
        )


class Difference(NamedTuple):
    """A decision that is in one of the runs only."""

    only: str
    """``recorded`` or ``replayed``."""
    after_s: float
    """Seconds since the first event."""
    path: str | None
    """The name of the interface, or the local address if it is not known."""
    decision: Decision


def _path(decision: Decision, world: World) -> str | None:
    local = getattr(decision.command, "local", None)
    ip = local.ip if local is not None else getattr(decision.command, "local_ip", None)
    return None if ip is None else world.interface_name(world.interface_of(ip)) or ip


def _print_text(differences: list[Difference], equal: int) -> None:
    width = max((len(each.path or "") for each in differences), default=0)
    alike: dict[tuple[str, AnyCommand], list[Difference]] = {}
    for each in differences:
        command = replace(each.decision.command, reason="")
        alike.setdefault((each.only, command), []).append(each)
    for each, *others in alike.values():
        sign = _SIGNS[each.only]
        rule = f"({each.decision.cause.event}, rule {each.decision.cause.rule})"
        text = describe.decision(each.decision)
        click.echo(f"{sign} {each.after_s:9.3f}  {each.path or '':<{width}}  {text} {rule}")
        if others:
            last = f"{others[-1].after_s:.3f}"
            click.echo(f"{sign} {'':9}  {'':<{width}}  and {len(others)} more until {last}")
    for only, sign in _SIGNS.items():
        verbs = Counter(_verb(each.decision) for each in differences if each.only == only)
        shown = ", ".join(f"{count} {verb}" for verb, count in verbs.items()) or "none"
        click.echo(f"{sign} in the {only} run only: {shown}")
    click.echo(f"= in both: {equal}")


_SIGNS = {"recorded": "-", "replayed": "+"}


def _verb(decision: Decision) -> str:
    """``create backup subflow``: a command without its addresses."""
    words = describe.action(decision.command).split()
    verb = takewhile(str.isalpha, words)
    return " ".join(verb) + (" (refused)" if decision.refused is not None else "")


def _print_json(
    head: Head,
    spec: PluginSpec,
    differences: list[Difference],
    equal: int,
    faults: list[Fault],
) -> None:
    shown = {
        "schema": SCHEMA,
        "plugin": spec.name,
        "options": spec.options,
        "equal": equal,
        "differences": [
            {"only": each.only, "after_s": round(each.after_s, 6), "path": each.path}
            | views.decision(each.decision, head.epoch_ns)
            for each in differences
        ],
        "faults": [
            {"plugin": each.plugin, "handler": each.handler, "error": each.error} for each in faults
        ],
    }
    click.echo(json.dumps(shown))


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
