# SPDX-License-Identifier: BSD-3-Clause
"""All event sources of the daemon: path-manager events, the local network, probes.

The path-manager subscription is opened first, because in userspace mode the kernel refuses joins
while no program has subscribed.  Without probes the daemon still gets netlink events; what only
probes measure is then unknown.
"""

from collections.abc import Callable, Container
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from mptcpd_ebpf.config.settings import ProbeBackend, ProbeSettings
from mptcpd_ebpf.control.schema import ProbesView
from mptcpd_ebpf.core.events import Event, Resynchronised
from mptcpd_ebpf.core.measurement import Measurement, Thresholds
from mptcpd_ebpf.kernel import diag, owners, resync
from mptcpd_ebpf.kernel.event_source import EventSource
from mptcpd_ebpf.kernel.fdinfo import skipped_runs
from mptcpd_ebpf.kernel.path_probe import PathProber
from mptcpd_ebpf.kernel.pm_events import PmEvents
from mptcpd_ebpf.kernel.rtnetlink import RouteEvents
from mptcpd_ebpf.runtime import netns
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

if TYPE_CHECKING:
    from mptcpd_ebpf.probes.interface import AnyProbes

_ROUNDS = 100
"""Most reads to empty one source: a read returns 256 events, a full socket holds 8192."""


def _list_subflows(with_owners: bool) -> list[Measurement]:
    return diag.snapshot(with_owners=with_owners).subflows


class EventSources:
    """The open sources; a context manager that closes them."""

    def __init__(
        self,
        here: int,
        sources: list[EventSource],
        probes: "AnyProbes | None",
        backend: ProbeBackend,
        choice: str,
        closing: ExitStack,
        *,
        prober: PathProber,
        list_subflows: Callable[[bool], list[Measurement]] = _list_subflows,
        read_all: Callable[[list[Measurement] | None], Resynchronised] = resync.snapshot,
    ) -> None:
        """`list_subflows` and `read_all` read the kernel without probes (`diag`, `resync`)."""
        self.netns = here
        self.sources = sources
        """In the order in which they are read."""
        self.backend = backend
        self.choice = choice
        """The probes in use and the reason, in one line."""
        self._probes = probes
        self._closing = closing
        self.prober = prober
        """Sends path probes; an answer comes as an event with the decision's number."""
        self._list_subflows = list_subflows
        self._read_all = read_all

    @classmethod
    def open(
        cls, settings: ProbeSettings, subscribe: Callable[[], PmEvents] = PmEvents.open
    ) -> Self:
        """Opens the sources in the calling thread's network namespace.

        Raises KernelError, or `Failure` if the configuration requires probes that this kernel
        refuses.
        """
        here = netns.inode()
        with ExitStack() as stack:
            events = stack.enter_context(subscribe())
            routes = stack.enter_context(RouteEvents.open())
            prober = stack.enter_context(PathProber())
            sources: list[EventSource] = [events, routes, prober]
            probes, backend, choice = _open_probes(settings, here)
            if probes is not None:
                stack.callback(probes.close)
                sources.append(probes)
            return cls(here, sources, probes, backend, choice, stack.pop_all(), prober=prober)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def sample(self, *, owners_of: Container[int] | None = None) -> list[Measurement]:
        """Measures every subflow of the namespace now, from the best source.

        `owners_of`: also looks up the owners, with their cgroup, of the connections with these
        tokens.  Raises OSError or KernelError.
        """
        measured = self._probes.sample() if self._probes is not None else []
        sees_all = self._probes is not None and self._probes.sees_all
        # Probes know the owners of sockets that were opened after they were attached.
        unknown = owners_of is not None and any(
            each.owner is None and each.token in owners_of for each in measured
        )
        if unknown or not sees_all:
            listed = self._list_subflows(owners_of is not None)
            if unknown:
                measured = _owned(measured, listed)
            if not sees_all:
                measured = _completed(measured, listed)
        return measured if owners_of is None else [_with_cgroup(each) for each in measured]

    def snapshot(self) -> Resynchronised:
        """Reads the complete state of the namespace.  Raises KernelError."""
        return self._read_all(self.sample() if self._probes is not None else None)

    def waiting(self) -> list[Event]:
        """Reads everything that waits in the sources.

        After an overflow a netlink socket gets no message until it has been emptied, and the
        kernel does not report those that it drops meanwhile (net/netlink/af_netlink.c,
        NETLINK_S_CONGESTED).  So a snapshot must be taken after this.
        """
        events: list[Event] = []
        for source in self.sources:
            for _ in range(_ROUNDS):
                batch = source.read()
                if not batch:
                    break
                events += batch
        return events

    def set_thresholds(self, thresholds: Thresholds) -> None:
        if self._probes is not None:
            self._probes.set_thresholds(thresholds)

    @property
    def sees_ends(self) -> bool:
        """Whether the end of every subflow is reported, also those that netlink does not report."""
        return self._probes is not None and self._probes.sees_all

    def status(self) -> ProbesView:
        lost = None
        if self._probes is not None:
            skipped = skipped_runs(self._probes.programs().values())
            lost = {**self._probes.lost, "runs_skipped": skipped}
        return {"backend": self.backend.value, "reason": self.choice, "lost": lost}


def _with_cgroup(measured: Measurement) -> Measurement:
    owner = measured.owner
    if owner is None or owner.pid is None:
        return measured
    return replace(measured, owner=replace(owner, cgroup_path=owners.cgroup_path(owner.pid)))


def _owned(measured: list[Measurement], listed: list[Measurement]) -> list[Measurement]:
    """What probes measured, with missing owners from inet_diag."""
    owner_of = {each.token: each.owner for each in listed}
    return [
        each if each.owner is not None else replace(each, owner=owner_of.get(each.token))
        for each in measured
    ]


def _completed(measured: list[Measurement], listed: list[Measurement]) -> list[Measurement]:
    """What probes measured, and the subflows that only inet_diag lists."""
    known = {(each.local, each.remote) for each in measured}
    return measured + [each for each in listed if (each.local, each.remote) not in known]


def _open_probes(
    settings: ProbeSettings, here: int
) -> "tuple[AnyProbes | None, ProbeBackend, str]":
    """The probes, their backend, and the reason for it."""
    wanted = settings.backend
    if wanted is ProbeBackend.NETLINK:
        why = "none, as configured: RTT, loss and stalls are not measured, no alarms"
        return None, wanted, why
    from mptcpd_ebpf.probes import BpfUnavailable, Probes  # loads libbpf

    probes: AnyProbes
    refused = []
    for backend in (ProbeBackend.CORE, ProbeBackend.BCC):
        if wanted not in (backend, ProbeBackend.AUTO):
            continue
        try:
            if backend is ProbeBackend.CORE:
                probes = Probes.open(netns=here, thresholds=settings.thresholds)
            else:
                from mptcpd_ebpf.probes.bcc_probes import BccProbes

                cgroup = Path(settings.cgroup) if settings.cgroup is not None else None
                probes = BccProbes.open(netns=here, thresholds=settings.thresholds, cgroup=cgroup)
        except BpfUnavailable as error:
            if wanted is backend:
                raise Failure(f"probes: {error}", ExitCode.CHECK_FAILED) from None
            refused.append(f"{backend.value}: {error}")
        else:
            return probes, backend, "; ".join([str(probes.report), *refused])
    why = f"none, so only netlink events are seen, no alarms: {'; '.join(refused)}"
    return None, ProbeBackend.NETLINK, why
