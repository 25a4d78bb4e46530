# SPDX-License-Identifier: BSD-3-Clause
"""Finds a plugin by name and loads it.

Looked for, in this order: ``NAME.py`` in the configured `plugin_dir`, among the shipped
plugins, and the entry points of installed packages (group ``mptcpd_ebpf.plugins``).
A file is loaded under a private module name, so that no plugin shadows a library, and
afresh when it has changed: a reload takes it up, and an unchanged one is the same class.

A plugin runs with the daemon's privileges: a `plugin_dir` that somebody else could write is
refused, whatever is found there, and so is a file that he could replace, because a folder or
link on the way to it is his.  The shipped plugins are trusted like the rest of the daemon's
code.
"""

import hashlib
import importlib.util
import inspect
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from msgspec import Struct

from mptcpd_ebpf.config.file_trust import refuse_writable_by_others
from mptcpd_ebpf.core.plugin import Plugin
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.resources import plugin_folder

ENTRY_POINTS = "mptcpd_ebpf.plugins"


def load(name: str, plugin_dir: Path | None = None) -> type[Plugin]:
    """The class.  Raises `Failure` (CONFIG) naming the plugin, the cause and the fix."""
    if not name.isidentifier():
        raise Failure(
            f"plugin {name!r}: a plugin's name is its file's, letters, digits and _",
            ExitCode.CONFIG,
        )
    if plugin_dir is not None:
        refuse_writable_by_others(plugin_dir)
    for folder in filter(None, (plugin_dir, plugin_folder())):
        path = folder / f"{name}.py"
        if path.is_file():
            if folder == plugin_dir:
                refuse_writable_by_others(path)
                # What is loaded is what was looked at: no link is followed any more after that.
                path = path.resolve()
            return _class_in(_module_from(path, name), name, str(path))
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = entry.load()
        except Exception as error:
            raise _broken(name, f"entry point {entry.value}", error) from error
        if isinstance(found, ModuleType):
            return _class_in(found, name, entry.value)
        if not (inspect.isclass(found) and issubclass(found, Plugin)):
            raise Failure(
                f"plugin {name}: entry point {entry.value} names no Plugin class", ExitCode.CONFIG
            )
        return found
    raise Failure(
        f"plugin {name}: there is none of that name; known: {', '.join(available(plugin_dir))}",
        ExitCode.CONFIG,
    )


def digest(plugin: type[Plugin]) -> str:
    """Of the plugin's code: a loaded file that has not changed keeps it."""
    for text, module in _loaded.values():
        if (
            plugin.__module__ == module.__name__
            and getattr(module, plugin.__name__, None) is plugin
        ):
            return hashlib.sha256(text).hexdigest()
    return f"{plugin.__module__}:{plugin.__qualname__}"


def options_of(name: str, plugin_dir: Path | None) -> type[Struct]:
    """The struct that describes the plugin's options."""
    return load(name, plugin_dir).Options


def available(plugin_dir: Path | None = None) -> list[str]:
    """The names that can be loaded, sorted."""
    names = {
        path.stem
        for folder in filter(None, (plugin_dir, plugin_folder()))
        for path in folder.glob("*.py")
    }
    names |= {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    return sorted(names)


_loaded: dict[Path, tuple[bytes, ModuleType]] = {}
"""What was in each file when it was loaded, and the module."""


def _module_from(path: Path, name: str) -> ModuleType:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _broken(name, str(path), error) from error
    known, module = _loaded.get(path, (None, None))
    if module is not None and known == text:
        return module
    private = f"_mptcpd_ebpf_plugin_{name}"
    spec = importlib.util.spec_from_file_location(private, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while the file still runs.
    sys.modules[private] = module
    try:
        # Not by way of __pycache__: that is another folder, which other users may be able to write,
        # and holds old code when the text changes within a second and keeps its length.
        exec(compile(text, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise _broken(name, str(path), error) from error
    _loaded[path] = (text, module)
    return module


def _class_in(module: ModuleType, name: str, where: str) -> type[Plugin]:
    for found in vars(module).values():
        if (
            inspect.isclass(found)
            and issubclass(found, Plugin)
            and found is not Plugin
            and getattr(found, "name", None) == name
        ):
            return found
    raise Failure(
        f"plugin {name}: {where} defines no Plugin class with name = {name!r}", ExitCode.CONFIG
    )


def _broken(name: str, where: str, error: BaseException) -> Failure:
    line = ""
    for frame in inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []:
        if frame.filename == where:
            line = f":{frame.lineno}"
    return Failure(
        f"plugin {name}: {where}{line} does not load: {type(error).__name__}: {error}",
        ExitCode.CONFIG,
    )
