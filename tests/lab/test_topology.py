# SPDX-License-Identifier: BSD-3-Clause
"""Topologies: names, addresses and routes, and what cannot be built."""

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab import Bottleneck, LabError, Path, Topology
from mptcpd_ebpf.lab.topology import checked, network_of, parse
from mptcpd_ebpf.lab.wiring import Plan


def plan(*paths: Path, **fields: Any) -> Plan:
    return Plan(checked(Topology(paths=list(paths), **fields)))


def addresses(lines: list[str]) -> Iterator[str]:
    for line in lines:
        words = line.split()
        if words[:2] == ["address", "replace"]:
            yield words[2].partition("/")[0]


def test_paths_are_named_by_their_number_unless_they_have_a_name() -> None:
    paths = checked(Topology(paths=[Path(), Path(name="lte"), Path()])).paths
    assert [path.name for path in paths] == ["path0", "lte", "path2"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"paths": []}, "one to 8 paths, not 0"),
        ({"paths": [{}] * 9}, "one to 8 paths, not 9"),
        ({"paths": [{"name": "a"}, {"name": "a"}]}, "path 'a': the name is taken"),
        ({"paths": [{"name": "0a"}]}, "path '0a': a name is a letter, then"),
        ({"paths": [{"name": "a" * 16}]}, "up to 14 letters"),
        ({"paths": [{"bottleneck": "isp"}]}, "there is no bottleneck 'isp'"),
        ({"bottlenecks": [{"name": "isp"}]}, "isp: its paths must join the same two hosts"),
        ({"paths": [{"between": ["client", "tv"]}]}, "there is no host 'tv'"),
        ({"paths": [{"between": ["client", "client"]}]}, "joins client with itself"),
        ({"paths": [{"up": {"delay_ms": -2}}]}, "path0.up: delay_ms is -2"),
        ({"paths": [{"dealy_ms": 2}]}, r"unknown field `dealy_ms` - at `\$.paths\[0\]`"),
        ({"ip": "5"}, r"Invalid enum value '5' - at `\$.ip`"),
        ({"schedule": [{"at": 1, "fault": "fire"}]}, r"schedule\[0\]: no fault 'fire'"),
        ({"hosts": ["client", "server", "client"]}, "host 'client': the name is taken"),
        ("words", "Expected `object`, got `str`"),
    ],
)
def test_what_cannot_be_built_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(LabError, match=words):
        parse(fields)


def test_the_environment_names_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPTCP_LAB_BACKEND", "nfqueue")
    assert parse({}).backend == "nfqueue"
    assert parse({"backend": "netem"}).backend == "netem"
    monkeypatch.setenv("MPTCP_LAB_BACKEND", "nfq")
    with pytest.raises(LabError, match="MPTCP_LAB_BACKEND is 'nfq', none of auto, netem"):
        parse({})


SHAPES = st.lists(
    st.builds(
        Path,
        nat=st.booleans(),
        bottleneck=st.sampled_from([None, "isp"]),
    )
    | st.builds(Path, between=st.just(("phone", "server")), nat=st.booleans()),
    min_size=1,
    max_size=8,
)


@given(SHAPES, st.sampled_from(["4", "6", "both"]))
def test_no_address_is_given_twice_and_every_gateway_is_known(paths: list[Path], ip: Any) -> None:
    shared = any(path.bottleneck for path in paths)
    necks = [Bottleneck(name="isp")] if shared else []
    made = plan(*paths, bottlenecks=necks, hosts=["client", "server", "phone"], ip=ip)
    machines = [made.host_lines(host) for host in made.topology.hosts]
    machines += [made.router_lines(index) for index in range(len(paths))]
    machines += list(made.neck_lines("isp")) if shared else []
    given_out = [address for lines in machines for address in addresses(lines)]
    assert len(given_out) == len(set(given_out))
    for lines in machines:
        links = {network_of(address) for address in addresses(lines)}
        words = [line.split() for line in lines]
        neighbours = {line[2] for line in words if line[0] == "neighbour"}
        for line in words:
            if "via" in line:
                gateway = line[line.index("via") + 1]
                assert network_of(gateway) in links
                assert gateway in given_out
                assert gateway in neighbours


def test_a_network_holds_its_addresses() -> None:
    for ip in ("10.3.2.1", "fd00:3:2::1"):
        assert ipaddress.ip_address(ip) in ipaddress.ip_network(network_of(ip))
