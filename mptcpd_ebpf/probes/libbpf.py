# SPDX-License-Identifier: BSD-3-Clause
"""The functions of libbpf that loading and reading BPF programs needs, through ctypes.

Conventions of libbpf 1.x (https://libbpf.readthedocs.io): a function that returns a
pointer returns NULL and sets errno; one that returns an int returns -errno.  `pointer`
and `number` turn both into OSError.  `Libbpf.log` keeps libbpf's warnings, among them the
verifier's explanation of a refused program.
"""

import ctypes
import ctypes.util
import os
import re
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

LIBRARY = "libbpf.so.1"
LOG_LINES_KEPT = 400
_WARN = 0

RING_CALLBACK = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_PRINT_CALLBACK = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

_POINTER, _INT = c_void_p, c_int
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (_POINTER, [c_char_p, c_void_p]),
    "bpf_object__load": (_INT, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__btf": (_POINTER, [c_void_p]),
    "bpf_object__find_map_by_name": (_POINTER, [c_void_p, c_char_p]),
    "bpf_object__find_program_by_name": (_POINTER, [c_void_p, c_char_p]),
    "bpf_object__next_program": (_POINTER, [c_void_p, c_void_p]),
    "btf__find_by_name_kind": (_INT, [c_void_p, c_char_p, c_uint32]),
    "btf__free": (None, [c_void_p]),
    "btf__load_vmlinux_btf": (_POINTER, []),
    "btf__name_by_offset": (c_char_p, [c_void_p, c_uint32]),
    "btf__raw_data": (_POINTER, [c_void_p, POINTER(c_uint32)]),
    "btf__type_by_id": (_POINTER, [c_void_p, c_uint32]),
    "bpf_map__fd": (_INT, [c_void_p]),
    "bpf_map__initial_value": (_POINTER, [c_void_p, POINTER(c_size_t)]),
    "bpf_map__set_max_entries": (_INT, [c_void_p, c_uint32]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map_lookup_batch": (
        _INT,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
    ),
    "bpf_map_get_next_key": (_INT, [c_int, c_void_p, c_void_p]),
    "bpf_map_delete_elem": (_INT, [c_int, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__section_name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (_INT, [c_void_p]),
    "bpf_program__attach": (_POINTER, [c_void_p]),
    "bpf_program__attach_cgroup": (_POINTER, [c_void_p, c_int]),
    "bpf_program__attach_iter": (_POINTER, [c_void_p, c_void_p]),
    "bpf_program__attach_kprobe_opts": (_POINTER, [c_void_p, c_char_p, c_void_p]),
    "bpf_program__set_attach_target": (_INT, [c_void_p, c_int, c_char_p]),
    "bpf_program__set_autoload": (_INT, [c_void_p, ctypes.c_bool]),
    "bpf_link__fd": (_INT, [c_void_p]),
    "bpf_link__destroy": (_INT, [c_void_p]),
    "bpf_iter_create": (_INT, [c_int]),
    "bpf_map_create": (_INT, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    "bpf_map_update_elem": (_INT, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_prog_load": (_INT, [c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p]),
    "bpf_prog_test_run_opts": (_INT, [c_int, c_void_p]),
    "bpf_link_create": (_INT, [c_int, c_int, c_int, c_void_p]),
    "bpf_raw_tracepoint_open": (_INT, [c_char_p, c_int]),
    "libbpf_find_vmlinux_btf_id": (_INT, [c_char_p, c_int]),
    "ring_buffer__new": (_POINTER, [c_int, RING_CALLBACK, c_void_p, c_void_p]),
    "ring_buffer__epoll_fd": (_INT, [c_void_p]),
    "ring_buffer__consume": (_INT, [c_void_p]),
    "ring_buffer__free": (None, [c_void_p]),
    "libbpf_set_print": (_POINTER, [_PRINT_CALLBACK]),
}


class Libbpf:
    """The loaded library; its functions as attributes, under their own names.

    Raises OSError if the library is not installed.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY, use_errno=True)
        self._libc = ctypes.CDLL(None)
        self.log: list[str] = []
        """libbpf's warnings since `log` was last cleared, in lines; of a long text only the last
        LOG_LINES_KEPT."""
        self._print = _PRINT_CALLBACK(self._on_print)  # kept: libbpf holds the address
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype = result
            function.argtypes = arguments
        self._library.libbpf_set_print(self._print)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def _on_print(self, level: int, form: bytes, arguments: int) -> int:
        # The verifier's explanation is one text of up to megabytes; the reason is at its end.
        text = c_char_p()
        if (
            level == _WARN
            and self._libc.vasprintf(ctypes.byref(text), form, c_void_p(arguments)) >= 0
        ):
            lines = (text.value or b"").decode(errors="replace").splitlines()
            self._libc.free(text)
            self.log += lines[-LOG_LINES_KEPT:]
        return 0

    def pointer(self, name: str, *arguments: Any) -> int:
        """Calls a function that returns a pointer.  Raises OSError instead of NULL."""
        ctypes.set_errno(0)
        result = getattr(self._library, name)(*arguments)
        if not result:
            raise self._error(name, ctypes.get_errno())
        return int(result)

    def number(self, name: str, *arguments: Any) -> int:
        """Calls a function that returns an int.  Raises OSError if it is negative."""
        result = int(getattr(self._library, name)(*arguments))
        if result < 0:
            raise self._error(name, -result)
        return result

    def _error(self, name: str, errno: int) -> OSError:
        return OSError(errno, f"{name}: {os.strerror(errno)}")

    def refused_programs(self) -> dict[str, str]:
        """Programs that could not be loaded according to `log`, with the reason in one line."""
        refused: dict[str, str] = {}
        last = ""
        for line in self.log:
            found = re.match(
                r"libbpf: prog '(\w+)': (failed to .*|BPF program load failed.*)", line
            )
            if found:
                refused.setdefault(found[1], found[2])
            elif line and not line.startswith(("libbpf:", "processed ", "-- ")):
                last = line
            elif line.startswith("-- END PROG LOAD LOG") and refused and last:
                name = next(reversed(refused))
                refused[name] = f"{refused[name]} ({last})"
        return refused
