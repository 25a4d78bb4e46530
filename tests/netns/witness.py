# SPDX-License-Identifier: BSD-3-Clause
"""A plugin that records every handler call with its arguments and the context's state.

Plugins write no output; this one does, for tests: each call is one line of JSON in a file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.netns.own_plugins import plugin_folder
from tests.waiting import until

_SOURCE = """
import json
from dataclasses import asdict, is_dataclass

from mptcpd_ebpf.core.model import Connection, Subflow
from mptcpd_ebpf.plugin import Plugin

SUBFLOW = ("backup", "backup_by_peer", "error", "reset_reason", "reset_flags", "local_id",
           "remote_id", "if_index", "state")
CONNECTION = ("token", "server_side", "deny_join_id0", "state")


def seen(value):
    if isinstance(value, (Connection, Subflow)):
        names = CONNECTION if isinstance(value, Connection) else SUBFLOW
        plain = {name: getattr(value, name) for name in names}
        return plain | {"local": str(value.local), "remote": str(value.remote)}
    return asdict(value) if is_dataclass(value) else value if isinstance(value, int) else str(value)


def writer(handler):
    def write(self, ctx, *args):
        row = {"plugin": self.name, "handler": handler, "args": [seen(arg) for arg in args]}
        row["served"] = [connection.token for connection in ctx.served()]
        row["keep"] = ctx.keep
        with open(%(file)r, "a") as file:
            file.write(json.dumps(row) + "\\n")
        return ()
    return write


class Witness(Plugin):
    name = %(name)r
    priority = %(priority)d
    mode = "userspace"


for handler in [each for each in vars(Plugin) if not each.startswith("_")]:
    if callable(getattr(Plugin, handler)) and handler != "Options":
        setattr(Witness, handler, writer(handler))
"""

Row = dict[str, Any]


class HandlerLog:
    """The calls that the witness plugins recorded."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "handler_log"
        self._file.touch()

    def plugins(self, **priorities: int) -> Path:
        """A plugin folder with one witness per name, each with its priority."""
        sources = {
            name: _SOURCE % {"file": str(self._file), "name": name, "priority": priority}
            for name, priority in priorities.items()
        }
        return plugin_folder(self._folder, **sources)

    @property
    def rows(self) -> list[Row]:
        """All calls in their order; an incomplete last line is left out."""
        return [
            json.loads(line)
            for line in self._file.read_text().splitlines(True)
            if line[-1:] == "\n"
        ]

    def calls(self, handler: str) -> list[list[Any]]:
        """The arguments of each call of one handler."""
        return [row["args"] for row in self.rows if row["handler"] == handler]

    def until(self, handler: str, fits: Callable[..., bool] = lambda *_: True) -> list[Any]:
        """Waits for a call and returns the arguments of the first that matches."""

        def found() -> list[list[Any]]:
            return [args for args in self.calls(handler) if fits(*args)]

        def last_calls() -> str:
            rows = "\n".join(map(str, self.rows[-15:]))
            return f"such a call of {handler}; the last calls:\n{rows}"

        return until(found, last_calls)[0]
