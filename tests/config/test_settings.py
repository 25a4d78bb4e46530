# SPDX-License-Identifier: BSD-3-Clause
"""The configuration reader: valid files, and every mistake with its place."""

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct, structs, to_builtins

from mptcpd_ebpf.config import plugin_loader
from mptcpd_ebpf.config.settings import (
    Config,
    ConfigError,
    LogLevel,
    OnExit,
    ProbeBackend,
    Settings,
    load,
    parse,
)
from mptcpd_ebpf.config.yaml_document import Mistake
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from tests.tree import ROOT

SHIPPED = ROOT / "etc" / "mptcpd-ebpf.yaml"


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seconds: int = 3


def options_of(name: str, _folder: Path | None) -> type[Struct]:
    if name != "known":
        raise Failure(f"there is no plugin {name!r}", ExitCode.CONFIG)
    return Options


def mistakes(text: str) -> list[str]:
    """The mistakes in a document, each as people see it."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "F", options_of=options_of)
    assert caught.value.exit_code is ExitCode.CONFIG
    return [str(mistake) for mistake in caught.value.mistakes]


# --- valid files


def test_an_empty_document_is_the_defaults_and_they_manage_nothing() -> None:
    for text in ("", "\n", "# only a comment\n", "---\n", "null\n"):
        assert parse(text, "F") == Config()
    assert Config().path_managers == ()


def test_every_key_is_read() -> None:
    config = parse(
        """
        path_manager: [known, other_one]
        plugins: {known: {seconds: 5}}
        plugin_dir: /opt/plugins
        interfaces: {allow: ["eth*"], deny: [eth9]}
        probes: {backend: netlink, thresholds: {loss_percent: 7}}
        control: /run/x.sock
        metrics: {enabled: true, listen: "[::1]:9464"}
        on_exit: keep
        log_level: debug
        limits: {destructive_per_second: 0}
        """,
        "F",
    )
    assert config.path_managers == ("known", "other_one")
    assert config.plugins == {"known": {"seconds": 5}}
    assert config.plugin_dir == "/opt/plugins"
    assert config.interfaces.allow == ["eth*"]
    assert config.interfaces.deny == ["eth9"]
    assert config.probes.backend is ProbeBackend.NETLINK
    assert config.probes.thresholds.loss_percent == 7
    assert config.control == "/run/x.sock"
    assert config.metrics.enabled
    assert config.metrics.listen == "[::1]:9464"
    assert config.on_exit is OnExit.KEEP
    assert config.log_level is LogLevel.DEBUG
    assert config.limits.destructive_per_second == 0


def test_one_plugin_needs_no_list() -> None:
    assert parse("path_manager: adaptive", "F").path_managers == ("adaptive",)


def test_the_command_line_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("log_level: debug\nprobes: {backend: core}\n")
    settings = Settings(file=file, overrides={"probes.backend": "netlink", "control": "/x"})
    config = settings.load()
    assert config.log_level is LogLevel.DEBUG
    assert config.probes.backend is ProbeBackend.NETLINK
    assert config.control == "/x"


# --- the shipped file


def test_the_shipped_file_equals_the_defaults() -> None:
    shipped = load(SHIPPED, options_of=plugin_loader.options_of)
    assert to_builtins(shipped) == to_builtins(Config())


def test_the_shipped_file_shows_every_key() -> None:
    def keys(of: type[Struct]) -> dict[str, Any]:
        return {
            field.name: keys(field.type)
            if isinstance(field.type, type) and issubclass(field.type, Struct)
            else None
            for field in structs.fields(of)
        }

    def shown(data: Any) -> Any:
        return {key: shown(value) if value else None for key, value in data.items()} if isinstance(
            data, dict
        ) else None  # fmt: skip

    assert shown(yaml.safe_load(SHIPPED.read_text())) == keys(Config)


# --- mistakes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lo_level: info", "F:1:1: lo_level: unknown key; did you mean 'log_level'?"),
        (
            "interfaces:\n  zzz: 1",
            "F:2:3: interfaces.zzz: unknown key; known: allow, deny",
        ),
        ("log_level: loud", "F:1:1: log_level: 'loud' is none of debug, info, warning, error"),
        (
            "interfaces: {allow: [eth0, 7]}",
            "F:1:28: interfaces.allow[1]: expected text, got a whole number; put quotes around it",
        ),
        (
            "limits:\n  destructive_per_second: -1",
            "F:2:3: limits.destructive_per_second: expected a whole number >= 0",
        ),
        (
            "probes: {thresholds: {loss_window: 65}}",
            "F:1:23: probes.thresholds.loss_window: expected a whole number <= 64",
        ),
        ("metrics: 3", "F:1:1: metrics: expected keys and values, got 3"),
        ("- a", "F:1:1: expected keys and values, got a list"),
        ("control: a\ncontrol: b", "F:2:1: control: given a second time (first in line 1)"),
        ("control: !secret a", "F:1:1: control: tag '!secret' is not supported"),
        ("a: &x 1\ncontrol: *x", "F:2:10: aliases (*) are not supported; repeat the value"),
        ("? [a]\n: 1", "F:1:3: a key must be plain text"),
        ("<<: {control: a}", "F:1:1: a key must be plain text"),
        ("control: [\n", "F:2:1: not YAML: while parsing a flow node did not find expected"),
        ("control: \x07", "F:1:10: not YAML: a control character"),
        ("a: 1\n--- \nb: 2", "F:2:1: not YAML: expected a single document"),
        ("[" * 40, "F:1:33: nested deeper than 32 levels"),
        (
            "metrics: {listen: '127.0.0.1:1'}",
            "F:1:11: metrics.listen: has no effect while metrics.enabled is false",
        ),
        ("path_manager: nobody", "F:1:1: path_manager: there is no plugin 'nobody'"),
        ("plugins: {nobody: {}}", "F:1:11: plugins.nobody: there is no plugin 'nobody'"),
        (
            "plugins:\n  known:\n    seconds: soon",
            "F:3:5: plugins.known.seconds: expected a whole number, got text",
        ),
        (
            "rules: [{plugin: known, local: foo}]",
            "F:1:25: rules[0].local: 'foo' does not appear to be an IPv4 or IPv6 network",
        ),
        ("rules: [{}]", "F:1:9: rules[0]: missing: plugin"),
        (
            "plugins: {known: {second: 1}}",
            "F:1:19: plugins.known.second: unknown key; did you mean 'seconds'?",
        ),
    ],
)
def test_a_mistake_names_place_key_and_fix(text: str, expected: str) -> None:
    (found,) = [mistake for mistake in mistakes(text) if ": a: unknown" not in mistake]
    assert found.startswith(expected)


def test_all_mistakes_come_at_once_in_the_order_of_lines() -> None:
    found = mistakes("log_level: 1\ncontrol: [a]\nnothing: 1\npath_manager: nobody\n")
    assert [mistake.split(":")[1] for mistake in found] == ["1", "2", "3", "4"]
    found = mistakes("interfaces: {allow: [1, eth0, 2]}\npath_manager: [1, known, 2]\n")
    assert [mistake.split(": ")[1] for mistake in found] == [
        "interfaces.allow[0]",
        "interfaces.allow[2]",
        "path_manager[0]",
        "path_manager[2]",
    ]
    found = mistakes('plugins: {"": {}, known: 3}')
    assert found == [
        "F:1:11: plugins.: expected text of length >= 1",
        "F:1:19: plugins.known: expected keys and values, got a whole number",
    ]


def test_addresses_and_flags_are_looked_at_together_with_all_else() -> None:
    """Each has its key, and none hides another."""
    text = """\
rules:
  - {local: 10.0.0.1/8, remote: nowhere}
  - {remote: "1.2.3.4.5", plugin: sspi, color: red}
plugins:
  addr_adv:
    flags: [signal, fullmesh]
    rules:
      - {address: fe80, flags: [fast], interfaces: b}
      - {interface: a}
  fullmesh: {most: -1}
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "F", options_of=plugin_loader.options_of)
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "F:2:5: rules[0]: missing: plugin",
        "F:2:6: rules[0].local: 10.0.0.1/8 has host bits set",
        "F:2:25: rules[0].remote: 'nowhere' does not appear to be an IPv4 or IPv6 network",
        "F:3:6: rules[1].remote: '1.2.3.4.5' does not appear to be an IPv4 or IPv6 network",
        "F:3:41: rules[1].color: unknown key; known: plugin, preset, local, local_port, remote, "
        "remote_port, interface, server_side, uid, cgroup, command",
        "F:6:5: plugins.addr_adv.flags: signal and fullmesh exclude each other: fullmesh is for "
        "subflows",
        "F:8:10: plugins.addr_adv.rules[0].address: 'fe80' does not appear to be an IPv4 or IPv6 "
        "network",
        "F:8:25: plugins.addr_adv.rules[0].flags: 'fast' is no endpoint flag; there are signal, "
        "subflow, backup, fullmesh, laminar",
        "F:8:40: plugins.addr_adv.rules[0].interfaces: unknown key; did you mean 'interface'?",
        "F:9:9: plugins.addr_adv.rules[1]: missing: flags",
        "F:10:14: plugins.fullmesh.most: expected a whole number >= 1",
    ]


def test_a_mistake_on_the_command_line_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^command line: probes\.backend: 'x' is none of"):
        load(None, {"probes.backend": "x"})


def test_a_plugin_folder_is_looked_at_even_if_nothing_is_taken_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    document = f"path_manager: known\nplugin_dir: {folder}\n"
    missing = f"F:2:1: plugin_dir: {folder} cannot be looked at: No such file or directory"
    assert mistakes(document) == [missing]
    folder.touch()
    assert mistakes(document) == [f"F:2:1: plugin_dir: {folder} is no folder"]
    folder.unlink()
    folder.symlink_to(folder)
    (loop,) = mistakes(document)
    assert "cannot be looked at: Too many levels of symbolic links" in loop
    folder.unlink()
    (nul,) = mistakes('plugin_dir: "a\\0b"\n')
    assert "cannot be looked at" in nul
    folder.mkdir(mode=0o755)
    parse(document, "F", options_of=options_of)
    folder.chmod(0o777)
    (mistake,) = mistakes(document)
    assert mistake.startswith(f"F:2:1: plugin_dir: {folder}: somebody else could write it")
    (mistake,) = mistakes(f"plugin_dir: {folder}\n")
    assert mistake.startswith(f"F:1:1: plugin_dir: {folder}: somebody else could write it")


# --- files


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read: No such file"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_everyone_can_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=r"c\.yaml: somebody else could write it"):
        load(file)
    file.chmod(stat.S_IRUSR)
    assert load(file) == Config()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_or_in_his_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    file = folder / "c.yaml"
    file.write_text("")
    os.chown(file, 65534, 65534)
    with pytest.raises(ConfigError, match=r"c\.yaml: somebody else could write it"):
        load(file)
    os.chown(file, 0, 0)
    os.chown(folder, 65534, 65534)
    with pytest.raises(ConfigError, match="theirs: somebody else could write it"):
        load(file)
    folder.chmod(0o777)
    os.chown(folder, 0, 0)
    with pytest.raises(ConfigError, match="theirs: somebody else could write it"):
        load(file)
    folder.chmod(0o755)
    assert load(file) == Config()


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"control: a\nab\xff")
    with pytest.raises(ConfigError, match=r"c\.yaml:2:3: is not UTF-8 text"):
        load(file)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load(Path("/dev/zero"))


# --- arbitrary input


TEXT = SHIPPED.read_text()
FRAGMENTS = st.sampled_from(
    [*"[]{}:,-?&*!|>%@`'\"#\n\t \x00\x85\ufeff=~", "<<", "---", "!!int ", "1e9", "2001-13-99"]
)


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """The shipped file with pieces cut out and put in."""
    text = TEXT
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 12))
        text = text[:at] + draw(FRAGMENTS | st.text(max_size=5)) + text[at + cut :]
    return text


@given(mangled() | st.text(max_size=300))
@example("log_level: !!int x")
@example("control: !!timestamp 2001-99-99")
@example("limits: {destructive_per_second: " + "9" * 5000 + "}")
@example("control: !!binary ===")
@example("control: =")
@example("log_level: [~]")
@example("plugins: {known: ~}")
@example("plugin_dir: 3\npath_manager: [{}]")
@example("path_manager: ../../etc/x")
@example("plugins: {../x: {}}")
def test_whatever_comes_loads_or_is_refused_with_a_place(text: str) -> None:
    for mistake in refusals(text):
        assert mistake.line is not None
        assert mistake.line >= 1
        assert mistake.column is not None
        assert mistake.column >= 1


def refusals(text: str) -> list[Mistake]:
    """What is wrong with a document, nothing if it loads."""
    try:
        parse(text, "F", options_of=options_of)
    except ConfigError as error:
        return error.mistakes
    return []


def test_a_plugin_name_cannot_lead_out_of_the_plugin_folder() -> None:
    with pytest.raises(ConfigError, match="a plugin's name is its file's"):
        parse("path_manager: ../plugins/adaptive", "F", options_of=plugin_loader.options_of)


def test_the_work_grows_with_the_number_of_mistakes_and_not_with_its_square() -> None:
    def calls(keys: int) -> int:
        count = 0

        def profile(_frame: object, event: str, _argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            with pytest.raises(ConfigError) as caught:
                parse("".join(f"k{number}: 1\n" for number in range(keys)), "F")
        finally:
            sys.setprofile(None)
        assert len(caught.value.mistakes) == keys
        return count

    assert calls(8000) < 5 * calls(2000)


@pytest.mark.parametrize(
    ("listen", "warned"),
    [("0.0.0.0:9464", True), ("[::]:9464", True), ("127.0.0.1:9464", False), ("[::1]:1", False)],
)
def test_metrics_on_all_addresses_are_warned_about(listen: str, warned: bool) -> None:
    config = parse(f"metrics: {{enabled: true, listen: '{listen}'}}", "F")
    warnings = Settings().warnings(config)
    assert bool(warnings) is warned
    assert all(f"metrics.listen: {listen} is reachable from every" in each for each in warnings)
