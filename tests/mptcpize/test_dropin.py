# SPDX-License-Identifier: BSD-3-Clause
"""`mptcpd-ebpf enable` and `disable` on trees of unit files, checked against systemd.

Every tree is its own root (``--root``); systemd's loader computes the environment that a
service gets from it, and `systemd-analyze verify` checks the files.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mptcpd_ebpf.mptcpize import dropin, environment, unit_files, unit_settings
from mptcpd_ebpf.runtime.exit_codes import Failure
from tests.mptcpize import systemd_oracle
from tests.ordinary_user import AS_NOBODY

COMMAND = Path(sys.executable).with_name("mptcpd-ebpf")
PLAIN = "[Unit]\nDescription=x\n[Service]\nExecStart=/bin/true\n"
LIBRARY = Path("/usr/lib/ours.so")
ETC = Path("etc/systemd/system")
USR = Path("usr/lib/systemd/system")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in (ETC, USR):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    return tmp_path


def write(root: Path, files: dict[Path, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every path below `root`, and the content of every file."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def seen_by_systemd(root: Path, name: str) -> dict[str, str]:
    return systemd_oracle.load(name, root / ETC, root / USR).environment


def cli(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True)


def test_enable_keeps_the_units_environment_and_disable_removes_only_the_drop_in(
    root: Path,
) -> None:
    unit = PLAIN + "Environment=A=1 \"B=two words\"\nEnvironment=C='x' A=2\n"
    write(
        root,
        {
            USR / "foo.service": unit,
            ETC / "foo.service.d/override.conf": "[Service]\nEnvironment=D=%n\n",
        },
    )
    before = snapshot(root)
    outcome = dropin.enable(root, "foo", LIBRARY)
    assert outcome.changed
    assert outcome.path == root / ETC / "foo.service.d/zz-mptcpd-ebpf.conf"
    assert seen_by_systemd(root, "foo.service") == {
        "A": "2",
        "B": "two words",
        "C": "x",
        "D": "foo.service",
        "LD_PRELOAD": str(LIBRARY),
        "GODEBUG": "multipathtcp=1",
    }
    after = snapshot(root)
    assert {path: after[path] for path in before} == before, "another file changed"
    assert not dropin.enable(root, "foo.service", LIBRARY).changed
    assert snapshot(root) == after
    assert dropin.disable(root, "foo").changed
    assert snapshot(root) == before
    assert not dropin.disable(root, "foo").changed


def test_a_preload_of_the_unit_is_merged_and_its_origin_named(root: Path) -> None:
    write(
        root,
        {
            USR / "foo.service": PLAIN + "Environment=LD_PRELOAD=/opt/%N.so GODEBUG=gctrace=1\n",
            ETC / "foo.service.d/a.conf": '[Service]\nEnvironment="LD_PRELOAD=/a.so /b.so"\n',
        },
    )
    text = dropin.enable(root, "foo", LIBRARY).path.read_text()
    assert "# LD_PRELOAD was set by /etc/systemd/system/foo.service.d/a.conf" in text
    seen = seen_by_systemd(root, "foo.service")
    assert seen["LD_PRELOAD"] == f"/a.so:/b.so:{LIBRARY}"
    assert seen["GODEBUG"] == "gctrace=1,multipathtcp=1"

    (root / ETC / "foo.service.d/a.conf").unlink()
    assert dropin.enable(root, "foo", LIBRARY).changed
    assert seen_by_systemd(root, "foo.service")["LD_PRELOAD"] == f"/opt/foo.so:{LIBRARY}"


def test_instances_templates_and_aliases_can_be_enabled(root: Path) -> None:
    write(root, {USR / "foo@.service": PLAIN, USR / "real.service": PLAIN})
    (root / ETC / "alias.service").symlink_to("/usr/lib/systemd/system/real.service")
    dropin.enable(root, "foo@bar", LIBRARY)
    assert seen_by_systemd(root, "foo@bar.service")["LD_PRELOAD"] == str(LIBRARY)
    assert "LD_PRELOAD" not in seen_by_systemd(root, "foo@other.service")

    dropin.enable(root, "foo@", LIBRARY)
    assert seen_by_systemd(root, "foo@other.service")["LD_PRELOAD"] == str(LIBRARY)
    [warning] = dropin.disable(root, "foo@bar").warnings
    assert "disable foo@.service" in warning

    outcome = dropin.enable(root, "alias", LIBRARY)
    assert str(outcome.name) == "real.service"
    assert dropin.disable(root, "alias").changed


def test_paths_with_special_characters_reach_the_service_unchanged(root: Path) -> None:
    write(root, {USR / "foo.service": PLAIN})
    odd = Path('/opt/100%n"quoted\\path/ours.so')
    dropin.enable(root, "foo", odd)
    assert seen_by_systemd(root, "foo.service")["LD_PRELOAD"] == str(odd)


def test_systemd_analyze_accepts_the_result(root: Path) -> None:
    write(root, {USR / "foo.service": PLAIN})
    dropin.enable(root, "foo", LIBRARY)

    def verify() -> str:
        paths = f"{root / ETC}:{root / USR}:"
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "foo.service"],
            env={**os.environ, "SYSTEMD_UNIT_PATH": paths},
            capture_output=True,
            text=True,
        )
        return "".join(
            line for line in (done.stdout + done.stderr).splitlines() if "zz-mptcpd-ebpf" in line
        )

    assert verify() == ""
    path = root / ETC / "foo.service.d" / dropin.FILE_NAME
    path.write_text(path.read_text() + 'Environment="open\nNonsense=1\n')
    assert "Nonsense" in verify(), "systemd-analyze did not look at the drop-in"


@pytest.mark.parametrize(
    ("files", "name", "code", "words"),
    [
        ({}, "foo", 64, "foo.service: no such unit below"),
        ({}, "foo@bar", 64, "foo@.service does not exist either"),
        ({}, "foo.socket", 64, "a socket unit; only services"),
        ({}, "../foo", 64, "is not a systemd unit name"),
        ({}, "f oo", 64, "is not a systemd unit name"),
        ({}, "x" * 300, 64, "is not a systemd unit name"),
        ({ETC / "foo.service": ""}, "foo", 64, "is masked by"),
        (
            {USR / "foo.service": PLAIN + "UnsetEnvironment=LD_PRELOAD\n"},
            "foo",
            78,
            "UnsetEnvironment=LD_PRELOAD removes",
        ),
        (
            {
                USR / "foo@.service": PLAIN + "EnvironmentFile=-/etc/default/%p-%i\n",
                Path("etc/default/foo-bar"): "X=1\nLD_PRELOAD='/a.so'\n",
            },
            "foo@bar",
            78,
            "etc/default/foo-bar: sets LD_PRELOAD and overrides every drop-in",
        ),
        (
            {
                USR / "foo.service": PLAIN,
                ETC / "foo.service.d/zzz.conf": "[Service]\nEnvironment=\n",
            },
            "foo",
            78,
            "zzz.conf: comes after",
        ),
        (
            {
                USR / "foo.service": PLAIN,
                ETC / "foo.service.d/zz-mptcpd-ebpf.conf": "[Service]\n",
            },
            "foo",
            78,
            "was not written by mptcpd-ebpf",
        ),
    ],
)
def test_a_refused_unit_is_reported_and_nothing_is_written(
    root: Path, files: dict[Path, str], name: str, code: int, words: str
) -> None:
    write(root, files)
    before = snapshot(root)
    done = cli("enable", "--root", root, name)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert snapshot(root) == before


def test_an_environment_file_corrected_as_advised_is_accepted(root: Path) -> None:
    write(
        root,
        {
            USR / "foo.service": PLAIN + "EnvironmentFile=/etc/default/foo\n",
            Path("etc/default/foo"): "LD_PRELOAD=/a.so\n",
        },
    )
    with pytest.raises(Failure, match=r"write (LD_PRELOAD=[^ ]+) there") as refused:
        dropin.enable(root, "foo", LIBRARY)
    wanted = re.search("write (LD_PRELOAD=[^ ]+) there", str(refused.value))
    assert wanted
    (root / "etc/default/foo").write_text(wanted[1] + "\n")
    assert dropin.enable(root, "foo", LIBRARY).changed


def test_invalid_files_of_other_units_are_ignored(root: Path) -> None:
    odd = "EnvironmentFile=/\nEnvironmentFile=relative\nEnvironmentFile=-/etc/**x/[\n"
    write(root, {USR / "foo.service": PLAIN + odd})
    (root / ETC / "no name.service").symlink_to("foo.service")
    (root / ETC / "loop.service").symlink_to("loop.service")
    (root / ETC / "dangling.service").symlink_to("/nowhere.service")
    assert dropin.enable(root, "foo", LIBRARY).changed
    for broken in ("loop", "dangling"):
        with pytest.raises(Failure, match=f"{broken}.service"):
            dropin.enable(root, broken, LIBRARY)


@pytest.mark.parametrize(
    ("setting", "library", "words"),
    [
        ("ProtectHome=yes", "/home/x/ours.so", "ProtectHome= hides"),
        ("RootDirectory=/srv", "/usr/lib/ours.so", "gives the service another root"),
        ("PrivateTmp=true", "/tmp/ours.so", "PrivateTmp= hides"),
        ("", "/usr/lib/ours.so", "does not exist below"),
        ("User=nobody", "/usr/lib/closed/ours.so", "may not read"),
    ],
)
def test_settings_that_hide_the_library_are_warned_of(
    root: Path, setting: str, library: str, words: str
) -> None:
    write(root, {USR / "foo.service": PLAIN + setting + "\n"})
    (root / "usr/lib/closed").mkdir(0o700)
    (root / "usr/lib/closed/ours.so").touch()
    warnings = dropin.enable(root, "foo", Path(library)).warnings
    assert any(words in warning for warning in warnings), warnings


def test_a_socket_that_systemd_opens_is_warned_of(root: Path) -> None:
    write(root, {USR / "foo.service": PLAIN, USR / "foo.socket": "[Socket]\nListenStream=1\n"})
    assert any(
        "SocketProtocol=mptcp" in text for text in dropin.enable(root, "foo", LIBRARY).warnings
    )


def test_links_stay_inside_the_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An absolute link in an image means the image's path, not this host's."""
    outside = tmp_path_factory.mktemp("outside")
    write(root, {USR / "foo.service": PLAIN})
    (root / ETC).rmdir()
    (root / ETC).symlink_to(outside)
    path = dropin.enable(root, "foo", LIBRARY).path
    assert path.is_relative_to(root)
    assert list(outside.iterdir()) == []
    assert dropin.disable(root, "foo").changed


def test_a_drop_in_without_its_unit_can_be_disabled(root: Path) -> None:
    write(root, {USR / "foo.service": PLAIN})
    dropin.enable(root, "foo", LIBRARY)
    (root / USR / "foo.service").unlink()
    assert dropin.disable(root, "foo").changed
    assert cli("disable", "--root", root, "foo").returncode == 64


def test_the_command_reports_what_it_did(root: Path) -> None:
    write(root, {USR / "foo.service": PLAIN})
    done = cli("enable", "--root", root, "foo")
    assert done.returncode == 0
    assert done.stdout.startswith("foo.service: enabled (")
    assert (
        str(environment.library()) in (root / ETC / "foo.service.d" / dropin.FILE_NAME).read_text()
    )
    assert cli("enable", "--root", root, "foo").stdout.startswith(
        "foo.service: was enabled already"
    )
    assert cli("disable", "--root", root, "foo").stdout.startswith("foo.service: disabled")


@pytest.mark.ordinary_user
def test_missing_write_permission_is_reported(root: Path) -> None:
    write(root, {USR / "foo.service": PLAIN})
    for folder in (root, *root.parents):
        if str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    before = snapshot(root)
    done = subprocess.run(
        [*AS_NOBODY, COMMAND, "enable", "--root", root, "foo"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 77
    assert "not permitted" in done.stderr
    assert snapshot(root) == before


@given(word=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_quoted_words_are_read_back(word: str) -> None:
    assert list(unit_settings.words(unit_settings.quoted(word))) == [word]


PIECES = st.sampled_from(
    [
        *("A=1", "B=x y", "C=", "=", "d", "É=1", "LD_PRELOAD=/a.so"),
        *("'", '"', " ", "  ", "%%", "\\", "\\t", "\\x41", "\\101", "\\q"),
        *("\\\n", "\n#c\n", "\n;c\\\n", "\nEnvironment=", "\n[Service]\n", "\n[Unit]\n"),
    ]
)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(PIECES, max_size=12))
@example(["A=1", "\\", "\\", "\nEnvironment=", "C="])
@example(["A=1", "\\\n", "\n;c\\\n", "C=", "\nEnvironment=", "\nEnvironment=", "B=x y"])
def test_the_reader_agrees_with_systemd(root: Path, pieces: list[str]) -> None:
    """For any text, the reader and systemd find the same environment."""
    text = PLAIN + "Environment=" + "".join(pieces) + "\n"
    write(root, {USR / "foo.service": text})
    ours = unit_settings.read([root / USR / "foo.service"]).environment
    valid = {
        name: value.replace("%%", "%")
        for name, value in ours.items()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    }
    assert valid == seen_by_systemd(root, "foo.service")


def test_the_finder_agrees_with_systemd(root: Path) -> None:
    """Covers every folder that a name reads, equal file names, masks and order."""
    value = "[Service]\nEnvironment=LD_PRELOAD={}\n"
    names = ["service.d", "foo-.service.d", "foo-bar-.service.d", "foo-@x.service.d"]
    names += ["foo-bar@.service.d", "foo-bar@x.service.d", "foo-bar@y.service.d", "foo-@.service.d"]
    write(root, {USR / "foo-bar@.service": PLAIN})
    for number, name in enumerate(names):
        for folder in (USR, ETC):
            write(
                root,
                {
                    folder / name / "same.conf": value.format(f"{folder}/{name}"),
                    folder / name / f"{9 - number}{folder.parts[0]}.conf": value.format("x"),
                },
            )
    (root / ETC / "foo-bar@.service.d/9usr.conf").symlink_to("/dev/null")
    loaded = systemd_oracle.load("foo-bar@x.service", root / ETC, root / USR)
    unit = unit_files.find(root, unit_files.parse_name("foo-bar@x"))
    unmasked = [path for path in loaded.dropins if Path(path).resolve() != Path("/dev/null")]
    assert len(unmasked) == len(loaded.dropins) - 1
    assert [str(path) for path in unit.dropins] == unmasked
    assert str(unit.fragment) == loaded.fragment
