# SPDX-License-Identifier: BSD-3-Clause
"""Writes docs/trace-lines.md: every kind of trace line and its members, from the structs.

``scripts/trace_lines.py`` prints it; a test holds the file to it.
"""

import ast
import inspect
from importlib import import_module
from itertools import pairwise
from typing import Any, get_args

import msgspec

from mptcpd_ebpf.trace import line_file
from mptcpd_ebpf.trace.lines import base

HEAD = """<!-- SPDX-License-Identifier: BSD-3-Clause -->
# Trace lines

Written by `scripts/trace_lines.py`. What `mptcpd-ebpf trace TOOL --json` prints and `-o FILE`
writes: one JSON object a line, with `schema` (now {schema}), `trace` (the tool), `event` (the kind
of line) and `at` (CLOCK_MONOTONIC nanoseconds). An unknown value is null. `schema` is raised
when a member changes its name, type or meaning. A file of `-o` begins with a line that holds
`schema`, `trace`, `version` and `epoch_ns`, which is added to `at` to get nanoseconds since 1970.
`mptcpd-ebpf trace show --schema` prints the same as JSON Schema.
"""
_SHARED = (base.StartedLine, base.AccountLine)


def document() -> str:
    """The whole page."""
    parts = [HEAD.format(schema=base.SCHEMA), "## Every tool\n"]
    parts += [_section(kind) for kind in (*_SHARED, base.Overhead)]
    parts.append(
        "## Members of lines about a subflow\n\n"
        + _table(base.SubflowFields, msgspec.structs.fields(base.SubflowFields))
    )
    for tool in line_file.TOOLS:
        parts.append(f"## `{tool}`\n")
        kinds = [each for each in get_args(line_file.lines_of(tool)) if each not in _SHARED]
        module = import_module(f"mptcpd_ebpf.trace.lines.{tool}")
        rows = [
            each
            for each in vars(module).values()
            if inspect.isclass(each)
            and issubclass(each, msgspec.Struct)
            and each.__module__ == module.__name__
            and each not in kinds
        ]
        parts += [_section(kind) for kind in kinds + rows]
    return "\n".join(parts)


def _section(kind: Any) -> str:
    tag = kind.__struct_config__.tag
    title = f"### `{tag}`" if tag else f"### {kind.__name__}"
    inherited = {"at"} | set(base.SubflowFields.__struct_fields__) & set(kind.__struct_fields__)
    fields = msgspec.structs.fields(kind)
    subflow = issubclass(kind, base.SubflowFields)
    own = [f for f in fields if f.name != "at" and not (subflow and f.name in inherited)]
    about = (inspect.getdoc(kind) or "").split("\n\n")
    said = "\n\n".join(each.replace("\n", " ") for each in about)
    more = " It has the members of lines about a subflow." if subflow else ""
    return f"{title}\n\n{said}{more}\n" + ("\n" + _table(kind, own) if own else "")


def _table(kind: Any, fields: Any) -> str:
    meanings = _meanings(kind)
    rows = [f"| `{f.name}` | {_type(f.type)} | {meanings.get(f.name, '')} |" for f in fields]
    return "\n".join(["| member | type | meaning |", "|---|---|---|", *rows]) + "\n"


def _type(kind: Any) -> str:
    text = kind.__name__ if inspect.isclass(kind) and not get_args(kind) else str(kind)
    for module in (
        *(f"mptcpd_ebpf.trace.lines.{each}." for each in (*line_file.TOOLS, "base")),
        "typing.",
    ):
        text = text.replace(module, "")
    return text.replace("|", "or").replace("None", "null")


def _meanings(kind: Any) -> dict[str, str]:
    """The docstrings below the members of a struct, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not each.__module__.startswith("mptcpd_ebpf"):
            continue
        body = ast.parse(inspect.getsource(each)).body[0]
        assert isinstance(body, ast.ClassDef)
        for member, after in pairwise(body.body):
            match member, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split()).replace("|", "\\|")
    return found


if __name__ == "__main__":
    print(document(), end="")
