# SPDX-License-Identifier: BSD-3-Clause
"""Finds every mistake in a YAML text, with its position, in one pass.

`Document` composes the text with pyyaml and turns it into plain data, with the position of each
key; `Document.check` then walks the data beside a msgspec struct. Both only collect `Mistake`s, so
that all of them are reported at once.  What a type cannot say, a field's own check does:
``Annotated[str, Meta(extra={"check": function})]`` with a function that raises ValueError.

The language is YAML 1.1 without what a configuration has no use for and an attacker
has: aliases (a few lines can expand to gigabytes), tags, merge keys, endless nesting.
"""

import difflib
import re
from collections.abc import Collection
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

MAX_DEPTH = 32
"""Nesting above this depth is refused."""

MAX_ADVICE = 200
"""Unknown keys with advice, which takes more time than all the rest."""

KeyPath = tuple[str | int, ...]
"""The way from the top of a document to a value: keys and list positions."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null")}
_TEXT = {f"{_TAG}{kind}" for kind in ("timestamp", "value")}
"""What YAML 1.1 makes of unquoted dates and of ``=``; here they are text."""


class Mistake(Struct, frozen=True):
    """One thing wrong with a document."""

    file: str
    line: int | None
    """From 1; None if it did not come from a line."""
    column: int | None
    key: str
    """Dotted path of the key, empty for the document itself."""
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"


def dotted(path: KeyPath) -> str:
    """``("a", "b", 0)`` as ``a.b[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class Document:
    """One text, its data and its mistakes.

    `data` is None, a dict, a list or a scalar; it is complete only while `mistakes`
    is empty, but good enough to look for more of them.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._mistaken: set[str] = set()
        """The keys of `mistakes`."""
        # What has no text has no first line either.
        self._top = (file, 1, 1) if text else (file, None, None)
        self._places: dict[KeyPath, tuple[str, int | None, int | None]] = {}
        self.data: Any = self._compose(text)

    def mistake(self, path: KeyPath, reason: str) -> None:
        """Adds a mistake at a key, or at the nearest key above it that has a place.

        A key with a mistake gets no second one: the first may have caused it.
        """
        key = dotted(path)
        if key in self._mistaken:
            return
        at = path
        while at and at not in self._places:
            at = at[:-1]
        file, line, column = self._places.get(at, self._top)
        self._append(Mistake(file, line, column, key, reason))

    def _append(self, mistake: Mistake) -> None:
        self.mistakes.append(mistake)
        self._mistaken.add(mistake.key)

    def lay_over(self, path: KeyPath, value: Any, origin: str) -> None:
        """Sets a value that did not come from the text; mistakes in it name `origin`."""
        if self.data is None:
            self.data = {}
        inner = self.data
        for part in path[:-1]:
            if not isinstance(inner, dict):
                return  # a mistake that `check` reports
            inner = inner.setdefault(part, {})
        if isinstance(inner, dict):
            inner[path[-1]] = value
            self._places[path] = (origin, None, None)

    # --- from text to data

    def _compose(self, text: str) -> Any:
        try:
            if not self._is_tame(text):
                return None
            loader = Loader(text)
            try:
                node = loader.get_single_node()
                return None if node is None else self._plain(loader, node, ())
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = " ".join(filter(None, (error.context, error.problem)))
            self._add(mark, f"not YAML: {reason}")
        except yaml.reader.ReaderError as error:
            self._add_at(text, error.position, "not YAML: a control character")
        return None

    def _is_tame(self, text: str) -> bool:
        """Looks at the bare events first: composing recurses, and follows aliases."""
        depth = 0
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    self._add(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
                    return False
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.AliasEvent):
                self._add(event.start_mark, "aliases (*) are not supported; repeat the value")
                return False
        return True

    def _plain(self, loader: Any, node: yaml.Node, path: KeyPath) -> Any:
        """The node as plain data."""
        if path not in self._places:
            self._place(path, node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(loader, item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._plain_mapping(loader, node, path)
        if node.tag in _TEXT:
            return node.value
        if node.tag not in _PLAIN:
            self.mistake(path, f"tag {node.tag.removeprefix(_TAG)!r} is not supported")
            return None
        try:
            return loader.construct_object(node)
        except (ValueError, yaml.constructor.ConstructorError):
            self.mistake(path, f"{_shown(node.value)} is no {node.tag.removeprefix(_TAG)}")
            return None

    def _plain_mapping(self, loader: Any, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f"{_TAG}merge":
                self._add(key_node.start_mark, "a key must be plain text")
                continue
            key = key_node.value
            inner = (*path, key)
            if key in data:
                first = self._places[inner][1]
                self._add(
                    key_node.start_mark, f"given a second time (first in line {first})", inner
                )
                continue
            self._place(inner, key_node.start_mark)
            data[key] = self._plain(loader, value_node, inner)
        return data

    def _place(self, path: KeyPath, mark: Any) -> None:
        self._places[path] = (self.file, mark.line + 1, mark.column + 1)

    def _add(self, mark: Any, reason: str, path: KeyPath = ()) -> None:
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        self._append(Mistake(self.file, line, column, dotted(path), reason))

    def _add_at(self, text: str, position: int, reason: str) -> None:
        line_start = text.rfind("\n", 0, position) + 1
        line = text.count("\n", 0, position) + 1
        self._append(Mistake(self.file, line, position - line_start + 1, "", reason))

    # --- from data to mistakes

    def check(self, data: Any, wanted: Any, path: KeyPath = ()) -> None:
        """Adds a mistake for everything in `data`, at `path`, that does not fit the type."""
        struct = _struct_for(data, wanted)
        if struct is not None:
            self._check_struct(data, struct, path)
            return
        inner = _inner_types(data, wanted)
        if inner is not None:
            key_type, value_type = inner
            pairs = data.items() if isinstance(data, dict) else enumerate(data)
            for key, value in pairs:
                self.check(key, key_type, (*path, key))
                self.check(value, value_type, (*path, key))
            self._check_itself(data, wanted, path)
            return
        try:
            msgspec.convert(data, wanted)
        except msgspec.ValidationError as error:
            reason, below = _taken_apart(str(error), data)
            if isinstance(wanted, type) and issubclass(wanted, Enum):
                allowed = ", ".join(str(member.value) for member in wanted)
                reason = f"{_shown(data)} is none of {allowed}"
            elif get_origin(wanted) is Literal and isinstance(data, str):
                reason = f"{_shown(data)} is none of {', '.join(map(str, get_args(wanted)))}"
            self.mistake((*path, *below), reason)
        else:
            self._check_itself(data, wanted, path)

    def _check_itself(self, data: Any, wanted: Any, path: KeyPath) -> None:
        for candidate in (wanted, *get_args(wanted)):
            for meta in getattr(candidate, "__metadata__", ()):
                check = meta.extra and meta.extra.get("check")
                if check is None or not _fits(data, candidate):
                    continue
                try:
                    check(data)
                except ValueError as error:
                    self.mistake(path, str(error))

    def _check_struct(self, data: Any, wanted: type[Struct], path: KeyPath) -> None:
        if not isinstance(data, dict):
            self.mistake(path, f"expected keys and values, got {_shown(data)}")
            return
        fields = {field.encode_name: field for field in msgspec.structs.fields(wanted)}
        for key, value in data.items():
            if key in fields:
                self.check(value, fields[key].type, (*path, key))
                continue
            self.mistake((*path, key), f"unknown key{self._advice(key, fields)}")
        missing = [key for key, field in fields.items() if field.required and key not in data]
        if missing:
            # One mistake for all: it stands at the struct, which has no place for a second.
            self.mistake(path, f"missing: {', '.join(missing)}")

    def _advice(self, key: str, known: Collection[str]) -> str:
        """What else a key could be; nothing if there are so many mistakes that nobody reads it."""
        if len(self.mistakes) >= MAX_ADVICE:
            return ""
        close = difflib.get_close_matches(key, known, n=1)
        return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _fits(data: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(data, wanted)
    except msgspec.ValidationError:
        return False
    return True


def _struct_for(data: Any, wanted: Any) -> type[Struct] | None:
    """The struct that data is checked against key by key; one that may be absent too."""
    optional = isinstance(data, dict) and get_origin(wanted) in (Union, UnionType)
    for candidate in (wanted, *(get_args(wanted) if optional else ())):
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
    return None


def _inner_types(data: Any, wanted: Any) -> tuple[Any, Any] | None:
    """The types of keys and values that a dict or list is checked against, one by one."""
    for candidate in (wanted, *get_args(wanted)):
        origin = get_origin(candidate)
        if isinstance(data, dict) and origin is dict:
            key_type, value_type = get_args(candidate)
            return key_type, value_type
        if isinstance(data, list) and origin is list:
            return int, get_args(candidate)[0]
    return None


def _shown(value: Any) -> str:
    """A value as an error message shows it: short, and never several lines."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…" + text[0]


_BELOW = re.compile(r" - at `\$(.*)`$")
_STEP = re.compile(r"\[(\d+)\]|\.([A-Za-z0-9_-]+)")
_WORDS = {
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`null`": "nothing",
    "`array`": "a list",
    "`object`": "keys and values",
}


def _taken_apart(message: str, data: Any) -> tuple[str, KeyPath]:
    """Splits msgspec's ``Expected …, got … - at `$[1].x` `` into reason and place below `data`."""
    below: list[str | int] = []
    match = _BELOW.search(message)
    if match:
        message = message[: match.start()]
        for index, key in _STEP.findall(match.group(1)):
            below.append(int(index) if index else key)
            data = data[below[-1]] if _holds(data, below[-1]) else None
    for type_name, words in _WORDS.items():
        message = message.replace(type_name, words)
    reason = message[:1].lower() + message[1:]
    if "expected text" in reason and isinstance(data, bool | int | float):
        reason += "; put quotes around it"
    return reason, tuple(below)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)
