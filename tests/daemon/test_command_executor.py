# SPDX-License-Identifier: BSD-3-Clause
"""The executor: what a command needs besides its netlink message, and in which order."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from mptcpd_ebpf.core.commands import AddEndpoint, AnnounceAddress, CreateSubflow
from mptcpd_ebpf.core.events import ConnectionMode, ModesRead
from mptcpd_ebpf.daemon.announced_listeners import AnnouncedListeners
from mptcpd_ebpf.daemon.command_executor import CheckRoute, CommandExecutor
from mptcpd_ebpf.daemon.endpoint_ledger import EndpointLedger
from mptcpd_ebpf.kernel.pm_client import CommandAnswer
from tests.core.scenario import SERVER, TOKEN
from tests.daemon.fakes import DONE, REFUSED, FakeListeners, FakePm

IP = "10.0.1.2"
JOIN = CreateSubflow(token=TOKEN, local_ip=IP, local_id=2, remote=SERVER, reason="test")
ANNOUNCE = AnnounceAddress(token=TOKEN, ip=IP, address_id=2, listen=True, reason="test")
ADD = AddEndpoint(ip=IP, reason="test")
DETOUR = CommandAnswer(errno.ENETUNREACH, "the route leaves by another interface")


class Executing:
    """An executor whose kernel and listeners are fakes."""

    def __init__(self, folder: Path, check_route: CheckRoute | None) -> None:
        self.pm = FakePm()
        self.sockets = FakeListeners()
        self.executor = CommandExecutor(
            self.pm,
            EndpointLedger(self.pm, folder),
            AnnouncedListeners(self.sockets, folder),
            check_route,
        )


Use = Callable[[Executing], None]


def run(folder: Path, use: Use, check_route: CheckRoute | None = None) -> None:
    async def main() -> None:
        executing = Executing(folder, check_route)
        try:
            use(executing)
        finally:
            executing.executor.close()

    asyncio.run(main())


def test_a_join_is_sent_where_the_kernel_binds_it(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        daemon.pm.answer = REFUSED
        assert daemon.executor.execute(JOIN) == (JOIN, REFUSED)
        assert daemon.pm.executed == [JOIN]

    run(tmp_path, use)


def test_a_join_by_the_wrong_interface_is_not_sent(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        assert daemon.executor.execute(JOIN) == (JOIN, DETOUR)
        assert daemon.pm.executed == []
        assert daemon.executor.execute(ADD) == (ADD, DONE)  # only joins have a route

    run(tmp_path, use, lambda _: DETOUR)


def test_a_join_by_the_right_interface_is_sent(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        assert daemon.executor.execute(JOIN) == (JOIN, DONE)

    run(tmp_path, use, lambda _: None)


def test_an_announcement_is_sent_with_the_port_of_its_listener(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        done, answer = daemon.executor.execute(ANNOUNCE)
        assert answer == DONE
        assert daemon.pm.executed == [done]
        assert isinstance(done, AnnounceAddress)
        assert done.port == FakeListeners.FIRST_PORT

    run(tmp_path, use)


def test_an_announcement_without_a_listener_is_not_sent(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        daemon.sockets.refuses.add(IP)
        done, answer = daemon.executor.execute(ANNOUNCE)
        assert (done, answer.errno) == (ANNOUNCE, errno.EADDRNOTAVAIL)
        assert daemon.pm.executed == []

    run(tmp_path, use)


def test_a_refused_announcement_keeps_no_listener(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        daemon.pm.answer = REFUSED
        assert daemon.executor.execute(ANNOUNCE)[1] == REFUSED
        assert daemon.sockets.users == {}

    run(tmp_path, use)


@pytest.mark.parametrize("manual", [False, True])
def test_only_what_plugins_make_is_the_daemon_s(tmp_path: Path, manual: bool) -> None:
    def use(daemon: Executing) -> None:
        daemon.executor.execute(ADD, manual=manual)
        assert [each.ours for each in daemon.executor.read_endpoints().endpoints] == [not manual]

    run(tmp_path, use)


def test_connections_that_the_kernel_does_not_know_have_no_mode(tmp_path: Path) -> None:
    def use(daemon: Executing) -> None:
        daemon.pm.modes = {1: True, 2: False}
        assert daemon.executor.read_modes([1, 2, 3]) == ModesRead(
            modes=[
                ConnectionMode(token=1, in_kernel=True),
                ConnectionMode(token=2, in_kernel=False),
            ]
        )

    run(tmp_path, use)


def test_listeners_follow_the_live_connections_and_reopen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def before(daemon: Executing) -> None:
        daemon.executor.execute(ANNOUNCE)
        daemon.executor.save()

    def reopened(daemon: Executing) -> None:
        daemon.executor.reopen_listeners([TOKEN])
        assert len(daemon.sockets.users) == 1
        daemon.executor.keep_listeners_of([TOKEN])
        assert len(daemon.sockets.users) == 1
        daemon.executor.keep_listeners_of([])
        assert daemon.sockets.users == {}

    def refused(daemon: Executing) -> None:
        daemon.sockets.refuses.add(IP)
        daemon.executor.reopen_listeners([TOKEN])
        assert f"cannot listen on {IP}" in caplog.text

    for use in (before, reopened, refused):
        run(tmp_path, use)


def test_a_file_that_cannot_be_written_is_logged_and_the_daemon_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def use(daemon: Executing) -> None:
        for command in (ADD, ANNOUNCE):
            daemon.executor.execute(command)
        daemon.executor.save()
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 2
        daemon.executor.save()  # nothing has changed since
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 2

    (tmp_path / "run").write_text("in the way")
    run(tmp_path / "run", use)
