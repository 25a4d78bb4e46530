# SPDX-License-Identifier: BSD-3-Clause
"""The path managers asked by hand: through the daemon where one runs, else the kernel itself.

A daemon that serves the namespace should carry out what a person wants, so that its
guard and its plugins know of it and the decision is kept.  Whether one runs is told by
its lock, which is the namespace's, not by a file that may be somewhere else.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from mptcpd_ebpf.control import client, operator_commands, views
from mptcpd_ebpf.control.schema import CarriedOut, Connections, Endpoints, LimitsView
from mptcpd_ebpf.core.tracker import Tracker
from mptcpd_ebpf.kernel import resync
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NetlinkRefused, NotPermitted
from mptcpd_ebpf.kernel.lock import holder
from mptcpd_ebpf.kernel.pm_client import PmClient
from mptcpd_ebpf.runtime.capabilities import Capability, effective
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

T = TypeVar("T")


def control_path(control: str | None, direct: bool) -> str | None:
    """The control socket to ask; None to ask the kernel itself.

    `control` names a socket, `direct` wants the kernel.  Raises `Failure` if a daemon serves
    this namespace and its socket is not at the default place.
    """
    if direct:
        return None
    if control is not None:
        return control
    held_by = holder()
    if held_by is None:
        return None
    path = client.default_path()
    if not os.path.exists(path):
        raise Failure(
            f"a daemon (process {held_by[0] or '?'}) serves this network namespace, but not at "
            f"{path}: name its socket with --control, or go past it with --direct",
            ExitCode.NO_DAEMON,
        )
    return path


def carry_out(path: str | None, **fields: object) -> CarriedOut:
    """Carries out the command that the fields describe (see `by_hand`); a None is no field.

    Raises `Failure` if it is none, or nobody can be asked; what the kernel or the
    daemon refuses is in the answer.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if path is not None:
        done: CarriedOut = client.post(path, "/v1/command", given)
        return done

    def ask(pm: PmClient) -> CarriedOut:
        try:
            command = operator_commands.parse(given, pm)
        except ValueError as error:
            raise Failure(str(error), ExitCode.USAGE) from None
        return operator_commands.carried_out(command, "kernel", *pm.execute_now(command))

    return _kernel(ask)


def endpoints(path: str | None) -> Endpoints:
    """The in-kernel path manager's endpoints.  Raises `Failure`."""
    if path is None:
        return _kernel(lambda pm: operator_commands.endpoints(pm.endpoints()))
    found: Endpoints = client.get(path, "/v1/endpoints")
    return found


def connections_of_kernel() -> Connections:
    """Connections and subflows as the kernel's socket diagnosis knows them.

    What only probes see, or events tell, is unknown.  Raises `Failure`, also where there may be
    some that the kernel (newer ones) shows only to who has CAP_NET_ADMIN.
    """
    try:
        found = resync.snapshot()
    except KernelError as error:
        raise Failure(str(error), exit_code(error)) from None
    if not found.subflows and Capability.CAP_NET_ADMIN not in effective():
        raise Failure(
            "no subflow is seen, but the kernel may show them only to who has CAP_NET_ADMIN: run "
            "this as root",
            ExitCode.PRIVILEGE,
        )
    # The kernel's list has no order; people look for the initial one first.
    found.subflows.sort(key=lambda each: (not each.initial, each.local_id or 0))
    tracker = Tracker()
    tracker.apply(found, time.monotonic_ns())
    return views.connections(tracker.world, time.time_ns() - time.monotonic_ns())


def limits(path: str | None) -> LimitsView:
    """The in-kernel path manager's limits.  Raises `Failure`."""
    if path is None:
        return _kernel(lambda pm: operator_commands.limits(pm.limits()))
    found: LimitsView = client.get(path, "/v1/limits")
    return found


def _kernel(ask: Callable[[PmClient], T]) -> T:
    try:
        with PmClient() as pm:
            return ask(pm)
    except KernelError as error:
        raise Failure(str(error), exit_code(error)) from None


def exit_code(error: KernelError) -> ExitCode:
    """How a command ends that the kernel did not serve."""
    if isinstance(error, MptcpMissing):
        return ExitCode.NO_MPTCP
    if isinstance(error, NotPermitted):
        return ExitCode.PRIVILEGE
    if isinstance(error, NetlinkRefused) and error.errno in (errno.EPERM, errno.EACCES):
        return ExitCode.PRIVILEGE
    return ExitCode.CHECK_FAILED
