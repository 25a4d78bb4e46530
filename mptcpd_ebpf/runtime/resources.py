# SPDX-License-Identifier: BSD-3-Clause
"""Finds the files that ship with the code: BPF objects, the preload library, plugins, units.

In a source tree they are at its top (``build/bpf``, ``plugins``); in an
installed wheel under ``mptcpd_ebpf/_data`` (see ``scripts/hatch_build.py``).
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "_data"


def bpf_object(name: str) -> Path:
    """The path of a compiled BPF object, ``name`` without ``.bpf.o``.

    Raises FileNotFoundError, with the fix, if it was not built.
    """
    folder = _INSTALLED / "bpf" if _INSTALLED.is_dir() else _PACKAGE.parent / "build" / "bpf"
    path = folder / f"{name}.bpf.o"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the BPF object is not built; run 'make bpf'")
    return path


def bpf_sources() -> Path:
    """The folder of the probes' C sources, which bcc compiles at run time."""
    return _INSTALLED / "bpf" if _INSTALLED.is_dir() else _PACKAGE.parent / "bpf"


def preload_library() -> Path:
    """The path of the library that `mptcpd_ebpf.mptcpize` preloads into programs.

    Raises FileNotFoundError, with the fix, if it was not built.
    """
    folder = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "build"
    path = folder / "preload" / "libmptcpd-ebpf-preload.so"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the preload library is not built; run 'make preload'")
    return path


def plugin_folder() -> Path:
    """The folder of the shipped plugins."""
    return _INSTALLED / "plugins" if _INSTALLED.is_dir() else _PACKAGE.parent / "plugins"
