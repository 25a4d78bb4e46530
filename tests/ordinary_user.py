# SPDX-License-Identifier: BSD-3-Clause
"""What the tests start as an ordinary user, who has to be able to look into the checkout."""

import functools
import subprocess
import sys

from tests.tree import ROOT

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
"""Before a command, or before more options of setpriv."""


@functools.cache
def obstacle() -> str | None:
    """Why no program of ours can be started as an ordinary user, if so."""
    look = [*AS_NOBODY, sys.executable, "-c", "import mptcpd_ebpf"]
    if subprocess.run(look, cwd="/", capture_output=True).returncode == 0:
        return None
    return f"an ordinary user cannot look into {ROOT}, for a folder above it is closed to him"
