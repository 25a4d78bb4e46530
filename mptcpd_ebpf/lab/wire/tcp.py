# SPDX-License-Identifier: BSD-3-Clause
"""Adds MPTCP options to scapy's TCP layer, and reads TCP options without loss.

Importing this module extends scapy's TCP layer, as scapy's own contributed layers do: the
options of a dissected segment contain ``("MPTCP", MPJoinSyn(...))``, and a segment to build
accepts the same, or the raw ``(30, b"...")`` as before.

Scapy alone does not preserve a malformed options area: it corrects impossible lengths and
drops what follows an end-of-list.  Here such a rest becomes ``("Malformed", bytes)`` and is
written unchanged, so that building a dissected segment gives the same bytes (RFC 9293, 3.1,
for the form of TCP options).
"""

from typing import Any

from scapy.layers.inet import TCP, TCPOptionsField
from scapy.packet import Packet

from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND, NO_OPERATION, split_options
from mptcpd_ebpf.lab.wire.options import MPTCPOption

MPTCP_NAME = "MPTCP"
MALFORMED = "Malformed"

ScapyOption = tuple[str | int, Any]
"""A TCP option as scapy represents it: a name or kind, and a value."""


def mptcp_options(area: bytes) -> list[MPTCPOption]:
    """The MPTCP options of a TCP options area, in order."""
    options, _ = split_options(area)
    return [MPTCPOption(raw) for raw in options if raw[0] == MPTCP_KIND]


class MptcpAwareOptionsField(TCPOptionsField):  # type: ignore[misc]
    """Scapy's field for TCP options; dissects MPTCP's and keeps malformed ones."""

    def m2i(self, pkt: Packet, x: bytes) -> list[ScapyOption]:
        raw_options, rest = split_options(x)
        options = [self._dissect(pkt, raw) for raw in raw_options]
        if rest and not any(rest) and len(rest) < 4:
            options.append(("EOL", None))
        elif rest:
            options.append((MALFORMED, rest))
        return options

    def _dissect(self, pkt: Packet, raw: bytes) -> ScapyOption:
        if raw[0] == MPTCP_KIND:
            return MPTCP_NAME, MPTCPOption(raw)
        # Scapy's own forms (SACK, AO) raise various exceptions on unexpected lengths.
        try:
            option: ScapyOption = super().m2i(pkt, raw)[0]
            faithful = self._encode(option) == raw
        except Exception:
            faithful = False
        return option if faithful else (raw[0], raw[2:])

    def _encode(self, option: ScapyOption) -> bytes:
        name, value = option
        if name in (MPTCP_NAME, MALFORMED):
            return bytes(value)
        padded: bytes = super().i2m(None, [option])
        return padded[: padded[1]] if padded[0] > NO_OPERATION else padded[:1]

    def i2m(self, pkt: Packet | None, x: list[ScapyOption]) -> bytes:
        area = b"".join(self._encode(option) for option in x)
        return area + bytes(-len(area) % 4)


def _extend_tcp_layer() -> None:
    field = MptcpAwareOptionsField("options", "")
    at = next(i for i, known in enumerate(TCP.fields_desc) if known.name == "options")
    TCP.fields_desc[at] = field
    # Scapy caches the fields of each class when its first packet is made.
    Packet.class_fieldtype.get(TCP, {})["options"] = field


_extend_tcp_layer()
