# SPDX-License-Identifier: BSD-3-Clause
"""The plugins of a configuration: built with their options, and refused with the cause."""

from pathlib import Path

import pytest
from msgspec import to_builtins

from mptcpd_ebpf.config import plugin_set
from mptcpd_ebpf.config.settings import Config, Interfaces, RateLimits
from mptcpd_ebpf.core.configuration import PluginSpec
from mptcpd_ebpf.core.model import AddressPolicy
from mptcpd_ebpf.core.serving import Rule
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from tests.netns.own_plugins import plugin_folder

SOURCE = """
from mptcpd_ebpf.plugin import Options, Plugin


class OwnOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pace: int = 1


class Own(Plugin):
    name = {name!r}
    mode = {mode!r}
    priority = {priority}
    Options = OwnOptions
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plugin folder with `low` and `high` (mode any), `user` and `kern`, and `odd`."""
    plugins = {
        "low": ("any", 1),
        "high": ("any", 2),
        "user": ("userspace", 0),
        "kern": ("kernel", 0),
        "odd": ("sideways", 0),
    }
    sources = {
        name: SOURCE.format(name=name, mode=mode, priority=priority)
        for name, (mode, priority) in plugins.items()
    }
    return plugin_folder(tmp_path, **sources)


def config(folder: Path, **keys: object) -> Config:
    return Config(plugin_dir=str(folder), **keys)  # type: ignore[arg-type]


def refusal(of: Config) -> str:
    with pytest.raises(Failure) as caught:
        plugin_set.build(of)
    assert caught.value.exit_code is ExitCode.CONFIG
    return str(caught.value)


def test_no_plugin_is_a_set_that_needs_no_path_manager() -> None:
    found = plugin_set.build(Config())
    assert (found.plugins, found.specs, found.mode) == ({}, [], None)


def test_each_named_plugin_is_built_once_with_its_options(folder: Path) -> None:
    rules = [Rule(plugin="user"), Rule(plugin=None), Rule(plugin="low")]
    found = plugin_set.build(
        config(
            folder,
            path_manager="low",
            load_plugins=["high"],
            rules=rules,
            plugins={"high": {"pace": 7}},
        )
    )
    assert list(found.plugins) == ["low", "high", "user"]
    assert [to_builtins(p.options) for p in found.plugins.values()] == [
        {"pace": 1}, {"pace": 7}, {"pace": 1}
    ]  # fmt: skip
    assert [spec.name for spec in found.specs] == ["low", "high", "user"]
    assert [spec.options for spec in found.specs] == [{}, {"pace": 7}, {}]


def test_a_spec_changes_with_options_and_code_and_else_not(folder: Path) -> None:
    def spec(**options: int) -> PluginSpec:
        named = config(folder, path_manager="low", plugins={"low": options})
        return plugin_set.build(named).specs[0]

    first = spec()
    assert spec() == first
    assert spec(pace=2) != first
    (folder / "low.py").write_text((folder / "low.py").read_text() + "# changed\n")
    assert spec() != first


@pytest.mark.parametrize(
    ("names", "mode"),
    [(["low"], None), (["low", "user"], "userspace"), (["kern", "high"], "kernel")],
)
def test_the_set_needs_the_path_manager_of_its_plugins(
    folder: Path, names: list[str], mode: str | None
) -> None:
    assert plugin_set.build(config(folder, path_manager=names)).mode == mode


def test_plugins_for_both_path_managers_exclude_each_other(folder: Path) -> None:
    told = refusal(config(folder, path_manager=["kern", "low", "user"]))
    for words in ("kern", "in-kernel", "user", "userspace"):
        assert words in told
    assert "low" not in told


def test_a_mode_that_does_not_exist_is_refused(folder: Path) -> None:
    told = refusal(config(folder, path_manager="odd"))
    for words in ("plugin odd", "'sideways'", "kernel, userspace, any"):
        assert words in told


def test_a_plugin_that_raises_when_it_is_made_is_refused(folder: Path) -> None:
    file = folder / "low.py"
    file.write_text(
        file.read_text() + "\n    def __init__(self, options):\n        raise OSError('no')\n"
    )
    told = refusal(config(folder, path_manager="low"))
    assert "plugin low" in told
    assert "OSError: no" in told


def test_options_that_do_not_fit_are_refused(folder: Path) -> None:
    told = refusal(config(folder, path_manager="low", plugins={"low": {"pace": "fast"}}))
    assert "plugin low" in told
    assert "ValidationError: Expected `int`" in told


@pytest.mark.parametrize(
    ("keys", "default"),
    [
        ({}, None),
        ({"path_manager": ["low", "high"]}, "low"),
        ({"load_plugins": ["low", "high"]}, "high"),
        ({"load_plugins": ["high", "low"]}, "high"),
        ({"path_manager": "low", "load_plugins": ["high"]}, "low"),
        ({"rules": [Rule(plugin="high")]}, None),
    ],
)
def test_connections_without_a_rule_get_the_named_or_the_highest_plugin(
    folder: Path, keys: dict[str, object], default: str | None
) -> None:
    of = config(folder, **keys)
    assert plugin_set.core_config(of, plugin_set.build(of)).default_plugin == default


def test_the_engine_gets_what_decisions_depend_on() -> None:
    rules = [Rule(plugin=None)]
    of = Config(
        rules=rules,
        interfaces=Interfaces(allow=["eth*"], deny=["eth9"]),
        addresses=AddressPolicy(existing=False),
        limits=RateLimits(destructive_per_second=3),
    )
    found = plugin_set.core_config(of, plugin_set.build(of))
    assert found.rules == rules
    assert (found.allowed_interfaces, found.denied_interfaces) == (["eth*"], ["eth9"])
    assert found.addresses == AddressPolicy(existing=False)
    assert found.destructive_per_second == 3
