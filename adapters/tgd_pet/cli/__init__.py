"""`tgd pet`: commands that parse, call the package and print, one file each.

Nothing heavy is imported here: a command's module, and with it torch, is loaded when the command runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

# name -> the line shown in the list; `tgd_pet.cli.<name>` holds the command as `<name>_command`
COMMANDS = {
    "simulate": "Simulate patients and their scans.",
    "train": "Train a new network on simulated studies.",
    "finetune": "Adapt a trained network to simulated studies.",
    "denoise": "Denoise a scan; DICOM or NIfTI, in and out.",
    "online": "Adapt a network to one patient from two half-count images.",
    "demo": "Simulate, train, fine-tune in four ways, and compare.",
    "study": "The paper's study on simulated scans, from one file of settings.",
}


class LazyCommand(click.Command):
    """A command that is imported when it runs, not when it is listed."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command itself, which takes this one's place from here on."""
        command: click.Command = getattr(import_module(f"{__name__}.{self.name}"), f"{self.name}_command")
        return command.make_context(info_name, args, parent, **extra)


class Commands(click.Group):
    """The commands by name, each a stand-in until it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The stand-in for a command; None if there is none of that name."""
        return LazyCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None


@click.group(cls=Commands, context_settings={"show_default": True})
def pet() -> None:
    """PET denoising: simulate scans, train, fine-tune with TGD, denoise."""
