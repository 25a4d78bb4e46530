# SPDX-License-Identifier: BSD-3-Clause
"""Commands on endpoints affect every connection: none may lose its last usable subflow."""

import pytest

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.admission import Admission
from mptcpd_ebpf.core.commands import Cause, ChangeEndpoint, Command, FlushEndpoints, RemoveEndpoint
from mptcpd_ebpf.core.endpoints import Endpoint, EndpointFlag, Limits
from mptcpd_ebpf.core.guard import Guard
from mptcpd_ebpf.core.model import World
from tests.core.scenario import (
    FIBRE,
    RADIO,
    START,
    TOKEN,
    Listener,
    created,
    established,
    joined,
    left,
)

BACKUP = EndpointFlag.SUBFLOW | EndpointFlag.BACKUP


@pytest.fixture
def scene() -> Listener:
    """A connection on fibre and radio, with an endpoint of each: ids 1 and 2."""
    listener = Listener()
    for number, (local, _) in enumerate((FIBRE, RADIO), start=1):
        listener.tell(ev.LocalAddressChanged(if_index=number, ip=local.ip, prefix_len=24))
    listener.tell(
        ev.EndpointsRead(
            endpoints=[
                Endpoint(ip=FIBRE[0].ip, address_id=1), Endpoint(ip=RADIO[0].ip, address_id=2)
            ],
            limits=Limits(subflows=2, add_addr_accepted=0),
        ),
        created(),
        established(),
        joined(local_id=2),
    )  # fmt: skip
    return listener


def refusal(guard: Guard, command: Command, world: World) -> str | None:
    refused = guard.refusal(command, world, START)
    if refused is None:
        guard.passed(command, world, START)
    return refused


def mode(token: int, *, in_kernel: bool) -> ev.ModesRead:
    return ev.ModesRead(modes=[ev.ConnectionMode(token=token, in_kernel=in_kernel)])


def remove(address_id: int) -> RemoveEndpoint:
    return RemoveEndpoint(address_id=address_id, reason="test")


def test_one_of_two_may_go_and_then_the_other_must_stay(scene: Listener) -> None:
    guard, world = Guard(), scene.tracker.world
    assert refusal(guard, remove(2), world) is None
    refused = refusal(guard, remove(1), world)
    assert refused is not None
    assert f"{TOKEN:08x}" in refused
    assert FIBRE[0].ip in refused


def test_the_initial_subflow_counts_although_its_address_id_is_0(scene: Listener) -> None:
    scene.tell(left())
    assert refusal(Guard(), remove(1), scene.tracker.world) is not None
    assert refusal(Guard(), remove(2), scene.tracker.world) is None


def test_no_subflow_uses_a_removed_address(scene: Listener) -> None:
    scene.tell(left(), ev.LocalAddressRemoved(if_index=1, ip=FIBRE[0].ip))
    assert refusal(Guard(), remove(1), scene.tracker.world) is None


def test_every_connection_is_looked_at(scene: Listener) -> None:
    other = (FIBRE[0]._replace(port=5), FIBRE[1])
    scene.tell(created(7, other), established(7, other))
    refused = refusal(Guard(), remove(1), scene.tracker.world)
    assert refused is not None
    assert "00000007" in refused
    assert refusal(Guard(), remove(2), scene.tracker.world) is None


def test_flushing_takes_all(scene: Listener) -> None:
    flush = FlushEndpoints(reason="test")
    assert refusal(Guard(), flush, scene.tracker.world) is not None
    scene.tell(ev.ConnectionClosed(token=TOKEN))
    assert refusal(Guard(), flush, scene.tracker.world) is None


def test_flushing_takes_only_what_is_in_the_table(scene: Listener) -> None:
    limits = Limits(subflows=2, add_addr_accepted=0)
    elsewhere = [Endpoint(ip="10.0.8.8", address_id=3)]
    flush = FlushEndpoints(reason="test")
    scene.tell(left(), ev.EndpointsRead(endpoints=elsewhere, limits=limits))
    assert refusal(Guard(), flush, scene.tracker.world) is None
    there = [Endpoint(ip=FIBRE[0].ip, address_id=1)]
    scene.tell(ev.EndpointsRead(endpoints=there, limits=limits))
    assert refusal(Guard(), flush, scene.tracker.world) is not None


def test_connections_of_the_userspace_path_manager_are_not_concerned(scene: Listener) -> None:
    world = scene.tracker.world
    demote = ChangeEndpoint(address_id=1, ip=FIBRE[0].ip, flags=BACKUP, reason="test")
    touching: list[Command] = [FlushEndpoints(reason="test"), remove(1), demote]
    scene.tell(left(), mode(TOKEN, in_kernel=True))
    assert None not in [refusal(Guard(), each, world) for each in touching]
    scene.tell(mode(99, in_kernel=False), mode(TOKEN, in_kernel=False))
    assert [refusal(Guard(), each, world) for each in touching] == [None] * 3
    # Not every kernel keeps them when address id 0 is removed.
    zero = RemoveEndpoint(address_id=0, ip=FIBRE[0].ip, reason="test")
    assert refusal(Guard(), zero, world) is not None


def test_not_all_may_become_backups(scene: Listener) -> None:
    guard, world = Guard(), scene.tracker.world
    first = ChangeEndpoint(address_id=1, ip=FIBRE[0].ip, flags=BACKUP, reason="test")
    second = ChangeEndpoint(address_id=2, ip=RADIO[0].ip, flags=BACKUP, reason="test")
    assert refusal(guard, first, world) is None
    assert refusal(guard, second, world) is not None
    better = ChangeEndpoint(address_id=1, ip="", flags=EndpointFlag.SUBFLOW, reason="test")
    assert refusal(guard, better, world) is None


def test_they_are_rationed_while_the_host_has_the_address(scene: Listener) -> None:
    admission, world = Admission(per_second=1), scene.tracker.world
    scene.tell(ev.ConnectionClosed(token=TOKEN))

    def verdict(address_id: int) -> str | None:
        cause = Cause(seq=1, event="Tick", rule="test")
        return admission.admit("test", cause, remove(address_id), world, START).refused

    assert verdict(1) is None
    assert verdict(2) == "more than 1 destructive commands a second"
    scene.tell(ev.LocalAddressRemoved(if_index=2, ip=RADIO[0].ip))
    assert verdict(2) is None
