/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Which subflow holds a connection up (head-of-line blocking at the sender).
 *
 * The sender is blocked when the connection's window is closed with data waiting
 * (RFC 8684, 3.3.1: one receive window for all subflows) or when a writer waits for room
 * in the send buffer.  If meanwhile a subflow has room in its congestion window and
 * nothing queued, and a different, slower or silent one holds unacknowledged data, the time
 * since the connection was last checked is charged to that one.
 *
 * Charging past time is right where this is called: an acknowledgement has arrived and is not
 * yet processed, so what is read is the state that held until now.
 */
#ifndef STALL_H
#define STALL_H

#include "alarm.h"

static __always_inline bool blocked(struct mptcp_sock *msk)
{
	struct socket *socket;

	if (see(msk, first_pending) && see(msk, snd_nxt) >= see(msk, wnd_end))
		return true;
	socket = as(socket, see(msk, sk.icsk_inet.sk.sk_socket));
	return socket && see(socket, flags) & (1 << SOCK_NOSPACE);
}

/*
 * There is room in the congestion window, and data waits for nothing but the peer's window:
 * the subflows share that one, so a full one blocks the whole connection.
 */
static __always_inline bool could_send(struct tcp_sock *tp)
{
	u32 in_flight = see(tp, packets_out) - see(tp, sacked_out) - see(tp, lost_out) +
			see(tp, retrans_out);

	return in_flight < see(tp, snd_cwnd) &&
	       (see(tp, write_seq) == see(tp, snd_nxt) ||
		(s32)(see(tp, write_seq) - see(tp, snd_una) - see(tp, snd_wnd)) > 0);
}

/* The entry of the subflow whose socket is at this address; NULL: it is not followed. */
static __always_inline struct subflow *subflow_at(u64 address)
{
	u64 cookie = see(as(sock, address), __sk_common.skc_cookie.counter);
	struct subflow *subflow = bpf_map_lookup_elem(&subflows, &cookie);

	return subflow && subflow->sk == address ? subflow : NULL;
}

/*
 * RTT of the fastest subflow, other than the one at `except`, that could send; or all ones.
 * The least RTT: any queue of its own that its srtt still includes has drained since.
 */
static __noinline u32 fastest_free(struct mptcp_sock *msk, u64 except)
{
	u64 first = (u64)msk + offset_of(mptcp_sock, conn_list);
	u64 node = (u64)see(msk, conn_list.next);
	u32 fastest = UNSEEN;

	for (int i = 0; i < MAX_SIBLINGS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		struct tcp_sock *tp = as(tcp_sock, see(ctx, tcp_sock));
		u32 rtt = see(tp, rtt_min.s[0].v);

		if ((u64)tp != except && rtt < fastest && could_send(tp))
			fastest = rtt;
		node = (u64)see(ctx, node.next);
	}
	return fastest;
}

/*
 * The subflow whose unacknowledged data has been under way the longest, by its smoothed round
 * trip or its silence, if another that has room is faster than that; NULL: none.
 * `heard` is the socket that a segment has just arrived on: it is not silent.  0: none.
 */
static __noinline struct subflow *slowest_holder(struct mptcp_sock *msk, u64 now, u64 heard)
{
	u64 first = (u64)msk + offset_of(mptcp_sock, conn_list);
	u64 node = (u64)see(msk, conn_list.next);
	u64 longest = 0, slowest = 0;
	struct subflow *slowest_one;

	for (int i = 0; i < MAX_SIBLINGS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		struct tcp_sock *tp = as(tcp_sock, see(ctx, tcp_sock));

		if (see(tp, snd_una) != see(tp, write_seq)) {
			u64 on_the_way = see(tp, srtt_us) >> 3;
			u64 silence = (u64)tp == heard ? 0 : silence_us(tp, now);

			if (silence > on_the_way)
				on_the_way = silence;
			if (on_the_way > longest) {
				longest = on_the_way;
				slowest = (u64)tp;
			}
		}
		node = (u64)see(ctx, node.next);
	}
	if (!slowest)
		return NULL;
	slowest_one = subflow_at(slowest);
	return slowest_one && fastest_free(msk, slowest) < longest ? slowest_one : NULL;
}

static __noinline void charge(struct subflow *subflow, u64 now, u64 stalled_us)
{
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

/*
 * Charges the time between `since` and `now`, if the sender was blocked.  `heard` is the
 * socket that a segment has just arrived on, 0: none.
 */
static __always_inline void account_stall(struct mptcp_sock *msk, u64 since, u64 now, u64 heard)
{
	struct subflow *slowest_one;

	if (!blocked(msk))
		return;
	slowest_one = slowest_holder(msk, now, heard);
	if (slowest_one)
		charge(slowest_one, now, (now - since) / NSEC_PER_USEC);
}

#endif
