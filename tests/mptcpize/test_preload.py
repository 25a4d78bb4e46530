# SPDX-License-Identifier: BSD-3-Clause
"""The preload library: which calls it changes, its fallback, and other preloads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mptcpd_ebpf.mptcpize import environment

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with a socket() that records, compiled once."""
    built = tmp_path_factory.mktemp("recorder") / "recorder.so"
    subprocess.run(
        ["clang", "-O2", "-fPIC", "-shared", "-o", built, HERE / "recorder.c"], check=True
    )
    return built


def test_only_tcp_sockets_become_mptcp_over_the_whole_table(recorder: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "whole_table.py", recorder],
        env={**os.environ, "LD_PRELOAD": f"{environment.library()}:{recorder}"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    assert answer["tried"] > 80_000
    assert done.stderr == ""


def test_an_earlier_wrapper_is_called_first(recorder: Path) -> None:
    """The recorder in front returns a result itself: the preload library is not called."""
    script = (
        "import ctypes, sys; r = ctypes.CDLL(sys.argv[1]);"
        "ctypes.CDLL(None).socket(2, 1, 0);"
        "print(ctypes.c_int.in_dll(r, 'calls').value, (ctypes.c_int * 3).in_dll(r, 'recorded')[2])"
    )
    preload = environment.with_preload(str(recorder), str(environment.library()))
    done = subprocess.run(
        [sys.executable, "-c", script, recorder],
        env={**os.environ, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "0"]


def test_debug_reports_the_protocol_of_each_socket() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import socket as s; s.socket(); s.socket(type=s.SOCK_DGRAM)"],
        env=environment.for_program(os.environ, str(environment.library()), debug=True),
        capture_output=True,
        text=True,
        check=True,
    )
    [line] = done.stderr.splitlines()
    assert "socket(AF_INET, 0x80001, 0): " in line
    assert line.endswith(": MPTCP") or ": stays TCP (" in line
