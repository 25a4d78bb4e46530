# SPDX-License-Identifier: BSD-3-Clause
"""Copies distributions from this environment into a folder: `vendor.py FOLDER NAME…`.

`make setup` has installed them with the hashes of requirements.lock, so an installation needs no
network.  ``@FILE`` stands for all names in a lock file.  Bytecode and scripts are left out.
"""

import base64
import hashlib
import re
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path


def names(arguments: list[str]) -> list[str]:
    """The names, with those of the lock files."""
    found = []
    for argument in arguments:
        if argument.startswith("@"):
            lock = Path(argument[1:]).read_text()
            found += re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
        else:
            found.append(argument)
    return found


def copy(name: str, folder: Path) -> None:
    """Copies one distribution.  Exits if a file is not the one that was installed."""
    for file in distribution(name).files or ():
        if ".." in file.parts or "__pycache__" in file.parts or file.suffix == ".pyc":
            continue
        source = Path(str(file.locate()))
        if file.hash is not None:
            digest = hashlib.new(file.hash.mode, source.read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                sys.exit(f"{source} was changed: run 'make setup' after removing .venv")
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)


if __name__ == "__main__":
    for each in names(sys.argv[2:]):
        copy(each, Path(sys.argv[1]))
