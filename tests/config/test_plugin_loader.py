# SPDX-License-Identifier: BSD-3-Clause
"""Plugins are found by name, loaded again at each reload, and refused with cause and fix."""

import importlib.util
import os
import py_compile
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mptcpd_ebpf.config import plugin_loader
from mptcpd_ebpf.plugin import Options, Plugin
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from tests.netns.own_plugins import plugin_folder

OWN = """
from mptcpd_ebpf.plugin import Options, Plugin


class OwnOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pace: int = {pace}


class Base(Plugin):
    name = "base"


class Own(Base):
    name = "own"
    Options = OwnOptions
"""


class Installed(Plugin):
    name = "installed"


def pace(plugin: type[Plugin]) -> int:
    """The default of the option that `OWN` declares."""
    found: int = vars(plugin)["Options"]().pace
    return found


def refusal(name: str, folder: Path | None = None) -> str:
    with pytest.raises(Failure) as caught:
        plugin_loader.load(name, folder)
    assert caught.value.exit_code == ExitCode.CONFIG
    return str(caught.value)


def test_a_shipped_plugin() -> None:
    found = plugin_loader.load("adaptive")
    assert issubclass(found, Plugin)
    assert found.name == "adaptive"
    assert plugin_loader.options_of("adaptive", None).__name__ == "AdaptiveOptions"
    assert "adaptive" in plugin_loader.available()


def test_a_file_of_the_user_s_own(tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    found = plugin_loader.load("own", folder)
    assert found.name == "own"
    assert pace(found) == 3
    assert {"adaptive", "own"} <= set(plugin_loader.available(folder))


def test_a_file_that_changed_is_loaded_afresh(tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    before = plugin_loader.load("own", folder)
    plugin_folder(tmp_path, own=OWN.format(pace=40))
    assert pace(plugin_loader.load("own", folder)) == 40
    assert pace(before) == 3


def test_a_file_that_is_as_before_gives_the_same_class(tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    before = plugin_loader.load("own", folder)
    (folder / "own.py").touch()
    assert plugin_loader.load("own", folder) is before


def test_the_user_s_folder_comes_before_the_shipped_plugins(tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, adaptive=OWN.format(pace=3).replace('"own"', '"adaptive"'))
    assert pace(plugin_loader.load("adaptive", folder)) == 3


def test_no_plugin_shadows_a_library(tmp_path: Path) -> None:
    import json

    folder = plugin_folder(tmp_path, json=OWN.format(pace=3).replace('"own"', '"json"'))
    plugin_loader.load("json", folder)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_that_name\n", "own.py:1 does not load: ModuleNotFoundError"),
        ("\n\n1 / 0\n", "own.py:3 does not load: ZeroDivisionError"),
        ("def (:\n", "does not load: SyntaxError"),
        ("raise SystemExit(0)\n", "does not load: SystemExit"),
        ("x = 1\n", "defines no Plugin class with name = 'own'"),
        (
            OWN.format(pace=3).replace('"own"', '"other"'),
            "defines no Plugin class with name = 'own'",
        ),
    ],
)
def test_what_does_not_load_is_refused_with_its_place(
    tmp_path: Path, source: str, reason: str
) -> None:
    folder = plugin_folder(tmp_path, own=source)
    message = refusal("own", folder)
    assert message.startswith("plugin own: ")
    assert reason in message
    assert str(folder / "own.py") in message


def test_an_unknown_name_is_refused_with_those_known(tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, own=OWN)
    message = refusal("nobody", folder)
    known = message.partition("there is none of that name; known: ")[2].split(", ")
    assert {"adaptive", "own"} <= set(known)


@pytest.mark.parametrize("name", ["../own", "own.py", "", "a/b", "os.path"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    plugin_folder(tmp_path, own=OWN.format(pace=3))
    assert "letters, digits and _" in refusal(name, tmp_path)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_can_write_is_refused(tmp_path: Path, what: str, mode: int) -> None:
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    place = folder if what == "folder" else folder / "own.py"
    place.chmod(mode)
    message = refusal("own", folder)
    assert message.startswith(f"{place}: somebody else could write it")
    assert "chmod go-w" in message


@pytest.mark.parametrize("by_link", [False, True])
def test_what_others_can_replace_is_refused(tmp_path: Path, by_link: bool) -> None:
    """A folder above is theirs; that a link leads there from a safe place does not help."""
    theirs, safe = tmp_path / "theirs", tmp_path / "safe"
    theirs.mkdir()
    theirs.chmod(0o777)
    folder = plugin_folder(theirs, own=OWN.format(pace=3))
    if by_link:
        safe.symlink_to(folder)
        folder = safe
    assert refusal("own", folder).startswith(f"{theirs}: somebody else could write it")
    theirs.chmod(0o1777)
    assert plugin_loader.load("own", folder).name == "own", "nobody can replace it there"


def test_a_folder_that_others_can_write_is_refused_where_its_plugin_is_a_safe_file_s_link(
    tmp_path: Path,
) -> None:
    """They could point the link at any file of root's."""
    safe = plugin_folder(tmp_path, own=OWN.format(pace=3))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "own.py").symlink_to(safe / "own.py")
    assert plugin_loader.load("own", theirs).name == "own"
    theirs.chmod(0o777)
    assert refusal("own", theirs).startswith(f"{theirs}: somebody else could write it")
    theirs.chmod(0o1777)
    assert refusal("own", theirs).startswith(f"{theirs}: somebody else could write it")


def test_a_link_on_the_way_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    """Both ends of the path are safe, and a folder between is not."""
    safe = plugin_folder(tmp_path, own=OWN.format(pace=3))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "link").symlink_to(safe)
    (tmp_path / "first").symlink_to(Path("theirs", "link"))
    assert plugin_loader.load("own", tmp_path / "first").name == "own"
    theirs.chmod(0o777)
    assert refusal("own", tmp_path / "first").startswith(f"{theirs}: somebody else")


def test_a_link_that_is_another_s_is_refused(tmp_path: Path) -> None:
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    theirs = tmp_path / "theirs"
    theirs.symlink_to(folder)
    os.chown(theirs, 1234, -1, follow_symlinks=False)
    assert refusal("own", theirs).startswith(f"{theirs}: somebody else could write it")


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused_whatever_is_in_it(
    tmp_path: Path, mode: int
) -> None:
    """They can put a plugin of any name there before the next start."""
    folder = plugin_folder(tmp_path)
    assert plugin_loader.load("fullmesh", folder).name == "fullmesh"
    folder.chmod(mode)
    assert refusal("fullmesh", folder).startswith(f"{folder}: somebody else could write it")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal("own", tmp_path / "none").endswith(
        "cannot be looked at: No such file or directory"
    )


def test_no_other_code_than_the_file_s_is_run(tmp_path: Path) -> None:
    """What Python keeps of it in a folder beside it may be anybody's, or of an older text."""
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    other = tmp_path / "other.py"
    other.write_text(OWN.format(pace=4))
    times = (folder / "own.py").stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept = importlib.util.cache_from_source(str(folder / "own.py"))
    py_compile.compile(str(other), kept)
    assert pace(plugin_loader.load("own", folder)) == 3


def test_the_shipped_plugins_are_trusted_like_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon can start from a checkout whose files are writable by the owner's group."""
    folder = plugin_folder(tmp_path, own=OWN.format(pace=3))
    folder.chmod(0o775)
    monkeypatch.setattr(plugin_loader, "plugin_folder", lambda: folder)
    assert plugin_loader.load("own").name == "own"
    assert refusal("own", folder).startswith(f"{folder}: somebody else could write it")


def entry_points(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Makes `value` the entry point `installed` of an installed package."""
    module = ModuleType("a_package")
    module.thing = value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_package", module)
    entry = EntryPoint("installed", "a_package:thing", plugin_loader.ENTRY_POINTS)

    def found(group: str, name: str | None = None) -> list[EntryPoint]:
        return [entry] if group == entry.group and name in (None, entry.name) else []

    monkeypatch.setattr(plugin_loader, "entry_points", found)


def test_an_installed_package_s_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, Installed)
    assert plugin_loader.load("installed") is Installed
    assert "installed" in plugin_loader.available()


def test_an_installed_package_s_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("inner")
    module.Installed = Installed  # type: ignore[attr-defined]
    entry_points(monkeypatch, module)
    assert plugin_loader.load("installed") is Installed


@pytest.mark.parametrize("value", [Options, "no class", None])
def test_an_entry_point_that_is_no_plugin(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    entry_points(monkeypatch, value)
    assert "entry point a_package:thing names no Plugin class" in refusal("installed")


def test_an_entry_point_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, Installed)
    monkeypatch.setitem(sys.modules, "a_package", ModuleType("a_package"))
    message = refusal("installed")
    assert "entry point a_package:thing does not load: AttributeError" in message
