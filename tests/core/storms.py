# SPDX-License-Identifier: BSD-3-Clause
"""Random events of a small world with few tokens and addresses, so that they collide often."""

from hypothesis import strategies as st

from mptcpd_ebpf.core import events as ev
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.configuration import CoreConfig, PluginSpec
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from tests.core.scenario import FIBRE, RADIO, SATELLITE, SERVER, START

LOCALS = st.sampled_from([FIBRE[0], RADIO[0], SATELLITE[0]])
REMOTES = st.just(SERVER) | st.just(SockAddr("10.0.9.2", 443))
TOKENS = st.integers(1, 3)
IDS = st.none() | st.integers(0, 3)
ERRORS = st.sampled_from([0, 0, 0, 104, 110])
IF_INDEXES = st.integers(2, 4)

MEASUREMENTS = st.builds(
    Measurement,
    at=st.integers(START - 5, START + 5),
    token=TOKENS,
    local=LOCALS,
    remote=st.just(SERVER),
    local_id=IDS,
    cookie=st.none() | st.integers(1, 2),
    state=st.sampled_from([None, 1, 1, 2, 7, 8]),
    backup=st.none() | st.booleans(),
    srtt_us=st.none() | st.integers(0, 10**6),
    stalled_us=st.none() | st.integers(0, 10**6),
    connection_bytes_acked=st.none() | st.integers(0, 10**9),
    closed=st.booleans(),
)

LINKS = st.builds(
    ev.LinkChanged,
    if_index=IF_INDEXES,
    name=st.sampled_from(["wan0", "lte0"]),
    up=st.booleans(),
    running=st.booleans(),
)
ADDRESSES = st.builds(
    ev.LocalAddressChanged,
    if_index=IF_INDEXES,
    ip=LOCALS.map(lambda local: local.ip),
    prefix_len=st.just(24),
    tentative=st.booleans(),
)
ROUTES = st.builds(ev.DefaultRouteAdded, if_index=IF_INDEXES, ipv6=st.booleans())

RELOADED = ev.Configured(
    config=CoreConfig(default_plugin="vandal", destructive_per_second=10**6),
    plugins=[PluginSpec(name="vandal", digest="tests.core.test_storms.Vandal")],
)
EVENTS: st.SearchStrategy[ev.Event] = st.one_of(
    st.builds(ev.ConnectionCreated, token=TOKENS, local=LOCALS, remote=REMOTES),
    st.builds(ev.ConnectionEstablished, token=TOKENS, local=LOCALS, remote=REMOTES),
    st.builds(ev.ConnectionClosed, token=TOKENS),
    st.builds(
        ev.SubflowEstablished,
        token=TOKENS,
        local=LOCALS,
        remote=REMOTES,
        local_id=IDS,
        backup=st.booleans(),
        error=ERRORS,
    ),
    st.builds(
        ev.SubflowClosed, token=TOKENS, local=LOCALS, remote=REMOTES, local_id=IDS, error=ERRORS
    ),
    st.builds(ev.SubflowPriority, token=TOKENS, local=LOCALS, remote=REMOTES, backup=st.booleans()),
    st.builds(ev.AddressAnnounced, token=TOKENS, address_id=st.integers(0, 2), ip=st.just("::1")),
    st.builds(ev.AddressWithdrawn, token=TOKENS, address_id=st.integers(0, 2)),
    st.builds(ev.ListenerCreated, local=LOCALS),
    st.builds(ev.ListenerClosed, local=LOCALS),
    LINKS,
    st.builds(ev.LinkRemoved, if_index=IF_INDEXES),
    ADDRESSES,
    st.builds(ev.LocalAddressRemoved, if_index=IF_INDEXES, ip=LOCALS.map(lambda local: local.ip)),
    ROUTES,
    st.builds(ev.DefaultRouteRemoved, if_index=IF_INDEXES, ipv6=st.booleans()),
    st.builds(ev.AlarmRaised, kind=st.sampled_from(AlarmKind), measurement=MEASUREMENTS),
    st.builds(ev.SubflowEnded, measurement=MEASUREMENTS),
    st.builds(ev.Sampled, measurements=st.lists(MEASUREMENTS, max_size=4)),
    st.builds(ev.Tick),
    st.builds(ev.CommandAnswered, decision_id=st.integers(1, 40), errno=st.sampled_from([0, 22])),
    st.builds(ev.EventsLost, source=st.just("netlink")),
    st.builds(
        ev.Resynchronised,
        connections=st.lists(
            st.builds(ev.LiveConnection, token=TOKENS, local=LOCALS, remote=REMOTES), max_size=3
        ),
        subflows=st.lists(MEASUREMENTS, max_size=4),
        links=st.lists(LINKS, max_size=2),
        addresses=st.lists(ADDRESSES, max_size=2),
        routes=st.lists(ROUTES, max_size=2),
    ),
    st.just(RELOADED),
    st.builds(ev.Paused),
    st.builds(ev.Resumed),
)
