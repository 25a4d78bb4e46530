# SPDX-License-Identifier: BSD-3-Clause
"""Rules that assign a connection to a plugin.

A rule fits if every condition it names holds.  An unknown attribute does not hold.  The owner of
a connection is not known at once: netlink does not report it, a dump of the sockets does.  So a
rule may also answer that it cannot tell yet.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Annotated

from msgspec import Meta, Struct

from mptcpd_ebpf.core.address import Network, SockAddr
from mptcpd_ebpf.core.measurement import Owner
from mptcpd_ebpf.core.model import Connection, World
from mptcpd_ebpf.core.roles import Preset

Port = Annotated[int, Meta(ge=1, le=65535)]


class Undecided:
    """A rule depends on the owner of the connection, which has not been looked up yet."""


UNDECIDED = Undecided()


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plugin and the connections it serves."""

    plugin: str | None
    """None leaves the connection to the kernel."""
    preset: Preset | None = None
    """What its connections need from their paths; None: what the plugin's options say."""
    local: Network | None = None
    """Our address at the start of the connection: one, or a network."""
    local_port: Port | list[Port] | None = None
    remote: Network | None = None
    """The peer's address: one, or a network."""
    remote_port: Port | list[Port] | None = None
    interface: str | None = None
    """Name of the interface the connection started on; ``*`` and ``?`` as in a shell."""
    server_side: bool | None = None
    """Whether the peer opened it."""
    uid: int | None = None
    """User id of the process that opened it; on a server, of the listener's owner."""
    cgroup: str | None = None
    """Its cgroup's path below the cgroup v2 root, ``/user.slice/*``."""
    command: str | None = None
    """Its command name (at most 15 letters, as the kernel keeps it), ``firefox*``."""

    def fits(self, connection: Connection, world: World) -> bool | Undecided:
        if not (
            _address_fits(self.local, self.local_port, connection.local)
            and _address_fits(self.remote, self.remote_port, connection.remote)
            and (self.server_side is None or connection.server_side is self.server_side)
            and self._interface_fits(connection, world)
        ):
            return False
        if self.uid is None and self.cgroup is None and self.command is None:
            return True
        if not connection.owner_asked:
            return UNDECIDED
        owner = connection.owner or Owner()
        return (
            (self.uid is None or owner.uid == self.uid)
            and _pattern_fits(self.cgroup, owner.cgroup_path)
            and _pattern_fits(self.command, owner.comm)
        )

    def _interface_fits(self, connection: Connection, world: World) -> bool:
        if self.interface is None:
            return True
        name = world.interface_name(world.interface_of(connection.local.ip))
        return _pattern_fits(self.interface, name)


def _address_fits(network: str | None, ports: int | list[int] | None, address: SockAddr) -> bool:
    if ports is not None and address.port not in (ports if isinstance(ports, list) else [ports]):
        return False
    return network is None or ip_address(address.ip) in ip_network(network)


def _pattern_fits(pattern: str | None, name: str | None) -> bool:
    return pattern is None or (name is not None and fnmatchcase(name, pattern))


def choose(
    rules: Sequence[Rule], default: str | None, connection: Connection, world: World
) -> Rule | Undecided:
    """The first rule that fits; if none does, one that names the default plugin."""
    for rule in rules:
        fits = rule.fits(connection, world)
        if isinstance(fits, Undecided):
            return fits
        if fits:
            return rule
    return Rule(plugin=default)
