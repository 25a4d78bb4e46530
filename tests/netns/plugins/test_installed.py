# SPDX-License-Identifier: BSD-3-Clause
"""A third party's plugin, installed with pip as a package with an entry point, serves."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.daemon_host import status
from tests.netns.plugin_host import plugin_host

pytestmark = pytest.mark.starts_anew  # PYTHONPATH is read at the start

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "stranger-paths"
version = "1.0"

[project.entry-points."mptcpd_ebpf.plugins"]
stranger = "stranger_paths.plugin:Stranger"
by_module = "stranger_paths.plugin"

[tool.hatch.build.targets.wheel]
packages = ["stranger_paths"]
"""

PLUGIN = """
from typing import ClassVar

from mptcpd_ebpf.plugin import AddEndpoint, EndpointFlag, Options, Plugin


class StrangerOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefix: str


class Stranger(Plugin):
    name = "stranger"
    mode = "kernel"
    Options: ClassVar = StrangerOptions

    def new_local_address(self, ctx, address):
        if address.ip.startswith(self.options.prefix):
            yield AddEndpoint(ip=address.ip, flags=EndpointFlag.SIGNAL, reason="it looks nice")


class ByModule(Plugin):
    name = "by_module"
"""


def installed(folder: Path) -> Path:
    """The package, installed from its source into a folder of its own."""
    source = folder / "source" / "stranger_paths"
    source.mkdir(parents=True)
    (source.parent / "pyproject.toml").write_text(PROJECT)
    (source / "__init__.py").touch()
    (source / "plugin.py").write_text(PLUGIN)
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    # The build backend is already here: no registry is asked.
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [*pip, *options, str(source.parent)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return target


def test_it_is_found_by_name_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed(tmp_path)))
    file = tmp_path / "c.yaml"
    text = "path_manager: stranger\nload_plugins: [by_module]\n"
    file.write_text(f"{text}plugins: {{stranger: {{prefix: '10.0.'}}}}\n")
    with plugin_host() as host, host.daemon(tmp_path, "--config", str(file)) as running:
        assert [plugin["name"] for plugin in status(running)["plugins"]] == [
            "stranger",
            "by_module",
        ]
        host.veth("a", "192.168.7.1/24", "10.0.1.1/24")
        host.expect("10.0.1.1")
        assert host.endpoints["10.0.1.1"]["signal"] is True
        file.write_text(f"{text}plugins: {{stranger: {{suffix: '1'}}}}\n")
        refused = running.ask("reload")
        assert refused.returncode == 78
        assert "plugins.stranger.suffix" in refused.stderr
