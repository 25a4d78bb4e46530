# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf mptcpify``: the kernel turns other programs' TCP sockets into MPTCP ones."""

from pathlib import Path

import click

from mptcpd_ebpf.mptcpize import mptcpify


@click.command()
@click.option(
    "--pid", type=click.IntRange(min=1), metavar="PID", help="This process and its descendants."
)
@click.option("--comm", metavar="NAME", help="Threads of this name, as /proc/PID/comm shows it.")
@click.option(
    "--cgroup",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="What runs in this cgroup (v2) or below.",
)
@click.option("--all", "everything", is_flag=True, help="Every program.")
def command(pid: int | None, comm: str | None, cgroup: Path | None, everything: bool) -> None:
    """Make running and future programs use MPTCP, statically linked ones included.

    A BPF program changes the sockets that are created in this network namespace from now on, by
    processes that match all options; it is removed when this command ends.  Needs Linux 6.6 and
    root.  Unlike 'exec' nothing falls back to TCP, so it ends by itself when net.mptcp.enabled
    goes off.

    \b
    Try it:
      mptcpd-ebpf mptcpify --comm iperf3
      mptcpd-ebpf mptcpify --cgroup /sys/fs/cgroup/system.slice/nginx.service
    """
    if everything == bool(pid or comm or cgroup):
        raise click.UsageError("give --all, or one or more of --pid, --comm and --cgroup")
    selection = mptcpify.Selection(pid=pid, comm=comm, cgroup=cgroup)
    mptcpify.run(selection, lambda line: click.echo(line, err=True))
