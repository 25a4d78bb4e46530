# SPDX-License-Identifier: BSD-3-Clause
"""mptcpd.conf: read as mptcpd reads it, and said in our own keys."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.cli.config import command
from mptcpd_ebpf.config import mptcpd_conf, plugin_loader
from mptcpd_ebpf.config.settings import Config, ConfigError, Settings, parse
from mptcpd_ebpf.core.model import AddressPolicy
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.logging_setup import LogDestination

WHOLE = """\
# a comment
[core]
log=journal
plugin-dir = /usr/lib/mptcpd
path-manager=sspi
addr-flags=subflow,backup
notify-flags=existing,check_route
load-plugins=sspi,fullmesh
"""


def settings(tmp_path: Path, text: str, **overrides: object) -> Settings:
    file = tmp_path / "mptcpd.conf"
    file.write_text(text)
    return Settings(mptcpd_conf=file, overrides=overrides)


def test_every_key(tmp_path: Path) -> None:
    found = settings(tmp_path, WHOLE)
    read = found.load()
    assert read.log is LogDestination.JOURNAL
    assert read.path_manager == "sspi"
    assert read.load_plugins == ["sspi", "fullmesh"]
    assert read.plugins == {"addr_adv": {"flags": ["subflow", "backup"]}}
    assert read.addresses == AddressPolicy(
        existing=True, skip_link_local=False, skip_loopback=False, check_route=True
    )
    assert read.plugin_dir is None
    (warning,) = found.warnings(Config())
    assert "mptcpd.conf:4: plugin-dir=/usr/lib/mptcpd" in warning
    assert ".so" in warning


def test_what_it_leaves_out_is_as_mptcpd_has_it(tmp_path: Path) -> None:
    read = settings(tmp_path, "[core]\n").load(plugin_loader.options_of)
    assert read.path_manager == "addr_adv"
    assert read.plugins == {"addr_adv": {"flags": []}}
    assert read.addresses == AddressPolicy(
        existing=False, skip_link_local=False, skip_loopback=False, check_route=False
    )


def test_the_command_line_beats_it(tmp_path: Path) -> None:
    found = settings(tmp_path, WHOLE, path_manager="addr_adv", log="stderr")
    read = found.load()
    assert (read.path_manager, read.log) == ("addr_adv", LogDestination.STDERR)
    assert read.load_plugins == ["sspi", "fullmesh"]


def test_a_folder_with_python_plugins_is_taken(tmp_path: Path) -> None:
    (tmp_path / "own.py").touch()
    read = settings(tmp_path, f"[core]\nplugin-dir={tmp_path}\n").load()
    assert read.plugin_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("addr-flags=subflow,nonsense", "nonsense"),
        ("addr-flags=signal,fullmesh", "exclude each other"),
        ("notify-flags=everything", "skip_link_local"),
        ("load-plugins=", "names no plugin"),
        ("path-manager", "key=value"),
        ("[core", "[NAME]"),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, f"[core]\n\n{line}\n").load()
    assert "mptcpd.conf:3:1: " in str(caught.value)
    assert words in str(caught.value)


def test_a_mistake_that_shows_later_has_its_place_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, "[core]\nlog=printer\npath-manager=nobody\n").load(
            plugin_loader.options_of
        )
    assert "mptcpd.conf:2: log: 'printer' is none of stderr" in str(caught.value)
    assert "mptcpd.conf:3: path_manager: plugin nobody: there is none" in str(caught.value)


def test_unknown_keys_and_groups_are_warned_of(tmp_path: Path) -> None:
    text = "[core]\naddr-flags=subflow\ncolour=red\n[other]\nlog=null\n"
    found = settings(tmp_path, text)
    assert found.load().log is LogDestination.STDERR
    first, second = found.warnings(Config())
    assert "mptcpd.conf:3: colour" in first
    assert "mptcpd.conf:4: group [other]" in second


def test_the_first_of_a_key_given_twice_counts() -> None:
    found = mptcpd_conf.parse("[core]\naddr-flags=signal\naddr-flags=subflow\n", "m.conf")
    assert found.values[mptcpd_conf.FLAGS_KEY] == ["signal"]
    assert any("m.conf:3: addr-flags again" in warning for warning in found.warnings)


def test_files_that_cannot_be_trusted_or_read(tmp_path: Path) -> None:
    found = settings(tmp_path, WHOLE)
    assert found.mptcpd_conf is not None
    found.mptcpd_conf.chmod(0o666)
    with pytest.raises(ConfigError, match="somebody else could write"):
        found.load()
    found.mptcpd_conf.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        found.load()


LINES = st.sampled_from(WHOLE.splitlines()) | st.text(max_size=20)


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_any_file_is_read_or_refused_with_its_place(text: str) -> None:
    found = mptcpd_conf.parse(text, "F")
    for mistake in found.mistakes:
        assert mistake.line is not None
    assert set(mptcpd_conf.MPTCPD_DEFAULTS) <= set(found.values)


@pytest.mark.parametrize("text", [WHOLE, "[core]\n", "[core]\nload-plugins=sspi\n"])
def test_config_import_prints_yaml_that_does_the_same(tmp_path: Path, text: str) -> None:
    expected: Config = settings(tmp_path, text).load()
    printed = CliRunner().invoke(command, ["import", str(tmp_path / "mptcpd.conf")])
    assert printed.exit_code == 0
    assert isinstance(yaml.safe_load(printed.output), dict)
    assert parse(printed.output, "F") == expected


def test_flags_that_the_command_line_gives_are_not_missed_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mptcpd.conf"
    file.write_text("[core]\npath-manager=addr_adv\n")
    assert len(Settings(mptcpd_conf=file).warnings(Config())) == 1
    given = mptcpd_conf.addr_flags("subflow")
    assert Settings(mptcpd_conf=file, overrides=given).warnings(Config()) == []
    assert Settings(mptcpd_conf=file, overrides={"path_manager": "sspi"}).warnings(Config()) == []


def test_a_plugin_folder_of_the_command_line_is_warned_of_as_the_file_s(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "addr_adv.so").touch()
    found = settings(tmp_path, WHOLE, plugin_dir=str(theirs))
    (warning,) = found.warnings(Config())
    assert warning.startswith(f"command line: plugin-dir={theirs} holds no Python plugin")
    assert Settings(overrides={"plugin_dir": str(theirs)}).warnings(Config()) == [warning]
    (theirs / "own.py").touch()
    assert found.warnings(Config()) == [], "the folder that the file names is not used"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("log=nowhere", "mptcpd.conf:2: log: 'nowhere' is none of"),
        ("path-manager=nonsense", "mptcpd.conf:2: path_manager: plugin nonsense: there is none"),
        ("load-plugins=addr_adv,sspi", "addr_adv needs the in-kernel path manager and sspi the"),
    ],
)
def test_config_import_refuses_what_the_daemon_would(tmp_path: Path, line: str, words: str) -> None:
    settings(tmp_path, f"[core]\n{line}\n")
    printed = CliRunner().invoke(command, ["import", str(tmp_path / "mptcpd.conf")])
    assert isinstance(printed.exception, Failure)
    assert printed.exception.exit_code is ExitCode.CONFIG
    assert words in str(printed.exception)
    assert printed.output == ""
