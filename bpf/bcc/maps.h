/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The maps of bpf/state.h for a program that bcc compiles.
 *
 * mptcpd_ebpf/probes/bcc_probes.py makes them and passes their descriptors (…_FD); what is
 * a global variable there is the one element of an array here, reached at its address
 * (BPF_PSEUDO_MAP_VALUE).  OWN_NETNS and TICK_US are constants.
 */
#ifndef MAPS_H
#define MAPS_H

#define MAP(fd) (*(char *)bpf_pseudo_fd(1, fd))
#define ELEMENT(type, fd) ((type *)bpf_pseudo_fd(2, fd))

#define subflows MAP(SUBFLOWS_FD)
#define connections MAP(CONNECTIONS_FD)
#define listeners MAP(LISTENERS_FD)
#define reports MAP(REPORTS_FD)
#define openers MAP(OPENERS_FD)

#define thresholds (*ELEMENT(struct thresholds, THRESHOLDS_FD))
#define counters (*ELEMENT(struct counters, COUNTERS_FD))
#define gates ELEMENT(struct gate, GATES_FD)
#define blank ELEMENT(u8, BLANK_FD)

#define own_netns OWN_NETNS
#define tick_us TICK_US

#endif
