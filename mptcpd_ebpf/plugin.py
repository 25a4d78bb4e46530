# SPDX-License-Identifier: BSD-3-Clause
"""What a plugin author imports, and nothing else is needed."""

from mptcpd_ebpf.core.address import SockAddr
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    ChangeEndpoint,
    Command,
    CreateSubflow,
    Decision,
    DestroySubflow,
    EndpointFlag,
    FlushEndpoints,
    RemoveEndpoint,
    RequestSample,
    SetBackup,
    SetLimits,
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.model import (
    Connection,
    DefaultRoute,
    Link,
    LocalAddress,
    State,
    Subflow,
    World,
)
from mptcpd_ebpf.core.plugin import Commands, Context, Options, Plugin

__all__ = [
    "AddEndpoint",
    "AddressIds",
    "AlarmKind",
    "AlarmRaised",
    "AnnounceAddress",
    "ChangeEndpoint",
    "Command",
    "Commands",
    "Connection",
    "Context",
    "CreateSubflow",
    "Decision",
    "DefaultRoute",
    "DestroySubflow",
    "EndpointFlag",
    "FlushEndpoints",
    "Link",
    "LocalAddress",
    "Measurement",
    "Options",
    "Plugin",
    "RemoveEndpoint",
    "RequestSample",
    "SetBackup",
    "SetLimits",
    "SockAddr",
    "State",
    "Subflow",
    "WakeAt",
    "WithdrawAddress",
    "World",
]
