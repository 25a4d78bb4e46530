# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon needs from its environment, and what it gives up when it has started."""

import logging
import resource

from mptcpd_ebpf.runtime import capabilities
from mptcpd_ebpf.runtime.capabilities import Capability
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

log = logging.getLogger("mptcpd-ebpf")

KEPT = frozenset(
    {
        Capability.CAP_NET_ADMIN,  # commands, the sysctl, receive buffers, socket diagnosis
        Capability.CAP_NET_RAW,  # packets of path probes
        Capability.CAP_NET_BIND_SERVICE,  # listeners at announced ports below 1024
        Capability.CAP_SYS_PTRACE,  # the owners of other users' sockets
        Capability.CAP_DAC_OVERRIDE,  # started by root: files that belong to other users
    }
)
"""What the daemon still needs when its probes are attached.

Programs, maps and iterators are then open: the kernel asks for CAP_BPF and CAP_PERFMON only to
create them (kernel/bpf/syscall.c, __sys_bpf).
"""

FILES_NEEDED = 128
"""Open files: 45 for sockets and probes, 80 clients, and some to look at /proc."""
_MOST_FILES = 65536


def require_files() -> None:
    """Raises the limit of open files to what is allowed.

    Raises `Failure` if less is allowed than the daemon needs, because it would fail in the middle
    of something.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FILES_NEEDED:
        raise Failure(
            f"at most {hard} files may be open, and the daemon needs {FILES_NEEDED}: raise the "
            "limit (ulimit -Hn; a service: LimitNOFILE=)",
            ExitCode.PRIVILEGE,
        )
    wanted = _MOST_FILES if hard < 0 else min(hard, _MOST_FILES)
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def require_capabilities() -> None:
    """Raises `Failure` if the daemon cannot do anything; warns if it sees less than it could."""
    held = capabilities.effective()
    if Capability.CAP_NET_ADMIN not in held:
        raise Failure(
            "CAP_NET_ADMIN is missing, without which the kernel reports no connections and takes "
            "no commands: run as root, or grant it (a service: AmbientCapabilities=)",
            ExitCode.PRIVILEGE,
        )
    if Capability.CAP_SYS_PTRACE not in held:
        log.warning(
            "CAP_SYS_PTRACE is missing: the processes that other users' connections belong to are "
            "unknown, except where probes report them, and rules by command, cgroup or uid do not "
            "match them"
        )


def drop() -> None:
    """Gives up what only the start needs.  Not being able to is a warning, not an obstacle."""
    try:
        capabilities.keep_only(KEPT)
    except OSError as error:
        log.warning("capabilities are kept that are no longer needed: %s", error)
