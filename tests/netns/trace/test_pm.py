# SPDX-License-Identifier: BSD-3-Clause
"""`trace pm` sees every manager's commands, the kernel's answers, and what follows."""

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


def test_commands_of_ip_and_what_they_lead_to(lab: Lab) -> None:
    with tracing(lab.client, "pm") as told, connection(lab) as ends:
        created = told.event("event", kind="ConnectionEstablished")
        path = lab.paths[1]
        add = ["ip", "mptcp", "endpoint", "add", path.client_ip, "subflow"]
        lab.client.run(add)
        command = told.event("command", command="ADD_ADDR", errno=0)
        joined = told.event("event", kind="SubflowEstablished")
        lab.client.run(add, check=False)
        refused = told.until(
            # Which of the two is a matter of the kernel's age.
            lambda line: (
                line["event"] == "command" and line["errno"] in (errno.EINVAL, errno.EEXIST)
            ),
            "the refusal",
        )
        lab.client.run(["ip", "mptcp", "endpoint", "flush"])
        closed = told.event("event", kind="SubflowClosed")
        port = ends.client.getsockname()[1]
        summary = told.end()
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


def test_only_the_process_that_is_asked_for(lab: Lab) -> None:
    with tracing(lab.client, "pm", "--comm", "no-such-name") as told:
        lab.client.run(["ip", "mptcp", "limits", "show"])
        summary = told.end()
    assert summary["commands"] == {}
    with lab.client.entered():
        assert read()["MPJoinSynAckRx"] == 0


def test_only_the_addresses_that_are_asked_for(lab: Lab) -> None:
    near, far = lab.paths
    with tracing(lab.client, "pm", "--addr", far.client_ip) as told:
        for path in (near, far):
            add_endpoint(lab.client, path.client_ip, "signal")
        told.event("command")
        summary = told.end()
    assert [line["asked"].split()[0] for line in told.all("command")] == [far.client_ip]
    assert summary["commands"] == {"ADD_ADDR": 1}


def test_lost_events_are_accounted_for(lab: Lab) -> None:
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
