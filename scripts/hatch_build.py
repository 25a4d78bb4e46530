# SPDX-License-Identifier: BSD-3-Clause
"""Puts what stands outside the package into the wheel.

The BPF objects and the preload library (compiled here if they are not there yet), the
sources that bcc compiles on the spot and the shipped plugins land under
``mptcpd_ebpf/_data``; ``mptcpd_ebpf.runtime.resources`` finds them there or in the source tree.
A wheel therefore installs without a compiler, and is for the architecture it was built on.
"""

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataHook(BuildHookInterface):  # type: ignore[misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # the source tree itself is used
        root = Path(self.root)
        subprocess.run(["make", "bpf", "preload"], cwd=root, check=True)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        included = build_data["force_include"]
        for built in sorted((root / "build" / "bpf").glob("*.bpf.o")):
            included[str(built)] = f"mptcpd_ebpf/_data/bpf/{built.name}"
        for source in sorted((root / "bpf").rglob("*.[ch]")):
            included[str(source)] = f"mptcpd_ebpf/_data/{source.relative_to(root)}"
        for built in sorted((root / "build" / "preload").glob("*.so")):
            included[str(built)] = f"mptcpd_ebpf/_data/preload/{built.name}"
        for folder in ("plugins", "etc", "systemd"):
            for path in sorted((root / folder).iterdir()):
                if path.is_file():
                    included[str(path)] = f"mptcpd_ebpf/_data/{folder}/{path.name}"
