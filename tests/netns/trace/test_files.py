# SPDX-License-Identifier: BSD-3-Clause
"""What a tool writes with -o, `trace show` prints as the tool did, however the trace ended."""

import signal
import subprocess
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from tests.netns.daemon_process import PROGRAM, command, refusal
from tests.waiting import until


@pytest.mark.parametrize("tool", ["life", "joins", "retrans", "rtt", "pm", "sched"])
def test_a_file_shows_what_was_printed(tool: str, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    with Lab(paths=[LabPath(delay_ms=5), LabPath(delay_ms=5)]) as lab:
        allow_joins(lab)
        inside = ("nsenter", f"--net=/run/netns/{lab.client.name}", "--")
        tracing = subprocess.Popen(
            [*inside, PROGRAM, "trace", tool, "-o", str(file)], stdout=subprocess.PIPE, text=True
        )
        assert tracing.stdout is not None
        first = tracing.stdout.readline()
        lab.start(RequestResponse(count=40, interval_ms=10)).result()
        tracing.send_signal(signal.SIGINT)
        printed = first + tracing.stdout.read()
        assert tracing.wait(20) == ExitCode.OK
    shown = command("trace", "show", str(file))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == printed
    assert printed.count("\n") > 2
    rows = command("trace", "show", str(file), "--json").stdout
    assert rows == file.read_text().partition("\n")[2]


def test_a_killed_trace_leaves_all_that_it_printed(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    with Lab(paths=[LabPath()]) as lab:
        inside = ("nsenter", f"--net=/run/netns/{lab.client.name}", "--")
        tracing = subprocess.Popen(
            [*inside, PROGRAM, "trace", "life", "-o", str(file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert tracing.stdout is not None
        tracing.stdout.readline()
        traffic = lab.start(RequestResponse(count=3, interval_ms=10))
        traffic.result()
        token = f"{traffic.token:08x}"
        until(lambda: '"event":"closed"' in file.read_text(), "the end is traced")
        tracing.kill()
        tracing.wait()
    shown = command("trace", "show", str(file), "--token", token)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines
    assert all(token in line for line in lines)
    ended = command("trace", "show", str(file), "--event", "ended").stdout.splitlines()
    assert ended == [line for line in lines if "  end  " in line]


def test_a_file_that_exists_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("x")
    code, words = refusal("trace", "life", "-d", "0", "-o", str(file))
    assert (code, words) == (64, f"-o {file}: the file exists already; name a new one")
    code, words = refusal("trace", "show", str(file))
    assert code == ExitCode.USAGE
    assert words.startswith(f"{file}:1: not a file of 'mptcpd-ebpf trace -o'")
