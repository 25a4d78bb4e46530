/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The few kernel types the probes read, and how they read them.
 *
 * Only the fields that are read are declared; CO-RE finds them by name in the running
 * kernel (preserve_access_index), so their place and the rest of the struct do not
 * matter.  Origins: include/net/sock.h, include/net/inet_connection_sock.h,
 * include/linux/tcp.h, net/mptcp/protocol.h.
 *
 * see(pointer, field) reads one field.  Where the kernel has bpf_rdonly_cast (6.2 and
 * later) it is a plain load, checked by the verifier against the kernel's types: fast,
 * and allowed under lockdown=confidentiality.  Where it has not (6.1) it is
 * bpf_probe_read_kernel.  The verifier removes the branch that does not apply.
 *
 * bcc supports no CO-RE (WITH_BCC): it gets the same structures with the running kernel's
 * layout (mptcpd_ebpf/probes/bcc_layouts.py writes them, from what is declared here), and
 * bcc/reach.h defines how it reads them.
 */
#ifndef KERNEL_H
#define KERNEL_H

#ifdef WITH_BCC
#include "bcc/reach.h"
#else
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
#endif

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define CLOCK_MONOTONIC 1
#define SOCK_NOSPACE 2   /* include/linux/net.h: a writer waits for room */
#define TCP_CA_RECOVERY 3 /* include/uapi/linux/tcp.h */

/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12

#ifndef WITH_BCC

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff {
	char cb[48];
};

struct tcp_skb_cb {
	u32 seq, end_seq;
};

struct list_head {
	struct list_head *next;
};

struct rb_node;

struct rb_root {
	struct rb_node *rb_node;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

typedef struct {
	long long counter;
} atomic64_t;

typedef struct {
	int counter;
} atomic_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct net_device {
	int ifindex;
};

struct dst_entry {
	struct net_device *dev;
};

struct socket {
	unsigned long flags;
};

struct sock {
	struct sock_common __sk_common;
	struct dst_entry *sk_dst_cache;
	struct socket *sk_socket;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	u16 sk_protocol;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	void *icsk_ulp_data;
	u32 icsk_rto;
	u8 icsk_ca_state : 5;
	u8 icsk_retransmits;
	struct {
		u32 lrcvtime;
	} icsk_ack;
};

struct minmax_sample {
	u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_rack {
	u64 mstamp;
	u32 rtt_us;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	bool is_mptcp;
	u64 tcp_mstamp, delivered_mstamp;
	u32 srtt_us, mdev_us;
	struct minmax rtt_min;
	struct tcp_rack rack;
	u32 snd_cwnd, packets_out, sacked_out, lost_out, retrans_out, max_packets_out;
	u32 snd_una, snd_nxt, snd_wnd, write_seq, high_seq, rcv_nxt;
	u32 data_segs_out, data_segs_in, rcv_ooopack;
	u32 delivered, lost, total_retrans, reord_seen;
	u64 bytes_sent, bytes_acked, bytes_retrans, bytes_received;
	struct {
		u32 rtt_us;
	} rcv_rtt_est;
	u8 is_cwnd_limited : 1;
	u32 rate_delivered, rate_interval_us;
	u32 rcv_tstamp;
};

struct mptcp_subflow_context {
	struct list_head node;
	u32 token;
	u32 request_join : 1;
	u32 request_bkup : 1;
	u32 mp_join : 1;
	u32 backup : 1;
	u32 stale : 1;
	s16 local_id;
	u8 remote_id;
	u32 subflow_id, map_data_len;
	u64 map_seq;
	struct sock *tcp_sock;
	struct sock *conn;
};

struct mptcp_data_frag;

struct mptcp_sock {
	struct inet_connection_sock sk;
	u64 snd_nxt, wnd_end, ack_seq, bytes_acked, bytes_retrans, bytes_received;
	atomic64_t rcv_wnd_sent;
	struct rb_root out_of_order_queue;
	struct list_head conn_list;
	struct mptcp_data_frag *first_pending;
};

/* local_id was a u8 before 6.8. */
struct mptcp_subflow_context___u8 {
	u8 local_id;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

#pragma clang attribute pop

extern void *bpf_rdonly_cast(const void *object, u32 btf_id) __ksym __weak;

#define as(type, pointer)                                                                       \
	((struct type *)(bpf_rdonly_cast                                                        \
				 ? bpf_rdonly_cast((const void *)(pointer),                      \
						   bpf_core_type_id_kernel(struct type))         \
				 : (void *)(pointer)))
/*
 * `pointer` must not read a struct of this program: BPF_CORE_READ relocates every struct that the
 * expression reads, and kernels before 6.2 then refuse the program.  Read it into a variable
 * first (tests/probes/test_core_relocations.py).
 */
#define see(pointer, field) \
	(bpf_rdonly_cast ? (pointer)->field : BPF_CORE_READ(pointer, field))
#define see_bit(pointer, field)                                  \
	(bpf_rdonly_cast ? BPF_CORE_READ_BITFIELD(pointer, field) \
			 : BPF_CORE_READ_BITFIELD_PROBED(pointer, field))
#define exists(type, field) bpf_core_field_exists(struct type, field)
#define width_of(type, field) bpf_core_field_size(struct type, field)
#define offset_of(type, field) bpf_core_field_offset(struct type, field)
#define assigned_cookie(sk) bpf_get_socket_cookie(sk)
#define REPORTS_ENDS_OF_OLDER true
#define falls_to_zero(counter) (__sync_fetch_and_sub(&(counter), 1) == 1)

#endif /* WITH_BCC */

static __always_inline struct mptcp_subflow_context *subflow_context(struct tcp_sock *tp)
{
	return as(mptcp_subflow_context, see(tp, inet_conn.icsk_ulp_data));
}

static __always_inline struct tcp_skb_cb *segment_of(struct sk_buff *skb)
{
	return as(tcp_skb_cb, (u64)skb + offset_of(sk_buff, cb));
}

static __always_inline u32 netns_of(struct sock *sk)
{
	struct net *net = as(net, see(sk, __sk_common.skc_net.net));

	return see(net, ns.inum);
}

/* An address in 16 bytes, whatever its family (an IPv4 one mapped, RFC 4291, 2.5.5.2). */
#define put_address(to, sk, v4, v6)                                                  \
	({                                                                           \
		__be32 *words = (__be32 *)(to);                                      \
		if (see(sk, __sk_common.skc_family) == AF_INET6) {                   \
			words[0] = see(sk, __sk_common.v6.in6_u.u6_addr32[0]);       \
			words[1] = see(sk, __sk_common.v6.in6_u.u6_addr32[1]);       \
			words[2] = see(sk, __sk_common.v6.in6_u.u6_addr32[2]);       \
			words[3] = see(sk, __sk_common.v6.in6_u.u6_addr32[3]);       \
		} else {                                                             \
			words[0] = words[1] = 0;                                     \
			words[2] = bpf_htonl(0xffff);                                \
			words[3] = see(sk, __sk_common.v4);                          \
		}                                                                    \
	})

#endif
