#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Process 1 of the guest: what a booted Debian has mounted, then a command, then power-off.
# Arguments: the folder of the kernel's modules, that of its headers (or one that is not
# there), the source tree, the tests' slowness (tests/waiting.py), the command and its own.
modules=$1 headers=$2 tree=$3
export MPTCP_TESTS_SLOWNESS=$4
shift 4
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
# The tree may stand below one of the places that are empty on a booted machine.
mkdir /.tree
mount --bind "$tree" /.tree
for place in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $place; done
mkdir -p "$tree"
mount --bind /.tree "$tree"
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
mkdir -p /lib/modules
ln -sfn "$modules" "/lib/modules/$(uname -r)"
if [ -d "$headers" ]; then
  # Where Debian's packages have them; the links' own targets differ between releases.
  ln -s "$headers"/usr/src/linux-headers-* /usr/src/
  for link in "$headers"{,/usr}/lib/modules/*/{build,source}; do
    [ -L "$link" ] && ln -sfn "/usr/src/$(basename "$(readlink "$link")")" "$modules/${link##*/}"
  done
fi
# Emulated hosts answer each other in 1 to 50 ms over a path without delay.
cat >/etc/mptcpd-ebpf.yaml <<END
probes: {thresholds: {rtt_floor_us: 150000, no_progress_us: 400000, stall_us: 600000}}
END
exec </dev/null >/dev/ttyS0 2>&1
stty -F /dev/ttyS1 raw
ip link set lo up
hostname guest

cd "$tree" || echo "kernels: no $tree in the guest"
export PATH="$tree/.venv/bin:$PATH"
"$@"
sync
echo o >/proc/sysrq-trigger
sleep 60
