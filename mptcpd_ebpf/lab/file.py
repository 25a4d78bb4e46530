# SPDX-License-Identifier: BSD-3-Clause
"""A topology from a YAML file: `Topology`'s fields, every mistake with its line."""

from mptcpd_ebpf.lab.errors import LabError
from mptcpd_ebpf.lab.topology import Topology, parse
from mptcpd_ebpf.yamldoc import Document


def read(path: str) -> Topology:
    """Raises LabError with ``file:line:column`` for all that is wrong, OSError if unreadable."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return loads(file.read(), path)


def loads(text: str, name: str) -> Topology:
    """A topology from YAML text; `name` is what mistakes call the file."""
    document = Document(text, name)
    if not document.mistakes:
        document.check(document.data or {}, Topology)
    if document.mistakes:
        raise LabError("\n".join(str(mistake) for mistake in document.mistakes))
    try:
        return parse(document.data or {})
    except LabError as error:
        raise LabError(f"{name}: {error}") from None
