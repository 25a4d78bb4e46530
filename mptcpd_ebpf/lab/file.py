# SPDX-License-Identifier: BSD-3-Clause
"""Reads a topology from plain data or a YAML file and reports every mistake with its place.

Two passes find all mistakes at once.  `yaml_document.Document` compares the data with the
structs, key by key.  Then `topology.problems` checks the valid rest as a whole; parts with a
mistake are left out, so that no further mistake is reported only because of the first.
"""

from typing import Any

import msgspec
from msgspec import Struct

from mptcpd_ebpf.config.yaml_document import Document, KeyPath, dotted
from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.impairment import FIELDS, Impairment
from mptcpd_ebpf.lab.schedule import Step
from mptcpd_ebpf.lab.topology import Bottleneck, Path, Topology, named, problems

_IMPAIRMENT = (*sorted(FIELDS), "up", "down")

_STAND_INS: dict[str, tuple[type[Struct], dict[str, Any]]] = {
    "paths": (Path, {}),
    "bottlenecks": (Bottleneck, {}),
    "schedule": (Step, {"at": 0, "fault": "heal"}),
}
"""The lists of a topology: the type of their items, and what replaces an invalid item."""


def read(path: str) -> Topology:
    """Reads a file; raises LabError with every mistake as ``file:line:column``, or OSError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return loads(file.read(), path)


def loads(text: str, name: str) -> Topology:
    """A topology from YAML text; `name` is the file's name in messages."""
    document = Document(text, name)
    if document.mistakes:
        raise _error(document)
    return _topology(document)


def parse(data: Any) -> Topology:
    """A topology from plain data, or from the fields of `Topology`.

    Raises LabError with the key path of every mistake.
    """
    document = Document("", "topology")
    try:
        data = msgspec.to_builtins(data)
    except TypeError as error:
        raise LabError(f"topology: {error}") from None
    if not isinstance(data, dict):
        raise LabError("topology: expected keys and values")
    for key, value in data.items():
        document.lay_over((key,), value, document.file)
    return _topology(document)


def _topology(document: Document) -> Topology:
    data = {} if document.data is None else document.data
    document.check(data, Topology)
    for path, changes in _changes(data):
        document.check(changes, Impairment, path)
    broken = [mistake.key for mistake in document.mistakes]
    valid = _valid_part(data, broken)
    if valid is not None:
        topology = named(msgspec.convert(valid, Topology))
        for path, reason in problems(topology):
            if not _follows_from_mistake(path, broken):
                document.mistake(path, reason)
        if not document.mistakes:
            return topology
    raise _error(document)


def _changes(data: Any) -> list[tuple[KeyPath, dict[str, Any]]]:
    """The dicts that hold fields of an impairment, with their key paths."""
    found: list[tuple[KeyPath, dict[str, Any]]] = []
    for key, names in (
        ("paths", ("up", "down")),
        ("bottlenecks", ("up", "down")),
        ("schedule", ("set",)),
    ):
        items = data.get(key) if isinstance(data, dict) else None
        for number, item in enumerate(items if isinstance(items, list) else []):
            for name in names:
                changes = item.get(name) if isinstance(item, dict) else None
                if isinstance(changes, dict):
                    found.append(((key, number, name), changes))
    return found


def _valid_part(data: Any, broken: list[str]) -> dict[str, Any] | None:
    """The data without its invalid parts; None if too little is left to check."""
    if not isinstance(data, dict):
        return None
    valid = {}
    for key, value in data.items():
        if key in _STAND_INS and isinstance(value, list):
            valid[key] = [_item(key, number, item, broken) for number, item in enumerate(value)]
        elif not _hit((key,), broken):
            valid[key] = value
        elif key in _STAND_INS or key == "hosts":
            return None
    return valid


def _item(key: str, number: int, item: Any, broken: list[str]) -> Any:
    if not _hit((key, number), broken):
        return item
    kind, stand_in = _STAND_INS[key]
    if isinstance(item, dict):
        kept = {name: v for name, v in item.items() if not _hit((key, number, name), broken)}
        try:
            msgspec.convert(kept, kind)
        except msgspec.ValidationError:
            return stand_in
        return kept
    return stand_in


def _hit(path: KeyPath, broken: list[str]) -> bool:
    """Whether there is a mistake at a key or below it."""
    at = dotted(path)
    return any(key == at or key.startswith((f"{at}.", f"{at}[")) for key in broken)


def _follows_from_mistake(path: KeyPath, broken: list[str]) -> bool:
    """Whether a problem may exist only because an invalid part was left out."""
    # The check of a bottleneck needs all paths, that of a step's path all names.
    by_paths = path[0] == "bottlenecks" and len(path) == 2
    by_names = path[0] == "schedule" and path[2:] == ("path",)
    if (by_paths or by_names) and _hit(("paths",), broken):
        return True
    # Whether a fault is allowed depends on one field of its path: `nat`.
    if path[0] == "schedule" and path[2:] == ("fault",):
        return any(key.endswith("].nat") for key in broken)
    if len(path) < 2 or not _hit(path[:2], broken):
        return False
    # The fields of a path's impairment are checked together, each other key by itself.
    together = _IMPAIRMENT if len(path) > 2 and path[2] in _IMPAIRMENT else path[2:3]
    if path[0] == "schedule" or not together or dotted(path[:2]) in broken:
        return True
    return any(_hit((*path[:2], key), broken) for key in together)


def _error(document: Document) -> LabError:
    mistakes = sorted(document.mistakes, key=lambda found: (found.line or 0, found.column or 0))
    if len(mistakes) == 1:
        return LabError(str(mistakes[0]))
    lines = "".join(f"\n  {mistake}" for mistake in mistakes)
    return LabError(f"{len(mistakes)} mistakes in {document.file}:{lines}")
