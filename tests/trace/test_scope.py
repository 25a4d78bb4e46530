# SPDX-License-Identifier: BSD-3-Clause
"""The filters, and the connection and process of a subflow."""

from ipaddress import ip_network

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.measurement import Measurement, Owner
from mptcpd_ebpf.trace.scope import (
    MOST_KNOWN,
    Directory,
    Scope,
    Subject,
    parse_address,
    parse_token,
)

SERVER = SockAddr("10.1.2.2", 80)


def measured(number: int, port: int | None = None) -> Measurement:
    return Measurement(
        token=number,
        local=SockAddr("10.1.1.2", number % 65536 if port is None else port),
        remote=SERVER,
        netns=1,
        cookie=number,
        at=0,
        owner=Owner(pid=number),
    )


def test_the_directory_drops_the_least_recently_used() -> None:
    directory = Directory()
    for number in range(1, MOST_KNOWN + 1):
        directory.of_measurement(measured(number))
    directory.of_measurement(measured(1))
    for number in range(MOST_KNOWN + 1, 2 * MOST_KNOWN):
        directory.of_measurement(measured(number))
    assert len(directory.by_cookie) == len(directory.by_flow) == MOST_KNOWN
    assert len(directory.owners) == MOST_KNOWN
    assert 1 in directory.by_cookie
    assert 2 not in directory.by_cookie


def test_all_subflows_of_a_connection_have_its_owner() -> None:
    directory = Directory()
    first = directory.of_measurement(measured(7))
    assert first.owner == Owner(pid=7)
    assert directory.of_flow(first.local, first.remote) is first
    directory.forget(first)
    assert directory.of_flow(first.local, first.remote).token is None


def test_a_flow_is_found_only_by_its_current_addresses() -> None:
    """The record of connect(2) comes before the kernel has chosen a port."""
    directory = Directory()
    subject = directory.of_measurement(measured(1, port=0))
    assert not directory.by_flow
    local = SockAddr("10.1.1.2", 4001)
    directory.sent_by(1, local, SERVER)
    assert directory.of_flow(local, SERVER) is subject
    moved = SockAddr("10.1.1.2", 4002)
    directory.sent_by(1, moved, SERVER)
    assert directory.of_flow(local, SERVER) is subject
    directory.of_measurement(measured(1, port=4002))
    assert list(directory.by_flow) == [(moved, SERVER)]
    directory.forget(subject)
    assert not directory.by_flow


SUBFLOW = Subject(
    token=0xAB,
    local=SockAddr("10.1.1.2", 4000),
    remote=SERVER,
    owner=Owner(pid=5, comm="curl", cgroup=9),
)


@pytest.mark.parametrize(
    ("scope", "fits"),
    [
        (Scope(), True),
        (Scope(pid=5), True),
        (Scope(pid=6), False),
        (Scope(comm="curl"), True),
        (Scope(comm="cur"), False),
        (Scope(cgroups=frozenset({8, 9})), True),
        (Scope(cgroups=frozenset({8})), False),
        (Scope(token=0xAB), True),
        (Scope(token=0xAC), False),
        (Scope(address=ip_network("10.1.0.0/16")), True),
        (Scope(address=ip_network("fd00::/8")), False),
        (Scope(address=SERVER), True),
        (Scope(address=SockAddr("10.1.2.2", 81)), False),
        (Scope(pid=5, token=0xAC), False),
    ],
)
def test_a_subflow_must_pass_all_filters(scope: Scope, fits: bool) -> None:
    assert scope.admits(SUBFLOW) == fits


def test_an_unknown_value_does_not_match_a_filter() -> None:
    unknown = Subject(token=None, local=SUBFLOW.local, remote=SUBFLOW.remote)
    assert Scope().admits(unknown)
    scopes = (Scope(pid=5), Scope(comm="curl"), Scope(token=1), Scope(cgroups=frozenset({1})))
    assert not any(scope.admits(unknown) for scope in scopes)


def test_addresses_and_tokens_are_parsed() -> None:
    assert parse_address("10.1.2.2") == ip_network("10.1.2.2/32")
    assert parse_address("[fd00::1]:80") == SockAddr("fd00::1", 80)
    assert parse_token("000000ab") == 0xAB
    for wrong in ("0x1_0", "0", "-1", "123456789"):
        with pytest.raises(ValueError, match=f"'{wrong}' is not a token"):
            parse_token(wrong)
    for wrong in ("10.1", "10.0.0.0/33", "fd00::zz"):
        with pytest.raises(ValueError, match=wrong):
            parse_address(wrong)
