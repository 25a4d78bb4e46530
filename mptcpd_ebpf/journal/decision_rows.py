# SPDX-License-Identifier: BSD-3-Clause
"""Rows about decisions and the states of paths that plugins report (`decisions`, `paths`)."""

from collections.abc import Callable

from mptcpd_ebpf.core.commands import Decision, ReadEndpoints, ReportPath, RequestSample
from mptcpd_ebpf.core.events import CommandAnswered
from mptcpd_ebpf.core.token import token_text
from mptcpd_ebpf.journal.changes import Changes

Describe = Callable[[Decision], str]
"""The command of a decision as one line of text."""


class DecisionRows:
    """A decision's id in the file is its own, counted on from those of earlier runs."""

    def __init__(
        self,
        changes: Changes,
        run: int,
        greatest_decision: int,
        greatest_path: int,
        describe: Describe,
    ) -> None:
        self._changes = changes
        self._run = run
        self._first = greatest_decision
        self._path_id = greatest_path
        self._describe = describe

    def decided(self, decision: Decision, t: float) -> None:
        """A decision, if it is one that the journal keeps."""
        command = decision.command
        if isinstance(command, RequestSample | ReadEndpoints):
            return
        if isinstance(command, ReportPath):
            if not command.routine:
                self._path(decision.plugin, command, t)
            return
        token = getattr(command, "token", None)
        local, remote = getattr(command, "local", None), getattr(command, "remote", None)
        row = {
            "run": self._run,
            "t": t,
            "plugin": decision.plugin,
            "cause_event": decision.cause.event,
            "cause_rule": decision.cause.rule,
            "action": type(command).__name__,
            "description": self._describe(decision),
            "token": None if token is None else token_text(token),
            "local": str(local) if local is not None else None,
            "remote": str(remote) if remote is not None else None,
            "local_ip": local.ip if local is not None else getattr(command, "local_ip", None),
            "remote_ip": remote.ip if remote is not None else None,
            "reason": command.reason,
            "routine": command.routine,
            "refused": decision.refused,
        }
        self._changes.insert("decisions", self._first + decision.id, row)

    def answered(self, event: CommandAnswered, t: float) -> None:
        """The kernel's answer to a decision."""
        row = {"answered": t, "errno": event.errno, "explanation": event.explanation or None}
        self._changes.update("decisions", self._first + event.decision_id, row)

    def _path(self, plugin: str, report: ReportPath, t: float) -> None:
        self._path_id += 1
        row = {
            "run": self._run,
            "t": t,
            "plugin": plugin,
            "interface": report.interface,
            "local_ip": report.local_ip,
            "remote_ip": report.remote_ip,
            "state": report.state.value if report.state is not None else None,
            "reason": report.reason,
            "lasted_s": report.lasted / 1e9 if report.lasted else None,
        }
        self._changes.insert("paths", self._path_id, row)
