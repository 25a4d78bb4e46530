# SPDX-License-Identifier: BSD-3-Clause
"""What each path of a connection is for: roles, and the presets that choose them.

    role      subflow                      the kernel sends on it
    active    regular                      always
    standby   marked backup (MP_PRIO)      while no active path can
    away      none; the path is probed     never

What the probes report (`AlarmKind`) is evidence of one of three kinds:

    DEAD      nothing comes back or in     no_progress, timeouts, silence
    SLOW      the others wait for it       stall, hole
    POOR      delay or loss of its own     rtt, loss

A preset states what follows from the evidence, for a thin flow (requests, a stream below the
path's rate) and for a full one (bulk), in one table:

    preset        DEAD     SLOW, thin  SLOW, full  POOR, thin  POOR, full
    interactive   away     standby     standby     away        away
    bulk          away     compared    compared    -           -
    auto          away     standby     compared    away        -
    handover      away     standby     compared    away        -
    backup        away     -           -           -           -

"compared": only where the path carries less than it costs (assessment.py).  A bulk transfer raises
RTT and loss of the path that it fills, so these are no evidence there.
"""

from enum import StrEnum

from mptcpd_ebpf.core.measurement import AlarmKind


class Role(StrEnum):
    """What a path is for."""

    ACTIVE = "active"
    STANDBY = "standby"
    AWAY = "away"


class Preset(StrEnum):
    """What a connection needs from its paths."""

    AUTO = "auto"
    """As interactive while the flow is thin, as bulk while it is full."""
    INTERACTIVE = "interactive"
    """The lowest delay; a path that degrades is left at once."""
    BULK = "bulk"
    """All capacity that helps (3GPP ATSSS: load balancing)."""
    HANDOVER = "handover"
    """The preferred path; the next one when it degrades (ATSSS: smallest delay/priority-based)."""
    BACKUP = "backup"
    """The preferred path; the next one when it is dead (ATSSS: active-standby)."""

    @property
    def one_active(self) -> bool:
        """Whether only the preferred path is active."""
        return self in (Preset.HANDOVER, Preset.BACKUP)


class Answer(StrEnum):
    """What follows from an alarm."""

    NOTHING = "nothing"
    AWAY = "away"
    STANDBY = "standby"
    COMPARED = "compared"
    """Standby, where the path costs more than it carries."""


class Evidence(StrEnum):
    """What an alarm says about a path."""

    DEAD = "dead"
    SLOW = "slow"
    POOR = "poor"


EVIDENCE = {
    AlarmKind.NO_PROGRESS: Evidence.DEAD,
    AlarmKind.TIMEOUTS: Evidence.DEAD,
    AlarmKind.SILENCE: Evidence.DEAD,
    AlarmKind.STALL: Evidence.SLOW,
    AlarmKind.HOLE: Evidence.SLOW,
    AlarmKind.RTT: Evidence.POOR,
    AlarmKind.LOSS: Evidence.POOR,
}

_NOT_DEAD: dict[Preset, tuple[Answer, Answer, Answer, Answer]] = {
    Preset.INTERACTIVE: (Answer.STANDBY, Answer.STANDBY, Answer.AWAY, Answer.AWAY),
    Preset.BULK: (Answer.COMPARED, Answer.COMPARED, Answer.NOTHING, Answer.NOTHING),
    Preset.AUTO: (Answer.STANDBY, Answer.COMPARED, Answer.AWAY, Answer.NOTHING),
    Preset.HANDOVER: (Answer.STANDBY, Answer.COMPARED, Answer.AWAY, Answer.NOTHING),
    Preset.BACKUP: (Answer.NOTHING, Answer.NOTHING, Answer.NOTHING, Answer.NOTHING),
}
"""The table above: SLOW thin, SLOW full, POOR thin, POOR full."""


def answer(preset: Preset, kind: AlarmKind, *, thin: bool) -> Answer:
    """What a preset does about an alarm."""
    evidence = EVIDENCE[kind]
    if evidence is Evidence.DEAD:
        return Answer.AWAY
    first = 0 if evidence is Evidence.SLOW else 2
    return _NOT_DEAD[preset][first if thin else first + 1]
