# SPDX-License-Identifier: BSD-3-Clause
"""No signal is lost in a burst, and handlers are restored."""

import os
import select
import signal

from mptcpd_ebpf.runtime.signals import PendingSignals


def test_a_signal_after_a_burst_is_delivered() -> None:
    with PendingSignals(signal.SIGHUP, signal.SIGTERM) as pending:
        assert not select.select([pending], [], [], 0)[0]
        assert pending.take() == set()
        for _ in range(5000):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([pending], [], [], 0)[0]
        assert pending.take() == {signal.SIGHUP, signal.SIGTERM}
        assert pending.take() == set()


def test_handlers_and_the_wakeup_descriptor_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with PendingSignals(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
