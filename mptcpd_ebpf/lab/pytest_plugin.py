# SPDX-License-Identifier: BSD-3-Clause
"""Labs as pytest fixtures.

    @pytest.mark.mptcp_lab(paths=[{"delay_ms": 10}, {"delay_ms": 40, "loss_percent": 1}])
    def test_over_two_paths(mptcp_lab):
        mptcp_lab.client.run([...])

`mptcp_lab` is one lab as the marker describes it (the arguments of `Lab`; by default two
unimpaired paths); `make_mptcp_lab` makes any number of labs.  Where a lab is not possible
(no root, no MPTCP) the test is skipped with the reason, or fails if the ini option
`mptcp_lab_required` is set.

Every pytest run loads this module, so it imports nothing of the package until a fixture is
used.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mptcpd_ebpf.lab.lab import Lab

MARKER_NAME = "mptcp_lab"
REQUIRED = "mptcp_lab_required"
BACKEND = "--mptcp-lab-backend"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("mptcp lab").addoption(
        BACKEND,
        choices=["auto", "netem", "nfqueue"],
        help="how labs impair paths (default: the environment's MPTCP_LAB_BACKEND, or auto)",
    )
    parser.addini(REQUIRED, "fail instead of skip where a lab is not possible", type="bool")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARKER_NAME}(paths=[...], **fields): the topology of the mptcp_lab fixture"
    )


@pytest.fixture
def make_mptcp_lab(request: pytest.FixtureRequest) -> Iterator[Callable[..., Lab]]:
    """A function that makes running labs from the arguments of `Lab`; they end with the test.

    A path may be a dict of the fields of `Path`.
    """
    from mptcpd_ebpf.lab.errors import UnavailableError
    from mptcpd_ebpf.lab.file import parse
    from mptcpd_ebpf.lab.lab import Lab

    with ExitStack() as stack:

        def make(paths: Any = None, **fields: Any) -> Lab:
            if paths is not None:
                fields["paths"] = paths
            backend = request.config.getoption(BACKEND)
            if backend is not None:
                fields["backend"] = backend
            try:
                return stack.enter_context(Lab.of(parse(fields)))
            except UnavailableError as error:
                if request.config.getini(REQUIRED):
                    raise
                pytest.skip(f"no lab here: {error}")

        yield make


@pytest.fixture
def mptcp_lab(request: pytest.FixtureRequest, make_mptcp_lab: Callable[..., Lab]) -> Lab:
    """A lab as the test's `mptcp_lab` marker describes it, or with two unimpaired paths."""
    marker = request.node.get_closest_marker(MARKER_NAME)
    return make_mptcp_lab(*marker.args, **marker.kwargs) if marker else make_mptcp_lab()
