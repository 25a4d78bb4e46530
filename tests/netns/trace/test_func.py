# SPDX-License-Identifier: BSD-3-Clause
"""`trace func` counts each call once, for the right connection, in every way of attaching.

Kernels differ in the ways that they support; a test of an unsupported way is skipped when the tool
refuses it.  ``mptcp_subflow_get_send`` has a tracepoint, so every kernel supports a way for it.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path as File

import pytest

from mptcpd_ebpf.lab import Host, Lab, Path
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from mptcpd_ebpf.trace.func import TOTAL_KEY
from mptcpd_ebpf.trace.func_targets import MPTCP_TRACEPOINTS
from mptcpd_ebpf.trace.trace_programs import TracePrograms
from tests.netns.mptcp_sockets import Ends, connection, exchange
from tests.netns.tracing import MAIN, Tracing, tracing
from tests.waiting import until

SCHEDULED = "mptcp_subflow_get_send"
SENDS, BYTES = 7, 1234


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=1)]) as lab:
        yield lab


def run_once(host: Host, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the tool for a tenth of a second."""
    process = host.popen(
        [sys.executable, "-c", MAIN, "trace", "func", *arguments, "-d", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out.decode(), err.decode())


def send(ends: Ends) -> None:
    for _ in range(SENDS):
        exchange(ends, b"x" * BYTES)


def ways(traced: Tracing) -> str:
    return " ".join(traced.event("started")["means"])


@pytest.mark.parametrize("way", ["fentry", "kprobe"])
def test_each_call_has_arguments_result_and_duration(lab: Lab, way: str) -> None:
    arguments = ("mptcp_sendmsg", "--args", "--latency", "--attach", way)
    with tracing(lab.client, "func", *arguments) as traced:
        assert way in ways(traced)
        with connection(lab) as ends:
            send(ends)
            port = ends.client.getsockname()[1]
        summary = traced.end()
    calls = [line for line in traced.all("call") if line["arguments"].get("len") == BYTES]
    # The server sends in another namespace.
    assert len(calls) == SENDS
    assert summary["calls"] == len(traced.all("call")) == SENDS + 1, "and the greeting"
    for call in calls:
        assert call["types"]["sk"] == "struct sock *"
        assert call["returned"] == BYTES
        assert call["duration_ns"] > 0
        assert call["local"] == f"10.1.1.2:{port}"
        assert call["task"]["pid"] == os.getpid()
    assert {call["token"] for call in calls} == set(summary["connections"])
    assert sum(summary["histogram"]) == summary["calls"]
    assert summary["longest_ns"] == max(line["duration_ns"] for line in traced.all("call"))
    assert summary["duration_ns"] == sum(line["duration_ns"] for line in traced.all("call"))


@pytest.mark.parametrize("way", ["fentry", "kprobe", "tp_btf"])
def test_calls_are_counted_by_connection_and_way(lab: Lab, way: str) -> None:
    with tracing(lab.client, "func", SCHEDULED, "--args", "--attach", way) as traced:
        with connection(lab) as ends:
            send(ends)
        with connection(lab) as ends:
            exchange(ends, b"x")
        summary = traced.end()
    assert summary["attach"] == way
    assert not summary["all_namespaces"]
    few, many = sorted(summary["connections"].values())
    assert few >= 1
    if way != "tp_btf":  # the kernel passes the tracepoint only if it has subflows to choose from
        assert many >= SENDS + 1 > few, "each send calls the scheduler at least once"
    assert Counter(line["token"] for line in traced.all("call")) == summary["connections"]
    assert summary["calls"] == few + many


def test_the_stack_has_the_callers(lab: Lab) -> None:
    with tracing(lab.client, "func", SCHEDULED, "--stack") as traced:
        with connection(lab) as ends:
            send(ends)
        summary = traced.end()
    most = summary["stacks"][0]
    frames = [re.sub(r"\+0x.*|\..*", "", frame) for frame in most["frames"]]
    assert "mptcp_sendmsg" in frames
    assert SCHEDULED not in frames
    assert not [frame for frame in frames[: frames.index("mptcp_sendmsg")] if "bpf" in frame]
    assert sum(stack["calls"] for stack in summary["stacks"]) == summary["calls"]


def test_a_function_without_connection_is_counted_in_all_namespaces(lab: Lab) -> None:
    with tracing(lab.client, "func", "ack_update_msk", "--attach", "tp_btf", "--args") as traced:
        with connection(lab) as ends:
            send(ends)
        summary = traced.end()
    assert summary["all_namespaces"]
    call = traced.all("call")[0]
    assert call["token"] is None
    assert call["local"] is None
    assert set(call["arguments"]) >= {"data_ack", "new_snd_una"}
    assert call["types"]["data_ack"] == "u64"


def test_a_filter_excludes_a_function_without_connection(lab: Lab) -> None:
    done = run_once(lab.client, "ack_update_msk", "--attach", "tp_btf", "--addr", "10.1.1.2")
    assert done.returncode == ExitCode.NO_MPTCP
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (("--pid", str(os.getpid())), True),
        (("--pid", "1"), False),
        (("--comm", "no-such-name"), False),
        (("--addr", "10.1.1.2"), True),
        (("--addr", "10.9.0.0/16"), False),
        (("--token", "1"), False),
    ],
)
def test_filters_pass_only_matching_calls(lab: Lab, arguments: tuple[str, ...], seen: bool) -> None:
    with tracing(lab.client, "func", SCHEDULED, "--args", *arguments) as traced:
        with connection(lab) as ends:
            send(ends)
        summary = traced.end()
    assert bool(traced.all("call")) == seen
    assert (summary.get("calls", 0) > 0) == seen
    assert (SCHEDULED in summary.get("not_called", [])) != seen


def test_the_token_filter_passes_only_its_connection(lab: Lab) -> None:
    with (
        connection(lab) as wanted,
        connection(lab) as other,
        tracing(lab.client, "func", SCHEDULED, "--args") as every,
    ):
        exchange(wanted, b"x")
        port = wanted.client.getsockname()[1]
        token = every.event("call", local=f"10.1.1.2:{port}")["token"]
        with tracing(lab.client, "func", SCHEDULED, "--args", "--token", token) as traced:
            send(wanted)
            send(other)
            summary = traced.end()
    assert set(summary["connections"]) == {token}
    assert {line["token"] for line in traced.all("call")} == {token}


def test_a_namespace_is_chosen_by_name(lab: Lab) -> None:
    with tracing(lab.server, "func", SCHEDULED, "--args", "--netns", lab.client.name) as traced:
        with connection(lab) as ends:
            send(ends)
        traced.end()
    assert {line["local"].partition(":")[0] for line in traced.all("call")} == {"10.1.1.2"}


@pytest.mark.parametrize("pattern", ["no_such_function", "tcp_*", "*mptcp_nothing*"])
def test_a_pattern_without_match_is_refused(lab: Lab, pattern: str) -> None:
    done = run_once(lab.client, pattern)
    assert done.returncode == ExitCode.USAGE
    assert pattern in done.stderr
    assert done.stderr.count("\n") == 1


def test_too_many_or_no_traceable_functions_are_refused_with_one_line(lab: Lab) -> None:
    done = run_once(lab.client, "*", "--latency")
    assert done.stderr.startswith("mptcpd-ebpf: trace func *: ")
    assert done.stderr.count("\n") == 1
    if done.returncode == ExitCode.USAGE:
        assert "narrow the pattern" in done.stderr
    else:
        assert done.returncode == ExitCode.NO_MPTCP
        assert all(name in done.stderr for name in MPTCP_TRACEPOINTS)


def test_lost_records_are_counted_and_so_are_their_calls(lab: Lab) -> None:
    targets = {"point_00": SCHEDULED}
    constants = {"with_records": True}
    with (
        connection(lab) as ends,
        TracePrograms("trace_func", targets, constants, targets=targets, ring_bytes=4096) as kernel,
    ):
        # More than one scheduler decision covers: Linux 6.1 sends 64 kB per decision.
        for _ in range(50):
            exchange(ends, b"x" * 60_000)
        kept = len(kernel.read("func_record"))
        totals = kernel.table("totals", TOTAL_KEY, "func_total")
        lost = kernel.lost["records"]
    assert kept > 0
    assert lost > 0
    assert sum(total["calls"] for total in totals.values()) == kept + lost


def test_a_killed_tool_leaves_no_program(lab: Lab) -> None:
    def loaded() -> bool:
        shown = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True)
        return bool(re.search(r"name (entry|exit|point)_\d\d ", shown.stdout))

    statistics = File("/proc/sys/kernel/bpf_stats_enabled").read_text()
    with tracing(lab.client, "func", SCHEDULED):
        assert loaded()
        # tracing() kills a tool that has not ended.
    # The kernel unloads a program a moment after its last user is gone.
    until(lambda: not loaded(), "the programs are unloaded")
    assert File("/proc/sys/kernel/bpf_stats_enabled").read_text() == statistics
