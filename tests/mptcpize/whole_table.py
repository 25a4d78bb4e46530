# SPDX-License-Identifier: BSD-3-Clause
"""Runs under LD_PRELOAD=<preload library>:<recorder>; tries socket() with every combination.

Prints a JSON object: how many calls were tried, and each one that broke the
rule.  The rule is stated here independently, in terms of the socket API: a stream socket
over IPv4 or IPv6, whatever its flags, whose protocol is TCP or left to the default.
"""

import ctypes
import errno
import json
import socket
import sys

PROTOCOL_MPTCP = 262
UNTOUCHED = 4242
RETURNED_BY_RECORDER = 1000


class Call(ctypes.Structure):
    _fields_ = [("family", ctypes.c_int), ("type", ctypes.c_int), ("protocol", ctypes.c_int)]


recorder = ctypes.CDLL(sys.argv[1])
recorded = (Call * 4).in_dll(recorder, "recorded")
calls = ctypes.c_int.in_dll(recorder, "calls")
refuse_mptcp = ctypes.c_int.in_dll(recorder, "refuse_mptcp")
refuse_all = ctypes.c_int.in_dll(recorder, "refuse_all")
program = ctypes.CDLL(None, use_errno=True)

FAMILIES = [*range(-1, 48), 255]
TYPES = range(16)
FLAGS = [0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK]
PROTOCOLS = [*range(-1, 20), 47, 58, 132, 136, 255, 256, 261, PROTOCOL_MPTCP, 263, 6 + 256, 6 << 8]
ERRNOS = [0, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL, errno.EPERM, errno.EACCES]

wrong: list[object] = []
tried = 0


def ask(family: int, kind: int, protocol: int, *, no_mptcp: int = 0, nothing: int = 0) -> None:
    """Makes one call and compares the recorded calls and the result with the expected ones."""
    global tried
    tried += 1
    calls.value, refuse_mptcp.value, refuse_all.value = 0, no_mptcp, nothing
    ctypes.set_errno(UNTOUCHED)
    result = program.socket(family, kind, protocol)
    seen = [(call.family, call.type, call.protocol) for call in recorded[: calls.value]]

    own = (family, kind, protocol)
    base = kind & ~(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    tcp = family in (socket.AF_INET, socket.AF_INET6) and base == socket.SOCK_STREAM
    tcp = tcp and protocol in (0, socket.IPPROTO_TCP)
    expected = [(family, kind, PROTOCOL_MPTCP)] if tcp else [own]
    if tcp and no_mptcp:
        expected.append(own)
    last = expected[-1][2]
    refused = no_mptcp if last == PROTOCOL_MPTCP else nothing
    returns = (-1, refused) if refused else (RETURNED_BY_RECORDER + last, UNTOUCHED)
    if seen != expected or (result, ctypes.get_errno()) != returns:
        wrong.append([own, no_mptcp, nothing, seen, result, ctypes.get_errno()])


for family in FAMILIES:
    for kind in TYPES:
        for flags in FLAGS:
            for protocol in PROTOCOLS:
                ask(family, kind | flags, protocol)
for family in (socket.AF_INET, socket.AF_INET6):
    for protocol in (0, socket.IPPROTO_TCP):
        for flags in FLAGS:
            for no_mptcp in ERRNOS:
                for nothing in (0, errno.EMFILE, errno.EAFNOSUPPORT):
                    ask(family, 1 | flags, protocol, no_mptcp=no_mptcp, nothing=nothing)
print(json.dumps({"tried": tried, "wrong": wrong[:20]}))
