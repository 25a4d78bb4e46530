/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * When an alarm is raised for a subflow, and how it reaches user space.
 *
 * docs/probes.md says what each alarm depends on and what it deliberately disregards:
 * the queue a sender builds itself, the loss its own slow start provokes, and
 * acknowledgements that are merely delayed.
 */
#ifndef ALARM_H
#define ALARM_H

#include "measure.h"

#define NSEC_PER_USEC 1000ULL
#define USEC_PER_SEC 1000000ULL
#define NSEC_PER_SEC 1000000000ULL
#define MAX_SIBLINGS 8
#define MIN_LOSS_SIGNS 3
#define MAX_EPISODE_SIGNS 2

static __noinline void raise(struct subflow *subflow, enum report_kind kind, u64 value, u64 limit)
{
	u64 now = bpf_ktime_get_ns();
	struct report *report;

	if (now - subflow->alarm_at < thresholds.min_interval_us * NSEC_PER_USEC)
		return;
	report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
	if (!report) {
		count(alarms_lost);
		return;
	}
	subflow->alarm_at = now;
	measure(subflow);
	report->kind = kind;
	report->value = value;
	report->limit = limit;
	__builtin_memcpy(&report->seen, &subflow->m, sizeof(report->seen));
	bpf_ringbuf_submit(report, 0);
}

/* --- RTT */

/* srtt of the fastest other subflow of the connection, all ones if there is none. */
static __noinline u32 best_sibling_rtt(struct subflow *subflow)
{
	struct mptcp_subflow_context *ctx = subflow_context(as(tcp_sock, subflow->sk));
	struct mptcp_sock *msk;
	u64 node, first;
	u32 best = UNSEEN;

	if (!ctx)
		return best;
	msk = as(mptcp_sock, see(ctx, conn));
	if (!msk)
		return best;
	first = (u64)msk + offset_of(mptcp_sock, conn_list);
	node = (u64)see(msk, conn_list.next);
	for (int i = 0; i < MAX_SIBLINGS && node && node != first; i++) {
		struct mptcp_subflow_context *other = as(mptcp_subflow_context, node);
		struct tcp_sock *tp = as(tcp_sock, see(other, tcp_sock));

		if ((u64)tp != subflow->sk && !see_bit(other, stale)) {
			u32 srtt = see(tp, srtt_us) >> 3;

			if (srtt && srtt < best)
				best = srtt;
		}
		node = (u64)see(other, node.next);
	}
	return best;
}

/*
 * A new RTT sample: into the histogram, then against the subflow's slow average.  The
 * limit grows by the time the subflow's own packets in flight take at its delivery rate,
 * the queue it builds itself (only a sender limited by its window builds one), and by the
 * peer's delayed-acknowledgement timer if no two segments were in flight together.
 */
static __noinline void check_rtt(struct subflow *subflow, struct tcp_sock *tp)
{
	u32 rtt = see(tp, rack.rtt_us);
	u32 slot = 0, baseline = subflow->baseline_us, limit, delivered;

	if (!rtt)
		return;
	for (u32 rest = rtt; rest > 1 && slot < HISTOGRAM_SLOTS - 1; slot++)
		rest >>= 1;
	if (slot < HISTOGRAM_SLOTS)
		subflow->m.rtt_histogram[slot]++;
	if (!baseline) {
		subflow->baseline_us = rtt;
		return;
	}
	limit = (u64)baseline * thresholds.rtt_factor_percent / 100;
	if (limit < baseline + thresholds.rtt_floor_us)
		limit = baseline + thresholds.rtt_floor_us;
	if (!thresholds.rtt_factor_percent || rtt <= limit)
		goto fine;
	delivered = see(tp, rate_delivered);
	if (delivered && see_bit(tp, is_cwnd_limited))
		limit += (u64)see(tp, packets_out) * see(tp, rate_interval_us) / delivered;
	if (see(tp, max_packets_out) <= 1)
		limit += thresholds.lone_delayed_ack_us;
	if (rtt <= limit)
		goto fine;
	subflow->strikes++;
	if (subflow->strikes >= thresholds.rtt_strikes ||
	    (thresholds.sibling_factor_percent &&
	     (u64)best_sibling_rtt(subflow) * thresholds.sibling_factor_percent / 100 < rtt))
		raise(subflow, REPORT_RTT, rtt, limit);
	return;
fine:
	subflow->strikes = 0;
	subflow->baseline_us = ((u64)baseline * 31 + rtt) >> 5;
}

/* --- loss */

static __always_inline u32 ones(u64 bits)
{
	bits -= (bits >> 1) & 0x5555555555555555ULL;
	bits = (bits & 0x3333333333333333ULL) + ((bits >> 2) & 0x3333333333333333ULL);
	bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (bits * 0x0101010101010101ULL) >> 56;
}

/*
 * Whether a segment that just arrived is a sign of loss: it is not the next one (one before
 * it was lost) or is a duplicate (our acknowledgement was lost).
 */
static __always_inline bool arrived_misplaced(struct tcp_sock *tp, struct sk_buff *skb)
{
	struct tcp_skb_cb *cb = segment_of(skb);
	u32 seq = see(cb, seq);

	return seq != see(tp, rcv_nxt) && seq != see(cb, end_seq);
}

/*
 * Within one episode of loss recovery (to the same high_seq, tcp_enter_recovery) only the
 * first signs count: random loss occurs again in the next episode, what slow start drops at
 * a full queue does not.
 */
static __always_inline u32 within_episode(struct subflow *subflow, struct tcp_sock *tp, u32 signs)
{
	u32 high_seq = see(tp, high_seq);

	if (see_bit(as(inet_connection_sock, tp), icsk_ca_state) < TCP_CA_RECOVERY)
		return signs; /* a probe of the tail, nothing is known to be lost yet */
	if (high_seq != subflow->episode) {
		subflow->episode = high_seq;
		subflow->episode_signs = 0;
	}
	if (subflow->episode_signs >= MAX_EPISODE_SIGNS)
		return 0;
	subflow->episode_signs += signs;
	return signs;
}

/* Moves the windows on by so many segments, each of which this end sent, or did not. */
static __always_inline void slide(struct subflow *subflow, u32 segments, u64 ours)
{
	if (segments >= 64) {
		subflow->loss_bits = 0;
		subflow->sent_bits = ours;
	} else if (segments) {
		subflow->loss_bits <<= segments;
		subflow->sent_bits = subflow->sent_bits << segments |
				     (ours & ((1ULL << segments) - 1));
	}
}

/* At least a quarter of the window's segments were sent by this end. */
static __always_inline bool sends(struct subflow *subflow)
{
	u32 window = thresholds.loss_window;

	return window && window <= 64 &&
	       4 * ones(subflow->sent_bits << (64 - window)) >= window;
}

/*
 * The window slides by the data segments sent or received since the last call.  `repeated` is
 * how much the present retransmission counts.  `misplaced`, that a segment arrived out of
 * order or a second time, counts once per round trip, so that a full queue is one event, and
 * only where this end sends: otherwise it says nothing of what this end can change.
 */
static __noinline void check_loss(struct subflow *subflow, struct tcp_sock *tp, u32 repeated,
				     bool misplaced)
{
	u32 sent = see(tp, data_segs_out), received = see(tp, data_segs_in);
	u32 fresh = received - subflow->received_seen, fresh_sent = sent - subflow->sent_seen;
	u32 window = thresholds.loss_window, limit, lost, signs = 0;
	u64 at = bpf_ktime_get_ns();

	subflow->received_seen = received;
	subflow->sent_seen = sent;
	slide(subflow, fresh, 0);
	slide(subflow, fresh_sent, ~0ULL);
	if (repeated)
		signs = within_episode(subflow, tp, repeated);
	if (misplaced && sends(subflow) && at - subflow->misplaced_at > (see(tp, srtt_us) >> 3) * NSEC_PER_USEC) {
		subflow->misplaced_at = at;
		signs++;
	}
	if (!signs)
		return;
	for (u64 bit = 1, i = 0; i < 2 * MAX_EPISODE_SIGNS && signs; i++, bit <<= 1)
		if (!(subflow->loss_bits & bit)) {
			subflow->loss_bits |= bit;
			signs--;
		}
	if (!thresholds.loss_percent || !window || window > 64 ||
	    sent < thresholds.loss_min_segments)
		return;
	lost = ones(subflow->loss_bits << (64 - window));
	limit = window * thresholds.loss_percent / 100;
	if (limit < MIN_LOSS_SIGNS)
		limit = MIN_LOSS_SIGNS;
	if (lost >= limit) {
		raise(subflow, REPORT_LOSS, (u64)lost * 100 / window, thresholds.loss_percent);
		subflow->loss_bits = 0;
	}
}

/* --- no progress */

/* How long `segments` in flight may go unanswered, microseconds. */
static __always_inline u64 silence_limit_us(struct tcp_sock *tp, u32 segments)
{
	u64 srtt = see(tp, srtt_us) >> 3;
	u64 limit;

	if (!srtt)
		return USEC_PER_SEC;
	limit = srtt * thresholds.no_progress_factor_percent / 100 + see(tp, mdev_us) +
		   (segments > 1 ? thresholds.delayed_ack_us : thresholds.lone_delayed_ack_us);
	return limit > thresholds.no_progress_us ? limit : thresholds.no_progress_us;
}

/*
 * How long what is in flight has gone unanswered, microseconds.  delivered_mstamp is when
 * something was last acknowledged, or when the flight began (tcp_rate_skb_sent); with
 * pacing that may lie ahead.
 */
static __always_inline u64 silence_us(struct tcp_sock *tp, u64 now)
{
	u64 delivered_at = see(tp, delivered_mstamp) * NSEC_PER_USEC;
	u64 silence = now > delivered_at ? (now - delivered_at) / NSEC_PER_USEC : 0;
	u64 idle = idle_us(tp);

	return idle < silence ? idle : silence;
}

/* Data is in flight, and not merely the FIN of a subflow that is being closed. */
static __always_inline bool carries_data(struct tcp_sock *tp)
{
	u8 state = see(as(sock, tp), __sk_common.skc_state);

	return (state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT) && see(tp, packets_out);
}

/* Raises no-progress.  Returns the time until it could be due, us; 0: nothing in flight. */
static __noinline u64 check_silence(struct subflow *subflow)
{
	struct tcp_sock *tp = as(tcp_sock, subflow->sk);
	u64 limit, silence;

	if (!thresholds.no_progress_us || !carries_data(tp))
		return 0;
	silence = silence_us(tp, bpf_ktime_get_ns());
	limit = silence_limit_us(tp, see(tp, packets_out));
	if (silence < subflow->silence_us)
		subflow->silence_us = 0;
	if (silence < limit)
		return limit - silence;
	/* Raised once; again when the silence has doubled. */
	if (silence >= 2 * subflow->silence_us) {
		subflow->silence_us = silence;
		raise(subflow, REPORT_NO_PROGRESS, silence, limit);
	}
	return silence;
}

#ifndef WITH_BCC /* which has no timers: it checks at retransmissions and timeouts */

static __noinline u64 recheck_hole(struct subflow *subflow);

static __noinline int on_timer(void *map, u64 *cookie, struct subflow *subflow)
{
	u64 wait, hole_wait;

	subflow->armed = 0;
	if (subflow->closed)
		return 0;
	wait = check_silence(subflow);
	hole_wait = recheck_hole(subflow);
	if (!wait || (hole_wait && hole_wait < wait))
		wait = hole_wait;
	if (!wait)
		return 0;
	subflow->armed = 1;
	bpf_timer_start(&subflow->timer, wait * NSEC_PER_USEC, 0);
	return 0;
}

/*
 * Arms the timer for the earliest moment at which an alarm could be due.  Where the kernel
 * provides no timers (since 6.19 on processors without cmpxchg16b, for lack of
 * kmalloc_nolock), silence is noticed at the first retransmission.
 */
static __always_inline void watch(struct subflow *subflow, struct tcp_sock *tp)
{
	if (subflow->armed || !(thresholds.no_progress_us || thresholds.silence_us))
		return;
	subflow->armed = 1;
	if (!bpf_timer_start(&subflow->timer, silence_limit_us(tp, 2) * NSEC_PER_USEC, 0))
		return;
	subflow->armed = 0;
	check_silence(subflow);
}

static __always_inline void prepare_timer(struct subflow *subflow)
{
	bpf_timer_init(&subflow->timer, &subflows, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&subflow->timer, on_timer);
}

static __always_inline void cancel_timer(struct subflow *subflow)
{
	bpf_timer_cancel(&subflow->timer);
}

#endif /* WITH_BCC */

#endif
