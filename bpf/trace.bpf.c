// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * Traces what happens to MPTCP subflows, when it happens.
 *
 * A tool of `mptcpd-ebpf trace` loads only the programs it needs; without a tool none of
 * them is in the kernel.  All are BTF tracepoints that return at once for what is no
 * MPTCP subflow of the chosen namespace.  Rare events go through the ring buffer, one
 * record each; what happens for every packet is only counted, in maps.
 */
#include "trace.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Chosen by user space before loading. */
const volatile u32 own_netns = 0;  /* inode of the namespace to keep to, 0: all */
const volatile u32 only_token = 0; /* 0: all connections */

struct trace_lost lost = {};

/* Only this makes the compiler write the layout into the BTF. */
const struct trace_record *record_layout = 0;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space may choose another size */
} records SEC(".maps");

/* The connection (address of its struct mptcp_sock) that a thread works for at present. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64); /* pid_tgid */
	__type(value, u64);
} senders SEC(".maps");

static __always_inline bool wanted(struct sock *sk)
{
	struct mptcp_subflow_context *ctx;

	if (!see(as(tcp_sock, sk), is_mptcp) || (own_netns && netns_of(sk) != own_netns))
		return false;
	if (!only_token)
		return true;
	ctx = subflow_context(as(tcp_sock, sk));
	return !ctx || see(ctx, token) == only_token;
}

/* Everything that can be read of a subflow at any event. */
static __noinline void describe(struct trace_record *record, u64 address, enum trace_kind kind)
{
	struct sock *sk = as(sock, address);
	struct sock___trace *more = as(sock___trace, address);
	struct tcp_sock *tp = as(tcp_sock, address);
	struct tcp_sock___trace *tp_more = as(tcp_sock___trace, address);
	struct mptcp_subflow_context *ctx = subflow_context(tp);
	struct mptcp_subflow_context___trace *ctx_more = as(mptcp_subflow_context___trace, ctx);

	__builtin_memset(record, 0, sizeof(*record));
	record->kind = kind;
	record->at = bpf_ktime_get_ns();
	record->netns = netns_of(sk);
	record->cookie = see(sk, __sk_common.skc_cookie.counter);
	record->state = record->old_state = see(sk, __sk_common.skc_state);
	record->error = see(more, sk_err);
	record->bytes_sent = see(tp, bytes_sent);
	record->bytes_acked = see(tp, bytes_acked);
	record->bytes_received = see(tp_more, bytes_received);
	record->bytes_retrans = see(tp, bytes_retrans);
	record->total_retrans = see(tp, total_retrans);
	record->srtt_us = see(tp, srtt_us) ? see(tp, srtt_us) >> 3 : UNSEEN;
	record->min_rtt_us = see(tp, rtt_min.s[0].v);
	record->ca_state = see_bit(tp, inet_conn.icsk_ca_state);
	record->timeouts = see(tp, inet_conn.icsk_retransmits);
	record->cgroup = UNSEEN;
	record->pid = record->uid = record->subflow_id = UNSEEN;
	record->local_id = record->remote_id = UNSEEN;
	record->reset_reason = UNSEEN;
	put_address(record->local_ip, sk, skc_rcv_saddr, skc_v6_rcv_saddr);
	put_address(record->remote_ip, sk, skc_daddr, skc_v6_daddr);
	record->local_port = bpf_ntohs(see(as(inet_sock, address), inet_sport));
	record->remote_port = bpf_ntohs(see(sk, __sk_common.skc_dport));
	if (!ctx)
		return;
	record->token = see(ctx, token);
	record->joined = see_bit(ctx, request_join) || see_bit(ctx, mp_join);
	record->stale = see_bit(ctx, stale);
	record->remote_id = see(ctx, remote_id);
	if (bpf_core_field_size(ctx->local_id) == sizeof(s16))
		record->local_id = see(ctx, local_id);
	else
		record->local_id = see((struct mptcp_subflow_context___u8 *)ctx, local_id);
	if (bpf_core_field_exists(ctx->subflow_id))
		record->subflow_id = see(ctx, subflow_id);
	if (see_bit(ctx_more, reset_seen)) {
		record->reset_reason = see_bit(ctx_more, reset_reason);
		record->reset_transient = see_bit(ctx_more, reset_transient);
	}
}

/*
 * A record about a subflow, to be submitted.  Inlined: the verifier of 6.1 loses track of
 * the record when a function returns it, and then reports that it is not released.
 */
static __always_inline struct trace_record *about(u64 address, enum trace_kind kind)
{
	struct trace_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (record)
		describe(record, address, kind);
	else
		__sync_fetch_and_add(&lost.records, 1);
	return record;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_changed, struct sock *sk, int old, int new)
{
	struct trace_record *record;

	/* This fires for the MPTCP socket itself, too; it is no tcp_sock. */
	if (sk->sk_protocol != IPPROTO_TCP || new == TCP_LISTEN || old == TCP_LISTEN ||
	    !wanted(sk))
		return 0;
	bpf_get_socket_cookie(sk); /* assigns one */
	record = about((u64)sk, TRACE_STATE);
	if (!record)
		return 0;
	record->old_state = old;
	record->state = new;
	if (new == TCP_SYN_SENT && !record->joined) { /* in connect(2)'s caller */
		record->pid = bpf_get_current_pid_tgid() >> 32;
		record->uid = (u32)bpf_get_current_uid_gid();
		record->cgroup = bpf_get_current_cgroup_id();
		bpf_get_current_comm(record->comm, sizeof(record->comm));
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/*
 * The MPTCP socket's own state: it leaves ESTABLISHED when either end closes the connection,
 * and from then on joins are refused (mptcp_can_accept_new_subflow, mptcp_finish_join).
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connection_changed, struct sock *sk, int old, int new)
{
	struct trace_record *record;
	u32 token;

	if (sk->sk_protocol != IPPROTO_MPTCP || new == TCP_LISTEN || old == TCP_LISTEN ||
	    (own_netns && netns_of(sk) != own_netns))
		return 0;
	token = see(as(mptcp_sock___trace, sk), token);
	if (!token || (only_token && token != only_token))
		return 0;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&lost.records, 1);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->kind = TRACE_CONNECTION;
	record->at = bpf_ktime_get_ns();
	record->netns = netns_of(sk);
	record->token = token;
	record->old_state = old;
	record->state = new;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroyed, struct sock *sk)
{
	struct trace_record *record;

	if (!wanted(sk))
		return 0;
	record = about((u64)sk, TRACE_ENDED);
	if (record)
		bpf_ringbuf_submit(record, 0);
	return 0;
}

/* Full sockets only: a request or a TIME_WAIT one has no context (include/net/request_sock.h). */
static __always_inline bool is_full(struct sock *sk)
{
	u8 state = see(sk, __sk_common.skc_state);

	return state != TCP_NEW_SYN_RECV && state != TCP_TIME_WAIT && state != TCP_LISTEN;
}

/* (sk, skb, reason); the last since 6.10, with the enumeration of its values. */
SEC("tp_btf/tcp_send_reset")
int reset_sent(u64 *arguments)
{
	u64 address = arguments[0];
	struct sock *sk = as(sock, address);
	struct trace_record *record;

	if (!address || !is_full(sk) || !wanted(sk))
		return 0;
	record = about(address, TRACE_RESET_SENT);
	if (!record)
		return 0;
	if (bpf_core_type_exists(enum sk_rst_reason))
		record->reason = ((volatile u64 *)arguments)[2];
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(reset_received, struct sock *sk)
{
	struct trace_record *record;

	if (!wanted(sk))
		return 0;
	record = about((u64)sk, TRACE_RESET_RECEIVED);
	if (record)
		bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmitted, struct sock *sk, struct sk_buff *skb)
{
	struct trace_record *record;
	struct tcp_skb_cb *cb;

	if (!wanted(sk))
		return 0;
	record = about((u64)sk, TRACE_RETRANSMITTED);
	if (!record)
		return 0;
	cb = segment_of(skb);
	record->seq = see(cb, seq);
	record->length = see(cb, end_seq) - record->seq;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/*
 * --- reinjection: data is sent again because some subflow does not deliver it.
 *
 * It has two causes (net/mptcp/protocol.c): mptcp_worker() when the connection's timer
 * fired, and the scheduler, which starts again from an older position when a subflow was
 * closed or found stale (msk->recovery is set until all of it is acknowledged).  A mapping
 * does not name its connection, so the connection that the thread works for is stored.  In
 * a softirq the thread is an arbitrary one; just_wrote() detects a wrong guess.  Traffic
 * without reinjection stores nothing and looks nothing up.
 */

#define REMEMBERED_NS 1000000000ULL /* a worker writes within that time */

extern const void mptcp_worker __ksym __weak;

u64 remembered_at = 0; /* ns; when a connection was last stored */

static __always_inline void remember(u64 connection)
{
	u64 thread = bpf_get_current_pid_tgid();

	remembered_at = bpf_ktime_get_ns();
	bpf_map_update_elem(&senders, &thread, &connection, BPF_ANY);
}

SEC("tp_btf/workqueue_execute_start")
int BPF_PROG(work_starts, struct work_struct *work)
{
	struct mptcp_sock___trace *msk = 0;

	if ((u64)see(as(work_struct, work), func) == (u64)&mptcp_worker)
		remember((u64)work - bpf_core_field_offset(msk->work));
	return 0;
}

SEC("tp_btf/mptcp_subflow_get_send")
int BPF_PROG(send_begins, struct mptcp_subflow_context *subflow)
{
	if (!subflow->tcp_sock->__sk_common.skc_cookie.counter)
		bpf_get_socket_cookie(subflow->tcp_sock); /* assigns one, for `blamed` */
	if (see(as(mptcp_sock___trace, subflow->conn), recovery))
		remember((u64)subflow->conn);
	return 0;
}

/* Whether the mapping at `mapping` is that of the newest segment in the write queue. */
static __always_inline bool just_wrote(u64 address, u64 mapping)
{
	struct sock___trace *sk = as(sock___trace, address);
	u64 queue = address + bpf_core_field_offset(sk->sk_write_queue);
	u64 tail = (u64)see(sk, sk_write_queue.prev);
	u64 extensions;

	if (!tail || tail == queue)
		return false;
	extensions = (u64)see(as(sk_buff___trace, tail), extensions);
	/*
	 * chunks is a u8, in units of eight bytes; the extension is near.  Compared and not
	 * subtracted: the verifier of 6.1 allows no unknown offset from a pointer.
	 */
	return mapping >= extensions && mapping < extensions + 256;
}

SEC("tp_btf/mptcp_sendmsg_frag")
int BPF_PROG(mapped, struct mptcp_ext *mapping)
{
	u64 thread, node, first, end, onto = 0, blamed = 0;
	struct trace_record *record;
	struct mptcp_sock *msk;
	u32 blamed_timeouts = 0;
	u64 *connection;

	if (!remembered_at || bpf_ktime_get_ns() - remembered_at > REMEMBERED_NS)
		return 0;
	thread = bpf_get_current_pid_tgid();
	connection = bpf_map_lookup_elem(&senders, &thread);
	if (!connection)
		return 0;
	msk = as(mptcp_sock, *connection);
	/* What is new ends ahead of snd_nxt. */
	end = see(as(mptcp_ext, mapping), data_seq) + see(as(mptcp_ext, mapping), data_len);
	if ((s64)(end - see(msk, snd_nxt)) > 0)
		return 0;
	first = *connection + bpf_core_field_offset(msk->conn_list);
	node = (u64)see(msk, conn_list.next);
	for (int i = 0; i < MAX_SUBFLOWS && node && node != first; i++) {
		struct mptcp_subflow_context *ctx = as(mptcp_subflow_context, node);
		u64 ssk = (u64)see(ctx, tcp_sock);
		struct tcp_sock *tp = as(tcp_sock, ssk);

		if (just_wrote(ssk, (u64)mapping)) {
			onto = ssk;
		} else if (see(tp, packets_out) &&
			   (!blamed || see(tp, inet_conn.icsk_retransmits) > blamed_timeouts)) {
			blamed_timeouts = see(tp, inet_conn.icsk_retransmits);
			blamed = see(as(sock, ssk), __sk_common.skc_cookie.counter);
		}
		node = (u64)see(ctx, node.next);
	}
	if (!onto) {
		__sync_fetch_and_add(&lost.unattributed, 1);
		return 0;
	}
	if (!wanted(as(sock, onto)))
		return 0;
	record = about(onto, TRACE_REINJECTED);
	if (!record)
		return 0;
	record->data_seq = see(as(mptcp_ext, mapping), data_seq);
	record->length = see(as(mptcp_ext, mapping), data_len);
	record->blamed = blamed;
	record->blamed_timeouts = blamed_timeouts;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

#include "trace_schedule.h"
