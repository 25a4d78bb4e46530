# SPDX-License-Identifier: BSD-3-Clause
"""`trace doctor` finds each simulated cause, and no fault on a healthy connection."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from mptcpd_ebpf.lab import Bulk, Lab, Path, RequestResponse
from mptcpd_ebpf.lab.kernel_path_manager import allow_joins, raise_limits
from mptcpd_ebpf.lab.traffic.sockets import local_token
from mptcpd_ebpf.runtime.exit_codes import ExitCode
from tests.netns.mptcp_sockets import Ends, abort, connection
from tests.netns.tracing import MAIN, Line, tracing
from tests.waiting import SLOWNESS

HEALTHY = [Path(delay_ms=5, rate_mbit=20), Path(delay_ms=10, rate_mbit=20)]


@contextmanager
def a_lab(paths: list[Path]) -> Iterator[Lab]:
    with Lab(paths=paths) as lab:
        allow_joins(lab)
        yield lab


OBSERVED_S = 2.5 * max(1, SLOWNESS / 2)
"""On a slow machine symptoms take longer to show."""


def examine(lab: Lab, token: int | None, meanwhile: Callable[[], object] = lambda: None) -> Line:
    """The findings by cause, the one with the greatest weight first."""
    assert token is not None
    with tracing(lab.client, "doctor", f"{token:08x}", "-d", f"{OBSERVED_S:g}") as traced:
        meanwhile()
        findings = traced.until(lambda line: "findings" in line, "a diagnosis")["findings"]
    return {finding["cause"]: finding for finding in findings}


def examine_bulk(
    lab: Lab, meanwhile: Callable[[], object] = lambda: None, buffer: int | None = None
) -> Line:
    """The findings of a client that sends as fast as possible over all paths."""
    with connection(lab, send_buffer=buffer, receive_buffer=buffer) as ends:
        # Before the transfer: Linux 6.1 and 6.12 refuse joins while data waits out of order.
        for path in lab.paths:
            path.wait_for_subflow(10 * SLOWNESS)
        with sending(ends), reading(ends, 65536):
            return examine(lab, local_token(ends.client), meanwhile)


@contextmanager
def sending(ends: Ends) -> Iterator[None]:
    """The client sends as fast as possible until the block ends."""
    ends.client.settimeout(0.1)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            try:
                ends.client.send(b"x" * 65536)
            except TimeoutError:
                continue
            except OSError:
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


@contextmanager
def reading(ends: Ends, size: int, pause_s: float = 0.0) -> Iterator[None]:
    """The server reads up to `size` bytes at a time, with pauses, until the block ends."""
    ends.server.settimeout(0.1)
    done = threading.Event()

    def read() -> None:
        while not done.wait(pause_s):
            with suppress(TimeoutError):
                ends.server.recv(size)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()


def test_a_healthy_transfer_is_limited_by_its_paths() -> None:
    with a_lab(HEALTHY) as lab:
        found = examine_bulk(lab)
    assert set(found) <= {"capacity", "application"}


def test_a_slow_sender_is_limited_by_its_application() -> None:
    with a_lab(HEALTHY) as lab:
        requests = lab.start(RequestResponse(interval_ms=50))
        lab.paths[1].wait_for_subflow(10 * SLOWNESS)
        found = examine(lab, requests.token)
        requests.stop()
    assert set(found) == {"application"}


def test_a_receiver_is_referred_to_the_sender() -> None:
    with a_lab(HEALTHY) as lab:
        bulk = lab.start(Bulk(direction="down", drain_s=1))
        found = examine(lab, bulk.token)
        bulk.kill()
    assert set(found) <= {"receiving", "one-path"}
    assert "receiving" in found


def test_the_blackholed_one_of_three_paths_is_named() -> None:
    with a_lab([Path(delay_ms=delay, rate_mbit=4) for delay in (5, 10, 25)]) as lab:
        found = examine_bulk(lab, lab.paths[1].blackhole)
        dead = lab.paths[1].client_ip
    assert next(iter(found)) == "dead-path", found
    assert dead in found["dead-path"]["words"]


def test_loss_on_one_path_is_found() -> None:
    with a_lab(HEALTHY) as lab:
        lab.paths[0].set(loss_percent=3, direction="up")
        found = examine_bulk(lab)
        lossy = lab.paths[0].client_ip
    assert next(iter(found)) == "loss", found
    assert lossy in found["loss"]["words"]


def test_a_blackholed_path_is_found() -> None:
    with a_lab(HEALTHY) as lab:
        found = examine_bulk(lab, lab.paths[0].blackhole)
        dead = lab.paths[0].client_ip
    assert next(iter(found)) == "dead-path", found
    assert dead in found["dead-path"]["words"]


def test_a_slow_path_that_stalls_the_connection_is_found() -> None:
    slow = Path(delay_ms=90, rate_mbit=3, loss_percent=6)
    with a_lab([Path(delay_ms=5, rate_mbit=100), slow]) as lab:
        found = examine_bulk(lab, buffer=131_072)
        slow_ip = lab.paths[1].client_ip
    assert "slow-path" in found
    assert slow_ip in found["slow-path"]["words"]


def test_a_long_queue_is_found() -> None:
    with a_lab([Path(delay_ms=5, rate_mbit=8, queue_ms=800)]) as lab:
        found = examine_bulk(lab, buffer=4_000_000)
    assert "queue" in found
    assert "loss" not in found


def test_a_peer_that_does_not_read_is_found() -> None:
    with a_lab(HEALTHY) as lab, connection(lab, receive_buffer=65536) as ends, sending(ends):
        found = examine(lab, local_token(ends.client))
    assert next(iter(found)) == "peer", found


def test_a_peer_that_reads_slowly_is_found() -> None:
    paths = [Path(delay_ms=5), Path(delay_ms=5)]
    with (
        a_lab(paths) as lab,
        connection(lab, receive_buffer=65536) as ends,
        sending(ends),
        reading(ends, 10_000, 0.05),
    ):
        found = examine(lab, local_token(ends.client))
    assert next(iter(found)) == "peer", found


def test_a_single_subflow_is_reported() -> None:
    with Lab(paths=HEALTHY[:1]) as lab, connection(lab) as ends:
        found = examine(lab, local_token(ends.client))
    assert set(found) == {"application", "one-path"}


def test_traffic_on_backups_only_is_reported() -> None:
    with Lab(paths=HEALTHY) as lab:
        raise_limits(lab.client, lab.server)
        spare = lab.paths[1]
        lab.client.run(
            [
                "ip",
                "mptcp",
                "endpoint",
                "add",
                spare.client_ip,
                "dev",
                spare.client_if,
                "subflow",
                "backup",
            ]
        )
        bulk = lab.start(Bulk(drain_s=1))
        spare.wait_for_subflow(10 * SLOWNESS)
        lab.client.run(["ip", "mptcp", "endpoint", "delete", "id", "0", lab.paths[0].client_ip])
        found = examine(lab, bulk.token)
        bulk.kill()
    assert "backup-only" in found
    assert "one-path" in found


def test_a_reset_during_the_observation_is_reported() -> None:
    with a_lab(HEALTHY) as lab, connection(lab) as ends:
        token = local_token(ends.client)

        found = examine(lab, token, lambda: abort(ends.server, ends.client))
    assert next(iter(found)) == "ended", found
    assert any("reset by the peer" in each for each in found["ended"]["evidence"])


@pytest.mark.parametrize(("token", "code"), [("1", ExitCode.USAGE), ("x", ExitCode.USAGE)])
def test_a_wrong_token_is_refused(token: str, code: ExitCode) -> None:
    with Lab(paths=[Path()]) as lab:
        done = lab.client.run([sys.executable, "-c", MAIN, "trace", "doctor", token], check=False)
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == code
    assert done.stderr.startswith("mptcpd-ebpf: ")
    assert done.stderr.count("\n") == 1


def listed(lab: Lab) -> list[Line]:
    arguments = [sys.executable, "-c", MAIN, "trace", "doctor", "--json"]
    return [json.loads(line) for line in lab.client.run(arguments).stdout.splitlines()]


def test_connections_are_listed_without_a_token() -> None:
    with a_lab(HEALTHY) as lab:
        [nothing] = listed(lab)
        with connection(lab) as ends:
            lab.paths[1].wait_for_subflow(10 * SLOWNESS)
            [found] = listed(lab)
            token, port = local_token(ends.client), ends.client.getsockname()[1]
    assert nothing["connections"] == 0
    assert found["event"] == "connection"
    assert found["token"] == f"{token:08x}"
    assert found["local"] == f"{lab.paths[0].client_ip}:{port}"
    assert found["pid"] == os.getpid()
    assert [each["initial"] for each in found["subflows"]] == [True, False]
