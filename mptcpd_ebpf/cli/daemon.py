# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf daemon``: the command line of the daemon."""

import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mptcpd_ebpf import __version__, mptcpd_conf
from mptcpd_ebpf.config import DEFAULT_FILE, LogLevel, OnExit, ProbeBackend, Settings
from mptcpd_ebpf.logs import LogDestination

Reader = Callable[[str], dict[str, Any]]


def _keys(reader: Reader) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that turns an option's text into keys of the configuration.

    A ValueError of `reader` is a usage error.
    """

    def callback(
        _context: click.Context, _parameter: click.Parameter, value: str | None
    ) -> dict[str, Any] | None:
        try:
            return None if value is None else reader(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _folder(value: str) -> dict[str, Any]:
    if not value:
        raise ValueError("it names no folder")
    return {"plugin_dir": value}


def _usage(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        told = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        # A blank that no line ends at: option and argument stay together.
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


def _completed(name: str) -> str:
    """A long option's name cut short, in full if only one begins so (getopt_long(3), as mptcpd)."""
    names = {option[2:] for given in command.params for option in given.opts if option[:2] == "--"}
    fits = [] if name in names or len(name) == 1 else [n for n in names if n.startswith(name)]
    return fits[0] if len(fits) == 1 else name


@click.command(
    context_settings={
        "help_option_names": ["-?", "-h", "--help"],
        "token_normalize_func": _completed,
    }
)
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
@click.option(
    "--path-manager",
    callback=_keys(mptcpd_conf.path_manager),
    metavar="PLUGIN[,PLUGIN…]",
    help="The plugins that decide; what no rule gives away goes to the first.  Without any, "
    "the daemon observes and manages nothing.",
)
@click.option(
    "--load-plugins",
    callback=_keys(mptcpd_conf.load_plugins),
    metavar="PLUGIN[,PLUGIN…]",
    help="More plugins to load.  Without --path-manager, the one with the highest priority "
    "serves all connections.",
)
@click.option(
    "--plugin-dir",
    callback=_keys(_folder),
    metavar="FOLDER",
    help="A folder searched for plugins before the shipped ones.",
)
@click.option(
    "--addr-flags",
    callback=_keys(mptcpd_conf.addr_flags),
    metavar="FLAG[,FLAG…]",
    help="Flags of the endpoints that addr_adv makes: subflow, signal, backup, fullmesh, laminar.",
)
@click.option(
    "--notify-flags",
    callback=_keys(mptcpd_conf.notify_flags),
    metavar="FLAG[,FLAG…]",
    help="Which addresses are used: existing, skip_link_local, skip_loopback, check_route; "
    "what is not named is off.",
)
@click.option(
    "--mptcpd-conf",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="mptcpd's own configuration file, instead of ours; with mptcpd's defaults.",
)
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The configuration.  [default: {DEFAULT_FILE}, if it exists]",
)
@click.option(
    "--control",
    metavar="PATH",
    help="Where to put the control socket.  [default: one per network namespace in "
    "/run/mptcpd-ebpf]",
)
@click.option(
    "--probes",
    type=click.Choice([backend.value for backend in ProbeBackend]),
    help="Where measurements come from: CO-RE eBPF probes, the same compiled by bcc at "
    "start, netlink alone, or the first of them that this kernel allows.",
)
@click.option(
    "--on-exit",
    type=click.Choice([choice.value for choice in OnExit]),
    help="What becomes of the endpoints that the daemon made.",
)
@click.option(
    "-l",
    "--log",
    type=click.Choice([destination.value for destination in LogDestination]),
    help="Where the log goes.",
)
@click.option(
    "--log-level",
    type=click.Choice([level.value for level in LogLevel]),
    help="How much to tell there.",
)
@click.option("-d", "--debug", is_flag=True, help="The same as --log-level=debug.")
def command(file: Path | None, mptcpd_conf: Path | None, debug: bool, **options: Any) -> int:
    """Measure subflows and keep connections on good paths.

    Serves the network namespace it is started in, until SIGTERM or Ctrl-C; SIGHUP reads
    the configuration anew.  The command line beats the file.

    \b
    mptcpd-ebpf daemon                          observe only: watch with 'mptcpd-ebpf ls'
    mptcpd-ebpf daemon --path-manager=adaptive  a subflow per interface, off bad paths
    ip netns exec NAME mptcpd-ebpf daemon …     one more, in another namespace

    With a plugin that decides by itself, the kernel's path manager for new connections
    is set to userspace while the daemon runs, and put back at exit.

    mptcpd's command line is accepted as it is.
    """
    from mptcpd_ebpf import service

    if file is not None and mptcpd_conf is not None:
        raise click.UsageError("--config and --mptcpd-conf exclude each other")
    if debug:
        options["log_level"] = LogLevel.DEBUG.value
    # Writing to a connection that is gone is an error to handle, not a reason to die.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    settings = Settings(file=file, mptcpd_conf=mptcpd_conf, overrides=_overrides(options))
    return service.run(settings)


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
