# SPDX-License-Identifier: BSD-3-Clause
"""Names the dependencies that an installed mptcpd-ebpf lacks: `missing.py INTERPRETER`."""

import json
import subprocess
import sys

from packaging.requirements import Requirement

ASK = """
import importlib.metadata as m, json
requires = [each for each in m.requires("mptcpd-ebpf") or () if "extra ==" not in each]
versions = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}
print(json.dumps([requires, versions]))
"""


def missing(interpreter: str) -> list[str]:
    """The requirements that its environment does not meet, each with what is there instead."""
    asked = subprocess.run([interpreter, "-I", "-c", ASK], check=True, capture_output=True)
    requires, versions = json.loads(asked.stdout)
    found = []
    for requirement in map(Requirement, requires):
        version = versions.get(requirement.name)
        if version is None:
            found.append(f"{requirement} (not there)")
        elif version not in requirement.specifier:
            found.append(f"{requirement} (there is {version})")
    return found


if __name__ == "__main__":
    if lacking := missing(sys.argv[1]):
        print(f"install: mptcpd-ebpf does not start without {', '.join(lacking)}", file=sys.stderr)
