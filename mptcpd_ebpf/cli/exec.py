# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf exec``: run a program whose TCP sockets become MPTCP ones."""

import click

from mptcpd_ebpf.mptcpize import environment, program


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[-d]",
)
@click.option(
    "-d", "--debug", is_flag=True, help="Report on stderr what became of each TCP socket."
)
@click.argument("name", metavar="PROGRAM")
@click.argument("arguments", metavar="[ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def command(debug: bool, name: str, arguments: tuple[str, ...]) -> None:
    """Run PROGRAM with MPTCP in place of TCP.

    The program replaces this one: signals, exit code and open files are its own.
    Where MPTCP is off or refused, its sockets stay TCP.  Statically linked programs
    other than Go's, and set-user-ID ones, are out of reach: see 'mptcpify'.

    \b
    Try it:
      mptcpd-ebpf exec curl https://example.org/
      mptcpd-ebpf exec -d iperf3 -s

    Exits with the program's own code; 127 if there is none, 126 if it cannot be run.
    """
    base = program.original_environment()
    changed = environment.for_program(base, str(environment.library()), debug=debug)
    path = program.find(name, base)
    if debug and (reason := program.preload_obstacle(path)):
        click.echo(f"mptcpd-ebpf: {path}: {reason}; Go's GODEBUG is set all the same", err=True)
    program.become(path, (name, *arguments), changed)
