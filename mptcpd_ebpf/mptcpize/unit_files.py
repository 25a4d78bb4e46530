# SPDX-License-Identifier: BSD-3-Clause
"""Finds a service's files as systemd does, in the running system or below another root.

The rules are systemd.unit(5)'s: the search path, templates and instances, aliases and
masks, and the drop-in folders ``NAME.d`` of every matching name (``foo-bar@x.service``
also reads ``foo-bar@.service.d``, ``foo-@x.service.d``, ``foo-.service.d`` …).  Links are
followed inside the root (`chase`), so that an image's absolute links stay in the image.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

SEARCH_PATH = tuple(
    map(
        Path,
        (
            "/etc/systemd/system.control",
            "/run/systemd/system.control",
            "/run/systemd/transient",
            "/run/systemd/generator.early",
            "/etc/systemd/system",
            "/etc/systemd/system.attached",
            "/run/systemd/system",
            "/run/systemd/system.attached",
            "/run/systemd/generator",
            "/usr/local/lib/systemd/system",
            "/usr/lib/systemd/system",
            "/lib/systemd/system",
            "/run/systemd/generator.late",
        ),
    )
)
"""Where the system manager's unit files are, the strongest first."""

_SUFFIX = ".service"
_OTHER_TYPES = frozenset(
    ("automount", "device", "mount", "path", "scope", "slice", "socket", "swap", "target", "timer")
)
_NAME = re.compile(r"(?P<prefix>[A-Za-z0-9:_.\\-]+)(?P<at>@(?P<instance>[A-Za-z0-9:_.\\@-]*))?")
_MAX_NAME = 255
_MAX_LINKS = 40


@dataclass(frozen=True)
class UnitName:
    """A service's name in its parts: ``PREFIX.service``, ``PREFIX@INSTANCE.service``."""

    prefix: str
    instance: str | None = None
    """Empty for a template, None for a plain service."""

    def __str__(self) -> str:
        return f"{self.prefix}{'' if self.instance is None else '@' + self.instance}{_SUFFIX}"

    @property
    def template(self) -> "UnitName | None":
        """What an instance is made from; None for templates and plain services."""
        return UnitName(self.prefix, "") if self.instance else None


@dataclass(frozen=True)
class Unit:
    """A service that exists."""

    root: Path
    name: UnitName
    """Its own name, if it was requested by an alias."""
    fragment: Path
    """Its unit file, inside `root`."""
    dropins: tuple[Path, ...]
    """Its drop-in files in the order in which systemd applies them, inside `root`."""


def parse_name(text: str) -> UnitName:
    """A service's name; ``foo`` means ``foo.service``.  Raises `Failure` if it is invalid."""
    stem, _, kind = text.rpartition(".")
    if kind in _OTHER_TYPES:
        raise Failure(f"{text}: a {kind} unit; only services can be changed", ExitCode.USAGE)
    stem = stem if kind == "service" else text
    match = _NAME.fullmatch(stem)
    if match is None or len(stem + _SUFFIX) > _MAX_NAME:
        raise Failure(f"{text!r}: is not a systemd unit name", ExitCode.USAGE)
    return UnitName(match["prefix"], match["instance"])


def find(root: Path, name: UnitName) -> Unit:
    """The service `name` below `root`.

    Raises `Failure` if there is none, or if it is masked.
    """
    for candidate in filter(None, (name, name.template)):
        for folder in SEARCH_PATH:
            entry = chase(root, folder) / str(candidate)
            if not os.path.lexists(entry):
                continue
            fragment = chase(root, entry.relative_to(root))
            if fragment == root / "dev/null" or (fragment.is_file() and not _size(fragment)):
                raise Failure(
                    f"{name}: is masked by {entry}; run 'systemctl unmask {name}'", ExitCode.USAGE
                )
            if not fragment.is_file():
                raise Failure(f"{entry}: is not a file or a link to one", ExitCode.USAGE)
            own = _own_name(name, fragment)
            return Unit(root, own, fragment, _dropins(root, own))
    below = "" if root == Path("/") else f" below {root}"
    hint = f" ({name.prefix}@.service does not exist either)" if name.instance else ""
    raise Failure(
        f"{name}: no such unit{below}{hint}; 'systemctl list-unit-files' lists all units",
        ExitCode.USAGE,
    )


def exists(root: Path, file_name: str) -> bool:
    """Whether any folder of the search path has an entry of this name."""
    return any(os.path.lexists(chase(root, folder) / file_name) for folder in SEARCH_PATH)


def chase(root: Path, path: Path) -> Path:
    """`path`, read as if `root` were ``/``, with all its links followed; it need not exist.

    Raises `Failure` if the links go round in circles.
    """
    pending = [part for part in reversed(path.parts) if part != "/"]
    done = root
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            done = done if done == root else done.parent
            continue
        step = done / part
        if not step.is_symlink():
            done = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise Failure(f"{root / path}: too many links", ExitCode.USAGE)
        target = step.readlink()
        if target.is_absolute():
            done = root
        pending += [piece for piece in reversed(target.parts) if piece != "/"]
    return done


def _size(path: Path) -> int:
    return path.stat().st_size


def _own_name(asked: UnitName, fragment: Path) -> UnitName:
    """An alias is a link whose target has another name; the drop-in belongs to the target."""
    if fragment.suffix != _SUFFIX:
        return asked
    target = parse_name(fragment.name)
    if target.instance == "" and asked.instance:
        return UnitName(target.prefix, asked.instance)
    return target


def _dropins(root: Path, name: UnitName) -> tuple[Path, ...]:
    """Sorted by file name over all folders; of equal names only the strongest counts."""
    chosen: dict[str, Path] = {}
    folders = [
        chase(root, folder / f"{unit}.d")
        for alias in (name, *_aliases(root, name))
        for folder in SEARCH_PATH
        for unit in dict.fromkeys(_names_read(alias))
    ]
    folders += [chase(root, folder / "service.d") for folder in SEARCH_PATH]
    for folder in folders:
        if not folder.is_dir():
            continue
        for entry in sorted(folder.glob("*.conf")):
            chosen.setdefault(entry.name, chase(root, entry.relative_to(root)))
    return tuple(chosen[key] for key in sorted(chosen) if chosen[key].is_file())


def _aliases(root: Path, name: UnitName) -> list[UnitName]:
    """Other names whose files are links to this service's file."""
    found: dict[UnitName, None] = {}
    for folder in SEARCH_PATH:
        directory = chase(root, folder)
        if not directory.is_dir():
            continue
        for entry in sorted(directory.glob(f"*{_SUFFIX}")):
            if not entry.is_symlink():
                continue
            with suppress(Failure):  # a broken link of another unit does not matter here
                alias = parse_name(entry.name)
                if alias.instance == "" and name.instance:
                    alias = UnitName(alias.prefix, name.instance)
                target = chase(root, entry.relative_to(root))
                if alias != name and _own_name(alias, target) == name:
                    found[alias] = None
    return list(found)


def _names_read(name: UnitName) -> Iterator[UnitName]:
    """The names whose ``.d`` folders `name` reads, the most specific first."""
    yield name
    if name.template:
        yield from _names_read(name.template)
    stem = name.prefix.removesuffix("-")
    head, dash, _ = stem.rpartition("-")
    if head and dash:
        yield from _names_read(UnitName(head + dash, name.instance or None))
