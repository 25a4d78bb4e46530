# SPDX-License-Identifier: BSD-3-Clause
"""Gives a systemd service the environment of `environment`, by a drop-in file of our own.

The unit's files are never edited.  ``Environment=`` of a drop-in adds to what the unit
sets, so everything stays unchanged except LD_PRELOAD and GODEBUG; their former values are merged
in, and the drop-in names where they came from.  Its name sorts after ``override.conf``, which
`systemctl edit` writes, because the last assignment counts.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mptcpd_ebpf.mptcpize import environment, unit_files, unit_settings
from mptcpd_ebpf.mptcpize.unit_files import Unit, UnitName
from mptcpd_ebpf.mptcpize.unit_settings import Settings
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

FILE_NAME = "zz-mptcpd-ebpf.conf"
_MARK = "# Written by 'mptcpd-ebpf enable"
_FOLDER = Path("/etc/systemd/system")

_MERGED: dict[str, Callable[[str, str], str]] = {
    environment.PRELOAD: environment.with_preload,
    environment.GODEBUG: lambda value, _library: environment.with_multipath(value),
}
_HOMES = ("/home", "/root", "/run/user")  # what ProtectHome= hides, systemd.exec(5)


@dataclass(frozen=True)
class Outcome:
    """What `enable` or `disable` did."""

    name: UnitName
    path: Path
    """The drop-in."""
    changed: bool
    """False if there was nothing to do."""
    warnings: tuple[str, ...] = ()
    """Why the service might still use TCP, with the fix."""


def enable(root: Path, asked: str, library: Path) -> Outcome:
    """Writes the drop-in for the unit `asked` below `root`.

    Raises `Failure` if there is no such unit, if its settings override a drop-in, or if the
    file cannot be written.
    """
    unit = unit_files.find(root, unit_files.parse_name(asked))
    path = _path(root, unit.name)
    settings = _settings(unit, [file for file in unit.dropins if file.name != FILE_NAME])
    text = _text(unit, settings, library)
    _refuse_overrides(unit, path, settings, library)
    warnings = tuple(_warnings(unit, settings, library))
    with _words_for_errors(path):
        before = path.read_text() if path.exists() else None
        if before is not None and not before.startswith(_MARK):
            raise _not_ours(path)
        if before != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, text)
    return Outcome(unit.name, path, before != text, warnings)


def disable(root: Path, asked: str) -> Outcome:
    """Removes what `enable` wrote, even if the unit itself no longer exists.

    Raises `Failure` if there is neither a unit nor a drop-in, or if `enable` did not write
    the file of that name.
    """
    name = unit_files.parse_name(asked)
    path = _path(root, name)
    if not path.exists():
        name = unit_files.find(root, name).name
        path = _path(root, name)
    changed = False
    with _words_for_errors(path):
        if path.exists():
            if not path.read_text().startswith(_MARK):
                raise _not_ours(path)
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()  # only if nothing else is in it
            changed = True
    return Outcome(name, path, changed, tuple(_still_enabled(root, name)))


def _still_enabled(root: Path, name: UnitName) -> Iterator[str]:
    """Warns if a template's drop-in still enables an instance."""
    with suppress(Failure):
        for file in unit_files.find(root, name).dropins:
            if file.name == FILE_NAME:
                folder = file.parent.name.removesuffix(".d")
                yield f"is still enabled by {file}; 'mptcpd-ebpf disable {folder}' disables it"


def _path(root: Path, name: UnitName) -> Path:
    return unit_files.chase(root, _FOLDER / f"{name}.d") / FILE_NAME


def _settings(unit: Unit, dropins: list[Path]) -> Settings:
    with _words_for_errors(unit.fragment):
        return unit_settings.read([unit.fragment, *dropins])


def _text(unit: Unit, settings: Settings, library: Path) -> str:
    lines = [
        f"{_MARK} {unit.name}'; 'mptcpd-ebpf disable {unit.name}' removes it.",
        "# The service's TCP sockets become MPTCP sockets; where MPTCP is off they stay TCP.",
    ]
    assignments = []
    for variable, merge in _MERGED.items():
        present = settings.environment.get(variable, "")
        if present:
            origin = "/" / settings.origin[variable].relative_to(unit.root)
            lines.append(f"# {variable} was set by {origin}; that value is kept.")
        merged = merge(present, _escaped(library))
        assignments.append("Environment=" + unit_settings.quoted(f"{variable}={merged}"))
    return "\n".join([*lines, "[Service]", *assignments, ""])


def _escaped(library: Path) -> str:
    """The library's path in a setting where ``%`` starts a specifier."""
    return str(library).replace("%", "%%")


def _refuse_overrides(unit: Unit, path: Path, settings: Settings, library: Path) -> None:
    """Raises `Failure` if something overrides the drop-in, which would then have no effect."""
    for variable in _MERGED:
        if variable in settings.unset:
            raise Failure(
                f"{unit.name}: UnsetEnvironment={variable} removes what a drop-in sets; "
                "remove it from the unit ('systemctl cat' shows where it is)",
                ExitCode.CONFIG,
            )
    for file in _environment_files(unit, settings):
        for variable, value in _assigned_in(file):
            wanted = _MERGED[variable](value, str(library))
            if value != wanted:
                raise Failure(
                    f"{file}: sets {variable} and overrides every drop-in of {unit.name}; "
                    f"write {variable}={wanted} there, and run this again",
                    ExitCode.CONFIG,
                )
    for later in (file for file in unit.dropins if file.name > path.name):
        overrides = unit_settings.read([later])
        text = later.read_text(errors="surrogateescape")
        if overrides.environment.keys() & _MERGED.keys() or re.search(
            r"^\s*Environment\s*=\s*$", text, re.MULTILINE
        ):
            raise Failure(
                f"{later}: comes after {FILE_NAME} and resets the environment; "
                "rename it so that it sorts first",
                ExitCode.CONFIG,
            )


def _environment_files(unit: Unit, settings: Settings) -> Iterator[Path]:
    """The files of ``EnvironmentFile=`` that exist and whose names are known."""
    known = {"%n": str(unit.name), "%p": unit.name.prefix, "%i": unit.name.instance or ""}
    known |= {"%N": str(unit.name).removesuffix(".service"), "%%": "%"}
    for written in settings.environment_files:
        pattern = re.sub(r"%.", lambda match: known.get(match[0], "*"), written.lstrip("-"))
        folder, name = unit_files.chase(unit.root, Path(pattern).parent), Path(pattern).name
        if not pattern.startswith("/") or not folder.is_dir():
            continue  # systemd ignores it too
        yield from sorted(
            file for file in folder.iterdir() if fnmatchcase(file.name, name) and file.is_file()
        )


def _assigned_in(file: Path) -> Iterator[tuple[str, str]]:
    """LD_PRELOAD and GODEBUG in a file of shell-like assignments; the last of each counts."""
    found = {}
    with _words_for_errors(file):
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    for match in re.finditer(r"^\s*(\w+)\s*=[ \t]*(.*?)\s*$", text, re.MULTILINE):
        if match[1] in _MERGED:
            found[match[1]] = match[2].strip("\"'")
    yield from found.items()


def _warnings(unit: Unit, settings: Settings, library: Path) -> Iterator[str]:
    """What hides the library from the service's loader, or opens sockets outside the service."""
    inside = unit.root / library.relative_to("/")
    if unit.root != Path("/") and not inside.exists():
        yield f"{library} does not exist below {unit.root}; install mptcpd-ebpf there too"
    for key in ("RootDirectory", "RootImage"):
        if settings.single.get(key):
            yield f"{key}= gives the service another root; {library} must exist there"
    hides_homes = settings.is_true("ProtectHome") or settings.single.get("ProtectHome") == "tmpfs"
    if hides_homes and str(library).startswith(_HOMES):
        yield f"ProtectHome= hides {library}; install mptcpd-ebpf outside the home folders"
    if settings.is_true("PrivateTmp") and str(library).startswith(("/tmp/", "/var/tmp/")):
        yield f"PrivateTmp= hides {library}; install mptcpd-ebpf outside /tmp"
    other_user = settings.is_true("DynamicUser") or settings.single.get("User", "root") != "root"
    if other_user and inside.exists() and (closed := _closed_to_others(inside)):
        yield f"the service's user may not read {closed}; install mptcpd-ebpf where all users can"
    socket = f"{unit.name.prefix}.socket"
    if unit_files.exists(unit.root, socket):
        yield (
            f"systemd itself opens the sockets of {socket}, which no preload reaches; "
            "set SocketProtocol=mptcp there (systemd 257 or newer)"
        )


def _closed_to_others(file: Path) -> Path | None:
    """The first folder above `file`, or `file` itself, that is closed to other users."""
    for step in [*reversed(file.parents), file]:
        needed = stat.S_IROTH if step == file else stat.S_IXOTH
        if not step.stat().st_mode & needed:
            return step
    return None


def _write(path: Path, text: str) -> None:
    """Writes the file atomically, also if power fails; systemd ignores the temporary name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _not_ours(path: Path) -> Failure:
    return Failure(f"{path}: was not written by mptcpd-ebpf; left unchanged", ExitCode.CONFIG)


@contextmanager
def _words_for_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise Failure(
            f"{error.filename or path}: not permitted; run it as root", ExitCode.PRIVILEGE
        ) from None
    except OSError as error:
        raise Failure(
            f"{error.filename or path}: {error.strerror}", ExitCode.CHECK_FAILED
        ) from None
