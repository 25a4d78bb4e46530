# SPDX-License-Identifier: BSD-3-Clause
"""A user's own plugins: files in a folder that only the user can write."""

from pathlib import Path


def plugin_folder(parent: Path, **sources: str) -> Path:
    """A folder under `parent` with these plugins by name; existing files are replaced."""
    folder = parent / "plugins"
    folder.mkdir(mode=0o755, exist_ok=True)
    for name, source in sources.items():
        file = folder / f"{name}.py"
        file.write_text(source)
        file.chmod(0o644)
    return folder
