# SPDX-License-Identifier: BSD-3-Clause
"""Faults of middleboxes: expired NAT bindings, removed options, forged resets.

They work on the router of a path, with either backend.  xt_TCPOPTSTRIP
(net/netfilter/xt_TCPOPTSTRIP.c) removes options by turning them into NOPs.  Resets are made
from the packets that pass: the sender of a packet expects the sequence number that the packet
acknowledges, so the RST has that one (RFC 5961, 3.2: any other causes a challenge ACK).
"""

import select
import socket
import struct
import time

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.topology import FAR, NEAR

_STRIP = "-p tcp -j TCPOPTSTRIP --strip-options 30"
_SIDES = (f"-o {FAR}", f"-i {FAR}")  # up, down, in the router's FORWARD chain


def families(host: Host) -> list[str]:
    """The iptables commands of the address families that `host` uses."""
    with_ipv6 = host.sysctl("ipv6.conf.all.disable_ipv6") == "0"
    return ["iptables", "ip6tables"] if with_ipv6 else ["iptables"]


class OptionStripper:
    """Removes all MPTCP options from the packets that one router forwards."""

    def __init__(self, router: Host) -> None:
        self.router = router
        self.active: set[int] = set()
        """The directions whose packets are stripped."""

    def strip(self, directions: list[int]) -> None:
        for direction in sorted(set(directions) - self.active):
            self._rule("-I", direction)
            self.active.add(direction)

    def clear(self) -> None:
        for direction in sorted(self.active):
            self._rule("-D", direction)
        self.active.clear()

    def _rule(self, verb: str, direction: int) -> None:
        for tool in families(self.router):
            rule = f"{tool} -t mangle {verb} FORWARD {_SIDES[direction]} {_STRIP}"
            self.router.run(rule.split())


# --- NAT


def set_up_nat(router: Host) -> None:
    """Masquerades packets that leave by `far`; drops packets without a binding silently."""
    rules = "\n".join(
        [
            "*nat",
            f"-A POSTROUTING -o {FAR} -j MASQUERADE",
            "COMMIT",
            "*filter",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            f"-A INPUT -i {FAR} -p tcp -j DROP",
            "COMMIT\n",
        ]
    )
    for tool in families(router):
        router.run([f"{tool}-restore", "--noflush"], input=rules)
    # No binding for a connection whose SYN was not seen, as with most real NATs.
    router.sysctl("netfilter.nf_conntrack_tcp_loose", 0)
    # The lab makes jitter and resets itself: packets out of window must pass.
    router.sysctl("netfilter.nf_conntrack_tcp_be_liberal", 1)


def expire_nat(router: Host) -> int:
    """Removes all bindings; returns how many there were."""
    count = int(router.sysctl("netfilter.nf_conntrack_count"))
    with router.entered():
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    with netlink:
        # IPCTNL_MSG_CT_DELETE without attributes flushes the table
        # (net/netfilter/nf_conntrack_netlink.c).
        body = struct.pack(">BBH", 0, 0, 0)
        kind = _SUBSYS_CTNETLINK << 8 | _CT_DELETE
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK, 1, 0) + body)
        error = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if error:
        raise LabError(f"{router.label}: cannot remove NAT bindings: errno {error}")
    return count


_NETLINK_NETFILTER = 12
_SUBSYS_CTNETLINK, _CT_DELETE = 1, 2
_REQUEST_ACK = 1 | 4

# --- resets

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_QUIET_S = 0.15


def inject_resets(within_s: float) -> int:
    """Runs in a router and resets every active connection; see LivePath.inject_resets."""
    sockets = []
    for interface in (NEAR, FAR):
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        packets.bind((interface, _ETH_P_ALL))
        packets.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        sockets.append(packets)
    young: set[bytes] = set()
    reset: set[bytes] = set()
    deadline = time.monotonic() + within_s
    while (left := deadline - time.monotonic()) > 0:
        ready = select.select(sockets, (), (), min(left, _QUIET_S) if reset else left)[0]
        if not ready and reset:
            break
        for packets in ready:
            frame, (_, _, kind, _, _) = packets.recvfrom(256)
            segment = None if kind == _PACKET_OUTGOING else _tcp_of(frame)
            if segment is None:
                continue
            pair, flags = _pair(frame, segment), frame[segment + 13]
            if flags & _SYN:
                young.add(pair)
            if flags & _ACK and not flags & (_SYN | _RST) and pair not in young:
                packets.send(reset_for(frame, segment))
                reset.add(pair)
    for packets in sockets:
        packets.close()
    return len(reset)


def _tcp_of(frame: bytes) -> int | None:
    """Offset of the TCP header in an Ethernet frame, None if there is none."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
        return 14 + (frame[14] & 15) * 4
    if kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
        return 54
    return None


def _addresses(frame: bytes) -> tuple[bytes, bytes]:
    if frame[12:14] == b"\x08\x00":
        return frame[26:30], frame[30:34]
    return frame[22:38], frame[38:54]


def _pair(frame: bytes, tcp: int) -> bytes:
    """A key of the connection, the same for both directions."""
    source, target = _addresses(frame)
    return b"".join(sorted([source + frame[tcp : tcp + 2], target + frame[tcp + 2 : tcp + 4]]))


def reset_for(frame: bytes, tcp: int) -> bytes:
    """An Ethernet frame with a RST that the sender of `frame` accepts."""
    source, target = _addresses(frame)
    ports = frame[tcp + 2 : tcp + 4] + frame[tcp : tcp + 2]
    header = bytearray(ports + frame[tcp + 8 : tcp + 12] + bytes(4))
    header += struct.pack(">BBHHH", 5 << 4, _RST, 0, 0, 0)
    pseudo = target + source + struct.pack(">II", len(header), socket.IPPROTO_TCP)
    header[16:18] = struct.pack(">H", checksum(pseudo + header))
    if len(source) == 4:
        ip = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0))
        ip += target + source
        ip[10:12] = struct.pack(">H", checksum(ip))
    else:
        ip = bytearray(struct.pack(">IHBB", 6 << 28, 20, socket.IPPROTO_TCP, 64))
        ip += target + source
    return bytes(frame[6:12] + frame[:6] + frame[12:14] + ip + header)


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
