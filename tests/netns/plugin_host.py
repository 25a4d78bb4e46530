# SPDX-License-Identifier: BSD-3-Clause
"""A network namespace for tests of plugins: they change its interfaces and run daemons in it."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.netns.daemon_process import RunningDaemon, daemon
from tests.waiting import until


class PluginHost:
    """A namespace, by its file, as nsenter(1) accepts it."""

    def __init__(self, namespace: str) -> None:
        self.prefix = ("nsenter", f"--net={namespace}", "--")

    def run(self, *words: str) -> str:
        """Runs a command here and returns its output."""
        done = subprocess.run([*self.prefix, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def ip(self, *lines: str) -> str:
        """Runs `ip` once per line and returns the output of the last."""
        output = ""
        for line in lines:
            output = self.run("ip", *line.split())
        return output

    def batch(self, lines: Iterable[str], *, force: bool = False) -> None:
        """Runs `ip` for many lines at once; with `force` also after those that fail."""
        subprocess.run(
            [*self.prefix, "ip", *["-force"] * force, "-batch", "-"],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            check=not force,
        )

    def veth(self, name: str, *addresses: str, up: bool = True) -> None:
        """An interface with carrier (its other end is NAME-far), without waiting for DAD."""
        self.ip(
            f"link add name {name} type veth peer name {name}-far",
            f"link set dev {name} addrgenmode none",
            f"link set dev {name}-far addrgenmode none",
            f"link set dev {name}-far up",
        )
        if up:
            self.ip(f"link set dev {name} up")
        for address in addresses:
            self.ip(f"addr add {address} dev {name}" + (" nodad" if ":" in address else ""))

    @property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        """The endpoint table as `ip mptcp` shows it, by address."""
        rows = json.loads(self.ip("-j mptcp endpoint show"))
        return {row["address"]: row for row in rows}

    @property
    def table(self) -> set[str]:
        """The addresses in the endpoint table."""
        return set(self.endpoints)

    @property
    def limits(self) -> tuple[int, int]:
        """The limits of subflows and of accepted addresses."""
        words = self.ip("mptcp limits").split()
        return int(words[3]), int(words[1])

    def expect(self, *addresses: str) -> None:
        """Waits until the table holds these and no others."""
        until(
            lambda: self.table == set(addresses),
            lambda: f"endpoints {sorted(addresses)}; there are {sorted(self.table)}",
        )

    @contextmanager
    def daemon(self, folder: Path, *arguments: str) -> Iterator[RunningDaemon]:
        """A daemon here, without probes, which these tests do not need."""
        with daemon(folder, "--probes=netlink", *arguments, prefix=self.prefix) as running:
            yield running


@contextmanager
def plugin_host() -> Iterator[PluginHost]:
    """A new namespace, which exists as long as the process that holds it."""
    with subprocess.Popen(
        ["unshare", "--net", "--", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            yield PluginHost(f"/proc/{holder.pid}/ns/net")
        finally:
            holder.kill()
