/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The maps of bpf/state.h for a program that bcc compiles.
 *
 * mptcpd_ebpf/probes/bcc_probes.py makes them; each has a number here (…_MAP), which is
 * replaced by its descriptor before the code is loaded.  What is a global variable there is
 * the only element of an array here, accessed by its address (BPF_PSEUDO_MAP_VALUE).
 */
#ifndef MAPS_H
#define MAPS_H

#define MAP(number) (*(char *)bpf_pseudo_fd(1, number))
#define ELEMENT(type, number) ((type *)bpf_pseudo_fd(2, number))

#define subflows MAP(SUBFLOWS_MAP)
#define connections MAP(CONNECTIONS_MAP)
#define listeners MAP(LISTENERS_MAP)
#define reports MAP(REPORTS_MAP)
#define openers MAP(OPENERS_MAP)

#define thresholds (*ELEMENT(struct thresholds, THRESHOLDS_MAP))
#define counters (*ELEMENT(struct counters, COUNTERS_MAP))
#define gates ELEMENT(struct gate, GATES_MAP)
#define arrivals ELEMENT(struct arrival, ARRIVALS_MAP)
#define blank ELEMENT(u8, BLANK_MAP)

#define own_netns (*ELEMENT(u32, NETNS_MAP))
#define tick_us TICK_US /* a constant of the host */

#endif
