# SPDX-License-Identifier: BSD-3-Clause
"""MPTCP options inside scapy's TCP, and a reading of TCP options that loses nothing.

Importing this module teaches scapy's TCP layer, the way scapy's own contributed layers
do: a dissected segment holds ``("MPTCP", MPJoinSyn(...))`` in its options and a built one
takes the same, or the raw ``(30, b"...")`` as before.

scapy alone forgets what a malformed options area looked like: it mends impossible
lengths and drops what follows an end-of-list.  Here such a rest is kept as
``("Malformed", bytes)`` and written out as it came, so that building a dissected segment
gives the same bytes (RFC 9293, 3.1, for the form of TCP options).
"""

from typing import Any

from scapy.layers.inet import TCP, TCPOptionsField
from scapy.packet import Packet

from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND, NO_OPERATION, split_options
from mptcpd_ebpf.lab.wire.options import MPTCPOption

MPTCP_NAME = "MPTCP"
MALFORMED = "Malformed"

ScapyOption = tuple[str | int, Any]
"""As scapy writes TCP options: a name or kind, and a value."""


def mptcp_options(area: bytes) -> list[MPTCPOption]:
    """The MPTCP options of a TCP options area, in order."""
    options, _ = split_options(area)
    return [MPTCPOption(raw) for raw in options if raw[0] == MPTCP_KIND]


class MptcpAwareOptionsField(TCPOptionsField):  # type: ignore[misc]
    """scapy's field for TCP options, with MPTCP's dissected and malformed ones kept."""

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
        # scapy's own forms (SACK, AO) raise in various ways on lengths they do not expect.
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


def _teach_tcp() -> None:
    field = MptcpAwareOptionsField("options", "")
    at = next(i for i, known in enumerate(TCP.fields_desc) if known.name == "options")
    TCP.fields_desc[at] = field
    # Layers that were made before have cached their fields by class.
    Packet.class_fieldtype.get(TCP, {})["options"] = field


_teach_tcp()
