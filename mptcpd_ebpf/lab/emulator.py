# SPDX-License-Identifier: BSD-3-Clause
"""The path emulator: one process that decides when the packets of all paths go on.

Each direction of each path is an NFQUEUE (net/netfilter/nfnetlink_queue.c) in its
router's namespace.  Packets stay in the kernel; user space gets only their ids (and their
headers, if packets are dropped by MPTCP option) and sends a verdict when a packet is due.
Ids in a queue are consecutive, so one batch verdict releases a whole run of packets.  A
lost packet is dropped when it is due and not at once: then it is at the head of the queue,
where the kernel finds it without searching.

It runs as ``python emulator.py``, with the standard library and one small module of the package,
so that it starts in some 20 ms.  The control socket is a SEQPACKET socket; each JSON request gets
one answer.  Its end of file ends the process, so the emulator never outlives the lab.  If the
emulator fails, the rules' --queue-bypass lets packets pass undelayed.

Three measures make the timing precise: at most `BUDGET` packets are read from a queue before
the other queues are served again, the timer slack is 1 ns (prctl(2)) with a nice value of -10,
and garbage collection is off.
"""

import ctypes
import errno
import gc
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # It is started by path and without the site module, which is the fastest way.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mptcpd_ebpf.kernel.tcp_options import MPTCP_KIND, split_options

# include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_queue.h
_SUBSYS_QUEUE = 3 << 8
_MSG_VERDICT, _MSG_CONFIG, _MSG_VERDICT_BATCH = (_SUBSYS_QUEUE | n for n in (1, 2, 3))
_VERDICT_HDR = 2
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN = 1, 2, 3
_CMD_BIND, _CMD_PF_BIND = 1, 3
_COPY_META, _COPY_PACKET = 1, 2
_PAYLOAD = 10
_HEADERS = 120  # bytes: IPv4 with options, or IPv6, and a TCP header of 60
_NLMSG_ERROR = (2).to_bytes(2, sys.byteorder)
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE = 33
_CLONE_NEWNET = 0x40000000
_PR_SET_TIMERSLACK = 29

DROP, ACCEPT = 0, 1
BUDGET = 64
MAX_QUEUED = 200_000  # packets per queue; a second of 1 Gbit/s is about 86 000
_RECEIVE_BUFFER = 64 << 20
# nlmsghdr 16, nfgenmsg 4, then NFQA_PACKET_HDR, the first attribute: header 4, id 4.
_ID_AT = slice(24, 28)

_libc = ctypes.CDLL(None, use_errno=True)


class Queue:
    """One direction of one path."""

    def __init__(self, netns: str, number: int, seed: str | None) -> None:
        self.number = number
        self.socket = _socket_in(netns)
        self.bound = False
        self.wanted = _ID_AT.stop
        """How many bytes of each message to read."""
        # Loss and jitter have separate random sources: a change of one must not change the
        # sequence of the other.
        self.loss_source = random.Random(None if seed is None else f"{seed} loss")
        self.jitter_source = random.Random(None if seed is None else f"{seed} jitter")
        self.bad = False
        self.held: deque[tuple[int, int, int]] = deque()
        """(due, last id, verdict) of runs of packets with the same verdict, in order of arrival."""
        self.loose: list[tuple[int, int, int]] = []
        """(due, id, verdict) of packets that may overtake each other, as a heap."""
        self.set({})

    def set(self, spec: dict[str, Any]) -> None:
        """Sets the impairment: the fields of an Impairment, `blackhole` and `drop_options`."""
        self.delay = round(spec.get("delay_ms", 0) * 1e6)
        self.jitter = round(spec.get("jitter_ms", 0) * 1e6)
        self.reorder = bool(spec.get("reorder"))
        self.loss = spec.get("loss_percent", 0) / 100
        burst = spec.get("burst")
        self.burst = (
            None
            if burst is None
            else tuple(
                burst[name] / 100
                for name in ("enter_percent", "leave_percent", "loss_percent", "good_loss_percent")
            )
        )
        self.blackhole = bool(spec.get("blackhole"))
        self.drop_options = frozenset(spec.get("drop_options", ()))
        self.plain = not (
            self.jitter or self.loss or self.burst or self.blackhole or self.drop_options
        )
        if (self.delay or not self.plain) and not self.bound:
            self.bind()
        if self.bound:
            # Copying headers to user space costs time, so the kernel does it only if needed.
            self.wanted = 512 if self.drop_options else _ID_AT.stop
            mode = (_HEADERS, _COPY_PACKET) if self.drop_options else (0, _COPY_META)
            self._configure(_CFG_PARAMS, struct.pack(">IB", *mode))

    def probe(self) -> None:
        """Raises OSError if this kernel has no NFQUEUE.  The queue must not be bound yet."""
        # PF_BIND has had no effect since Linux 3.8, but only nfnetlink_queue accepts it.
        command = struct.pack(">BxH", _CMD_PF_BIND, socket.AF_INET)
        flags = _NLM_F_REQUEST | _NLM_F_ACK
        self.socket.send(_message(_MSG_CONFIG, self.number, _CFG_CMD, command, flags))
        error = -int.from_bytes(self.socket.recv(64)[16:20], sys.byteorder, signed=True)
        if error:
            raise OSError(error, f"no nfnetlink_queue ({os.strerror(error)})")

    def bind(self) -> None:
        """Makes the kernel queue packets here; until then the rule lets them pass."""
        self._configure(_CFG_CMD, struct.pack(">BxH", _CMD_BIND, 0))
        self._configure(_CFG_MAXLEN, struct.pack(">I", MAX_QUEUED))
        self.socket.setblocking(False)
        self.bound = True

    def _configure(self, attribute: int, value: bytes) -> None:
        """Sends a configuration message without asking for an acknowledgement.

        An acknowledgement would wait behind packets.  The kernel still reports a refusal, and
        `receive` raises it.
        """
        self.socket.send(_message(_MSG_CONFIG, self.number, attribute, value, _NLM_F_REQUEST))

    def receive(self, now: int) -> bool:
        """Reads up to BUDGET packets that arrived by `now`; returns whether there may be more."""
        receive, wanted = self.socket.recv, self.wanted
        ids: list[int] = []
        marked: set[int] = set()
        try:
            for _ in range(BUDGET):
                message = receive(wanted)
                if message[4:6] == _NLMSG_ERROR:
                    error = -int.from_bytes(message[16:20], sys.byteorder, signed=True)
                    # A verdict finds no packet when its interface went down meanwhile and the
                    # kernel dropped it (net/netfilter/nfnetlink_queue.c, nfqnl_dev_drop).
                    if error not in (0, errno.ENOENT):
                        raise OSError(error, f"NFQUEUE {self.number}: {os.strerror(error)}")
                    continue
                packet = int.from_bytes(message[_ID_AT], "big")
                ids.append(packet)
                if self.drop_options and self.drop_options & mptcp_subtypes(_payload(message)):
                    marked.add(packet)
        except BlockingIOError:
            pass
        if not ids:
            return False
        if self.plain and not self.loose:
            self.held.append((now + self.delay, ids[-1], ACCEPT))
        else:
            for packet in ids:
                self._hold(packet, now, packet in marked)
        return len(ids) == BUDGET

    def _hold(self, packet: int, now: int, marked: bool) -> None:
        verdict = DROP if self._is_lost() or marked else ACCEPT
        due = now + self.delay
        if self.jitter:
            due += round(self.jitter_source.uniform(-self.jitter, self.jitter))
        if self.loose or (self.jitter and self.reorder):
            # These need single verdicts: a batch verdict includes all earlier ids.
            heappush(self.loose, (due, packet, verdict))
            return
        held = self.held
        if held:
            last_due, _, last_verdict = held[-1]
            if last_due == due and last_verdict == verdict == ACCEPT:
                held.pop()
        held.append((due, packet, verdict))

    def _is_lost(self) -> bool:
        if self.blackhole:
            return True
        chance = self.loss
        if self.burst is not None:
            enter, leave, in_bad, in_good = self.burst
            if self.loss_source.random() < (leave if self.bad else enter):
                self.bad = not self.bad
            chance = in_bad if self.bad else in_good
        return bool(chance > 0 and self.loss_source.random() < chance)

    def release(self, now: int) -> None:
        """Sends the verdicts that are due."""
        held = self.held
        while held and held[0][0] <= now:
            _, packet, verdict = held.popleft()
            if verdict == ACCEPT:
                while held and held[0][0] <= now and held[0][2] == ACCEPT:
                    packet = held.popleft()[1]
                self._answer(_MSG_VERDICT_BATCH, packet, ACCEPT)
            else:
                self._answer(_MSG_VERDICT, packet, DROP)
        loose = self.loose
        while loose and loose[0][0] <= now and not held:
            _, packet, verdict = heappop(loose)
            self._answer(_MSG_VERDICT, packet, verdict)

    def _answer(self, kind: int, packet: int, verdict: int) -> None:
        self.socket.send(
            _message(
                kind, self.number, _VERDICT_HDR, struct.pack(">II", verdict, packet), _NLM_F_REQUEST
            )
        )

    def next_due(self) -> int | None:
        if self.held:
            return self.held[0][0]
        return self.loose[0][0] if self.loose else None

    def flush(self) -> None:
        """Drops all delayed packets, as a router that loses power does."""
        while self.held:
            _, packet, _ = self.held.popleft()
            self._answer(_MSG_VERDICT_BATCH, packet, DROP)
        while self.loose:
            self._answer(_MSG_VERDICT, heappop(self.loose)[1], DROP)


def _payload(message: bytes) -> bytes:
    """The packet's first bytes in a message of the kernel, empty if it has none."""
    at = 20
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _PAYLOAD:
            return message[at + 4 : at + length]
        at += max(4, length + 3 & ~3)
    return b""


def mptcp_subtypes(packet: bytes) -> frozenset[int]:
    """The subtypes of all MPTCP options (TCP option 30, RFC 8684) of an IP packet."""
    if len(packet) < 40:
        return frozenset()
    if packet[0] >> 4 == 4:
        protocol, tcp = packet[9], (packet[0] & 15) * 4
    else:
        protocol, tcp = packet[6], 40
    if protocol != socket.IPPROTO_TCP or len(packet) < tcp + 20:
        return frozenset()
    options, _ = split_options(packet[tcp + 20 : tcp + (packet[tcp + 12] >> 4) * 4])
    return frozenset(each[2] >> 4 for each in options if each[0] == MPTCP_KIND and len(each) > 2)


def _message(kind: int, queue: int, attribute: int, value: bytes, flags: int) -> bytes:
    body = struct.pack(">BBH", 0, 0, queue)  # nfgenmsg: family, version, resource id
    body += struct.pack("=HH", 4 + len(value), attribute) + value
    body += b"\0" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def _socket_in(netns: str) -> socket.socket:
    back = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(netns, os.O_RDONLY)
    try:
        _setns(there)
        try:
            result = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        finally:
            _setns(back)
    finally:
        os.close(there)
        os.close(back)
    result.bind((0, 0))
    result.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    result.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
    return result


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _obey(queues: list[Queue], request: dict[str, Any]) -> dict[str, Any]:
    try:
        for change in request.get("set", []):
            queues[change["queue"]].set(change)
        for index in request.get("flush", []):
            queues[index].flush()
    except OSError as error:
        return {"ok": False, "error": str(error)}
    return {"ok": True}


def serve(control: socket.socket, queues: list[Queue]) -> None:
    """The loop; returns at the control socket's end of file."""
    by_fd = {queue.socket.fileno(): queue for queue in queues}
    control_fd = control.fileno()
    fds = [control_fd, *by_fd]
    busy = False
    while True:
        # select(2) takes microseconds where epoll_wait(2) takes milliseconds.
        dues = [due for queue in queues if (due := queue.next_due()) is not None]
        timeout = None
        if busy:
            timeout = 0.0
        elif dues:
            timeout = max(0.0, (min(dues) - time.monotonic_ns()) / 1e9)
        ready = select.select(fds, (), (), timeout)[0]
        now = time.monotonic_ns()
        busy = False
        for fd in ready:
            if fd != control_fd:
                busy |= by_fd[fd].receive(now)
                continue
            request = control.recv(65536)
            if not request:
                return
            control.send(json.dumps(_obey(queues, json.loads(request))).encode())
        now = time.monotonic_ns()
        for queue in queues:
            queue.release(now)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        queues = [
            Queue(spec["netns"], spec["number"], spec["seed"])
            for spec in json.loads(control.recv(65536))
        ]
        queues[0].probe()
    except OSError as error:
        control.send(json.dumps({"ok": False, "error": str(error)}).encode())
        return
    control.send(b'{"ok": true}')
    try:
        serve(control, queues)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
