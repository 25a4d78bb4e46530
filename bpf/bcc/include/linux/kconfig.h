/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* What bcc puts before every program: a kernel that can do BPF. */
#define CONFIG_BPF_SYSCALL 1
