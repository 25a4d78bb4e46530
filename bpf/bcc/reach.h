/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * How a program that bcc compiles reads the kernel's structures.
 *
 * What is included before this file declares them with the running kernel's layout, and says
 * of a field whether it exists (HAS_), how wide it is (WIDTH_) and, of a bit field, where its
 * bits are (BITS_AT_, BITS_): mptcpd_ebpf/probes/bcc_layouts.py.
 *
 * bcc turns a dereference into a call of a helper where it recognizes it; here every read is
 * such a call, so that nothing depends on that.  bcc cannot call functions: all are inlined.
 */
#ifndef REACH_H
#define REACH_H

#undef __always_inline
#undef __noinline
#define __always_inline inline __attribute__((always_inline))
#define __noinline __always_inline

#define as(type, pointer) ((struct type *)(pointer))
#define see(pointer, field)                                                         \
	({                                                                          \
		typeof((pointer)->field) seen;                                      \
		bpf_probe_read_kernel(&seen, sizeof(seen),                          \
				      (void *)(u64)(pointer) +                      \
					      __builtin_offsetof(typeof(*(pointer)), field)); \
		seen;                                                               \
	})
#define see_bit(pointer, field)                                                \
	({                                                                     \
		u32 seen;                                                      \
		bpf_probe_read_kernel(&seen, sizeof(seen),                     \
				      (void *)(u64)(pointer) + BITS_AT_##field); \
		seen >> (BITS_##field & 0xff) & ((1 << (BITS_##field >> 8)) - 1); \
	})
#define exists(type, field) HAS_##type##_##field
#define width_of(type, field) WIDTH_##type##_##field
#define offset_of(type, field) __builtin_offsetof(struct type, field)
/* Only a sock_ops program can assign a socket's cookie, and does so first. */
#define assigned_cookie(sk) see(sk, __sk_common.skc_cookie.counter)
/* The end of a socket that did not request the callbacks when it opened is never reported. */
#define REPORTS_ENDS_OF_OLDER false
/* bcc's instruction set has no atomic operation that returns something. */
#define falls_to_zero(counter) (__sync_fetch_and_add(&(counter), -1), !(counter))

#endif
