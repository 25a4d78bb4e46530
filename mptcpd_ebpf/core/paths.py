# SPDX-License-Identifier: BSD-3-Clause
"""How a plugin reports what it uses a path for.

The reports are decisions, so recordings, the log, the journal and the control socket contain them,
and the model keeps the newest of each path.  So `mptcpd-ebpf paths` needs to ask no plugin.
"""

from collections.abc import Iterator

from mptcpd_ebpf.core.commands import ReportPath
from mptcpd_ebpf.core.model import PathName
from mptcpd_ebpf.core.plugin import Context
from mptcpd_ebpf.core.roles import Role


def report_path(
    ctx: Context,
    name: PathName,
    state: Role | None,
    reason: str,
    *,
    answered: int = 0,
    needed: int = 0,
) -> Iterator[ReportPath]:
    """Yields a report if it says something new; a path without a report is active.

    `state` None: not known any more. `reason`: the cause of the state. `answered` and `needed`:
    probes of a path that is away. Progress of the probes is routine.
    """
    held = ctx.world.paths.get(name)
    if held is None and state in (None, Role.ACTIVE):
        return
    same = held is not None and held.state is state
    if (
        held is not None
        and same
        and (held.probes_answered, held.probes_needed)
        == (
            answered,
            needed,
        )
    ):
        return
    local_ip, remote_ip = name
    yield ReportPath(
        local_ip=local_ip,
        remote_ip=remote_ip,
        interface=ctx.world.interface_name(ctx.world.interface_of(local_ip)),
        state=state,
        reason=reason,
        routine=same,
        probes_answered=answered,
        probes_needed=needed,
        lasted=0 if held is None or same else ctx.now - held.since,
    )
