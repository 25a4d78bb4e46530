# SPDX-License-Identifier: BSD-3-Clause
"""Manual commands on the real kernel, with and without a daemon, seen by `ip mptcp` and the
peer."""

import json
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mptcpd_ebpf.core.events import (
    AddressAnnounced,
    AddressWithdrawn,
    Event,
    SubflowClosed,
    SubflowEstablished,
    SubflowPriority,
)
from mptcpd_ebpf.kernel import diag
from mptcpd_ebpf.kernel.pm import joins_marked
from mptcpd_ebpf.lab import Host, Lab
from mptcpd_ebpf.lab.wire import FIN, RST, AddAddr, MPJoinSyn, MPPrio, RemoveAddr, Wire
from tests.netns.daemon_process import PROGRAM, RunningDaemon, command, daemon, refusal
from tests.netns.event_log import EventLog
from tests.netns.mptcp_peers import Pair, connected, peer
from tests.waiting import SLOWNESS, until

Ask = Callable[..., Any]
# Linux 6.1 answers EINVAL, which has more than one meaning.
ALREADY = (
    "this address has an endpoint already",
    "the address or the address id is an endpoint's already",
)
# Before 6.10 the ids cannot be read, and the kernel refuses the announcement itself.
NO_IDS = ("the address ids of connection 12345678: ", "no connection of this namespace")


def inside(host: Host) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{host.name}", "--")


def shown(host: Host) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        host.run(["ip", "-j", "mptcp", "endpoint", "show"]).stdout
    )
    return rows


def done(ended: "subprocess.CompletedProcess[str]", through: str) -> dict[str, Any]:
    """The JSON of a command that was carried out."""
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    assert (answer["schema"], answer["through"]) == (1, through)
    assert (answer["errno"], answer["explanation"]) == (0, None)
    return answer


@pytest.fixture(params=["kernel", "daemon"])
def through(
    request: pytest.FixtureRequest, mptcp_lab: Lab, tmp_path: Path
) -> Iterator[tuple[str, Ask]]:
    """Runs commands on the lab's client, with a daemon there or without one."""
    prefix = inside(mptcp_lab.client)
    if request.param == "kernel":
        yield "kernel", lambda *arguments: command(*arguments, prefix=prefix)
    else:
        with daemon(tmp_path, "--probes=netlink", prefix=prefix) as running:
            yield "daemon", running.ask


def test_endpoints_and_limits(mptcp_lab: Lab, through: tuple[str, Ask]) -> None:
    way, ask = through
    client, path = mptcp_lab.client, mptcp_lab.paths[1]
    assert ask("endpoint", "flush").returncode == 0
    assert ask("endpoint", "show").stdout == "no endpoints\n"
    added = ask(
        *("endpoint", "add", path.client_ip, "subflow", "backup", "--id", "9"),
        *("--dev", path.client_if, "--reason", "a try", "--json"),
    )
    assert done(added, way)["command"]["reason"] == "a try"
    row = {"address": path.client_ip, "id": 9, "subflow": True, "backup": True}
    assert shown(client) == [row | {"dev": path.client_if}]
    listed = json.loads(ask("endpoint", "show", "--json").stdout)["endpoints"]
    assert [(e["id"], e["ip"], e["flags"], e["interface"], e["port"]) for e in listed] == [
        (9, path.client_ip, ["subflow", "backup"], path.client_if, None)
    ]
    done(ask("endpoint", "change", path.client_ip, "nobackup", "--json"), way)
    done(ask("endpoint", "change", "9", "fullmesh", "--json"), way)
    assert shown(client) == [
        {k: v for k, v in row.items() if k != "backup"} | {"fullmesh": True, "dev": path.client_if}
    ]
    done(ask("endpoint", "del", path.client_ip, "--json"), way)
    assert shown(client) == []

    before = json.loads(ask("limits", "--json").stdout)
    done(ask("limits", "--subflows", "7", "--json"), way)
    after = json.loads(ask("limits", "--json").stdout)
    assert after == before | {"subflows": 7}
    assert client.run(["ip", "mptcp", "limits"]).stdout.split()[3] == "7"


@pytest.mark.parametrize(
    ("order", "by_kernel_alone"),
    [
        (("endpoint", "add", "10.9.9.9"), True),
        (("limits", "--subflows", "3"), True),
        (("endpoint", "flush"), False),
    ],
)
def test_a_command_without_effect_on_new_connections_says_so(
    mptcp_lab: Lab, through: tuple[str, Ask], order: tuple[str, ...], by_kernel_alone: bool
) -> None:
    _, ask = through
    assert ask(*order).stderr == ""
    ask("endpoint", "flush")
    mptcp_lab.client.run(["sysctl", "-qw", "net.mptcp.pm_type=1"])
    ended = ask(*order, "--json")
    assert ended.returncode == 0
    caveat = json.loads(ended.stdout)["caveat"]
    assert bool(caveat) is by_kernel_alone
    assert ended.stderr == (f"mptcpd-ebpf: {caveat}\n" if caveat else "")


def test_what_the_kernel_refuses_is_explained_and_exits_1(
    mptcp_lab: Lab, through: tuple[str, Ask]
) -> None:
    ip = mptcp_lab.paths[0].client_ip
    _, ask = through
    assert ask("endpoint", "add", ip).returncode == 0
    for arguments, words in (
        (("endpoint", "add", ip), ALREADY),
        (("endpoint", "del", "77"), ("there is no endpoint 77",)),
        (("announce", "12345678", ip, "--id", "3"), ("no connection of this namespace",)),
        (("announce", "12345678", ip), NO_IDS),
        (("subflow", "del", "12345678", f"{ip}:1", f"{ip}:2"), ("",)),
    ):
        ended = ask(*arguments)
        assert ended.returncode == 1, ended
        assert ended.stderr.startswith("mptcpd-ebpf: ")
        assert any(word in ended.stderr for word in words)
        assert "Traceback" not in ended.stderr
    ended = ask("endpoint", "add", ip, "--dev", "nowhere0")
    assert (ended.returncode, ended.stdout) == (64, "")
    assert "there is no 'nowhere0' in this network namespace" in ended.stderr


@contextmanager
def connection(lab: Lab) -> Iterator[tuple[Pair, EventLog[Event]]]:
    """A connection in userspace mode from the client, and the server's events."""
    with (
        peer(lab.client) as client,
        peer(lab.server) as server,
        connected(client, server, lab.paths[0].server_ip) as pair,
    ):
        yield pair, server.log


def test_subflows_and_announcements_reach_the_peer(
    mptcp_lab: Lab, through: tuple[str, Ask]
) -> None:
    way, ask = through
    second = mptcp_lab.paths[1].client_ip
    with connection(mptcp_lab) as (pair, server):
        token, remote = f"{pair.at_client.token:08x}", str(pair.at_client.remote)
        made = done(ask("subflow", "add", token, second, remote, "--json"), way)
        assert made["command"]["local_id"] == 1
        joined = server.wait(SubflowEstablished)
        assert joined.remote.ip == second
        assert not joined.backup

        local = str(joined.remote)
        done(ask("subflow", "backup", token, local, remote, "--json"), way)
        assert server.wait(SubflowPriority).backup
        done(ask("subflow", "backup", token, local, remote, "--clear", "--json"), way)
        server.wait(SubflowPriority, lambda e: not e.backup)

        done(ask("announce", token, second, "--json"), way)
        announced = server.wait(AddressAnnounced)
        # The kernel knows the address by the id of its subflow, and accepts no other.
        assert (announced.ip, announced.address_id) == (second, 1)
        done(ask("withdraw", token, "1", "--json"), way)
        assert server.wait(AddressWithdrawn).address_id == 1
        server.wait(SubflowClosed, lambda e: e.remote == joined.remote)

        server.drain()
        done(ask("subflow", "add", token, second, remote, "--backup", "--json"), way)
        again = server.wait(SubflowEstablished)
        # A daemon marks a subflow that the kernel made without the mark; a command cannot wait.
        if not joins_marked() and way == "daemon":
            assert server.wait(SubflowPriority).backup
        else:
            assert again.backup is joins_marked()
        done(ask("subflow", "del", token, str(again.remote), remote, "--json"), way)
        server.wait(SubflowClosed, lambda e: e.remote == again.remote)


def test_every_order_for_a_connection_is_on_the_wire(
    mptcp_lab: Lab, through: tuple[str, Ask]
) -> None:
    """The packets that leave the client's interfaces."""
    way, ask = through
    first, second = mptcp_lab.paths
    with connection(mptcp_lab) as (pair, server), Wire(mptcp_lab.client.name) as wire:
        token, remote = f"{pair.at_client.token:08x}", str(pair.at_client.remote)

        def carry_out(*words: str) -> dict[str, Any]:
            fields: dict[str, Any] = done(ask(*words, "--json"), way)["command"]
            return fields

        made = carry_out("subflow", "add", token, second.client_ip, remote)
        join = wire.expect(
            MPJoinSyn(address_id=made["local_id"], backup=0),
            direction="out",
            interface=second.client_if,
            source=second.client_ip,
        )
        local = str(join.flow.source)
        server.wait(SubflowEstablished)
        for flag, backup in (([], 1), (["--clear"], 0)):
            carry_out("subflow", "backup", token, local, remote, *flag)
            wire.expect(MPPrio(backup=backup), direction="out", flow=join.flow)
        said = carry_out("announce", token, first.client_ip, "--port", "7", "--no-listener")
        address_id = said["address_id"]
        announced = AddAddr(echo=0, address_id=address_id, address=first.client_ip, port=7)
        wire.expect(announced, direction="out")
        carry_out("withdraw", token, str(address_id))
        wire.expect(RemoveAddr(address_ids=[address_id]), direction="out")
        carry_out("subflow", "del", token, local, remote)
        until(
            lambda: any(
                wire.matching(direction="out", flow=join.flow, flags=flags) for flags in (FIN, RST)
            ),
            "the subflow's end",
        )


def test_an_id_of_an_open_subflow_is_refused_for_another_address(
    mptcp_lab: Lab, through: tuple[str, Ask]
) -> None:
    """One of two subflows from an address is destroyed, and the kernel removes the address id."""
    way, ask = through
    first, second = (path.client_ip for path in mptcp_lab.paths)
    with connection(mptcp_lab) as (pair, server):
        token, remote = f"{pair.at_client.token:08x}", str(pair.at_client.remote)
        made = []
        for _ in range(2):
            done(ask("subflow", "add", token, second, remote, "--json"), way)
            made.append(server.wait(SubflowEstablished))
            server.events.remove(made[-1])
        assert [each.remote_id for each in made] == [1, 1]
        done(ask("subflow", "del", token, str(made[0].remote), remote, "--json"), way)
        server.wait(SubflowClosed, lambda e: e.remote == made[0].remote)

        def announced(ip: str) -> int:
            order = ("announce", token, ip, "--port", "7", "--no-listener", "--json")
            address_id: int = done(ask(*order), way)["command"]["address_id"]
            return address_id

        other = announced(first)
        assert other != 1
        done(ask("withdraw", token, str(other), "--json"), way)
        server.wait(AddressWithdrawn, lambda e: e.address_id == other)
        assert announced(second) == 1
        with mptcp_lab.client.entered():
            assert len(diag.subflows()) == 2
        pair.exchange()


def test_a_daemon_keeps_the_last_subflow_and_remembers_who_asked(
    mptcp_lab: Lab, tmp_path: Path
) -> None:
    with (
        connection(mptcp_lab) as (pair, _),
        daemon(tmp_path, "--probes=netlink", prefix=inside(mptcp_lab.client)) as running,
    ):
        event = pair.at_client
        last = ("subflow", "del", f"{event.token:08x}", str(event.local), str(event.remote))
        refused = running.ask(*last, "--json")
        assert refused.returncode == 1
        assert json.loads(refused.stdout)["errno"] is None
        assert "it is the last usable subflow of the connection" in refused.stderr
        assert "--direct" in refused.stderr
        running.until_logged("manual command: destroy")
        pair.exchange()
        # Paused are the plugins, not people.
        assert running.ask("pause").returncode == 0
        assert running.ask("endpoint", "add", "192.0.2.9").returncode == 0
        assert running.stop() == 0
    assert [row["address"] for row in shown(mptcp_lab.client)] == ["192.0.2.9"]


def test_a_daemon_elsewhere_is_named_and_can_be_gone_past(mptcp_lab: Lab, tmp_path: Path) -> None:
    prefix = inside(mptcp_lab.client)
    with daemon(tmp_path, "--probes=netlink", prefix=prefix) as running:
        code, words = refusal("limits", prefix=prefix)
        assert code == 69
        assert f"process {running.process.pid}" in words
        assert command("limits", "--direct", prefix=prefix).returncode == 0


@pytest.mark.parametrize("way", ["kernel", "daemon"])
def test_the_monitor_prints_events(mptcp_lab: Lab, tmp_path: Path, way: str) -> None:
    client, prefix = mptcp_lab.client, inside(mptcp_lab.client)
    numbers = iter(range(1, 250))

    def told(*arguments: str) -> str:
        """Adds addresses until the monitor prints one."""
        lines: list[str] = []
        with subprocess.Popen(
            [*prefix, PROGRAM, "monitor", *arguments], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            stdout = process.stdout

            def heard() -> bool:
                client.run(["ip", "address", "add", f"192.0.2.{next(numbers)}/32", "dev", "lo"])
                while not lines and select.select([stdout], [], [], 0.1)[0]:
                    line = stdout.readline()
                    if "192.0.2." in line:
                        lines.append(line)
                return bool(lines)

            try:
                until(heard, "the monitor tells of an address")
            finally:
                process.terminate()
        return lines[0]

    def check(*arguments: str) -> None:
        record = json.loads(told("--json", *arguments))
        assert record["schema"] == 1
        assert record["event"] == "LocalAddressChanged"
        assert record["ip"].startswith("192.0.2.")
        assert record["t"] > 1e9
        assert "LocalAddressChanged" in told(*arguments)

    if way == "kernel":
        check()
    else:
        with daemon(tmp_path, "--probes=netlink", prefix=prefix) as running:
            check("--control", str(running.control))


def test_the_monitor_ends_with_the_daemon(mptcp_lab: Lab, tmp_path: Path) -> None:
    with (
        daemon(tmp_path, "--probes=netlink", prefix=inside(mptcp_lab.client)) as running,
        subprocess.Popen(
            [PROGRAM, "monitor", "--json", "--control", str(running.control)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        _until_streamed(running, process)
        assert running.stop() == 0
        assert process.wait(20 * SLOWNESS) == 69
        assert process.stderr is not None
        assert "ended" in process.stderr.read()


def _until_streamed(running: RunningDaemon, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    stdout = process.stdout

    def heard() -> bool:
        running.ask("limits", "--subflows", "3")
        return bool(select.select([stdout], [], [], 0.1)[0])

    until(heard, "the monitor tells something")
