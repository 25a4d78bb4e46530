# SPDX-License-Identifier: BSD-3-Clause
"""Path-manager commands as bytes, with pyroute2's declared messages as the oracle.

pyroute2 knows commands 1 to 7; the others are checked attribute by attribute, and
tests/netns holds all of them against the kernel.
"""

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.mptcp import mptcp_msg

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    ChangeEndpoint,
    CreateSubflow,
    DestroySubflow,
    FlushEndpoints,
    KernelCommand,
    RemoveEndpoint,
    SetBackup,
    SetLimits,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import EndpointFlag
from mptcpd_ebpf.kernel import pm
from mptcpd_ebpf.kernel.netlink import HEADER, Pending, Reply, Request, attributes, number
from mptcpd_ebpf.kernel.pm_errors import _BY_ERRNO, _BY_MESSAGE, _WHAT, explain

IP = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str).filter(lambda ip: not ip.startswith("::ffff:")),
)
ID = st.integers(0, 255)
PORT = st.integers(0, 65535)
TOKEN = st.integers(0, 2**32 - 1)
INDEX = st.integers(0, 2**31 - 1)
FLAGS = st.integers(0, 63).map(EndpointFlag)
ADDRESS = st.builds(SockAddr, IP, st.integers(1, 65535))
ENDPOINT_COMMANDS: st.SearchStrategy[KernelCommand] = st.one_of(
    st.builds(
        AddEndpoint,
        ip=IP,
        address_id=ID,
        flags=FLAGS,
        if_index=INDEX,
        port=PORT,
        reason=st.just(""),
    ),
    st.builds(RemoveEndpoint, ip=IP | st.just(""), address_id=ID, reason=st.just("")),
    st.builds(ChangeEndpoint, ip=IP, address_id=ID, flags=FLAGS, reason=st.just("")),
    st.builds(FlushEndpoints, reason=st.just("")),
    st.builds(
        SetLimits,
        subflows=st.integers(0, 8),
        add_addr_accepted=st.integers(0, 8),
        reason=st.just(""),
    ),
)


def request_of(command: KernelCommand) -> Request:
    return next(pm.command(30, command))


def by_oracle(request: Request) -> mptcp_msg:
    message = mptcp_msg(Pending(request, 1).encode())
    message.decode()
    return message


def inside(data: bytes) -> dict[int, bytes]:
    return attributes(data, 0, len(data))


@given(ENDPOINT_COMMANDS)
def test_endpoint_commands_are_what_pyroute2_reads(command: KernelCommand) -> None:
    message = by_oracle(request_of(command))
    assert message["version"] == pm.VERSION
    kinds = {
        AddEndpoint: pm.Cmd.ADD_ADDR,
        RemoveEndpoint: pm.Cmd.DEL_ADDR,
        ChangeEndpoint: pm.Cmd.SET_FLAGS,
        FlushEndpoints: pm.Cmd.FLUSH_ADDRS,
        SetLimits: pm.Cmd.SET_LIMITS,
    }
    assert message["cmd"] == kinds[type(command)]
    if isinstance(command, SetLimits):
        assert message.get_attr("MPTCP_PM_ATTR_SUBFLOWS") == command.subflows
        assert message.get_attr("MPTCP_PM_ATTR_RCV_ADD_ADDRS") == command.add_addr_accepted
        return
    nested = message.get_attr("MPTCP_PM_ATTR_ADDR")
    if isinstance(command, FlushEndpoints):
        assert nested is None
        return
    assert isinstance(command, AddEndpoint | RemoveEndpoint | ChangeEndpoint)

    def told(name: str) -> object:
        return nested.get_attr(f"MPTCP_PM_ADDR_ATTR_{name}")

    v6 = ":" in command.ip
    if command.ip:
        assert told("FAMILY") == (socket.AF_INET6 if v6 else socket.AF_INET)
        raw = told("ADDR6" if v6 else "ADDR4")
        assert ipaddress.ip_address(str(raw)) == ipaddress.ip_address(command.ip)
    if isinstance(command, AddEndpoint):
        assert told("ID") == (command.address_id or None)
        # The oracle leaves this one as bytes in hex.
        index = ":".join(f"{byte:02x}" for byte in struct.pack("=i", command.if_index))
        assert told("IF_IDX") == (index if command.if_index else None)
        assert told("PORT") == (command.port or None)
    else:
        assert told("ID") == command.address_id
    if not isinstance(command, RemoveEndpoint):
        assert told("FLAGS") == command.flags


@given(TOKEN, IP, ID, ADDRESS, ID, INDEX, st.booleans())
def test_create_subflow(
    token: int, ip: str, local_id: int, remote: SockAddr, remote_id: int, index: int, backup: bool
) -> None:
    cmd, body = pm.encode(
        CreateSubflow(
            token=token,
            local_ip=ip,
            local_id=local_id,
            remote=remote,
            remote_id=remote_id,
            if_index=index,
            backup=backup,
            reason="",
        )
    )
    found = inside(body)
    assert cmd == pm.Cmd.SUBFLOW_CREATE
    assert number(found[pm.Attr.TOKEN]) == token
    local = pm.decode_endpoint(found[pm.Attr.ADDR])
    assert (local.ip, local.address_id, local.if_index, local.port) == (
        str(ipaddress.ip_address(ip)),
        local_id,
        index,
        0,
    )
    assert local.flags == (EndpointFlag.BACKUP if backup else 0)
    far = pm.decode_endpoint(found[pm.Attr.ADDR_REMOTE])
    assert (far.ip, far.port, far.address_id) == (*remote, remote_id)


@given(TOKEN, ADDRESS, ADDRESS, st.booleans())
def test_both_ends_of_a_subflow_are_named_with_their_ports(
    token: int, local: SockAddr, remote: SockAddr, backup: bool
) -> None:
    destroy = DestroySubflow(token=token, local=local, remote=remote, reason="")
    change = SetBackup(token=token, local=local, remote=remote, backup=backup, reason="")
    for command, cmd in ((destroy, pm.Cmd.SUBFLOW_DESTROY), (change, pm.Cmd.SET_FLAGS)):
        sent, body = pm.encode(command)
        found = inside(body)
        assert sent == cmd
        assert number(found[pm.Attr.TOKEN]) == token
        for kind, address in ((pm.Attr.ADDR, local), (pm.Attr.ADDR_REMOTE, remote)):
            nested = inside(found[kind])
            v6 = ":" in address.ip
            raw = nested[pm.AddrAttr.ADDR6 if v6 else pm.AddrAttr.ADDR4]
            assert ipaddress.ip_address(raw) == ipaddress.ip_address(address.ip)
            assert number(nested[pm.AddrAttr.PORT]) == address.port
    flags = inside(inside(pm.encode(change)[1])[pm.Attr.ADDR])[pm.AddrAttr.FLAGS]
    assert number(flags) == (EndpointFlag.BACKUP if backup else 0)


@given(TOKEN, IP, ID, PORT)
def test_announce_and_withdraw(token: int, ip: str, address_id: int, port: int) -> None:
    cmd, body = pm.encode(
        AnnounceAddress(token=token, ip=ip, address_id=address_id, port=port, reason="")
    )
    announced = pm.decode_endpoint(inside(body)[pm.Attr.ADDR])
    assert cmd == pm.Cmd.ANNOUNCE
    assert (announced.address_id, announced.port) == (address_id, port)
    assert announced.flags == EndpointFlag.SIGNAL
    cmd, body = pm.encode(WithdrawAddress(token=token, address_id=address_id, reason=""))
    assert cmd == pm.Cmd.REMOVE
    assert (number(inside(body)[pm.Attr.TOKEN]), number(inside(body)[pm.Attr.LOC_ID])) == (
        token,
        address_id,
    )


@given(st.lists(st.tuples(IP, st.integers(1, 255), FLAGS, INDEX, PORT)))
def test_endpoints_written_by_pyroute2_are_read(
    rows: list[tuple[str, int, EndpointFlag, int, int]],
) -> None:
    parts = []
    for ip, address_id, flags, if_index, port in rows:
        v6 = ":" in ip
        message = mptcp_msg()
        message["cmd"], message["version"] = pm.Cmd.GET_ADDR, pm.VERSION
        nested = [
            ["MPTCP_PM_ADDR_ATTR_FAMILY", socket.AF_INET6 if v6 else socket.AF_INET],
            ["MPTCP_PM_ADDR_ATTR_ADDR6" if v6 else "MPTCP_PM_ADDR_ATTR_ADDR4", ip],
            ["MPTCP_PM_ADDR_ATTR_ID", address_id],
            ["MPTCP_PM_ADDR_ATTR_FLAGS", int(flags)],
            ["MPTCP_PM_ADDR_ATTR_IF_IDX", struct.pack("=i", if_index)],
            ["MPTCP_PM_ADDR_ATTR_PORT", port],
        ]
        message["attrs"] = [["MPTCP_PM_ATTR_ADDR", {"attrs": nested}]]
        message.encode()
        parts.append(bytes(message.data)[HEADER.size :])
    operation = pm.endpoints(30)
    assert next(operation).dump
    with pytest.raises(StopIteration) as end:
        operation.send(Reply(0, "", parts))
    _answer, found = end.value.value
    assert [(e.ip, e.address_id, e.flags, e.if_index, e.port) for e in found] == rows


def test_a_refused_destroy_is_tried_with_mapped_addresses() -> None:
    """Once, for IPv4 only, and only if the kernel knows no such subflow."""

    def second(ip: str, code: int) -> Request | None:
        address = SockAddr(ip, 1)
        operation = pm.command(
            30, DestroySubflow(token=1, local=address, remote=address, reason="")
        )
        next(operation)
        try:
            return operation.send(Reply(code, "", []))
        except StopIteration:
            return None

    again = second("192.0.2.1", 3)
    assert again is not None
    assert socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1") in again.body
    assert second("192.0.2.1", 0) is None
    assert second("192.0.2.1", 22) is None
    assert second("2001:db8::1", 3) is None


def test_attribute_names() -> None:
    assert pm.attribute_name([pm.Attr.ADDR, pm.AddrAttr.IF_IDX]) == "addr.if_idx"
    assert pm.attribute_name([pm.Attr.TOKEN]) == "token"
    assert pm.attribute_name([99, 98]) == "99.98"


def test_success_needs_no_words() -> None:
    assert explain(pm.Answer(pm.Cmd.ANNOUNCE, Reply(0, "", []))) == ""


@pytest.mark.parametrize(("cmd", "code"), _BY_ERRNO)
def test_an_errno_is_explained_in_one_line(cmd: pm.Cmd, code: int) -> None:
    words = explain(pm.Answer(cmd, Reply(code, "", [])))
    assert words.startswith(_WHAT[cmd])
    assert words.endswith(_BY_ERRNO[cmd, code])
    assert "\n" not in words


@pytest.mark.parametrize(("message", "meaning"), _BY_MESSAGE)
def test_the_kernels_own_words_come_first(message: str, meaning: str) -> None:
    words = explain(pm.Answer(pm.Cmd.SET_FLAGS, Reply(22, f"{message} (addr)", [])))
    assert words == f"changing the flags: EINVAL (Invalid argument): {message} (addr); {meaning}"


def test_every_command_has_words() -> None:
    assert set(_WHAT) == set(pm.Cmd)
    unknown = explain(pm.Answer(pm.Cmd.ADD_ADDR, Reply(9999, "", [])))
    assert unknown == "adding the endpoint: 9999 (Unknown error 9999)"
