# SPDX-License-Identifier: BSD-3-Clause
"""Where the journal of a network namespace is, unless `journal.path` names a file.

The initial namespace's file is in /var/lib and outlives a boot.  Another namespace ends with the
boot at the latest, so its file is in the run folder, where the next daemon removes the files of
ended namespaces (`run_folder.sweep`).
"""

import os
from pathlib import Path

from mptcpd_ebpf.runtime import netns, run_folder

STATE = Path("/var/lib/mptcpd-ebpf")
NAME = "journal.db"


def default_path() -> Path:
    """The file for the calling thread's network namespace and this user.

    A service's StateDirectory= has precedence (systemd.exec(5)).
    """
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given.partition(":")[0]) / NAME
    if os.geteuid() == 0 and netns.inode_of(1) == netns.inode():
        return STATE / NAME
    # The cookie, because the kernel uses inode numbers again.
    return run_folder.here(f"{netns.cookie()}.{NAME}")
