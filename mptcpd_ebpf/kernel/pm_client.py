# SPDX-License-Identifier: BSD-3-Clause
"""A client of the kernel's MPTCP path managers in one network namespace, blocking or async.

It belongs to the namespace in which the calling thread opens it (see `transport`).
Every answer is awaited; a refusal comes back as a value with its explanation, because a refused
command is a normal result, not an error of the program.
"""

from typing import NamedTuple, Self

from mptcpd_ebpf.core.commands import KernelCommand
from mptcpd_ebpf.core.endpoints import Endpoint, Limits
from mptcpd_ebpf.kernel import pm
from mptcpd_ebpf.kernel.errors import MptcpMissing, NetlinkRefused
from mptcpd_ebpf.kernel.generic import Family, family
from mptcpd_ebpf.kernel.netlink import Operation, T
from mptcpd_ebpf.kernel.pm_errors import explain
from mptcpd_ebpf.kernel.transport import NETLINK_GENERIC, Requester


class CommandAnswer(NamedTuple):
    """The kernel's answer."""

    errno: int
    """0: done."""
    explanation: str
    """Why not, in one line; empty if done."""


def mptcp_family(requester: Requester) -> Family:
    """Raises MptcpMissing on a kernel without the path-manager family."""
    found = requester.run(family(pm.FAMILY))
    if found is None:
        raise MptcpMissing(
            "this kernel has no MPTCP (generic netlink knows no mptcp_pm): boot one with "
            "CONFIG_MPTCP=y, which the distributions' own kernels have"
        )
    return found


class PmClient:
    """Commands and questions for the kernel's path managers.

    The plain methods block for as long as the kernel works; those named `…_async` let
    other tasks go on while an answer is outstanding, and any number may be.
    """

    def __init__(self) -> None:
        """Raises MptcpMissing on a kernel without MPTCP."""
        self._requester = Requester(NETLINK_GENERIC)
        self._highest_limit: int | None = None
        try:
            self._family = mptcp_family(self._requester).id
        except BaseException:
            self._requester.close()
            raise

    def close(self) -> None:
        """Closes the socket; what was done stays. A second call does nothing."""
        self._requester.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def execute(self, command: KernelCommand) -> CommandAnswer:
        """Carries out one command."""
        return _answer(await self._requester.run_async(pm.command(self._family, command)))

    def execute_now(self, command: KernelCommand) -> CommandAnswer:
        """`execute`, blocking."""
        return _answer(self._requester.run(pm.command(self._family, command)))

    def endpoints(self) -> list[Endpoint]:
        """The namespace's endpoints.  Raises NetlinkRefused."""
        return self._read(pm.endpoints(self._family))

    def endpoint(self, address_id: int) -> Endpoint:
        """One endpoint.  Raises NetlinkRefused with EINVAL if there is none of that id."""
        return self._read(pm.endpoint(self._family, address_id))[0]

    def connection_addresses(self, token: int) -> list[Endpoint]:
        """Local addresses that one connection in userspace mode knows, with their ids.

        Raises NetlinkRefused, also on kernels before 6.10, which have no such dump.
        """
        return self._read(pm.connection_addresses(self._family, token))

    def in_kernel(self, token: int) -> bool | None:
        """Whether the in-kernel path manager has a connection, so that commands for it alone are
        refused; None if there is no such connection, or the kernel does not report it."""
        return self._requester.run(pm.in_kernel(self._family, token))

    def limits(self) -> Limits:
        """Limits of the in-kernel path manager.  Raises NetlinkRefused."""
        found = self._read(pm.limits(self._family))
        assert found is not None
        return found

    def highest_limit(self) -> int:
        """The highest limit that the kernel accepts; HIGHEST_LIMIT where that cannot be read
        (without CAP_NET_ADMIN for instance)."""
        if self._highest_limit is None:
            self._highest_limit = self._requester.run(pm.highest_limit(self._family))
        return self._highest_limit

    def _read(self, operation: Operation[tuple[pm.Answer, T]]) -> T:
        answer, found = self._requester.run(operation)
        if answer.reply.errno:
            raise NetlinkRefused(explain(answer), answer.reply.errno)
        return found


def _answer(answer: pm.Answer) -> CommandAnswer:
    return CommandAnswer(answer.reply.errno, explain(answer))
