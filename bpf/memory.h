/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Reads kernel memory that has no type of its own: packets, messages, strings.
 *
 * See kernel.h: a plain load needs a type that the verifier knows.  struct in6_addr is
 * sixteen bytes at any address; reading unmapped memory yields zeros.
 */
#ifndef MEMORY_H
#define MEMORY_H

#include "kernel.h"

#define PIECE 16

static __always_inline u8 byte_at(u64 address)
{
	return see(as(in6_addr, address), in6_u.u6_addr8[0]);
}

static __always_inline u64 pointer_at(u64 address)
{
	return (u64)see(as(list_head, address), next);
}

/* Copies `bytes` bytes, a multiple of PIECE that is a constant when compiling. */
static __always_inline void copy_from(void *to, u64 from, u32 bytes)
{
	u32 *words = to;

#pragma unroll
	for (u32 at = 0; at < bytes; at += PIECE) {
		struct in6_addr *piece = as(in6_addr, from + at);

		*words++ = see(piece, in6_u.u6_addr32[0]);
		*words++ = see(piece, in6_u.u6_addr32[1]);
		*words++ = see(piece, in6_u.u6_addr32[2]);
		*words++ = see(piece, in6_u.u6_addr32[3]);
	}
}

#endif
