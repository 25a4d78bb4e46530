# SPDX-License-Identifier: BSD-3-Clause
"""What the comparison of path managers concludes from its records."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.decisions import command, report
from bench.decisions.arms import ARMS
from bench.decisions.cells import PARTS, all_cells, chosen
from bench.decisions.estimates import estimate, paired
from bench.decisions.goodput import compared
from bench.decisions.latency import calm, faulted
from bench.decisions.records import Act, Alone, Flow, Records, Run, Switch, comparable, switches

CELLS = all_cells(10.0, 600.0)


def run(cell: str, arm: str, repetition: int = 0, **fields: object) -> Run:
    return Run(
        commit="c",
        part=cell.partition("/")[0],
        cell=cell,
        arm=arm,
        repetition=repetition,
        length_s=10.0,
        seed=1,
        at="2026-01-01T00:00:00Z",
        load=0.1,
        **fields,  # type: ignore[arg-type]
    )


def alone(cell: str, *rates: float, repetition: int = 0) -> Run:
    each = [Alone(path=path, flows=[Flow(mbit=rate)]) for path, rate in enumerate(rates)]
    return run(cell, "alone", repetition, alone=each)


def transfer(cell: str, arm: str, mbit: float, repetition: int = 0, **fields: object) -> Run:
    return run(cell, arm, repetition, flows=[Flow(mbit=mbit)], **fields)


def demotes(at_ms: float, path: int) -> Act:
    return Act(at_ms=at_ms, action="SetBackup", path=path, backup=True)


def restores(at_ms: float, path: int) -> Act:
    return Act(at_ms=at_ms, action="SetBackup", path=path, backup=False)


def joins(at_ms: float, path: int) -> Act:
    return Act(at_ms=at_ms, action="CreateSubflow", path=path)


def destroys(at_ms: float, path: int) -> Act:
    return Act(at_ms=at_ms, action="DestroySubflow", path=path)


# --- estimates


def test_the_interval_is_that_of_student() -> None:
    # Mean 3, standard deviation 1.5811, quantile 2.776.
    found = estimate([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.high - 3 == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)
    assert 3 - found.low == pytest.approx(found.high - 3)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert (estimate([2.0]).low, estimate([2.0]).high) == (-math.inf, math.inf)
    assert math.isnan(estimate([]).mean)
    assert str(estimate([])) == "–"
    assert str(estimate([1.0, 2.0])) == "1.50"
    assert str(estimate([1.0, 2.0, 3.0])) == "2.00 (0.00…4.48)"


@given(st.lists(st.floats(0.1, 1e3), min_size=2, max_size=60))
def test_the_interval_surrounds_the_mean(values: list[float]) -> None:
    found = estimate(values)
    assert found.low <= found.mean <= found.high


def test_ratios_are_of_the_same_repetition() -> None:
    # The machine was half as fast in the second repetition, for both.
    found = paired({0: 10.0, 1: 5.0, 2: 99.0}, {0: 20.0, 1: 10.0, 3: 1.0})
    assert (found.mean, found.n) == (0.5, 2)


# --- cells and plans


def test_the_grid_has_56_cells_in_each_direction() -> None:
    goodput = [cell for cell in CELLS if cell.part == "goodput"]
    assert len(goodput) == 112
    assert len({cell.id for cell in CELLS}) == len(CELLS)
    (anchor,) = (cell for cell in goodput if cell.name == "up/anchor_small")
    assert anchor.paths[1].rate_mbit == 3
    assert anchor.traffic[0].receive_buffer == 128 * 1024


def test_a_seed_depends_on_cell_and_repetition_alone() -> None:
    seeds = {cell.seed(repetition) for cell in CELLS for repetition in range(5)}
    assert len(seeds) == 5 * len(CELLS)
    assert CELLS[0].seed(1) == all_cells(5.0, 10.0)[0].seed(1)


def test_the_quick_subset_is_of_all_parts_and_takes_ten_minutes() -> None:
    plan = command.plan_of(command.parser().parse_args(["--quick"]))
    todo = list(command.jobs(plan))
    assert {job.cell.part for job in todo} == set(PARTS)
    directions = {job.cell.name.partition("/")[0] for job in todo if job.cell.part == "goodput"}
    assert directions == {"up", "down"}
    # A run with the start of lab and daemon, and one more path alone in most cells.
    assert sum(job.cell.length_s + 2 for job in todo) < 12 * 60


def test_every_repetition_of_a_cell_runs_all_arms_in_a_row_in_another_order() -> None:
    plan = command.plan_of(command.parser().parse_args(["--cells", "anchor_small"]))
    todo = list(command.jobs(plan))
    rows = [todo[at : at + len(ARMS)] for at in range(0, len(todo), len(ARMS))]
    for row in rows:
        assert {job.arm for job in row} == set(ARMS)
        assert len({(job.cell.id, job.repetition) for job in row}) == 1
    assert len({row[0].arm for row in rows}) > 1


def test_an_unknown_arm_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--arms", "alone,best"]) == 64
    assert re.search(r"no arm best; there are alone, kernel", capsys.readouterr().err)
    assert command.main(["--cells", "("]) == 64
    assert "--cells (" in capsys.readouterr().err


def test_faults_begin_after_the_settling_and_end_before_the_traffic() -> None:
    for cell in chosen(CELLS, parts=["faults"], pattern="", quick=False):
        assert cell.faults[0].at >= cell.fault_at
        assert cell.faults[-1].fault == "heal"
        assert cell.faults[-1].at + 5 < cell.length_s


# --- records


def test_a_record_replaces_an_earlier_one_and_a_cut_line_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    records = Records(file)
    assert list(records.read()) == []
    records.add(transfer("goodput/up/a", "kernel", 1.0))
    records.add(transfer("goodput/up/a", "kernel", 2.0))
    records.add(transfer("goodput/up/a", "adaptive", 3.0))
    file.write_bytes(file.read_bytes() + b'{"schema":1,"com')
    assert [(each.arm, each.flows[0].mbit) for each in Records(file).read()] == [
        ("kernel", 2.0),
        ("adaptive", 3.0),
    ]


def test_resume_runs_only_what_has_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--cells", "up/anchor_small", "--arms", "kernel,adaptive", "--repetitions", "1"]
    plan = command.plan_of(command.parser().parse_args(arguments))
    cell = plan.cells[0].id
    records = Records(tmp_path / "results.jsonl")
    records.add(transfer(cell, "kernel", 1.0))
    records.add(run(cell, "adaptive", error="LabError: no"))
    asked = []

    def measured(_cell: object, arm: str, *_rest: object) -> Run:
        asked.append(arm)
        return transfer(plan.cells[0].id, arm, 2.0)

    monkeypatch.setattr(command, "measure", measured)
    command.run(plan, records, "c", resume=True)
    assert asked == ["adaptive"]
    command.run(plan, records, "c", resume=True)
    assert asked == ["adaptive"]
    command.run(plan, records, "another", resume=True)
    assert sorted(asked[1:]) == ["adaptive", "kernel"]


def test_runs_of_several_commits_or_lengths_are_not_mixed() -> None:
    runs = [transfer(UP, "kernel", 1.0), transfer(UP, "adaptive", 1.0)]
    quick = [replace(runs[0], length_s=5.0)]
    old = [replace(each, commit="old", at="2025-01-01T00:00:00Z") for each in runs]
    assert comparable([*old, *quick, *runs]) == runs
    assert comparable([*quick, *old]) == old


def test_switches_are_changes_of_use() -> None:
    acts = [
        joins(10, 1),  # the first join
        destroys(100, 0),
        destroys(400, 0),  # an unanswered trial
        joins(900, 0),
        demotes(1500, 1),
        restores(2500, 1),
    ]
    assert switches(acts) == [
        Switch(100, 0, leaves=True),
        Switch(900, 0, leaves=False),
        Switch(1500, 1, leaves=True),
        Switch(2500, 1, leaves=False),
    ]


def test_the_first_use_of_a_standby_path_is_a_switch() -> None:
    standby = Act(at_ms=5, action="CreateSubflow", path=1, backup=True)
    assert switches([standby, restores(70, 1)]) == [Switch(70, 1, leaves=False)]


# --- transfers

UP = "goodput/up/rtt1_bw1_loss0_default"


def test_the_best_path_is_that_with_the_best_mean() -> None:
    runs = [
        alone(UP, 12, 10),
        alone(UP, 8, 11, repetition=1),
        transfer(UP, "kernel", 20),
        transfer(UP, "kernel", 22, 1),
    ]
    (cell,) = compared(runs)
    assert (cell.best_path, cell.best, cell.kernel.mean) == (1, 10.5, 2.0)


def test_recovery_is_the_part_of_the_loss_that_is_undone() -> None:
    acts = [joins(20, 1), demotes(450, 1)]
    runs = [alone(UP, 12), transfer(UP, "kernel", 6), transfer(UP, "adaptive", 10.5, acts=acts)]
    (cell,) = compared(runs)
    (adaptive,) = cell.outcomes
    assert cell.kind == "harmful"
    assert adaptive.recovery == pytest.approx(0.75)
    assert adaptive.gain_lost is None
    assert (adaptive.right_ms, adaptive.right, adaptive.wrong) == ([450], 1, 0)


@pytest.mark.parametrize(("back_ms", "wrong"), [(2000, 0), (6000, 1), (None, 1)])
def test_a_useful_path_that_is_left_for_longer_than_a_trial_is_a_false_positive(
    back_ms: float | None, wrong: int
) -> None:
    acts = [demotes(500, 1), *([restores(back_ms, 1)] if back_ms else [])]
    acts.insert(0, joins(10, 1))
    runs = [alone(UP, 10), transfer(UP, "kernel", 20), transfer(UP, "adaptive", 18, acts=acts)]
    (cell,) = compared(runs)
    (adaptive,) = cell.outcomes
    assert cell.kind == "useful"
    assert adaptive.gain_lost == pytest.approx(0.2)
    assert (adaptive.right, adaptive.wrong) == (0, wrong)


def test_a_demotion_just_before_the_end_is_no_false_positive() -> None:
    late = [joins(10, 1), demotes(8000, 1)]
    runs = [alone(UP, 10), transfer(UP, "kernel", 20), transfer(UP, "adaptive", 19, acts=late)]
    assert compared(runs)[0].outcomes[0].wrong == 0


def test_to_leave_the_best_path_is_wrong_everywhere() -> None:
    runs = [
        alone(UP, 10, 3),
        transfer(UP, "kernel", 6),
        transfer(UP, "adaptive", 3, acts=[joins(10, 1), destroys(300, 0)]),
    ]
    (cell,) = compared(runs)
    assert (cell.outcomes[0].right, cell.outcomes[0].wrong) == (0, 1)


def test_a_cell_whose_interval_holds_1_is_neutral() -> None:
    rates = {0: 5.0, 1: 15.0, 2: 7.0}
    runs = [alone(UP, 10, repetition=n) for n in rates]
    runs += [transfer(UP, "kernel", rate, n) for n, rate in rates.items()]
    assert compared(runs)[0].kind == "neutral"


def test_a_run_that_failed_counts_nowhere() -> None:
    failed = run(UP, "kernel", 1, error="LabError: no")
    runs = [alone(UP, 10), transfer(UP, "kernel", 20), failed]
    assert compared(runs)[0].kernel.n == 1
    assert "LabError: no" in report.report(runs, CELLS)


# --- faults and quiet

FAULT = "faults/request-up/loss30/initial"


def messages(arm: str, ms: float, acts: list[Act]) -> Run:
    """A message every 100 ms; those in the first 300 ms of the fault take a second."""
    latencies: list[tuple[float, float | None]] = [
        (float(at), 1000.0 if 2000 <= at < 2300 else ms) for at in range(0, 15_000, 100)
    ]
    return run(FAULT, arm, flows=[Flow(latencies=latencies)], acts=acts, faults_ms=[2000, 8000])


def test_the_latency_under_a_fault_is_compared_with_the_remaining_path() -> None:
    quiet = Flow(latencies=[(float(at), 80.0) for at in range(0, 15_000, 100)])
    acts = [joins(20, 1), destroys(2165, 0), destroys(3000, 0), joins(9500, 0)]
    runs = [
        run(FAULT, "alone", alone=[Alone(path=1, flows=[quiet])]),
        messages("adaptive", 88.0, acts),
        messages("kernel", 800.0, []),
    ]
    by_arm = {each.arm: each for each in faulted(runs, {cell.id: cell for cell in CELLS})}
    adaptive = by_arm["adaptive"]
    assert adaptive.ratio == pytest.approx(1.1)
    assert adaptive.worst == 1000.0
    assert (adaptive.actions, adaptive.returns) == ([165], [1500])
    assert by_arm["kernel"].ratio == pytest.approx(10)
    assert by_arm["kernel"].actions == []


def test_a_fault_without_an_action_and_a_path_without_a_return_never_happened() -> None:
    cells = {cell.id: cell for cell in CELLS}
    (idle,) = faulted([messages("adaptive", 90, [])], cells)
    assert (idle.actions, idle.returns) == ([math.inf], [])
    (gone,) = faulted([messages("adaptive", 90, [destroys(2500, 0)])], cells)
    assert (gone.actions, gone.returns) == ([500], [math.inf])
    assert math.isnan(gone.ratio)


def test_an_unanswered_message_is_the_worst_of_all() -> None:
    lost = run(
        FAULT,
        "kernel",
        flows=[Flow(latencies=[(2600.0, None), (2700.0, 10.0)])],
        faults_ms=[2000, 8000],
    )
    (found,) = faulted([lost], {cell.id: cell for cell in CELLS})
    assert (found.worst, found.settled_p99, found.unanswered) == (math.inf, math.inf, 1)


def test_a_path_may_be_left_as_often_as_one_became_worse() -> None:
    quiet, flapping = "calm/equal/bulk-up", "calm/flapping/request-down"
    worse = [
        act
        for at in range(0, 5000, 1000)  # five times, and the path flaps four times
        for act in (demotes(at, 0), restores(at, 1), restores(at + 500, 0), demotes(at + 500, 1))
    ]
    found = calm(
        [run(quiet, "adaptive", acts=worse[:1]), run(flapping, "handover", acts=worse)],
        {cell.id: cell for cell in CELLS},
    )
    assert [(each.leaves, each.needless) for each in found] == [(1, 1), (10, 2)]


# --- the report


def test_the_report_counts_missed_targets_and_warns_of_few_repetitions() -> None:
    down = "goodput/down/anchor_small"
    runs = [
        *(alone(down, 10, 1), transfer(down, "kernel", 5), transfer(down, "adaptive", 9)),
        *(alone(UP, 10, 9), transfer(UP, "kernel", 20), transfer(UP, "adaptive", 19.8)),
    ]
    text = report.report(runs, CELLS)
    assert "| cells below 0.95 of the best path alone | 1 of 2, the least 0.90" in text
    assert re.search(r"mean recovery .* 80 % in 1 harmful cells.*\*\*missed\*\*", text)
    assert re.search(r"more than 5 % of the gain \| 0 of 1 useful cells.*met", text)
    assert "Preliminary: fewer than 5 repetitions, only some of the cells" in text
    assert (
        "| down/anchor_small | 10.0 (path 0) | 0.50 | harmful | **0.90**; recovers 80 % |" in text
    )


def test_a_report_without_results_says_how_to_make_some() -> None:
    assert "make bench-decisions" in report.report([], CELLS)


def test_the_report_replaces_what_is_between_its_markers_and_nothing_else() -> None:
    new = report.with_report("", "first")
    assert report.with_report(new, "second") == new.replace("first", "second")
    other = "# Decisions\n\n## Explained\n\nwords\n"
    grown = report.with_report(other, "first")
    assert grown.startswith(other)
    after = f"{grown}\n## Replayed\n"
    assert report.with_report(after, "third") == after.replace("first", "third")


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    from bench.decisions import pictures

    runs = [alone(UP, 10), transfer(UP, "kernel", 20), transfer(UP, "adaptive", 18)]
    assert pictures.draw(runs, CELLS, tmp_path) == ["decisions-goodput-up.svg"]
    once = (tmp_path / "decisions-goodput-up.svg").read_bytes()
    assert b"rtt1_bw1_loss0_default" in once or b"<svg" in once
    pictures.draw(runs, CELLS, tmp_path)
    assert (tmp_path / "decisions-goodput-up.svg").read_bytes() == once
