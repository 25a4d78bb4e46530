# SPDX-License-Identifier: BSD-3-Clause
"""A fixture for every test with namespaces: none may leave anything of the lab behind."""

import os
from collections.abc import Iterator

import pytest

from mptcpd_ebpf.lab import namespaces


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the test if it leaves a namespace of this process."""
    yield
    own = f"{namespaces.PREFIX}-{os.getpid()}-"
    if os.path.isdir(namespaces.RUN_NETNS):
        left = [name for name in os.listdir(namespaces.RUN_NETNS) if name.startswith(own)]
        assert not left
