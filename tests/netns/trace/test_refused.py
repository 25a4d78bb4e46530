# SPDX-License-Identifier: BSD-3-Clause
"""Where the kernel refuses the BPF programs, joins, fallback and pm use events and counters."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path as File

import pytest

from mptcpd_ebpf.cli.trace import _run
from mptcpd_ebpf.kernel import counters
from mptcpd_ebpf.lab import Host, Lab, Path, ShortConnections
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from mptcpd_ebpf.probes import bpf_object as bpf_object_module
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.resources import bpf_object
from mptcpd_ebpf.trace.frame import Trace
from mptcpd_ebpf.trace.joins import trace_joins
from mptcpd_ebpf.trace.life import trace_life
from mptcpd_ebpf.trace.scope import Scope
from tests.netns.mptcp_sockets import connection, exchange
from tests.netns.trace.test_frame import WITHOUT_BPF
from tests.netns.tracing import MAIN, Tracing


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=2), Path(delay_ms=4)]) as lab:
        allow_joins(lab)
        yield lab


@contextmanager
def refused(host: Host, *arguments: str) -> Iterator[Tracing]:
    """Runs a tool that may not load programs."""
    with host.popen(
        [*WITHOUT_BPF, sys.executable, "-c", MAIN, "trace", *arguments, "--json"],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            running = Tracing(process)
            means = running.event("started")["means"]
            assert "CAP_BPF" in means[0] + means[-1]
            yield running
        finally:
            if process.poll() is None:
                process.kill()


def test_established_and_refused_joins_are_known_from_events(lab: Lab) -> None:
    with refused(lab.client, "joins") as traced:
        with connection(lab):
            join = traced.event("join", outcome="established")
        lab.server.run(["ip", "mptcp", "limits", "set", "subflows", "0"])
        with connection(lab):
            traced.event("join", outcome="failed")
        with lab.server.entered():
            refusals = counters.read().get("MPJoinRejected", 1)
        raise_limits(lab.server)
        lab.start(ShortConnections(count=3)).result()
        summary = traced.end()
    assert join["local"].startswith(lab.paths[1].client_ip + ":")
    assert join["token"]
    assert refusals == summary["outcomes"]["failed"] == 1


def test_joins_that_this_host_refuses_are_counted(lab: Lab) -> None:
    lab.server.run(["ip", "mptcp", "limits", "set", "subflows", "0"])
    with lab.server.entered():
        if "MPJoinRejected" not in counters.read():
            pytest.skip("this kernel does not count joins over the limit")
    with refused(lab.server, "joins") as traced, connection(lab):
        join = traced.event("join")
        traced.end()
    assert (join["outcome"], join["token"]) == ("refused", None)
    assert "reached the limit" in join["why"]
    assert join["evidence"] == ["counter MPJoinRejected was incremented"]


def test_a_fallback_in_the_handshake_is_known_from_counters(lab: Lab) -> None:
    lab.paths[0].strip_mptcp()
    with refused(lab.client, "fallback") as traced, connection(lab) as ends:
        port = ends.client.getsockname()[1]
        line = traced.event("fallback")
        traced.end()
    assert line["counter"] == "MPCapableFallbackSYNACK"
    assert line.get("local", f"{lab.paths[0].client_ip}:{port}").endswith(f":{port}")


def test_a_fallback_after_the_handshake_is_known_from_counters(lab: Lab) -> None:
    lab.client.run(["ip", "mptcp", "endpoint", "flush"])
    with lab.client.entered():
        if "DssFallback" not in counters.read():
            pytest.skip("this kernel does not count DssFallback")
    near = lab.paths[0]
    with refused(lab.client, "fallback", "--addr", near.client_ip) as traced:
        with connection(lab) as ends:
            port = ends.client.getsockname()[1]
            near.strip_mptcp()
            exchange(ends, b"naked")
            line = traced.event("fallback")
        traced.end()
    assert line["local"] == f"{near.client_ip}:{port}"
    assert line["token"]


def test_pm_reports_events_without_commands(lab: Lab) -> None:
    with refused(lab.client, "pm") as traced, connection(lab):
        traced.event("event", kind="ConnectionEstablished")
        summary = traced.end()
    assert summary["commands"] == {}


@pytest.fixture
def without_hook(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces a tracepoint of the BPF objects by one that no kernel has."""
    objects = {}
    for name in ("trace", "trace_tap"):
        objects[name] = tmp_path / f"{name}.bpf.o"
        objects[name].write_bytes(
            bpf_object(name).read_bytes().replace(b"_set_state", b"_set_stale")
        )
    monkeypatch.setattr(bpf_object_module, "bpf_object", lambda name: objects[name])


@pytest.mark.usefixtures("without_hook")
def test_joins_does_without_a_missing_tracepoint(lab: Lab) -> None:
    with lab.client.entered(), Trace("joins", Scope(), out=StringIO()) as trace:
        trace_joins(trace, {"own_netns": lab.client.netns})
        assert trace.means[0] == "mptcp_pm events"
        assert trace.means[-1].startswith("packets are not seen: the kernel refused the programs")


@pytest.mark.usefixtures("without_hook")
def test_a_refusal_names_an_alternative_in_one_line(lab: Lab) -> None:
    everything = dict.fromkeys(("netns", "pid", "comm", "cgroup", "token", "addr"))
    with lab.client.entered(), pytest.raises(Failure) as refusal:
        _run(
            "life",
            trace_life,
            as_json=False,
            output=None,
            overwrite=False,
            duration=0.1,
            **everything,
        )
    assert refusal.value.exit_code == ExitCode.NO_MPTCP
    words = str(refusal.value)
    assert words.startswith("trace life: the kernel refused the programs: ")
    assert "; instead: 'mptcpd-ebpf monitor'" in words
    assert "\n" not in words
