/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Who holds a connection up (head-of-line blocking).
 *
 * The sender is blocked when the connection's window is closed with data waiting
 * (RFC 8684, 3.3.1: one receive window for all subflows) or when a writer waits for room
 * in the send buffer.  If meanwhile a subflow has room in its congestion window and
 * nothing queued, and a different, slower one holds unacknowledged data, that slower one
 * is to blame: the time since the connection was last looked at is charged to it.
 *
 * Looking back is right where this is called: an acknowledgement has arrived and is not
 * yet processed, so what is read is the state that held until now.  At most one look per
 * millisecond and connection.
 */
#ifndef STALL_H
#define STALL_H

#include "alarm.h"

#define STALL_GATE_NS 1000000ULL

static __always_inline bool blocked(struct mptcp_sock *msk)
{
	struct socket *socket;

	if (see(msk, first_pending) && see(msk, snd_nxt) >= see(msk, wnd_end))
		return true;
	socket = as(socket, see(msk, sk.icsk_inet.sk.sk_socket));
	return socket && see(socket, flags) & (1 << SOCK_NOSPACE);
}

static __always_inline bool could_send(struct tcp_sock *tp)
{
	u32 in_flight = see(tp, packets_out) - see(tp, sacked_out) - see(tp, lost_out) +
			see(tp, retrans_out);

	return in_flight < see(tp, snd_cwnd) && see(tp, write_seq) == see(tp, snd_nxt);
}

/* The slowest subflow with unacknowledged data while a faster one could send; 0: none. */
static __noinline u64 guilty_one(struct mptcp_sock *msk)
{
	u64 first = (u64)msk + bpf_core_field_offset(msk->conn_list);
	u64 node = (u64)see(msk, conn_list.next);
	u32 free_rtt = UNSEEN, guilty_rtt = 0;
	u64 guilty = 0;

	for (int i = 0; i < MAX_SIBLINGS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		struct tcp_sock *tp = as(tcp_sock, see(ctx, tcp_sock));
		u32 srtt = see(tp, srtt_us);

		if (see(tp, snd_una) != see(tp, write_seq) && srtt > guilty_rtt) {
			guilty_rtt = srtt;
			guilty = (u64)tp;
		}
		if (srtt < free_rtt && could_send(tp))
			free_rtt = srtt;
		node = (u64)see(ctx, node.next);
	}
	return free_rtt < guilty_rtt ? guilty : 0;
}

static __noinline void charge(u64 sk, u64 now, u64 stalled_us)
{
	struct sock *guilty = as(sock, sk);
	u64 cookie = see(guilty, __sk_common.skc_cookie.counter);
	struct subflow *subflow = bpf_map_lookup_elem(&subflows, &cookie);

	if (!subflow || subflow->sk != sk)
		return;
	__sync_fetch_and_add(&subflow->m.stalled_us, stalled_us);
	if (now - subflow->stall_second > NSEC_PER_SEC) {
		subflow->stall_second = now;
		subflow->stall_us = 0;
	}
	subflow->stall_us += stalled_us;
	if (thresholds.stall_us && subflow->stall_us >= thresholds.stall_us) {
		u32 sum = subflow->stall_us;

		subflow->stall_us = 0;
		raise(subflow, REPORT_STALL, sum, thresholds.stall_us);
	}
}

static __noinline void account_stall(struct subflow *subflow, u64 now)
{
	struct connection_key key = { .netns = subflow->m.netns, .token = subflow->m.token };
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);
	struct mptcp_subflow_context *ctx;
	struct mptcp_sock *msk;
	u64 since, guilty;

	if (!connection)
		return;
	since = connection->checked_at;
	if (now - since < STALL_GATE_NS || (s64)(now - since) < 0)
		return;
	connection->checked_at = now;
	ctx = subflow_context(as(tcp_sock, subflow->sk));
	if (!ctx)
		return;
	msk = as(mptcp_sock, see(ctx, conn));
	if (!msk || !blocked(msk))
		return;
	guilty = guilty_one(msk);
	if (guilty)
		charge(guilty, now, (now - since) / NSEC_PER_USEC);
}

#endif
