# SPDX-License-Identifier: BSD-3-Clause
"""The configuration: its keys, their defaults, and a reader that reports every mistake at once.

A document is YAML.  It is read in three steps:

1. `yaml_document.Document` turns the text into plain data and keeps the position of each key;
duplicate keys are mistakes here. 2. It walks the data beside the msgspec structs below, which
state each key's type
   and range once, and collects what does not fit.
3. Each plugin that is named must load, and its options must fit the ``Options``
   struct that the plugin itself declares.

Only a document without mistakes becomes a `Config`; the others end in one
`ConfigError` that lists all of them as ``file:line:column: key: reason``.
"""

import ipaddress
from collections.abc import Callable, Mapping
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from mptcpd_ebpf.config import mptcpd_conf
from mptcpd_ebpf.config.file_trust import read_trusted, refuse_writable_by_others
from mptcpd_ebpf.config.yaml_document import Document, KeyPath, Mistake
from mptcpd_ebpf.core.address import parse_sockaddr
from mptcpd_ebpf.core.measurement import Thresholds
from mptcpd_ebpf.core.model import AddressPolicy
from mptcpd_ebpf.core.serving import Rule
from mptcpd_ebpf.runtime.exit_codes import ExitCode, Failure
from mptcpd_ebpf.runtime.logging_setup import LogDestination

DEFAULT_FILE = Path("/etc/mptcpd-ebpf.yaml")
"""Read by the daemon when no other file is named, if it exists."""

MAX_BYTES = 256 * 1024
"""A configuration above this size is refused unread."""

COMMAND_LINE = "command line"
"""Where mistakes in `Settings.overrides` are said to be."""

# No Meta(pattern=…) anywhere: msgspec frees a pattern that it still uses, and crashes
# (https://github.com/msgspec/msgspec/issues/717).
PluginName = Annotated[str, Meta(min_length=1, max_length=64)]
"""A plugin's name, which is also its file's."""

Pattern = Annotated[str, Meta(min_length=1, max_length=64)]
"""An interface name; ``*`` and ``?`` match as in a shell."""

HostName = Annotated[str, Meta(min_length=1, max_length=253)]


class ProbeBackend(StrEnum):
    """Where measurements come from."""

    AUTO = "auto"
    """The best that this kernel allows."""
    CORE = "core"
    """CO-RE eBPF probes, or no start."""
    BCC = "bcc"
    """eBPF probes compiled by bcc when the daemon starts, or no start."""
    NETLINK = "netlink"
    """No probes: what netlink and inet_diag tell."""


class OnExit(StrEnum):
    """What becomes of the endpoints that the daemon made."""

    REMOVE = "remove"
    KEEP = "keep"


class InitialPath(StrEnum):
    """Where new connections start."""

    ROUTES = "routes"
    """Where the routes say."""
    STEER = "steer"
    """On another path while that of the default route does not work."""


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: keys that are not declared are mistakes."""


class Interfaces(_Section, frozen=True):
    """Which interfaces the daemon may use for subflows and endpoints."""

    allow: list[Pattern] = []
    """Only these; empty means all."""
    deny: list[Pattern] = []
    """Never these; beats `allow`."""


class ProbeSettings(_Section, frozen=True):
    backend: ProbeBackend = ProbeBackend.AUTO
    cgroup: str | None = None
    """The folder of cgroup v2 whose sockets bcc's probes follow; None: its root, all of them."""
    thresholds: Thresholds = Thresholds()


class Metrics(_Section, frozen=True):
    enabled: bool = False
    """Answer ``GET /metrics`` on the control socket."""
    listen: str | None = None
    """Also answer it on this TCP address, ``ip:port``; needs `enabled`."""
    hosts: list[HostName] = []
    """Names of this host in the requests there, besides its host name and its addresses."""


class JournalSettings(_Section, frozen=True):
    """What is kept of what happened, for ``mptcpd-ebpf history`` (docs/journal.md)."""

    enabled: bool = True
    path: str | None = None
    """The file; None is `journal.location.default_path`."""
    max_mb: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Size of the file, 10^6 bytes; the oldest rows are deleted for newer ones."""
    max_age_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    sample_s: Annotated[int, Meta(ge=1, le=3600)] = 10
    """Seconds between samples of every subflow; with thousands of subflows they are rarer."""


class RateLimits(_Section, frozen=True):
    destructive_per_second: Annotated[int, Meta(ge=0, le=1000)] = 10
    """Subflows destroyed or demoted, per second, by one plugin on one path, for which no
    measurement calls (docs/architecture.md); endpoints removed, by one plugin."""


class Config(_Section, frozen=True):
    """One whole configuration; the defaults observe and manage nothing."""

    path_manager: PluginName | list[PluginName] | None = None
    """The plugins that decide; connections without a matching rule go to the first. None, and no
    other key that names a plugin: observe only."""
    load_plugins: list[PluginName] = []
    """More plugins.  They get link and address events, and serve the connections that rules assign
    to them; without `path_manager`, the one with the highest priority serves all others."""
    rules: list[Rule] = []
    """Which plugin serves a connection: the first rule that fits."""
    plugins: dict[PluginName, dict[str, Any]] = {}
    """Options by plugin, checked against the plugin's own ``Options``."""
    plugin_dir: str | None = None
    """A folder searched for plugins before the shipped ones."""
    interfaces: Interfaces = Interfaces()
    addresses: AddressPolicy = AddressPolicy()
    probes: ProbeSettings = ProbeSettings()
    initial_path: InitialPath = InitialPath.ROUTES
    initial_path_cgroups: list[str] = []
    """The folders of cgroup v2 whose processes' connections are steered; empty: its root, all."""
    control: str | None = None
    """Path of the control socket; None is `control_client.default_path`."""
    metrics: Metrics = Metrics()
    dry_run: bool = False
    """Decide, and send no plugin's command: nothing changes in the kernel."""
    journal: JournalSettings = JournalSettings()
    on_exit: OnExit = OnExit.REMOVE
    log: LogDestination = LogDestination.STDERR
    log_level: LogLevel = LogLevel.INFO
    limits: RateLimits = RateLimits()

    @property
    def path_managers(self) -> tuple[str, ...]:
        """The names in `path_manager`, whichever way it was written."""
        if self.path_manager is None:
            return ()
        if isinstance(self.path_manager, str):
            return (self.path_manager,)
        return tuple(self.path_manager)

    @property
    def default_plugin(self) -> str | None:
        """The plugin of connections without a matching rule, if `path_manager` names one."""
        return next(iter(self.path_managers), None)

    @property
    def plugin_names(self) -> tuple[str, ...]:
        """Every plugin that is named anywhere, each once."""
        named = [rule.plugin for rule in self.rules if rule.plugin is not None]
        return tuple(dict.fromkeys([*self.path_managers, *self.load_plugins, *named]))


FIXED_AT_START = (
    "control",
    "metrics",
    "journal",
    "probes.backend",
    "probes.cgroup",
    "initial_path",
    "initial_path_cgroups",
)


def fixed_at_start(running: Config, wanted: Config) -> list[str]:
    """The keys that differ and that a reload cannot change: what they name is open."""
    return [key for key in FIXED_AT_START if attrgetter(key)(running) != attrgetter(key)(wanted)]


class ConfigError(Failure):
    """A configuration that cannot be used, with every mistake in it."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(
            mistakes, key=lambda mistake: (mistake.line or 0, mistake.column or 0)
        )
        if len(mistakes) == 1:
            text = str(mistakes[0])
        else:
            text = f"{len(mistakes)} mistakes in the configuration:\n" + "\n".join(
                f"  {mistake}" for mistake in self.mistakes
            )
        super().__init__(text, ExitCode.CONFIG)


OptionsOf = Callable[[str, Path | None], type[Struct]]
"""Finds a plugin's ``Options`` by the plugin's name, given `Config.plugin_dir`.

Raises `Failure` when there is no such plugin or it does not load.
"""


class Settings(Struct, frozen=True, kw_only=True):
    """Where the daemon's configuration comes from; read at start and at every reload."""

    file: Path | None = None
    """None: `DEFAULT_FILE`, as long as there is one."""
    mptcpd_conf: Path | None = None
    """mptcpd's own file, instead of `file`."""
    overrides: dict[str, Any] = {}
    """Dotted keys given on the command line; they beat the file."""
    record: Path | None = None
    """A new file that every event and decision is written to (`core.recording`)."""

    def load(self, options_of: OptionsOf | None = None) -> Config:
        """Reads the file and the overrides.  Raises `ConfigError` with every mistake."""
        if self.mptcpd_conf is None:
            # Checked each time: a reload reads what a restart would.
            default = DEFAULT_FILE if DEFAULT_FILE.exists() else None
            return load(self.file or default, self.overrides, options_of)
        imported = mptcpd_conf.read(self.mptcpd_conf)
        if imported.mistakes:
            raise ConfigError(imported.mistakes)
        document = Document("", str(self.mptcpd_conf))
        for key, value in imported.values.items():
            line = imported.lines.get(key)
            origin = f"{document.file}:{line}" if line else f"{document.file} (mptcpd's default)"
            document.lay_over(tuple(key.split(".")), value, origin)
        return _checked(document, self.overrides, options_of)

    def warnings(self, config: Config) -> list[str]:
        """What mptcpd's file or command line sets and does not apply here, and what `config`, read
        from them, exposes."""
        found = []
        listen = config.metrics.listen
        if listen is not None and ipaddress.ip_address(parse_sockaddr(listen).ip).is_unspecified:
            found.append(
                f"metrics.listen: {listen} is reachable from every network of this host, and "
                "answers without authentication: name one address, such as 127.0.0.1:9464"
            )
        if self.mptcpd_conf is not None:
            found += mptcpd_conf.read(self.mptcpd_conf, self.overrides).warnings
        folder = self.overrides.get("plugin_dir")
        if folder is not None and not mptcpd_conf.has_plugins(folder):
            found.append(f"{COMMAND_LINE}: {mptcpd_conf.no_plugins(folder)}")
        return found


def load(
    file: Path | None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    options_of: OptionsOf | None = None,
) -> Config:
    """Reads `file`, lays `overrides` over it and checks the result.

    Without `options_of` the options of plugins are not looked at.
    Raises `ConfigError` with every mistake.
    """
    if file is None:
        return parse("", "defaults", overrides, options_of)
    return parse(_read(file), str(file), overrides, options_of)


def parse(
    text: str,
    file: str,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    options_of: OptionsOf | None = None,
) -> Config:
    """`load` for a text; `file` names it in mistakes."""
    return _checked(Document(text, file), overrides, options_of)


def _checked(
    document: Document, overrides: Mapping[str, Any], options_of: OptionsOf | None
) -> Config:
    for key, value in overrides.items():
        document.lay_over(tuple(key.split(".")), value, COMMAND_LINE)
    data = {} if document.data is None else document.data
    document.check(data, Config)
    if isinstance(data, dict) and options_of is not None:
        _check_plugins(document, data, options_of)
    if document.mistakes:
        raise ConfigError(document.mistakes)
    config = msgspec.convert(data, Config)
    _check_listen(document, config.metrics)
    if document.mistakes:
        raise ConfigError(document.mistakes)
    return config


def _check_listen(document: Document, metrics: Metrics) -> None:
    place = ("metrics", "listen")
    if metrics.listen is None:
        return
    if not metrics.enabled:
        document.mistake(place, "has no effect while metrics.enabled is false")
    try:
        parse_sockaddr(metrics.listen)
    except ValueError as error:
        document.mistake(place, str(error))


def _check_plugins(document: Document, data: dict[str, Any], options_of: OptionsOf) -> None:
    """Every plugin that is named must load, and its options must be its own."""
    folder = data.get("plugin_dir")
    folder = Path(folder) if isinstance(folder, str) else None
    if folder is not None and (reason := _unfit(folder)):
        document.mistake(("plugin_dir",), reason)
        return
    given = data.get("plugins")
    if not isinstance(given, dict):
        given = {}
    wanted: dict[str, KeyPath] = {name: ("plugins", name) for name in given}
    for number, rule in enumerate(_list(data.get("rules"))):
        name = rule.get("plugin") if isinstance(rule, dict) else None
        if isinstance(name, str):
            wanted[name] = ("rules", number, "plugin")
    for key in ("load_plugins", "path_manager"):
        wanted |= {name: (key,) for name in _list(data.get(key)) if isinstance(name, str)}
    for name, path in wanted.items():
        try:
            options = options_of(name, folder)
        except Failure as failure:
            document.mistake(path, str(failure))
            continue
        known = len(document.mistakes)
        document.check(given.get(name, {}), options, ("plugins", name))
        if len(document.mistakes) == known:
            _check_whole(document, given.get(name, {}), options, ("plugins", name))


def _check_whole(document: Document, data: Any, wanted: type[Struct], path: KeyPath) -> None:
    """Adds a mistake for what the struct refuses although each key fits its type."""
    try:
        msgspec.convert(data, wanted)
    except msgspec.ValidationError as error:
        document.mistake(path, str(error))


def _unfit(plugin_dir: Path) -> str | None:
    """Why no plugin may be loaded from there."""
    try:
        refuse_writable_by_others(plugin_dir)
    except Failure as failure:
        return str(failure)
    return None if plugin_dir.is_dir() else f"{plugin_dir} is no folder"


def _list(value: Any) -> list[Any]:
    """A list, or the one value that stands for it."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else []


def _read(file: Path) -> str:
    """The file's text.  Raises `ConfigError` if it cannot be read, trusted or decoded."""

    def refused(reason: str, line: int | None = None, column: int | None = None) -> ConfigError:
        return ConfigError([Mistake(str(file), line, column, "", reason)])

    try:
        raw = read_trusted(file, MAX_BYTES)
    except Failure as failure:
        raise refused(str(failure)) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = error.start - before.rfind(b"\n")
        raise refused("is not UTF-8 text", before.count(b"\n") + 1, column) from None
