/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Reads one subflow: its identity, once, and its present values, on request.
 */
#ifndef MEASURE_H
#define MEASURE_H

#include "state.h"

#ifndef token_of
#define token_of(ctx) see(ctx, token) /* a test gives two namespaces the same one */
#endif

#define UNSEEN (-1) /* all ones in a field of any width */

static __always_inline u32 interface_of(struct sock *sk)
{
	struct dst_entry *dst = as(dst_entry, see(sk, sk_dst_cache));
	struct net_device *dev;

	if (!dst)
		return UNSEEN;
	dev = as(net_device, see(dst, dev));
	return dev ? see(dev, ifindex) : UNSEEN;
}

static __always_inline u16 local_id_of(struct mptcp_subflow_context *ctx)
{
	/* A negative id is not yet chosen, and reads as all ones. */
	if (width_of(mptcp_subflow_context, local_id) == sizeof(s16))
		return see(ctx, local_id);
	struct mptcp_subflow_context___u8 *narrow = (void *)ctx;

	return see(narrow, local_id);
}

/* The subflow's addresses and ports. */
static __always_inline void name(struct measurement *m, struct sock *sk)
{
	put_address(m->local_ip, sk, skc_rcv_saddr, skc_v6_rcv_saddr);
	put_address(m->remote_ip, sk, skc_daddr, skc_v6_daddr);
	m->local_port = bpf_ntohs(see(as(inet_sock, sk), inet_sport));
	m->remote_port = bpf_ntohs(see(sk, __sk_common.skc_dport));
}

/* What does not change while the subflow exists. */
static __always_inline void identify(struct measurement *m, struct sock *sk,
				     struct mptcp_subflow_context *ctx, u64 cookie)
{
	m->cookie = cookie;
	m->netns = netns_of(sk);
	m->token = token_of(ctx);
	m->initial = !see_bit(ctx, request_join) && !see_bit(ctx, mp_join);
	m->opened_at = UNSEEN;
	m->owner_cgroup = UNSEEN;
	m->owner_pid = m->owner_uid = UNSEEN;
	name(m, sk);
}

static __always_inline void set_owner(struct measurement *m, struct owner *owner)
{
	m->owner_cgroup = owner->cgroup;
	m->owner_pid = owner->pid;
	m->owner_uid = owner->uid;
	__builtin_memcpy(m->owner_comm, owner->comm, COMM_SIZE);
}

/* The connection's owner: the process that opens it now, or that listens at its address. */
static __always_inline void adopt_owner(struct measurement *m, struct connection *connection,
					struct owner *opener)
{
	struct listener *listener;

	if (opener && opener->pid)
		connection->owner = *opener;
	if (!connection->owner.pid) {
		listener = listener_of(m);
		if (listener)
			connection->owner = listener->owner;
	}
	if (connection->owner.pid)
		set_owner(m, &connection->owner);
}

static __always_inline void measure_context(struct measurement *m,
					    struct mptcp_subflow_context *ctx)
{
	struct mptcp_sock *msk;

	m->local_id = local_id_of(ctx);
	m->remote_id = see(ctx, remote_id);
	m->backup = see_bit(ctx, request_bkup);
	m->backup_by_peer = see_bit(ctx, backup);
	m->stale = see_bit(ctx, stale);
	m->subflow_id = exists(mptcp_subflow_context, subflow_id) ? see(ctx, subflow_id) : UNSEEN;
	m->connection_bytes_acked = m->connection_reinjected = UNSEEN;
	m->connection_bytes_received = UNSEEN;
	msk = as(mptcp_sock, see(ctx, conn));
	if (msk && exists(mptcp_sock, bytes_acked)) {
		m->connection_bytes_acked = see(msk, bytes_acked);
		m->connection_reinjected = see(msk, bytes_retrans);
		m->connection_bytes_received = see(msk, bytes_received);
	}
	if (msk) {
		s64 window = see(msk, rcv_wnd_sent.counter) - see(msk, ack_seq);

		m->connection_window = window > 0 ? window : 0;
		m->connection_rcvbuf = see(msk, sk.icsk_inet.sk.sk_rcvbuf);
		m->connection_queued = see(msk, sk.icsk_inet.sk.sk_backlog.rmem_alloc.counter);
	}
}

/* How long data has been waiting behind the connection's present hole. */
static __always_inline u64 hole_age_us(struct measurement *m)
{
	struct connection_key key = { .netns = m->netns, .token = m->token };
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);
	u64 since;

	if (!connection)
		return UNSEEN;
	since = connection->hole_at;
	return since && m->at > since ? (m->at - since) / 1000 : 0;
}

/* Microseconds since any segment arrived: rcv_tstamp is set for acknowledgements and for what is
 * out of order, lrcvtime for data in order. */
static __always_inline u32 idle_us(struct tcp_sock *tp)
{
	u32 now = bpf_jiffies64();
	u32 since_ack = now - see(tp, rcv_tstamp);
	u32 since_data = now - see(tp, inet_conn.icsk_ack.lrcvtime);

	return (since_ack < since_data ? since_ack : since_data) * tick_us;
}

/* Reads the subflow's present values. */
static __noinline void measure(struct subflow *subflow)
{
	struct tcp_sock *tp = as(tcp_sock, subflow->sk);
	struct sock *sk = as(sock, subflow->sk);
	struct mptcp_subflow_context *ctx = subflow_context(tp);
	struct measurement *m = &subflow->m;
	u32 srtt = see(tp, srtt_us);
	u32 interface = interface_of(sk);

	m->at = bpf_ktime_get_ns();
	m->state = see(sk, __sk_common.skc_state);
	if (interface != (u32)UNSEEN || !m->if_index)
		m->if_index = interface;
	m->srtt_us = srtt ? srtt >> 3 : UNSEEN;
	m->rttvar_us = srtt ? see(tp, mdev_us) >> 2 : UNSEEN;
	m->min_rtt_us = see(tp, rtt_min.s[0].v); /* the kernel's own "none" is all ones */
	m->rtt_us = see(tp, rack.rtt_us) ?: (u32)UNSEEN;
	m->segments_out = see(tp, data_segs_out);
	m->bytes_sent = see(tp, bytes_sent);
	m->bytes_acked = see(tp, bytes_acked);
	m->bytes_retrans = see(tp, bytes_retrans);
	m->bytes_received = see(tp, bytes_received);
	m->segments_in = see(tp, data_segs_in);
	m->out_of_order = see(tp, rcv_ooopack);
	m->rcv_rtt_us = see(tp, rcv_rtt_est.rtt_us) >> 3 ?: (u32)UNSEEN;
	m->delivered = see(tp, delivered);
	m->retransmits = see(tp, total_retrans);
	m->lost = see(tp, lost);
	m->timeouts = see(tp, inet_conn.icsk_retransmits);
	m->reordering = see(tp, reord_seen);
	m->cwnd = see(tp, snd_cwnd);
	m->in_flight = see(tp, packets_out);
	m->rto_us = see(tp, inet_conn.icsk_rto) * tick_us;
	m->idle_us = idle_us(tp);
	m->connection_hole_us = hole_age_us(m);
	/* At the very end the kernel has freed the context: keep what was read last. */
	if (ctx)
		measure_context(m, ctx);
}

#endif
