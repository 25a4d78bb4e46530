# SPDX-License-Identifier: BSD-3-Clause
"""Filters: one that is set does not fit what is unknown."""

import pytest

from mptcpd_ebpf.core.filters import Filter, network, token_prefix


@pytest.mark.parametrize(
    ("wanted", "addresses", "fits"),
    [
        ("10.0.1.2", ["10.0.1.2:443"], True),
        ("10.0.1.2", ["10.0.1.3:443", "10.0.1.2"], True),
        ("10.0.0.0/8", ["10.9.9.9:1"], True),
        ("10.0.0.0/16", ["10.9.9.9:1", None], False),
        ("2001:db8::/32", ["[2001:db8::1]:443"], True),
        ("2001:db8::1", ["2001:db8::1"], True),
        ("2001:db8::1", ["10.0.0.1:1"], False),
        ("10.0.1.2", [None], False),
    ],
)
def test_addresses(wanted: str, addresses: list[str | None], fits: bool) -> None:
    assert Filter(address=network(wanted)).fits_address(addresses) is fits


def test_a_filter_that_is_set_does_not_fit_the_unknown() -> None:
    only = Filter(token="1a", interface="wwan*", process="cu?l", state="away")
    assert not only.fits_token(None)
    assert not only.fits_interface(None)
    assert not only.fits_process(None, None)
    assert not only.fits_state(None)
    assert only.fits_token("1a2b3c4d")
    assert only.fits_interface("wwan0")
    assert only.fits_process(1, "curl")
    assert only.fits_state("established", "away")


def test_no_filter_fits_everything() -> None:
    every = Filter()
    assert every.fits_token(None)
    assert every.fits_address([])
    assert every.fits_interface(None)
    assert every.fits_process(None, None)
    assert every.fits_state()


def test_a_number_is_a_process_id() -> None:
    assert Filter(process="7").fits_process(7, "curl")
    assert not Filter(process="7").fits_process(77, "7")


def test_the_first_digits_of_a_token() -> None:
    assert [token_prefix(text) for text in ("1A2B", "0x1a2b3c4d", "0")] == ["1a2b", "1a2b3c4d", "0"]
    for text in ("", "xyz", "123456789", "0x"):
        with pytest.raises(ValueError, match="is no token"):
            token_prefix(text)
