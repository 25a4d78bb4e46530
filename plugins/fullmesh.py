# SPDX-License-Identifier: BSD-3-Clause
"""A subflow between every usable address of ours and every address of the peer.

The peer's addresses are the initial one (unless the peer asks not to join it, RFC 8684, 3.1) and
those it announced.  Only the client joins: through a NAT the server cannot.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta

from mptcpd_ebpf.plugin import Connection, Context, JoiningPlugin, Options, SockAddr, Want


class FullmeshOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set under `plugins: fullmesh:`."""

    most: Annotated[int, Meta(ge=1)] = 8
    """Subflows of one connection at most, the initial one included."""


class Fullmesh(JoiningPlugin):
    name = "fullmesh"
    Options: ClassVar[type[Options]] = FullmeshOptions

    options: FullmeshOptions

    def wants(self, ctx: Context, connection: Connection) -> Iterator[Want]:
        if connection.server_side:
            return
        pairs = [
            (address.ip, remote)
            for address in ctx.world.usable_addresses()
            for remote in _addresses_of_peer(connection)
            if (":" in address.ip) == (":" in remote.ip)
        ]
        # Existing subflows go first: the limit must not displace them.
        pairs.sort(key=lambda pair: pair not in _there(connection))
        for local_ip, remote in pairs[: self.options.most]:
            yield Want(local_ip, remote, f"{local_ip} and {remote} are a pair without a subflow")


def _addresses_of_peer(connection: Connection) -> list[SockAddr]:
    first = [] if connection.deny_join_id0 else [connection.remote]
    port = connection.remote.port
    announced = [SockAddr(a.ip, a.port or port) for a in connection.announced.values()]
    return list(dict.fromkeys(first + announced))


def _there(connection: Connection) -> list[tuple[str, SockAddr]]:
    return [(s.local.ip, s.remote) for s in connection.usable_subflows()]
