# SPDX-License-Identifier: BSD-3-Clause
"""What a plugin author imports, and nothing else is needed."""

from mptcpd_ebpf.core.address import Network, SockAddr
from mptcpd_ebpf.core.address_ids import AddressIds
from mptcpd_ebpf.core.alarm_text import alarm_text
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
from mptcpd_ebpf.core.demotions import Demotions
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
from mptcpd_ebpf.core.joining_plugin import JoiningPlugin, same_family
from mptcpd_ebpf.core.measurement import AlarmKind, Measurement
from mptcpd_ebpf.core.model import (
    MS,
    SECOND,
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
from mptcpd_ebpf.core.reconciler import SHORT_LIFE, STRAY, Reconciler, Want, mark, tell_peer
from mptcpd_ebpf.core.roles import Answer, Preset, answer
from mptcpd_ebpf.core.trials import AwayPath, PathName, Trials, join_target, path_name, usual_rtt

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
    "Answer",
    "AwayPath",
    "ChangeEndpoint",
    "Command",
    "Commands",
    "Connection",
    "Context",
    "CreateSubflow",
    "Decision",
    "DefaultRoute",
    "Demotions",
    "DestroySubflow",
    "Endpoint",
    "EndpointFlag",
    "FlagNames",
    "FlushEndpoints",
    "JoiningPlugin",
    "KernelCommand",
    "Limits",
    "Link",
    "LocalAddress",
    "Measurement",
    "Network",
    "Options",
    "PathName",
    "Plugin",
    "Preset",
    "ReadEndpoints",
    "Reconciler",
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
    "alarm_text",
    "answer",
    "endpoint_flags",
    "join_target",
    "mark",
    "path_name",
    "same_family",
    "tell_peer",
    "usual_rtt",
]
