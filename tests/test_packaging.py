# SPDX-License-Identifier: BSD-3-Clause
"""What leaves this tree works elsewhere: the archive without git, the wheel without clang.

One archive and one wheel are built for all tests here.  A clean venv gets the wheel and
copies of what the wheel declares to need, not one distribution more, so no network is
asked and an undeclared import fails.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.tree import ROOT
from tests.waiting import until

OFFLINE = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--user", "--net")
LOCKS = ("requirements.lock", "requirements-install.lock")


def run(*argv: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Runs to its end what must succeed, with `variables` in its environment."""
    done = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, timeout=100, env={**os.environ, **variables}
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def without(tool: str, folder: Path) -> str:
    """A PATH on which `tool` is a program that fails."""
    folder.mkdir()
    refusal = folder / tool
    refusal.write_text(f"#!/bin/sh\necho '{tool} is not there' >&2\nexit 127\n")
    refusal.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def add_dependencies(python: Path) -> None:
    """Copies into a venv what the project declares to need at run time, and what that needs."""
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    ours = Path(sysconfig.get_path("purelib"))
    wanted, seen = ["mptcpd-ebpf"], set[str]()
    while wanted:
        found = distribution(wanted.pop())
        if found.name in seen:
            continue
        seen.add(found.name)
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for file in found.files or () if found.name != "mptcpd-ebpf" else ():
            source = Path(str(file.locate())).resolve()
            if source.is_relative_to(ours) and source.suffix != ".pyc":
                target = site / source.relative_to(ours)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked; the tools that `make setup` would fetch are ours."""
    folder = tmp_path_factory.mktemp("archive")
    # The archive's own `make setup` would point our venv at itself if this were not done.
    run("scripts/setup")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ".")
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        tar.extractall(folder)
    tree = Path(str(packed).removesuffix(".tar.gz"))
    (tree / ".venv").symlink_to(ROOT / ".venv")
    return tree


@pytest.fixture(scope="module")
def installed(archive: Path) -> Iterator[Path]:
    """The prefix into which `make install` put the archive's build, without git and network."""
    prefix = archive.parent / "prefix"
    places = (f"PREFIX={prefix}", f"UNITDIR={prefix}/units")
    path = without("git", archive.parent / "no-git")
    run(*OFFLINE, "make", "install", *places, cwd=archive, PATH=path)
    yield prefix
    run("make", "uninstall", *places, cwd=archive)
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []


def test_install_without_git(installed: Path) -> None:
    said = run(installed / "bin/mptcpd-ebpf", "--version", cwd=installed)
    assert said.startswith("mptcpd-ebpf ")
    python = installed / "lib/mptcpd-ebpf/bin/python"
    found = run(python, "-c", "import mptcpd_ebpf; print(mptcpd_ebpf.__file__)", cwd=installed)
    assert Path(found.strip()).is_relative_to(installed)
    for page in ("man8/mptcpd-ebpf.8", "man5/mptcpd-ebpf.yaml.5"):
        assert (installed / "share/man" / page).is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_unit_is_accepted(installed: Path) -> None:
    unit = installed / "units/mptcpd-ebpf.service"
    python = installed / "lib/mptcpd-ebpf/bin/python"
    assert f"ExecStart={python} -IP -m mptcpd_ebpf daemon" in unit.read_text()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("installed")
def test_staged_install_names_the_host_only(archive: Path) -> None:
    """DESTDIR is where the files lie now, not where they will run."""
    stage = archive.parent / "stage"
    arguments = (f"DESTDIR={stage}", "PREFIX=/opt/paths", "BUNDLE=h11")
    done = subprocess.run(
        ["make", "install", *arguments], cwd=archive, capture_output=True, text=True, check=True
    )
    assert "mptcpd-ebpf does not start without " in done.stderr
    assert "msgspec>=0.19 (not there)" in done.stderr
    assert "h11" not in done.stderr
    naming = [path for path in stage.rglob("*") if path.is_file() and not path.is_symlink()]
    assert naming
    assert [path for path in naming if str(stage).encode() in path.read_bytes()] == []
    assert (stage / "opt/paths/lib/systemd/system/mptcpd-ebpf.service").is_file()
    run("make", "uninstall", *arguments, cwd=archive)
    assert [path for path in stage.rglob("*") if not path.is_dir()] == []


def test_what_bcc_compiles_is_installed_too(installed: Path) -> None:
    python = installed / "lib/mptcpd-ebpf/bin/python"
    program = (
        "from mptcpd_ebpf.probes.bcc_compile import compile_functions\n"
        "from mptcpd_ebpf.runtime.resources import bpf_sources\n"
        "print(bpf_sources(), len(compile_functions('int f(void *c) { return 0; }', ['f'])['f']))"
    )
    folder, size = run(python, "-c", program, cwd=installed).split()
    assert Path(folder).is_relative_to(installed)
    assert (Path(folder) / "follow.h").is_file()
    assert (Path(folder) / "bcc" / "subflow.c").is_file()
    assert int(size) == 16


@pytest.mark.usefixtures("installed")
def test_daemon_starts_from_the_wheel(archive: Path, tmp_path: Path) -> None:
    """In a venv that sees no other package, with no compiler to be found, on eBPF probes."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("needs a network namespace of its own, so root")
    (wheel,) = (archive / "build/wheel").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    path = without("clang", tmp_path / "no-clang")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    run(*pip, "--no-index", "--no-deps", "--root-user-action=ignore", wheel, PATH=path)
    add_dependencies(python)
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            ["unshare", "--net", tmp_path / "venv/bin/mptcpd-ebpf", "daemon", "--control",
             tmp_path / "control.sock", "--path-manager=adaptive"],
            stderr=stderr, cwd=tmp_path, env={**os.environ, "PATH": path},
        )  # fmt: skip
    try:
        until(
            lambda: "ready:" in log.read_text() or process.poll() is not None,
            "the daemon is ready",
            30.0,
        )
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_host(name: str) -> None:
    """Where packages come from is the reader's choice; what they are, the hashes say."""
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "--index" not in text
    assert text.count("==") > 5


def test_installed_versions_are_those_that_are_tested() -> None:
    dev, host = ((ROOT / name).read_text().split("\n") for name in LOCKS)
    assert {line for line in host if "==" in line} <= {line for line in dev if "==" in line}


def test_code_comes_from_neither_pythonpath_nor_home(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("print('foreign')")
    (tmp_path / "mptcpd_ebpf.py").write_text("print('foreign')")
    program = installed / "bin/mptcpd-ebpf"
    said = run(program, "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path), HOME=str(tmp_path))
    assert said.startswith("mptcpd-ebpf ")
    assert "foreign" not in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_confined(installed: Path) -> None:
    unit = installed / "units/mptcpd-ebpf.service"
    said = run("systemd-analyze", "security", "--offline=true", unit)
    exposure = float(said.rpartition("exposure level for ")[2].split()[1])
    assert exposure <= 2.0


@pytest.mark.parametrize(("shell", "path"), [
    ("bash", "bash-completion/completions/mptcpd-ebpf"),
    ("zsh", "zsh/vendor-completions/_mptcpd-ebpf"),
    ("fish", "fish/vendor_completions.d/mptcpd-ebpf.fish"),
])  # fmt: skip
def test_completion_is_installed(installed: Path, shell: str, path: str) -> None:
    assert f"_MPTCPD_EBPF_COMPLETE={shell}_complete" in (installed / "share" / path).read_text()
