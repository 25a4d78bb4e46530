# SPDX-License-Identifier: BSD-3-Clause
"""The two ways to impair a link: the kernel's netem, or the NFQUEUE emulator.

Both limit the rate with the kernel's token bucket, so they differ in delay, jitter and loss
only.  `choose` tries netem and falls back to the emulator, also for a topology with a seed
where tc(8) cannot seed netem.
"""

from typing import Protocol

from mptcpd_ebpf.lab.emulation import DirectionState, EmulatedLink, Emulation
from mptcpd_ebpf.lab.errors import UnavailableError
from mptcpd_ebpf.lab.host import Host
from mptcpd_ebpf.lab.impairment import Impairment
from mptcpd_ebpf.lab.topology import BackendName

_NETEM_LIMIT = 200_000  # packets; netem's own 1000 is too few for 25 ms at 1 Gbit/s
_ORDERED = "rate 100gbit"  # with a rate, netem never lets a packet overtake (sch_netem.c)


class Backend(Protocol):
    name: str

    def prepare(self) -> None:
        """Sets up the backend, before the first `apply`; raises UnavailableError if it cannot."""

    def apply(self, link: int, states: dict[int, DirectionState]) -> None:
        """Sets the impairment of link number `link` in the given directions (UP, DOWN)."""

    def drop_options(self, link: int, subtypes: dict[int, list[int]]) -> None:
        """Drops, by direction, packets that carry an MPTCP option of these subtypes."""

    def interface(self, link: int, direction: int, *, there: bool) -> None:
        """Notes that a direction's interface was removed, or made again without any qdisc."""

    def flush(self, link: int) -> None:
        """Drops the packets that are delayed on a link."""

    def error(self) -> str | None:
        """Why links are not impaired as declared, None if they are."""

    def close(self) -> None:
        """Ends the backend; raises LabError if it had failed before."""


class _Shaper:
    """The token buckets of all links: which exist, and how to change them in place."""

    def __init__(self, links: list[EmulatedLink]) -> None:
        self.links = links
        self.set: dict[tuple[int, int], list[str]] = {}
        self.gone: set[tuple[int, int]] = set()

    def interface(self, link: int, direction: int, *, there: bool) -> None:
        self.set.pop((link, direction), None)
        if there:
            self.gone.discard((link, direction))
        else:
            self.gone.add((link, direction))

    def change(self, link: int, wanted: dict[int, list[str]]) -> None:
        """Changes the root qdiscs of the given directions to the wanted lines.

        A line is "KIND …" as in ``tc qdisc replace dev DEV root handle 1: KIND …``; the
        second line is the qdisc below the first.  An empty list removes all.
        """
        batches: dict[Host, list[str]] = {}
        for direction, lines in wanted.items():
            host, device = self.links[link].devices[direction]
            old = self.set.get((link, direction), [])
            if lines == old or (link, direction) in self.gone:
                continue
            batch = batches.setdefault(host, [])
            shape = [line.split()[0] for line in lines]
            if shape != [line.split()[0] for line in old] and old:
                batch.append(f"qdisc del dev {device} root")
                old = []
            for depth, line in enumerate(lines):
                if depth >= len(old) or old[depth] != line:
                    where = "root handle 1:" if depth == 0 else "parent 1:1 handle 2:"
                    batch.append(f"qdisc replace dev {device} {where} {line}")
            self.set[link, direction] = lines
        for host, batch in batches.items():
            host.batch("tc", batch)


def _bucket(value: Impairment) -> list[str]:
    """The rate limit as a tc line.  The burst is what a millisecond carries, at least 16 kB."""
    if value.rate_mbit is None:
        return []
    burst = max(16_384, round(value.rate_mbit * 1000 / 8))
    return [f"tbf rate {value.rate_mbit * 1e6:.0f}bit burst {burst} latency {value.queue_ms:g}ms"]


class Netem:
    """sch_netem on the routers' interfaces, and the token bucket below it."""

    name = "netem"

    def __init__(self, links: list[EmulatedLink], seed: int | None) -> None:
        self.seed = seed
        self.shaper = _Shaper(links)
        self.emulation = Emulation(links, seed)

    def prepare(self) -> None:
        pass

    def apply(self, link: int, states: dict[int, DirectionState]) -> None:
        self.shaper.change(
            link,
            {direction: self._lines(link, direction, state) for direction, state in states.items()},
        )

    def _lines(self, link: int, direction: int, state: DirectionState) -> list[str]:
        value, blackhole = state
        words = ["netem", f"limit {_NETEM_LIMIT}"]
        if value.delay_ms:
            words.append(f"delay {value.delay_ms:g}ms")
            if value.jitter_ms:
                words.append(f"{value.jitter_ms:g}ms")
        if blackhole:
            words.append("loss random 100%")
        elif value.burst is not None:
            b = value.burst
            words.append(
                f"loss gemodel {b.enter_percent:g}% {b.leave_percent:g}% "
                f"{b.loss_percent:g}% {b.good_loss_percent:g}%"
            )
        elif value.loss_percent:
            words.append(f"loss random {value.loss_percent:g}%")
        if value.jitter_ms and not value.reorder:
            words.append(_ORDERED)
        if self.seed is not None:
            words.append(f"seed {(self.seed * 1000 + link * 2 + direction) % 2**64}")
        idle = len(words) == 2 + (self.seed is not None)
        bucket = _bucket(value)
        return bucket if idle else [" ".join(words), *bucket]

    def drop_options(self, link: int, subtypes: dict[int, list[int]]) -> None:
        # netem cannot match options: an emulator that delays nothing inspects the packets.
        self.emulation.start()
        self.emulation.divert(link)
        self.emulation.drop_options(link, subtypes)

    def interface(self, link: int, direction: int, *, there: bool) -> None:
        self.shaper.interface(link, direction, there=there)

    def flush(self, link: int) -> None:
        for direction, (host, device) in enumerate(self.shaper.links[link].devices):
            lines = self.shaper.set.pop((link, direction), [])
            if lines:
                host.batch("tc", [f"qdisc del dev {device} root"])
                self.shaper.change(link, {direction: lines})

    def error(self) -> str | None:
        return self.emulation.error()

    def close(self) -> None:
        self.emulation.close()


class Nfqueue:
    """The emulator process, its NFQUEUE rules, and token buckets behind it."""

    name = "nfqueue"

    def __init__(self, links: list[EmulatedLink], seed: int | None, instead_of: str = "") -> None:
        self.instead_of = instead_of
        """Why netem does not work here, for the error message if NFQUEUE does not work either."""
        self.shaper = _Shaper(links)
        self.emulation = Emulation(links, seed)

    def prepare(self) -> None:
        try:
            self.emulation.start()
            for number in range(len(self.shaper.links)):
                self.emulation.divert(number)
        except UnavailableError as error:
            if not self.instead_of:
                raise
            raise UnavailableError(f"{error}; {self.instead_of}") from None

    def apply(self, link: int, states: dict[int, DirectionState]) -> None:
        self.emulation.impair(link, states)
        self.shaper.change(link, {d: _bucket(value) for d, (value, _) in states.items()})

    def drop_options(self, link: int, subtypes: dict[int, list[int]]) -> None:
        self.emulation.drop_options(link, subtypes)

    def interface(self, link: int, direction: int, *, there: bool) -> None:
        self.shaper.interface(link, direction, there=there)

    def flush(self, link: int) -> None:
        self.emulation.flush(link)

    def error(self) -> str | None:
        return self.emulation.error()

    def close(self) -> None:
        self.emulation.close()


def choose(
    name: BackendName, scratch: Host, links: list[EmulatedLink], seed: int | None
) -> Backend:
    """The backend to use; netem is tried on the loopback interface of `scratch`.

    Raises UnavailableError if the named backend does not work here.
    """
    if name == "nfqueue":
        return Nfqueue(links, seed)
    options = "" if seed is None else f"seed {seed}"
    missing = _try_netem(scratch, options)
    if missing is None:
        return Netem(links, seed)
    reason = f"{f'netem {options}'.strip()} does not work here: {missing}"
    if name == "netem":
        raise UnavailableError(reason)
    return Nfqueue(links, seed, reason)


def _try_netem(scratch: Host, options: str) -> str | None:
    """Why netem does not work, None if it does."""
    line = ["tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1ms"]
    done = scratch.run([*line, *options.split()], check=False)
    if done.returncode == 0:
        scratch.run(["tc", "qdisc", "del", "dev", "lo", "root"])
        return None
    return (done.stderr.strip().splitlines() or ["unknown"])[0]
