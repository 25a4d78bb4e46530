// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * The hooks: where the kernel tells about a subflow's life, and what is done there.
 *
 *   inet_sock_set_state      opens (who? the caller of connect or listen), establishes
 *   tcp_probe                a segment came in: RTT, loss seen by the receiver, stalls
 *   mptcp_subflow_get_send   the scheduler looks at the subflow: it is about to send
 *   tcp_retransmit_skb       loss and timeouts; nothing else fires on a dead path
 *   a timer per subflow      one shot after a look; again while data is in flight
 *   tcp_destroy_sock         the last word
 *   iter/tcp                 exact present values, and subflows older than the probes
 *
 * All are BTF tracepoints: they see every socket of every namespace, so a plain TCP
 * socket leaves after one load, and a subflow after a few unless it is time for a look.
 * Full work is done at most once per millisecond and subflow.
 */
#include "stall.h"

#define LOOK_GATE_US 1000ULL

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline struct subflow *find(struct sock *sk)
{
	u64 cookie = sk->__sk_common.skc_cookie.counter;

	return bpf_map_lookup_elem(&subflows, &cookie);
}

/* Starts to follow a subflow. `owner` is who opened it, NULL if that is not known here. */
static __noinline struct subflow *follow(struct sock *sk, struct owner *owner)
{
	struct tcp_sock *tp = as(tcp_sock, sk);
	struct mptcp_subflow_context *ctx = subflow_context(tp);
	u64 cookie = bpf_get_socket_cookie(sk);
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
	subflow->segments_seen = see(tp, data_segs_out) + see(tp, data_segs_in);
	subflow->baseline_us = see(tp, srtt_us) >> 3;
	bpf_timer_init(&subflow->timer, &subflows, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&subflow->timer, on_timer);
	connection = connection_of(&subflow->m);
	if (connection) {
		__sync_fetch_and_add(&connection->subflows, 1);
		adopt_owner(&subflow->m, connection, owner);
	}
	return subflow;
}

/*
 * Whether the subflow is due for a look; the caller then takes it.  tcp_mstamp costs
 * nothing to read, but at tcp_probe it is that of the event before: after a pause only
 * the kernel's tick tells that time has passed.
 */
static __always_inline bool due(struct sock *sk, struct tcp_sock *tp)
{
	u64 cookie = sk->__sk_common.skc_cookie.counter;
	u64 at = see(tp, tcp_mstamp), tick = bpf_jiffies64();
	struct gate *gate = &gates[cookie % GATES];

	if (gate->cookie == cookie && gate->tick == tick && at - gate->mstamp < LOOK_GATE_US)
		return false;
	gate->cookie = cookie;
	gate->tick = tick;
	gate->mstamp = at;
	return true;
}

/* What a look at a live subflow always does: new samples, new segments, the timer. */
static __noinline void look(struct subflow *subflow, struct tcp_sock *tp, bool heard, bool wrong)
{
	u64 sample_at = see(tp, rack.mstamp);

	if (sample_at != subflow->sample_at) {
		subflow->sample_at = sample_at;
		consider_rtt(subflow, tp);
	}
	consider_loss(subflow, tp, 0, wrong);
	watch(subflow, tp);
	account_stall(subflow, bpf_ktime_get_ns(), heard);
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(segment_received, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = as(tcp_sock, sk);
	struct subflow *subflow;
	bool wrong;

	if (!see(tp, is_mptcp))
		return 0;
	wrong = came_wrong(tp, skb);
	if (!due(sk, tp) && !wrong)
		return 0;
	subflow = find(sk);
	if (!subflow) {
		subflow = follow(sk, NULL);
		if (!subflow)
			return 0;
		subflow->established = 1;
	}
	look(subflow, tp, true, wrong);
	return 0;
}

/* The scheduler is about to choose where to send: what a dead path still lets be seen. */
SEC("tp_btf/mptcp_subflow_get_send")
int BPF_PROG(scheduler_looks, struct mptcp_subflow_context *subflow_ctx)
{
	struct sock *sk = subflow_ctx->tcp_sock;
	struct tcp_sock *tp = as(tcp_sock, sk);
	struct subflow *subflow;

	if (!due(sk, tp))
		return 0;
	subflow = find(sk);
	if (subflow)
		look(subflow, tp, false, false);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(segment_retransmitted, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = as(tcp_sock, sk);
	struct subflow *subflow;
	u32 timeouts;

	if (!see(tp, is_mptcp))
		return 0;
	subflow = find(sk);
	if (!subflow)
		return 0;
	timeouts = see(tp, inet_conn.icsk_retransmits);
	if (thresholds.timeouts && timeouts >= thresholds.timeouts)
		raise(subflow, REPORT_TIMEOUTS, timeouts, thresholds.timeouts);
	consider_loss(subflow, tp, 1, false);
	watch(subflow, tp);
	return 0;
}

static __always_inline struct listener_key listener_key(struct sock *sk)
{
	/* inet_sport, because a closing socket has given its skc_num back already. */
	struct listener_key key = { .netns = netns_of(sk),
				    .port = bpf_ntohs(see(as(inet_sock, sk), inet_sport)) };

	put_address(key.ip, sk, skc_rcv_saddr, skc_v6_rcv_saddr);
	return key;
}

static __always_inline void remember_listener(struct sock *sk)
{
	struct listener listener = { .cookie = bpf_get_socket_cookie(sk) };
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
	/* With SO_REUSEPORT another socket may have taken the name over. */
	if (listener && listener->cookie == sk->__sk_common.skc_cookie.counter)
		bpf_map_delete_elem(&listeners, &key);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_changes, struct sock *sk, int old, int new)
{
	struct owner caller = {};
	struct subflow *subflow;

	/* The MPTCP socket itself comes by here too; it is no tcp_sock. */
	if (sk->sk_protocol != IPPROTO_TCP || !see(as(tcp_sock, sk), is_mptcp))
		return 0;
	if (new == TCP_LISTEN) {
		remember_listener(sk);
	} else if (old == TCP_LISTEN) {
		forget_listener(sk);
	} else if (new == TCP_SYN_SENT) {
		/* Only the initial subflow is opened by the caller of connect(). */
		struct mptcp_subflow_context *ctx = subflow_context(as(tcp_sock, sk));

		if (ctx && !see_bit(ctx, request_join))
			present_owner(&caller);
		subflow = follow(sk, &caller);
		if (subflow)
			subflow->m.opened_at = bpf_ktime_get_ns();
	} else if (new == TCP_ESTABLISHED) {
		subflow = find(sk) ?: follow(sk, &caller);
		if (subflow) {
			subflow->established = 1;
			name(&subflow->m, sk); /* connect() chooses the port after SYN_SENT */
			if (subflow->m.opened_at == UNSEEN)
				subflow->m.opened_at = bpf_ktime_get_ns();
		}
	}
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(socket_destroyed, struct sock *sk)
{
	struct subflow *subflow;
	struct report *report;
	u64 cookie;

	if (!see(as(tcp_sock, sk), is_mptcp))
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	subflow = bpf_map_lookup_elem(&subflows, &cookie);
	if (!subflow)
		return 0;
	forget_connection(&subflow->m);
	if (subflow->established) {
		measure(subflow);
		report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
		if (!report) {
			bpf_timer_cancel(&subflow->timer);
			subflow->closed = 1;
			count(last_words_kept);
			return 0;
		}
		report->kind = REPORT_ENDED;
		report->value = report->limit = 0;
		__builtin_memcpy(&report->seen, &subflow->m, sizeof(report->seen));
		bpf_ringbuf_submit(report, 0);
	}
	bpf_map_delete_elem(&subflows, &cookie);
	return 0;
}

SEC("iter/tcp")
int sample(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct subflow *subflow;
	struct sock *sk;
	u8 state;

	if (!common)
		return 0;
	state = common->skc_state;
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || state == TCP_LISTEN)
		return 0; /* the first two are no full sockets */
	sk = (struct sock *)bpf_skc_to_tcp_sock(common);
	if (!sk || !see(as(tcp_sock, sk), is_mptcp))
		return 0;
	subflow = find(sk);
	if (!subflow) {
		subflow = follow(sk, NULL);
		if (!subflow)
			return 0;
		subflow->established = state != TCP_SYN_SENT;
	}
	if (!subflow->established)
		name(&subflow->m, sk);
	account_stall(subflow, bpf_ktime_get_ns(), false);
	measure(subflow);
	bpf_seq_write(ctx->meta->seq, &subflow->m, sizeof(subflow->m));
	return 0;
}
