# SPDX-License-Identifier: BSD-3-Clause
"""Where the root of cgroup v2 is mounted.

``ip netns exec`` mounts a fresh /sys, without a cgroup file system; that of process 1
is still reachable through /proc/1/root.
"""

from pathlib import Path


def root_cgroup() -> Path | None:
    """The root of cgroup v2; None if neither this process nor process 1 has it mounted."""
    for process, above in (("self", Path("/")), ("1", Path("/proc/1/root"))):
        try:
            mounts = Path("/proc", process, "mountinfo").read_text().splitlines()
        except OSError:
            continue
        for mount in mounts:
            # id parent major:minor root mount-point options … - type source options
            words, _, filesystem = mount.partition(" - ")
            folder, root = words.split()[4], words.split()[3]
            if filesystem.split()[0] == "cgroup2" and root == "/":
                found = above / folder.lstrip("/").encode().decode("unicode_escape")
                if found.is_dir():
                    return found
    return None
