# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf daemon``: the command line of the daemon."""

import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mptcpd_ebpf import __version__
from mptcpd_ebpf.config import mptcpd_conf
from mptcpd_ebpf.config.settings import DEFAULT_FILE, LogLevel, OnExit, ProbeBackend, Settings
from mptcpd_ebpf.runtime.logging_setup import LogDestination

Reader = Callable[[str], dict[str, Any]]


def _option(
    *names: str, reader: Reader | None = None, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option with a value: each is checked, and the last one counts, as for mptcpd.

    `reader` turns the text into keys of the configuration; a ValueError of it is a usage error.
    """

    def last(_context: click.Context, _parameter: click.Parameter, values: tuple[Any, ...]) -> Any:
        try:
            read = [reader(value) for value in values] if reader else values
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        return read[-1] if read else None

    return click.option(*names, multiple=True, callback=last, **settings)


def _folder(value: str) -> dict[str, Any]:
    if not value:
        raise ValueError("it names no folder")
    return {"plugin_dir": value}


def _usage(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        told = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        # A no-break space keeps an option and its argument on one line.
        options = [f"[{record[0]}]".replace(" ", "\N{NO-BREAK SPACE}") for record in told if record]
        head = f"Usage: {context.command_path} "
        lines = textwrap.wrap(
            head + " ".join(options),
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
            break_long_words=False,
        )
        click.echo("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "))
        context.exit()


class _AsGetopt(click.Command):
    """Accepts unambiguous abbreviations of long options, as getopt_long(3) and so mptcpd do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = [
            name for given in self.get_params(ctx) for name in given.opts if name.startswith("--")
        ]
        return super().parse_args(ctx, [_in_full(each, names, ctx) for each in args])


def _in_full(argument: str, names: list[str], context: click.Context) -> str:
    short, equals, value = argument.partition("=")
    if len(short) < len("--x") or not short.startswith("--") or short in names:
        return argument
    fits = [name for name in names if name.startswith(short)]
    # mptcpd has no --dry-run: what abbreviates one of its options still does.
    if len(fits) > 1 and "--dry-run" in fits:
        fits.remove("--dry-run")
    if len(fits) > 1:
        raise click.UsageError(f"Option {short!r} could be {', '.join(fits)}.", context)
    return f"{fits[0]}{equals}{value}" if fits else argument


@click.command(cls=_AsGetopt, context_settings={"help_option_names": ["-?", "-h", "--help"]})
@click.version_option(
    __version__, "-V", "--version", prog_name="mptcpd-ebpf", message="%(prog)s %(version)s"
)
@click.option(
    "--usage",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_usage,
    help="List the options in short and exit.",
)
@_option(
    "--path-manager",
    reader=mptcpd_conf.path_manager,
    metavar="PLUGIN[,PLUGIN…]",
    help="The plugins that decide; connections without a matching rule go to the first.  Without "
    "any, the daemon observes and manages nothing.",
)
@_option(
    "--load-plugins",
    reader=mptcpd_conf.load_plugins,
    metavar="PLUGIN[,PLUGIN…]",
    help="More plugins to load.  Without --path-manager, the one with the highest priority "
    "serves all connections.",
)
@_option(
    "--plugin-dir",
    reader=_folder,
    metavar="FOLDER",
    help="A folder searched for plugins before the shipped ones.",
)
@_option(
    "--addr-flags",
    reader=mptcpd_conf.addr_flags,
    metavar="FLAG[,FLAG…]",
    help="Flags of the endpoints that addr_adv makes: subflow, signal, backup, fullmesh, laminar.",
)
@_option(
    "--notify-flags",
    reader=mptcpd_conf.notify_flags,
    metavar="FLAG[,FLAG…]",
    help="Which addresses are used: existing, skip_link_local, skip_loopback, check_route; "
    "flags that are not named are off.",
)
@_option(
    "--mptcpd-conf",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="mptcpd's own configuration file, instead of ours; with mptcpd's defaults.",
)
@_option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The configuration. [default: {DEFAULT_FILE}, if it exists]",
)
@_option(
    "--control",
    metavar="PATH",
    help="Where to put the control socket.  [default: one per network namespace in "
    "/run/mptcpd-ebpf]",
)
@_option(
    "--probes",
    type=click.Choice([backend.value for backend in ProbeBackend]),
    help="Where measurements come from: CO-RE eBPF probes, the same compiled by bcc at "
    "start, netlink alone, or the first of them that this kernel allows.",
)
@_option(
    "--on-exit",
    type=click.Choice([choice.value for choice in OnExit]),
    help="What becomes of the endpoints that the daemon made.",
)
@_option(
    "-l",
    "--log",
    type=click.Choice([destination.value for destination in LogDestination]),
    help="Where the log goes.",
)
@_option(
    "--log-level",
    type=click.Choice([level.value for level in LogLevel]),
    help="The least severe messages to log.",
)
@_option(
    "--record",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write every event and decision to a new file, to be replayed.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Decide and do nothing: every decision is logged and shown, and none is sent to the "
    "kernel.",
)
@click.option("-d", "--debug", is_flag=True, help="The same as --log-level=debug.")
@click.pass_obj
def command(
    serve: Callable[[Settings], int],
    /,
    file: Path | None,
    mptcpd_conf: Path | None,
    record: Path | None,
    dry_run: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Measure subflows and keep connections on good paths.

    Serves the network namespace it is started in, until SIGTERM or Ctrl-C; SIGHUP reloads the
    configuration. The command line overrides the file.

    \b
    mptcpd-ebpf daemon                          observe only: watch with 'mptcpd-ebpf ls'
    mptcpd-ebpf daemon --path-manager=adaptive  a subflow per interface, off bad paths
    ip netns exec NAME mptcpd-ebpf daemon …     one more, in another namespace

    With a plugin in userspace mode, net.mptcp.path_manager is set to userspace while the daemon
    runs, and put back at exit.

    mptcpd's command line is accepted as it is.
    """
    if file is not None and mptcpd_conf is not None:
        raise click.UsageError("--config and --mptcpd-conf exclude each other")
    if dry_run:
        options["dry_run"] = True
    if debug:
        options["log_level"] = LogLevel.DEBUG.value
    # Writing to a closed connection is an error to handle, and must not end the process.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    settings = Settings(
        file=file, mptcpd_conf=mptcpd_conf, overrides=_overrides(options), record=record
    )
    return serve(settings)


_KEYS = {"probes": "probes.backend"}
"""The key of the configuration that an option sets, where its name is another one."""


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            given |= value
        elif value is not None:
            given[_KEYS.get(name, name)] = value
    return given
