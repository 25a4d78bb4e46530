# SPDX-License-Identifier: BSD-3-Clause
"""Listeners of announced addresses: open while a connection announces them, over restarts too."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import AnnounceAddress, WithdrawAddress
from mptcpd_ebpf.daemon.announced_listeners import AnnouncedListeners
from mptcpd_ebpf.kernel.errors import NotPermitted
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from tests.daemon.fakes import DONE, REFUSED, FakeListeners
from tests.waiting import until_async

IP = "10.0.1.2"
FIXED = SockAddr(IP, 4000)


def announce(token: int = 1, address_id: int = 2, port: int = FIXED.port) -> AnnounceAddress:
    return AnnounceAddress(
        token=token, ip=IP, address_id=address_id, port=port, listen=True, reason="test"
    )


def withdraw(token: int = 1, address_id: int = 2) -> WithdrawAddress:
    return WithdrawAddress(token=token, address_id=address_id, reason="test")


class Listening:
    """The listeners of one daemon, in a running event loop."""

    def __init__(self, folder: Path) -> None:
        self.sockets = FakeListeners()
        self.listeners = AnnouncedListeners(self.sockets, folder)

    def announced(self, command: AnnounceAddress, answer: CommandAnswer = DONE) -> AnnounceAddress:
        """Opens for a command that the kernel answers so; returns it as it was sent."""
        ready = self.listeners.open_for(command)
        assert isinstance(ready, AnnounceAddress)
        self.listeners.settle(ready, answer)
        return ready

    @property
    def open(self) -> dict[SockAddr, int]:
        return self.sockets.users


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Listening], None]], None]:
    """Runs a test with the listeners of a daemon, which ends afterwards."""

    def run(use: Callable[[Listening], None]) -> None:
        async def main() -> None:
            listening = Listening(tmp_path)
            try:
                use(listening)
            finally:
                listening.listeners.close()

        asyncio.run(main())

    return run


Run = Callable[[Callable[[Listening], None]], None]


def test_an_announcement_gets_a_listener_until_it_is_withdrawn(run: Run) -> None:
    def use(daemon: Listening) -> None:
        assert daemon.announced(announce()) == announce()
        assert daemon.open == {FIXED: 1}
        daemon.listeners.settle(withdraw(address_id=9), DONE)
        daemon.listeners.settle(withdraw(), REFUSED)
        assert daemon.open == {FIXED: 1}
        daemon.listeners.settle(withdraw(), DONE)
        assert daemon.open == {}

    run(use)


def test_the_chosen_port_is_announced(run: Run) -> None:
    def use(daemon: Listening) -> None:
        assert daemon.announced(announce(port=0)).port == FakeListeners.FIRST_PORT

    run(use)


def test_other_commands_need_no_listener(run: Run) -> None:
    def use(daemon: Listening) -> None:
        silent = AnnounceAddress(token=1, ip=IP, address_id=2, port=4000, reason="test")
        for command in (silent, withdraw()):
            assert daemon.listeners.open_for(command) is command
            daemon.listeners.settle(command, DONE)
        assert daemon.open == {}

    run(use)


def test_an_address_that_cannot_be_listened_on_is_answered(run: Run) -> None:
    def use(daemon: Listening) -> None:
        daemon.sockets.refuses.add(IP)
        answer = daemon.listeners.open_for(announce())
        assert isinstance(answer, CommandAnswer)
        assert answer.errno == errno.EADDRNOTAVAIL
        assert "the address is not on this host" in answer.explanation

    run(use)


def test_a_refused_announcement_has_no_listener(run: Run) -> None:
    def use(daemon: Listening) -> None:
        daemon.announced(announce(), REFUSED)
        assert daemon.open == {}
        daemon.announced(announce())
        daemon.announced(announce(token=7), REFUSED)
        assert daemon.open == {FIXED: 1}

    run(use)


def test_a_listener_is_shared_until_its_last_connection_ends(run: Run) -> None:
    def use(daemon: Listening) -> None:
        for token in (1, 7):
            daemon.announced(announce(token=token))
        assert daemon.open == {FIXED: 2}
        daemon.listeners.keep_only([7])
        assert daemon.open == {FIXED: 1}
        daemon.listeners.keep_only([])
        assert daemon.open == {}

    run(use)


def test_an_address_id_that_is_announced_again_has_one_listener(run: Run) -> None:
    def use(daemon: Listening) -> None:
        daemon.announced(announce())
        daemon.announced(announce())
        assert daemon.open == {FIXED: 1}
        daemon.announced(announce(port=4001))
        assert daemon.open == {SockAddr(IP, 4001): 1}

    run(use)


def test_the_next_daemon_reopens_those_of_live_connections(run: Run) -> None:
    def before(daemon: Listening) -> None:
        daemon.announced(announce())
        daemon.announced(announce(token=7, port=4001))
        daemon.listeners.save()

    def after(daemon: Listening) -> None:
        assert list(daemon.listeners.reopen([1])) == []
        assert daemon.open == {FIXED: 1}
        daemon.listeners.save()
        daemon.listeners.settle(withdraw(), DONE)
        assert daemon.open == {}
        daemon.listeners.save()

    def last(daemon: Listening) -> None:
        assert list(daemon.listeners.reopen([1, 7])) == []
        assert daemon.open == {}

    for use in (before, after, last):
        run(use)


def test_a_listener_that_cannot_be_reopened_is_reported(run: Run) -> None:
    def before(daemon: Listening) -> None:
        daemon.announced(announce())
        daemon.listeners.save()

    def after(daemon: Listening) -> None:
        daemon.sockets.refuses.add(IP)
        (error,) = daemon.listeners.reopen([1])
        assert "cannot listen on 10.0.1.2:4000" in error
        assert daemon.open == {}

    run(before)
    run(after)


def test_only_changes_are_written(run: Run, tmp_path: Path) -> None:
    def use(daemon: Listening) -> None:
        daemon.listeners.save()
        assert list(tmp_path.iterdir()) == []
        daemon.announced(announce())
        daemon.listeners.save()
        (file,) = tmp_path.iterdir()
        file.unlink()
        daemon.listeners.save()
        assert list(tmp_path.iterdir()) == []

    run(use)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")

    async def main() -> None:
        daemon = Listening(tmp_path / "run")
        daemon.announced(announce())
        with pytest.raises(NotPermitted):
            daemon.listeners.save()
        daemon.listeners.close()

    asyncio.run(main())


def test_connections_that_are_no_joins_are_closed(tmp_path: Path) -> None:
    async def main() -> None:
        daemon = Listening(tmp_path)
        for port in (4000, 4001):
            daemon.announced(announce(address_id=port - 3990, port=port))
        daemon.sockets.connect(SockAddr(IP, 4001))
        await until_async(lambda: daemon.sockets.turned_away, "the connection is closed")
        daemon.listeners.close()
        assert daemon.open == {}

    asyncio.run(main())
