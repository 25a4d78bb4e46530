// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/* Empty programs at the probes' hot hooks: what a call costs before it does anything. */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/tcp_probe")
int empty_receive(void *ctx)
{
	return 0;
}

SEC("tp_btf/mptcp_subflow_get_send")
int empty_schedule(void *ctx)
{
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int empty_retransmit(void *ctx)
{
	return 0;
}
