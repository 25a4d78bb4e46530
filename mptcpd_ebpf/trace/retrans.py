# SPDX-License-Identifier: BSD-3-Clause
"""``trace retrans``: what is sent again, on which subflow, and because of what.

Two layers repeat.  TCP repeats a segment on its own subflow (tcp_retransmit_skb); the
state of its congestion control says why (tcp_input.c, tcp_output.c): a timeout, a fast
retransmission after duplicate or selective acknowledgements, or a probe of the tail when
nothing is known to be lost.  MPTCP sends a mapping again on another subflow (reinjection,
net/mptcp/protocol.c): what it writes lies before snd_nxt.  MPTCPRetrans counts those of
the connection's timer (__mptcp_retrans), not those that follow when a subflow was closed
or found stale (__mptcp_retransmit_pending_data).  Blamed is the other subflow that has
data in flight and the most timeouts.
"""

from collections import Counter, defaultdict

from mptcpd_ebpf.trace import words
from mptcpd_ebpf.trace.frame import Summary, Trace
from mptcpd_ebpf.trace.kernel_side import KernelSide, Record
from mptcpd_ebpf.trace.scope import Subject, token_words

_SYN_STATES = (2, 3)
_RECOVERY, _LOSS = 3, 4  # include/uapi/linux/tcp.h: enum tcp_ca_state


def cause(record: Record) -> str:
    """Why TCP retransmitted."""
    if record["state"] in _SYN_STATES:
        return "SYN unanswered"
    if record["timeouts"]:
        return f"timeout {record['timeouts']} in a row"
    if record["ca_state"] == _LOSS:
        return "after a timeout"
    if record["ca_state"] == _RECOVERY:
        return "fast retransmission"
    return "probe of the tail"


class Retransmissions:
    """Tells each and adds them up by subflow."""

    def __init__(self, trace: Trace, kinds: dict[int, str]) -> None:
        self._trace = trace
        self._kinds = kinds
        self._names: dict[int, Subject] = {}
        self.causes: dict[int, Counter[str]] = defaultdict(Counter)
        self.segments = 0
        self.reinjections = 0
        self.reinjected_bytes = 0

    def take(self, record: Record) -> None:
        who = self._trace.directory.of_record(record)
        if not self._trace.admits(who):
            return
        self._names[record["cookie"]] = who
        if self._kinds[record["kind"]] == "TRACE_RETRANSMITTED":
            self._repeated(who, record)
        else:
            self._reinjected(who, record)

    def _repeated(self, who: Subject, record: Record) -> None:
        why = cause(record)
        self.segments += 1
        self.causes[record["cookie"]][why.split(" in a row")[0].rstrip(" 0123456789")] += 1
        self._trace.say(
            "retransmitted",
            f"{token_words(who.token)}  retransmitted  {who.name}  seq {record['seq']} "
            f"{record['length']} B  {why}" + ("  (stale)" if record["stale"] else ""),
            record["at"],
            **who.fields(),
            seq=record["seq"],
            length=record["length"],
            cause=why,
            timeouts=record["timeouts"],
            srtt_us=None if record["srtt_us"] == 0xFFFFFFFF else record["srtt_us"],
        )

    def _reinjected(self, who: Subject, record: Record) -> None:
        self.reinjections += 1
        self.reinjected_bytes += record["length"]
        blamed = self._trace.directory.by_cookie.get(record["blamed"])
        if blamed is None and record["blamed"]:
            self._trace.directory.look()
            blamed = self._trace.directory.by_cookie.get(record["blamed"])
        if not record["blamed"]:
            why = "no other subflow holds data: the one that did is gone"
        elif record["blamed_timeouts"]:
            why = f"{record['blamed_timeouts']} timeouts in a row on {blamed and blamed.name}"
        else:
            why = f"not yet acknowledged on {blamed and blamed.name}"
        self.causes[record["cookie"]]["reinjected here"] += 1
        if blamed is not None and blamed.cookie:
            self._names[blamed.cookie] = blamed
            self.causes[blamed.cookie]["reinjected elsewhere"] += 1
        self._trace.say(
            "reinjected",
            f"{token_words(who.token)}  reinjected     {who.name}  data {record['data_seq']:x} "
            f"{record['length']} B  {why}",
            record["at"],
            **who.fields(),
            data_seq=record["data_seq"],
            length=record["length"],
            blamed=blamed.name if blamed else None,
            blamed_timeouts=record["blamed_timeouts"],
            cause=why,
        )

    def rows(self) -> list[tuple[Subject, Counter[str]]]:
        return [(self._names[cookie], causes) for cookie, causes in self.causes.items()]


def trace_retrans(trace: Trace, constants: dict[str, int]) -> Summary:
    programs = ("retransmitted", "work_starts", "send_begins", "mapped")
    kernel = trace.open(KernelSide("trace", programs, constants))
    trace.means += kernel.hooks()
    trace.directory.look()
    found = Retransmissions(trace, kernel.enumeration("trace_kind"))

    def read() -> None:
        for record in kernel.read("trace_record"):
            found.take(record)

    trace.watch(kernel, read)

    def summary() -> None:
        moved = trace.counted().get("MPTCPRetrans", 0)
        lines = [
            f"{found.segments} TCP retransmissions, {found.reinjections} reinjected mappings "
            f"({words.size(found.reinjected_bytes)}; counter MPTCPRetrans moved by {moved})"
        ]
        for who, causes in found.rows():
            told = ", ".join(f"{number} {why}" for why, number in causes.most_common())
            lines.append(f"  {token_words(who.token)}  {who.name}  {told}")
        trace.note(
            "\n".join(lines),
            retransmissions=found.segments,
            reinjections=found.reinjections,
            counters={"MPTCPRetrans": moved},
            subflows=[{**who.fields(), "causes": dict(causes)} for who, causes in found.rows()],
        )

    return summary
