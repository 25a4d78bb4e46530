# SPDX-License-Identifier: BSD-3-Clause
"""`ls --json` shows the same values of live subflows as `ss`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mptcpd_ebpf.control.schema import Announced, ConnectionView, SubflowView
from mptcpd_ebpf.lab import Lab
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import add_endpoint, raise_limits
from tests.netns.daemon_host import PATIENCE_S, adaptive_in, connections
from tests.netns.daemon_process import RunningDaemon, command
from tests.netns.mptcp_sockets import connection, exchange
from tests.ordinary_user import AS_NOBODY
from tests.waiting import until

MakeLab = Callable[..., Lab]


COUNTERS = {
    "segments_out": "data_segs_out",
    "bytes_sent": "bytes_sent",
    "bytes_acked": "bytes_acked",
    "bytes_received": "bytes_received",
    "segments_in": "data_segs_in",
    "cwnd": "cwnd",
}
"""Our names and those of `ss -i`; the values are equal while no data is in flight."""
NEVER_NULL = {
    "local", "remote", "local_id", "remote_id", "interface", "state", "backup", "srtt_us",
    "min_rtt_us", "rtt_us", "rttvar_us", "retransmits", "lost", "timeouts", "segments_out",
    "bytes_sent", "bytes_acked", "bytes_received", "segments_in", "out_of_order", "rcv_rtt_us",
    "holes_ms", "cwnd", "in_flight", "opened_at",
}  # fmt: skip
"""What is known of every subflow that has carried data and is newer than the daemon."""


def listed(running: RunningDaemon) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(running.ask("ls", "--json").stdout)
    assert answer["schema"] == 1
    (found,) = answer["connections"]
    assert isinstance(found, dict)
    return found


def typed(record: dict[str, Any], shape: type) -> None:
    """Every field of a record exists, in the declared order and of the declared type."""
    hints = get_type_hints(shape)
    assert list(record) == list(hints)
    for name, hint in hints.items():
        plain = [getattr(kind, "__origin__", kind) for kind in get_args(hint) or (hint,)]
        if getattr(hint, "__origin__", None) is list:
            plain = [list]
        fits = type(record[name]) in plain or (type(record[name]) is int and float in plain)
        assert fits, f"{name}: {record[name]!r} is none of {plain}"


def socket_statistics(lab: Lab) -> dict[str, dict[str, str]]:
    """By local address: the values of `ss -ti` for the client's TCP sockets."""
    argv = ["ss", "-HtnOi", "state", "established"]
    found = {}
    for line in lab.client.run(argv).stdout.splitlines():
        words = line.split()
        named = dict(word.split(":", 1) for word in words[4:] if re.match(r"[a-z_]+:\S", word))
        found[re.sub(r"%\w+", "", words[2])] = named  # an interface it is bound to
    return found


@pytest.mark.parametrize("ip", ["4", "6"])
def test_ls_agrees_with_ss(make_mptcp_lab: MakeLab, tmp_path: Path, ip: str) -> None:
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=20)], ip=ip)
    raise_limits(lab.server)
    six = {"family": 10, "listen_on": "::"} if ip == "6" else {}
    with adaptive_in(lab.client, tmp_path) as running, connection(lab, **six) as ends:  # type: ignore[arg-type]

        def both_carry() -> bool:
            exchange(ends, b"x" * 200_000)
            (known,) = connections(running)
            return [bool(s["segments_out"]) for s in known["subflows"]] == [True, True]

        until(both_carry, "both subflows carry data", PATIENCE_S)

        def at_rest() -> bool:
            (known,) = connections(running)
            return not any(subflow["in_flight"] for subflow in known["subflows"])

        until(at_rest, "all is acknowledged")
        found = listed(running)
        typed(found, ConnectionView)
        assert found["announced"] == []
        assert re.fullmatch("[0-9a-f]{8}", found["token"])
        local, remote = ends.client.getsockname()[:2], ends.client.getpeername()[:2]
        shown = "[{}]:{}" if ip == "6" else "{}:{}"
        assert (found["local"], found["remote"]) == (shown.format(*local), shown.format(*remote))
        assert found["stalled_ms"] >= 0
        statistics = socket_statistics(lab)
        assert sorted(statistics) == sorted(s["local"] for s in found["subflows"])
        for subflow, path in zip(found["subflows"], lab.paths, strict=True):
            typed(subflow, SubflowView)
            assert {name for name, value in subflow.items() if value is not None} == NEVER_NULL
            shown_by_ss = statistics[subflow["local"]]
            assert {name: str(subflow[name]) for name in COUNTERS} == {
                name: shown_by_ss[theirs] for name, theirs in COUNTERS.items()
            }
            srtt, variation = shown_by_ss["rtt"].split("/")
            assert subflow["srtt_us"] == pytest.approx(float(srtt) * 1000, rel=0.05)
            assert subflow["rttvar_us"] == pytest.approx(float(variation) * 1000, rel=0.05)
            assert subflow["min_rtt_us"] == pytest.approx(
                float(shown_by_ss["minrtt"]) * 1000, abs=1
            )
            assert subflow["interface"] == path.client_if
            assert subflow["retransmits"] == int(shown_by_ss.get("retrans", "0/0").split("/")[1])
            # Ours counts all losses so far, ss those that are not repaired yet.
            assert subflow["lost"] >= int(shown_by_ss.get("lost", "0"))
            assert subflow["timeouts"] == 0


def test_an_address_that_the_peer_announced_is_shown(
    make_mptcp_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    address = lab.paths[1].server_ip
    add_endpoint(lab.server, address, "id", "5", "signal")
    with adaptive_in(lab.client, tmp_path) as running, connection(lab) as ends:
        exchange(ends, b"x" * 1000)
        until(lambda: bool(connections(running)[0]["announced"]), "it is shown", PATIENCE_S)
        (announced,) = listed(running)["announced"]
        typed(announced, Announced)
        # The kernel fills in the port of the connection if the peer announced none.
        port = ends.client.getpeername()[1]
        assert announced == {"id": 5, "ip": address, "port": port}


@pytest.mark.parametrize("daemon", [False, True], ids=["no daemon", "past a daemon"])
@pytest.mark.ordinary_user
def test_without_a_daemon_the_kernel_is_asked(
    make_mptcp_lab: MakeLab, tmp_path: Path, daemon: bool
) -> None:
    """What only probes and events report is null; everything else is as with a daemon."""
    lab = make_mptcp_lab([LabPath(delay_ms=5), LabPath(delay_ms=20)])
    raise_limits(lab.server)
    inside = ("nsenter", f"--net=/run/netns/{lab.client.name}", "--")
    with adaptive_in(lab.client, tmp_path) as running, connection(lab) as ends:
        exchange(ends, b"x" * 1000)

        def both_established() -> bool:
            return [s["state"] for s in connections(running)[0]["subflows"]] == ["established"] * 2

        until(both_established, "both are established", PATIENCE_S)
        known = listed(running)
        arguments = ["ls", "--json"]
        if daemon:
            arguments.append("--direct")
        else:
            # Both subflows stay, because no plugin manages them any more.
            running.process.kill()
            running.process.wait()
        ended = command(*arguments, prefix=inside)
        assert ended.returncode == 0
        message = "" if daemon else "mptcpd-ebpf: no daemon runs here; this is what the kernel"
        assert ended.stderr.startswith(message)
        (found,) = json.loads(ended.stdout)["connections"]
        typed(found, ConnectionView)
        names = ("token", "server_side", "local", "remote", "pid", "comm")
        assert {name: found[name] for name in names} == {name: known[name] for name in names}
        assert found["stalled_ms"] is None
        facts = ("local", "remote", "local_id", "remote_id", "interface", "state", "backup")
        assert [{name: s[name] for name in facts} for s in found["subflows"]] == [
            {name: s[name] for name in facts} for s in known["subflows"]
        ]
        for subflow in found["subflows"]:
            typed(subflow, SubflowView)
            assert (subflow["lost"], subflow["opened_at"]) == (None, None)
            assert subflow["srtt_us"] > 5000
        # Newer kernels list them only with CAP_NET_ADMIN: then the command says so.
        seen = command("ls", "--direct", prefix=(*inside, *AS_NOBODY))
        if seen.returncode == 77:
            assert "CAP_NET_ADMIN" in seen.stderr
        else:
            assert found["token"] in seen.stdout
