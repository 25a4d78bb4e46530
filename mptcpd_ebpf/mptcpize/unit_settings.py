# SPDX-License-Identifier: BSD-3-Clause
"""Reads a service's environment from its unit files.

The syntax is systemd.syntax(7)'s, the meaning systemd.exec(5)'s: ``Environment=``
assignments add up over the unit file and its drop-ins, an empty one removes those before it, and
files named by ``EnvironmentFile=`` override them all.  Values keep their ``%`` specifiers as
written, so that they can be written out again (`quoted`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_SECTION = "[Service]"

_ESCAPES = dict(zip("abfnrtvs\\\"'", "\a\b\f\n\r\t\v \\\"'", strict=True))
_NUMERIC = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")
_BLANK = " \t\n\r"


@dataclass
class Settings:
    """The effective settings of one service, as far as they affect the preload."""

    environment: dict[str, str] = field(default_factory=dict)
    """``Environment=``, by variable."""
    origin: dict[str, Path] = field(default_factory=dict)
    """The file that each variable in `environment` comes from."""
    environment_files: list[str] = field(default_factory=list)
    """``EnvironmentFile=`` as written, specifiers and leading ``-`` included."""
    unset: set[str] = field(default_factory=set)
    """``UnsetEnvironment=``, names only."""
    single: dict[str, str] = field(default_factory=dict)
    """The last value of every other setting."""

    def is_true(self, key: str) -> bool:
        """Whether a boolean setting is on; off is the default of all that are read."""
        return self.single.get(key, "").lower() in {"1", "yes", "y", "true", "t", "on"}


def read(files: Iterable[Path]) -> Settings:
    """The settings that result from these files, applied in order."""
    settings = Settings()
    for file in files:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        for key, value in _service_lines(text):
            _apply(settings, key, value, file)
    return settings


def _apply(settings: Settings, key: str, value: str, file: Path) -> None:
    match key:
        case "Environment":
            if not value:
                settings.environment.clear()
                settings.origin.clear()
            for word in words(value):
                name, equals, content = word.partition("=")
                if equals:
                    settings.environment[name] = content
                    settings.origin[name] = file
        case "EnvironmentFile":
            if value:
                settings.environment_files.append(value)
            else:
                settings.environment_files.clear()
        case "UnsetEnvironment":
            if not value:
                settings.unset.clear()
            settings.unset.update(word.partition("=")[0] for word in words(value))
        case _:
            settings.single[key] = value


def _service_lines(text: str) -> Iterator[tuple[str, str]]:
    """The assignments in ``[Service]``; comments may be between continued lines."""
    section = ""
    pending = ""
    for line in [*text.split("\n"), ""]:
        if line.lstrip(_BLANK).startswith(("#", ";")):
            continue
        whole = pending + line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = whole[:-1] + " "
            continue
        pending = ""
        whole = whole.strip(_BLANK)
        if whole.startswith("["):
            section = whole
        elif section == _SECTION and "=" in whole:
            key, _, value = whole.partition("=")
            yield key.strip(_BLANK), value.strip(_BLANK)


def words(value: str) -> Iterator[str]:
    """Splits a value at blanks and decodes quotes and C escapes.

    Ends at the first word that systemd would refuse (an open quote, an unknown escape);
    the words before it count, as in systemd.
    """
    at = 0
    while True:
        while at < len(value) and value[at] in _BLANK:
            at += 1
        if at == len(value):
            return
        read_word = _word(value, at)
        if read_word is None:
            return
        word, at = read_word
        yield word


def _word(value: str, at: int) -> tuple[str, int] | None:
    """One word from position `at`, and where it ends."""
    word = ""
    quote = ""
    while at < len(value):
        character = value[at]
        at += 1
        if character == "\\":
            escape = _escape(value, at)
            if escape is None:
                return None
            word += escape[0]
            at = escape[1]
        elif quote:
            if character == quote:
                quote = ""
            else:
                word += character
        elif character in "'\"":
            quote = character
        elif character in _BLANK:
            break
        else:
            word += character
    return None if quote else (word, at)


def _escape(value: str, at: int) -> tuple[str, int] | None:
    """The character after a backslash, and where it ends."""
    if value[at : at + 1] in _ESCAPES:
        return _ESCAPES[value[at]], at + 1
    match = _NUMERIC.match(value, at)
    if match is None:
        return None
    digits = next(filter(None, match.groups()))
    number = int(digits, 8 if match[4] else 16)
    return (chr(number), match.end()) if 0 < number <= 0x10FFFF else None


def quoted(word: str) -> str:
    """`word` quoted so that `words` reads it back; specifiers stay unchanged."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'
