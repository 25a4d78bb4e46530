/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Turns TCP sockets into MPTCP ones when they are made, by any process.
 *
 * update_socket_protocol() (net/socket.c, Linux 6.6) exists for this: socket(2) calls it
 * for the protocol to use, and a fmod_ret program may replace its result.  Its caller is
 * the current task, so sockets are selected by that task.  It is not called for sockets of
 * the kernel itself.
 *
 * Unlike the preload library this cannot fall back: where net.mptcp.enabled is off, an
 * MPTCP socket is an error.  Hence it keeps to one network namespace, and user space,
 * which can read that sysctl, detaches it in time.
 */
#include "kernel.h"

#define SOCK_STREAM 1
#define SOCK_TYPE_MASK 0xf /* include/linux/net.h: CLOEXEC and NONBLOCK are above it */
#define IPPROTO_MPTCP 262
#define COMM_BYTES 16  /* include/linux/sched.h: TASK_COMM_LEN */
#define ANCESTORS 64   /* parents looked at; also the depth of cgroups */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	struct task_struct *real_parent;
	int tgid;
	struct nsproxy *nsproxy;
};

#pragma clang attribute pop

/* What a task must be; 0 or empty: anything. */
const volatile u32 only_netns; /* inode of its network namespace; always required */
const volatile u32 only_pid;   /* it, or a parent, parent's parent … of it */
const volatile u64 only_cgroup; /* its cgroup v2, or one above */
const volatile char only_comm[COMM_BYTES];

u64 turned; /* sockets that became MPTCP ones */

static __always_inline bool descends_from(struct task_struct *task, u32 pid)
{
	for (int i = 0; i < ANCESTORS; i++) {
		if (task->tgid == pid)
			return true;
		if (task->tgid <= 1)
			return false;
		task = task->real_parent;
	}
	return false;
}

static __always_inline bool in_cgroup(u64 id)
{
	for (int level = 0; level < ANCESTORS; level++) {
		u64 ancestor = bpf_get_current_ancestor_cgroup_id(level);

		if (ancestor == id)
			return true;
		if (!ancestor)
			return false;
	}
	return false;
}

static __always_inline bool is_called(const volatile char *comm)
{
	char current[COMM_BYTES] = {};

	bpf_get_current_comm(current, sizeof(current));
	for (int i = 0; i < COMM_BYTES; i++) {
		if (current[i] != comm[i])
			return false;
		if (!current[i])
			break;
	}
	return true;
}

SEC("fmod_ret/update_socket_protocol")
int BPF_PROG(mptcpify, int family, int type, int protocol)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();

	if ((family != AF_INET && family != AF_INET6) ||
	    (type & SOCK_TYPE_MASK) != SOCK_STREAM ||
	    (protocol != 0 && protocol != IPPROTO_TCP))
		return protocol;
	if (task->nsproxy->net_ns->ns.inum != only_netns)
		return protocol;
	if (only_pid && !descends_from(task, only_pid))
		return protocol;
	if (only_cgroup && !in_cgroup(only_cgroup))
		return protocol;
	if (only_comm[0] && !is_called(only_comm))
		return protocol;
	__sync_fetch_and_add(&turned, 1);
	return IPPROTO_MPTCP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
