# SPDX-License-Identifier: BSD-3-Clause
"""Every event and command survives encoding and decoding, which recordings depend on."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.core import commands, configuration, events
from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import AnyCommand, Command, Decision
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.core.events import AnyEvent, Event
from mptcpd_ebpf.core.measurement import Measurement
from mptcpd_ebpf.core.serving import Rule

WHOLE = st.integers(-(2**63), 2**64 - 1)
# Values that JSON and a configuration can contain.
PLAIN = st.recursive(
    st.none() | st.booleans() | WHOLE | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
st.register_type_strategy(int, WHOLE)
st.register_type_strategy(SockAddr, st.builds(SockAddr, st.ip_addresses().map(str), WHOLE))
st.register_type_strategy(
    EndpointFlag, st.sets(st.sampled_from(EndpointFlag)).map(lambda flags: EndpointFlag(sum(flags)))
)
FREE_FORM: dict[type, dict[str, Any]] = {
    configuration.PluginSpec: {"options": st.dictionaries(st.text(max_size=5), PLAIN)},
    Rule: {
        "local": st.sampled_from([None, "10.0.0.1", "2001:db8::/32"]),
        "local_port": st.none() | st.integers(1, 65535) | st.lists(st.integers(1, 65535)),
        "remote": st.sampled_from([None, "192.0.2.0/24"]),
        "remote_port": st.none() | st.integers(1, 65535) | st.lists(st.integers(1, 65535)),
    },
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, within its bounds."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return st.one_of([values(one) for one in get_args(kind)])
    bounds = [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    if bounds:
        return st.integers(int(bounds[0].ge or 0), int(bounds[0].le or 0))
    return st.from_type(kind)


def records(kind: type) -> st.SearchStrategy[Any]:
    """Values of a struct with all its fields drawn, those with a default too."""
    fields = {field.name: values(field.type) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **(fields | FREE_FORM.get(kind, {})))


for _kind in (
    events.LiveConnection,
    events.ConnectionMode,
    Measurement,
    Rule,
    configuration.PluginSpec,
    configuration.CoreConfig,
    *get_args(AnyCommand),
    *get_args(AnyEvent),
):
    st.register_type_strategy(_kind, records(_kind))


def defined_in(module: Any, base: type) -> set[type]:
    found = {value for value in vars(module).values() if isinstance(value, type)}
    return {kind for kind in found if issubclass(kind, base) and kind is not base}


def test_the_unions_name_every_kind() -> None:
    assert set(get_args(AnyEvent)) == defined_in(events, Event)
    assert set(get_args(AnyCommand)) == defined_in(commands, Command)


@pytest.mark.parametrize("kind", get_args(AnyEvent))
@given(data=st.data())
def test_events(kind: type, data: st.DataObject) -> None:
    event = data.draw(st.from_type(kind))
    assert msgspec.json.decode(msgspec.json.encode(event), type=AnyEvent) == event


@pytest.mark.parametrize("kind", get_args(AnyCommand))
@given(data=st.data())
def test_commands(kind: type, data: st.DataObject) -> None:
    command = data.draw(st.from_type(kind))
    decoded = msgspec.json.decode(msgspec.json.encode(command), type=AnyCommand)
    assert (decoded, type(decoded)) == (command, kind)


@given(records(Decision))
def test_decisions(decision: Decision) -> None:
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


def test_unknown_stays_null_and_never_becomes_0() -> None:
    address = SockAddr("10.0.0.1", 1)
    bare = Measurement(at=1, token=2, local=address, remote=address)
    written = msgspec.json.decode(msgspec.json.encode(bare))
    told = {"at", "token", "local", "remote", "closed"}
    assert {value for name, value in written.items() if name not in told} == {None}
