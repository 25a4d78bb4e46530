// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * The hooks at which the kernel reports a subflow's events, and what is done there.
 *
 *   inet_sock_set_state      opens (its owner is the caller of connect or listen), is established, closed
 *   tcp_probe                a segment arrived: RTT, loss, stalls, holes
 *   mptcp_subflow_get_send   the scheduler considers the subflow: it is about to send
 *   tcp_retransmit_skb       loss and timeouts; no other hook fires on a dead path
 *   a timer per subflow      once after full work; again while data is in flight or waits
 *   tcp_destroy_sock         the final record
 *   iter/tcp                 exact present values, and subflows older than the probes
 *
 * All are BTF tracepoints: they see every socket of every namespace, so a plain TCP
 * socket leaves after one load, and a subflow after a few unless full work is due.
 */
#include "follow.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/tcp_probe")
int BPF_PROG(segment_received, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = as(tcp_sock, sk);

	if (see(tp, is_mptcp))
		segment_arrived(sk, tp, skb);
	return 0;
}

SEC("tp_btf/mptcp_subflow_get_send")
int BPF_PROG(scheduler_looks, struct mptcp_subflow_context *subflow_ctx)
{
	struct sock *sk = subflow_ctx->tcp_sock;

	scheduler_considered(sk, as(tcp_sock, sk));
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(segment_retransmitted, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = as(tcp_sock, sk);

	if (see(tp, is_mptcp))
		segment_resent(sk, tp);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_changes, struct sock *sk, int old, int new)
{
	struct owner caller = {};

	/* This fires for the MPTCP socket itself, too; it is no tcp_sock. */
	if (sk->sk_protocol != IPPROTO_TCP || !see(as(tcp_sock, sk), is_mptcp))
		return 0;
	if (new == TCP_LISTEN) {
		remember_listener(sk);
	} else if (old == TCP_LISTEN) {
		forget_listener(sk);
	} else if (new == TCP_SYN_SENT) {
		if (opened_by_caller(sk))
			present_owner(&caller);
		opens(sk, &caller);
	} else if (new == TCP_ESTABLISHED) {
		established(sk);
	} else if (new == TCP_CLOSE) {
		closed_by_tcp(sk);
	}
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(socket_destroyed, struct sock *sk)
{
	if (see(as(tcp_sock, sk), is_mptcp))
		ended(sk, see(sk, __sk_common.skc_state));
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
	look_at_connection(subflow, false);
	measure(subflow);
	bpf_seq_write(ctx->meta->seq, &subflow->m, sizeof(subflow->m));
	return 0;
}
