/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What the tracing programs send to user space, and the kernel types only they read.
 *
 * User space reads the layouts from the object's BTF (mptcpd_ebpf/trace/trace_programs.py).
 * The ___trace flavours extend the types of kernel.h: CO-RE ignores the suffix.
 */
#ifndef TRACE_H
#define TRACE_H

#include "kernel.h"

#define COMM_SIZE 16
#define MAX_SUBFLOWS 8
#define UNSEEN (-1) /* all ones in a field of any width */
#define IPPROTO_MPTCP 262

enum trace_kind {
	TRACE_STATE,	      /* inet_sock_set_state */
	TRACE_ENDED,	      /* tcp_destroy_sock */
	TRACE_RESET_SENT,     /* tcp_send_reset */
	TRACE_RESET_RECEIVED, /* tcp_receive_reset */
	TRACE_RETRANSMITTED,  /* tcp_retransmit_skb */
	TRACE_REINJECTED,     /* mptcp_sendmsg_frag, of data that was sent before */
	TRACE_CONNECTION,     /* inet_sock_set_state of an MPTCP socket: token and states only */
};

/* One subflow at one event.  What a kind does not fill is 0, or all ones for "not known". */
struct trace_record {
	enum trace_kind kind;
	u32 netns;
	u64 at;		      /* CLOCK_MONOTONIC, ns */
	u64 cookie;
	u64 cgroup;	      /* of the current task; all ones where that is meaningless */
	u64 bytes_sent;
	u64 bytes_acked;
	u64 bytes_received;
	u64 bytes_retrans;
	u64 data_seq;	      /* REINJECTED */
	u64 blamed;	      /* REINJECTED: cookie of the subflow whose data is sent again */
	u32 token;	      /* 0: the kernel has freed the context already */
	u32 pid;
	u32 uid;
	u32 seq;	      /* RETRANSMITTED: of the segment */
	u32 length;	      /* REINJECTED: bytes of the mapping */
	u32 reason;	      /* RESET_SENT: enum sk_rst_reason */
	u32 srtt_us;
	u32 min_rtt_us;
	u32 total_retrans;
	u32 subflow_id;
	u32 blamed_timeouts;
	u32 error;	      /* the socket's errno */
	char comm[COMM_SIZE];
	u8 local_ip[16];
	u8 remote_ip[16];
	u16 local_port;
	u16 remote_port;
	u16 local_id;
	u16 remote_id;
	u8 state;
	u8 old_state;
	u8 joined;	      /* opened by MP_JOIN */
	u8 ca_state;
	u8 timeouts;
	u8 reset_reason;      /* MP_TCPRST reason that the peer sent, all ones: none */
	u8 reset_transient;
	u8 stale;
};

/* How often the scheduler considered a subflow, and why it did not choose it. */
struct trace_share {
	u64 chosen;
	u64 slower;	      /* another would have emptied its queue earlier */
	u64 backup;	      /* a subflow that is no backup was usable */
	u64 stale;
	u64 not_ready;	      /* not established, or the join not confirmed */
	u32 netns;
	u32 token;
	u8 local_ip[16];
	u8 remote_ip[16];
	u16 local_port;
	u16 remote_port;
	u16 joined;	      /* opened by MP_JOIN */
};

struct trace_rounds {
	u64 rounds;
	u64 full;	      /* the best subflow's send buffer was full */
	u64 unusable;	      /* no subflow was usable at all */
	u64 without_ns;	      /* time from such a round (full or unusable) to the next one without */
	u64 unusable_ns;      /* the part of it that began with an unusable round */
	u64 since;	      /* ns; when the present such time began, 0: there is none */
	u64 since_unusable;
	u64 longest_ns;
	u64 window;	      /* the peer's window was closed, data waiting */
	u64 window_ns;	      /* time from such a round to the next with room */
	u64 window_since;     /* ns; when the present such time began, 0: there is none */
};

struct trace_connection {
	u32 netns;
	u32 token;
};

struct trace_lost {
	u64 records;	      /* the ring buffer was full */
	u64 shares;	      /* a map was full */
	u64 unattributed;     /* a mapping whose subflow was not found */
};

/* Since 6.10; its values are read from the running kernel's BTF. */
enum sk_rst_reason {
	SK_RST_REASON_NOT_SPECIFIED,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff___trace {
	void *extensions; /* struct skb_ext */
	unsigned char *data;
};

struct sk_buff_head___trace {
	struct sk_buff *prev;
};

struct sock___trace {
	int sk_wmem_queued;
	int sk_sndbuf;
	int sk_err;
	unsigned long sk_pacing_rate;
	struct sk_buff_head___trace sk_write_queue;
};

struct tcp_sock___trace {
	u64 bytes_received;
};

struct mptcp_subflow_context___trace {
	unsigned long avg_pacing_rate;
	bool fully_established;
	u8 reset_seen : 1;
	u8 reset_transient : 1;
	u8 reset_reason : 4;
};

struct work_struct {
	void *func;
};

struct mptcp_sock___trace {
	u32 token;
	bool recovery;
	struct work_struct work;
};

struct mptcp_ext {
	u64 data_seq;
	u16 data_len;
};

#pragma clang attribute pop

#endif
