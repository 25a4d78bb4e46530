# SPDX-License-Identifier: BSD-3-Clause
"""Lines of ``trace rtt``."""

from mptcpd_ebpf.trace.lines.base import (
    AccountLine,
    StartedLine,
    SubflowLine,
    SummaryLine,
    indented,
)
from mptcpd_ebpf.trace.lines.histograms import bars, quantile


class RttLine(SubflowLine, frozen=True):
    """The round-trip times of a subflow during the run."""

    samples: int
    """Number of raw samples."""
    min_rtt_us: int | None
    """The smallest sample since the subflow was established, microseconds."""
    srtt_us: int | None
    """Smoothed round-trip time, microseconds."""
    below_us: dict[str, int] | None
    """Upper ends, in microseconds, of the slots that hold ``p50``, ``p90`` and ``p99``."""
    histogram: list[int]
    """Number of samples; slot i holds those of 2^i to 2^(i+1) microseconds."""

    @property
    def has_time(self) -> bool:
        return False

    def text(self) -> str:
        head = f"{self.shown_token}  {self.shown_subflow}  {_spread(self.histogram)}"
        if self.samples and self.min_rtt_us is not None:
            head += f"; minimum {_ms(self.min_rtt_us)} ms"
        return head + indented(rtt_bars(self.histogram))


class FurtherRttLine(SummaryLine, frozen=True, tag="further"):
    """The same for all ended subflows between two addresses that have no line of their own."""

    local: str
    """This host's address, without a port."""
    remote: str
    """The peer's address, without a port."""
    samples: int
    """Number of raw samples."""
    histogram: list[int]
    """Number of samples; slot i holds those of 2^i to 2^(i+1) microseconds."""

    def text(self) -> str:
        head = f"further subflows {self.local} → {self.remote}  {_spread(self.histogram)}"
        return head + indented(rtt_bars(self.histogram))


def rtt_bars(histogram: list[int]) -> list[str]:
    """A histogram of microseconds as text."""
    return bars(histogram, lambda low, high: f"{_ms(low):>8} … {_ms(high):<8} ms")


def _spread(histogram: list[int]) -> str:
    if not any(histogram):
        return "no samples"
    p50, p90, p99 = (_ms(quantile(histogram, share)) for share in (0.5, 0.9, 0.99))
    return f"{sum(histogram)} samples, half below {p50}, 90 % below {p90}, 99 % below {p99} ms"


def _ms(us: int) -> str:
    return f"{us / 1000:.3g}"


LINES = StartedLine | RttLine | FurtherRttLine | AccountLine
