"""The `tgd` command: its subcommands and adapters by name, and every error as one line.

Nothing heavy is imported here: a command's module, and with it torch, is loaded when the command runs.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from tgdsurgery.cli.options import debug_option, debugging
from tgdsurgery.core.errors import TGDError
from tgdsurgery.core.tables import MAX_MESSAGE, shortened

COMMANDS = {
    "inspect": "Score the kernels of a checkpoint, layer by layer.",
    "plan": "Decide which channels of a model are retrained.",
    "map": "Show which filters feed each input channel of a layer.",
    "sweep": "Measure which threshold costs the old task next to nothing.",
    "advise": "Try TGD and its peers for a few steps on your data, and recommend one.",
    "delta": "Save, apply, compare and merge the retrained rows of checkpoints.",
    "verify": "Prove that training changed what the plan allows, and nothing else.",
    "export": "Write an adapted network as ONNX, torch.export archive or safetensors.",
    "report": "Write one HTML page on a network: scores, wiring, plan, what moved.",
    "plot": "Draw a figure of the scores for a paper.",
}
ADAPTER_GROUP = "tgdsurgery.adapters"


class AdapterError(TGDError):
    """An adapter that cannot be loaded, mostly for a missing extra."""


class LazyCommand(click.Command):
    """A command that is imported when it runs, not when it is listed.

    Args:
        entry: where the command is; its name is the command's.
        summary: the line shown in the list of commands.
    """

    def __init__(self, entry: EntryPoint, summary: str) -> None:
        super().__init__(entry.name, help=summary)
        self.entry = entry

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command itself, which takes this one's place from here on."""
        command: click.Command = self.entry.load()
        return command.make_context(info_name, args, parent, **extra)


class TGDGroup(click.Group):
    """The built-in commands and the installed adapters; turns errors into one line with their exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Built-in commands, then adapters by name."""
        return [*COMMANDS, *sorted(_adapters())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A stand-in for the command, or None if there is none of that name."""
        if cmd_name in COMMANDS:
            entry = EntryPoint(cmd_name, f"{__name__}.{cmd_name}:{cmd_name}_command", "")
            return LazyCommand(entry, COMMANDS[cmd_name])
        adapter = _adapters().get(cmd_name)
        return adapter and LazyCommand(adapter, f"Adapter from {adapter.module.partition('.')[0]}.")

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; warnings and errors become one line each on stderr, errors an exit code too."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().invoke(ctx)
                sys.stdout.flush()  # a full disk shows here, and not when the interpreter ends
                return result
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if debugging(ctx):
                click.echo(traceback.format_exc(), err=True, nl=False)
            adapter = _adapters().get(ctx.invoked_subcommand or "")
            shown = _missing_extra(adapter, error) if adapter and isinstance(error, ImportError) else error
            click.echo(f"Error: {_one_line(shown)}", err=True)
            ctx.exit(
                shown.exit_code if isinstance(shown, TGDError) else 2 if isinstance(shown, OSError) else 1
            )


def _adapters() -> dict[str, EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group=ADAPTER_GROUP)}
    return {name: entry for name, entry in found.items() if name not in COMMANDS}


def _missing_extra(adapter: EntryPoint, error: ImportError) -> AdapterError:
    package = adapter.dist
    extras = package.metadata.get_all("Provides-Extra", []) if package else []
    name = package.name if package else adapter.module
    needed = f'"{name}[{adapter.name}]"' if adapter.name in extras else name
    return AdapterError(
        f"The adapter {adapter.name!r} cannot be loaded: {error}.", f"Try: pip install {needed}"
    )


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    click.echo(f"Warning: {shortened(' '.join(str(message).split()), MAX_MESSAGE)}", err=True)


def _one_line(error: Exception) -> str:
    if isinstance(error, TGDError):
        text = str(error)
    elif isinstance(error, OSError):
        where = error.filename or "The output"
        text = f"{where}: {error.strerror or error}. Check the path, its permissions and the disk."
    else:
        text = f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
    return shortened(" ".join(text.split()), MAX_MESSAGE)


@click.command(cls=TGDGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tgdsurgery", prog_name="tgd")
@debug_option
def main() -> None:
    """Retrain only the filters that a pretrained CNN hardly uses (Targeted Gradient Descent)."""
