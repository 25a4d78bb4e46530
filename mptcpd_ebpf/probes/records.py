# SPDX-License-Identifier: BSD-3-Clause
"""Turns the probes' records into the core's.

The layouts come from the BPF object (`btf`); names and units of a measurement's members
are those of `core.measurement.Measurement`, so most of them are taken over unchanged. A value with
all bits set is unknown and becomes None (bpf/records.h).
"""

from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.events import AlarmRaised, SubflowEnded
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Owner
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.probes.btf import Btf, BtfError

_V4_MAPPED = bytes(10) + b"\xff\xff"
_FLAGS = ("backup", "backup_by_peer", "stale", "initial")
_COMPOSED = {
    "local_ip",
    "local_port",
    "remote_ip",
    "remote_port",
    "owner_pid",
    "owner_uid",
    "owner_cgroup",
    "owner_comm",
    "rtt_histogram",
    "unused",
}
"""Members that become part of another field, or take more than one value."""


def address(ip: bytes, port: int) -> SockAddr:
    """An address of a record: 16 bytes, IPv4 mapped."""
    if ip.startswith(_V4_MAPPED):
        return SockAddr(inet_ntop(AF_INET, ip[12:]), port)
    return SockAddr(inet_ntop(AF_INET6, ip), port)


class Decoder:
    """Decodes measurements and reports of one BPF object.

    Raises BtfError if the object has a member that the core does not have.
    """

    def __init__(self, btf: Btf) -> None:
        layout = btf.layout("measurement")
        fields = layout.fields
        self.size = layout.size
        """Bytes of one measurement."""
        self._unpack = layout.codec.unpack_from
        plain = [field for name, field in fields.items() if name not in _COMPOSED]
        unknown = {field.name for field in plain} - set(Measurement.__struct_fields__)
        if unknown:
            raise BtfError(f"struct measurement has members unknown to the core: {sorted(unknown)}")
        self._plain = [(field.name, field.index, field.unseen) for field in plain]
        self._at = {name: fields[name].index for name in _COMPOSED if name in fields}
        self._unseen_pid = fields["owner_pid"].unseen
        self._slots = fields["rtt_histogram"].count

        report = btf.layout("report")
        self._report = report.codec
        self._seen = report.fields["seen"].offset
        self._kind = report.fields["kind"].index
        self._value = report.fields["value"].index
        self._limit = report.fields["limit"].index
        kinds = {
            value: name.removeprefix("REPORT_")
            for name, value in btf.enumeration("report_kind").items()
        }
        self._ended = next(value for value, name in kinds.items() if name == "ENDED")
        self._alarms = {
            value: AlarmKind[name] for value, name in kinds.items() if name in AlarmKind.__members__
        }

    def measurement(self, data: bytes, offset: int = 0, *, closed: bool = False) -> Measurement:
        values = self._unpack(data, offset)
        at = self._at
        known: dict[str, Any] = {
            name: None if values[index] == unseen else values[index]
            for name, index, unseen in self._plain
        }
        for flag in _FLAGS:
            if known[flag] is not None:
                known[flag] = known[flag] != 0
        first = at["rtt_histogram"]
        owner = None
        if values[at["owner_pid"]] != self._unseen_pid:
            owner = Owner(
                pid=values[at["owner_pid"]],
                uid=values[at["owner_uid"]],
                cgroup=values[at["owner_cgroup"]],
                comm=name_of(values[at["owner_comm"]]),
            )
        return Measurement(
            local=address(values[at["local_ip"]], values[at["local_port"]]),
            remote=address(values[at["remote_ip"]], values[at["remote_port"]]),
            rtt_histogram=list(values[first : first + self._slots]),
            owner=owner,
            closed=closed,
            **known,
        )

    def report(self, data: bytes) -> AlarmRaised | SubflowEnded:
        values = self._report.unpack_from(data)
        kind = values[self._kind]
        if kind == self._ended:
            return SubflowEnded(measurement=self.measurement(data, self._seen, closed=True))
        return AlarmRaised(
            kind=self._alarms[kind],
            measurement=self.measurement(data, self._seen),
            value=values[self._value],
            limit=values[self._limit],
        )
