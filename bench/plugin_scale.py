# SPDX-License-Identifier: BSD-3-Clause
"""The cost of an event for the shipped plugins, with few and with many connections.

An event that concerns one connection must not cost more where there are many; one that concerns
all, such as a new address, may cost in their number.
"""

import errno
import time
from collections.abc import Callable

from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.commands import CreateSubflow, KernelCommand
from mptcpd_ebpf.core.engine import Outcome
from mptcpd_ebpf.core.model import SECOND
from mptcpd_ebpf.testing import PluginTest

NAME = "plugins at scale"
FEW, MANY = 100, 2500


class _Timed(PluginTest):
    """Measures the engine's turns without the bench's own work."""

    longest_ns = 0
    total_ns = 0
    turns = 0

    def handle(self, event: ev.Event) -> list:  # type: ignore[type-arg]
        waiting = [event]
        while waiting:
            begin = time.perf_counter_ns()
            outcome: Outcome = self.engine.handle(waiting.pop(0), self.now)
            took = time.perf_counter_ns() - begin
            self.longest_ns = max(self.longest_ns, took)
            self.total_ns += took
            self.turns += 1
            waiting += self.answers_to(outcome)
        return []

    def reset(self) -> None:
        self.longest_ns = self.total_ns = self.turns = 0


def _host(plugin: str, connections: int, answer: Callable[[KernelCommand], int]) -> _Timed:
    host = _Timed(load(plugin)(), answer=answer)
    host.add_address("wan0", "10.0.1.2")
    host.add_address("wan1", "10.0.2.2")
    for token in range(1, connections + 1):
        host.connect("10.0.1.2", "10.0.9.1", token=token)
    return host


def _refused(command: KernelCommand) -> int:
    return errno.ENETUNREACH if isinstance(command, CreateSubflow) else 0


def _accepted(_command: KernelCommand) -> int:
    return 0


def _retries(plugin: str, connections: int) -> tuple[float, float]:
    """Every join is refused: the longest turn (ms) and the mean turn (µs) of ten seconds."""
    host = _host(plugin, connections, _refused)
    host.reset()
    host.wait(10 * SECOND)
    return host.longest_ns / 1e6, host.total_ns / max(host.turns, 1) / 1e3


def _new_connection(plugin: str, connections: int) -> float:
    """Mean turn (µs) of the events of one more connection."""
    host = _host(plugin, connections, _accepted)
    host.reset()
    for token in range(100_001, 100_101):
        host.connect("10.0.1.2", "10.0.9.1", token=token)
        host.handle(ev.ConnectionClosed(token=token))
    return host.total_ns / host.turns / 1e3


def _address(plugin: str, connections: int, addresses: int) -> float:
    """The turn (ms) of an address that is added on a host with many on one interface."""
    host = _host(plugin, connections, _accepted)
    for number in range(addresses):
        host.add_address("wan0", f"10.1.{number // 250}.{number % 250 + 1}")
    host.reset()
    host.add_address("wan0", "10.2.0.1")
    return host.longest_ns / 1e6


def run(quick: bool) -> str:
    many = MANY // 5 if quick else MANY
    rows = []
    for plugin in ("adaptive", "fullmesh", "backup"):
        few, mean_few = _retries(plugin, FEW)
        longest, mean = _retries(plugin, many)
        rows.append(
            f"| {plugin}: joins refused, mean turn | {mean_few:.1f} µs | {mean:.1f} µs "
            f"| {mean / mean_few:.2f} |"
        )
        rows.append(
            f"| {plugin}: joins refused, longest turn | {few:.2f} ms | {longest:.2f} ms "
            f"| {longest / few:.2f} |"
        )
        few, mean = _new_connection(plugin, FEW), _new_connection(plugin, many)
        rows.append(
            f"| {plugin}: a connection opens and closes, mean turn | {few:.1f} µs | {mean:.1f} µs "
            f"| {mean / few:.2f} |"
        )
    for plugin in ("adaptive", "sspi"):
        took = _address(plugin, 1000, 200)
        rows.append(
            f"| {plugin}: an address event, 200 addresses, 1000 connections | | {took:.1f} ms | |"
        )
    head = f"| event | {FEW} connections | {many} connections | ratio |\n|---|---:|---:|---:|\n"
    return head + "\n".join(rows)
