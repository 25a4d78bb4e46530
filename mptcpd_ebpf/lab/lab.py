# SPDX-License-Identifier: BSD-3-Clause
"""The lab itself: builds a topology, holds it, and takes it down again."""

import itertools
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, overload

from mptcpd_ebpf.config.yaml_document import dotted
from mptcpd_ebpf.lab import namespaces
from mptcpd_ebpf.lab.backends import Backend, choose
from mptcpd_ebpf.lab.emulation import EmulatedLink
from mptcpd_ebpf.lab.errors import LabError, UnavailableError, in_words
from mptcpd_ebpf.lab.file import parse
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.interfaces import FarEnd
from mptcpd_ebpf.lab.live import LiveLink, LivePath
from mptcpd_ebpf.lab.middlebox import set_up_nat
from mptcpd_ebpf.lab.running_schedule import RunningSchedule, action
from mptcpd_ebpf.lab.schedule import Step, Target, problems
from mptcpd_ebpf.lab.topology import FAR, NEAR, Path, Topology
from mptcpd_ebpf.lab.traffic.results import (
    BulkResult,
    RequestResponseResult,
    ShortConnectionsResult,
    StreamResult,
)
from mptcpd_ebpf.lab.traffic.running import Running
from mptcpd_ebpf.lab.traffic.workloads import (
    AnyWorkload,
    Bulk,
    RequestResponse,
    ShortConnections,
    Stream,
)
from mptcpd_ebpf.lab.wiring import (
    NO_DAD,
    NO_IPV6,
    ROUTER_SYSCTLS,
    ROUTER_SYSCTLS6,
    SCRATCH,
    SYSCTLS,
    Plan,
    connect,
    neck_routers,
    router_of,
)

_TERM_GRACE_S = 1.0
_numbers = itertools.count(1)


class Lab:
    """Hosts joined by paths.  A context manager; nothing exists before it is entered.

    `paths` defaults to two unimpaired ones; the other arguments are fields of `Topology`.
    Raises LabError for an invalid topology and, when entered, UnavailableError if the machine
    cannot run it.
    """

    def __init__(self, paths: Sequence[Path] | None = None, **fields: Any) -> None:
        if paths is not None:
            fields["paths"] = list(paths)
        self.topology = parse(fields)
        self.hosts: dict[str, Host] = {}
        """By their names in the topology; routers are not included."""
        self.routers: dict[str, Host] = {}
        self.paths: list[LivePath] = []
        self.bottlenecks: dict[str, LiveLink] = {}
        self.backend: Backend
        self._stack = ExitStack()
        self._lock = threading.RLock()

    @classmethod
    def of(cls, topology: Topology) -> Self:
        """A lab from a `Topology`."""
        return cls(**{name: getattr(topology, name) for name in topology.__struct_fields__})

    @property
    def client(self) -> Host:
        """The first host of the first path."""
        return self.hosts[self.topology.paths[0].between[0]]

    @property
    def server(self) -> Host:
        """The second host of the first path."""
        return self.hosts[self.topology.paths[0].between[1]]

    def path(self, name: str | int) -> LivePath:
        """A path by its name or number."""
        for path in self.paths:
            if name in (path.name, path.index):
                return path
        names = ", ".join(path.name for path in self.paths)
        raise LabError(f"there is no path {name!r}; there are {names}")

    def _link(self, name: str | int) -> LiveLink:
        """A bottleneck by its name, or a path by its name or number."""
        return self.bottlenecks.get(str(name)) or self.path(name)

    # --- traffic

    @overload
    def start(self, workload: RequestResponse) -> Running[RequestResponseResult]: ...
    @overload
    def start(self, workload: Bulk) -> Running[BulkResult]: ...
    @overload
    def start(self, workload: Stream) -> Running[StreamResult]: ...
    @overload
    def start(self, workload: ShortConnections) -> Running[ShortConnectionsResult]: ...
    def start(self, workload: AnyWorkload) -> Running[Any]:
        """Starts traffic between the hosts of the workload's path; returns when connected.

        Raises LabError for an invalid workload, or one that cannot connect.
        """
        path = self.path(workload.path)
        client, server = (self.hosts[label] for label in path.path.between)
        running: Running[Any] = Running(workload, client, server, path)
        self._stack.callback(running.kill)
        return running

    def do(self, step: Step) -> None:
        """Takes one step of a schedule at once, whatever its `at`.

        Raises LabError for an impossible step; then nothing was changed.
        """
        self.check(step)
        action(self._link(step.path), step)()

    def check(self, step: Step) -> None:
        """Raises LabError if the step cannot be taken now."""
        found = [(path[1:], reason) for path, reason in problems([step], self._targets())]
        if found:
            raise LabError(f"{step.path}: {in_words(found)}")

    def schedule(self, steps: Sequence[Step] | None = None) -> RunningSchedule:
        """Starts a schedule of faults: the given one, or the topology's.

        Raises LabError for impossible steps; then none is taken.
        """
        wanted = self.topology.schedule if steps is None else list(steps)
        found = list(problems(wanted, self._targets()))
        if found:
            lines = (f"schedule{dotted(path)}: {reason}" for path, reason in sorted(found))
            raise LabError("\n".join(lines))
        actions = [(step, action(self._link(step.path), step)) for step in wanted]
        running = RunningSchedule(sorted(actions, key=lambda pair: pair[0].at))
        self._stack.callback(running.close)
        return running

    def _targets(self) -> dict[str | int, Target]:
        targets: dict[str | int, Target] = {}
        for path in self.paths:
            targets[path.name] = targets[path.index] = path.target()
        return targets | {name: neck.target() for name, neck in self.bottlenecks.items()}

    # --- start and end

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise UnavailableError("a lab needs root: it makes network namespaces")
        if not os.path.exists("/proc/sys/net/mptcp/enabled"):
            raise UnavailableError("this kernel lacks MPTCP (CONFIG_MPTCP)")
        namespaces.remove_leftovers()
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            self._stack.close()
        except LabError as late:
            # The first error must stay the first to be read.
            if error is None:
                raise
            error.add_note(f"and, when the lab ended: {late}")

    def _build(self) -> None:
        plan = Plan(self.topology)
        self.paths, self.bottlenecks = [], {}
        labels = [*self.topology.hosts, *plan.routers(), SCRATCH]
        prefix = namespaces.owner_prefix(next(_numbers))
        names = [prefix + label for label in labels]
        self._stack.callback(namespaces.remove, names)
        namespaces.create(names)
        all_hosts = {label: Host(label, prefix + label) for label in labels}
        self._stack.callback(
            namespaces.end_processes,
            {host.netns for host in all_hosts.values()},
            grace_s=_TERM_GRACE_S,
        )
        self.hosts = {label: all_hosts[label] for label in self.topology.hosts}
        self.routers = {label: all_hosts[label] for label in plan.routers()}

        links = self._links()
        self.backend = choose(self.topology.backend, all_hosts[SCRATCH], links, self.topology.seed)
        plan.single_packets = self.backend.name == "netem"
        self._wire(plan, all_hosts)
        self._stack.callback(self.backend.close)
        self.backend.prepare()
        far_ends = {neck.name: FarEnd() for neck in self.topology.bottlenecks}
        for index, path in enumerate(self.topology.paths):
            router = self.routers[router_of(path)]
            far_end = far_ends[path.bottleneck] if path.bottleneck else FarEnd()
            self.paths.append(
                LivePath(index, plan, all_hosts, router, self.backend, far_end, self._lock)
            )
        for number, neck in enumerate(self.topology.bottlenecks, len(self.paths)):
            self.bottlenecks[neck.name] = LiveLink(
                neck.name, number, self.backend, neck.directions(), self._lock
            )
        for live in [*self.paths, *self.bottlenecks.values()]:
            live.apply_declared()

    def _links(self) -> list[EmulatedLink]:
        """All links that can be impaired, in the order of the backend's numbers."""
        links = []
        for path in self.topology.paths:
            router = self.routers[router_of(path)]
            links.append(EmulatedLink(path.name, router, ((router, FAR), (router, NEAR))))
        for neck in self.topology.bottlenecks:
            first, second = (self.routers[label] for label in neck_routers(neck.name))
            links.append(EmulatedLink(neck.name, first, ((first, FAR), (second, NEAR))))
        return links

    def _wire(self, plan: Plan, all_hosts: dict[str, Host]) -> None:
        for host in all_hosts.values():
            router = host.label in self.routers
            settings = dict(ROUTER_SYSCTLS if router else SYSCTLS)
            if self.topology.ip == "4":
                settings |= NO_IPV6
            else:
                settings |= NO_DAD
                if router:
                    settings |= ROUTER_SYSCTLS6
            if not router:
                settings["mptcp.enabled"] = 1
            host.set_sysctls(settings)
        pairs = [(all_hosts[a], if_a, all_hosts[b], if_b) for a, if_a, b, if_b in plan.links()]
        all_hosts[SCRATCH].batch("ip", connect(pairs))
        for label, host in self.hosts.items():
            host.batch("ip", plan.host_lines(label))
        for index, path in enumerate(self.topology.paths):
            router_host = all_hosts[router_of(path)]
            router_host.batch("ip", plan.router_lines(index))
            if path.nat:
                set_up_nat(router_host)
        for neck in self.topology.bottlenecks:
            for label, lines in zip(
                neck_routers(neck.name), plan.neck_lines(neck.name), strict=True
            ):
                all_hosts[label].batch("ip", lines)
        for label in all_hosts:
            ends = [(a, if_a) for a, if_a, _, _ in plan.links()]
            ends += [(b, if_b) for _, _, b, if_b in plan.links()]
            all_hosts[label].wait_until_running([name for where, name in ends if where == label])
