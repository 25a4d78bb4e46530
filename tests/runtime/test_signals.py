# SPDX-License-Identifier: BSD-3-Clause
"""No signal is lost, however many come, and everything is given back."""

import os
import select
import signal

from mptcpd_ebpf.runtime.signals import PendingSignals


def test_one_that_comes_behind_a_flood_is_told() -> None:
    with PendingSignals(signal.SIGHUP, signal.SIGTERM) as inbox:
        assert not select.select([inbox], [], [], 0)[0]
        assert inbox.take() == set()
        for _ in range(5000):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([inbox], [], [], 0)[0]
        assert inbox.take() == {signal.SIGHUP, signal.SIGTERM}
        assert inbox.take() == set()


def test_handlers_and_the_wakeup_descriptor_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with PendingSignals(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
