// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * A socket filter: of all packets lets through what signals, not what carries data.
 *
 * For a packet socket of type SOCK_DGRAM, so that a packet begins with its IP header.
 * Kept are TCP segments with SYN or RST, and those with an MPTCP option (kind 30,
 * RFC 8684, 3) other than an ordinary DSS; a DSS with a mapping of length 0 is the
 * infinite mapping of a fallback (RFC 8684, 3.7).  IPv6 extension headers are not
 * followed.
 */
#include "kernel.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define OPTIONS_MOST 40
#define MPTCP_KIND 30
#define DSS_SUBTYPE 2
#define SYN_OR_RST 0x06
#define WHOLE_HEADERS 160

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The options of a segment, room behind them for reading over their end. */
struct walk {
	u8 options[OPTIONS_MOST + 32];
	u32 length;
	u32 at;
	u32 verdict;
};

static __always_inline bool is_infinite(u8 *option, u32 room)
{
	u8 flags = option[3];
	u32 at = 4;

	if (!(flags & 0x04)) /* no mapping */
		return false;
	if (flags & 0x01)
		at += flags & 0x02 ? 8 : 4; /* data ack */
	at += (flags & 0x08 ? 8 : 4) + 4;   /* data and subflow sequence number */
	return at + 2 <= room && !option[at] && !option[at + 1];
}

static long look_at_option(u32 number, struct walk *walk)
{
	u32 at = walk->at;
	u8 kind, size;

	if (at >= OPTIONS_MOST || at >= walk->length)
		return 1;
	kind = walk->options[at];
	size = walk->options[at + 1];
	if (kind == 1) { /* padding */
		walk->at = at + 1;
		return 0;
	}
	if (!kind || size < 2)
		return 1;
	if (kind == MPTCP_KIND && (walk->options[at + 2] >> 4 != DSS_SUBTYPE ||
				   is_infinite(&walk->options[at], size))) {
		walk->verdict = WHOLE_HEADERS;
		return 1;
	}
	walk->at = at + size;
	return 0;
}

SEC("socket")
int signals(struct __sk_buff *skb)
{
	struct walk walk = {};
	u8 first, next, offset, flags;
	u32 tcp;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, &first, 1) || bpf_skb_load_bytes(skb, 9, &next, 1))
			return 0;
		tcp = (first & 0xf) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 6, &next, 1))
			return 0;
		tcp = 40;
	} else {
		return 0;
	}
	if (next != IPPROTO_TCP || bpf_skb_load_bytes(skb, tcp + 12, &offset, 1) ||
	    bpf_skb_load_bytes(skb, tcp + 13, &flags, 1))
		return 0;
	if (flags & SYN_OR_RST)
		return WHOLE_HEADERS;
	walk.length = (offset >> 4) * 4;
	if (walk.length <= 20)
		return 0;
	walk.length -= 20;
	if (walk.length > OPTIONS_MOST ||
	    bpf_skb_load_bytes(skb, tcp + 20, walk.options, walk.length))
		return 0;
	bpf_loop(OPTIONS_MOST, look_at_option, &walk, 0);
	return walk.verdict;
}
