/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The kernel's names of integers.  With its neighbours this stands in for the kernel
 * headers that bcc insists on (BCC_KERNEL_SOURCE): all it ever includes of them.
 */
#ifndef STAND_IN_TYPES_H
#define STAND_IN_TYPES_H

typedef unsigned char __u8, u8;
typedef unsigned short __u16, u16;
typedef unsigned int __u32, u32;
typedef unsigned long long __u64, u64;
typedef signed char __s8, s8;
typedef short __s16, s16;
typedef int __s32, s32;
typedef long long __s64, s64;

typedef __u16 __le16, __be16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64, __aligned_u64 __attribute__((aligned(8)));
typedef __u16 __sum16;

typedef unsigned long size_t, uintptr_t;
typedef long ssize_t;
typedef int pid_t;
typedef _Bool bool;

#define NULL ((void *)0)
#define true 1
#define false 0

#endif
