# SPDX-License-Identifier: BSD-3-Clause
"""A client of the control socket: HTTP over AF_UNIX, with the standard library only."""

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from mptcpd_ebpf.runtime import run_folder
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure

SOCKET = "sock"
"""The kind of a control socket among the files of `run_folder`."""

MAX_PATH_BYTES = 107
"""``sun_path`` holds 108 bytes, the closing NUL among them (unix(7))."""

TIMEOUT_SECONDS = 15.0
"""How long to wait for an answer."""


def default_path() -> str:
    """The default path of the control socket of this network namespace's daemon.

    The name contains the inode of the namespace, because several namespaces share /run.
    """
    return str(run_folder.find(SOCKET))


def check_length(path: str) -> None:
    """Raises `Failure` if the kernel's socket address cannot hold the path."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise Failure(
            f"control path {path!r} has {length} bytes; the path of a Unix socket can have "
            f"{MAX_PATH_BYTES}: choose a shorter one",
            ExitCode.CONFIG,
        )


def get(path: str, target: str) -> Any:
    """The JSON of the daemon's answer to ``GET target``.  Raises `Failure`."""
    return _ask(path, "GET", target)


def post(path: str, target: str, body: Any = None) -> Any:
    """The JSON of the answer to ``POST target`` with `body` as JSON.  Raises `Failure`."""
    return _ask(path, "POST", target, None if body is None else json.dumps(body).encode())


def stream(path: str, target: str) -> Iterator[tuple[str, Any]]:
    """Name and data of each server-sent event, until the stream ends.  Raises `Failure`."""
    with _connection(path) as connection:
        connection.request("GET", target)
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            raise _refusal("GET", target, response, json.loads(response.read()))
        assert connection.sock is not None
        connection.sock.settimeout(None)
        name = ""
        for line in response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(path: str, method: str, target: str, body: bytes | None = None) -> Any:
    with _connection(path) as connection:
        connection.request(method, target, body)
        response = connection.getresponse()
        answer = json.loads(response.read())
    if response.status != HTTPStatus.OK:
        raise _refusal(method, target, response, answer)
    return answer


@contextmanager
def _connection(path: str) -> Iterator[_UnixConnection]:
    """A connection; raises `Failure` for every error of its use."""
    check_length(path)
    connection = _UnixConnection(path)
    try:
        yield connection
    except FileNotFoundError:
        raise Failure(
            f"no daemon: {path} does not exist; start 'mptcpd-ebpf daemon' in this network "
            "namespace, or name the socket of a running one with --control",
            ExitCode.NO_DAEMON,
        ) from None
    except ConnectionRefusedError:
        raise Failure(
            f"no daemon: nothing listens on {path}; start 'mptcpd-ebpf daemon'",
            ExitCode.NO_DAEMON,
        ) from None
    except PermissionError:
        raise Failure(
            f"{path}: permission denied; only the daemon's user can connect: "
            "run this command as that user or as root",
            ExitCode.PRIVILEGE,
        ) from None
    except TimeoutError:
        raise Failure(
            f"the daemon at {path} did not answer within {TIMEOUT_SECONDS:.0f} s",
            ExitCode.NO_DAEMON,
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failure(
            f"{path}: the program that listens there does not answer like the daemon: {error}",
            ExitCode.NO_DAEMON,
        ) from None
    finally:
        connection.close()


_EXIT_CODES: dict[int, ExitCode] = {
    HTTPStatus.BAD_REQUEST: ExitCode.USAGE,
    HTTPStatus.UNPROCESSABLE_ENTITY: ExitCode.CONFIG,
    HTTPStatus.FORBIDDEN: ExitCode.PRIVILEGE,
}


def _refusal(method: str, target: str, response: http.client.HTTPResponse, answer: Any) -> Failure:
    reason = answer.get("error") if isinstance(answer, dict) else None
    return Failure(
        f"the daemon refused: {reason}"
        if reason
        else f"the daemon refused {method} {target}: {response.reason}",
        _EXIT_CODES.get(response.status, ExitCode.CHECK_FAILED),
    )
