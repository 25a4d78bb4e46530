# SPDX-License-Identifier: BSD-3-Clause
"""What limits a connection: rules over what was seen of it for some seconds.

Pure: an `Observation` goes in, findings come out, ranked by how much of the time (or of
the traffic) each explains.  A finding is made only on evidence that a healthy connection
does not show; where none is made, the connection is limited by what its paths carry, or
has nothing to send, and that is said instead.
"""

from dataclasses import dataclass, field

from mptcpd_ebpf.core.measurement import Measurement

_LOSSY = 0.02
"""Share of segments retransmitted above which a path is called lossy."""
_MOST_RETRANSMITS = 5
_LASTING = 0.6
"""Share of the looks at which a path had lost something anew: more than the one overshoot by
which every transfer finds out what its path carries."""
_FREE = 1.2
"""Factor between a round-trip time and the least one below which no queue stands that might
have overflowed."""
_FEW = 20
"""Segments lost between two looks; an overshoot loses about a window at once."""
_SLOWER = 1.25
"""Factor between round-trip times that makes one path the slower."""
_PIPE_FULL = 2
"""Factor between a round-trip time and the least one at which a queue stands on the path."""
_RECEIVES = 4
_STALLED = 0.10
_WINDOW = 0.30
_QUEUE_FACTOR = 4
_QUEUE_US = 100_000
_STANDING = 0.5
"""Share of the looks at which a queue must have been long: every machine stumbles once."""
_DEAD_US = 500_000
_REFUSALS = 2
"""Looks at which the peer had answered a retransmission and taken nothing of it."""
_IDLE = 0.5


@dataclass(frozen=True, kw_only=True)
class PathFigures:
    """One subflow, first and last measurement, and what was seen between."""

    first: Measurement
    last: Measurement
    busy: float
    """Share of the looks at which data was in flight."""
    full: float
    """Share of the looks at which the congestion window was used up (four fifths of it)."""
    losing: float = 0.0
    """Share of the looks at which more was lost than at the one before."""
    lost_freely: int = 0
    """Segments lost a few at a time while no queue stood."""
    queued: float = 0.0
    """Share of the looks at which a long queue stood."""
    worst_timeouts: int = 0
    worst_silence_us: int = 0
    """The longest silence seen with data in flight."""
    refused: int = 0
    """Looks at which something had come back after retransmissions that got nowhere."""
    received: int = 0
    """Bytes that came from the peer."""
    ended: bool = False

    @property
    def name(self) -> str:
        return f"{self.last.local} → {self.last.remote}"

    def grown(self, field_name: str) -> int:
        """By how much a counter grew."""
        first, last = getattr(self.first, field_name), getattr(self.last, field_name)
        return max(0, (last or 0) - (first or 0))

    @property
    def sent(self) -> int:
        return self.grown("bytes_sent")

    @property
    def is_refused(self) -> bool:
        """Whether the path works, and the peer has no room for what comes over it.

        Where the peer sends no data, what comes back is that the retransmission arrived.
        """
        return self.refused >= _REFUSALS and not self.received

    @property
    def loses(self) -> bool:
        """Whether more was sent again than happens to a healthy path."""
        segments, repeated = self.grown("segments_out"), self.grown("retransmits")
        many = repeated >= _MOST_RETRANSMITS and repeated >= _LOSSY * segments
        return many and not self.is_refused

    @property
    def is_dead(self) -> bool:
        """Whether retransmissions go unanswered.

        The kernel also marks stale what idles while the peer does not read.
        """
        silent = self.worst_timeouts >= 2 and self.worst_silence_us >= _DEAD_US
        stale = self.last.stale and self.worst_timeouts > 0
        return bool(silent or stale) and not self.is_refused

    def has_queue(self, lasted_us: int) -> bool:
        """Whether packets wait on it: it carries what it can, and more would only wait longer.

        What is in flight must have gone round and come back: a round-trip time from before
        the sender was stopped says nothing.  And a sender whose congestion window is free
        waits for the peer, who answers when he reads.
        """
        srtt, least = self.last.srtt_us or 0, self.last.min_rtt_us or 0
        rounds = lasted_us / max(1, srtt)
        moves = 2 * self.grown("segments_out") >= max(1, self.last.in_flight or 0) * rounds
        return moves and self.full >= _IDLE and srtt > _PIPE_FULL * least

    @property
    def loses_by_itself(self) -> bool:
        """Whether its losses are more than the overflow of a queue that the sender filled."""
        return self.losing >= _LASTING or 2 * self.lost_freely >= max(1, self.grown("lost"))

    @property
    def is_backup(self) -> bool:
        return bool(self.last.backup or self.last.backup_by_peer)


def lost_freely(before: Measurement, after: Measurement) -> int:
    """Segments lost between two looks, unless a queue that overflowed explains them."""
    lost = (after.lost or 0) - (before.lost or 0)
    free = (after.srtt_us or 0) < _FREE * (after.min_rtt_us or 0)
    return lost if free and 0 < lost <= _FEW else 0


def came_back(seen: Measurement) -> bool:
    """Whether something came back since the retransmission before the last.

    The timer doubles with each of them: the last was sent at most its time ago, and the one
    before that half of it earlier.
    """
    return (seen.timeouts or 0) >= 2 and 2 * (seen.idle_us or 0) < (seen.rto_us or 0)


def has_long_queue(before: Measurement, after: Measurement) -> bool:
    """Whether round trips take far longer than the path itself does.

    One that moves nothing keeps the round-trip time that it had when it last did.
    """
    moves = (after.delivered or 0) > (before.delivered or 0)
    srtt, least = after.srtt_us or 0, after.min_rtt_us or 0
    return moves and bool(least) and srtt > max(_QUEUE_FACTOR * least, least + _QUEUE_US)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A connection, watched."""

    lasted_us: int
    paths: list[PathFigures]
    window_us: int = 0
    """Time in which the peer's window was closed and data waited."""
    endings: list[str] = field(default_factory=list)
    """Why subflows ended meanwhile."""


@dataclass(frozen=True)
class Finding:
    """Something that limits the connection."""

    cause: str
    """A short name, the same for ever."""
    weight: float
    """0…1: how much it explains."""
    words: str
    evidence: list[str]


def diagnose(seen: Observation) -> list[Finding]:
    """What limits the connection, the weightiest first; never empty."""
    findings = [
        *_ended(seen),
        *(finding for path in seen.paths for finding in _of_path(path, seen)),
        *_window(seen),
        *_only_backups(seen),
    ]
    if not findings:
        findings.append(_nothing_wrong(seen))
    findings += _one_path(seen)
    return sorted(findings, key=lambda finding: -finding.weight)


def _ended(seen: Observation) -> list[Finding]:
    if not seen.endings:
        return []
    if any(not path.ended for path in seen.paths):
        words = "a subflow ended while it was watched"
        return [Finding("subflow-ended", 0.6, words, seen.endings)]
    return [Finding("ended", 1.0, "the connection ended while it was watched", seen.endings)]


def _of_path(path: PathFigures, seen: Observation) -> list[Finding]:
    findings = []
    last = path.last
    stalled = path.grown("stalled_us") / seen.lasted_us
    segments, repeated = path.grown("segments_out"), path.grown("retransmits")
    if path.is_dead:
        findings.append(
            Finding(
                "dead-path",
                0.95,
                f"nothing comes back over {path.name}: the path is dead or filtered",
                [
                    f"{path.worst_timeouts} retransmission timeouts in a row",
                    f"silent for {path.worst_silence_us / 1000:.0f} ms with data in flight",
                    *(["the kernel has marked it stale"] if last.stale else []),
                ],
            )
        )
    elif segments and path.loses and path.loses_by_itself:
        findings.append(
            Finding(
                "loss",
                min(0.9, 0.4 + 5 * repeated / segments),
                f"{path.name} loses packets",
                [
                    f"{repeated} of {segments} segments sent again "
                    f"({100 * repeated / segments:.1f} %)",
                    f"{path.grown('lost')} taken for lost, "
                    f"some at {100 * path.losing:.0f} % of the looks",
                ],
            )
        )
    if stalled >= _STALLED and _holds_up(path, seen):
        findings.append(
            Finding(
                "slow-path",
                min(0.94, 0.3 + stalled),
                f"{path.name} holds the whole connection up (head-of-line blocking)",
                [
                    f"the sender stood still for {100 * stalled:.0f} % of the time because of it",
                    f"its srtt is {(last.srtt_us or 0) / 1000:.0f} ms; the fastest path's is "
                    f"{min((p.last.srtt_us or 0) for p in seen.paths) / 1000:.0f} ms",
                    f"{repeated} of {segments} segments sent again",
                ],
            )
        )
    if path.queued >= _STANDING and not path.is_dead:
        findings.append(
            Finding(
                "queue",
                min(0.95, 0.5 + stalled),  # what it holds up is its consequence
                f"packets wait in a long queue on {path.name} (bufferbloat, or the delay rose)",
                [
                    f"srtt {(last.srtt_us or 0) / 1000:.0f} ms, "
                    f"the least it ever was {(last.min_rtt_us or 0) / 1000:.0f} ms",
                    f"so at {100 * path.queued:.0f} % of the looks",
                ],
            )
        )
    return findings


def _holds_up(path: PathFigures, seen: Observation) -> bool:
    """Whether the stalls that a path is blamed for can be its own doing.

    What has nothing in flight holds nobody up; nor does what is as fast as the others and
    loses nothing: there the sender waits for the peer, and some path is always the last.
    Nor is a path slow whose round trips only take until the peer reads: it could carry more.
    """
    fastest = min(each.last.srtt_us or 0 for each in seen.paths)
    nearest = min(each.last.min_rtt_us or 0 for each in seen.paths)
    carries_all_it_can = path.full >= _IDLE or (path.last.min_rtt_us or 0) > _SLOWER * nearest
    slower = (path.last.srtt_us or 0) > _SLOWER * fastest and carries_all_it_can
    loses = path.loses or path.worst_timeouts > 0
    return path.busy >= _IDLE and (slower or loses) and not path.is_refused


def _window(seen: Observation) -> list[Finding]:
    # Standing still without a path's doing is the window's too.
    quiet = holdup = 0
    for path in seen.paths:
        if _holds_up(path, seen):
            holdup += path.grown("stalled_us")
        else:
            quiet += path.grown("stalled_us")
    share = max(seen.window_us, quiet) / seen.lasted_us
    refused = [path for path in seen.paths if path.is_refused]
    dead = any(path.worst_timeouts >= 2 and not path.is_refused for path in seen.paths)
    full = any(path.has_queue(seen.lasted_us) for path in seen.paths if path.busy >= _IDLE)
    if (
        (share < _WINDOW and quiet / seen.lasted_us < _STALLED and not refused)
        or holdup / seen.lasted_us >= _STALLED
        or dead
        or full
    ):
        return []
    return [
        Finding(
            "peer",
            0.95 if refused else 0.3 + 0.6 * share,  # nothing moves any more
            "the peer's application does not read fast enough, or its buffer is too small",
            [
                *(
                    f"it answers over {path.name} and takes nothing: {path.worst_timeouts} "
                    "retransmission timeouts in a row"
                    for path in refused
                ),
                f"its window was closed with data waiting for {100 * share:.0f} % of the time",
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
            "all traffic goes over backup subflows: no regular one is usable",
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
            "the data comes from the peer: what limits it is seen there",
            [f"{8 * received / seen.lasted_us:.2f} Mbit/s received, {mbit:.2f} sent"],
        )
    if busy < _IDLE or full < _IDLE:
        return Finding(
            "application",
            0.3,
            "nothing is wrong: the application sends no more than this",
            [
                f"{mbit:.2f} Mbit/s; data in flight at {100 * busy:.0f} % of the looks, the "
                f"congestion window used up at {100 * full:.0f} %"
            ],
        )
    return Finding(
        "capacity",
        0.3,
        "nothing is wrong: the paths carry no more",
        [
            f"{mbit:.1f} Mbit/s; the congestion window was used up at {100 * full:.0f} % of "
            "the looks, without loss worth mentioning"
        ],
    )


def _one_path(seen: Observation) -> list[Finding]:
    alive = [path for path in seen.paths if not path.ended]
    if len(alive) != 1:
        return []
    return [
        Finding(
            "one-path",
            0.2,
            "only one subflow: the connection gains nothing from MPTCP",
            [f"{alive[0].name}; 'mptcpd-ebpf trace joins' tells what becomes of joins"],
        )
    ]
