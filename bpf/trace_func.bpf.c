// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * Traces the calls of any kernel function: counts, times, arguments, stacks.
 *
 * User space chooses the functions, one slot each, and the cheapest hook that the
 * kernel has: fentry and fexit, kprobe and kretprobe, or a BTF tracepoint inside the
 * function.  A program of the first and the last kind is bound to one
 * function, so there is one of each for every slot; a kprobe knows its slot by its cookie.
 *
 * The connection of a call is found from the argument that leads to a socket (struct slot).
 * The beginning and the end of a call are matched by its place on the kernel's stack, which
 * also works for recursion and for a softirq on top of the same thread.
 */
#include "kernel.h"

#define COMM_SIZE 16
#define SLOTS 64
#define ARGUMENTS 6
#define HISTOGRAM_SLOTS 32
#define IPPROTO_MPTCP 262
#define NO_STACK (-1)

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The type of the argument that leads to the connection. */
enum subject {
	SUBJECT_NONE,	 /* no argument: calls of all namespaces are traced */
	SUBJECT_SOCK,	 /* struct sock, or a type that begins with one: tcp_sock, mptcp_sock … */
	SUBJECT_SUBFLOW, /* struct mptcp_subflow_context */
	SUBJECT_SOCKET,	 /* struct socket */
};

struct slot {
	u8 subject;  /* enum subject */
	u8 argument; /* its number, from 0 */
};

/* One call. */
struct func_record {
	u64 at;		 /* of its beginning; CLOCK_MONOTONIC, ns */
	u64 duration_ns; /* 0 if its end is not traced */
	u64 returned;
	u64 sock;	 /* address of the struct sock; 0: not known */
	u32 slot;
	s32 stack;	 /* NO_STACK: not requested, or not available */
	u32 token;	 /* 0: no MPTCP connection, or not yet */
	u32 netns;	 /* 0: not known */
	u32 pid;	 /* the process the processor was running, */
	char comm[COMM_SIZE]; /* in a softirq an arbitrary one */
	u8 local_ip[16];
	u8 remote_ip[16];
	u16 local_port;
	u16 remote_port;
	u64 arguments[ARGUMENTS];
};

struct func_key {
	u32 slot;
	s32 stack;
	u32 token;
	u32 netns;
	u64 sock;
};

struct func_total {
	u64 calls;
	u64 duration_ns;
	u64 longest_ns;
	u64 histogram[HISTOGRAM_SLOTS]; /* slot n: from 2^n ns on */
	u8 local_ip[16];
	u8 remote_ip[16];
	u16 local_port;
	u16 remote_port;
};

struct trace_lost {
	u64 records;	 /* the ring buffer was full */
	u64 connections; /* the map of totals was full */
	u64 unfinished;	 /* the map of unfinished calls was full */
	u64 stacks;	 /* no stack could be taken */
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si, dx, cx, r8, r9, ax, sp;
};
#define ARGUMENT_REGISTERS(X) X(0, di) X(1, si) X(2, dx) X(3, cx) X(4, r8) X(5, r9)
#define RESULT ax
#define CALL_PUSHES 8 /* the return address, which is off the stack at the end */
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	u64 regs[31];
	u64 sp;
};
#define ARGUMENT_REGISTERS(X) \
	X(0, regs[0]) X(1, regs[1]) X(2, regs[2]) X(3, regs[3]) X(4, regs[4]) X(5, regs[5])
#define RESULT regs[0]
#define CALL_PUSHES 0
#endif

struct mptcp_sock___func {
	u32 token;
};

struct socket___func {
	struct sock *sk;
};

#pragma clang attribute pop

/* Chosen by user space before loading. */
const volatile u32 own_netns = 0;  /* inode of the namespace to keep to, 0: all */
const volatile u32 only_token = 0; /* 0: all connections */
const volatile bool with_ends = false;
const volatile bool with_records = false;
const volatile bool with_stacks = false;
const volatile struct slot slots[SLOTS] = {};

struct trace_lost lost = {};

/* Only these make the compiler write the layouts into the BTF. */
const struct func_record *record_layout = 0;
const struct func_total *total_layout = 0;
const enum subject subject_layout = SUBJECT_NONE;

static const struct func_total nothing = {};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space may choose another size */
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64); /* place on the kernel's stack */
	__type(value, struct func_record);
} under_way SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct func_key);
	__type(value, struct func_total);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 4096);
	__uint(key_size, sizeof(u32));
	__uint(value_size, 64 * sizeof(u64));
} stacks SEC(".maps");

static __always_inline void put_addresses(struct func_record *record, struct sock *sk)
{
	u32 *local = (u32 *)record->local_ip, *remote = (u32 *)record->remote_ip;

	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6) {
		BPF_CORE_READ_INTO((struct in6_addr *)local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO((struct in6_addr *)remote, sk, __sk_common.skc_v6_daddr);
	} else { /* mapped, RFC 4291, 2.5.5.2 */
		local[2] = remote[2] = bpf_htonl(0xffff);
		local[3] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		remote[3] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	}
	record->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	record->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
}

static __always_inline void identify(struct func_record *record, enum subject kind, u64 address)
{
	struct mptcp_subflow_context *subflow = 0;
	struct sock *sk = (struct sock *)address;
	u16 protocol;

	if (kind == SUBJECT_SUBFLOW) {
		subflow = (struct mptcp_subflow_context *)address;
		sk = BPF_CORE_READ(subflow, tcp_sock);
	} else if (kind == SUBJECT_SOCKET) {
		sk = BPF_CORE_READ((struct socket___func *)address, sk);
	}
	if (!sk)
		return;
	record->sock = (u64)sk;
	record->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (protocol == IPPROTO_MPTCP)
		record->token = BPF_CORE_READ((struct mptcp_sock___func *)sk, token);
	else if (protocol == IPPROTO_TCP && BPF_CORE_READ((struct tcp_sock *)sk, is_mptcp))
		subflow = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_ulp_data);
	if (subflow)
		record->token = BPF_CORE_READ(subflow, token);
	put_addresses(record, sk);
}

static __always_inline void count(struct func_record *record)
{
	struct func_key key = {
		.slot = record->slot,
		.stack = record->stack,
		.token = record->token,
		.netns = record->netns,
		.sock = record->sock,
	};
	struct func_total *total = bpf_map_lookup_elem(&totals, &key);
	u64 left = record->duration_ns;
	u32 slot = 0;

	if (!total) {
		bpf_map_update_elem(&totals, &key, &nothing, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&totals, &key);
	}
	if (!total) {
		__sync_fetch_and_add(&lost.connections, 1);
		return;
	}
	if (!total->remote_port) {
		__builtin_memcpy(total->local_ip, record->local_ip, sizeof(total->local_ip));
		__builtin_memcpy(total->remote_ip, record->remote_ip, sizeof(total->remote_ip));
		total->local_port = record->local_port;
		total->remote_port = record->remote_port;
	}
	__sync_fetch_and_add(&total->calls, 1);
	if (!with_ends)
		return;
	__sync_fetch_and_add(&total->duration_ns, left);
	if (left > total->longest_ns)
		total->longest_ns = left;
#pragma unroll
	for (u32 step = 16; step; step >>= 1)
		if (left >> step) {
			slot += step;
			left >>= step;
		}
	__sync_fetch_and_add(&total->histogram[slot & (HISTOGRAM_SLOTS - 1)], 1);
}

static __always_inline void report(struct func_record *record)
{
	count(record);
	if (with_records && bpf_ringbuf_output(&records, record, sizeof(*record), 0))
		__sync_fetch_and_add(&lost.records, 1);
}

/* `call`: the place of the call on the kernel's stack. */
static __always_inline int begins(void *ctx, u32 slot, u64 *arguments, u64 call)
{
	struct func_record record = {.at = bpf_ktime_get_ns(), .slot = slot, .stack = NO_STACK};
	enum subject kind;
	u32 which;

	if (slot >= SLOTS)
		return 0;
	kind = slots[slot].subject;
	which = slots[slot].argument;
	if (kind != SUBJECT_NONE) {
		if (which < ARGUMENTS)
			identify(&record, kind, arguments[which]);
		if ((own_netns && record.netns != own_netns) ||
		    (only_token && record.token != only_token))
			return 0;
	}
	if (with_records) {
		record.pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(record.comm, sizeof(record.comm));
		__builtin_memcpy(record.arguments, arguments, sizeof(record.arguments));
	}
	if (with_stacks) {
		record.stack = bpf_get_stackid(ctx, &stacks, 0);
		if (record.stack < 0) {
			record.stack = NO_STACK;
			__sync_fetch_and_add(&lost.stacks, 1);
		}
	}
	if (!with_ends)
		report(&record);
	else if (bpf_map_update_elem(&under_way, &call, &record, BPF_ANY))
		__sync_fetch_and_add(&lost.unfinished, 1);
	return 0;
}

static __always_inline int ends(u32 slot, u64 call, u64 returned)
{
	struct func_record *record = bpf_map_lookup_elem(&under_way, &call);

	/* An entry is left from another call whose end the kernel did not report (kretprobes). */
	if (!record || record->slot != slot)
		return 0;
	record->duration_ns = bpf_ktime_get_ns() - record->at;
	record->returned = returned;
	report(record);
	bpf_map_delete_elem(&under_way, &call);
	return 0;
}

/* fentry and fexit of one call get the same context: their trampoline's frame. */
static __noinline int entered(void *ctx, u32 slot)
{
	u64 arguments[ARGUMENTS] = {};

#pragma unroll
	for (u32 i = 0; i < ARGUMENTS; i++)
		bpf_get_func_arg(ctx, i, &arguments[i]); /* leaves 0 for one that does not exist */
	return begins(ctx, slot, arguments, (u64)ctx);
}

static __noinline int left(void *ctx, u32 slot)
{
	u64 returned = 0;

	bpf_get_func_ret(ctx, &returned);
	return ends(slot, (u64)ctx, returned);
}

static __noinline int passed(void *ctx, u32 slot)
{
	u64 arguments[ARGUMENTS] = {};

	bpf_probe_read_kernel(arguments, sizeof(arguments), ctx);
	return begins(ctx, slot, arguments, 0);
}

/* The end first: libbpf attaches in this order, so that no beginning misses its end. */
#define SLOT(n)                                                              \
	SEC("fexit") int exit_##n(void *ctx) { return left(ctx, 0##n); }      \
	SEC("fentry") int entry_##n(void *ctx) { return entered(ctx, 0##n); } \
	SEC("tp_btf") int point_##n(void *ctx) { return passed(ctx, 0##n); }
#define EIGHT_SLOTS(n) \
	SLOT(n##0) SLOT(n##1) SLOT(n##2) SLOT(n##3) SLOT(n##4) SLOT(n##5) SLOT(n##6) SLOT(n##7)

/* Names and numbers are octal: entry_00 … entry_77. */
EIGHT_SLOTS(0)
EIGHT_SLOTS(1)
EIGHT_SLOTS(2)
EIGHT_SLOTS(3)
EIGHT_SLOTS(4)
EIGHT_SLOTS(5)
EIGHT_SLOTS(6)
EIGHT_SLOTS(7)

SEC("kprobe")
int called(struct pt_regs *ctx)
{
	u64 arguments[ARGUMENTS];

#define TAKE(i, register) arguments[i] = BPF_CORE_READ(ctx, register);
	ARGUMENT_REGISTERS(TAKE)
	return begins(ctx, bpf_get_attach_cookie(ctx), arguments, BPF_CORE_READ(ctx, sp));
}

SEC("kretprobe")
int returned(struct pt_regs *ctx)
{
	return ends(bpf_get_attach_cookie(ctx), BPF_CORE_READ(ctx, sp) - CALL_PUSHES,
		    BPF_CORE_READ(ctx, RESULT));
}
