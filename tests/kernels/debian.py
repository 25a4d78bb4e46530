# SPDX-License-Identifier: BSD-3-Clause
"""Debian's kernels: which there are today, and how they get here.

Versions rotate, so they are resolved at run time.  apt reads the suites into lists of
its own, apart from the host's; it also checks the signatures.  Nothing is installed:
packages are unpacked below the cache folder, one folder a kernel, and the folder of
the version before goes.

The cloud flavour is small and boots from virtio.  Since 7.0 an image package is empty
and depends on the packages that hold the kernel and its modules.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUITES = ("bookworm", "bookworm-backports", "trixie-backports")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
NEWEST = "newest"
WANTED = ("6.1", "6.12", "6.18", NEWEST)
"""The kernels to test: a series each, or the newest of all."""

_IMAGE = re.compile(r"linux-image-(\d.*-cloud-amd64)")
_SAME_SOURCE = re.compile(r"(linux-\S+) \(= [^)]+\)")
_APT_SECONDS = 900


class UnavailableError(Exception):
    """A kernel, or a program that runs it, is unavailable; the text gives the reason."""


class Package(NamedTuple):
    """A paragraph of a package list."""

    name: str
    version: str
    depends: str


class Kernel(NamedTuple):
    """A kernel, unpacked."""

    wanted: str
    """The request, one of WANTED."""
    release: str
    """Its output of uname -r."""
    root: Path
    """The folder with ``boot`` and ``lib/modules``."""

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        """The folder of the headers if requested, laid out as a root folder."""
        return self.root / "headers"

    @property
    def image(self) -> Path:
        """Since 7.0 beside the modules."""
        before = self.root / "boot" / f"vmlinuz-{self.release}"
        return before if before.exists() else self.modules / "vmlinuz"


def cache_folder() -> Path:
    """Outside the source tree, so that a fresh clone downloads nothing again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mptcpd-ebpf" / "kernels"


def paragraphs(text: str) -> Iterator[Package]:
    """The packages that ``apt-cache show`` printed."""
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Depends): (.*)$", paragraph, re.MULTILINE))
        if "Package" in fields and "Version" in fields:
            yield Package(fields["Package"], fields["Version"], fields.get("Depends", ""))


def choose(wanted: str, packages: list[Package]) -> Package:
    """The newest image of a series such as 6.12, or of all; raises UnavailableError."""
    images = [package for package in packages if _IMAGE.fullmatch(package.name)]
    if wanted != NEWEST:
        images = [package for package in images if package.version.startswith(f"{wanted}.")]
    if not images:
        raise UnavailableError(f"none among the packages of {', '.join(SUITES)}")
    return max(
        images, key=lambda package: [int(part) for part in re.findall(r"\d+", package.version)]
    )


class Archive:
    """Debian's archive, seen through the mirror that the host itself uses."""

    def __init__(self, cache: Path) -> None:
        """Reads the package lists; the ones of an earlier run do if the mirror is away."""
        self.cache = cache
        for folder in ("lists/partial", "archives/partial"):
            (cache / folder).mkdir(parents=True, exist_ok=True)
        sources, config = cache / "sources.list", cache / "apt.conf"
        config.write_text(
            f'Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "-";\n'
            f'Dir::State::Lists "{cache}/lists";\nDir::State::Status "/dev/null";\n'
            f'Dir::Cache "{cache}";\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n'
        )
        mirror = _mirror()
        sources.write_text(
            "".join(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in SUITES)
        )
        self._environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}
        try:
            self._apt("apt-get", "-qq", "update")
        except UnavailableError as error:
            if not list((cache / "lists").glob("*_Packages*")):
                raise
            print(f"using the package lists of an earlier run: {error}", flush=True)
        names = self._apt("apt-cache", "pkgnames", "linux-image-").split()
        images = sorted(name for name in names if _IMAGE.fullmatch(name))
        self.images = list(paragraphs(self._apt("apt-cache", "show", *images))) if images else []

    def get(self, wanted: str, headers: bool = False) -> Kernel:
        """Fetches and unpacks a kernel and its headers, unless they are cached. If the archive has
        the image but no longer the headers, a message says so and they are missing. Raises
        UnavailableError without the kernel.
        """
        image = choose(wanted, self.images)
        match = _IMAGE.fullmatch(image.name)
        assert match
        folder = self.cache / wanted
        kernel = Kernel(wanted, match[1], folder / f"{image.name}_{image.version}")
        if not kernel.root.is_dir():
            self._unpack(self._parts(image), kernel)
        if headers and not kernel.headers.is_dir():
            try:
                self._unpack_headers(image, kernel)
            except UnavailableError as error:
                print(f"{kernel.release}: no headers: {error}", flush=True)
        for other in folder.iterdir():
            if other != kernel.root:
                shutil.rmtree(other)
        return kernel

    def _parts(self, image: Package) -> list[Package]:
        """The image package and its dependencies from the same source."""
        parts, todo = [], [image]
        while todo:
            package = todo.pop()
            parts.append(package)
            names = _SAME_SOURCE.findall(package.depends)
            if names:
                todo += paragraphs(self._apt("apt-cache", "show", "--no-all-versions", *names))
        return parts

    def _unpack(self, parts: list[Package], kernel: Kernel) -> None:
        """Leaves the whole folder or none."""
        unfinished = kernel.root.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "usr" / "lib").mkdir(parents=True)
        (unfinished / "lib").symlink_to("usr/lib")  # 6.1's package makes it a folder again
        self._download(parts, unfinished)
        self._apt("/sbin/depmod", "-b", str(unfinished), kernel.release)
        unfinished.rename(kernel.root)

    def _unpack_headers(self, image: Package, kernel: Kernel) -> None:
        """What BCC compiles with: the flavour's headers and those of all flavours.

        kbuild's programs, which only the building of modules needs, stay away.
        """
        name = f"linux-headers-{kernel.release}={image.version}"
        package = next(paragraphs(self._apt("apt-cache", "show", name)), None)
        if package is None:
            raise UnavailableError(f"{name} is not in the archive")
        parts = [part for part in self._parts(package) if part.name.startswith("linux-headers-")]
        unfinished = kernel.root / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._download(parts, unfinished)
        unfinished.rename(kernel.headers)

    def _download(self, packages: list[Package], folder: Path) -> None:
        """Unpacks the packages into one folder."""
        exact = [f"{package.name}={package.version}" for package in packages]
        print(f"fetching {', '.join(exact)}", flush=True)
        archives = self.cache / "archives"
        self._apt("apt-get", "-qq", "download", *exact, folder=archives)
        for archive in archives.glob("*.deb"):
            self._apt("dpkg-deb", "-x", str(archive), str(folder))
            archive.unlink()

    def _apt(self, *command: str, folder: Path | None = None) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=_APT_SECONDS,
                check=True,
            )
        except FileNotFoundError:
            raise UnavailableError(f"{command[0]} is missing: this needs a Debian host") from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"no answer to {' '.join(command[:3])}") from None
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
            raise UnavailableError(f"{' '.join(command[:3])}: {lines[0]}") from None
        return done.stdout


def _mirror() -> str:
    """The address of the mirror of this host's Debian packages."""
    try:
        with open("/etc/os-release") as file:
            codename = dict(line.rstrip().split("=", 1) for line in file if "=" in line).get(
                "VERSION_CODENAME"
            )
        targets = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI) $(RELEASE)",
                "Created-By: Packages",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"this needs a Debian host with apt ({error})") from None
    for line in targets.splitlines():
        address, _, suite = line.partition(" ")
        if suite == codename:
            return address
    raise UnavailableError(f"apt's sources name no mirror of {codename}")
