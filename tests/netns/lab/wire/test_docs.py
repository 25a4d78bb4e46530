# SPDX-License-Identifier: BSD-3-Clause
"""The listings of docs/lab-wire.md run unchanged, from top to bottom."""

import pathlib
import re

import pytest

from mptcpd_ebpf.lab import Lab, Path
from tests.tree import ROOT

GUIDE = ROOT / "docs" / "lab-wire.md"


def test_the_listings_of_the_guide_run(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8")
    listings = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(listings) >= 5
    with Lab(paths=[Path(), Path()]) as lab:
        names: dict[str, object] = {"lab": lab}
        for listing in listings:
            # As many lines precede it as in the guide, so that a traceback has the right line.
            above = text[: text.index(listing)].count("\n")
            exec(compile("\n" * above + listing, str(GUIDE), "exec"), names)
    printed = capsys.readouterr().out
    assert "path1 out" in printed
    assert "MP_JOIN SYN backup=1 address_id=2 token=0x" in printed
    assert (tmp_path / "withdrawn.pcap").stat().st_size > 100
