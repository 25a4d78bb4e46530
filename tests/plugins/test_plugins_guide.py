# SPDX-License-Identifier: BSD-3-Clause
"""docs/plugins.md teaches by listings; they are run here, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf.config import plugin_loader, settings
from mptcpd_ebpf.core import plugin
from tests.netns.daemon_process import daemon
from tests.tree import ROOT

GUIDE = (ROOT / "docs" / "plugins.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", GUIDE, re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_ten_lines_load_and_run(folder: Path) -> None:
    assert len([line for line in FILES["obituary.py"].splitlines() if line.strip()]) <= 10
    options = (f"--plugin-dir={folder}", "--path-manager=obituary", "--probes=netlink")
    with daemon(folder, *options) as running:
        assert "plugins obituary" in running.log


def test_the_tested_plugin_and_its_tests(folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_rules_of_the_guide_are_right() -> None:
    rules, presets = (
        settings.parse(text, "guide", options_of=plugin_loader.options_of)
        for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    )
    assert [rule.plugin for rule in rules.rules] == ["ndiffports", "fullmesh", None, "backup"]
    assert [rule.preset for rule in presets.rules] == ["bulk", "interactive"]


def test_the_guide_names_every_handler_and_every_shipped_plugin() -> None:
    for name in vars(plugin.Plugin):
        if not name.startswith("_") and callable(getattr(plugin.Plugin, name)):
            assert f"`{name}" in GUIDE or name == "Options", name
    for name in plugin_loader.available():
        assert f"| `{name}` | {plugin_loader.load(name).mode} |" in GUIDE
