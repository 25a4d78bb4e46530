# SPDX-License-Identifier: BSD-3-Clause
"""mptcpd's configuration file (mptcpd.conf) and flags as keys of our own configuration.

The file is what ELL's l_settings reads: groups in brackets, ``key=value``, comments with
``#``; mptcpd knows one group, ``core``, and six keys.  What the file leaves out has mptcpd's
default here, not ours: `MPTCPD_DEFAULTS`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import Struct, structs

from mptcpd_ebpf.config.file_trust import read_trusted
from mptcpd_ebpf.config.yaml_document import Mistake
from mptcpd_ebpf.core.endpoints import endpoint_flags
from mptcpd_ebpf.core.model import AddressPolicy
from mptcpd_ebpf.runtime.exit_codes import Failure

MAX_BYTES = 64 * 1024

FLAGS_KEY = "plugins.addr_adv.flags"
"""Where addr-flags go: the one plugin that makes endpoints of addresses."""

NOTIFY_FLAGS = tuple(field.name for field in structs.fields(AddressPolicy))


class Imported(Struct, kw_only=True):
    """What a file says, in our terms."""

    values: dict[str, Any]
    """By dotted key of `Config`."""
    lines: dict[str, int]
    """Where the keys came from; those that are not here are mptcpd's defaults."""
    keys: dict[str, int] = {}
    """Lines of mptcpd's keys: the first of two counts, as ELL has it."""
    warnings: list[str]
    """What does not apply here, with the reason."""
    mistakes: list[Mistake]


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def addr_flags(text: str) -> dict[str, Any]:
    """``subflow,backup`` as keys of our configuration.  Raises ValueError naming the flag."""
    names = _names(text)
    endpoint_flags(names)
    return {FLAGS_KEY: names}


def notify_flags(text: str) -> dict[str, Any]:
    """``existing,check_route`` as keys of our configuration.  Raises ValueError."""
    names = _names(text)
    for name in names:
        if name not in NOTIFY_FLAGS:
            raise ValueError(
                f"{name!r} is no notification flag; there are {', '.join(NOTIFY_FLAGS)}"
            )
    return {f"addresses.{name}": name in names for name in NOTIFY_FLAGS}


def load_plugins(text: str) -> dict[str, Any]:
    """``addr_adv,sspi`` as a key of our configuration.  Raises ValueError if it names none."""
    names = _names(text)
    if not names:
        raise ValueError("it names no plugin")
    return {"load_plugins": names}


def path_manager(text: str) -> dict[str, Any]:
    """``sspi``, or several of our plugins, as a key.  Raises ValueError if it names none."""
    names = _names(text)
    if not names:
        raise ValueError("it names no plugin")
    return {"path_manager": names[0] if len(names) == 1 else names}


MPTCPD_DEFAULTS: Mapping[str, Any] = {
    "path_manager": "addr_adv",
    **addr_flags(""),
    **notify_flags(""),
}
"""What holds where mptcpd is told nothing."""


def read(file: Path, beaten: Mapping[str, Any] = MappingProxyType({})) -> Imported:
    """Reads a file; what is wrong with it is in `mistakes`.

    `beaten`: dotted keys and values of the command line, so that what the file says of them,
    or leaves out, is worth no warning.
    """
    try:
        raw = read_trusted(file, MAX_BYTES)
    except Failure as failure:
        return _unusable(file, str(failure))
    return parse(raw.decode("utf-8", "replace"), str(file), beaten)


def parse(text: str, file: str, beaten: Mapping[str, Any] = MappingProxyType({})) -> Imported:
    """`read` for text that is already there; `file` names it in mistakes."""
    found = Imported(values=dict(MPTCPD_DEFAULTS), lines={}, warnings=[], mistakes=[])
    group = None
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            group = line[1:-1].strip() if line.endswith("]") else None
            if group is None:
                found.mistakes.append(Mistake(file, number, 1, "", "a group is [NAME]"))
            elif group != "core":
                found.warnings.append(f"{file}:{number}: group [{group}] is not mptcpd's, ignored")
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            found.mistakes.append(Mistake(file, number, 1, "", "expected key=value"))
        elif group == "core":
            _take(found, key, value, file, number, beaten)
    # load-plugins alone lets the highest priority among them serve, whatever mptcpd's default.
    if "load_plugins" in found.lines and "path_manager" not in found.lines:
        found.values["path_manager"] = None
    flags_given = FLAGS_KEY in found.lines or FLAGS_KEY in beaten
    path_manager = beaten.get("path_manager", found.values["path_manager"])
    if not flags_given and path_manager == "addr_adv":
        found.warnings.append(
            f"{file}: no addr-flags: the kernel uses endpoints without flags for nothing "
            f"(mptcpd's default); addr-flags=subflow is what most hosts want"
        )
    return found


def _take(
    found: Imported, key: str, value: str, file: str, line: int, beaten: Mapping[str, Any]
) -> None:
    reader = _READERS.get(key)
    if reader is None:
        known = ", ".join(_READERS)
        found.warnings.append(f"{file}:{line}: {key}: mptcpd has no such key ({known}), ignored")
        return
    if key in found.keys:
        found.warnings.append(
            f"{file}:{line}: {key} again: the first one counts, in line {found.keys[key]}"
        )
        return
    found.keys[key] = line
    try:
        values = reader(value)
    except ValueError as error:
        found.mistakes.append(Mistake(file, line, 1, key, str(error)))
        return
    if not values and "plugin_dir" not in beaten:
        found.warnings.append(f"{file}:{line}: {no_plugins(value)}")
    found.values |= values
    found.lines |= dict.fromkeys(values, line)


def has_plugins(folder: str) -> bool:
    """Whether a folder holds anything that could be one of our plugins."""
    return any(Path(folder).glob("*.py"))


def no_plugins(folder: str) -> str:
    """What a folder is that mptcpd takes plugins from, and we cannot."""
    return (
        f"plugin-dir={folder} holds no Python plugin, and mptcpd's .so plugins cannot be loaded: "
        f"names are looked up among the shipped and installed ones"
    )


def _plugin_dir(value: str) -> dict[str, Any]:
    return {"plugin_dir": value} if has_plugins(value) else {}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "log": lambda value: {"log": value},
    "plugin-dir": _plugin_dir,
    "path-manager": path_manager,
    "addr-flags": addr_flags,
    "notify-flags": notify_flags,
    "load-plugins": load_plugins,
}


def _unusable(file: Path, reason: str) -> Imported:
    mistake = Mistake(str(file), None, None, "", reason)
    return Imported(values={}, lines={}, warnings=[], mistakes=[mistake])
