/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What the probes and user space exchange.
 *
 * This is the only definition of these layouts: user space reads them from the
 * compiled object's BTF (mptcpd_ebpf/probes/btf.py).  Field names and units are those of
 * mptcpd_ebpf/core/measurement.py.
 *
 * A field of a measurement whose bits are all ones was not seen; user space turns it
 * into None.  Addresses are IPv6, an IPv4 one mapped (RFC 4291, 2.5.5.2).
 */
#ifndef RECORDS_H
#define RECORDS_H

#include "kernel.h"

#define HISTOGRAM_SLOTS 24
#define COMM_SIZE 16

struct measurement {
	u64 at;
	u64 opened_at;
	u64 cookie;
	u64 bytes_sent;
	u64 bytes_acked;
	u64 bytes_retrans;
	u64 bytes_received;
	u64 stalled_us;
	u64 holes_us;
	u64 connection_bytes_acked;
	u64 connection_reinjected;
	u64 connection_bytes_received;
	u64 connection_hole_us;
	u64 owner_cgroup;
	u32 netns;
	u32 token;
	u32 subflow_id;
	u32 if_index;
	u32 srtt_us;
	u32 min_rtt_us;
	u32 rtt_us;
	u32 rttvar_us;
	u32 segments_out;
	u32 segments_in;
	u32 out_of_order;
	u32 rcv_rtt_us;
	u32 connection_window;
	u32 connection_rcvbuf;
	u32 connection_queued;
	u32 delivered;
	u32 retransmits;
	u32 lost;
	u32 timeouts;
	u32 reordering;
	u32 cwnd;
	u32 in_flight;
	u32 rto_us;
	u32 idle_us;
	u32 owner_pid;
	u32 owner_uid;
	u32 rtt_histogram[HISTOGRAM_SLOTS];
	u8 local_ip[16];
	u8 remote_ip[16];
	char owner_comm[COMM_SIZE];
	u16 local_port;
	u16 remote_port;
	u16 local_id;
	u16 remote_id;
	u8 state;
	u8 backup;
	u8 backup_by_peer;
	u8 stale;
	u8 initial;
	u8 unused[11]; /* to a multiple of eight, so that nothing is left to the compiler */
};

/* Why a report was made.  The alarms have the names of core's AlarmKind. */
enum report_kind {
	REPORT_SAMPLE,
	REPORT_ENDED,
	REPORT_RTT,
	REPORT_LOSS,
	REPORT_TIMEOUTS,
	REPORT_NO_PROGRESS,
	REPORT_STALL,
	REPORT_HOLE,
	REPORT_SILENCE,
};

struct report {
	enum report_kind kind;
	u32 unused;
	u64 value; /* of an alarm: what exceeded the limit */
	u64 limit; /* of an alarm: in the same unit */
	struct measurement seen;
};

/* The fields of core's Thresholds. */
struct thresholds {
	u32 rtt_factor_percent;
	u32 rtt_floor_us;
	u32 rtt_strikes;
	u32 sibling_factor_percent;
	u32 loss_window;
	u32 loss_percent;
	u32 loss_min_segments;
	u32 timeouts;
	u32 no_progress_us;
	u32 no_progress_factor_percent;
	u32 delayed_ack_us;
	u32 lone_delayed_ack_us;
	u32 stall_us;
	u32 hole_us;
	u32 hole_factor_percent;
	u32 silence_us;
	u32 silence_factor_percent;
	u32 min_interval_us;
};

/* What went wrong inside the probes, counted since they were loaded. */
struct counters {
	u64 alarms_lost;	    /* the ring buffer was full */
	u64 final_records_kept;	    /* the ring buffer was full, user space collects them */
	u64 subflows_refused;	    /* the map of subflows was full */
	u64 connections_refused;    /* the map of connections was full */
	u64 listeners_refused;	    /* the map of listeners was full */
};

#endif
