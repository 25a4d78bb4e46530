# SPDX-License-Identifier: BSD-3-Clause
"""The baseline plugin follows the published rule."""

import pytest

from bench.decisions.arms import PLUGINS
from mptcpd_ebpf.config.plugin_loader import load
from mptcpd_ebpf.core.commands import CreateSubflow, SetBackup
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.model import SECOND, Subflow
from mptcpd_ebpf.testing import PluginTest

GOOD, OTHER = "10.0.1.2", "10.0.2.2"


class Host(PluginTest):
    """A client with two paths, each with its RTT and share of retransmitted segments."""

    def __init__(self) -> None:
        self.rtt_us = {GOOD: 10_000, OTHER: 10_000}
        self.lost_percent = {GOOD: 0, OTHER: 0}
        self.sends = {GOOD: True, OTHER: True}
        self.sent = {GOOD: 0, OTHER: 0}
        self.again = {GOOD: 0, OTHER: 0}
        super().__init__(load("score", PLUGINS)())
        self.add_address("wan0", GOOD)
        self.add_address("wan1", OTHER)
        connection = self.connect(GOOD, "10.0.9.1")
        (create,) = self.commands
        assert isinstance(create, CreateSubflow)
        assert create.local_ip == OTHER
        self.subflow = self.join(connection, OTHER)

    def sample(self) -> list[Measurement]:
        for ip in (GOOD, OTHER):
            if self.sends[ip]:
                self.sent[ip] += 100
                self.again[ip] += self.lost_percent[ip]
        return super().sample()

    def measure(self, subflow: Subflow, **fields: object) -> Measurement:
        ip = subflow.local.ip
        return super().measure(
            subflow, srtt_us=self.rtt_us[ip], segments_out=self.sent[ip], retransmits=self.again[ip]
        )

    def flags(self) -> list[tuple[int, bool]]:
        """(seconds since the start, backup) of what was set on the other path."""
        return [
            (round((each.at - self.decisions[0].at) / SECOND), each.command.backup)
            for each in self.decisions
            if isinstance(each.command, SetBackup) and each.command.local.ip == OTHER
        ]


def test_equal_paths_are_left_alone() -> None:
    host = Host()
    host.wait(120 * SECOND)
    assert host.flags() == []


@pytest.mark.parametrize(("rtt_ms", "lost"), [(180, 6), (10, 6), (210, 0)])
def test_a_score_above_4_in_three_samples_demotes(rtt_ms: int, lost: int) -> None:
    host = Host()
    host.rtt_us[OTHER], host.lost_percent[OTHER] = rtt_ms * 1000, lost
    host.wait(20 * SECOND)
    assert [backup for _, backup in host.flags()] == [True]


@pytest.mark.parametrize(("rtt_ms", "lost"), [(180, 0), (10, 3)])
def test_a_score_of_4_or_less_does_not(rtt_ms: int, lost: int) -> None:
    host = Host()
    host.rtt_us[OTHER], host.lost_percent[OTHER] = rtt_ms * 1000, lost
    host.wait(20 * SECOND)
    assert host.flags() == []


def test_a_path_that_stays_bad_is_tried_after_a_minute_and_demoted_again() -> None:
    host = Host()
    host.lost_percent[OTHER] = 6
    host.wait(90 * SECOND)
    (demoted, _), (tried, backup), (_, again) = host.flags()
    assert (tried - demoted, backup, again) == (60, False, True)


def test_a_path_is_used_again_after_three_samples_below_the_hysteresis() -> None:
    host = Host()
    host.lost_percent[OTHER] = 6
    host.wait(10 * SECOND)
    assert [backup for _, backup in host.flags()] == [True]
    host.lost_percent[OTHER] = 0
    host.wait(10 * SECOND)
    assert [backup for _, backup in host.flags()] == [True, False]


def test_a_silent_path_is_demoted_after_three_seconds() -> None:
    host = Host()
    host.wait(10 * SECOND)
    host.sends[OTHER] = False
    host.wait(4 * SECOND)
    assert [backup for _, backup in host.flags()] == [True]
