# SPDX-License-Identifier: BSD-3-Clause
"""Drops all TCP input of a namespace's kernel, so that only the script answers.

A netfilter rule drops TCP at the input hook, which is behind the capture point: the capture
gets each packet, but the kernel's TCP does not, and sends no RST.

The rule's table is *owned* (nft(8), ``flags owner``): the kernel removes it as soon as
the process that made it ends.  That process is an interactive nft that reads from a pipe
of this process, so the rule is removed however this process ends, also by SIGKILL.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from mptcpd_ebpf.lab import namespaces
from mptcpd_ebpf.lab.errors import LabError, no_such_command

_TABLE = "mptcplab_wire_peer"
_SCRIPT = f"""
create table inet {_TABLE} {{ flags owner; }}
add chain inet {_TABLE} input {{ type filter hook input priority raw; }}
add rule inet {_TABLE} input meta l4proto tcp drop
list tables
"""


@contextmanager
def without_tcp_input(netns: str | None) -> Iterator[None]:
    """While the block runs, no TCP reaches the kernel of `netns` (None: the caller's namespace).

    Raises LabError if the rule exists already, if the namespace does not, or if nft fails;
    UnavailableError without nft or the right to enter the namespace.
    """
    with namespaces.entered(netns) if netns else nullcontext():
        try:
            nft = subprocess.Popen(
                ["nft", "--interactive"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except FileNotFoundError:
            raise no_such_command("nft") from None
    with nft:
        assert nft.stdin is not None
        assert nft.stdout is not None
        nft.stdin.write(_SCRIPT)
        nft.stdin.flush()
        # The last command lists the tables: once it lists this one, the rule is in force.
        for line in nft.stdout:
            if line.strip() == f"table inet {_TABLE}":
                break
            if line.startswith("Error"):
                raise LabError(
                    f"{netns or 'this namespace'}: nft: {line.strip()} "
                    "(is another peer open there?)"
                )
        else:
            raise LabError(f"{netns or 'this namespace'}: nft ended without an answer")
        yield
        # Leaving the block closes the pipe and waits for nft to end.
