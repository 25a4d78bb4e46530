// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * Traces the packets that signal, not those that carry data.
 *
 * Reported are TCP segments with SYN or RST, and those with an MPTCP option (kind 30,
 * RFC 8684, 3) other than an ordinary DSS; a DSS with a mapping of length 0 is the
 * infinite mapping of a fallback (RFC 8684, 3.7).  IPv6 extension headers are not
 * followed.
 *
 * The packets are read where the kernel passes them on (net/core/dev.c): for a packet
 * socket it would clone every one of them before the filter rejects it.
 */
#include "memory.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define OPTIONS_MOST 40
#define MPTCP_KIND 30
#define DSS_SUBTYPE 2
#define SYN_OR_RST 0x06
#define HEADERS_MOST 128 /* IP and TCP, both with all options: 120 */

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct trace_packet {
	u64 at;	     /* CLOCK_MONOTONIC, ns */
	u64 cookie;  /* of the socket that sends it; 0: unknown, or it has none */
	u32 length;  /* of headers[], up to the packet's end */
	u8 outgoing;
	u8 headers[HEADERS_MOST] __attribute__((aligned(4))); /* from the IP header on */
};

struct trace_lost {
	u64 packets; /* the ring buffer was full */
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_device___trace {
	possible_net_t nd_net;
};

struct sk_buff___trace {
	struct net_device___trace *dev;
	struct sock *sk;
	unsigned int len, data_len;
	__be16 protocol;
	u16 network_header;
	unsigned int tail;
	unsigned char *head, *data;
};

#pragma clang attribute pop

/* Chosen by user space before loading. */
const volatile u32 own_netns = 0; /* inode of the namespace to keep to, 0: all */

struct trace_lost lost = {};

/* Only this makes the compiler write the layout into the BTF. */
const struct trace_packet *packet_layout = 0;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* user space may choose another size */
} records SEC(".maps");

struct walk {
	u64 at, end;
	bool signals;
};

static __always_inline bool is_infinite(u64 option, u8 size)
{
	u8 flags = byte_at(option + 3);
	u32 at = 4;

	if (!(flags & 0x04)) /* no mapping */
		return false;
	if (flags & 0x01)
		at += flags & 0x02 ? 8 : 4; /* data ack */
	at += (flags & 0x08 ? 8 : 4) + 4;   /* data and subflow sequence number */
	return at + 2 <= size && !byte_at(option + at) && !byte_at(option + at + 1);
}

static long look_at_option(u32 number, struct walk *walk)
{
	u64 at = walk->at;
	u8 kind, size;

	if (at >= walk->end)
		return 1;
	kind = byte_at(at);
	if (kind == 1) { /* padding */
		walk->at = at + 1;
		return 0;
	}
	size = byte_at(at + 1);
	if (!kind || size < 2)
		return 1;
	if (kind == MPTCP_KIND &&
	    (byte_at(at + 2) >> 4 != DSS_SUBTYPE || is_infinite(at, size))) {
		walk->signals = true;
		return 1;
	}
	walk->at = at + size;
	return 0;
}

/* Whether the TCP header at an address is one to report. */
static __always_inline bool signals(u64 tcp)
{
	struct walk walk = {};

	if (byte_at(tcp + 13) & SYN_OR_RST)
		return true;
	walk.at = tcp + 20;
	walk.end = tcp + (byte_at(tcp + 12) >> 4) * 4;
	if (walk.at < walk.end)
		bpf_loop(OPTIONS_MOST, look_at_option, &walk, 0);
	return walk.signals;
}

static __noinline int report(u64 ip, u32 length, u64 sender, bool outgoing)
{
	struct trace_packet *packet = bpf_ringbuf_reserve(&records, sizeof(*packet), 0);

	if (!packet) {
		__sync_fetch_and_add(&lost.packets, 1);
		return 0;
	}
	packet->at = bpf_ktime_get_ns();
	packet->length = length < HEADERS_MOST ? length : HEADERS_MOST;
	packet->outgoing = outgoing;
	packet->cookie = sender ? see(as(sock, sender), __sk_common.skc_cookie.counter) : 0;
	copy_from(packet->headers, ip, HEADERS_MOST);
	bpf_ringbuf_submit(packet, 0);
	return 0;
}

static __always_inline bool is_ours(struct sk_buff___trace *skb)
{
	struct net_device___trace *device = as(net_device___trace, (u64)skb->dev);
	struct net *net = as(net, see(device, nd_net.net));

	return !own_netns || see(net, ns.inum) == own_netns;
}

static __always_inline int look_at(struct sk_buff___trace *skb, u64 ip, u32 length, u64 sender,
				   bool outgoing)
{
	u32 start;
	u8 next;

	if (!is_ours(skb)) /* first: a packet may pass many namespaces */
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		start = (byte_at(ip) & 0xf) * 4;
		next = byte_at(ip + 9);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		start = 40;
		next = byte_at(ip + 6);
	} else {
		return 0;
	}
	if (next != IPPROTO_TCP || length < start + 20)
		return 0;
	return signals(ip + start) ? report(ip, length, sender, outgoing) : 0;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(packet_leaves, struct sk_buff___trace *skb)
{
	u32 start = skb->network_header; /* an offset from the head, as the tail is */

	return look_at(skb, (u64)skb->head + start, skb->tail - start, (u64)skb->sk, true);
}

/* Here the network header's offset is not set yet; it is where the data begins. */
SEC("tp_btf/netif_receive_skb")
int BPF_PROG(packet_arrives, struct sk_buff___trace *skb)
{
	return look_at(skb, (u64)skb->data, skb->len - skb->data_len, 0, false);
}
