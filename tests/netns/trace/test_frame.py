# SPDX-License-Identifier: BSD-3-Clause
"""Every trace tool refuses clearly, counts its losses, and leaves no program behind."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path as File

import pytest

from mptcpd_ebpf.lab import Lab, Path, ShortConnections
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from mptcpd_ebpf.trace.instead import WITHOUT_PROGRAMS
from mptcpd_ebpf.trace.lines.base import SCHEMA
from mptcpd_ebpf.trace.trace_programs import RING_BYTES, TracePrograms
from tests.netns.daemon.test_startup_signals import catches as handles
from tests.netns.daemon_process import PROGRAM
from tests.netns.mptcp_sockets import connection
from tests.netns.probes.test_lockdown import CAST, translated
from tests.netns.tracing import DEADLINE_S, MAIN, tracing
from tests.waiting import until

TOOLS = ("life", "joins", "resets", "retrans", "rtt", "stalls", "sched", "fallback", "pm")


def programs() -> set[str]:
    """The names of this project's tracing programs that are in the kernel."""
    listed = subprocess.run(["bpftool", "prog", "show"], capture_output=True, text=True, check=True)
    names = {"state_changed", "destroyed", "round_ends", "call_begins", "packet_leaves"}
    return {name for name in names if f"name {name}" in listed.stdout}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_ends_after_its_duration_and_reports_its_cost(tool: str) -> None:
    with Lab(paths=[Path()]) as lab, tracing(lab.client, tool, "-d", "0.5") as traced:
        last = traced.until(lambda line: "overhead" in line, "the account")
    assert traced.lines[-1] == last
    assert last["lost"] == {}
    assert traced.lines[0]["means"]
    assert traced.lines[0]["netns"] == lab.client.netns
    assert all(line["schema"] == SCHEMA and line["trace"] == tool for line in traced.lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_signal_ends_a_tool_with_its_summary(tool: str, number: signal.Signals) -> None:
    with (
        Lab(paths=[Path()]) as lab,
        lab.client.popen(
            [sys.executable, "-c", MAIN, "trace", tool], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert f"tracing {tool} in namespace {lab.client.netns} by " in process.stdout.readline()
        process.send_signal(number)
        printed = process.stdout.read().splitlines()
        assert process.wait() == ExitCode.OK
    assert printed[-1].startswith("lost: nothing; overhead: ")
    summary = printed[:-1]
    assert summary or tool in ("rtt", "sched")  # they have a line per subflow, and saw none


def maps(library: str) -> Callable[[int], bool]:
    return lambda pid: library in File(f"/proc/{pid}/maps").read_text()


def has_maps(pid: int) -> bool:
    for each in File(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if "bpf-map" in os.readlink(each):
                return True
    return False


LOADING = "while it loads programs"
MOMENTS: dict[str, Callable[[int], bool]] = {
    "at once": lambda pid: handles(pid, signal.SIGTERM),
    "while it imports": maps("msgspec"),
    "while it opens libbpf": maps("libbpf"),
    LOADING: has_maps,
}


@pytest.mark.starts_anew
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_startup_ends_a_tool_without_an_error(
    number: signal.Signals, moment: str
) -> None:
    with (
        Lab(paths=[Path()]) as lab,
        lab.client.popen(
            [PROGRAM, "trace", "joins"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            until(lambda: MOMENTS[moment](process.pid), moment)
            process.send_signal(number)
            printed, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert (process.returncode, errors) == (ExitCode.OK, "")
    # Nothing, if the tracing had not begun, else a complete summary.
    if printed or moment == LOADING:
        assert printed.splitlines()[-1].startswith("lost: nothing; overhead: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["life", "--token", "xyz"],
        ["life", "--token", "0"],
        ["life", "--addr", "10.0.0"],
        ["life", "--addr", "::1:x"],
        ["life", "--cgroup", "/tmp"],
        ["life", "--netns", "no-such-namespace"],
        ["life", "--netns", ""],
        ["life", "--netns", ".."],
        ["life", "--netns", "../../proc/self/ns/net"],
        ["life", "-d", "nan"],
        ["doctor", "1a2b3c4d", "-d", "inf"],
        ["nonsense"],
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "trace", *arguments], capture_output=True, text=True
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("mptcpd-ebpf: ")
    assert done.stderr.count("\n") == 1
    assert arguments[-1] in done.stderr


def test_a_file_that_is_not_a_namespace_is_refused() -> None:
    with (
        tempfile.NamedTemporaryFile(dir="/run/netns", prefix="mptcpd-ebpf-test-") as file,
        Lab(paths=[Path()]) as lab,
    ):
        name = File(file.name).name
        done = lab.client.run(
            [sys.executable, "-c", MAIN, "trace", "life", "--netns", name], check=False
        )
    assert done.returncode == ExitCode.USAGE
    assert "is not a network namespace" in done.stderr


def test_help_shows_complete_summaries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "trace", "--help"], capture_output=True, text=True, check=True
    )
    assert "..." not in done.stdout.partition("Commands:")[2]


WITHOUT_BPF = ["setpriv", "--bounding-set=-sys_admin,-cap_38,-cap_39", "--inh-caps=-all", "--"]


@pytest.mark.parametrize("tool", sorted({*TOOLS, "doctor"} - WITHOUT_PROGRAMS))
def test_a_refusal_for_lack_of_privilege_names_an_alternative(tool: str) -> None:
    arguments = ["1a2b3c4d"] if tool == "doctor" else ["-d", "1"]
    done = subprocess.run(
        [*WITHOUT_BPF, sys.executable, "-c", MAIN, "trace", tool, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.PRIVILEGE
    assert "CAP_BPF" in done.stderr
    assert "; instead: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["trace", "trace_tap", "trace_pm"])
def test_no_program_calls_a_helper_that_lockdown_refuses(name: str) -> None:
    if f" {CAST}\n" not in File("/proc/kallsyms").read_text():
        pytest.skip(f"this kernel has no {CAST}: tracing needs bpf_probe_read_kernel")
    with TracePrograms(name) as kernel:
        calls = {
            program: re.findall(r"\bcall (\S+)", translated(descriptor))
            for program, descriptor in kernel.programs().items()
        }
    assert calls
    # Reads of user memory are allowed.
    reads = {call for each in calls.values() for call in each if "probe_read" in call}
    assert not {call for call in reads if "probe_read_user" not in call}, calls


def test_lost_records_are_counted() -> None:
    with Lab(paths=[Path()]) as lab:
        constants = {"own_netns": lab.client.netns}
        with TracePrograms("trace", ("state_changed",), constants, ring_bytes=4096) as kernel:
            for _ in range(20):
                with connection(lab):
                    pass
            kept = len(kernel.read("trace_record"))
            lost = kernel.lost["records"]
    assert kept > 0
    assert lost > 0
    # Each connection passes at least SYN_SENT and ESTABLISHED; its end may come later.
    assert kept + lost >= 40


def test_a_tool_that_cannot_keep_up_reports_its_losses() -> None:
    with Lab(paths=[Path()]) as lab:
        process = lab.client.popen(
            [sys.executable, "-c", MAIN, "trace", "life"], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            try:
                # Each connection passes at least five states, and a record has about 250 bytes.
                lab.start(ShortConnections(count=RING_BYTES // (5 * 250) * 2)).result()
            finally:
                process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT)
            printed = process.stdout.read().splitlines()
    lost = re.match(r"lost: (\d+) records; ", printed[-1])
    assert lost, printed[-1]
    assert int(lost[1]) > 0


def test_a_killed_tool_leaves_no_program() -> None:
    statistics = File("/proc/sys/kernel/bpf_stats_enabled").read_text()
    before = programs()
    with Lab(paths=[Path()]) as lab, tracing(lab.client, "sched"):
        assert "round_ends" in programs()
        # tracing() kills a tool that has not ended.
    # The kernel unloads a program a moment after its last user is gone.
    until(lambda: programs() <= before, "the programs are unloaded")
    assert File("/proc/sys/kernel/bpf_stats_enabled").read_text() == statistics
