# SPDX-License-Identifier: BSD-3-Clause
"""`trace show` prints the file of -o as the tool printed its lines, however the trace ended."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from tests.netns.daemon_process import PROGRAM, command, refusal
from tests.netns.trace.test_frame import TOOLS
from tests.waiting import until


@pytest.mark.parametrize(
    ("tool", "stop"),
    [
        *((tool, signal.SIGINT) for tool in TOOLS),
        ("func mptcp_subflow_get_send --args --stack", signal.SIGINT),
        ("life", signal.SIGTERM),
    ],
)
def test_show_prints_what_the_tool_printed(tool: str, stop: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    with Lab(paths=[LabPath(delay_ms=5), LabPath(delay_ms=5)]) as lab:
        allow_joins(lab)
        inside = ("nsenter", f"--net=/run/netns/{lab.client.name}", "--")
        options = ("--addr", "10.0.0.0/8", "-o", str(file))
        tracing = subprocess.Popen(
            [*inside, PROGRAM, "trace", *tool.split(), *options], stdout=subprocess.PIPE, text=True
        )
        assert tracing.stdout is not None
        first = tracing.stdout.readline()
        lab.start(RequestResponse(count=40, interval_ms=10)).result()
        tracing.send_signal(stop)
        printed = first + tracing.stdout.read()
        assert tracing.wait(20) == ExitCode.OK
    shown = command("trace", "show", str(file))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == printed
    assert printed.count("\n") >= 2
    head, _, rows = file.read_text().partition("\n")
    assert json.loads(head)["filters"] == {"addr": "10.0.0.0/8"}
    assert json.loads(head)["means"] == json.loads(rows.partition("\n")[0])["means"] != []
    assert command("trace", "show", str(file), "--json").stdout == rows


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


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    assert command("trace", "doctor", "-o", str(file)).returncode == 0
    code, words = refusal("trace", "show", str(file), "--event", "ended")
    assert code == ExitCode.USAGE
    assert words == (
        "--event ended: trace doctor has the kinds started, connection, summary, diagnosis, account"
    )


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("x")
    code, words = refusal("trace", "doctor", "-o", str(file))
    assert (code, words) == (
        ExitCode.USAGE,
        f"-o {file}: the file exists; name another one, or add --overwrite",
    )
    code, words = refusal("trace", "show", str(file))
    assert code == ExitCode.USAGE
    assert words.startswith(f"{file}:1: not a file of 'mptcpd-ebpf trace -o'")
    printed = command("trace", "doctor", "-o", str(file), "--overwrite").stdout
    assert command("trace", "show", str(file)).stdout == printed != ""


def test_a_tool_that_cannot_start_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    code, words = refusal("trace", "func", "no_such_*", "-o", str(file))
    assert code == ExitCode.USAGE
    assert words.startswith("trace func no_such_*: ")
    assert not file.exists()
