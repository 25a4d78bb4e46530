# SPDX-License-Identifier: BSD-3-Clause
"""Loads unit files with systemd itself, which need not be the init system.

``systemd --user --test`` loads units from given folders, dumps them and ends; it
refuses to run as root, so it runs as nobody.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

SYSTEMD = "/lib/systemd/systemd"
_AS_NOBODY = ("setpriv", "--reuid", "65534", "--clear-groups", "--no-new-privs")
_USER_UNITS = "/usr/lib/systemd/user"  # the targets that every transaction needs


@dataclass
class Loaded:
    """One unit as systemd loaded it, specifiers expanded."""

    fragment: str = ""
    dropins: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def load(name: str, *folders: Path) -> Loaded:
    """What systemd knows of the unit `name`, found in `folders`, the strongest first."""
    with tempfile.TemporaryDirectory(prefix="mptcpd-ebpf-oracle-") as run:
        runtime = Path(run)
        runtime.chmod(0o777)
        copies = []
        for number, folder in enumerate(folders):
            copy = runtime / f"units{number}"
            shutil.copytree(folder, copy, symlinks=True)
            copies.append(copy)
        path = ":".join([*map(str, copies), _USER_UNITS])
        done = subprocess.run(
            [*_AS_NOBODY, SYSTEMD, "--user", "--test", f"--unit={name}"],
            env={"SYSTEMD_UNIT_PATH": path, "XDG_RUNTIME_DIR": run, "HOME": run},
            capture_output=True,
            text=True,
            timeout=60,
        )
        dump = done.stdout + done.stderr
        found = re.search(
            rf"^\t?-> Unit {re.escape(name)}:\n(.*?)(?=^\t?-> Unit |\Z)",
            dump,
            re.DOTALL | re.MULTILINE,
        )
        assert found, f"systemd did not load {name}: {dump[-2000:]}"
        loaded = Loaded()
        for line in found[1].splitlines():
            key, _, value = line.lstrip().partition(": ")
            if key == "Fragment Path":
                loaded.fragment = _named(value, copies, folders)
            elif key == "DropIn Path":
                loaded.dropins.append(_named(value, copies, folders))
            elif key == "Environment":
                variable, _, content = value.partition("=")
                loaded.environment[variable] = content
        return loaded


def _named(path: str, copies: list[Path], folders: tuple[Path, ...]) -> str:
    for copy, folder in zip(copies, folders, strict=True):
        if path.startswith(f"{copy}/"):
            return str(folder / Path(path).relative_to(copy))
    return path
