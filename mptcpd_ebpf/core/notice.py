# SPDX-License-Identifier: BSD-3-Clause
"""What changed in the model, told to plugins and observers."""

from typing import Any, NamedTuple

from mptcpd_ebpf.core.model import Connection


class Notice(NamedTuple):
    """One thing that happened, named after the plugin handler that is told."""

    handler: str
    args: tuple[Any, ...]
    connection: Connection | None = None
    """The connection it belongs to; None for what all plugins hear."""
