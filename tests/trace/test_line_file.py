# SPDX-License-Identifier: BSD-3-Clause
"""Every kind of line reads back from a file as it was written, and its schema is documented."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace import line_file, line_schema
from mptcpd_ebpf.trace.lines import func
from mptcpd_ebpf.trace.lines.base import SCHEMA
from scripts import trace_lines
from tests.tree import ROOT

KINDS = [(tool, kind) for tool in line_file.TOOLS for kind in get_args(line_file.lines_of(tool))]
WORDS = st.text(st.characters(codec="utf-8"), max_size=12)


def values(of: inspect.Type) -> st.SearchStrategy[Any]:
    """All values of a type, members with defaults included."""
    match of:
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            return st.integers(0, 2**62)
        case inspect.FloatType():
            return st.floats(0.01, 1e6)
        case inspect.StrType():
            return WORDS
        case inspect.AnyType():
            return st.none() | st.integers(-9, 9) | WORDS
        case inspect.UnionType(types=types):
            return st.one_of([values(each) for each in types])
        case inspect.ListType(item_type=item):
            return st.lists(values(item), max_size=4)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case inspect.StructType(cls=cls, fields=fields):
            members = {field.name: values(field.type) for field in fields}
            if cls is func.FunctionLine:  # it exists only for functions that were called
                members["calls"] = st.integers(1, 99)
            return st.builds(cls, **members)
    raise AssertionError(of)


@pytest.mark.parametrize(
    ("tool", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", value)
)
@given(data=st.data())
def test_a_line_reads_back_as_it_was_written(tool: str, kind: Any, data: st.DataObject) -> None:
    line = data.draw(values(inspect.type_info(kind)))
    row = line_file.as_json(tool, line)
    plain = msgspec.json.decode(row)
    assert b"\n" not in row
    assert plain["schema"] == SCHEMA
    assert (plain["trace"], plain["event"]) == (tool, kind.__struct_config__.tag)
    read = msgspec.json.decode(row, type=line_file.lines_of(tool))
    assert (type(read), read) == (kind, line)
    assert line_file.as_text(read, 0) == line_file.as_text(line, 0)


HEAD = line_file.Head(
    trace="func",
    started=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    epoch_ns=5,
    filters=line_file.Filters(pid=7, cgroups=[8]),
    means=["fentry"],
)
LINE = func.NotCalledLine(at=1, not_called=["a"])


def written(folder: Path, *more: bytes) -> Path:
    file = folder / "run.jsonl"
    output = line_file.LineFile(file, "func")
    output.begin(HEAD)
    output.put(LINE)
    output.close()
    with file.open("ab") as end:
        end.write(b"".join(more))
    return file


def test_a_file_reads_back_with_its_head(tmp_path: Path) -> None:
    head, found = line_file.read(written(tmp_path))
    assert head == HEAD
    assert list(found) == [LINE]


def test_a_file_is_overwritten_only_on_request(tmp_path: Path) -> None:
    file = written(tmp_path)
    before = file.read_bytes()
    with pytest.raises(Failure, match="the file exists; name another one, or add --overwrite"):
        line_file.LineFile(file, "func")
    assert file.read_bytes() == before
    line_file.LineFile(file, "func", overwrite=True).close()
    assert file.read_bytes() == b""


def test_a_tool_that_fails_before_its_first_line_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    line_file.LineFile(file, "func").close()
    assert not file.exists()


def test_a_full_file_system_is_reported() -> None:
    output = line_file.LineFile(Path("/dev/full"), "func", overwrite=True)
    with pytest.raises(Failure, match="-o /dev/full: No space left on device"):
        output.begin(HEAD)
    output.close()


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (b'{"schema":2,"tra', "the last line is incomplete"),
        (b'{"schema":2,"trace":"func","event":"call"}\n{}\n', "not a line of trace func: "),
        (b"\0\0\0\0\n", "not a line of trace func: "),
    ],
)
def test_a_damaged_file_is_read_up_to_the_damage(tmp_path: Path, rest: bytes, problem: str) -> None:
    _, found = line_file.read(written(tmp_path, rest))
    assert next(found) == LINE
    with pytest.raises(Failure, match=rf"run.jsonl:3: {problem}"):
        next(found)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"", ":1: not a file of"),
        (b"hello", ":1: not a file of"),
        (b'{"schema":2,"version":"0.1"}', ":1: not a file of"),
        (
            b'{"schema":99,"version":"9","new":1}',
            ": it has schema 99 and was written by version 9; this version, ",
        ),
        (
            b'{"schema":2,"trace":"none","version":"9","started":"2026-01-02T03:04:05Z",'
            b'"epoch_ns":0}',
            ":1: there is no tool 'trace none'",
        ),
    ],
)
def test_another_file_is_refused_with_one_line(tmp_path: Path, row: bytes, problem: str) -> None:
    file = tmp_path / "f"
    file.write_bytes(row)
    with pytest.raises(Failure) as caught:
        line_file.read(file)
    assert caught.value.exit_code is ExitCode.USAGE
    assert str(caught.value).startswith(f"{file}{problem}")
    assert "\n" not in str(caught.value)


def test_the_page_of_lines_documents_every_member() -> None:
    """Update it with: .venv/bin/python scripts/trace_lines.py > docs/trace-lines.md"""
    assert (ROOT / "docs" / "trace-lines.md").read_text() == trace_lines.document()


def test_the_json_schema_describes_every_member() -> None:
    documents = line_schema.schema()
    assert list(documents) == ["head", *line_file.TOOLS]
    members = [
        (name, member, property_)
        for document in documents.values()
        for name, definition in document["$defs"].items()
        for member, property_ in definition["properties"].items()
        if "const" not in property_ and member != "event"
    ]
    assert members
    assert [each[:2] for each in members if not each[2].get("description")] == []
