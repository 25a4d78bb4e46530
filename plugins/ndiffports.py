# SPDX-License-Identifier: BSD-3-Clause
"""Several subflows between the same two addresses, on different ports.

For networks that spread flows over equal-cost paths by their ports: one address suffices
to use several of them.  Only the client joins.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta

from mptcpd_ebpf.plugin import Connection, Context, JoiningPlugin, Options, Want, join_target


class NdiffportsOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: ndiffports:`."""

    subflows: Annotated[int, Meta(ge=1, le=64)] = 2
    """Of each connection, the initial one included."""


class Ndiffports(JoiningPlugin):
    name = "ndiffports"
    Options: ClassVar[type[Options]] = NdiffportsOptions

    options: NdiffportsOptions

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        remote = join_target(connection)
        if connection.server_side or remote is None:
            return
        if any(address.ip == connection.local.ip for address in ctx.world.usable_addresses()):
            number = self.options.subflows
            reason = f"{number} subflows are wanted on this path"
            yield Want(connection.local.ip, remote, reason, number=number)
