// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
/*
 * Traces every path-manager command, from any process, and the kernel's answer.
 *
 * The kernel sends no event for commands.  But it handles a generic netlink request within
 * the sendto(2) or sendmsg(2) that sends it, so the begin and end of that call are those of
 * the command, and at its end the answer is the newest message in the socket's receive
 * queue.  The text of an extended acknowledgement comes from netlink_extack in between.
 */
#include "memory.h"

#define COMM_SIZE 16
#define MESSAGE_BYTES 256
#define WORDS_BYTES 96
#define NLMSG_ERROR 2
#define AF_NETLINK 16
#define UNANSWERED 0x7fffffff

#if defined(__TARGET_ARCH_x86)
#define SENDTO 44
#define SENDMSG 46
#define first_argument di
#define second_argument si
#elif defined(__TARGET_ARCH_arm64)
#define SENDTO 206
#define SENDMSG 211
#define first_argument regs[0]
#define second_argument regs[1]
#endif

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct trace_command {
	u64 at;		      /* CLOCK_MONOTONIC, ns */
	u64 duration_ns;
	u64 socket;	      /* address of the sending struct sock */
	u64 cgroup;
	u32 netns;
	u32 pid;
	u32 uid;
	s32 error;	      /* of the kernel's answer, UNANSWERED if none was found */
	u32 sequence;
	u32 length;	      /* of the message, which is truncated below */
	char comm[COMM_SIZE];
	char words[WORDS_BYTES] __attribute__((aligned(4))); /* the kernel's extended acknowledgement */
	u8 message[MESSAGE_BYTES]; /* the request, from nlmsghdr on */
};

/* What went wrong inside the programs. */
struct trace_lost {
	u64 records; /* the ring buffer or the map of unfinished commands was full */
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	u64 regs[31];
};
#endif

struct file {
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	struct files_struct *files;
};

struct socket___trace {
	struct sock *sk;
};

struct sk_buff___trace {
	unsigned char *data;
};

struct sk_buff_head___trace {
	struct sk_buff *prev;
};

struct sock___trace {
	struct sk_buff_head___trace sk_receive_queue;
};

#pragma clang attribute pop

/* include/linux/socket.h, as user space passes them */
struct iovec {
	u64 base;
	u64 length;
};

struct user_msghdr {
	u64 name;
	u64 name_length;
	u64 vectors;
	u64 vectors_length;
};

struct netlink_header {
	u32 length;
	u16 type;
	u16 flags;
	u32 sequence;
	u32 port;
	s32 error; /* of an NLMSG_ERROR */
};

struct answer {
	struct netlink_header header;
	u32 rest[3]; /* up to a whole PIECE */
};

/* Chosen by user space before loading. */
const volatile u32 own_netns = 0;
const volatile u32 family = 0; /* message type of the mptcp_pm family */

struct trace_lost lost = {};
u32 under_way = 0;

const struct trace_command *command_layout = 0;

static const struct trace_command blank = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, u64); /* pid_tgid */
	__type(value, struct trace_command);
} commands SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} records SEC(".maps");

static __always_inline struct sock *socket_behind(u32 descriptor)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct files_struct *files = as(files_struct, task->files);
	struct fdtable *table = as(fdtable, see(files, fdt));
	struct socket___trace *socket;
	struct file *file;

	if (descriptor >= see(table, max_fds))
		return 0;
	file = as(file, pointer_at((u64)see(table, fd) + descriptor * sizeof(u64)));
	socket = as(socket___trace, see(file, private_data));
	return as(sock, see(socket, sk));
}

SEC("tp_btf/sys_enter")
int BPF_PROG(call_begins, struct pt_regs *registers, long number)
{
	u64 thread = bpf_get_current_pid_tgid(), buffer;
	struct netlink_header header = {};
	struct trace_command *command;
	struct user_msghdr message;
	struct iovec vector;
	struct sock *sk;

	if (number != SENDTO && number != SENDMSG)
		return 0;
	buffer = registers->second_argument;
	if (number == SENDMSG) {
		if (bpf_probe_read_user(&message, sizeof(message), (void *)buffer) ||
		    bpf_probe_read_user(&vector, sizeof(vector), (void *)message.vectors))
			return 0;
		buffer = vector.base;
	}
	if (bpf_probe_read_user(&header, sizeof(header), (void *)buffer) ||
	    header.type != family)
		return 0;
	sk = socket_behind(registers->first_argument);
	if (!sk || see(sk, __sk_common.skc_family) != AF_NETLINK)
		return 0;
	if (own_netns && netns_of(sk) != own_netns)
		return 0;
	if (bpf_map_update_elem(&commands, &thread, &blank, BPF_ANY)) {
		__sync_fetch_and_add(&lost.records, 1);
		return 0;
	}
	command = bpf_map_lookup_elem(&commands, &thread);
	if (!command)
		return 0;
	command->at = bpf_ktime_get_ns();
	command->socket = (u64)sk;
	command->netns = netns_of(sk);
	command->pid = thread >> 32;
	command->uid = (u32)bpf_get_current_uid_gid();
	command->cgroup = bpf_get_current_cgroup_id();
	command->sequence = header.sequence;
	command->length = header.length;
	bpf_get_current_comm(command->comm, sizeof(command->comm));
	if (header.length < MESSAGE_BYTES)
		bpf_probe_read_user(command->message, header.length & (MESSAGE_BYTES - 1),
				    (void *)buffer);
	else
		bpf_probe_read_user(command->message, MESSAGE_BYTES, (void *)buffer);
	__sync_fetch_and_add(&under_way, 1);
	return 0;
}

SEC("tp_btf/netlink_extack")
int BPF_PROG(words_said, const char *words)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct trace_command *command;

	if (!under_way)
		return 0;
	command = bpf_map_lookup_elem(&commands, &thread);
	if (command)
		copy_from(command->words, (u64)words, WORDS_BYTES);
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(call_ends, struct pt_regs *registers, long result)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct answer answer;
	struct trace_command *command;
	struct sock___trace *sk;
	u64 newest;

	if (!under_way)
		return 0;
	command = bpf_map_lookup_elem(&commands, &thread);
	if (!command)
		return 0;
	command->duration_ns = bpf_ktime_get_ns() - command->at;
	command->error = UNANSWERED;
	sk = as(sock___trace, command->socket);
	newest = (u64)see(sk, sk_receive_queue.prev);
	if (result < 0) {
		command->error = result;
	} else if (newest) {
		copy_from(&answer, (u64)see(as(sk_buff___trace, newest), data), sizeof(answer));
		if (answer.header.sequence == command->sequence)
			command->error =
				answer.header.type == NLMSG_ERROR ? answer.header.error : 0;
	}
	if (bpf_ringbuf_output(&records, command, sizeof(*command), 0))
		__sync_fetch_and_add(&lost.records, 1);
	bpf_map_delete_elem(&commands, &thread);
	__sync_fetch_and_add(&under_way, -1);
	return 0;
}
