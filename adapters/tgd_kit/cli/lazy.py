"""A group whose commands are imported when they run, not when they are listed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyCommand(click.Command):
    """Stands for a command until it runs.

    Args:
        name: of the command; its module `<package>.<name>` holds it as `<name>_command`.
        package: of the module.
        summary: the line shown in the list of commands.
    """

    def __init__(self, name: str, package: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._where = f"{package}.{name}", f"{name}_command"

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command itself, which takes this one's place from here on."""
        module, name = self._where
        command: click.Command = getattr(import_module(module), name)
        return command.make_context(info_name, args, parent, **extra)


class LazyGroup(click.Group):
    """Commands by name, one module each: `@click.group(cls=LazyGroup, package=__name__, summaries=...)`.

    Args:
        package: holds the modules.
        summaries: name of each command, in the order shown, to its line in the list.
    """

    def __init__(self, *args: Any, package: str, summaries: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._package, self._summaries = package, dict(summaries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order given."""
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The stand-in for a command; None if there is none of that name."""
        summary = self._summaries.get(cmd_name)
        return None if summary is None else LazyCommand(cmd_name, self._package, summary)
