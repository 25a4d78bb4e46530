# SPDX-License-Identifier: BSD-3-Clause
"""``mptcpd-ebpf config``: reads configurations, without a daemon."""

import os
from pathlib import Path
from typing import Any

import click

from mptcpd_ebpf.cli import Group
from mptcpd_ebpf.config import mptcpd_conf
from mptcpd_ebpf.config.settings import Settings


@click.group(cls=Group)
def command() -> None:
    """Work on configuration files."""


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path))
def import_(file: Path) -> None:
    """Print the YAML that does the same as an mptcpd.conf.

    mptcpd's defaults are written out where FILE leaves them out. Comments name what does not apply
    here. A configuration that the daemon would refuse is refused.

    \b
    mptcpd-ebpf config import /etc/mptcpd/mptcpd.conf > /etc/mptcpd-ebpf.yaml
    """
    import yaml

    from mptcpd_ebpf.config import plugin_loader, plugin_set

    # Raises what the daemon would.
    plugin_set.build(Settings(mptcpd_conf=file).load(plugin_loader.options_of))
    imported = mptcpd_conf.read(file)
    click.echo(f"# From {os.path.abspath(file)}.")
    for warning in imported.warnings:
        click.echo(f"# {warning}")
    nested: dict[str, Any] = {}
    for key, value in imported.values.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    click.echo(yaml.safe_dump(nested, sort_keys=False, default_flow_style=False), nl=False)
