# SPDX-License-Identifier: BSD-3-Clause
"""What limits a connection: rules over the observations of some seconds.

The functions are pure: they turn an `Observation` into findings, ranked by how much of the time or
of the traffic each explains.  A finding needs evidence that a healthy connection does not show.
Without any, the finding is that the paths' capacity or the application limits the connection.
"""

from dataclasses import dataclass, field

from mptcpd_ebpf.core.measurement import Measurement

_LOSSY = 0.02
"""Share of retransmitted segments from which a path is lossy."""
_MOST_RETRANSMITS = 5
"""Number of retransmitted segments from which a path is lossy."""
_LASTING = 0.6
"""Share of the samples with new losses from which losses are persistent: every transfer overshoots
its path's capacity once."""
_NO_QUEUE = 1.2
"""Ratio of round-trip time to its minimum below which there is no queue that may have
overflowed."""
_FEW = 20
"""Segments lost between two samples at most; an overshoot loses about a window at once."""
_SLOWER = 1.25
"""Ratio of round-trip times from which a path is slower than another."""
_PIPE_FULL = 2
"""Ratio of round-trip time to its minimum from which there is a queue on the path."""
_RECEIVES = 4
"""Ratio of received to sent bytes from which a host is the receiver."""
_STALLED = 0.10
"""Share of the time that a path must stall the connection to be a finding."""
_WINDOW = 0.30
"""Share of the time that the peer's window must be closed to be a finding."""
_QUEUE_FACTOR = 4
"""Ratio of round-trip time to its minimum above which a queue is long."""
_QUEUE_US = 100_000
"""Difference between the two, in microseconds, above which a queue is long; both must hold."""
_LONG_QUEUE = 0.5
"""Share of the samples with a long queue from which it is a finding: a single one is normal."""
_DEAD_US = 500_000
"""Silence in microseconds with data in flight from which a path is dead."""
_REFUSALS = 2
"""Samples in which the peer had answered a retransmission without accepting its data."""
_IDLE = 0.5
"""Share of the samples below which a path, or its congestion window, is mostly unused."""


@dataclass(frozen=True, kw_only=True)
class KeptPath:
    """A path that the daemon keeps away or on standby."""

    name: str
    state: str
    """``away`` or ``standby``."""
    reason: str
    for_s: float
    """For how long, seconds."""
    probes: str = ""
    """How its probes go, as ``3 of 10 probes answered``."""


@dataclass(frozen=True, kw_only=True)
class PathFigures:
    """One subflow: first and last measurement, and sums over the samples between."""

    first: Measurement
    last: Measurement
    busy: float
    """Share of the samples with data in flight."""
    full: float
    """Share of the samples with at least four fifths of the congestion window in use."""
    losing: float = 0.0
    """Share of the samples with new losses."""
    lost_without_queue: int = 0
    """Segments lost a few at a time while there was no queue."""
    queued: float = 0.0
    """Share of the samples with a long queue."""
    worst_timeouts: int = 0
    """Most consecutive retransmission timeouts."""
    worst_silence_us: int = 0
    """The longest silence with data in flight, microseconds."""
    refused: int = 0
    """Samples in which a segment had arrived after repeated retransmission timeouts."""
    received: int = 0
    """Bytes received from the peer."""
    ended: bool = False
    """Whether the subflow ended during the observation."""

    @property
    def name(self) -> str:
        return f"{self.last.local} → {self.last.remote}"

    def grown(self, field_name: str) -> int:
        """The increase of a counter."""
        first, last = getattr(self.first, field_name), getattr(self.last, field_name)
        return max(0, (last or 0) - (first or 0))

    @property
    def sent(self) -> int:
        return self.grown("bytes_sent")

    @property
    def is_refused(self) -> bool:
        """Whether the path works, but the peer has no buffer space for the data.

        If the peer sends no data, a segment from it acknowledges that a retransmission arrived.
        """
        return self.refused >= _REFUSALS and not self.received

    @property
    def loses(self) -> bool:
        """Whether it retransmits more than a healthy path."""
        segments, resent = self.grown("segments_out"), self.grown("retransmits")
        many = resent >= _MOST_RETRANSMITS and resent >= _LOSSY * segments
        return many and not self.is_refused

    @property
    def is_dead(self) -> bool:
        """Whether retransmissions are not answered.

        The stale mark alone is no evidence: the kernel also sets it on idle subflows while the
        peer does not read.
        """
        silent = self.worst_timeouts >= 2 and self.worst_silence_us >= _DEAD_US
        stale = self.last.stale and self.worst_timeouts > 0
        return bool(silent or stale) and not self.is_refused

    def has_queue(self, lasted_us: int) -> bool:
        """Whether packets queue on the path, so that the path limits its own throughput.

        The data in flight must have been acknowledged during the observation: a round-trip time
        from before the sender stopped proves nothing.  And the congestion window must be in use:
        otherwise the sender waits for the peer, whose acknowledgements depend on when it reads.
        """
        srtt, least = self.last.srtt_us or 0, self.last.min_rtt_us or 0
        rounds = lasted_us / max(1, srtt)
        moves = 2 * self.grown("segments_out") >= max(1, self.last.in_flight or 0) * rounds
        return moves and self.full >= _IDLE and srtt > _PIPE_FULL * least

    @property
    def loses_by_itself(self) -> bool:
        """Whether the sender did not cause the losses by filling a queue until it overflowed."""
        return self.losing >= _LASTING or 2 * self.lost_without_queue >= max(1, self.grown("lost"))

    @property
    def is_backup(self) -> bool:
        return bool(self.last.backup or self.last.backup_by_peer)


def lost_without_queue(before: Measurement, after: Measurement) -> int:
    """Segments lost between two samples; 0 if a queue that overflowed explains them."""
    lost = (after.lost or 0) - (before.lost or 0)
    free = (after.srtt_us or 0) < _NO_QUEUE * (after.min_rtt_us or 0)
    return lost if free and 0 < lost <= _FEW else 0


def came_back(seen: Measurement) -> bool:
    """Whether a segment has arrived since the last but one retransmission.

    The timer doubles with each retransmission: the last was sent at most one period ago, and the
    one before it half a period earlier.
    """
    return (seen.timeouts or 0) >= 2 and 2 * (seen.idle_us or 0) < (seen.rto_us or 0)


def has_long_queue(before: Measurement, after: Measurement) -> bool:
    """Whether the round-trip time is far above the path's minimum.

    A subflow that delivers nothing keeps an old round-trip time, so it does not count.
    """
    moves = (after.delivered or 0) > (before.delivered or 0)
    srtt, least = after.srtt_us or 0, after.min_rtt_us or 0
    return moves and bool(least) and srtt > max(_QUEUE_FACTOR * least, least + _QUEUE_US)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The observations of one connection."""

    lasted_us: int
    """Duration, microseconds."""
    paths: list[PathFigures]
    window_us: int = 0
    """Time in which data waited because the peer's window was closed, microseconds."""
    endings: list[str] = field(default_factory=list)
    """Why subflows ended during the observation."""
    kept: list[KeptPath] = field(default_factory=list)
    """Paths to the connection's peers that a daemon does not use."""


@dataclass(frozen=True)
class Finding:
    """A limit of the connection."""

    cause: str
    """A short, stable name."""
    weight: float
    """How much it explains, 0 to 1."""
    words: str
    """The limit as a sentence."""
    evidence: list[str]
    """The measurements that support it."""


def diagnose(seen: Observation) -> list[Finding]:
    """What limits the connection, by descending weight; never empty."""
    findings = [
        *_ended(seen),
        *(finding for path in seen.paths for finding in _of_path(path, seen)),
        *_window(seen),
        *_only_backups(seen),
        *map(_kept, seen.kept),
    ]
    if not findings:
        findings.append(_nothing_wrong(seen))
    findings += _one_path(seen)
    return sorted(findings, key=lambda finding: -finding.weight)


def _kept(path: KeptPath) -> Finding:
    """The daemon's own decision, with its reason."""
    evidence = [f"for {path.for_s:.1f} s: {path.reason}", *([path.probes] if path.probes else [])]
    if path.state == "away":
        words = f"the daemon keeps {path.name} away: nothing is sent on it until it has recovered"
        return Finding("path-away", 0.7, words, evidence)
    words = f"the daemon keeps {path.name} on standby: it carries data only if no other can"
    return Finding("path-standby", 0.5, words, evidence)


def _ended(seen: Observation) -> list[Finding]:
    if not seen.endings:
        return []
    if any(not path.ended for path in seen.paths):
        words = "a subflow ended during the observation"
        return [Finding("subflow-ended", 0.6, words, seen.endings)]
    return [Finding("ended", 1.0, "the connection ended during the observation", seen.endings)]


def _of_path(path: PathFigures, seen: Observation) -> list[Finding]:
    findings = []
    last = path.last
    stalled = path.grown("stalled_us") / seen.lasted_us
    segments, resent = path.grown("segments_out"), path.grown("retransmits")
    if path.is_dead:
        findings.append(
            Finding(
                "dead-path",
                0.95,
                f"no segment arrives over {path.name}: the path is dead or filtered",
                [
                    f"{path.worst_timeouts} consecutive retransmission timeouts",
                    f"silent for {path.worst_silence_us / 1000:.0f} ms with data in flight",
                    *(["the kernel has marked it stale"] if last.stale else []),
                ],
            )
        )
    elif segments and path.loses and path.loses_by_itself:
        findings.append(
            Finding(
                "loss",
                min(0.9, 0.4 + 5 * resent / segments),
                f"{path.name} loses packets",
                [
                    f"{resent} of {segments} segments retransmitted "
                    f"({100 * resent / segments:.1f} %)",
                    f"{path.grown('lost')} marked lost, "
                    f"new losses in {100 * path.losing:.0f} % of the samples",
                ],
            )
        )
    if stalled >= _STALLED and _stalls(path, seen):
        findings.append(
            Finding(
                "slow-path",
                min(0.94, 0.3 + stalled),
                f"{path.name} stalls the whole connection (head-of-line blocking)",
                [
                    f"the sender was stalled for {100 * stalled:.0f} % of the time because of it",
                    f"its srtt is {(last.srtt_us or 0) / 1000:.0f} ms; the fastest path's is "
                    f"{min((p.last.srtt_us or 0) for p in seen.paths) / 1000:.0f} ms",
                    f"{resent} of {segments} segments retransmitted",
                ],
            )
        )
    if path.queued >= _LONG_QUEUE and not path.is_dead:
        findings.append(
            Finding(
                "queue",
                min(0.95, 0.5 + stalled),  # the stalls are a consequence of the queue
                f"packets wait in a long queue on {path.name} (bufferbloat, or the delay rose)",
                [
                    f"srtt {(last.srtt_us or 0) / 1000:.0f} ms, "
                    f"minimum round-trip time {(last.min_rtt_us or 0) / 1000:.0f} ms",
                    f"a long queue in {100 * path.queued:.0f} % of the samples",
                ],
            )
        )
    return findings


def _stalls(path: PathFigures, seen: Observation) -> bool:
    """Whether a path can have caused the stalls that are charged to it.

    It cannot if it has nothing in flight, or if it is as fast as the others and loses nothing:
    then the sender waits for the peer, and the charge falls on some path.  Nor is a path slow if
    its round-trip time only lasts until the peer reads: it could carry more.
    """
    fastest = min(each.last.srtt_us or 0 for each in seen.paths)
    nearest = min(each.last.min_rtt_us or 0 for each in seen.paths)
    carries_all_it_can = path.full >= _IDLE or (path.last.min_rtt_us or 0) > _SLOWER * nearest
    slower = (path.last.srtt_us or 0) > _SLOWER * fastest and carries_all_it_can
    loses = path.loses or path.worst_timeouts > 0
    return path.busy >= _IDLE and (slower or loses) and not path.is_refused


def _window(seen: Observation) -> list[Finding]:
    # Stalled time that no path has caused is the peer's window's, too.
    by_window = by_paths = 0
    for path in seen.paths:
        if _stalls(path, seen):
            by_paths += path.grown("stalled_us")
        else:
            by_window += path.grown("stalled_us")
    share = max(seen.window_us, by_window) / seen.lasted_us
    refused = [path for path in seen.paths if path.is_refused]
    dead = any(path.worst_timeouts >= 2 and not path.is_refused for path in seen.paths)
    full = any(path.has_queue(seen.lasted_us) for path in seen.paths if path.busy >= _IDLE)
    if (
        (share < _WINDOW and by_window / seen.lasted_us < _STALLED and not refused)
        or by_paths / seen.lasted_us >= _STALLED
        or dead
        or full
    ):
        return []
    return [
        Finding(
            "peer",
            0.95 if refused else 0.3 + 0.6 * share,  # refused: the transfer has stopped
            "the peer's application does not read fast enough, or its buffer is too small",
            [
                *(
                    f"it answers over {path.name} and accepts no data: {path.worst_timeouts} "
                    "consecutive retransmission timeouts"
                    for path in refused
                ),
                f"data waited for its window for {100 * share:.0f} % of the time",
            ],
        )
    ]


def _only_backups(seen: Observation) -> list[Finding]:
    used = [path for path in seen.paths if path.sent]
    if not used or not all(path.is_backup for path in used):
        return []
    return [
        Finding(
            "backup-only",
            0.7,
            "all traffic uses backup subflows: no regular subflow is usable",
            [f"{path.name} is a backup and carried {path.sent} bytes" for path in used],
        )
    ]


def _nothing_wrong(seen: Observation) -> Finding:
    busy = max((path.busy for path in seen.paths), default=0.0)
    full = max((path.full for path in seen.paths), default=0.0)
    sent = sum(path.sent for path in seen.paths)
    mbit = 8 * sent / seen.lasted_us
    received = sum(path.received for path in seen.paths)
    if received > _RECEIVES * sent and busy < _IDLE:
        return Finding(
            "receiving",
            0.3,
            "the peer sends the data: run the diagnosis there",
            [f"{8 * received / seen.lasted_us:.2f} Mbit/s received, {mbit:.2f} sent"],
        )
    if busy < _IDLE or full < _IDLE:
        return Finding(
            "application",
            0.3,
            "nothing is wrong: the application sends no more than this",
            [
                f"{mbit:.2f} Mbit/s; data in flight in {100 * busy:.0f} % of the samples, the "
                f"congestion window in use in {100 * full:.0f} %"
            ],
        )
    return Finding(
        "capacity",
        0.3,
        "nothing is wrong: the paths carry no more",
        [
            f"{mbit:.1f} Mbit/s; the congestion window was in use in {100 * full:.0f} % of "
            "the samples, without significant loss"
        ],
    )


def _one_path(seen: Observation) -> list[Finding]:
    remaining = [path for path in seen.paths if not path.ended]
    if len(remaining) != 1:
        return []
    return [
        Finding(
            "one-path",
            0.2,
            "only one subflow: the connection gains nothing from MPTCP",
            [f"{remaining[0].name}; 'mptcpd-ebpf trace joins' shows how joins end"],
        )
    ]
