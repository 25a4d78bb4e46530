# SPDX-License-Identifier: BSD-3-Clause
"""The choice of a kernel from apt's list."""

import pytest

from tests.kernels.debian import Package, UnavailableError, choose, paragraphs


def image(release: str, version: str) -> Package:
    return Package(f"linux-image-{release}", version, "")


IMAGES = [
    image("6.1.0-47-cloud-amd64", "6.1.170-3"),
    image("6.1.0-50-cloud-amd64", "6.1.176-1"),
    image("6.1.0-50-cloud-amd64-unsigned", "6.1.180-1"),
    image("6.12.100+deb12-cloud-amd64", "6.12.100-1~bpo12+1"),
    image("6.12.9+deb12-cloud-amd64", "6.12.9-1~bpo12+1"),
    image("7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
    image("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1"),
    Package("linux-image-cloud-amd64", "7.4.0-1", ""),
]


@pytest.mark.parametrize(
    ("wanted", "version"),
    [("6.1", "6.1.176-1"), ("6.12", "6.12.100-1~bpo12+1"), ("newest", "7.3.4-1~bpo13+1")],
)
def test_the_newest_signed_image_of_a_series_is_chosen(wanted: str, version: str) -> None:
    assert choose(wanted, IMAGES).version == version
    assert choose(wanted, IMAGES[::-1]).version == version


def test_a_series_that_is_not_there_is_named_as_missing() -> None:
    with pytest.raises(UnavailableError, match="none among the packages of bookworm"):
        choose("6.18", IMAGES)


def test_package_paragraphs_are_read() -> None:
    text = (
        "Package: linux-image-7.3.4+deb13-cloud-amd64\nSource: linux\nVersion: 7.3.4-1\n"
        "Depends: kmod, linux-base-7.3.4 (= 7.3.4-1)\nDescription-en: Linux\n more: text\n\n"
        "Package: linux-base-7.3.4\nVersion: 7.3.4-1\n\n"
    )
    assert list(paragraphs(text)) == [
        Package(
            "linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1", "kmod, linux-base-7.3.4 (= 7.3.4-1)"
        ),
        Package("linux-base-7.3.4", "7.3.4-1", ""),
    ]
