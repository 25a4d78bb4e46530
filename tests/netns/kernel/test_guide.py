# SPDX-License-Identifier: BSD-3-Clause
"""Runs the example of docs/kernel.md, and checks that every name in it exists."""

import re
import subprocess
import sys
from pathlib import Path

from mptcpd_ebpf import api
from mptcpd_ebpf.kernel.sysctl import PathManagerSetting
from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.tree import ROOT
from tests.waiting import SLOWNESS, until

GUIDE = (ROOT / "docs" / "kernel.md").read_text()


def example() -> str:
    """The first indented block, as a file."""
    block = re.search(r"\n\n((?:    .*\n|\n)+)", GUIDE)
    assert block is not None
    return "\n".join(line.removeprefix("    ") for line in block[1].splitlines())


def test_the_example_uses_the_second_uplink(mptcp_lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    text = example()
    assert "192.0.2.7" in text
    file.write_text(text.replace("192.0.2.7", mptcp_lab.paths[1].client_ip))
    raise_limits(mptcp_lab.server)
    with mptcp_lab.client.popen(
        [sys.executable, "-u", str(file)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            until(
                lambda: mptcp_lab.client.call(PathManagerSetting().current) == "userspace",
                "the example has chosen the path manager",
            )
            traffic = mptcp_lab.start(RequestResponse(interval_ms=10))
            while "done" not in (line := process.stdout.readline()):
                assert line, "the example ended"
                assert "refused" not in line
            mptcp_lab.paths[1].wait_for_subflow(10 * SLOWNESS)
            assert traffic.stop().unanswered == 0
        finally:
            process.kill()


def test_every_name_in_the_guide_s_table_is_in_the_library() -> None:
    (table,) = re.findall(r"\| libmptcpd \|.*?\n\n", GUIDE, re.DOTALL)
    cells = [row.split("|")[2] for row in table.strip().splitlines()[2:]]
    names = [name for cell in cells for name in re.findall(r"`([A-Z]\w+)(?:\.(\w+))?", cell)]
    assert len(names) > 15
    for name, attribute in names:
        assert name in api.__all__, name
        if attribute and attribute != "world":
            assert callable(getattr(getattr(api, name), attribute)), f"{name}.{attribute}"
