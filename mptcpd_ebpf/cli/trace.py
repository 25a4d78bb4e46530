# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf trace TOOL``: why is this connection behaving like that?"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mptcpd_ebpf.cli import Group
from mptcpd_ebpf.core.names import name_of
from mptcpd_ebpf.kernel.errors import KernelError, MptcpMissing, NotPermitted
from mptcpd_ebpf.probes import BpfUnavailable
from mptcpd_ebpf.runtime.capabilities import may_load_bpf
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

if TYPE_CHECKING:
    from mptcpd_ebpf.trace.frame import Summary, Trace
    from mptcpd_ebpf.trace.scope import Scope


Tool = Callable[..., "Summary"]


@click.group(
    cls=Group,
    epilog="""
    \b
    Try it:
      mptcpd-ebpf trace life               connections and subflows, first SYN to end
      mptcpd-ebpf trace joins -d 30        why does the second path not come up?
      mptcpd-ebpf trace doctor             which connections are there?
      mptcpd-ebpf trace doctor 1a2b3c4d    what limits this one?

    docs/tracing.md is the guide, by symptom.
    """,
)
def command() -> None:
    """Show what MPTCP does in the kernel, as it happens.

    Each tool prints a line per event and, at the end (Ctrl-C, or -d), a summary with what it
    lost and what it cost.  Tools trace the network namespace that they run in.
    """


class _Seconds(click.FloatRange):
    """A finite time in seconds: `FloatRange` accepts ``nan`` within all bounds, and ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


def _output(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose the form of the output and its file."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Let -o replace a file that exists."),
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Also write the lines to this new file, for 'trace show'.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line."),
    ):
        function = option(function)
    return function


def _filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all tools share."""
    for option in reversed(
        (
            click.option("--pid", type=click.IntRange(min=1), help="Only this process."),
            click.option(
                "--comm",
                metavar="NAME",
                help="Only processes with this name, of which the kernel keeps 15 bytes.",
            ),
            click.option(
                "--cgroup",
                metavar="DIR",
                type=click.Path(exists=True, file_okay=False, path_type=Path),
                help="Only processes in this cgroup v2 folder and those below.",
            ),
            click.option(
                "--token", metavar="TOKEN", help="Only this connection; 'trace doctor' lists them."
            ),
            click.option(
                "--addr",
                metavar="ADDR",
                help="Only subflows with this address, prefix, or address:port.",
            ),
            click.option(
                "--netns",
                metavar="NS",
                help="Trace this network namespace: a name of 'ip netns', or a pid.",
            ),
            click.option(
                "-d", "--duration", type=_Seconds(min=0), help="End after this many seconds."
            ),
            _output,
        )
    ):
        function = option(function)
    return function


def _run(
    name: str,
    tool: Callable[[Trace, dict[str, int]], Summary],
    *,
    as_json: bool,
    output: Path | None,
    overwrite: bool,
    duration: float | None,
    netns: str | None,
    **chosen: Any,
) -> None:
    from mptcpd_ebpf.runtime import netns as namespaces
    from mptcpd_ebpf.trace.frame import Trace
    from mptcpd_ebpf.trace.instead import WITHOUT_PROGRAMS, with_alternative

    scope = _scope(**chosen)
    if netns is not None:
        namespaces.enter(netns)
    if name not in WITHOUT_PROGRAMS and not may_load_bpf():
        refusal = f"trace {name} needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run as root"
        raise Failure(with_alternative(name, refusal), ExitCode.PRIVILEGE)
    try:
        with Trace(name, scope, as_json=as_json, file=output, overwrite=overwrite) as trace:
            constants = {"own_netns": namespaces.inode()}
            trace.run(duration, tool(trace, constants))
    except BpfUnavailable as error:
        raise Failure(with_alternative(name, f"trace {name}: {error}"), ExitCode.NO_MPTCP) from None
    except MptcpMissing as error:
        raise Failure(str(error), ExitCode.NO_MPTCP) from None
    except NotPermitted as error:
        raise Failure(str(error), ExitCode.PRIVILEGE) from None
    except KernelError as error:
        raise Failure(f"trace {name}: {error}", ExitCode.CHECK_FAILED) from None


def _scope(
    *, pid: int | None, comm: str | None, cgroup: Path | None, token: str | None, addr: str | None
) -> Scope:
    from mptcpd_ebpf.trace.scope import Scope, cgroups_below, parse_address, parse_token

    if comm is not None:  # TASK_COMM_LEN: the kernel cuts names by bytes, not characters
        comm = name_of(os.fsencode(comm)[:15])
    option = ""
    try:
        option = "--token"
        wanted_token = None if token is None else parse_token(token)
        option = "--addr"
        wanted_address = None if addr is None else parse_address(addr)
        option = "--cgroup"
        cgroups = frozenset[int]() if cgroup is None else cgroups_below(cgroup)
    except ValueError as error:
        raise Failure(f"{option}: {error}", ExitCode.USAGE) from None
    return Scope(pid=pid, comm=comm, cgroups=cgroups, token=wanted_token, address=wanted_address)


def _tool(name: str, module: str, text: str) -> None:
    """Adds a tool without options of its own; its module is imported when it runs."""

    def run(**chosen: Any) -> None:
        from importlib import import_module

        entry: Tool = getattr(import_module(f"mptcpd_ebpf.trace.{module}"), f"trace_{module}")
        _run(name, entry, **chosen)

    command.command(name, help=text)(_filters(functools.update_wrapper(run, run)))


_tool(
    "life", "life",
    """Connections and subflows, from the first SYN to the end.

    With durations, bytes, the process, and why each ended.""",
)  # fmt: skip
_tool(
    "joins", "joins",
    """Each MP_JOIN handshake, sent or received, and how it ended.

    Limit, unknown token, HMAC, backup, no route, no listener, policy, no answer.""",
)  # fmt: skip
_tool(
    "resets", "resets",
    """MP_TCPRST, MP_FASTCLOSE and plain RST, sent and received, with reasons.""",
)  # fmt: skip
_tool(
    "retrans", "retrans",
    """TCP retransmissions and MPTCP reinjections, by subflow and cause.""",
)  # fmt: skip
_tool(
    "rtt", "rtt",
    """Distribution of round-trip times: a histogram per subflow at the end.""",
)  # fmt: skip
_tool(
    "stalls", "stalls",
    """Head-of-line blocking: when a connection could not send, and which path caused it.""",
)  # fmt: skip
_tool(
    "sched", "sched",
    """Which subflow the scheduler chose, why not the others, and the shares.

    A line per connection and second; at the end, the time without a usable subflow.""",
)  # fmt: skip
_tool(
    "fallback", "fallback",
    """When and why a connection fell back to TCP, with the kernel's counter.""",
)  # fmt: skip
_tool(
    "pm", "pm",
    """Path-manager commands and events, of all managers, with latency.""",
)  # fmt: skip


@command.command("doctor")
@click.argument("token", required=False)
@click.option("--netns", metavar="NS", help="Examine this network namespace.")
@click.option(
    "-d",
    "--duration",
    type=_Seconds(min=0.5),
    default=5.0,
    show_default=True,
    help="Observe the connection for this many seconds.",
)
@_output
def doctor(
    token: str | None,
    netns: str | None,
    duration: float,
    as_json: bool,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Observe the connection TOKEN for some seconds and report what limits it.

    TOKEN is the local token, as ls and the other tools print it.  Findings are ranked, each
    with its evidence.  Without TOKEN, list the open connections with their tokens.
    """
    from mptcpd_ebpf.trace.doctor import list_connections, trace_doctor

    if token is None:
        from mptcpd_ebpf.trace.frame import Trace
        from mptcpd_ebpf.trace.scope import Scope

        if netns is not None:
            from mptcpd_ebpf.runtime import netns as namespaces

            namespaces.enter(netns)
        try:
            trace = Trace("doctor", Scope(), as_json=as_json, file=output, overwrite=overwrite)
            with trace:
                list_connections(trace)
        except KernelError as error:
            raise Failure(f"trace doctor: {error}", ExitCode.CHECK_FAILED) from None
        return
    _run(
        "doctor",
        trace_doctor,
        as_json=as_json,
        output=output,
        overwrite=overwrite,
        duration=duration,
        netns=netns,
        pid=None,
        comm=None,
        cgroup=None,
        token=token,
        addr=None,
    )


@command.command("func")
@click.argument("pattern")
@click.option(
    "--latency",
    is_flag=True,
    help="Measure how long calls take; with --args, show what they return.",
)
@click.option("--args", "arguments", is_flag=True, help="Print a line per call, with arguments.")
@click.option("--stack", is_flag=True, help="Print the callers.")
@click.option(
    "--attach",
    "only_way",
    type=click.Choice(["fentry", "kprobe", "tp_btf"]),
    help="Attach only in this way.",
)
@_filters
def func(
    pattern: str,
    latency: bool,
    arguments: bool,
    stack: bool,
    only_way: str | None,
    **chosen: Any,
) -> None:
    """Count, time or print the calls of the kernel functions that match PATTERN.

    PATTERN is a name.  With * ? [ ] it matches only names that contain mptcp, subflow or msk.
    Each function is traced in the cheapest way that the kernel supports for it: fentry,
    kprobe, or a tracepoint inside it, which does not show latency.

    \b
      mptcpd-ebpf trace func 'mptcp_pm_*' -d 10
      mptcpd-ebpf trace func mptcp_sendmsg --latency --comm curl
      mptcpd-ebpf trace func __mptcp_retrans --args --stack
    """
    from mptcpd_ebpf.trace.func import trace_func

    tool = functools.partial(
        trace_func,
        pattern=pattern,
        latency=latency,
        arguments=arguments,
        stack=stack,
        only_way=only_way,
    )
    _run("func", tool, **chosen)


@command.command("show")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--token", metavar="TOKEN", help="Only lines about this connection.")
@click.option("--event", metavar="KIND", help="Only lines of this kind ('event' in the JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the lines of all tools.")
def show(
    file: Path | None, token: str | None, event: str | None, as_json: bool, schema: bool
) -> None:
    """Print FILE, which a tool wrote with -o, as the tool printed it.

    \b
      mptcpd-ebpf trace joins -d 60 -o joins.jsonl
      mptcpd-ebpf trace show joins.jsonl --token 1a2b3c4d
    """
    import msgspec

    from mptcpd_ebpf.core.token import token_of, token_text
    from mptcpd_ebpf.trace import line_file, line_schema

    if schema:
        click.echo(msgspec.json.format(msgspec.json.encode(line_schema.schema())).decode())
        return
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    try:
        wanted = None if token is None else token_text(token_of(token))
    except ValueError as error:
        raise Failure(f"--token: {error}", ExitCode.USAGE) from None
    head, lines = line_file.read(file)
    kinds = line_file.kinds_of(head.trace)
    if event not in (None, *kinds):
        known = ", ".join(kinds)
        raise Failure(f"--event {event}: trace {head.trace} has the kinds {known}", ExitCode.USAGE)
    for line in lines:
        if wanted is not None and getattr(line, "token", None) != wanted:
            continue
        if event is not None and line.__struct_config__.tag != event:
            continue
        if as_json:
            click.echo(line_file.as_json(head.trace, line).decode())
        else:
            click.echo(line_file.as_text(line, head.epoch_ns))
