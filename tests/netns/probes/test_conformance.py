# SPDX-License-Identifier: BSD-3-Clause
"""Whichever way the probes got into the kernel, they see the same: core, bcc, TCP_INFO, inet_diag.

Core's and bcc's probes watch the same traffic at the same time, bcc's on a cgroup of the
test's own.  What is a number of the kernel's is compared exactly, at a rest point: two
samples around the others that agree.  Exact it cannot be where each looks at moments of
its own; how far apart such may be is said where they are compared.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path as Path_
from typing import Any

import pytest

from mptcpd_ebpf.config.settings import ProbeSettings
from mptcpd_ebpf.core.events import SubflowEnded
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement, Thresholds
from mptcpd_ebpf.daemon.event_sources import EventSources
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.lab import Bulk, Lab, LivePath, Path, RequestResponse, ShortConnections
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins
from mptcpd_ebpf.probes import BpfUnavailable, Probes, loading
from mptcpd_ebpf.probes.bcc_compile import compile_functions
from mptcpd_ebpf.probes.bcc_probes import BccProbes
from mptcpd_ebpf.probes.libbpf import Libbpf
from mptcpd_ebpf.probes.loading import AttachType, ProgramType, attach_cgroup, load_program
from tests.netns.mptcp_sockets import Ends, connection, exchange
from tests.netns.own_cgroup import own_cgroup
from tests.netns.probed import QUIET, Listening, probing, sample, tcp_infos
from tests.waiting import until

pytestmark = pytest.mark.timeout(600)  # an emulated machine compiles for a minute

MOMENTARY = {"at", "idle_us"}
"""Of the moment of reading."""
OWN_CLOCK = {"opened_at", "rtt_histogram", "stalled_us", "holes_us"}
"""Each way counts or stamps these at hooks of its own."""
EXACT = set(Measurement.__struct_fields__) - MOMENTARY - OWN_CLOCK
CONNECTIONS = 300
SMALL_RING = 4096


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths=[Path(delay_ms=5, rate_mbit=50), Path(delay_ms=15, rate_mbit=50)]) as lab:
        allow_joins(lab)
        yield lab


@pytest.fixture
def cgroup(lab: Lab) -> Iterator[Path_]:  # noqa: ARG001 — what emulates paths stays outside
    with own_cgroup() as folder:
        yield folder


@contextmanager
def compiled(lab: Lab, cgroup: Path_, **options: Any) -> Iterator[BccProbes]:
    try:
        with lab.client.entered():
            probes = BccProbes.open(netns=lab.client.netns, cgroup=cgroup, **options)
    except BpfUnavailable as error:
        pytest.skip(f"bcc's probes cannot run here: {error}")
    with probes:
        yield probes


@pytest.fixture
def both(lab: Lab, cgroup: Path_) -> Iterator[tuple[Probes, BccProbes]]:
    with (
        probing(lab.client, thresholds=QUIET) as core,
        compiled(lab, cgroup, thresholds=QUIET) as bcc,
    ):
        yield core, bcc


def fields(measurement: Measurement, names: set[str]) -> dict[str, object]:
    return {name: getattr(measurement, name) for name in names}


def by_local(host_sample: list[Measurement]) -> dict[str, Measurement]:
    return {each.local.ip: each for each in host_sample}


def resting(
    lab: Lab, ends: Ends, core: Probes, bcc: BccProbes
) -> list[tuple[Measurement, Measurement, Measurement, Any]]:
    """Of each subflow what core, bcc, inet_diag and TCP_INFO said while nothing happened."""

    def look() -> list[tuple[Measurement, Measurement, Measurement, Any]] | None:
        before = by_local(sample(lab.client, core))
        compiled = by_local(sample(lab.client, bcc))
        listed = by_local(lab.client.call(lambda: diag.snapshot().subflows))
        infos = {info.local.ip: info for info in tcp_infos(ends.client)}
        after = by_local(sample(lab.client, core))
        if len(before) < 2 or before.keys() != after.keys():
            return None
        if any(each.in_flight or each.state != 1 for each in before.values()):
            return None
        if any(fields(before[ip], EXACT) != fields(after[ip], EXACT) for ip in before):
            return None
        assert before.keys() == compiled.keys() == listed.keys() == infos.keys()
        return [(before[ip], compiled[ip], listed[ip], infos[ip]) for ip in sorted(before)]

    return until(look, "rest point")


def test_every_field_is_the_same_whichever_way(lab: Lab, both: tuple[Probes, BccProbes]) -> None:
    core, bcc = both
    with connection(lab) as ends:
        until(lambda: len(sample(lab.client, core)) == 2, "second subflow")
        lab.paths[0].set(loss_percent=3)
        for _ in range(6):
            exchange(ends, bytes(200_000))
        lab.paths[0].heal()
        exchange(ends, bytes(50_000))
        rows = resting(lab, ends, core, bcc)
        assert sum(each.retransmits or 0 for each, _, _, _ in rows), "nothing was lost"
        for seen, compiled, listed, info in rows:
            assert fields(compiled, EXACT) == fields(seen, EXACT)
            # What inet_diag has of it; what it cannot see is None there, never 0.
            told = {
                name: value
                for name in EXACT - {"owner"}  # of which it knows more
                if (value := getattr(listed, name)) is not None and getattr(seen, name) is not None
            }
            assert {"token", "local_id", "retransmits", "bytes_acked", "delivered"} <= told.keys()
            assert fields(compiled, set(told)) == told
            assert (compiled.bytes_acked, compiled.retransmits, compiled.srtt_us) == (
                info.bytes_acked,
                info.total_retrans,
                info.rtt,
            )
            assert compiled.holes_us == pytest.approx(seen.holes_us, rel=0.05, abs=5000)
            assert seen.opened_at is not None
            assert compiled.opened_at is not None
            assert compiled.opened_at >= seen.opened_at  # the state changes, then the SYN goes out
            # Which samples are taken is each way's own, where most of them lie is the path's.
            slots = [median_slot(each.rtt_histogram) for each in (seen, compiled)]
            assert abs(slots[0] - slots[1]) <= 1


def median_slot(histogram: list[int] | None) -> int:
    assert histogram
    half, passed = sum(histogram) / 2, 0
    assert half
    for slot, number in enumerate(histogram):
        passed += number
        if passed >= half:
            return slot
    raise AssertionError("unreachable: half of the sum was not passed")


def test_final_records_are_the_same(lab: Lab, both: tuple[Probes, BccProbes]) -> None:
    core, bcc = both
    with connection(lab) as ends:
        until(lambda: len(sample(lab.client, core)) == 2, "second subflow")
        exchange(ends, bytes(100_000))
    ended: list[dict[str, Measurement]] = []
    for probes in (core, bcc):
        listening = Listening(probes)
        for path in lab.paths:
            ip = path.client_ip
            listening.wait(SubflowEnded, partial(is_from, ip))
        ended.append({event.measurement.local.ip: event.measurement for event in listening.events})
    seen, compiled = ended
    assert seen.keys() == compiled.keys()
    for ip in seen:
        assert compiled[ip].closed
        assert fields(compiled[ip], EXACT) == fields(seen[ip], EXACT)
    assert bcc.entries() == {"subflows": 0, "connections": 0, "listeners": 0}


def is_from(ip: str, event: SubflowEnded) -> bool:
    return event.measurement.local.ip == ip


def lose(path: LivePath) -> None:
    path.set(loss_percent=30)


def delay(path: LivePath) -> None:
    path.set(delay_ms=100)


def swallow(path: LivePath) -> None:
    path.blackhole()


def only(**kept: int) -> Thresholds:
    off = {"rtt_factor_percent": 0, "loss_percent": 0, "timeouts": 0, "no_progress_us": 0}
    off |= {"stall_us": 0, "hole_us": 0, "silence_us": 0}
    return Thresholds(**{name: value for name, value in off.items() if name not in kept} | kept)


@pytest.mark.parametrize(
    ("fault", "thresholds", "kind"),
    [
        pytest.param(delay, only(rtt_factor_percent=300), AlarmKind.RTT, id="rtt"),
        pytest.param(lose, only(loss_percent=25), AlarmKind.LOSS, id="loss"),
        pytest.param(
            swallow, only(no_progress_us=100_000), AlarmKind.NO_PROGRESS, id="no-progress"
        ),
        pytest.param(swallow, only(timeouts=2), AlarmKind.TIMEOUTS, id="timeouts"),
    ],
)
def test_the_same_fault_raises_the_same_alarm(
    lab: Lab,
    cgroup: Path_,
    fault: Callable[[LivePath], None],
    thresholds: Thresholds,
    kind: AlarmKind,
) -> None:
    with (
        probing(lab.client, thresholds=thresholds) as core,
        compiled(lab, cgroup, thresholds=thresholds) as bcc,
    ):
        heard = [Listening(core), Listening(bcc)]
        running = lab.start(RequestResponse())
        assert running.token is not None
        until(
            lambda: any((each.segments_out or 0) > 20 for each in sample(lab.client, core)),
            "traffic",
        )
        assert [listening.alarms() for listening in heard] == [[], []]
        for path in lab.paths:
            fault(path)
        alarms = [listening.alarm(running.token) for listening in heard]
        running.kill()
    for alarm in alarms:
        assert alarm.kind is kind
        assert alarm.value >= alarm.limit > 0
        assert alarm.measurement.owner is not None
        assert alarm.measurement.owner.pid == running.pid


HOOKS = ("fentry/mptcp_incoming_options", "kprobe/mptcp_incoming_options", "raw_tp/tcp_probe")


@pytest.mark.parametrize("hook", HOOKS)
def test_what_is_only_received_is_seen_at_every_hook(
    lab: Lab, cgroup: Path_, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """sock_ops is not called for segments that come in: data that waits for other data."""

    def refuse(*_: object) -> int:
        raise OSError(1, "refused by the test")

    for better in HOOKS[: HOOKS.index(hook)]:
        monkeypatch.setattr(loading, f"attach_{better.partition('/')[0]}", refuse)
    with compiled(lab, cgroup, thresholds=only(hole_us=20_000, hole_factor_percent=0)) as bcc:
        (report,) = [each for each in bcc.report.hooks if each.program == "segment_received"]
        if report.hook != hook:
            pytest.skip(f"{hook} cannot be had here: {report.reason}")
        listening = Listening(bcc)
        running = lab.start(Bulk(seconds=20.0, direction="down"))
        assert running.token is not None
        # Loss could prevent the join, and one subflow leaves no holes.
        lab.paths[1].wait_for_subflow()
        for path in lab.paths:
            path.set(loss_percent=20)
        alarm = listening.alarm(running.token, AlarmKind.HOLE)
        running.kill()
    assert alarm.value >= alarm.limit == 20_000
    assert (alarm.measurement.holes_us or 0) >= alarm.value


def test_a_full_ring_buffer_loses_no_final_record(lab: Lab, cgroup: Path_) -> None:
    with compiled(lab, cgroup, thresholds=QUIET, ring_bytes=SMALL_RING) as bcc:
        lab.start(ShortConnections(count=CONNECTIONS)).result()
        until(lambda: not sample(lab.client, bcc), "end of all subflows")
        events = bcc.read()
        lost = bcc.lost
        assert bcc.entries() == {"subflows": 0, "connections": 0, "listeners": 0}
        assert bcc.read() == []
    assert all(isinstance(event, SubflowEnded) for event in events)
    initial = [event.measurement for event in events if event.measurement.initial]
    assert len({each.cookie for each in initial}) == len(initial) == CONNECTIONS
    assert all(each.closed and each.bytes_sent and each.opened_at for each in initial)
    assert lost["final_records_kept"] > CONNECTIONS // 2, "the ring was not small enough to test"
    assert lost["subflows_refused"] == lost["connections_refused"] == 0


def attached(cgroup: Path_) -> int:
    """How many sock_ops programs are attached to a cgroup."""
    libbpf = Libbpf()
    folder = os.open(cgroup, os.O_RDONLY)
    flags, number = ctypes.c_uint32(), ctypes.c_uint32(64)
    ids = (ctypes.c_uint32 * 64)()
    query = libbpf.bpf_prog_query
    query.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint32] + [ctypes.c_void_p] * 3
    try:
        done = query(folder, AttachType.SOCK_OPS, 0, ctypes.byref(flags), ids, ctypes.byref(number))
    finally:
        os.close(folder)
    assert done == 0
    return number.value


def test_several_share_a_cgroup_and_a_kill_leaves_nothing(lab: Lab, cgroup: Path_) -> None:
    with compiled(lab, cgroup, thresholds=QUIET) as first:
        program = (
            "from pathlib import Path; from mptcpd_ebpf.probes.bcc_probes import BccProbes\n"
            "import sys, signal\n"
            "probes = BccProbes.open(cgroup=Path(sys.argv[1]))\n"
            "print('open', flush=True); signal.pause()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(cgroup)], stdout=subprocess.PIPE, text=True
        ) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "open\n"
            assert attached(cgroup) == 2
            second.send_signal(signal.SIGKILL)
        until(lambda: attached(cgroup) == 1, "end of the killed one's program")
        with connection(lab):
            assert sample(lab.client, first)
    assert attached(cgroup) == 0


def test_an_unreported_end_is_found_at_the_next_sample(lab: Lab, cgroup: Path_) -> None:
    """Another sock_ops program may take the callbacks back that ours asked for."""
    source = "int thief(struct bpf_sock_ops *o) { bpf_sock_ops_cb_flags_set(o, 0); return 1; }"
    with compiled(lab, cgroup, thresholds=QUIET) as bcc, ExitStack() as stack:
        code = compile_functions(source, ["thief"])["thief"]
        program = load_program(Libbpf(), ProgramType.SOCK_OPS, "thief", code)
        stack.callback(os.close, program)
        stack.callback(os.close, attach_cgroup(Libbpf(), program, cgroup))
        with connection(lab):
            assert sample(lab.client, bcc)
        until(lambda: not sample(lab.client, bcc), "end of the subflows")
        assert bcc.read() == []
        assert bcc.entries() == {"subflows": 0, "connections": 0, "listeners": 0}


def test_sockets_outside_the_cgroup_are_not_followed(lab: Lab) -> None:
    with own_cgroup() as cgroup:
        pass_by = cgroup / "inner"
        pass_by.mkdir()
        try:
            with compiled(lab, pass_by, thresholds=QUIET) as bcc, connection(lab):
                assert sample(lab.client, bcc) == []
                assert bcc.entries()["subflows"] == 0
        finally:
            pass_by.rmdir()


def test_a_folder_that_is_no_cgroup_is_named(lab: Lab, cgroup: Path_, tmp_path: Path_) -> None:
    with compiled(lab, cgroup):
        pass  # or skipped, with the reason
    reasons = {tmp_path: "is not a folder of cgroup v2", tmp_path / "none": "No such file"}
    for wrong, why in reasons.items():
        with pytest.raises(BpfUnavailable, match=why) as refusal:
            BccProbes.open(cgroup=wrong)
        assert str(wrong) in str(refusal.value)


def test_what_is_older_is_left_to_inet_diag(lab: Lab, cgroup: Path_) -> None:
    with connection(lab) as ends, compiled(lab, cgroup, thresholds=QUIET) as bcc:
        exchange(ends, bytes(10_000))
        first = lab.paths[0].client_ip
        assert first not in by_local(sample(lab.client, bcc))
        assert not bcc.sees_all


def test_closing_leaves_no_descriptor(lab: Lab, cgroup: Path_) -> None:
    with compiled(lab, cgroup, thresholds=QUIET):
        pass
    before = set(os.listdir("/proc/self/fd"))
    with compiled(lab, cgroup, thresholds=QUIET) as bcc:
        bcc.sample()
    bcc.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_bcc_serves_the_daemon_where_core_is_refused(
    lab: Lab, cgroup: Path_, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> Probes:
        raise BpfUnavailable("refused by the test")

    with compiled(lab, cgroup):
        pass  # or skipped, with the reason
    monkeypatch.setattr(Probes, "open", refuse)
    with connection(lab) as older, lab.client.entered():
        until(lambda: len(diag.snapshot().subflows) == 2, "second subflow")
        with EventSources.open(ProbeSettings(cgroup=str(cgroup))) as ears:
            status = ears.status()
            assert status["backend"] == "bcc"
            assert status["reason"].startswith("compiled by bcc, attached to sock_ops")
            assert "core: refused by the test" in status["reason"]
            # What is older than the probes comes from inet_diag.
            exchange(older, bytes(10_000))
            ips = {path.client_ip for path in lab.paths}
            assert {each.local.ip for each in ears.sample()} == ips
            assert not ears.sees_ends
