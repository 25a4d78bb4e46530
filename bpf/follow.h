/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * A subflow from its start to its end, whichever hooks report it: it opens, is established,
 * receives and retransmits segments, is considered by the scheduler, ends.
 *
 * Full work is done at most once per millisecond and subflow.
 */
#ifndef FOLLOW_H
#define FOLLOW_H

#include "hole.h"

#define LOOK_GATE_US 1000ULL

static __always_inline struct subflow *find(struct sock *sk)
{
	u64 cookie = see(sk, __sk_common.skc_cookie.counter);

	return bpf_map_lookup_elem(&subflows, &cookie);
}

/* Starts to follow a subflow. `owner` is the process that opened it, NULL: not known here. */
static __noinline struct subflow *follow(struct sock *sk, struct owner *owner)
{
	struct tcp_sock *tp = as(tcp_sock, sk);
	struct mptcp_subflow_context *ctx = subflow_context(tp);
	u64 cookie = assigned_cookie(sk);
	struct connection *connection;
	struct subflow *subflow;

	if (!ctx || !token_of(ctx) || (own_netns && netns_of(sk) != own_netns))
		return NULL;
	if (bpf_map_update_elem(&subflows, &cookie, blank, BPF_NOEXIST)) {
		count(subflows_refused);
		return NULL;
	}
	subflow = bpf_map_lookup_elem(&subflows, &cookie);
	if (!subflow)
		return NULL;
	subflow->sk = (u64)sk;
	identify(&subflow->m, sk, ctx, cookie);
	subflow->sent_seen = see(tp, data_segs_out);
	subflow->received_seen = see(tp, data_segs_in);
	subflow->baseline_us = see(tp, srtt_us) >> 3;
	prepare_timer(subflow);
	connection = connection_of(&subflow->m);
	if (connection) {
		__sync_fetch_and_add(&connection->alive, 1);
		adopt_owner(&subflow->m, connection, owner);
	}
	return subflow;
}

/*
 * Whether the subflow is due for full work, which the caller then does.  tcp_mstamp costs
 * nothing to read, but at tcp_probe it is that of the previous event: after a pause only
 * the kernel's tick shows that time has passed.
 */
static __always_inline bool due(struct sock *sk, struct tcp_sock *tp)
{
	u64 cookie = see(sk, __sk_common.skc_cookie.counter);
	u64 at = see(tp, tcp_mstamp), tick = bpf_jiffies64();
	struct gate *gate = &gates[cookie % GATES];

	if (gate->cookie == cookie && gate->tick == tick && at - gate->mstamp < LOOK_GATE_US)
		return false;
	gate->cookie = cookie;
	gate->tick = tick;
	gate->mstamp = at;
	return true;
}

/* The full work on a live subflow: new samples, new segments, the timer, the connection. */
static __noinline void look(struct subflow *subflow, struct tcp_sock *tp, bool heard, bool misplaced)
{
	struct sock *sk = as(sock, tp);
	u64 sample_at = see(tp, rack.mstamp);

	/* It may be older than the probes, or the kernel skipped the run that reports this. */
	if (!subflow->established && see(sk, __sk_common.skc_state) == TCP_ESTABLISHED) {
		subflow->established = 1;
		name(&subflow->m, sk);
	}
	if (sample_at != subflow->sample_at) {
		subflow->sample_at = sample_at;
		check_rtt(subflow, tp);
	}
	check_loss(subflow, tp, 0, misplaced);
	watch(subflow, tp);
	look_at_connection(subflow, heard);
}

/* A segment arrived; it is not yet processed. */
static __always_inline void segment_arrived(struct sock *sk, struct tcp_sock *tp, struct sk_buff *skb)
{
	bool misplaced = arrived_misplaced(tp, skb);
	struct subflow *subflow;

	notice_hole(sk, tp);
	if (!due(sk, tp) && !misplaced)
		return;
	subflow = find(sk);
	if (!subflow && REPORTS_ENDS_OF_OLDER)
		subflow = follow(sk, NULL);
	if (!subflow)
		return;
	note_reached(subflow, tp);
	look(subflow, tp, true, misplaced);
}

/* The scheduler is about to choose where to send: this happens on a dead path, too. */
static __always_inline void scheduler_considered(struct sock *sk, struct tcp_sock *tp)
{
	struct subflow *subflow;

	if (!due(sk, tp))
		return;
	subflow = find(sk);
	if (subflow)
		look(subflow, tp, false, false);
}

static __always_inline void segment_resent(struct sock *sk, struct tcp_sock *tp)
{
	struct subflow *subflow = find(sk);
	u32 timeouts;

	if (!subflow)
		return;
	timeouts = see(tp, inet_conn.icsk_retransmits);
	if (thresholds.timeouts && timeouts >= thresholds.timeouts)
		raise(subflow, REPORT_TIMEOUTS, timeouts, thresholds.timeouts);
	check_loss(subflow, tp, 1, false);
	watch(subflow, tp);
}

/* Only the initial subflow is opened by the caller of connect(). */
static __always_inline bool opened_by_caller(struct sock *sk)
{
	struct mptcp_subflow_context *ctx = subflow_context(as(tcp_sock, sk));

	return ctx && !see_bit(ctx, request_join);
}

/* The first SYN is sent. `owner` is the process that connects, NULL: not known here. */
static __always_inline void opens(struct sock *sk, struct owner *owner)
{
	struct subflow *subflow = follow(sk, owner);

	if (subflow)
		subflow->m.opened_at = bpf_ktime_get_ns();
}

/* In brackets, so that a test can have the call of it skipped by a macro. */
static __always_inline void (established)(struct sock *sk)
{
	struct subflow *subflow = find(sk) ?: follow(sk, NULL);

	if (!subflow)
		return;
	subflow->established = 1;
	subflow->final = 0;
	name(&subflow->m, sk); /* connect() chooses the port after SYN_SENT */
	if (subflow->m.opened_at == UNSEEN)
		subflow->m.opened_at = bpf_ktime_get_ns();
}

/*
 * The subflow is closed.  The initial subflow's socket is kept for as long as the
 * connection's, and its counters are cleared meanwhile (net/mptcp/protocol.c,
 * __mptcp_subflow_disconnect): their final values are read now.
 */
static __always_inline void closed_by_tcp(struct sock *sk)
{
	struct subflow *subflow = find(sk);

	if (!subflow || subflow->closed || !subflow->established)
		return;
	measure(subflow);
	subflow->final = 1;
}

/* The final record: into the ring buffer, or kept in the map until user space collects it. */
static __always_inline void ended(struct sock *sk, u8 state)
{
	u64 cookie = see(sk, __sk_common.skc_cookie.counter);
	struct subflow *subflow = bpf_map_lookup_elem(&subflows, &cookie);
	struct report *report;

	if (!subflow || subflow->closed)
		return;
	if (subflow->established && !subflow->final)
		measure(subflow);
	forget_connection(&subflow->m);
	if (subflow->established) {
		subflow->m.state = state;
		report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
		if (!report) {
			cancel_timer(subflow);
			subflow->closed = 1;
			count(final_records_kept);
			return;
		}
		report->kind = REPORT_ENDED;
		report->value = report->limit = 0;
		__builtin_memcpy(&report->seen, &subflow->m, sizeof(report->seen));
		bpf_ringbuf_submit(report, 0);
	}
	bpf_map_delete_elem(&subflows, &cookie);
}

static __always_inline struct listener_key listener_key(struct sock *sk)
{
	/* inet_sport, because a closing socket has returned its skc_num already. */
	struct listener_key key = { .netns = netns_of(sk),
				    .port = bpf_ntohs(see(as(inet_sock, sk), inet_sport)) };

	put_address(key.ip, sk, skc_rcv_saddr, skc_v6_rcv_saddr);
	return key;
}

static __always_inline void remember_listener(struct sock *sk)
{
	struct listener listener = { .sk = (u64)sk };
	struct listener_key key = listener_key(sk);

	if (own_netns && key.netns != own_netns)
		return;
	present_owner(&listener.owner);
	if (bpf_map_update_elem(&listeners, &key, &listener, BPF_ANY))
		count(listeners_refused);
}

static __always_inline void forget_listener(struct sock *sk)
{
	struct listener_key key = listener_key(sk);
	struct listener *listener;

	listener = bpf_map_lookup_elem(&listeners, &key);
	/* With SO_REUSEPORT another socket may have replaced the entry. */
	if (listener && listener->sk == (u64)sk)
		bpf_map_delete_elem(&listeners, &key);
}

#endif
