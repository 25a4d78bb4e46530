# SPDX-License-Identifier: BSD-3-Clause
"""The scenarios, by what they are about."""

from tests.side_by_side.scenarios.addresses import ADDRESSES
from tests.side_by_side.scenarios.collisions import COLLISIONS
from tests.side_by_side.scenarios.links import LINKS
from tests.side_by_side.scenarios.live import LIVE
from tests.side_by_side.scenarios.options import OPTIONS

SCENARIOS = [*ADDRESSES, *LINKS, *COLLISIONS, *LIVE, *OPTIONS]
