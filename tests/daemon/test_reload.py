# SPDX-License-Identifier: BSD-3-Clause
"""A reload puts a configuration in force as a whole, or leaves the old one as it was."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.config import plugin_loader, plugin_set
from mptcpd_ebpf.config.settings import Settings
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import Thresholds
from mptcpd_ebpf.daemon.reload import Reloader
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.logging_setup import LogDestination, LogSwitch
from tests.daemon.fakes import FakeProbes, Host
from tests.netns.own_plugins import plugin_folder

PLUGIN = """
from mptcpd_ebpf.plugin import Plugin


class {class_name}(Plugin):
    name = {name!r}
    mode = {mode!r}
"""
BROKEN = PLUGIN + "\n    def __init__(self, options):\n        raise RuntimeError('by the test')\n"

OLD = """
path_manager: first
plugin_dir: {plugins}
probes: {{thresholds: {{stall_us: 1}}}}
limits: {{destructive_per_second: 1}}
"""
NEW = """
path_manager: second
plugin_dir: {plugins}
probes: {{thresholds: {{stall_us: 2}}}}
limits: {{destructive_per_second: 2}}
metrics: {{enabled: true}}
log_level: debug
"""


class FakeSwitch(LogSwitch):
    """A destination that records whether it was applied or cancelled."""

    def __init__(self, level: str) -> None:
        super().__init__(logging.NullHandler(), level)
        self.level = level
        self.applied = self.cancelled = False

    def apply(self) -> None:
        self.applied = True

    def cancel(self) -> None:
        self.cancelled = True


class Reloading:
    """A daemon that runs with the configuration `OLD`, and files that a reload reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write_plugin("first", mode="kernel")
        self.write_plugin("second", mode="userspace")
        self.file = folder / "c.yaml"
        self.write(OLD)
        self.probes = FakeProbes()
        self.switches: list[FakeSwitch] = []
        self.no_log: Failure | None = None
        """What opening the log's destination raises."""
        self.settings = Settings(file=self.file)
        config = self.settings.load(plugin_loader.options_of)
        self.host = Host(folder / "run", config=config, probes=self.probes)
        self.host.plugins = plugin_set.build(config)
        self.reloader = Reloader(
            self.settings, config, self.host.loop, self.host.path_manager, self._prepare
        )

    def write(self, text: str) -> None:
        self.file.write_text(text.format(plugins=self.folder / "plugins"))

    def write_plugin(self, name: str, *, mode: str, source: str = PLUGIN) -> None:
        text = source.format(name=name, mode=mode, class_name=name.title())
        plugin_folder(self.folder, **{name: text})

    def _prepare(self, _destination: LogDestination, level: str) -> LogSwitch:
        if self.no_log is not None:
            raise self.no_log
        self.switches.append(FakeSwitch(level))
        return self.switches[-1]

    def run(self, use: Callable[[], None]) -> None:
        async def main(host: Host) -> None:
            host.path_manager.use(host.plugins.mode)
            use()

        self.host.run(main)

    @property
    def in_force(self) -> tuple[object, ...]:
        """All that a reload changes."""
        engine = self.host.loop.engine
        return (
            [id(plugin) for plugin in engine.installed],
            self.probes.thresholds,
            self.host.setting.value,
            [file.read_bytes() for file in sorted((self.folder / "run").glob("*"))],
            self.reloader.pending_restart,
            self.host.loop.config,
        )


@pytest.fixture
def reloading(tmp_path: Path) -> Reloading:
    return Reloading(tmp_path)


def broken_yaml(daemon: Reloading) -> ExitCode:
    daemon.write(NEW + "nonsense: 1\n")
    return ExitCode.CONFIG


def missing_plugin(daemon: Reloading) -> ExitCode:
    daemon.write(NEW.replace("second", "third"))
    return ExitCode.CONFIG


def plugin_that_cannot_be_made(daemon: Reloading) -> ExitCode:
    daemon.write_plugin("second", mode="userspace", source=BROKEN)
    return ExitCode.CONFIG


def plugins_of_both_modes(daemon: Reloading) -> ExitCode:
    daemon.write(NEW + "load_plugins: [first]\n")
    return ExitCode.CONFIG


def missing_log_destination(daemon: Reloading) -> ExitCode:
    daemon.no_log = Failure("log: journal: not running", ExitCode.CONFIG)
    return ExitCode.CONFIG


def sysctl_that_cannot_be_set(daemon: Reloading) -> ExitCode:
    daemon.host.setting.refuses = "userspace"
    return ExitCode.PRIVILEGE


@pytest.mark.parametrize(
    "spoil",
    [
        broken_yaml,
        missing_plugin,
        plugin_that_cannot_be_made,
        plugins_of_both_modes,
        missing_log_destination,
        sysctl_that_cannot_be_set,
    ],
)
def test_a_failed_reload_leaves_the_old_configuration_in_force(
    reloading: Reloading, spoil: Callable[[Reloading], ExitCode], caplog: pytest.LogCaptureFixture
) -> None:
    def use() -> None:
        before = reloading.in_force
        reloading.write(NEW)
        exit_code = spoil(reloading)
        with pytest.raises(Failure) as caught:
            reloading.reloader.reload()
        assert caught.value.exit_code is exit_code
        assert reloading.in_force == before
        assert reloading.host.records == []  # no plugin was called
        reloading.reloader.reload_or_log()
        assert reloading.in_force == before

    reloading.run(use)
    assert not any(switch.applied for switch in reloading.switches)
    assert all(switch.cancelled for switch in reloading.switches)
    assert "not reloaded" in caplog.text


def test_a_reload_puts_everything_in_force(reloading: Reloading) -> None:
    def use() -> None:
        reloading.write(NEW)
        reloading.reloader.reload()

    reloading.run(use)
    loop = reloading.host.loop
    assert loop.engine.plugins == ["second"]
    assert reloading.probes.thresholds == Thresholds(stall_us=2)
    assert reloading.host.setting.value == "userspace"
    assert [(each.level, each.applied, each.cancelled) for each in reloading.switches] == [
        ("debug", True, False)
    ]
    assert loop.config.limits.destructive_per_second == 2
    assert reloading.reloader.pending_restart == ["metrics"]
    configured = reloading.host.records[-1].event
    assert isinstance(configured, ev.Configured)
    assert configured.config.default_plugin == "second"


def test_a_reload_that_succeeds_after_one_that_failed(reloading: Reloading) -> None:
    def use() -> None:
        reloading.write(NEW)
        reloading.host.setting.refuses = "userspace"
        with pytest.raises(Failure):
            reloading.reloader.reload()
        reloading.host.setting.refuses = None
        reloading.reloader.reload()
        reloading.write(OLD)
        reloading.reloader.reload()

    reloading.run(use)
    assert reloading.host.loop.engine.plugins == ["first"]
    assert reloading.host.setting.value == "kernel"
    assert reloading.reloader.pending_restart == []


def test_a_configuration_without_plugins_restores_the_setting(reloading: Reloading) -> None:
    def use() -> None:
        reloading.write(NEW)
        reloading.reloader.reload()
        assert reloading.host.setting.value == "userspace"
        reloading.write("{{}}")
        reloading.reloader.reload()

    reloading.run(use)
    assert reloading.host.setting.value == "kernel"
    assert reloading.host.loop.engine.installed == []
    assert list((reloading.folder / "run").glob("*")) == []
