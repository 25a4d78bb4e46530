# SPDX-License-Identifier: BSD-3-Clause
"""addr_adv: whatever happens to links, addresses and routes, the table is what it should be."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mptcpd_ebpf.lab import Lab, RequestResponse
from mptcpd_ebpf.lab import Path as LabPath
from mptcpd_ebpf.lab.kernel_path_manager import raise_limits
from tests.netns.plugin_host import PluginHost, plugin_host
from tests.waiting import INTERVAL_MS, until

ADDR_ADV = "--path-manager=addr_adv"


@pytest.fixture
def host() -> Iterator[PluginHost]:
    with plugin_host() as host:
        yield host


def test_an_endpoint_for_every_usable_address_and_limits_in_step(
    host: PluginHost, tmp_path: Path
) -> None:
    host.veth("a", "10.0.1.1/24", "fd00:1::1/64")
    before = host.limits
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect("10.0.1.1", "fd00:1::1")
        assert all(row["subflow"] and row["dev"] == "a" for row in host.endpoints.values())
        until(lambda: host.limits == (4, 4), "the limits follow")
        host.veth("b", "10.0.2.1/24")
        host.expect("10.0.1.1", "fd00:1::1", "10.0.2.1")
        until(lambda: host.limits == (5, 5), "the limits follow")
        host.ip("addr del 10.0.1.1/24 dev a")
        host.expect("fd00:1::1", "10.0.2.1")
        until(lambda: host.limits == (4, 4), "the limits follow")
        assert running.stop() == 0
    assert host.table == set()
    assert host.limits == before


def test_link_local_loopback_and_tentative_addresses_are_none(
    host: PluginHost, tmp_path: Path
) -> None:
    host.veth("a", "169.254.7.7/16", "10.0.1.1/24")
    host.ip("link set dev a addrgenmode eui64", "link set lo up", "addr add 10.0.9.9/32 dev lo")
    with host.daemon(tmp_path, ADDR_ADV):
        # dadtransmits is 1 by default: the address is tentative for about a second.
        host.ip("addr add fd00:1::1/64 dev a")
        assert '"tentative":true' in host.ip("-j addr show dev a").replace(" ", "")
        assert "fd00:1::1" not in host.table
        host.expect("10.0.1.1", "fd00:1::1")
        assert '"tentative":true' not in host.ip("-j addr show dev a").replace(" ", "")


def test_a_point_to_point_address_is_ours_not_the_peers(host: PluginHost, tmp_path: Path) -> None:
    host.veth("a")
    with host.daemon(tmp_path, ADDR_ADV):
        host.ip("addr add 10.0.1.1 peer 10.0.1.2/32 dev a")
        host.expect("10.0.1.1")


def test_no_endpoint_outlives_carrier_interface_or_address(
    host: PluginHost, tmp_path: Path
) -> None:
    host.veth("a", "10.0.1.1/24")
    host.veth("b", "10.0.2.1/24")
    with host.daemon(tmp_path, ADDR_ADV):
        host.expect("10.0.1.1", "10.0.2.1")
        host.ip("link set dev a-far down")  # a loses its carrier
        host.expect("10.0.2.1")
        host.ip("link set dev a-far up")
        host.expect("10.0.1.1", "10.0.2.1")
        host.ip("link set dev a down", "addr del 10.0.1.1/24 dev a")
        host.expect("10.0.2.1")
        host.ip("addr add 10.0.1.9/24 dev a")  # configured before the interface comes up
        host.ip("link set dev a up")
        host.expect("10.0.1.9", "10.0.2.1")
        host.ip("link del dev a")
        host.expect("10.0.2.1")
        host.veth("a", "10.0.1.1/24")  # as before, under another interface index
        host.expect("10.0.1.1", "10.0.2.1")


def test_an_address_that_moved_between_two_looks(host: PluginHost, tmp_path: Path) -> None:
    host.veth("a", "10.0.1.1/24")
    host.veth("b")
    with host.daemon(tmp_path, ADDR_ADV) as running:
        until(lambda: host.endpoints.get("10.0.1.1", {}).get("dev") == "a", "it is on a")
        running.process.send_signal(signal.SIGSTOP)
        host.ip("addr del 10.0.1.1/24 dev a", "addr add 10.0.1.1/24 dev b")
        running.process.send_signal(signal.SIGCONT)
        until(lambda: host.endpoints.get("10.0.1.1", {}).get("dev") == "b", "it is on b")


def test_interfaces_are_chosen_by_the_name_they_have_now(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("path_manager: addr_adv\ninterfaces:\n  deny: ['tun*']\n")
    host.veth("tun0", "10.0.1.1/24")
    host.veth("a", "10.0.2.1/24")
    with host.daemon(tmp_path, "--config", str(file)):
        host.expect("10.0.2.1")
        host.ip("link set dev tun0 down", "link set dev tun0 name b", "link set dev b up")
        host.expect("10.0.1.1", "10.0.2.1")
        host.ip("link set dev b down", "link set dev b name tun1", "link set tun1 up")
        host.expect("10.0.2.1")


def test_only_allowed_interfaces_and_among_them_no_denied_ones(
    host: PluginHost, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("path_manager: addr_adv\ninterfaces:\n  allow: ['wan?', lte]\n  deny: ['*2']\n")
    for number, name in enumerate(["wan1", "wan2", "lte", "lan"], start=1):
        host.veth(name, f"10.0.{number}.1/24", f"fd00:{number}::1/64")
    with host.daemon(tmp_path, "--config", str(file)) as running:
        host.expect("10.0.1.1", "fd00:1::1", "10.0.3.1", "fd00:3::1")
        file.write_text("path_manager: addr_adv\ninterfaces: {allow: [lan]}\n")
        assert running.ask("reload").returncode == 0
        host.expect("10.0.4.1", "fd00:4::1")


def test_an_address_that_somebody_else_has_is_none(host: PluginHost, tmp_path: Path) -> None:
    """Duplicate address detection fails, and the address stays tentative for good."""
    file = tmp_path / "c.yaml"
    file.write_text("path_manager: addr_adv\ninterfaces: {allow: [a]}\n")
    host.veth("a", "10.0.1.1/24")
    host.ip("addr add fd00:1::1/64 dev a-far nodad")
    with host.daemon(tmp_path, "--config", str(file)) as running:
        host.ip("addr add fd00:1::1/64 dev a", "addr add fd00:1::2/64 dev a")
        until(lambda: "dadfailed" in host.ip("addr show dev a"), "it is somebody else's")
        host.expect("10.0.1.1", "fd00:1::2")
        assert "fd00:1::1 " not in running.log


def test_the_route_counts_when_it_comes(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("path_manager: addr_adv\naddresses:\n  check_route: true\n")
    host.veth("a", "10.0.1.1/24", "fd00:1::1/64")
    host.veth("b", "10.0.2.1/24")
    host.ip("route add default via 10.0.2.2 dev b")
    with host.daemon(tmp_path, "--config", str(file)):
        host.expect("10.0.2.1")
        host.ip("route add default via 10.0.1.2 dev a metric 5")
        host.expect("10.0.1.1", "10.0.2.1")
        host.ip("-6 route add default via fd00:1::2 dev a")
        host.expect("10.0.1.1", "fd00:1::1", "10.0.2.1")
        host.ip("route del default via 10.0.2.2 dev b")
        host.expect("10.0.1.1", "fd00:1::1")


def test_existing_addresses_can_be_left_out(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("path_manager: addr_adv\naddresses:\n  existing: false\n")
    host.veth("a", "10.0.1.1/24")
    with host.daemon(tmp_path, "--config", str(file)):
        host.ip("addr add 10.0.1.2/24 dev a")
        host.expect("10.0.1.2")
        host.ip("addr del 10.0.1.1/24 dev a")  # takes its secondary, 10.0.1.2, with it
        host.expect()
        host.ip("addr add 10.0.1.1/24 dev a")
        host.expect("10.0.1.1")


def test_flags_by_interface_and_address(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    rules = """
      - {interface: "b*", flags: [subflow, backup]}
      - {address: "fd00::/8", flags: [signal]}
"""
    text = "path_manager: addr_adv\nplugins:\n  addr_adv:\n    flags: [subflow, fullmesh]\n"
    file.write_text(f"{text}    rules:{rules}")
    host.veth("a", "10.0.1.1/24", "fd00:1::1/64")
    host.veth("b", "10.0.2.1/24", "fd00:2::1/64")

    def flags() -> dict[str, set[str]]:
        return {ip: set(row) - {"address", "id", "dev"} for ip, row in host.endpoints.items()}

    with host.daemon(tmp_path, "--config", str(file)) as running:
        until(
            lambda: (
                flags()
                == {
                    "10.0.1.1": {"subflow", "fullmesh"},
                    "fd00:1::1": {"signal"},
                    "10.0.2.1": {"subflow", "backup"},
                    "fd00:2::1": {"subflow", "backup"},
                }
            ),
            f"the flags as configured; there are {flags()}",
        )
        ids = {ip: row["id"] for ip, row in host.endpoints.items()}
        file.write_text("path_manager: addr_adv\n")
        assert running.ask("reload").returncode == 0
        until(
            lambda: all(each == {"subflow"} for each in flags().values()) and len(flags()) == 4,
            "the flags as configured now",
        )
        now = {ip: row["id"] for ip, row in host.endpoints.items()}
        changed = {ip for ip in ids if ids[ip] != now[ip]}
        assert changed == {"fd00:1::1"}, "made anew only where the kernel cannot change flags"


def test_nothing_set_by_hand_is_touched(host: PluginHost, tmp_path: Path) -> None:
    host.veth("a", "10.0.1.1/24", "10.0.2.1/24")
    host.ip("mptcp endpoint add 10.0.1.1 id 1 signal", "mptcp endpoint add 10.0.7.7 id 2 subflow")
    by_hand = host.endpoints
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect("10.0.1.1", "10.0.7.7", "10.0.2.1")
        assert by_hand.items() <= host.endpoints.items()
        host.ip("addr del 10.0.1.1/24 dev a")
        host.expect("10.0.1.1", "10.0.7.7", "10.0.2.1")
        ours = host.endpoints["10.0.2.1"]["id"]
        # Ours is replaced by hand: from now on it is not ours.
        host.ip(f"mptcp endpoint del id {ours}", f"mptcp endpoint add 10.0.8.8 id {ours} subflow")
        host.ip("mptcp endpoint add 10.0.2.1 id 77 subflow", "addr del 10.0.2.1/24 dev a")
        host.veth("b", "10.0.3.1/24")
        host.expect("10.0.1.1", "10.0.7.7", "10.0.8.8", "10.0.2.1", "10.0.3.1")
        assert running.stop() == 0
    assert host.table == {"10.0.1.1", "10.0.7.7", "10.0.8.8", "10.0.2.1"}


@pytest.mark.parametrize("alive", [True, False], ids=["beside the daemon", "before its restart"])
@pytest.mark.parametrize("flags", ["backup", "subflow backup", "subflow dev b"])
def test_an_endpoint_made_by_hand_under_the_id_of_ours_is_not_ours(
    host: PluginHost, tmp_path: Path, flags: str, alive: bool
) -> None:
    """In an emptied table the kernel's ids start again at 1."""
    host.veth("a", "10.0.1.1/24")
    host.veth("b")

    with ExitStack() as daemons:
        running = daemons.enter_context(host.daemon(tmp_path, ADDR_ADV))
        host.expect("10.0.1.1")
        assert host.endpoints["10.0.1.1"]["id"] == 1
        if not alive:
            running.process.kill()
            running.process.wait()
        host.ip("mptcp endpoint flush", f"mptcp endpoint add 10.0.1.1 {flags} id 1")
        theirs = host.endpoints
        if not alive:
            daemons.enter_context(host.daemon(tmp_path, ADDR_ADV))
        host.ip("addr add 10.0.2.1/24 dev b")
        host.expect("10.0.1.1", "10.0.2.1")
        assert theirs.items() <= host.endpoints.items()
        host.ip("addr del 10.0.1.1/24 dev a", "addr add 10.0.3.1/24 dev b")
        host.expect("10.0.1.1", "10.0.2.1", "10.0.3.1")
    assert host.endpoints == theirs


def test_flags_changed_by_hand_stay(host: PluginHost, tmp_path: Path) -> None:
    """And the endpoint stays ours, if the daemon was told."""
    host.veth("a", "10.0.1.1/24", "10.0.4.1/24")
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect("10.0.1.1", "10.0.4.1")
        host.ip(f"mptcp endpoint change id {host.endpoints['10.0.1.1']['id']} backup")
        assert running.ask("endpoint", "change", "10.0.4.1", "backup").returncode == 0
        host.veth("b", "10.0.2.1/24")
        host.expect("10.0.1.1", "10.0.2.1", "10.0.4.1")
        assert host.endpoints["10.0.1.1"]["backup"]
        assert host.endpoints["10.0.4.1"]["backup"]
        assert running.stop() == 0
    assert host.table == {"10.0.1.1"}


def test_what_a_person_has_the_daemon_remove_stays_out(host: PluginHost, tmp_path: Path) -> None:
    host.veth("a", "10.0.1.1/24", "10.0.2.1/24")
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect("10.0.1.1", "10.0.2.1")
        assert running.ask("endpoint", "del", "10.0.1.1").returncode == 0
        assert host.table == {"10.0.2.1"}
        host.ip("addr add 10.0.3.1/24 dev a")
        host.expect("10.0.2.1", "10.0.3.1")
        # The address goes and comes back.
        host.ip("addr del 10.0.1.1/24 dev a")
        host.expect("10.0.2.1", "10.0.3.1")
        host.ip("addr add 10.0.1.1/24 dev a")
        host.expect("10.0.1.1", "10.0.2.1", "10.0.3.1")
        assert running.ask("endpoint", "flush").returncode == 0
        assert host.table == set()
        host.ip("addr add 10.0.4.1/24 dev a")
        host.expect("10.0.4.1")
        # A reload starts afresh; and past the daemon nobody declines anything.
        assert running.ask("reload").returncode == 0
        host.expect("10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.4.1")
        host.ip("mptcp endpoint flush", "addr add 10.0.5.1/24 dev a")
        host.expect(*[f"10.0.{n}.1" for n in range(1, 6)])


def room() -> int:
    """How many endpoints a table holds."""
    with plugin_host() as other:
        other.batch((f"mptcp endpoint add 10.0.{n}.1" for n in range(256)), force=True)
        return len(other.table)


def test_more_addresses_than_the_table_holds(host: PluginHost, tmp_path: Path) -> None:
    full = room()
    addresses = {f"10.{n >> 8}.{n & 255}.1" for n in range(full + 2)}
    host.veth("a")
    host.batch(f"addr add {ip}/24 dev a" for ip in addresses)
    highest = {8: 8, 255: 64}[full]
    with host.daemon(tmp_path, ADDR_ADV) as running:
        until(lambda: len(host.table) == full, "the table is full")
        assert host.limits == (highest, highest)
        left_out = addresses - host.table
        until(lambda: "table is full" in running.log, "the log says so")
        for ip in left_out:
            assert f"add endpoint {ip}" in running.log
        told = running.log.count("table is full")
        assert running.ask("reload").returncode == 0
        assert "configuration reloaded" in running.log
        assert running.log.count("table is full") == told, "it is known"
        gone = min(host.table)
        host.ip(f"addr del {gone}/24 dev a")
        until(lambda: len(host.table) == full and gone not in host.table, "another took its place")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to keep"])
def test_the_next_start_takes_over_what_was_left(
    host: PluginHost, tmp_path: Path, ending: signal.Signals
) -> None:
    host.veth("a", "10.0.1.1/24")
    host.ip("mptcp endpoint add 10.0.7.7 id 9 signal", "mptcp limits set subflows 1")
    with host.daemon(tmp_path, ADDR_ADV, "--on-exit=keep") as running:
        host.expect("10.0.1.1", "10.0.7.7")
        running.process.send_signal(ending)
        running.process.wait()
    before = host.endpoints
    assert set(before) == {"10.0.1.1", "10.0.7.7"}
    with host.daemon(tmp_path, ADDR_ADV) as running:
        assert host.endpoints == before
        assert "refused" not in running.log
        host.ip("addr del 10.0.1.1/24 dev a", "addr add 10.0.1.2/24 dev a")
        host.expect("10.0.1.2", "10.0.7.7")
        assert running.stop() == 0
    assert host.table == {"10.0.7.7"}
    assert host.limits[0] == 1


def test_endpoints_carry_subflows_and_the_last_one_is_never_taken(
    make_mptcp_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_mptcp_lab([LabPath(), LabPath()])
    host = PluginHost(f"/run/netns/{lab.client.name}")
    lab.client.sysctl("mptcp.pm_type", 0)
    raise_limits(lab.server)
    first, second = lab.paths
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect(first.client_ip, second.client_ip)
        traffic = lab.start(RequestResponse(interval_ms=INTERVAL_MS))

        def subflows() -> set[str]:
            rows = host.run("ss", "-tnHO", "state", "established").splitlines()
            return {row.split()[2].rpartition(":")[0].partition("%")[0] for row in rows}

        until(lambda: subflows() == {first.client_ip, second.client_ip}, "both paths are used")
        assert running.stop() == 0
        # One endpoint could go; the other one carries all that is left.
        assert host.table == subflows() == {first.client_ip}
        assert "has its last usable subflow on" in running.log
        traffic.stop()
    with host.daemon(tmp_path, ADDR_ADV) as running:
        host.expect(first.client_ip, second.client_ip)
        assert running.stop() == 0
    assert host.table == set()
