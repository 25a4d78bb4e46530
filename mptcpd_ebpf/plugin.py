# SPDX-License-Identifier: BSD-3-Clause
"""What a plugin author imports, and nothing else is needed."""

from mptcpd_ebpf.core.address import Network, SockAddr
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.commands import (
    AddEndpoint,
    AnnounceAddress,
    ChangeEndpoint,
    Command,
    CreateSubflow,
    Decision,
    DestroySubflow,
    FlushEndpoints,
    KernelCommand,
    ReadEndpoints,
    RemoveEndpoint,
    RequestSample,
    SetBackup,
    SetLimits,
    WakeAt,
    WithdrawAddress,
)
from mptcpd_ebpf.core.endpoints import (
    CHANGEABLE,
    HIGHEST_LIMIT,
    Endpoint,
    EndpointFlag,
    FlagNames,
    Limits,
    endpoint_flags,
)
from mptcpd_ebpf.core.events import AlarmRaised
from mptcpd_ebpf.core.joining_plugin import JoiningPlugin
from mptcpd_ebpf.core.joins import SHORT_LIFE, STRAY, Joins, Want, tell_peer
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.model import (
    Connection,
    DefaultRoute,
    Link,
    LocalAddress,
    State,
    Subflow,
    SubflowKey,
    World,
)
from mptcpd_ebpf.core.plugin import Commands, Context, Options, Plugin
from mptcpd_ebpf.core.trials import AwayPath, PathName, Trials, join_target, path_name, usual_rtt
from mptcpd_ebpf.core.units import MS, SECOND

__all__ = [
    "CHANGEABLE",
    "HIGHEST_LIMIT",
    "MS",
    "SECOND",
    "SHORT_LIFE",
    "STRAY",
    "AddEndpoint",
    "AddressIds",
    "AlarmKind",
    "AlarmRaised",
    "AnnounceAddress",
    "AwayPath",
    "ChangeEndpoint",
    "Command",
    "Commands",
    "Connection",
    "Context",
    "CreateSubflow",
    "Decision",
    "DefaultRoute",
    "DestroySubflow",
    "Endpoint",
    "EndpointFlag",
    "FlagNames",
    "FlushEndpoints",
    "JoiningPlugin",
    "Joins",
    "KernelCommand",
    "Limits",
    "Link",
    "LocalAddress",
    "Measurement",
    "Network",
    "Options",
    "PathName",
    "Plugin",
    "ReadEndpoints",
    "RemoveEndpoint",
    "RequestSample",
    "SetBackup",
    "SetLimits",
    "SockAddr",
    "State",
    "Subflow",
    "SubflowKey",
    "Trials",
    "WakeAt",
    "Want",
    "WithdrawAddress",
    "World",
    "endpoint_flags",
    "join_target",
    "path_name",
    "tell_peer",
    "usual_rtt",
]
