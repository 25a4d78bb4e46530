# SPDX-License-Identifier: BSD-3-Clause
"""Whether a place in the file system is ours alone: the daemon does what it finds there.

A name is as good as the weakest place on the way to it: whoever can write a folder puts
something else under the name, and whoever owns a link points it elsewhere.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure


def read_trusted(file: Path, max_bytes: int) -> bytes:
    """The content of a configuration file; what is no regular file, such as a pipe, is trusted.

    Raises `Failure` (CONFIG), with a reason that does not repeat the name, if it cannot be read, is
    larger than `max_bytes`, or if users other than root and the daemon's own could write it.
    """
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            raw = stream.read(max_bytes + 1)
    except OSError as error:
        raise Failure(f"cannot be read: {error.strerror}", ExitCode.CONFIG) from None
    if stat.S_ISREG(mode):
        refuse_writable_by_others(file)
    if len(raw) > max_bytes:
        raise Failure(f"is larger than {max_bytes // 1024} KiB", ExitCode.CONFIG)
    return raw


def refuse_writable_by_others(path: Path) -> None:
    """Looks at `path` and at all folders and links that lead to it.

    Raises `Failure` (CONFIG) naming the first place that users other than root and the daemon's
    own can write, or that cannot be checked.
    """
    try:
        _look(path)
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise Failure(f"{path} cannot be looked at: {reason}", ExitCode.CONFIG) from None


def _look(path: Path) -> None:
    end = Path(os.path.realpath(path, strict=True))
    for place in _way_to(path):
        found = place.lstat()
        foreign = found.st_uid not in (0, os.geteuid())
        link = stat.S_ISLNK(found.st_mode)  # its mode says nothing
        writable = not link and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # In a sticky folder, such as /tmp, no user can replace another's file; but any user can
        # add to it, which matters at the end of the way.
        sticky = found.st_mode & stat.S_ISVTX and place != end
        if foreign or (writable and not sticky):
            raise Failure(
                f"{place}: somebody else could write it, and what it says is done with the "
                f"daemon's privileges; make it root's own (chown root, chmod go-w)",
                ExitCode.CONFIG,
            )


def _way_to(path: Path) -> Iterator[Path]:
    """Every folder and link that the kernel passes, and the end; `path` must be there."""
    here = Path("/")
    yield here
    ahead = list(reversed(path.absolute().parts[1:]))
    while ahead:
        step = ahead.pop()
        if step == "..":
            here = here.parent
            continue
        here /= step
        yield here
        if here.is_symlink():
            target = here.readlink()
            here = Path("/") if target.is_absolute() else here.parent
            ahead += reversed(target.parts[1:] if target.is_absolute() else target.parts)
