// SPDX-License-Identifier: BSD-3-Clause
/*
 * Stands behind the preload library in the loader's order, in libc's place, and writes
 * down what it is asked for instead of asking the kernel: the whole table of arguments
 * can be tried without a kernel loading a module for each family.
 */
#include <errno.h>

enum { MPTCP = 262, FD = 1000 };

struct call {
	int family, type, protocol;
};

struct call recorded[4];
int calls;
int refuse_mptcp; /* errno for the next MPTCP sockets, 0: give them */
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
