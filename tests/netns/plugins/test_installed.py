# SPDX-License-Identifier: BSD-3-Clause
"""A plugin from another package, installed with pip and found by its entry point."""

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
name = "other-paths"
version = "1.0"

[project.entry-points."mptcpd_ebpf.plugins"]
other = "other_paths.plugin:Other"
by_module = "other_paths.plugin"

[tool.hatch.build.targets.wheel]
packages = ["other_paths"]
"""

PLUGIN = """
from typing import ClassVar

from mptcpd_ebpf.plugin import AddEndpoint, EndpointFlag, Options, Plugin


class OtherOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefix: str


class Other(Plugin):
    name = "other"
    mode = "kernel"
    Options: ClassVar = OtherOptions

    def new_local_address(self, ctx, address):
        if address.ip.startswith(self.options.prefix):
            yield AddEndpoint(ip=address.ip, flags=EndpointFlag.SIGNAL, reason="its prefix matches")


class ByModule(Plugin):
    name = "by_module"
"""


def installed(folder: Path) -> Path:
    """Installs the package from its source into a folder of its own."""
    source = folder / "source" / "other_paths"
    source.mkdir(parents=True)
    (source.parent / "pyproject.toml").write_text(PROJECT)
    (source / "__init__.py").touch()
    (source / "plugin.py").write_text(PLUGIN)
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    # The build backend is installed already: no registry is used.
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
    text = "path_manager: other\nload_plugins: [by_module]\n"
    file.write_text(f"{text}plugins: {{other: {{prefix: '10.0.'}}}}\n")
    with plugin_host() as host, host.daemon(tmp_path, "--config", str(file)) as running:
        assert [plugin["name"] for plugin in status(running)["plugins"]] == [
            "other",
            "by_module",
        ]
        host.veth("a", "192.168.7.1/24", "10.0.1.1/24")
        host.expect("10.0.1.1")
        assert host.endpoints["10.0.1.1"]["signal"] is True
        file.write_text(f"{text}plugins: {{other: {{suffix: '1'}}}}\n")
        refused = running.ask("reload")
        assert refused.returncode == 78
        assert "plugins.other.suffix" in refused.stderr
