# SPDX-License-Identifier: BSD-3-Clause
"""Every kind of line survives its file, and reads the same afterwards."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.trace import line_file
from mptcpd_ebpf.trace.lines import func
from mptcpd_ebpf.trace.lines.base import SCHEMA
from scripts import trace_lines
from tests.tree import ROOT

st.register_type_strategy(int, st.integers(0, 2**62))
st.register_type_strategy(float, st.floats(0.01, 1e6))
st.register_type_strategy(str, st.text(st.characters(codec="utf-8"), max_size=12))


def _named(value: Any) -> str:
    return str(getattr(value, "__name__", value))


KINDS = [(tool, kind) for tool in line_file.TOOLS for kind in get_args(line_file.lines_of(tool))]


def lines(kind: Any) -> st.SearchStrategy[Any]:
    if kind is func.CallLine:
        return st.builds(kind, returned=st.integers(0, 9), arguments=st.just({"sk": "0x1"}))
    if kind is func.FunctionLine:
        counts = st.lists(st.integers(0, 99), min_size=4, max_size=4)
        return st.builds(kind, calls=st.integers(1, 99), histogram=st.none() | counts)
    return st.from_type(kind)


@pytest.mark.parametrize(
    ("tool", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", value)
)
@given(data=st.data())
def test_a_line_reads_back_as_it_was_written(tool: str, kind: Any, data: st.DataObject) -> None:
    line = data.draw(lines(kind))
    row = line_file.as_json(tool, line)
    plain = msgspec.json.decode(row)
    assert plain["schema"] == SCHEMA
    assert (plain["trace"], plain["event"]) == (tool, kind.__struct_config__.tag)
    read = msgspec.json.decode(row, type=line_file.lines_of(tool))
    assert (type(read), read) == (kind, line)
    assert line_file.as_text(read, 0) == line_file.as_text(line, 0)


def written(folder: Path, *more: bytes) -> Path:
    file = folder / "run.jsonl"
    output = line_file.LineFile(file, "func", epoch_ns=5)
    output.put(func.NotCalledLine(at=1, not_called=["a"]))
    output.close()
    with file.open("ab") as end:
        end.write(b"".join(more))
    return file


def refused(file: Path) -> tuple[ExitCode, str]:
    with pytest.raises(Failure) as caught:
        list(line_file.read(file)[1])
    return caught.value.exit_code, str(caught.value)


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(Failure, match="the file exists already; name a new one"):
        line_file.LineFile(file, "func", epoch_ns=5)
    head, found = line_file.read(file)
    assert (head.trace, head.epoch_ns) == ("func", 5)
    assert list(found) == [func.NotCalledLine(at=1, not_called=["a"])]


def test_a_damaged_file_is_read_up_to_the_damage(tmp_path: Path) -> None:
    file = written(tmp_path, b'{"schema":2,"tra')
    _, found = line_file.read(file)
    assert next(found)
    with pytest.raises(Failure, match=r"run.jsonl:3: ends halfway"):
        next(found)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"", "1: not a file of"),
        (b"hello", "1: not a file of"),
        (b'{"schema":99,"trace":"life","version":"9","epoch_ns":0}', "1: schema 99 of trace life"),
        (b'{"schema":2,"trace":"none","version":"9","epoch_ns":0}', "1: schema 2 of trace none"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(
    tmp_path: Path, row: bytes, words: str
) -> None:
    file = tmp_path / "f"
    file.write_bytes(row)
    code, message = refused(file)
    assert code is ExitCode.USAGE
    assert words in message
    assert "\n" not in message


def test_the_page_of_lines_is_what_the_structs_say() -> None:
    """Write it anew with: .venv/bin/python scripts/trace_lines.py > docs/trace-lines.md"""
    assert (ROOT / "docs" / "trace-lines.md").read_text() == trace_lines.document()
