# SPDX-License-Identifier: BSD-3-Clause
"""The table of presets, as core/roles.py shows it."""

import re

import pytest

from mptcpd_ebpf.core import roles
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.core.roles import EVIDENCE, Answer, Evidence, Preset, answer

WORDS = {"-": Answer.NOTHING} | {each.value: each for each in Answer}


def documented() -> dict[Preset, list[Answer]]:
    """The rows of the table in the module's docstring."""
    found = {}
    for line in (roles.__doc__ or "").splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] in list(Preset) and len(cells) == 6:
            found[Preset(cells[0])] = [WORDS[cell] for cell in cells[1:]]
    return found


def test_every_alarm_is_evidence_of_one_kind() -> None:
    assert set(EVIDENCE) == set(AlarmKind)


@pytest.mark.parametrize("preset", Preset)
@pytest.mark.parametrize("kind", AlarmKind)
def test_the_documented_table_is_what_is_done(preset: Preset, kind: AlarmKind) -> None:
    dead, slow_thin, slow_full, poor_thin, poor_full = documented()[preset]
    expected = {
        Evidence.DEAD: (dead, dead),
        Evidence.SLOW: (slow_thin, slow_full),
        Evidence.POOR: (poor_thin, poor_full),
    }[EVIDENCE[kind]]
    assert (answer(preset, kind, thin=True), answer(preset, kind, thin=False)) == expected
