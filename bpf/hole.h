/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Which subflow the receiver waits for (head-of-line blocking at the receiving end).
 *
 * While the connection's out_of_order_queue is not empty, data waits behind a hole at
 * ack_seq.  The time from the segment that opened the hole to the segment that closed it
 * is charged to the subflow that held the missing data.
 *
 * A segment is seen before it is processed, so what is read then is what the segment
 * before it left behind: if ack_seq has advanced, that one did it, when it came.  Where
 * the process held the MPTCP socket meanwhile (mptcp_data_ready), it may have been an
 * earlier one: the mappings of the subflows (map_seq) tell whose data it was.
 *
 * The mappings that a subflow delivers in order ascend, unless the peer sends data of
 * another subflow again on it (__mptcp_retrans).  Then not the subflow that filled the
 * hole held the data, but another one, which has not yet come as far: the one nearest
 * before the hole.  If there is none (it is closed), the time is charged to nobody.
 */
#ifndef HOLE_H
#define HOLE_H

#include "stall.h"

#define CONNECTION_GATE_NS 1000000ULL
#define NSEC_PER_MSEC 1000000ULL

static __always_inline bool lies_after(u64 seq, u64 other)
{
	return (s64)(seq - other) > 0;
}

static __always_inline bool covers(struct mptcp_subflow_context *ctx, u64 seq)
{
	return seq - see(ctx, map_seq) < see(ctx, map_data_len);
}

/*
 * The subflow, other than that of the socket `except`, that has received data, has come
 * nowhere beyond `seq` and is nearest to it; NULL: none.
 */
static __noinline struct subflow *nearest_before(struct mptcp_sock *msk, u64 seq, u64 except)
{
	u64 first = (u64)msk + offset_of(mptcp_sock, conn_list);
	u64 node = (u64)see(msk, conn_list.next);
	struct subflow *nearest = NULL;
	u64 distance = -1ULL;

	for (int i = 0; i < MAX_SIBLINGS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		struct tcp_sock *tp = as(tcp_sock, see(ctx, tcp_sock));
		struct subflow *subflow = subflow_at((u64)tp);
		u64 start = see(ctx, map_seq);

		if (subflow && (u64)tp != except && see(tp, bytes_received)) {
			if (subflow->reached && lies_after(subflow->reached, start))
				start = subflow->reached; /* it repeats data of another */
			if (!lies_after(start, seq) && seq - start < distance) {
				distance = seq - start;
				nearest = subflow;
			}
		}
		node = (u64)see(ctx, node.next);
	}
	return nearest;
}

/* The socket whose present mapping covers `seq`; 0: none. */
static __noinline u64 covering(struct mptcp_sock *msk, u64 seq)
{
	u64 first = (u64)msk + offset_of(mptcp_sock, conn_list);
	u64 node = (u64)see(msk, conn_list.next);

	for (int i = 0; i < MAX_SIBLINGS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);

		if (covers(ctx, seq))
			return (u64)see(ctx, tcp_sock);
		node = (u64)see(ctx, node.next);
	}
	return 0;
}

/* Remembers how far the subflow has come; after the holes are accounted that it filled. */
static __always_inline void note_reached(struct subflow *subflow, struct tcp_sock *tp)
{
	struct mptcp_subflow_context *ctx = subflow_context(tp);
	u64 start;

	if (!ctx)
		return;
	start = see(ctx, map_seq);
	if (!subflow->reached || lies_after(start, subflow->reached))
		subflow->reached = start;
}

/*
 * The subflow that held the data at `seq`, which has just come; NULL: unknown or closed.
 * `before` is the socket of the newest segment that was processed, 0: unknown.
 */
static __noinline struct subflow *holder(struct mptcp_sock *msk, u64 seq, u64 before)
{
	struct subflow *filler = before ? subflow_at(before) : NULL;
	struct mptcp_subflow_context *ctx;
	u64 other;

	ctx = filler ? subflow_context(as(tcp_sock, before)) : NULL;
	if (!ctx || !covers(ctx, seq)) {
		other = covering(msk, seq);
		if (other) {
			before = other;
			filler = subflow_at(before);
		}
	}
	if (!filler)
		return NULL;
	if (filler->reached && lies_after(filler->reached, seq))
		return nearest_before(msk, seq, before);
	note_reached(filler, as(tcp_sock, before));
	return filler;
}

/*
 * Whether the subflow's share of the time, since the present second began, is large against
 * its share of the data that the connection received meanwhile.  Not before twice hole_us of
 * it has passed: a subflow that begins to send is behind the others for some round trips.
 */
static __always_inline bool costs_more_than_it_carries(struct subflow *subflow, u64 now, u64 ack)
{
	struct tcp_sock *tp = as(tcp_sock, subflow->sk);
	u64 elapsed_us = (now - subflow->hole_second) / NSEC_PER_USEC;
	u64 carried = see(tp, bytes_received) - subflow->hole_received;
	u64 total = ack - subflow->hole_seq;

	if (elapsed_us < 2ULL * thresholds.hole_us)
		return false;
	/* Kilobytes and milliseconds: products of these fit. */
	return (subflow->hole_ns / NSEC_PER_MSEC) * (total / 1000) * 100 >=
	       (elapsed_us / 1000) * (carried / 1000) * thresholds.hole_factor_percent;
}

/* `ack` is the connection's ack_seq now. */
static __noinline void charge_hole(struct subflow *subflow, struct connection *connection, u64 now,
				   u64 hole_ns, u64 ack)
{
	struct tcp_sock *tp = as(tcp_sock, subflow->sk);
	u64 sum;

	__sync_fetch_and_add(&subflow->holes_ns, hole_ns);
	subflow->m.holes_us = subflow->holes_ns / NSEC_PER_USEC;
	if (now - subflow->hole_second > NSEC_PER_SEC) {
		subflow->hole_second = now - hole_ns;
		subflow->hole_ns = 0;
		subflow->hole_received = see(tp, bytes_received);
		subflow->hole_seq = connection->hole_seq;
	}
	subflow->hole_ns += hole_ns;
	sum = subflow->hole_ns / NSEC_PER_USEC;
	if (thresholds.hole_us && sum >= thresholds.hole_us &&
	    costs_more_than_it_carries(subflow, now, ack)) {
		subflow->hole_ns = 0;
		raise(subflow, REPORT_HOLE, sum, thresholds.hole_us);
	}
}

/*
 * When the newest segment came in on a subflow.  tcp_mstamp is that moment, unless the
 * subflow has sent something since (a delayed acknowledgement): then the kernel's tick
 * tells it.
 */
static __always_inline u64 came_at(struct tcp_sock *tp, u64 now)
{
	u64 stamp = see(tp, tcp_mstamp) * NSEC_PER_USEC;
	u64 idle = idle_us(tp), latest = now;

	if (idle > tick_us)
		latest -= (idle - tick_us) * NSEC_PER_USEC;
	return stamp < latest ? stamp : latest;
}

/* Charges a hole that was closed, and notes one that was opened, since the last call. */
static __noinline void account_hole(struct connection *connection, struct mptcp_sock *msk,
				    u64 before, u64 now)
{
	u64 ack = see(msk, ack_seq), opened, since = connection->hole_at;
	struct subflow *held;

	if (since && ack == connection->hole_seq)
		return;
	if (since) {
		opened = connection->heard_at;
		connection->hole_at = 0;
		held = holder(msk, connection->hole_seq, before);
		if (held && opened > since)
			charge_hole(held, connection, now, opened - since, ack);
	} else {
		opened = before && subflow_at(before) ? came_at(as(tcp_sock, before), now) : now;
		connection->heard_at = opened;
	}
	if (see(msk, out_of_order_queue.rb_node)) {
		connection->hole_seq = ack;
		connection->hole_at = opened;
	}
}

/* A segment came in: the cheap part, while nothing waits and nothing waited before. */
static __always_inline void notice_hole(struct sock *sk, struct tcp_sock *tp)
{
	struct mptcp_subflow_context *ctx = subflow_context(tp);
	struct connection_key key = {};
	struct connection *connection;
	struct arrival *arrival;
	struct mptcp_sock *msk;
	u64 before, waited, waits, now;

	if (!ctx)
		return;
	msk = as(mptcp_sock, see(ctx, conn));
	key.token = token_of(ctx);
	arrival = &arrivals[key.token % ARRIVALS];
	before = arrival->sk;
	waited = arrival->waits;
	if (arrival->msk != (u64)msk) {
		arrival->msk = (u64)msk;
		before = waited = 0;
	}
	arrival->sk = (u64)sk;
	waits = see(msk, out_of_order_queue.rb_node) != NULL;
	arrival->waits = waits;
	if (!waits && !waited)
		return;
	key.netns = netns_of(sk);
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection)
		return;
	now = bpf_ktime_get_ns();
	account_hole(connection, msk, before, now);
	connection->heard_at = now;
}

/*
 * Tells of the subflow that the hole seems to wait for, if it is silent.  `heard` is the
 * socket that a segment has just come in on, 0: none.  There is a hole.
 */
static __noinline void check_quiet_holder(struct connection *connection, struct mptcp_sock *msk,
				      u64 now, u64 heard)
{
	u64 since = connection->hole_at, age, quiet, limit;
	struct subflow *subflow;
	struct tcp_sock *tp;

	if (!thresholds.silence_us || now < since)
		return;
	age = (now - since) / NSEC_PER_USEC;
	if (age < thresholds.silence_us)
		return;
	subflow = nearest_before(msk, connection->hole_seq, 0);
	if (!subflow || subflow->sk == heard)
		return;
	tp = as(tcp_sock, subflow->sk);
	quiet = idle_us(tp);
	if (age < quiet)
		quiet = age;
	limit = see(tp, srtt_us) >> 3 ?: see(tp, rcv_rtt_est.rtt_us) >> 3;
	limit = limit * thresholds.silence_factor_percent / 100;
	if (limit < thresholds.silence_us)
		limit = thresholds.silence_us;
	if (quiet < subflow->quiet_us)
		subflow->quiet_us = 0;
	/* Told once; again when the silence has doubled. */
	if (quiet >= limit && quiet >= 2 * subflow->quiet_us) {
		subflow->quiet_us = quiet;
		raise(subflow, REPORT_SILENCE, quiet, limit);
	}
}

/* Accounts holes, and stalls and silence at most once per millisecond and connection. */
static __noinline void look_at_connection(struct subflow *subflow, bool heard)
{
	struct connection_key key = { .netns = subflow->m.netns, .token = subflow->m.token };
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);
	u64 now = bpf_ktime_get_ns(), since;
	struct mptcp_subflow_context *ctx;
	struct arrival *arrival;
	struct mptcp_sock *msk;

	ctx = subflow_context(as(tcp_sock, subflow->sk));
	msk = ctx ? as(mptcp_sock, see(ctx, conn)) : NULL;
	if (!connection || !msk)
		return;
	arrival = &arrivals[key.token % ARRIVALS];
	if (!heard)
		account_hole(connection, msk, arrival->msk == (u64)msk ? arrival->sk : 0, now);
	else if (connection->hole_at)
		account_hole(connection, msk, 0, now); /* another connection has its slot */
	since = connection->checked_at;
	if (now - since < CONNECTION_GATE_NS || (s64)(now - since) < 0)
		return;
	connection->checked_at = now;
	if (connection->hole_at)
		check_quiet_holder(connection, msk, now, heard ? subflow->sk : 0);
	account_stall(msk, since, now, heard ? subflow->sk : 0);
}

#ifndef WITH_BCC

/*
 * A subflow's timer has run out: data may wait while nothing at all comes in.  Returns when
 * to look again, us; 0: no data waits.
 */
static __noinline u64 recheck_hole(struct subflow *subflow)
{
	struct connection_key key = { .netns = subflow->m.netns, .token = subflow->m.token };
	struct connection *connection;

	look_at_connection(subflow, false);
	connection = bpf_map_lookup_elem(&connections, &key);
	return connection && connection->hole_at ? thresholds.silence_us : 0;
}

#endif

#endif
