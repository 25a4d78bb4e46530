# SPDX-License-Identifier: BSD-3-Clause
"""The lab's side of the emulator process: its start and end, its rules, and requests to it."""

import json
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

import msgspec

from mptcpd_ebpf.lab import emulator, namespaces
from mptcpd_ebpf.lab.errors import LabError, UnavailableError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.impairment import Impairment
from mptcpd_ebpf.lab.middlebox import families
from mptcpd_ebpf.lab.topology import FAR

UP, DOWN = 0, 1

_ENDED = "the path emulator has ended: packets have passed unimpaired since"

DirectionState = tuple[Impairment, bool]
"""An impairment, and whether all packets are dropped (blackhole)."""


class EmulatedLink(msgspec.Struct, frozen=True):
    """Where the two directions of a path (or a bottleneck) can be impaired."""

    name: str
    host: Host
    """The router: up are the packets that leave by `far`, down those that arrive on it."""
    devices: tuple[tuple[Host, str], tuple[Host, str]]
    """The interface by which packets leave towards the other end: up, down."""


class Emulation:
    """One emulator process for all links; queue number in a namespace = direction."""

    def __init__(self, links: list[EmulatedLink], seed: int | None) -> None:
        self.links = links
        self.seed = seed
        self.process: subprocess.Popen[bytes] | None = None
        self._diverted: set[int] = set()
        self._spec: list[dict[str, Any]] = [{} for _ in range(2 * len(links))]

    def start(self) -> None:
        """Starts the process, unless it runs.  Raises UnavailableError if it does not work here."""
        if self.process is not None:
            return
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", emulator.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C must reach only the test, which then closes the lab
        )
        theirs.close()
        self._ask([self._queue(link, side) for link in self.links for side in (UP, DOWN)])

    def _queue(self, link: EmulatedLink, direction: int) -> dict[str, Any]:
        seed = None if self.seed is None else f"{self.seed} {link.name} {direction}"
        return {"netns": namespaces.path_of(link.host.name), "number": direction, "seed": seed}

    def divert(self, link: int) -> None:
        """Queues a link's packets to the emulator, which accepts them at once by default."""
        if link in self._diverted:
            return
        host = self.links[link].host
        rules = "\n".join(
            [
                "*mangle",
                f"-A FORWARD -o {FAR} -j NFQUEUE --queue-num {UP} --queue-bypass",
                f"-A FORWARD -i {FAR} -j NFQUEUE --queue-num {DOWN} --queue-bypass",
                "COMMIT\n",
            ]
        )
        for tool in families(host):
            done = host.run([f"{tool}-restore", "--noflush"], input=rules, check=False)
            if done.returncode:
                raise UnavailableError(f"NFQUEUE does not work here: {done.stderr.strip()}")
        self._diverted.add(link)

    def impair(self, link: int, states: dict[int, DirectionState]) -> None:
        """Sets the impairment of a link, by direction."""
        self._change(
            link,
            {
                direction: {**msgspec.to_builtins(value), "blackhole": blackhole}
                for direction, (value, blackhole) in states.items()
            },
        )

    def drop_options(self, link: int, subtypes: dict[int, list[int]]) -> None:
        """Drops packets that carry an MPTCP option of these subtypes, by direction."""
        self._change(link, {side: {"drop_options": which} for side, which in subtypes.items()})

    def _change(self, link: int, changes: dict[int, dict[str, Any]]) -> None:
        requests = []
        for direction, change in changes.items():
            queue = link * 2 + direction
            self._spec[queue] |= change
            requests.append({**self._spec[queue], "queue": queue})
        self._ask({"set": requests})

    def flush(self, link: int) -> None:
        """Drops the packets that are delayed on a link."""
        self._ask({"flush": [link * 2 + direction for direction in (UP, DOWN)]})

    def _ask(self, request: Any) -> None:
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.control.send(json.dumps(request).encode())
            answer = self.control.recv(65536)
        if not answer:
            raise LabError(_ENDED)
        result: dict[str, Any] = json.loads(answer)
        if not result["ok"]:
            raise UnavailableError(f"NFQUEUE does not work here: {result['error']}")

    def error(self) -> str | None:
        """A message if the process has ended by itself, else None."""
        return _ENDED if self.process is not None and self.process.poll() is not None else None

    def close(self) -> None:
        """Ends the process.  Raises LabError if it had ended by itself before."""
        if self.process is None:
            return
        ended_before = self.process.poll()
        self.control.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if ended_before is not None:
            raise LabError(
                f"the path emulator had ended by itself (status {ended_before}): "
                "packets passed unimpaired since then"
            )
