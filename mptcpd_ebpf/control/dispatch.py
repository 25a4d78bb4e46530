# SPDX-License-Identifier: BSD-3-Clause
"""Sends manual commands to the daemon of the network namespace, or to the kernel if there is none.

A daemon that serves the namespace should carry out manual commands, so that its guard checks them,
its plugins see them, and the decision is recorded.  The lock of the namespace shows whether a
daemon runs; the control socket does not, because its path is configurable.
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
    """The path of the control socket to use; None for the kernel.

    `control` names a socket, `direct` selects the kernel.  Raises `Failure` if a daemon serves this
    namespace and its socket is not at the default path.
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
            f"a daemon (process {held_by[0] or '?'}) serves this network namespace, but its socket "
            f"is not {path}: name it with --control, or use the kernel with --direct",
            ExitCode.NO_DAEMON,
        )
    return path


def carry_out(path: str | None, **fields: object) -> CarriedOut:
    """Carries out the command that the fields describe (`operator_commands`), ignoring None.

    Raises `Failure` if the fields are wrong, or neither daemon nor kernel answers.  A refusal by
    the kernel or the daemon is in the answer.
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
    """Connections and subflows from the kernel's socket diagnosis.

    What only probes or events report is unknown.  Raises `Failure`, also if nothing is listed and
    CAP_NET_ADMIN is missing, without which newer kernels list no subflows.
    """
    try:
        found = resync.snapshot()
    except KernelError as error:
        raise Failure(str(error), exit_code(error)) from None
    if not found.subflows and Capability.CAP_NET_ADMIN not in effective():
        raise Failure(
            "no subflow is listed, but newer kernels list them only with CAP_NET_ADMIN: run this "
            "command as root",
            ExitCode.PRIVILEGE,
        )
    # The kernel's list has no order; the initial subflow is shown first.
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
    """The exit code of a command that the kernel refused."""
    if isinstance(error, MptcpMissing):
        return ExitCode.NO_MPTCP
    if isinstance(error, NotPermitted):
        return ExitCode.PRIVILEGE
    if isinstance(error, NetlinkRefused) and error.errno in (errno.EPERM, errno.EACCES):
        return ExitCode.PRIVILEGE
    return ExitCode.CHECK_FAILED
