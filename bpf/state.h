/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What the probes store, and for how long.
 *
 * subflows     one entry per MPTCP subflow, by socket cookie; made when the subflow opens
 *              (or when the probes first see an older one), deleted when its socket is
 *              destroyed and its final record is in the ring buffer.  If the ring is full
 *              the entry stays, marked closed, until user space collects it.
 * connections  one entry per connection, by network namespace and token: its owner,
 *              its present hole and when its stalls were last accounted.  Deleted with the last of its subflows.
 * listeners    the owners of listeners, by namespace and address, for the connections that
 *              they accept.  Deleted when the listener closes.
 *
 * Nothing is ever evicted: an insert that finds its map full is refused and counted.
 * All three are allocated as they fill (BPF_F_NO_PREALLOC).
 */
#ifndef STATE_H
#define STATE_H

#include "records.h"

struct owner {
	u64 cgroup;
	u32 pid;
	u32 uid;
	char comm[COMM_SIZE];
};

struct subflow {
	struct measurement m; /* identity and sums always current; the rest when reported */
	struct bpf_timer timer;
	u64 sk;		    /* address of its struct sock, valid until tcp_destroy_sock */
	u64 alarm_at;	    /* ns; of the last alarm */
	u64 sample_at;	    /* rack.mstamp of the newest RTT sample that was checked */
	u64 loss_bits;	    /* the last 64 segments, newest in bit 0; 1: a sign of loss */
	u64 misplaced_at;	    /* ns; when a segment last counted as misplaced */
	u64 sent_bits;	    /* of the same segments; 1: sent by this end */
	u64 stall_second;   /* ns; start of the second that stall_us sums up */
	u64 hole_second;    /* the same of hole_ns… */
	u64 hole_ns;
	u64 hole_received;  /* …with bytes_received… */
	u64 hole_seq;	    /* …and the connection's ack_seq then */
	u64 holes_ns;	    /* m.holes_us before it is rounded */
	u64 reached;	    /* the highest start of a mapping received in order; 0: none */
	u64 quiet_us;	    /* of the last silence alarm in this silence */
	u64 silence_us;	    /* of the last no-progress alarm in this silence */
	u32 stall_us;
	u32 baseline_us;    /* slow average of RTT samples */
	u32 strikes;	    /* RTT samples in a row far above it */
	u32 sent_seen;	    /* data_segs_out at the last check */
	u32 received_seen;  /* data_segs_in at the last check */
	u32 episode;	    /* high_seq of the loss recovery under way */
	u32 episode_signs;  /* signs of loss it has given so far */
	u32 armed;	    /* the timer runs */
	u32 established;
	u32 final;	    /* its final values are read; the kernel may clear its own from now on */
	u32 closed;	    /* its final record waits to be collected */
};

struct connection_key {
	u32 netns;
	u32 token;
};

struct connection {
	struct owner owner;
	u64 checked_at; /* ns; stalls are accounted up to here */
	u64 hole_at;	/* ns; since when data waits behind the hole at hole_seq, 0: none does */
	u64 hole_seq;
	u64 heard_at;	/* ns; while there is a hole: when a segment last came in */
	u32 alive;	/* subflows */
	u32 unused;
};

struct listener_key {
	u8 ip[16];
	u32 netns;
	u32 port;
};

struct listener {
	struct owner owner;
	u64 sk; /* address of its struct sock */
};

/*
 * When full work was last done for a subflow: the hot path's gate, in front of the map
 * because a lookup costs more than all the rest of a call that has nothing to do.  For two
 * subflows that share a slot full work is done more often, never less.
 */
#define GATES 1024

struct gate {
	u64 cookie;
	u64 mstamp; /* tcp_mstamp, us */
	u64 tick;   /* jiffies */
	u64 unused;
};

/*
 * The subflow that a connection's newest segment arrived on, in front of the map for the
 * same reason.  Two connections that share a slot lose the exact moment at which a hole
 * began, and notice its end at the next segment that finds one.
 */
#define ARRIVALS 1024

struct arrival {
	u64 msk;
	u64 sk;
	u64 waits; /* data waited behind a hole when that segment came */
};

#ifdef WITH_BCC
#include "bcc/maps.h"
#else

/* Chosen by user space before loading. */
const volatile u32 own_netns = 0; /* inode of the namespace to keep to, 0: all */
const volatile u32 tick_us = 4000; /* microseconds a jiffy lasts */

/* Written by user space at any time (mmap). */
struct thresholds thresholds = {};

/* Read by user space at any time (mmap). */
struct counters counters = {};

/* Only this makes the compiler write the layout of a report into the BTF. */
const struct report *report_layout = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, struct subflow);
} subflows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct listener_key);
	__type(value, struct listener);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space may choose another size */
} reports SEC(".maps");

struct gate gates[GATES] = {};
struct arrival arrivals[ARRIVALS] = {};

/* An empty struct subflow: it is too large for the stack. */
static const u8 blank[sizeof(struct subflow)] = {};

#endif /* WITH_BCC */

#define count(counter) __sync_fetch_and_add(&counters.counter, 1)

/* The process that runs now. */
static __always_inline void present_owner(struct owner *owner)
{
	owner->cgroup = bpf_get_current_cgroup_id();
	owner->pid = bpf_get_current_pid_tgid() >> 32;
	owner->uid = (u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
}

/* The connection's entry; made if there is none. */
static __always_inline struct connection *connection_of(struct measurement *m)
{
	struct connection_key key = { .netns = m->netns, .token = m->token };
	struct connection fresh = { .checked_at = bpf_ktime_get_ns() };
	struct connection *connection;

	connection = bpf_map_lookup_elem(&connections, &key);
	if (connection)
		return connection;
	bpf_map_update_elem(&connections, &key, &fresh, BPF_NOEXIST);
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection)
		count(connections_refused);
	return connection;
}

static __always_inline void forget_connection(struct measurement *m)
{
	struct connection_key key = { .netns = m->netns, .token = m->token };
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);

	if (connection && falls_to_zero(connection->alive))
		bpf_map_delete_elem(&connections, &key);
}

/* The listener that accepted this passive subflow: at its own address, else at any. */
static __always_inline struct listener *listener_of(struct measurement *m)
{
	struct listener_key key = { .netns = m->netns, .port = m->local_port };
	struct listener *listener;

	__builtin_memcpy(key.ip, m->local_ip, sizeof(key.ip));
	listener = bpf_map_lookup_elem(&listeners, &key);
	if (listener)
		return listener;
	__builtin_memset(key.ip, 0, sizeof(key.ip)); /* [::], dual-stack */
	listener = bpf_map_lookup_elem(&listeners, &key);
	if (listener)
		return listener;
	*(__be32 *)&key.ip[8] = bpf_htonl(0xffff); /* 0.0.0.0 */
	return bpf_map_lookup_elem(&listeners, &key);
}

#endif
