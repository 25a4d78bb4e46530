# SPDX-License-Identifier: BSD-3-Clause
"""A program's former environment is kept, and merging twice equals merging once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.mptcpize import environment
from mptcpd_ebpf.runtime import resources
from mptcpd_ebpf.runtime.exit_codes import Failure

LIBRARY = "/usr/lib/ours.so"

names = st.text(st.characters(codec="ascii", exclude_characters=": \0"), min_size=1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", LIBRARY),
        ("/a.so", f"/a.so:{LIBRARY}"),
        ("/a.so /b.so", f"/a.so:/b.so:{LIBRARY}"),
        (f"{LIBRARY}:/b.so", f"/b.so:{LIBRARY}"),
        (" : ", LIBRARY),
    ],
)
def test_preload_is_appended(before: str, after: str) -> None:
    assert environment.with_preload(before, LIBRARY) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "multipathtcp=1"),
        ("http2debug=1", "http2debug=1,multipathtcp=1"),
        ("multipathtcp=0,gctrace=1", "gctrace=1,multipathtcp=1"),
        ("multipathtcp=2", "multipathtcp=1"),
    ],
)
def test_godebug_is_merged(before: str, after: str) -> None:
    assert environment.with_multipath(before) == after


@given(others=st.lists(names), separators=st.sampled_from([":", " ", " :", "::"]))
def test_other_preloads_keep_their_order(others: list[str], separators: str) -> None:
    others = [name for name in others if name != LIBRARY]
    once = environment.with_preload(separators.join(others), LIBRARY)
    assert once.split(":") == [*others, LIBRARY]
    assert environment.with_preload(once, LIBRARY) == once


def test_other_variables_and_the_base_stay_unchanged() -> None:
    base = {"A": "1", "LD_PRELOAD": "/a.so", "GODEBUG": "x=1"}
    changed = environment.for_program(base, LIBRARY)
    assert changed == {
        "A": "1",
        "LD_PRELOAD": f"/a.so:{LIBRARY}",
        "GODEBUG": "x=1,multipathtcp=1",
    }
    assert base["LD_PRELOAD"] == "/a.so"


@pytest.mark.parametrize("odd", ["/a b/x.so", "/a:b/x.so", "/$LIB/x.so"])
def test_a_path_that_ld_so_would_misread_is_refused(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "preload_library", lambda: odd)
    with pytest.raises(Failure, match="LD_PRELOAD cannot hold"):
        environment.library()
