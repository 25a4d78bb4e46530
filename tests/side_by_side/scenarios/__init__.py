# SPDX-License-Identifier: BSD-3-Clause
"""The scenarios, by what they are about."""

from tests.side_by_side.scenarios.addresses import ADDRESSES
from tests.side_by_side.scenarios.collisions import COLLISIONS
from tests.side_by_side.scenarios.configuration import CONFIGURATION
from tests.side_by_side.scenarios.converter import CONVERTER
from tests.side_by_side.scenarios.lifetime import LIFETIME
from tests.side_by_side.scenarios.links import LINKS
from tests.side_by_side.scenarios.live import LIVE
from tests.side_by_side.scenarios.options import OPTIONS
from tests.side_by_side.scenarios.plugins import PLUGINS
from tests.side_by_side.scenarios.sspi import SSPI
from tests.side_by_side.scenarios.surroundings import SURROUNDINGS
from tests.side_by_side.scenarios.wanted import WANTED

SCENARIOS = [
    *ADDRESSES,
    *LINKS,
    *COLLISIONS,
    *LIVE,
    *SSPI,
    *PLUGINS,
    *LIFETIME,
    *OPTIONS,
    *CONFIGURATION,
    *SURROUNDINGS,
    *CONVERTER,
    *WANTED,
]
