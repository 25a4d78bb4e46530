# SPDX-License-Identifier: BSD-3-Clause
"""The ledger: which endpoints and limits are ours, over restarts and changes by others."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    ChangeEndpoint,
    FlushEndpoints,
    KernelCommand,
    RemoveEndpoint,
    SetLimits,
)
from mptcpd_ebpf.core.endpoints import Endpoint, EndpointFlag, Limits
from mptcpd_ebpf.daemon.endpoint_ledger import EndpointLedger
from mptcpd_ebpf.kernel.errors import NotPermitted
from tests.daemon.fakes import REFUSED, FakePm

SUBFLOW, BACKUP = EndpointFlag.SUBFLOW, EndpointFlag.SUBFLOW | EndpointFlag.BACKUP
FOREIGN = Endpoint(ip="10.0.9.9", address_id=9, flags=SUBFLOW)
IP = "10.0.1.2"

ADD = AddEndpoint(ip=IP, flags=SUBFLOW, reason="test")
REMOVE = RemoveEndpoint(address_id=1, reason="test")
TO_BACKUP = ChangeEndpoint(address_id=1, ip=IP, flags=BACKUP, reason="test")
LIMITS = SetLimits(subflows=5, add_addr_accepted=4, reason="test")


@pytest.fixture
def pm() -> FakePm:
    return FakePm(FOREIGN)


@pytest.fixture
def ledger(pm: FakePm, tmp_path: Path) -> EndpointLedger:
    return EndpointLedger(pm, tmp_path)


def ours(ledger: EndpointLedger) -> list[str]:
    return [each.ip for each in ledger.read().endpoints if each.ours]


def following(ledger: EndpointLedger, pm: FakePm, folder: Path) -> EndpointLedger:
    """The ledger of the next daemon, after this one was killed."""
    ledger.save()
    return EndpointLedger(pm, folder)


def test_what_the_daemon_adds_is_its_own(ledger: EndpointLedger, pm: FakePm) -> None:
    assert ledger.execute(ADD).errno == 0
    assert ours(ledger) == [IP]
    assert [each.ip for each in ledger.read().endpoints] == [FOREIGN.ip, IP]
    ledger.execute(REMOVE)
    pm.table.append(Endpoint(ip=IP, address_id=1, flags=SUBFLOW))  # the operator's
    assert ours(ledger) == []


def test_a_refused_command_changes_nothing(ledger: EndpointLedger, pm: FakePm) -> None:
    pm.answer = REFUSED
    assert ledger.execute(ADD) == REFUSED
    assert ledger.execute(LIMITS) == REFUSED
    assert ledger.execute_manual(LIMITS) == REFUSED
    pm.table.append(Endpoint(ip=IP, address_id=1, flags=SUBFLOW))
    assert ours(ledger) == []
    assert ledger.read().limits_before is None


@pytest.mark.parametrize(
    "changed",
    [
        Endpoint(ip=IP, address_id=1, flags=BACKUP),
        Endpoint(ip=IP, address_id=2, flags=SUBFLOW),
        Endpoint(ip=IP, address_id=1, flags=SUBFLOW, port=80),
        Endpoint(ip=IP, address_id=1, flags=SUBFLOW, if_index=3),
        Endpoint(ip="10.0.1.3", address_id=1, flags=SUBFLOW),
    ],
)
def test_an_endpoint_that_another_program_changed_is_not_ours(
    ledger: EndpointLedger, pm: FakePm, changed: Endpoint
) -> None:
    ledger.execute(ADD)
    assert ours(ledger) == [IP]
    original = pm.table[-1]
    pm.table[-1] = changed
    assert ours(ledger) == []
    pm.table[-1] = original  # by another program, too
    assert ours(ledger) == []


def test_an_endpoint_that_the_daemon_changes_stays_its_own(ledger: EndpointLedger) -> None:
    ledger.execute(ADD)
    assert ours(ledger) == [IP]
    ledger.execute(TO_BACKUP)
    assert ours(ledger) == [IP]


def test_a_flush_leaves_nothing_of_ours(ledger: EndpointLedger, pm: FakePm) -> None:
    ledger.execute(ADD)
    ledger.execute(FlushEndpoints(reason="test"))
    pm.table.append(Endpoint(ip=IP, address_id=1, flags=SUBFLOW))
    assert ours(ledger) == []


def test_limits_keep_what_stood_there_before_the_first_change(
    ledger: EndpointLedger, pm: FakePm
) -> None:
    first = pm.limit
    ledger.execute(LIMITS)
    ledger.execute(replace(LIMITS, subflows=6))
    assert ledger.read().limits_before == first
    back = SetLimits(
        subflows=first.subflows, add_addr_accepted=first.add_addr_accepted, reason="test"
    )
    ledger.execute(back)
    assert ledger.read().limits_before is None


def test_limits_that_another_program_set_meanwhile_are_not_ours(
    ledger: EndpointLedger, pm: FakePm
) -> None:
    ledger.execute(LIMITS)
    pm.limit = Limits(subflows=1, add_addr_accepted=1)
    assert ledger.read().limits_before is None


def test_what_an_operator_adds_or_sets_is_not_ours(ledger: EndpointLedger) -> None:
    ledger.execute_manual(ADD)
    assert ours(ledger) == []
    ledger.execute(LIMITS)
    ledger.execute_manual(replace(LIMITS, subflows=7))
    assert ledger.read().limits_before is None


def test_an_endpoint_of_ours_that_an_operator_changes_stays_ours(ledger: EndpointLedger) -> None:
    ledger.execute(ADD)
    assert ours(ledger) == [IP]
    ledger.execute_manual(TO_BACKUP)
    assert ours(ledger) == [IP]


def test_the_next_daemon_knows_what_a_killed_one_made(
    ledger: EndpointLedger, pm: FakePm, tmp_path: Path
) -> None:
    before = pm.limit
    for command in (ADD, LIMITS):
        ledger.execute(command)
    second = following(ledger, pm, tmp_path)
    assert ours(second) == [IP]
    assert second.read().limits_before == before
    third = following(second, pm, tmp_path)  # which has read the id that the kernel chose
    pm.table[-1] = replace(pm.table[-1], address_id=2)
    assert ours(third) == []


def test_the_file_goes_when_nothing_is_ours(ledger: EndpointLedger, tmp_path: Path) -> None:
    ledger.save()
    assert list(tmp_path.iterdir()) == []
    ledger.execute(ADD)
    ledger.save()
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".endpoints"
    ledger.execute(REMOVE)
    ledger.read()
    ledger.save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [ADD, TO_BACKUP, LIMITS])
def test_only_changes_are_written(
    ledger: EndpointLedger, tmp_path: Path, command: KernelCommand
) -> None:
    ledger.execute(ADD)
    ledger.save()
    (file,) = tmp_path.iterdir()
    file.unlink()
    ledger.save()
    assert list(tmp_path.iterdir()) == []
    ledger.execute(command)
    ledger.save()
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_an_error(pm: FakePm, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    ledger = EndpointLedger(pm, tmp_path / "run")
    ledger.execute(ADD)
    with pytest.raises(NotPermitted):
        ledger.save()
    assert ours(ledger) == [IP]
