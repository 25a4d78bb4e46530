# SPDX-License-Identifier: BSD-3-Clause
"""What holds for all tests: none fails because the machine is slow, or for how it was started."""

import signal

import pytest
from hypothesis import HealthCheck, settings

from tests import ordinary_user

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A shell without job control starts what runs beside it with SIGINT ignored, nohup with SIGHUP,
# which the programs that we start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what an ordinary user is to do and cannot."""
    if item.get_closest_marker("ordinary_user") and (obstacle := ordinary_user.obstacle()):
        pytest.skip(obstacle)
