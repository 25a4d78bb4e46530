# SPDX-License-Identifier: BSD-3-Clause
"""What holds for all tests: none fails because the machine is slow, or for how it was started."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A shell without job control starts what runs beside it with SIGINT ignored, which our programs
# would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
