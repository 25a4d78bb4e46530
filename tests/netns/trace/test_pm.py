# SPDX-License-Identifier: BSD-3-Clause
"""`trace pm` reports the commands of every manager, the kernel's answers, and the events."""

import errno
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.kernel.counters import read
from mptcpd_ebpf.lab import Lab, Path
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint, raise_limits
from mptcpd_ebpf.trace.events import Events
from tests.netns.mptcp_sockets import connection
from tests.netns.tracing import tracing


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=1), Path(delay_ms=1)]) as lab:
        raise_limits(lab.client, lab.server)
        yield lab


def test_commands_of_ip_and_their_events_are_reported(lab: Lab) -> None:
    with tracing(lab.client, "pm") as traced, connection(lab) as ends:
        created = traced.event("event", kind="ConnectionEstablished")
        path = lab.paths[1]
        add = ["ip", "mptcp", "endpoint", "add", path.client_ip, "subflow"]
        lab.client.run(add)
        command = traced.event("command", command="ADD_ADDR", errno=0)
        joined = traced.event("event", kind="SubflowEstablished")
        lab.client.run(add, check=False)
        refused = traced.until(
            # The error depends on the kernel's version.
            lambda line: (
                line["event"] == "command" and line["errno"] in (errno.EINVAL, errno.EEXIST)
            ),
            "the refusal",
        )
        lab.client.run(["ip", "mptcp", "endpoint", "flush"])
        closed = traced.event("event", kind="SubflowClosed")
        port = ends.client.getsockname()[1]
        summary = traced.end()
    assert created["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert command["comm"] == "ip"
    assert command["asked"].startswith(f"{path.client_ip} subflow")
    assert command["duration_ns"] > 0
    assert joined["local"].startswith(path.client_ip + ":")
    assert (joined["since_command"], closed["since_command"]) == ("ADD_ADDR", "FLUSH_ADDRS")
    assert joined["since_command_ns"] > 0
    assert closed["since_command_ns"] > 0
    assert refused["said"]
    assert summary["commands"]["ADD_ADDR"] == 2
    assert summary["refused"] == 1


def test_the_process_filter_applies_to_commands(lab: Lab) -> None:
    with tracing(lab.client, "pm", "--comm", "no-such-name") as traced:
        lab.client.run(["ip", "mptcp", "limits", "show"])
        summary = traced.end()
    assert summary["commands"] == {}
    with lab.client.entered():
        assert read()["MPJoinSynAckRx"] == 0


def test_the_address_filter_applies_to_commands(lab: Lab) -> None:
    near, far = lab.paths
    with tracing(lab.client, "pm", "--addr", far.client_ip) as traced:
        for path in (near, far):
            add_endpoint(lab.client, path.client_ip, "signal")
        traced.event("command")
        summary = traced.end()
    assert [line["asked"].split()[0] for line in traced.all("command")] == [far.client_ip]
    assert summary["commands"] == {"ADD_ADDR": 1}


def test_lost_events_are_counted(lab: Lab) -> None:
    with lab.client.entered():
        events = Events(receive_buffer=1)
    try:
        for _ in range(20):
            with connection(lab):
                pass
        while events.read():
            pass
        assert list(events.lost.values()) == [1]
    finally:
        events.close()
