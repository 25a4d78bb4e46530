# SPDX-License-Identifier: BSD-3-Clause
"""Holds the plugins and calls their handlers.

Each plugin draws random numbers from a stream of its own, so that a handler that was ended
halfway does not shift those of the others.  A handler that raises leaves none of its commands.
"""

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from msgspec import Struct, ValidationError, convert, to_builtins

from mptcpd_ebpf.core.commands import AnyCommand, Command
from mptcpd_ebpf.core.configuration import PluginSpec
from mptcpd_ebpf.core.plugin import Commands, Context, Plugin
from mptcpd_ebpf.core.trials import AwayPath, Trials

Handler = Callable[..., Commands]
"""A function of `Plugin`, by which notices name the handler of a plugin."""

MakePlugin = Callable[[PluginSpec], Plugin]
"""The plugin that a spec describes."""

RunHandler = Callable[[int, Callable[[], list[AnyCommand]]], list[AnyCommand]]
"""Runs handler call number N and returns its commands, or raises what ended it."""


class Fault(Struct, frozen=True, kw_only=True):
    """A handler call that failed."""

    plugin: str
    handler: str
    error: str
    call: int
    """Its number since the start."""


class HandlerFailed(Exception):  # noqa: N818 - it carries a fault, and is no error of the engine
    """A plugin raised, or returned something that is no command."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error)
        self.fault = fault


def run_handler(_call: int, handler: Callable[[], list[AnyCommand]]) -> list[AnyCommand]:
    """Runs a handler without a time limit."""
    return handler()


def checked(command: object) -> AnyCommand:
    """A plugin's command with every field of its declared type; raises TypeError if it is none."""
    if not isinstance(command, AnyCommand):
        raise TypeError(f"{command!r} is no command")
    try:
        return convert(to_builtins(command), type(command))
    except ValidationError as error:
        raise TypeError(f"{command!r}: {error}") from None


_HANDLERS: tuple[Handler, ...] = tuple(
    function
    for name, function in vars(Plugin).items()
    if callable(function) and not name.startswith("_") and name != "Options"
)


class PluginHost:
    """The plugins at work, in order of priority."""

    def __init__(self, make: MakePlugin, run: RunHandler) -> None:
        self._make = make
        self._run = run
        self._seed = 0
        self._calls = 0
        self._random: dict[str, Random] = {}
        self._handlers: dict[str, dict[Handler, Handler]] = {}
        """By plugin: the handlers that it overrides, bound to it."""
        self.specs: dict[str, PluginSpec] = {}
        self.plugins: dict[str, Plugin] = {}
        """All that are configured, by name."""
        self.excluded: dict[str, Fault] = {}

    def seed(self, seed: int) -> None:
        """Starts the random numbers of all plugins."""
        self._seed = seed
        self._random.clear()

    def survivors(self, specs: Iterable[PluginSpec]) -> dict[str, Plugin]:
        """The plugins that can go on under `specs` with what they know.

        Their code and options are as before, and they have a `reloaded` handler.
        """
        return {
            spec.name: self.plugins[spec.name]
            for spec in specs
            if self.specs.get(spec.name) == spec
            and spec.name not in self.excluded
            and self.overrides(self.plugins[spec.name], Plugin.reloaded)
        }

    def install(self, specs: Iterable[PluginSpec], kept: Mapping[str, Plugin]) -> None:
        """Replaces the plugins by those of `specs`; `kept` go on."""
        found = [(spec, kept.get(spec.name) or self._make(spec)) for spec in specs]
        found.sort(key=lambda pair: -pair[1].priority)
        self.specs = {spec.name: spec for spec, _ in found}
        self.plugins = {spec.name: plugin for spec, plugin in found}
        self._handlers = {name: _overridden(plugin) for name, plugin in self.plugins.items()}
        self.excluded.clear()

    def overrides(self, plugin: Plugin, handler: Handler) -> bool:
        return handler in self._handlers.get(plugin.name, ())

    def away(self) -> list[AwayPath]:
        """The paths that plugins have abandoned: those of a plugin's attribute `trials`."""
        found = [
            getattr(plugin, "trials", None)
            for name, plugin in self.plugins.items()
            if name not in self.excluded
        ]
        return [path for each in found if isinstance(each, Trials) for path in each.away()]

    def random(self, name: str) -> Random:
        if name not in self._random:
            self._random[name] = Random(f"{self._seed} {name}")
        return self._random[name]

    def call(
        self, plugin: Plugin, handler: Handler, ctx: Context, args: tuple[Any, ...]
    ) -> list[AnyCommand]:
        """Calls a handler, if the plugin overrides it, and returns its commands.

        Raises HandlerFailed, or KeyboardInterrupt.
        """
        method = self._handlers[plugin.name].get(handler)
        if method is None:
            return []
        self._calls += 1
        number = self._calls
        try:
            return self._run(number, lambda: _commands(method(ctx, *args)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin is foreign code: whatever it raises stays here
            raise HandlerFailed(
                Fault(
                    plugin=plugin.name,
                    handler=handler.__name__,
                    error=f"{type(error).__name__}: {error}",
                    call=number,
                )
            ) from error


def _commands(returned: Iterable[Command] | None) -> list[AnyCommand]:
    return [checked(command) for command in returned or ()]


def _overridden(plugin: Plugin) -> dict[Handler, Handler]:
    return {
        handler: getattr(plugin, handler.__name__)
        for handler in _HANDLERS
        if getattr(type(plugin), handler.__name__) is not handler
    }
