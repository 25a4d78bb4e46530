# SPDX-License-Identifier: BSD-3-Clause
"""Systems to boot; `make test-system` makes what they are made of."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.booted.system import BASE, DEBS, FOLDER, System, sweep


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.booted)


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package."""
    found = sorted(DEBS.glob("mptcpd-ebpf_*.deb"))
    if not found:
        pytest.skip("no package is built: 'make deb' does it")
    return found[-1]


@pytest.fixture
def system() -> Iterator[System]:
    """A system that is off; what it is made of is on a disk, where an overlay can be."""
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None or not BASE.is_dir():
        pytest.skip("needs root, systemd-nspawn and build/system/base: 'make test-system'")
    sweep()
    folder = Path(tempfile.mkdtemp(dir=BASE.parent, prefix=f"{FOLDER}{os.getpid()}-"))
    try:
        yield System(folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def with_package(system: System, deb: Path) -> System:
    """A system with the package in /root, to be installed by its first run, and `talk.py`."""
    system.add(deb, "root/mptcpd-ebpf.deb")
    system.add(Path(__file__).parent / "talk.py", "root/talk.py")
    return system
