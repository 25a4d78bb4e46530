# SPDX-License-Identifier: BSD-3-Clause
"""Tokens, data sequence numbers, HMACs and checksums against what a kernel computed.

The values are those of conversations with a Linux 6.18 kernel, which sent or accepted
them; tests/netns/lab/wire/test_peer.py holds such conversations anew.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab.wire.keys import (
    ack_hmac,
    add_addr_hmac,
    dss_checksum,
    idsn_from_key,
    synack_hmac,
    token_from_key,
)

CLIENT_KEY = 0x8AB7CD4EB50E82E4
SERVER_KEY = 0x7FEF6776DA324C84


def test_the_token_is_the_one_the_kernel_computed() -> None:
    assert token_from_key(SERVER_KEY) == 0x697BF393


def test_data_begins_one_above_the_initial_data_sequence_number() -> None:
    # The kernel acknowledged five bytes from the client, and mapped its own first byte.
    assert idsn_from_key(CLIENT_KEY) + 1 + 5 == 0x59F50F4946D062A2
    assert idsn_from_key(SERVER_KEY) + 1 == 0x5EB6DC75FD8914EF


def test_the_syn_ack_hmac_is_the_first_64_bits() -> None:
    hmac = synack_hmac(SERVER_KEY, CLIENT_KEY, own_nonce=0x951D1B1, peer_nonce=0xCB609716)
    assert hmac == 0x8AD46D193C7572BF


def test_the_ack_hmac_is_the_first_160_bits() -> None:
    hmac = ack_hmac(CLIENT_KEY, SERVER_KEY, own_nonce=0xCB609716, peer_nonce=0x951D1B1)
    assert hmac == (b"\xf4\xc5\x81\x83\xb7\xb56\xe4\xf3\x85\xc8\x85\xfdr2\x8c\xd2\x82\x9e\xa9")


def test_the_add_addr_hmac_is_the_last_64_bits() -> None:
    assert add_addr_hmac(CLIENT_KEY, SERVER_KEY, 7, "10.2.1.2") == 0x7FFA97668CDDB3C5
    # A port takes part, and a missing one counts as 0.
    assert add_addr_hmac(CLIENT_KEY, SERVER_KEY, 7, "10.2.1.2", 0) == 0x7FFA97668CDDB3C5
    assert add_addr_hmac(CLIENT_KEY, SERVER_KEY, 7, "10.2.1.2", 1) != 0x7FFA97668CDDB3C5


@given(st.binary(max_size=50), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_a_mapping_and_its_checksum_sum_to_all_ones(data: bytes, dsn: int, ssn: int) -> None:
    """The receiver's check (RFC 1071): adding up everything, checksum included, gives 0xffff."""
    covered = dsn.to_bytes(8, "big") + ssn.to_bytes(4, "big") + len(data).to_bytes(2, "big")
    covered += dss_checksum(dsn, ssn, data).to_bytes(2, "big") + data + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(covered[i : i + 2], "big") for i in range(0, len(covered), 2))
    assert total % 0xFFFF == 0
    assert total > 0 or not any(covered)


@pytest.mark.parametrize("length", [1, 6])
def test_a_data_fin_counts_in_the_checksum_s_length(length: int) -> None:
    data = b"x" * (length - 1)
    assert dss_checksum(1, 1, data, length) != dss_checksum(1, 1, data)
