// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * Chooses the local address from which new TCP and MPTCP connections start.
 *
 * connect() runs the programs cgroup/connect4 and connect6 of the caller's cgroup before the kernel
 * looks for a route (tcp_v4_pre_connect; for MPTCP on the first subflow's socket, mptcp_connect).
 * Where `sources` has an address for the destination's family, they bind the socket to it
 * and to its interface, as the path manager does with a join.  Without an entry nothing is changed.
 *
 * Left alone are sockets that the application bound or marked, and every destination for which
 * there is a route more specific than the default route: only the default route is replaced.
 *
 * sock_ops reports SYNs that stay unanswered, which is evidence about a path that no established
 * connection can give.
 */
#include "kernel.h"

#define SOCK_STREAM 1
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define IFNAMSIZ 16
#define MAX_ROUTES 65536
#define MAX_STARTS 1024
#define MAPPED_BITS 96 /* of ::ffff:0:0/96 (RFC 4291, 2.5.5.2) */

/* struct sockaddr_in and sockaddr_in6, whose headers do not go with kernel.h. */
struct start4 {
	u16 family;
	__be16 port; /* 0: chosen when it connects, not here */
	u8 ip[4];
	u8 unused[8];
};

struct start6 {
	u16 family;
	__be16 port;
	__be32 flow;
	u8 ip[16];
	u32 scope;
};

const volatile u64 own_netns; /* cookie of the only network namespace that is steered */

struct source {
	u8 ip[16]; /* an IPv4 address mapped */
	char interface[IFNAMSIZ];
};

struct prefix {
	u32 bits; /* of `ip` that count */
	u8 ip[16];
};

/* What the kernel answered on one local address. */
struct answered {
	u64 at; /* CLOCK_MONOTONIC, nanoseconds */
	u8 remote_ip[16];
	u32 remote_port;
	u32 unused;
};

/* A SYN that was sent again, because nothing answered it. */
struct unanswered {
	u64 began_at; /* when the first SYN was sent */
	struct answered last; /* by whom a SYN from the same address was answered last; at 0: never */
	u8 local_ip[16];
	u8 remote_ip[16];
	u32 remote_port;
	u32 unused;
};

struct steer_counters {
	u64 steered;	 /* connections that were given an address */
	u64 bind_failed; /* the socket has a port already, or the address is gone: left alone */
	u64 reports_lost; /* the ring buffer was full */
};

struct steer_counters counters;
const struct unanswered *unanswered_layout = 0; /* keeps the type in the object's BTF */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2);
	__type(key, u32); /* address family */
	__type(value, struct source);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ROUTES);
	__type(key, struct prefix);
	__type(value, u32);
} specific_routes SEC(".maps");

/* By local address. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_STARTS);
	__type(key, u8[16]);
	__type(value, struct answered);
} answers SEC(".maps");

/* When the first SYN of a socket was sent, by cookie, while it is unanswered. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_STARTS);
	__type(key, u64);
	__type(value, u64);
} starts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} reports SEC(".maps");

static __always_inline bool left_to_application(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	/* Of a socket bound to an IPv6 address, src_ip4 is LOOPBACK4_IPV6 (__inet6_bind). */
	return ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP || !sk ||
	       sk->bound_dev_if || sk->mark || sk->src_ip4;
}

static __always_inline struct source *source_for(struct bpf_sock_addr *ctx, u32 family,
						 const __be32 ip[4])
{
	struct prefix destination = { .bits = 128 };
	struct source *source;

	source = bpf_map_lookup_elem(&sources, &family);
	if (!source || left_to_application(ctx) || bpf_get_netns_cookie(ctx) != own_netns)
		return NULL;
	__builtin_memcpy(destination.ip, ip, sizeof(destination.ip));
	return bpf_map_lookup_elem(&specific_routes, &destination) ? NULL : source;
}

static __always_inline void start_from(struct bpf_sock_addr *ctx, struct source *source,
				       void *address, int size)
{
	char interface[IFNAMSIZ];

	if (bpf_bind(ctx, address, size)) {
		__sync_fetch_and_add(&counters.bind_failed, 1);
		return;
	}
	__builtin_memcpy(interface, source->interface, sizeof(interface));
	/* Without it a route by source must lead to the interface. */
	bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, interface, sizeof(interface));
	__sync_fetch_and_add(&counters.steered, 1);
}

SEC("cgroup/connect4")
int connects4(struct bpf_sock_addr *ctx)
{
	__be32 ip[4] = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 };
	struct source *source = source_for(ctx, AF_INET, ip);
	struct start4 from = { .family = AF_INET };

	if (!source)
		return 1;
	__builtin_memcpy(from.ip, source->ip + 12, sizeof(from.ip));
	start_from(ctx, source, &from, sizeof(from));
	return 1;
}

SEC("cgroup/connect6")
int connects6(struct bpf_sock_addr *ctx)
{
	__be32 ip[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };
	bool mapped = !ip[0] && !ip[1] && ip[2] == bpf_htonl(0xffff);
	struct source *source = source_for(ctx, mapped ? AF_INET : AF_INET6, ip);
	struct start6 from = { .family = AF_INET6 };

	if (!source)
		return 1;
	__builtin_memcpy(from.ip, source->ip, sizeof(from.ip));
	start_from(ctx, source, &from, sizeof(from));
	return 1;
}

/* volatile, since the verifier accepts loads of one word only, and clang joins two to one. */
#define put_ip(to, ops, v4, v6)                                \
	({                                                     \
		volatile struct bpf_sock_ops *seen = ops;      \
		__be32 *words = (__be32 *)(to), ip4 = seen->v4; \
		if (seen->family == AF_INET6) {                \
			words[0] = seen->v6[0];                \
			words[1] = seen->v6[1];                \
			words[2] = seen->v6[2];                \
			words[3] = seen->v6[3];                \
		} else {                                       \
			words[0] = words[1] = 0;               \
			words[2] = bpf_htonl(0xffff);          \
			words[3] = ip4;                        \
		}                                              \
	})

static __always_inline void report_unanswered(struct bpf_sock_ops *ops)
{
	u64 cookie = bpf_get_socket_cookie(ops);
	u64 *began_at = bpf_map_lookup_elem(&starts, &cookie);
	struct unanswered *report;
	struct answered *last;
	u8 local[16];

	if (!began_at)
		return;
	put_ip(local, ops, local_ip4, local_ip6);
	last = bpf_map_lookup_elem(&answers, local);
	/* The path works, so the destination does not answer. */
	if (last && last->at > *began_at)
		return;
	report = bpf_ringbuf_reserve(&reports, sizeof(*report), 0);
	if (!report) {
		__sync_fetch_and_add(&counters.reports_lost, 1);
		return;
	}
	__builtin_memset(report, 0, sizeof(*report));
	report->began_at = *began_at;
	if (last)
		report->last = *last;
	__builtin_memcpy(report->local_ip, local, sizeof(local));
	put_ip(report->remote_ip, ops, remote_ip4, remote_ip6);
	report->remote_port = bpf_ntohl(ops->remote_port);
	bpf_ringbuf_submit(report, 0);
}

SEC("sockops")
int observes_starts(struct bpf_sock_ops *ops)
{
	u64 cookie, now;

	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (bpf_get_netns_cookie(ops) != own_netns)
			break;
		cookie = bpf_get_socket_cookie(ops);
		now = bpf_ktime_get_ns();
		bpf_map_update_elem(&starts, &cookie, &now, BPF_ANY);
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags |
						       BPF_SOCK_OPS_RETRANS_CB_FLAG);
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		if (ops->state == BPF_TCP_SYN_SENT)
			report_unanswered(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		cookie = bpf_get_socket_cookie(ops);
		if (!bpf_map_delete_elem(&starts, &cookie)) {
			struct answered answered = { .at = bpf_ktime_get_ns(),
						     .remote_port = bpf_ntohl(ops->remote_port) };
			u8 local[16];

			put_ip(local, ops, local_ip4, local_ip6);
			put_ip(answered.remote_ip, ops, remote_ip4, remote_ip6);
			bpf_map_update_elem(&answers, local, &answered, BPF_ANY);
		}
		break;
	}
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
