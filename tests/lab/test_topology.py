# SPDX-License-Identifier: BSD-3-Clause
"""Topologies: names, addresses and routes, and the errors of invalid ones."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.lab import Bottleneck, LabError, Path, Step, Topology
from mptcpd_ebpf.lab.file import loads, parse
from mptcpd_ebpf.lab.schedule import FAULTS
from mptcpd_ebpf.lab.topology import named, network_of
from mptcpd_ebpf.lab.wiring import Plan


def plan(*paths: Path, **fields: Any) -> Plan:
    return Plan(parse(Topology(paths=list(paths), **fields)))


def addresses(lines: list[str]) -> Iterator[str]:
    for line in lines:
        words = line.split()
        if words[:2] == ["address", "replace"]:
            yield words[2].partition("/")[0]


def test_paths_are_named_by_their_number_unless_they_have_a_name() -> None:
    paths = named(Topology(paths=[Path(), Path(name="lte"), Path()])).paths
    assert [path.name for path in paths] == ["path0", "lte", "path2"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"paths": []}, "paths: a lab has one to 8 paths, not 0"),
        ({"paths": [{}] * 9}, "paths: a lab has one to 8 paths, not 9"),
        ({"paths": [{"name": "a"}, {"name": "a"}]}, r"paths[1].name: the name 'a' is taken"),
        ({"paths": [{}, {"name": "path0"}]}, r"paths[1].name: the name 'path0' is taken"),
        ({"paths": [{"name": "0a"}]}, "paths[0].name: '0a': a name is a letter, then"),
        ({"paths": [{"name": "a" * 16}]}, "up to 14 letters"),
        ({"paths": [{"name": "lo"}]}, "paths[0].name: 'lo' is the kernel's own name"),
        (
            {"paths": [{"name": "far", "bottleneck": "x"}], "bottlenecks": [{"name": "x"}]},
            "paths[0].name: 'far' is taken by the bottleneck's own interface",
        ),
        (
            {"paths": [{"bottleneck": "x"}], "bottlenecks": [{"name": "default"}]},
            "bottlenecks[0].name: 'default' is the kernel's own name",
        ),
        ({"paths": [{"bottleneck": "isp"}]}, "there is no bottleneck 'isp'; there are none"),
        ({"bottlenecks": [{"name": "isp"}]}, "bottlenecks[0]: no path goes through it"),
        (
            {
                "hosts": ["client", "server", "tv"],
                "paths": [
                    {"bottleneck": "isp"},
                    {"bottleneck": "isp", "between": ["tv", "server"]},
                ],
                "bottlenecks": [{"name": "isp"}],
            },
            "bottlenecks[0]: its paths must join the same two hosts",
        ),
        (
            {"paths": [{"between": ["client", "tv"]}]},
            "paths[0].between: there is no host 'tv' (there are client, server)",
        ),
        ({"hosts": ["a", "b"], "paths": [{}]}, "say which two it joins, as in between: [a, b]"),
        ({"paths": [{"between": ["client", "client"]}]}, "joins client with itself"),
        ({"paths": [{"delay_ms": 70_000}]}, "paths[0].delay_ms: 70000 is not in 0…60000"),
        ({"paths": [{"up": {"delay_ms": -2}}]}, "paths[0].up.delay_ms: -2 is not in"),
        ({"paths": [{"up": {"dely_ms": 2}}]}, "paths[0].up.dely_ms: unknown key; did you mean"),
        ({"paths": [{"jitter_ms": 2}]}, "paths[0].jitter_ms: 2 is above delay_ms, 0"),
        (
            {"paths": [{"delay_ms": 5, "jitter_ms": 5, "down": {"delay_ms": 1}}]},
            "paths[0].down.jitter_ms: 5 is above delay_ms, 1",
        ),
        (
            {"paths": [{"burst": {"enter_percent": 120, "leave_percent": 1}}]},
            "paths[0].burst.enter_percent: 120 is not in 0…100",
        ),
        (
            {"paths": [{"burst": {"enter_percnt": 1, "leave_percent": 1}}]},
            "paths[0].burst.enter_percnt: unknown key; did you mean 'enter_percent'?",
        ),
        ({"paths": [{"dealy_ms": 2}]}, "paths[0].dealy_ms: unknown key; did you mean 'delay_ms'?"),
        ({"ip": "5"}, "ip: '5' is none of 4, 6, both"),
        ({"hosts": ["client", "server", "client"]}, "hosts[2]: the name 'client' is taken"),
        ({"hosts": ["client", "server", "neck-a"]}, "hosts[2]: 'neck-a': this prefix is reserved"),
        ("words", "topology: expected keys and values"),
    ],
)
def test_invalid_topologies_are_refused(fields: Any, words: str) -> None:
    with pytest.raises(LabError, match=re.escape(words)):
        parse(fields)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"at": 1}, "schedule[0]: give either set or fault"),
        ({"at": 1, "fault": "heal", "set": {"delay_ms": 1}}, "give either set or fault"),
        ({"fault": "heal"}, "schedule[0]: missing: at"),
        ({"at": -1, "fault": "heal"}, "schedule[0].at: -1 is not in 0…86400"),
        ({"at": float("inf"), "fault": "heal"}, "schedule[0].at: inf is not in"),
        ({"at": float("nan"), "fault": "heal"}, "schedule[0].at: nan is not in"),
        ({"at": 1, "fault": "fire"}, "schedule[0].fault: there is no fault 'fire'; there are"),
        ({"at": 1, "fault": "blakhole"}, "did you mean 'blackhole'?"),
        ({"at": 1, "path": "dsl", "fault": "heal"}, "there is no path 'dsl'; there are lte"),
        ({"at": 1, "path": 2, "fault": "heal"}, "schedule[0].path: there is no path 2"),
        ({"at": 1, "path": "isp", "fault": "router-off"}, "it has blackhole, heal"),
        ({"at": 1, "fault": "expire-nat"}, "schedule[0].fault: the path has no NAT"),
        ({"at": 1, "fault": "drop-mptcp"}, "schedule[0].options: say which to drop: mp-capable"),
        (
            {"at": 1, "fault": "drop-mptcp", "options": ["dss", "mp-jion"]},
            "schedule[0].options[1]: there is no MPTCP option 'mp-jion'",
        ),
        ({"at": 1, "fault": "heal", "options": ["dss"]}, "options: heal has no options"),
        ({"at": 1, "fault": "heal", "direction": "up"}, "direction: heal has no direction"),
        ({"at": 1, "fault": "heal", "direction": "in"}, "'in' is none of up, down, both"),
        ({"at": 1, "fault": "router-off", "end": "server"}, "end: router-off has no end"),
        ({"at": 1, "set": {"delay_ms": "soon"}}, "schedule[0].set.delay_ms: expected a number"),
        ({"at": 1, "set": {"los": 3}}, "schedule[0].set.los: unknown key"),
        ({"at": 1, "set": {"loss_percent": 101}}, "schedule[0].set.loss_percent: 101 is not"),
        ({"at": 1, "set": {"jitter_ms": 5}}, "schedule[0].set.jitter_ms: 5 is above delay_ms, 3"),
    ],
)
def test_impossible_steps_are_refused(step: Any, words: str) -> None:
    topology = {
        "paths": [{"name": "lte", "delay_ms": 3, "bottleneck": "isp"}],
        "bottlenecks": [{"name": "isp"}],
        "schedule": [step],
    }
    with pytest.raises(LabError, match=re.escape(words)):
        parse(topology)


def test_steps_are_checked_in_their_order() -> None:
    slow, jitter = {"set": {"delay_ms": 20}}, {"set": {"jitter_ms": 15}}
    assert parse({"schedule": [{"at": 2, **jitter}, {"at": 1, **slow}]}).schedule
    healed = [{"at": 1, **slow}, {"at": 2, "fault": "heal"}, {"at": 3, **jitter}]
    with pytest.raises(LabError, match=r"schedule\[2\]\.set\.jitter_ms: 15 is above delay_ms, 0"):
        parse({"schedule": healed})


def test_all_mistakes_of_a_file_are_reported_with_their_places() -> None:
    text = """\
hosts: [a, b]
paths:
  - name: fibre
    delay_ms: soon
    up: {lss_percent: 3}
  - {name: lo, between: [a, tv], jitter_ms: 4}
schedule:
  - {at: .inf, path: fibre, fault: heal}
  - {at: 1, path: dsl, set: {delay_ms: "3"}}
  - {at: 2, fault: fire}
  - {fault: heal}
"""
    with pytest.raises(LabError) as caught:
        loads(text, "lab.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} mistakes in lab.yaml:"
    for line, start in zip(
        lines,
        [
            "lab.yaml:3:5: paths[0].between: there is no host 'client' (there are a, b); say",
            "lab.yaml:4:5: paths[0].delay_ms: expected a number, got text",
            "lab.yaml:5:10: paths[0].up.lss_percent: unknown key; did you mean",
            "lab.yaml:6:6: paths[1].name: 'lo' is the kernel's own name",
            "lab.yaml:6:16: paths[1].between: there is no host 'tv' (there are a, b)",
            "lab.yaml:6:34: paths[1].jitter_ms: 4 is above delay_ms, 0",
            "lab.yaml:8:6: schedule[0].at: inf is not in 0…86400",
            "lab.yaml:9:30: schedule[1].set.delay_ms: expected a number, got text",
            "lab.yaml:10:13: schedule[2].fault: there is no fault 'fire'",
            "lab.yaml:11:5: schedule[3]: missing: at",
        ],
        strict=True,
    ):
        assert line.strip().startswith(start)


def test_one_mistake_causes_no_second_report() -> None:
    text = """\
paths:
  - {name: fibre, bottleneck: isp, nat: perhaps}
  - {name: [lte], delay_ms: 3, rate_mbit: 0}
  - {delay_ms: [3], jitter_ms: 2, between: [client, tv]}
  - {between: client}
  - wlan
bottlenecks:
  - {name: isp, rate_mbit: fast}
schedule:
  - {at: 1, path: lte, set: {jitter_ms: 2}}
  - {at: 1, path: fibre, fault: expire-nat}
"""
    with pytest.raises(LabError) as caught:
        loads(text, "lab.yaml")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()[1:]] == [
        "paths[0].nat",
        "paths[1].name",
        "paths[1].rate_mbit",
        "paths[2].delay_ms",
        "paths[2].between",
        "paths[3].between",
        "paths[4]",
        "bottlenecks[0].rate_mbit",
    ]


def test_the_environment_selects_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPTCP_LAB_BACKEND", "nfqueue")
    assert parse({}).backend == "nfqueue"
    assert parse({"backend": "netem"}).backend == "netem"
    monkeypatch.setenv("MPTCP_LAB_BACKEND", "nfq")
    with pytest.raises(LabError, match="MPTCP_LAB_BACKEND is 'nfq', none of auto, netem"):
        parse({})


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats()
    | st.sampled_from(["client", "server", "a", "far", "lo", "isp", "up", "both", *FAULTS])
    | st.text(max_size=3)
)
KEYS = st.sampled_from([*Path.__struct_fields__, *Step.__struct_fields__, "x"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=5,
)


def lists_of(fields: tuple[str, ...]) -> st.SearchStrategy[Any]:
    item = st.dictionaries(st.sampled_from([*fields, "x"]), VALUES, max_size=5)
    return st.lists(item | VALUES, max_size=4) | VALUES


DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "paths": lists_of(Path.__struct_fields__),
        "bottlenecks": lists_of(Bottleneck.__struct_fields__),
        "schedule": lists_of(Step.__struct_fields__),
        "hosts": st.lists(LEAVES, max_size=3) | VALUES,
        "ip": VALUES,
        "seed": VALUES,
        "x": VALUES,
    },
)


@given(DOCUMENTS)
def test_any_document_is_a_topology_or_refused_with_its_key(document: dict[str, Any]) -> None:
    try:
        topology = parse(document)
    except LabError as error:
        refusal = str(error)
    else:
        refusal = "topology: "
        assert 1 <= len(topology.paths) <= 8
        Plan(topology).links()
    assert "topology: " in refusal


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
def test_addresses_are_unique_and_every_gateway_is_a_neighbour(paths: list[Path], ip: Any) -> None:
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
