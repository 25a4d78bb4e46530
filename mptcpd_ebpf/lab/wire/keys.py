# SPDX-License-Identifier: BSD-3-Clause
"""Values derived from MPTCP keys: token, initial data sequence number, HMACs; DSS checksum.

Rules: RFC 8684, 3.1 (token and IDSN), 3.2 (MP_JOIN), 3.4.1 (ADD_ADDR) and 3.3.1 (DSS
checksum), all with SHA-256; the kernel's side is net/mptcp/crypto.c.  Keys are 64-bit,
nonces and tokens 32-bit numbers, in network byte order.
"""

import hashlib
import hmac
import ipaddress
import struct

_U64 = 1 << 64
_U32 = 1 << 32


def _digest(key: int) -> bytes:
    return hashlib.sha256(key.to_bytes(8, "big")).digest()


def token_from_key(key: int) -> int:
    """The token of the connection with `key`: the first 32 bits of the key's hash."""
    return int.from_bytes(_digest(key)[:4], "big")


def idsn_from_key(key: int) -> int:
    """The initial data sequence number of `key`'s owner: the last 64 bits of the hash.

    The SYN takes this number: the first byte of data has IDSN + 1.
    """
    return int.from_bytes(_digest(key)[-8:], "big")


def _hmac(first_key: int, second_key: int, message: bytes) -> bytes:
    secret = struct.pack("!QQ", first_key, second_key)
    return hmac.digest(secret, message, "sha256")


def join_hmac(own_key: int, peer_key: int, own_nonce: int, peer_nonce: int) -> bytes:
    """The full 32-byte HMAC by which the owner of `own_key` authenticates itself in a join.

    MP_JOIN carries its first 8 bytes in the SYN/ACK and its first 20 in the ACK.
    """
    return _hmac(own_key, peer_key, struct.pack("!II", own_nonce, peer_nonce))


def synack_hmac(own_key: int, peer_key: int, own_nonce: int, peer_nonce: int) -> int:
    """The truncated HMAC of the MP_JOIN SYN/ACK, as the listener of the join sends it."""
    return int.from_bytes(join_hmac(own_key, peer_key, own_nonce, peer_nonce)[:8], "big")


def ack_hmac(own_key: int, peer_key: int, own_nonce: int, peer_nonce: int) -> bytes:
    """The 20-byte HMAC of the MP_JOIN ACK, as the opener of the join sends it."""
    return join_hmac(own_key, peer_key, own_nonce, peer_nonce)[:20]


def add_addr_hmac(own_key: int, peer_key: int, address_id: int, ip: str, port: int = 0) -> int:
    """The truncated HMAC of an ADD_ADDR that the owner of `own_key` sends.

    `port` is 0 if the option carries none.  Unlike in a join these are the *last* 64 bits.
    """
    message = bytes([address_id]) + ipaddress.ip_address(ip).packed + struct.pack("!H", port)
    return int.from_bytes(_hmac(own_key, peer_key, message)[-8:], "big")


def dss_checksum(dsn: int, ssn: int, data: bytes, data_length: int | None = None) -> int:
    """The checksum of a mapping, over a pseudo header of 16 bytes and the data.

    `ssn` is relative to the subflow's initial sequence number.  `data_length` is the
    mapping's, by default `len(data)`: a DATA_FIN counts in it but has no byte of data.
    """
    length = len(data) if data_length is None else data_length
    covered = (
        struct.pack("!QIHH", dsn % _U64, ssn % _U32, length, 0) + data + b"\0" * (len(data) % 2)
    )
    total: int = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
