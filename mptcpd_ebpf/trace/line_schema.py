# SPDX-License-Identifier: BSD-3-Clause
"""The schema of trace lines as data: JSON Schema of every tool's lines, with the docstrings."""

import ast
import inspect
from importlib import import_module
from itertools import pairwise
from typing import Any

import msgspec

from mptcpd_ebpf.trace import line_file
from mptcpd_ebpf.trace.lines import base


def schema() -> dict[str, Any]:
    """JSON Schema of the lines by tool, and of the first line of a file under ``head``."""
    documents = {"head": _described(line_file.Head, _structs(line_file))}
    for tool in line_file.TOOLS:
        structs = [*_structs(base), *structs_of(tool)]
        documents[tool] = _described(line_file.lines_of(tool), structs)
        for definition in documents[tool]["$defs"].values():
            if "event" in definition["properties"]:
                definition["properties"] |= {
                    "schema": {"const": base.SCHEMA},
                    "trace": {"const": tool},
                }
    return documents


def structs_of(tool: str) -> list[type[msgspec.Struct]]:
    """The structs that a tool's module defines: its lines, and their rows."""
    return _structs(import_module(f"mptcpd_ebpf.trace.lines.{tool}"))


def meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
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
                    found[name] = " ".join(text.split())
    return found


def _structs(module: Any) -> list[type[msgspec.Struct]]:
    return [
        each
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, msgspec.Struct)
        and each.__module__ == module.__name__
    ]


def _described(kind: Any, structs: list[type[msgspec.Struct]]) -> dict[str, Any]:
    """The JSON Schema of a struct or a union, each member with its docstring as description."""
    by_name = {each.__name__: each for each in structs}
    document: dict[str, Any] = msgspec.json.schema(kind)
    for name, definition in document["$defs"].items():
        described = meanings(by_name[name])
        for member, property_ in definition["properties"].items():
            if member in described:
                property_["description"] = described[member]
    return document
