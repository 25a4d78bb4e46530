// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * The probes as bcc compiles them.  bpf/follow.h says what they do; here are the hooks:
 *
 *   sock_ops             (a cgroup's sockets) opens, establishes, an RTT sample, a
 *                        retransmission, a timeout, the final record
 *   mptcp_incoming_options   (fentry or kprobe) a segment of an MPTCP subflow arrived; where
 *   tcp_probe            the kernel allows neither, this raw tracepoint
 *   mptcp_subflow_get_send   (raw tracepoint) the scheduler considers the subflow
 *   inet_sock_set_state  (raw tracepoint) who connects, who listens
 *   sample               run by user space for one subflow: its exact present values
 *
 * There are no timers: silence is noticed when TCP retransmits a segment or a timeout
 * expires, and when full work is done for another subflow of the connection.
 */
#include <uapi/linux/ptrace.h>

#define WITH_BCC
#include "kernel.h"

struct subflow;
static inline __attribute__((always_inline)) void watch(struct subflow *subflow,
							struct tcp_sock *tp);
static inline __attribute__((always_inline)) void prepare_timer(struct subflow *subflow);
static inline __attribute__((always_inline)) void cancel_timer(struct subflow *subflow);

#include "follow.h"

static __always_inline void watch(struct subflow *subflow, struct tcp_sock *tp)
{
}

static __always_inline void prepare_timer(struct subflow *subflow)
{
}

static __always_inline void cancel_timer(struct subflow *subflow)
{
}

#define CALLBACKS                                                                    \
	(BPF_SOCK_OPS_RTO_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG |                   \
	 BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG)

/* Requests the callbacks, in addition to those that other programs requested. */
static __always_inline void ask(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | CALLBACKS);
}

int sock_ops(struct bpf_sock_ops *ops)
{
	struct subflow *subflow;
	struct owner *opener;
	struct tcp_sock *tp;
	struct sock *sk;
	u64 address;
	u32 op = ops->op;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_RTT_CB &&
	    op != BPF_SOCK_OPS_RETRANS_CB && op != BPF_SOCK_OPS_RTO_CB &&
	    op != BPF_SOCK_OPS_STATE_CB)
		return 1;
	if (!ops->sk)
		return 1;
	tp = bpf_skc_to_tcp_sock(ops->sk);
	if (!tp || !see(tp, is_mptcp))
		return 1;
	sk = as(sock, tp);
	switch (op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		bpf_get_socket_cookie(ops);
		ask(ops);
		address = (u64)sk;
		opener = bpf_map_lookup_elem(&openers, &address);
		opens(sk, opener);
		if (opener)
			bpf_map_delete_elem(&openers, &address);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		bpf_get_socket_cookie(ops);
		ask(ops);
		established(sk);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		if (due(sk, tp)) {
			subflow = find(sk);
			if (subflow)
				look(subflow, tp, true, false);
		}
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		segment_resent(sk, tp);
		break;
	case BPF_SOCK_OPS_RTO_CB:
		subflow = find(sk);
		if (subflow)
			check_silence(subflow);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			ended(sk, BPF_TCP_CLOSE);
		break;
	}
	return 1;
}

static __always_inline int came(u64 address, u64 segment)
{
	struct sock *sk = as(sock, address);
	struct tcp_sock *tp = as(tcp_sock, address);

	if (see(tp, is_mptcp))
		segment_arrived(sk, tp, as(sk_buff, segment));
	return 0;
}

/* fentry of mptcp_incoming_options(sk, skb), raw tracepoint tcp_probe(sk, skb). */
int segment_received(u64 *arguments)
{
	return came(arguments[0], arguments[1]);
}

int segment_received_kprobe(struct pt_regs *registers)
{
	return came(PT_REGS_PARM1(registers), PT_REGS_PARM2(registers));
}

int scheduler_looks(u64 *arguments)
{
	struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, arguments[0]);
	struct sock *sk = see(ctx, tcp_sock);

	scheduler_considered(sk, as(tcp_sock, sk));
	return 0;
}

int state_changes(u64 *arguments)
{
	struct sock *sk = as(sock, arguments[0]);
	u64 address = (u64)sk;
	struct owner caller = {};
	int old = arguments[1], new = arguments[2];

	if (see(sk, sk_protocol) != IPPROTO_TCP || !see(as(tcp_sock, sk), is_mptcp))
		return 0;
	if (new == TCP_LISTEN) {
		remember_listener(sk);
	} else if (old == TCP_LISTEN) {
		forget_listener(sk);
	} else if (new == TCP_SYN_SENT && opened_by_caller(sk)) {
		if (own_netns && netns_of(sk) != own_netns)
			return 0;
		present_owner(&caller);
		bpf_map_update_elem(&openers, &address, &caller, BPF_ANY);
	}
	return 0;
}

/* The argument is a subflow's cookie; the result is in its entry of the map. */
int sample(u64 *arguments)
{
	u64 cookie = arguments[0];
	struct subflow *subflow = bpf_map_lookup_elem(&subflows, &cookie);
	struct sock *sk;

	if (!subflow || subflow->closed)
		return 0;
	sk = as(sock, subflow->sk);
	if (assigned_cookie(sk) != cookie || see(sk, __sk_common.skc_state) == BPF_TCP_CLOSE) {
		/* Another sock_ops program removed the callbacks, so the end was not reported. */
		forget_connection(&subflow->m);
		bpf_map_delete_elem(&subflows, &cookie);
		return 0;
	}
	if (!subflow->established)
		name(&subflow->m, sk);
	look_at_connection(subflow, false);
	measure(subflow);
	return 0;
}
