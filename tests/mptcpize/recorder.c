// SPDX-License-Identifier: BSD-3-Clause
/*
 * Comes after the preload library in the loader's order, in place of libc, and records
 * calls of socket() instead of calling the kernel: all combinations of arguments can be
 * tried without the kernel loading a module for each family.
 */
#include <errno.h>

enum { MPTCP = 262, FD = 1000 };

struct call {
	int family, type, protocol;
};

struct call recorded[4];
int calls;
int refuse_mptcp; /* errno for the next MPTCP sockets, 0: they succeed */
int refuse_all;   /* errno for all others */

int socket(int family, int type, int protocol)
{
	int error = protocol == MPTCP ? refuse_mptcp : refuse_all;

	if (calls < 4)
		recorded[calls] = (struct call){ family, type, protocol };
	calls++;
	if (!error)
		return FD + protocol;
	errno = error;
	return -1;
}
