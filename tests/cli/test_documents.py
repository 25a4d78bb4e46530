# SPDX-License-Identifier: BSD-3-Clause
"""The manual pages, the documents and the unit say what the code does."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from msgspec import Struct, structs

from mptcpd_ebpf.cli import group
from mptcpd_ebpf.config import plugin_loader
from mptcpd_ebpf.config.settings import Config
from mptcpd_ebpf.control import schema
from mptcpd_ebpf.journal.entries import Entry
from mptcpd_ebpf.journal.schema import TABLES
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from tests.tree import ROOT

MANUAL = ROOT / "docs" / "man" / "mptcpd-ebpf.8"
FILE_MANUAL = ROOT / "docs" / "man" / "mptcpd-ebpf.yaml.5"
CONFIGURATION = ROOT / "docs" / "configuration.md"
CONTROL = ROOT / "docs" / "control.md"
JOURNAL = ROOT / "docs" / "journal.md"
ANSWERS = ROOT / "docs" / "what-happened.md"
UNIT = ROOT / "systemd" / "mptcpd-ebpf.service"


def commands() -> Iterator[tuple[str, click.Command]]:
    """The commands by name; what a command group holds counts as its own."""
    context = group.make_context("mptcpd-ebpf", ["ls"])
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield name, command


def options(command: click.Command) -> Iterator[str]:
    """Every option that ``--help`` shows, those of subcommands too."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield from parameter.opts
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from options(inner)


def manual_of(name: str) -> str:
    """What the manual says from a command's entry to the next command's."""
    entry = rf"^\.It Cm {re.escape(name)}\b.*?(?=^\.It Cm [a-z]+(?:$| )|^\.Sh )"
    found = re.search(entry, MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{MANUAL.name} has no entry for the command {name!r}"
    return found[0]


def test_the_manual_has_every_command_and_option() -> None:
    for name, command in commands():
        text = manual_of(name)
        for option in options(command):
            # mdoc writes the first dash itself, also in "Fl n | -name".
            written = rf"(?:Fl|Fl \w \|) {re.escape(option[1:])}\b"
            assert re.search(written, text), f"{name} {option}"


def test_the_manual_has_every_exit_code() -> None:
    section = MANUAL.read_text().split(".Sh EXIT STATUS")[1].split(".Sh ")[0]
    assert [int(code) for code in re.findall(r"^\.It (\d+)$", section, re.MULTILINE)] == [
        code.value for code in ExitCode
    ]


def defaults(of: Struct, above: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a configuration, dotted, with its default as YAML writes it."""
    for name, value in structs.asdict(of).items():
        if isinstance(value, Struct):
            yield from defaults(value, f"{above}{name}.")
        elif isinstance(value, str):
            yield above + name, value
        else:
            yield above + name, json.dumps(value)


def test_manual_and_reference_have_every_key() -> None:
    manual, reference = FILE_MANUAL.read_text(), CONFIGURATION.read_text()
    for key, default in defaults(Config()):
        section, _, last = key.rpartition(".")
        assert f"\n| `{key}` | {default} | " in reference, f"{key}: {default}"
        if section == "probes.thresholds":
            assert f".It Cm {last}\n" in manual, key
        else:
            assert f".It Cm {key} " in manual, key


def test_the_reference_has_every_option_of_the_shipped_plugins() -> None:
    reference = CONFIGURATION.read_text()
    for name in plugin_loader.available():
        for field in structs.fields(plugin_loader.options_of(name, None)):
            made = field.default_factory
            default = field.default if made is msgspec.NODEFAULT else made()
            row = rf"^\| `plugins\.{name}\.{field.name}` \| {re.escape(str(default))} \|"
            assert re.search(row, reference, re.MULTILINE), f"{name}: {field.name}"


def test_control_md_has_every_field() -> None:
    text = CONTROL.read_text()
    shapes = (schema.ConnectionView, schema.SubflowView, schema.Announced, schema.DecisionView)
    by_hand = (schema.CarriedOut, schema.EndpointView, schema.LimitsView)
    for shape in (
        *shapes,
        *by_hand,
        schema.Status,
        schema.ProbesView,
        schema.PluginView,
        schema.JournalView,
        schema.PathView,
        schema.PeerView,
        schema.PathSummary,
    ):
        for field in shape.__annotations__:
            assert f"`{field}`" in text, f"{shape.__name__}.{field}"


def test_journal_md_has_every_table_column_and_line() -> None:
    text = JOURNAL.read_text()
    db = sqlite3.connect(":memory:")
    db.executescript(TABLES)
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        section = text.partition(f"\n### {table}\n")[2].partition("\n##")[0]
        assert section, table
        for column in db.execute(f"PRAGMA table_info({table})").fetchall():
            assert f"`{column[1]}`" in section, f"{table}.{column[1]}"
    db.close()
    lines = text.partition("\n## Lines of history --json\n")[2]
    for kind in Entry.__subclasses__():
        for field in structs.fields(kind):
            assert f"`{field.name}`" in lines, f"{kind.__name__}.{field.name}"


def test_the_queries_of_journal_md_work() -> None:
    db = sqlite3.connect(":memory:")
    db.executescript(TABLES)
    queries = re.findall(r"```sql\n(.*?)```", JOURNAL.read_text() + ANSWERS.read_text(), re.DOTALL)
    assert queries
    for query in queries:
        db.execute(query).fetchall()
    db.close()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("page", [MANUAL, FILE_MANUAL], ids=lambda page: page.name)
def test_a_manual_page_is_set_without_warnings(page: Path) -> None:
    ended = subprocess.run(
        ["groff", "-mdoc", "-Tutf8", "-ww", "-z", str(page)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/lib/mptcpd-ebpf/bin/python", sys.executable))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_unit_keeps_mptcpd_out_and_does_not_retry_what_cannot_mend() -> None:
    unit = UNIT.read_text()
    assert "\nConflicts=mptcp.service\n" in unit
    codes = (ExitCode.USAGE, ExitCode.NO_MPTCP, ExitCode.PRIVILEGE, ExitCode.CONFIG)
    assert f"RestartPreventExitStatus={' '.join(str(code.value) for code in codes)}\n" in unit
