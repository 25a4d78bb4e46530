# SPDX-License-Identifier: BSD-3-Clause
"""A plugin for ours that writes its calls to a file: `recorder.c` is mptcpd's counterpart.

It is copied under the name of the plugin.  Plugins should write no output; this one does, for the
comparison.
"""

import os
from pathlib import Path

from mptcpd_ebpf.plugin import (
    Connection,
    Context,
    LocalAddress,
    Plugin,
    SockAddr,
    Subflow,
)

NAME = Path(__file__).stem


def record(words: str) -> tuple[()]:
    with open(os.environ["RECORD"], "a") as file:
        file.write(f"{NAME}: {words}\n")
    return ()


def ends(what: Connection | Subflow) -> str:
    return f"{what.local.ip} {what.remote.ip}"


class Recorder(Plugin):
    name = NAME

    def new_connection(self, ctx: Context, connection: Connection) -> tuple[()]:
        return record(f"new_connection {ends(connection)} server_side={connection.server_side:d}")

    def connection_established(self, ctx: Context, connection: Connection) -> tuple[()]:
        side = connection.server_side
        return record(f"connection_established {ends(connection)} server_side={side:d}")

    def connection_closed(self, ctx: Context, connection: Connection) -> tuple[()]:
        return record("connection_closed")

    def new_address(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr
    ) -> tuple[()]:
        return record(f"new_address {address.ip} id={address_id}")

    def address_removed(
        self, ctx: Context, connection: Connection, address_id: int, address: SockAddr | None
    ) -> tuple[()]:
        return record(f"address_removed id={address_id}")

    def new_subflow(self, ctx: Context, connection: Connection, subflow: Subflow) -> tuple[()]:
        return record(f"new_subflow {ends(subflow)} backup={subflow.backup:d}")

    def subflow_closed(self, ctx: Context, connection: Connection, subflow: Subflow) -> tuple[()]:
        why = f"error={subflow.error}"
        if subflow.reset_reason is not None:
            why += f" reset_reason={subflow.reset_reason}"
        return record(f"subflow_closed {ends(subflow)} backup={subflow.backup:d} {why}")

    def subflow_priority(self, ctx: Context, connection: Connection, subflow: Subflow) -> tuple[()]:
        return record(f"subflow_priority {ends(subflow)} backup={subflow.backup_by_peer:d}")

    def new_local_address(self, ctx: Context, address: LocalAddress) -> tuple[()]:
        return record(f"new_local_address {address.ip}")
