/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Traces the scheduler: counts, by subflow, what it chose, and why.
 *
 * Part of trace.bpf.c, whose wanted() and lost it uses.
 */
#ifndef TRACE_SCHEDULE_H
#define TRACE_SCHEDULE_H

/* Only these make the compiler write the layouts into the BTF. */
const struct trace_share *share_layout = 0;
const struct trace_rounds *rounds_layout = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, u64); /* socket cookie */
	__type(value, struct trace_share);
} shares SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct trace_connection);
	__type(value, struct trace_rounds);
} rounds SEC(".maps");

static __noinline void begin_share(u64 cookie, u64 address, u32 netns, u32 token)
{
	struct mptcp_subflow_context *ctx = subflow_context(as(tcp_sock, address));
	struct sock *sk = as(sock, address);
	struct trace_share fresh = {
		.netns = netns,
		.token = token,
		.local_port = bpf_ntohs(see(as(inet_sock, address), inet_sport)),
		.remote_port = bpf_ntohs(see(sk, __sk_common.skc_dport)),
		.joined = see_bit(ctx, request_join) || see_bit(ctx, mp_join),
	};

	put_address(fresh.local_ip, sk, skc_rcv_saddr, skc_v6_rcv_saddr);
	put_address(fresh.remote_ip, sk, skc_daddr, skc_v6_daddr);
	bpf_map_update_elem(&shares, &cookie, &fresh, BPF_NOEXIST);
}

static __always_inline struct trace_share *share_of(u64 address, u32 netns, u32 token)
{
	u64 cookie = see(as(sock, address), __sk_common.skc_cookie.counter);
	struct trace_share *share = bpf_map_lookup_elem(&shares, &cookie);

	if (share || !cookie)
		return share;
	begin_share(cookie, address, netns, token);
	share = bpf_map_lookup_elem(&shares, &cookie);
	if (!share)
		__sync_fetch_and_add(&lost.shares, 1);
	return share;
}

static __always_inline bool is_ready(struct mptcp_subflow_context *ctx, struct sock *ssk)
{
	u8 state = see(ssk, __sk_common.skc_state);

	if (see_bit(ctx, request_join) &&
	    !see(as(mptcp_subflow_context___trace, ctx), fully_established))
		return false;
	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

static __always_inline bool is_backup(struct mptcp_subflow_context *ctx)
{
	return see_bit(ctx, backup) || see_bit(ctx, request_bkup);
}

/* Accounts a round that found a subflow to send on, or none. */
static __noinline void account_round(struct trace_connection *key, bool unusable, bool full,
				   bool closed)
{
	struct trace_rounds fresh = {}, *round = bpf_map_lookup_elem(&rounds, key);
	u64 now = bpf_ktime_get_ns(), lasted;

	if (!round) {
		bpf_map_update_elem(&rounds, key, &fresh, BPF_NOEXIST);
		round = bpf_map_lookup_elem(&rounds, key);
		if (!round) {
			__sync_fetch_and_add(&lost.shares, 1);
			return;
		}
	}
	round->rounds++;
	if (closed) {
		round->window++;
		if (!round->window_since)
			round->window_since = now;
	} else if (round->window_since) {
		round->window_ns += now - round->window_since;
		round->window_since = 0;
	}
	if (unusable || full) {
		if (unusable)
			round->unusable++;
		else
			round->full++;
		if (!round->since) {
			round->since = now;
			round->since_unusable = unusable;
		}
		return;
	}
	if (!round->since)
		return;
	lasted = now - round->since;
	round->without_ns += lasted;
	if (round->since_unusable)
		round->unusable_ns += lasted;
	if (lasted > round->longest_ns)
		round->longest_ns = lasted;
	round->since = 0;
}

/*
 * mptcp_subflow_get_send() (net/mptcp/protocol.c) fires this for each subflow before it
 * decides.  At the last one everything it will compare is known, so the decision is repeated
 * here: ready ones only, no backup while another is ready, and of these the one whose queue
 * empties first (queued bytes over pacing rate).
 */
SEC("tp_btf/mptcp_subflow_get_send")
int BPF_PROG(round_ends, struct mptcp_subflow_context *subflow)
{
	u64 best_linger = UNSEEN, backup_linger = UNSEEN, best = 0, best_backup = 0;
	struct trace_connection key = {};
	struct trace_share *share;
	struct mptcp_sock *msk;
	u64 first, node;
	bool full = false;

	if (!subflow->tcp_sock->__sk_common.skc_cookie.counter)
		bpf_get_socket_cookie(subflow->tcp_sock); /* assigns one */
	msk = as(mptcp_sock, subflow->conn);
	first = (u64)msk + offset_of(mptcp_sock, conn_list);
	if ((u64)see(as(mptcp_subflow_context, subflow), node.next) != first ||
	    !wanted(subflow->tcp_sock))
		return 0;
	key.netns = netns_of(subflow->tcp_sock);
	key.token = subflow->token;

	node = (u64)see(msk, conn_list.next);
	for (int i = 0; i < MAX_SUBFLOWS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		u64 address = (u64)see(ctx, tcp_sock);
		u64 pace = see(as(mptcp_subflow_context___trace, node), avg_pacing_rate);
		u64 linger;

		node = (u64)see(ctx, node.next);
		if (see_bit(ctx, stale) || !is_ready(ctx, as(sock, address)))
			continue;
		if (!pace) /* its first decision: the kernel sets it just after this read */
			pace = see(as(sock___trace, address), sk_pacing_rate);
		if (!pace)
			continue;
		linger = ((u64)see(as(sock___trace, address), sk_wmem_queued) << 32) / pace;
		if (is_backup(ctx)) {
			if (linger < backup_linger) {
				backup_linger = linger;
				best_backup = address;
			}
		} else if (linger < best_linger) {
			best_linger = linger;
			best = address;
		}
	}
	if (best) {
		best_backup = 0;
	} else {
		best = best_backup;
	}
	if (best) {
		struct sock___trace *sk = as(sock___trace, best);

		full = see(sk, sk_wmem_queued) >= see(sk, sk_sndbuf);
	}
	account_round(&key, !best, full,
		      see(msk, first_pending) && see(msk, snd_nxt) >= see(msk, wnd_end));

	node = (u64)see(msk, conn_list.next);
	for (int i = 0; i < MAX_SUBFLOWS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		u64 address = (u64)see(ctx, tcp_sock);

		node = (u64)see(ctx, node.next);
		share = share_of(address, key.netns, key.token);
		if (!share)
			continue;
		if (see_bit(ctx, stale))
			share->stale++;
		else if (!is_ready(ctx, as(sock, address)))
			share->not_ready++;
		else if (address == best)
			share->chosen += !full;
		else if (is_backup(ctx) && !best_backup)
			share->backup++;
		else if (best)
			share->slower++;
	}
	return 0;
}

#endif
