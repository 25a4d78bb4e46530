# SPDX-License-Identifier: BSD-3-Clause
"""The command line.  Each command is a module of this package that exports `command`.

The module of a command is imported when the command is used, so that a command loads only its own
imports. `main` turns every outcome into an exit code (`exit_codes`) and at most one message on
stderr.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from mptcpd_ebpf import __version__
from mptcpd_ebpf.core.names import printable
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

PROGRAM = "mptcpd-ebpf"

_NOTHING_ASKED: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""A group without a command, whose message is its help; click before 8.2 prints that itself."""


class Group(click.Group):
    """Shows the whole summary of each of its commands."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands, their summaries wrapped where click would cut them short."""
        found = {name: self.get_command(context, name) for name in self.list_commands(context)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(200))
                    for name, command in found.items()
                    if command
                ]
            )


class _LazyGroup(Group):
    """Finds its commands among the modules beside this one."""

    def list_commands(self, _context: click.Context) -> list[str]:
        # Not pkgutil: its import takes longer than the rest of `--version`.
        files = os.listdir(os.path.dirname(__file__))
        return sorted(
            name.removesuffix(".py")
            for name in files
            if name.endswith(".py") and not name.startswith("_")
        )

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(context):
            return None
        found = importlib.import_module(f"{__name__}.{name}").command
        assert isinstance(found, click.Command)
        return found

    def invoke(self, context: click.Context) -> Any:
        """Names the command also in a mistake that click finds before it has the command's
        context."""
        try:
            return super().invoke(context)
        except click.UsageError as error:
            name = context.invoked_subcommand
            command = self.get_command(context, name) if name else None
            if error.ctx is None and command is not None:
                error.ctx = click.Context(command, context, name)
            raise


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Try it:
      mptcpd-ebpf doctor                          can this machine do it?
      mptcpd-ebpf daemon --path-manager=adaptive  manage this network namespace
      mptcpd-ebpf ls                              what are the subflows doing?

    \b
    Exit codes: 0 fine, 1 a check failed, 64 usage, 69 no daemon there, 71 the kernel
    lacks MPTCP, 75 another daemon holds the namespace, 77 privilege, 78 configuration.
    """,
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def group() -> None:
    """Keeps Multipath TCP connections on good paths.

    A daemon measures every subflow with eBPF probes in the kernel and lets plugins
    create, destroy or demote subflows; the other commands ask it, or look at the kernel.
    """


def main(
    arguments: list[str] | None = None, *, serve: Callable[[Any], int] | None = None
) -> NoReturn:
    """Runs the command line and exits.

    `serve` runs the daemon with its `Settings` and returns the exit code.
    """
    # A closed pipe (`ls | head`) ends the command silently, as for other tools.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code: Any = group.main(arguments, PROGRAM, standalone_mode=False, obj=serve)
    except Failure as failure:
        code = _say(str(failure), failure.exit_code)
    except _NOTHING_ASKED as error:
        print(error.format_message(), file=sys.stderr)
        code = ExitCode.USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else PROGRAM
        message = " ".join(error.format_message().split())
        code = _say(f"{message} (see '{command} --help')", ExitCode.USAGE)
    except click.ClickException as error:
        code = _say(error.format_message(), ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _say(message: str, code: ExitCode) -> ExitCode:
    print(PROGRAM, printable(message, keep="\n"), sep=": ", file=sys.stderr)
    return code
