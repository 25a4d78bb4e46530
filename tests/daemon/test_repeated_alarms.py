# SPDX-License-Identifier: BSD-3-Clause
"""Of alarms that wait, one is left for each silent subflow."""

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.measurement import AlarmKind
from mptcpd_ebpf.daemon.repeated_alarms import SILENT, without_repeated
from tests.core.scenario import FIBRE, MS, RADIO, START, alarm, joined, measured


def silent(number: int, kind: AlarmKind = AlarmKind.NO_PROGRESS, token: int = 1) -> ev.AlarmRaised:
    return alarm(measured(RADIO, START + number * MS, token), kind)


def test_the_newest_takes_the_place_of_the_first() -> None:
    one, two, three = (silent(number, kind) for number, kind in enumerate(SILENT))
    other = silent(1, token=2)
    event = joined()
    assert without_repeated([one, other, two, event, three]) == [three, other, event]


def test_alarms_of_other_kinds_all_stay() -> None:
    others = [kind for kind in AlarmKind if kind not in SILENT]
    events = [silent(number, kind) for kind in others for number in range(2)]
    assert without_repeated(events) == events


def test_another_socket_with_the_same_addresses_is_another_subflow() -> None:
    events = [alarm(measured(FIBRE, cookie=number), AlarmKind.TIMEOUTS) for number in (1, 2)]
    assert without_repeated(events) == events
