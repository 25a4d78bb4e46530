# SPDX-License-Identifier: BSD-3-Clause
"""Ids for local addresses: 1…255, one per address, and never one that the kernel would refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core.address_ids import HIGHEST_ID, AddressIds
from mptcpd_ebpf.core.model import Connection
from tests.core.scenario import FIBRE, TOKEN


def connection(**local_ids: int) -> Connection:
    adopted = {ip.replace("_", "."): number for ip, number in local_ids.items()}
    return Connection(TOKEN, *FIBRE, local_ids=adopted)


def test_the_lowest_free_id_is_proposed_and_kept() -> None:
    ids = AddressIds()
    assert [ids.propose(ip) for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.1")] == [1, 2, 1]
    ids.forget("10.0.0.1")
    assert ids.propose("10.0.0.3") == 1


def test_an_id_can_be_fixed_from_outside() -> None:
    ids = AddressIds()
    assert ids.propose("10.0.0.1") == 1
    ids.assign("10.0.0.9", 1)
    ids.assign("10.0.0.9", 3)
    assert [ids.propose(f"10.0.0.{n}") for n in (9, 1, 2, 4)] == [3, 1, 2, 4]
    for wrong in (0, 256):
        with pytest.raises(ValueError, match=f"address id {wrong} is not 1…255"):
            ids.assign("10.0.0.1", wrong)


def test_what_the_kernel_already_uses_is_adopted() -> None:
    ids = AddressIds()
    assert ids.propose("10.0.0.1") == 1
    assert ids.for_connection(connection(**{"10_0_0_1": 7}), "10.0.0.1") == 7


def test_an_id_that_another_address_holds_in_the_connection_is_not_given() -> None:
    ids = AddressIds()
    taken = connection(**{"10_0_0_9": 1})
    assert ids.for_connection(taken, "10.0.0.1") not in (0, 1)


def test_two_addresses_that_collide_in_one_turn_get_two_ids() -> None:
    ids = AddressIds()
    taken = connection(**{"10_0_0_8": 1, "10_0_0_9": 2})
    assert ids.for_connection(taken, "10.0.0.1") != ids.for_connection(taken, "10.0.0.2")


def test_addresses_that_change_for_years_do_not_run_out_of_ids() -> None:
    ids = AddressIds()
    for number in range(3 * HIGHEST_ID):
        assert 1 <= ids.propose(f"2001:db8::{number:x}") <= HIGHEST_ID
        # One address is in use all the time, and keeps its id.
        assert ids.propose("10.0.0.1") == ids.propose("10.0.0.1") == 2


def test_a_full_connection_says_so() -> None:
    full = connection(**{f"10_0_0_{number}": number for number in range(1, 256)})
    with pytest.raises(OverflowError, match="all 255 address ids of the connection"):
        AddressIds().for_connection(full, "10.0.1.1")


IPV4 = st.ip_addresses(v=4).map(str)
ADOPTED = st.lists(
    st.tuples(IPV4, st.integers(1, 255)),
    unique_by=(lambda known: known[0], lambda known: known[1]),
    max_size=40,
).map(dict)


@given(st.lists(IPV4, max_size=40), ADOPTED)
def test_ids_are_valid_and_unambiguous(ips: list[str], adopted: dict[str, int]) -> None:
    ids = AddressIds()
    held = Connection(TOKEN, *FIBRE, local_ids=adopted)
    for ip in ips:
        number = ids.for_connection(held, ip)
        assert 1 <= number <= HIGHEST_ID
        others = {other: n for other, n in held.local_ids.items() if other != ip}
        assert number not in others.values()
        held.local_ids[ip] = number
