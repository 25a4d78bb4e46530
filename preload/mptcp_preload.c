// SPDX-License-Identifier: BSD-3-Clause
/*
 * Turns the TCP sockets of an unmodified program into MPTCP sockets.
 *
 * The dynamic loader puts this library before libc (LD_PRELOAD, ld.so(8)), so a
 * program calls this socket(2) first.  A stream socket over IPv4 or IPv6 whose
 * protocol is TCP, by number or by default, is requested with IPPROTO_MPTCP.  If that
 * fails for any reason (no MPTCP in the kernel, sysctl net.mptcp.enabled off, a
 * seccomp or SELinux rule), the program's own call follows unchanged, and the program
 * gets its result and errno.  Every other call passes unchanged.
 *
 * The calls go to the *next* socket() in the loader's order, so other preloaded
 * wrappers before and after this one keep working.
 *
 * With MPTCPD_EBPF_PRELOAD_DEBUG in the environment, each TCP socket is reported
 * on stderr with its protocol.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262 /* include/uapi/linux/in.h */
#endif

typedef int socket_function(int family, int type, int protocol);

static socket_function *next_socket;
static bool debug;

/*
 * Looked up before main(), because dlsym() is not safe in a signal handler or
 * between fork() and exec(); and by socket() itself if another library's constructor
 * calls it even earlier.
 */
__attribute__((constructor)) static void prepare(void)
{
	if (!next_socket)
		next_socket = (socket_function *)dlsym(RTLD_NEXT, "socket");
	debug = getenv("MPTCPD_EBPF_PRELOAD_DEBUG") != NULL;
}

/* The type also holds SOCK_CLOEXEC and SOCK_NONBLOCK: net/socket.c, SOCK_TYPE_MASK. */
static bool is_tcp(int family, int type, int protocol)
{
	const int type_mask = 0xf;

	return (family == AF_INET || family == AF_INET6) &&
	       (type & type_mask) == SOCK_STREAM &&
	       (protocol == 0 || protocol == IPPROTO_TCP);
}

/* One write(2), so that lines of threads and processes do not mix. */
static void report(int family, int type, int protocol, int refused)
{
	char line[256];
	int length = snprintf(line, sizeof(line), "mptcpd-ebpf: pid %d: socket(%s, %#x, %d): %s%s%s\n",
			      getpid(), family == AF_INET ? "AF_INET" : "AF_INET6", type, protocol,
			      refused ? "stays TCP (" : "MPTCP",
			      refused ? strerrordesc_np(refused) : "", refused ? ")" : "");

	if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
		return;
}

__attribute__((visibility("default"))) int socket(int family, int type, int protocol)
{
	int before = errno, refused = 0, fd;

	if (!next_socket)
		prepare();
	if (!is_tcp(family, type, protocol))
		return next_socket(family, type, protocol);

	fd = next_socket(family, type, IPPROTO_MPTCP);
	if (fd < 0)
		refused = errno;
	if (debug)
		report(family, type, protocol, refused);
	errno = before;
	return refused ? next_socket(family, type, protocol) : fd;
}
