# SPDX-License-Identifier: BSD-3-Clause
"""Commands of the in-kernel path manager, against `ip mptcp` and the events they cause."""

import asyncio
import errno
import json
import os
import re
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    ChangeEndpoint,
    CreateSubflow,
    FlushEndpoints,
    KernelCommand,
    RemoveEndpoint,
    SetLimits,
)
from mptcpd_ebpf.core.endpoints import HIGHEST_LIMIT, EndpointFlag, Limits
from mptcpd_ebpf.core.events import (
    SubflowClosed,
    SubflowEstablished,
    SubflowPriority,
)
from mptcpd_ebpf.kernel.errors import NetlinkRefused, NotPermitted
from mptcpd_ebpf.kernel.pm_client import CommandAnswer, PmClient
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.lab import Host, Lab
from tests.netns.mptcp_peers import connected, peer


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(ip="both") as lab:
        yield lab


@pytest.fixture
def pm(lab: Lab) -> Iterator[PmClient]:
    with lab.client.entered(), PmClient() as client:
        yield client


def shown(host: Host) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(
        host.run(["ip", "-j", "mptcp", "endpoint", "show"]).stdout
    )
    return rows


def carry_out(pm: PmClient, command: KernelCommand) -> None:
    assert pm.execute_now(command) == (0, "")


@pytest.mark.parametrize("version", [4, 6])
def test_endpoints_are_what_ip_mptcp_shows(lab: Lab, pm: PmClient, version: int) -> None:
    path = lab.paths[0]
    ip = path.client_ip if version == 4 else path.client_ip6
    assert ip
    if_index = _if_index(lab.client, path.client_if)
    flags = EndpointFlag.SUBFLOW | EndpointFlag.BACKUP
    carry_out(pm, AddEndpoint(ip=ip, address_id=9, flags=flags, if_index=if_index, reason="test"))
    assert shown(lab.client) == [
        {
            "address": ip,
            "id": 9,
            "subflow": True,
            "backup": True,
            "dev": path.client_if,
        }
    ]
    (endpoint,) = pm.endpoints()
    assert (endpoint.ip, endpoint.address_id, endpoint.flags) == (ip, 9, flags)
    assert endpoint.if_index == if_index
    assert pm.endpoint(9) == endpoint

    carry_out(
        pm,
        ChangeEndpoint(ip=ip, address_id=9, flags=EndpointFlag.FULLMESH, reason="test"),
    )
    assert pm.endpoint(9).flags == EndpointFlag.SUBFLOW | EndpointFlag.FULLMESH
    carry_out(pm, RemoveEndpoint(address_id=9, reason="test"))
    assert shown(lab.client) == []
    assert pm.endpoints() == []


def _if_index(host: Host, name: str) -> int:
    rows = json.loads(host.run(["ip", "-j", "link", "show", "dev", name]).stdout)
    index: int = rows[0]["ifindex"]
    return index


def test_an_endpoint_with_a_port_listens(lab: Lab, pm: PmClient) -> None:
    ip = lab.paths[0].client_ip
    carry_out(pm, AddEndpoint(ip=ip, flags=EndpointFlag.SIGNAL, port=4711, reason="test"))
    (endpoint,) = pm.endpoints()
    assert (endpoint.port, endpoint.flags) == (4711, EndpointFlag.SIGNAL)
    again = pm.execute_now(AddEndpoint(ip=ip, flags=EndpointFlag.SIGNAL, port=4711, reason="test"))
    assert again.errno == errno.EADDRINUSE
    assert "listens on that address and port already" in again.explanation


def test_endpoints_of_others_are_read_and_flushed(lab: Lab, pm: PmClient) -> None:
    for index in range(8):
        lab.client.run(f"ip mptcp endpoint add 192.0.2.{index + 1} id {index + 11} signal".split())
    assert [(e.ip, e.address_id) for e in pm.endpoints()] == [
        (f"192.0.2.{index + 1}", index + 11) for index in range(8)
    ]
    carry_out(pm, FlushEndpoints(reason="test"))
    assert shown(lab.client) == []


def test_the_highest_limit_is_probed_without_a_change(lab: Lab, pm: PmClient) -> None:
    before = pm.limits()
    highest = pm.highest_limit()
    assert highest >= HIGHEST_LIMIT
    assert pm.limits() == before
    limits = ["ip", "mptcp", "limits", "set", "subflows"]
    lab.client.run([*limits, str(highest)])
    assert pm.limits().subflows == highest
    assert lab.client.run([*limits, str(highest + 1)], check=False).returncode


def test_limits(lab: Lab, pm: PmClient) -> None:
    carry_out(pm, SetLimits(subflows=5, add_addr_accepted=3, reason="test"))
    assert pm.limits() == Limits(subflows=5, add_addr_accepted=3)
    words = lab.client.run(["ip", "mptcp", "limits"]).stdout.split()
    assert words == ["add_addr_accepted", "3", "subflows", "5"]
    answer = pm.execute_now(SetLimits(subflows=1000, add_addr_accepted=0, reason="test"))
    assert answer.errno == errno.EINVAL
    assert re.search(r"\(subflows\)|limit greater than maximum", answer.explanation)
    assert pm.limits() == Limits(subflows=5, add_addr_accepted=3)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (AddEndpoint(ip="192.0.2.1", reason="test"), errno.EEXIST, "an endpoint already"),
        (AddEndpoint(ip="192.0.2.2", address_id=7, reason="test"), errno.EBUSY, "another"),
        (
            AddEndpoint(
                ip="192.0.2.2", flags=EndpointFlag.SIGNAL | EndpointFlag.FULLMESH, reason="test"
            ),
            errno.EINVAL,
            "fullmesh is for subflow endpoints",
        ),
        (AddEndpoint(ip="192.0.2.2", port=5, reason="test"), errno.EINVAL, "with a port"),
        (RemoveEndpoint(address_id=99, reason="test"), errno.EINVAL, "no endpoint with that"),
        (
            ChangeEndpoint(ip="192.0.2.9", address_id=99, flags=EndpointFlag.BACKUP, reason="test"),
            errno.EINVAL,
            "no such endpoint",
        ),
    ],
)
def test_refusals_are_explained(
    pm: PmClient, command: KernelCommand, code: int, words: str
) -> None:
    carry_out(pm, AddEndpoint(ip="192.0.2.1", address_id=7, reason="test"))
    answer = pm.execute_now(command)
    if not told_in_one(answer):
        assert answer.errno == code, answer
        assert words in answer.explanation


def told_in_one(answer: CommandAnswer) -> bool:
    """Whether the kernel, as 6.1, has but one refusal for a duplicate and a full table."""
    return answer.errno == errno.EINVAL and all(
        words in answer.explanation
        for words in ("too many addresses or duplicate one", "endpoint's already", "table is full")
    )


def test_a_full_table_says_so(pm: PmClient) -> None:
    for index in range(1, 300):  # newer kernels stop only where the address ids end
        ip = f"198.18.{index // 250}.{index % 250 + 1}"
        answer = pm.execute_now(AddEndpoint(ip=ip, reason="test"))
        if answer.errno:
            break
    assert answer.errno == errno.ERANGE or told_in_one(answer)
    assert "table is full" in answer.explanation


def test_reading_an_endpoint_that_is_not_there(pm: PmClient) -> None:
    with pytest.raises(NetlinkRefused, match="no endpoint with that address id") as caught:
        pm.endpoint(42)
    assert caught.value.errno == errno.EINVAL


def test_many_requests_in_flight(pm: PmClient) -> None:
    """Each caller gets its own answer, also with mixed successes and failures."""

    async def all_at_once() -> list[int]:
        answers = await asyncio.gather(
            *(
                pm.execute(RemoveEndpoint(address_id=index, reason="test"))
                if index % 2
                else pm.execute(SetLimits(subflows=1, add_addr_accepted=0, reason="test"))
                for index in range(1, 101)
            )
        )
        return [answer.errno for answer in answers]

    assert asyncio.run(all_at_once()) == [errno.EINVAL, 0] * 50


def test_endpoints_move_the_subflows_of_a_connection(lab: Lab) -> None:
    second = lab.paths[1]
    with (
        peer(lab.client, path_manager="kernel") as client,
        peer(lab.server, path_manager="kernel") as server,
        connected(client, server, lab.paths[0].server_ip) as pair,
    ):
        carry_out(
            client.pm,
            AddEndpoint(ip=second.client_ip, address_id=3, reason="test"),
        )
        joined = client.log.wait(SubflowEstablished)
        assert (joined.local.ip, joined.local_id) == (second.client_ip, 3)
        carry_out(
            client.pm,
            ChangeEndpoint(
                ip=second.client_ip, address_id=3, flags=EndpointFlag.BACKUP, reason="test"
            ),
        )
        assert server.log.wait(SubflowPriority).backup
        refused = client.pm.execute_now(
            CreateSubflow(
                token=pair.at_client.token,
                local_ip=second.client_ip,
                local_id=3,
                remote=pair.at_client.remote,
                reason="test",
            )
        )
        assert "the mode of a connection never changes" in refused.explanation
        carry_out(client.pm, RemoveEndpoint(address_id=3, reason="test"))
        assert client.log.wait(SubflowClosed).local == joined.local


def test_without_privilege(lab: Lab) -> None:
    """Reading limits needs no capability; everything else needs CAP_NET_ADMIN and says so."""

    def unprivileged() -> tuple[int, str, str, int]:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with PmClient() as client:
            answer = client.execute_now(FlushEndpoints(reason="test"))
            subflows = client.limits().subflows
        try:
            PmEvents.open()
        except NotPermitted as error:
            return answer.errno, answer.explanation, str(error), subflows
        return answer.errno, answer.explanation, "", subflows

    code, explanation, refusal, subflows = lab.client.call(unprivileged)
    assert code == errno.EPERM
    assert "CAP_NET_ADMIN" in explanation
    assert "CAP_NET_ADMIN" in refusal
    assert subflows == 2
