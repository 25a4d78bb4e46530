# SPDX-License-Identifier: BSD-3-Clause
"""Event sources: what is read, in which order, and how samples of several sources are combined."""

import os
from contextlib import ExitStack

from msgspec.structs import replace

from mptcpd_ebpf.config.settings import ProbeBackend
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import Measurement, Owner, Thresholds
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.kernel import owners
from mptcpd_ebpf.kernel.path_probe import PathProber
from tests.core.scenario import FIBRE, RADIO, TOKEN, created, measured, truth
from tests.daemon.fakes import FakeProbes, FakeSource

CURL = Owner(pid=os.getpid(), comm="curl")


class Kernel:
    """What inet_diag finds, and how it was asked."""

    def __init__(self, *listed: Measurement) -> None:
        self.listed = list(listed)
        self.asked: list[bool] = []
        """For owners too?"""
        self.read_with: list[list[Measurement] | None] = []

    def list_subflows(self, with_owners: bool) -> list[Measurement]:
        self.asked.append(with_owners)
        return self.listed

    def read_all(self, subflows: list[Measurement] | None) -> ev.Resynchronised:
        self.read_with.append(subflows)
        return truth(*(subflows if subflows is not None else self.listed))


def sources(kernel: Kernel, probes: FakeProbes | None = None, *fakes: FakeSource) -> EventSources:
    closing = ExitStack()
    for each in fakes:
        closing.callback(each.close)
    if probes is not None:
        closing.callback(probes.close)
    return EventSources(
        1,
        list(fakes),
        probes,
        ProbeBackend.CORE if probes else ProbeBackend.NETLINK,
        "as the test says",
        closing,
        prober=PathProber(),
        list_subflows=kernel.list_subflows,
        read_all=kernel.read_all,
    )


def test_without_probes_inet_diag_alone_is_read() -> None:
    kernel = Kernel(measured(FIBRE), measured(RADIO))
    opened = sources(kernel)
    assert opened.sample() == kernel.listed
    assert opened.snapshot() == truth(*kernel.listed)
    assert kernel.read_with == [None]
    assert not opened.sees_ends
    assert opened.status() == {
        "backend": "netlink", "reason": "as the test says", "lost": None
    }  # fmt: skip


def test_probes_that_see_all_are_read_alone() -> None:
    kernel, probes = Kernel(measured(RADIO)), FakeProbes(measured(FIBRE, srtt_us=7))
    opened = sources(kernel, probes)
    assert opened.sample() == probes.measured
    assert kernel.asked == []
    assert opened.snapshot() == truth(*probes.measured)
    assert opened.sees_ends
    assert opened.status()["lost"] == {"ring": 3, "runs_skipped": 0}


def test_what_probes_do_not_see_comes_from_inet_diag() -> None:
    """A subflow that both know is taken from the probes, which measure more."""
    seen = measured(FIBRE, srtt_us=7)
    kernel = Kernel(measured(FIBRE, srtt_us=9), measured(RADIO))
    opened = sources(kernel, FakeProbes(seen, sees_all=False))
    assert opened.sample() == [seen, measured(RADIO)]
    assert not opened.sees_ends


def test_owners_that_probes_do_not_know_come_from_inet_diag() -> None:
    probes = FakeProbes(measured(FIBRE), measured(RADIO, token=7, owner=Owner(comm="known")))
    kernel = Kernel(measured(FIBRE, owner=CURL), measured(RADIO, token=7, owner=CURL))
    first, second = sources(kernel, probes).sample(owners_of=[TOKEN])
    path = owners.cgroup_path(os.getpid())
    assert first.owner == replace(CURL, cgroup_path=path)
    assert second.owner == Owner(comm="known")  # what the probes know stays
    assert kernel.asked == [True]


def test_owners_are_looked_up_only_for_the_connections_that_need_it() -> None:
    kernel, probes = Kernel(), FakeProbes(measured(FIBRE))
    assert sources(kernel, probes).sample(owners_of=[]) == probes.measured
    assert sources(kernel, probes).sample() == probes.measured
    assert kernel.asked == []


def test_waiting_empties_each_source_in_turn() -> None:
    first, second = FakeSource(), FakeSource()
    for number in range(3):
        first.push(created(token=number))
    second.push(created(token=3), created(token=4))
    with sources(Kernel(), None, first, second) as opened:
        found = opened.waiting()
        assert [e.token for e in found if isinstance(e, ev.ConnectionCreated)] == [0, 1, 2, 3, 4]
        assert opened.waiting() == []


def test_a_source_that_never_empties_does_not_hold_the_loop() -> None:
    class Endless(FakeSource):
        def read(self) -> list[ev.Event]:
            return [ev.Tick()]

    with sources(Kernel(), None, Endless()) as opened:
        assert len(opened.waiting()) == 100


def test_thresholds_go_to_the_probes_if_there_are_any() -> None:
    probes, wanted = FakeProbes(), Thresholds(stall_us=1)
    sources(Kernel()).set_thresholds(wanted)
    sources(Kernel(), probes).set_thresholds(wanted)
    assert probes.thresholds is wanted


def test_everything_is_closed_at_the_end() -> None:
    probes = FakeProbes()
    with sources(Kernel(), probes):
        assert not probes.closed
    assert probes.closed
