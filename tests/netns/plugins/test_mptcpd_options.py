# SPDX-License-Identifier: BSD-3-Clause
"""mptcpd's command line and configuration file have the same effect as with mptcpd."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.daemon_process import refusal
from tests.netns.plugin_host import PluginHost, plugin_host
from tests.waiting import SLOWNESS, until


@pytest.fixture
def host() -> Iterator[PluginHost]:
    with plugin_host() as host:
        yield host


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["extra"],
        ["-l"],
        ["-l", "printer"],
        ["--log=printer"],
        ["--log=printer", "--log=null"],
        ["--path-manager=", "--path-manager=sspi"],
        ["--p=sspi"],
        ["--path-manager"],
        ["--path-manager="],
        ["--load-plugins="],
        ["--plugin-dir="],
        ["--addr-flags=nonsense"],
        ["--addr-flags=signal,fullmesh"],
        ["--notify-flags=nonsense"],
        ["--config=a", "--mptcpd-conf=b"],
    ],
    ids=" ".join,
)
def test_usage_errors(arguments: list[str]) -> None:
    code, _message = refusal("daemon", *arguments)
    assert code == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--path-manager=nobody"], "nobody: there is none of that name"),
        (["--load-plugins=nobody"], "nobody: there is none of that name"),
        (["--load-plugins=addr_adv,sspi"], "addr_adv needs the in-kernel path manager and sspi"),
        (["--plugin-dir=/nowhere", "--path-manager=sspi"], "/nowhere cannot be looked at: No such"),
        (["--mptcpd-conf=/nowhere"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_cannot_be_used(host: PluginHost, arguments: list[str], words: str) -> None:
    code, message = refusal("daemon", *arguments, prefix=host.prefix)
    assert code == 78
    assert words in message


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_both_spellings_and_the_last_wins(
    host: PluginHost, tmp_path: Path, ending: signal.Signals
) -> None:
    host.veth("a", "10.0.1.1/24")
    options = (
        "-d --log=null -l stderr --path-manager sspi --path-manager=addr_adv "
        "--addr-flags=signal --addr-flags subflow,backup --notify-flags=check_route "
        "--notify-flags existing,skip_link_local --load-plugins=addr_adv"
    )
    with host.daemon(tmp_path, *options.split()) as running:
        host.expect("10.0.1.1")
        assert set(host.endpoints["10.0.1.1"]) == {"address", "id", "dev", "subflow", "backup"}
        running.process.send_signal(ending)
        assert running.process.wait(10 * SLOWNESS) == 0


def test_load_plugins_alone_is_enough(host: PluginHost, tmp_path: Path) -> None:
    host.veth("a", "10.0.1.1/24")
    with host.daemon(tmp_path, "--load-plugins=addr_adv"):
        host.expect("10.0.1.1")


def test_a_configuration_file_of_mptcpd(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "mptcpd.conf"
    file.write_text(
        "[core]\nlog=stderr\nplugin-dir=/usr/lib/mptcpd\npath-manager=addr_adv\naddr-flags=signal\n"
    )
    warning = "mptcpd.conf:3: plugin-dir=/usr/lib/mptcpd holds no Python plugin"
    host.veth("a", "10.0.1.1/24")
    with host.daemon(tmp_path, "--mptcpd-conf", str(file)) as running:
        assert running.log.count(warning) == 1
        host.ip("addr add 10.0.1.2/24 dev a")  # notify-flags does not have "existing"
        host.expect("10.0.1.2")
        assert host.endpoints["10.0.1.2"]["signal"]
        file.write_text(
            "[core]\npath-manager=addr_adv\nplugin-dir=/usr/lib/mptcpd\n"
            "addr-flags=subflow\nnotify-flags=existing\n"
        )
        running.process.send_signal(signal.SIGHUP)
        until(
            lambda: [row.get("subflow") for row in host.endpoints.values()] == [True, True],
            "both addresses, with the flag that the file has now",
        )
        until(lambda: running.log.count(warning) == 2, "the warning is repeated")


@pytest.mark.parametrize("destination", ["journal", "syslog"])
def test_a_log_destination_that_does_not_exist_is_refused(
    host: PluginHost, destination: str
) -> None:
    hidden = "mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; mount -t tmpfs none /dev"
    prefix = (*host.prefix, "unshare", "--mount", "--", "sh", "-ec", f'{hidden}; exec "$@"', "sh")
    code, message = refusal("daemon", f"--log={destination}", prefix=prefix)
    assert code == 78
    assert f"log: {destination}: " in message
