# SPDX-License-Identifier: BSD-3-Clause
"""Writes the API's HTML from the docstrings, with pdoc: `api_docs.py FOLDER`."""

import sys
from importlib import import_module
from pathlib import Path

import pdoc

# What people import: the library, what a plugin and a test may use, and the JSON's shapes.
MODULES = (
    "mptcpd_ebpf.api",
    "mptcpd_ebpf.plugin",
    "mptcpd_ebpf.lab",
    "mptcpd_ebpf.lab.wire",
    "mptcpd_ebpf.control.schema",
)


def main() -> None:
    for name in MODULES:
        module = import_module(name)
        # pdoc looks into the module's dict, where names that come on demand are not yet.
        for public in getattr(module, "__all__", ()):
            setattr(module, public, getattr(module, public))
    pdoc.render.configure(docformat="markdown", footer_text="mptcpd-ebpf")
    pdoc.pdoc(*MODULES, output_directory=Path(sys.argv[1]))


if __name__ == "__main__":
    main()
