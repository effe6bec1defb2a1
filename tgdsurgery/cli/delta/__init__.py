"""`tgd delta`: the retrained rows of checkpoints as small files; no code of the network is needed."""

from __future__ import annotations

import click

from tgdsurgery.cli.delta.look import diff_command, show_command
from tgdsurgery.cli.delta.write import apply_command, merge_command, remove_command, save_command
from tgdsurgery.cli.options import debug_option


@click.group("delta")
@debug_option
def delta_command() -> None:
    """Save, apply, compare and merge the retrained rows of checkpoints.

    A delta holds what training could move by its plan, and nothing else. Checkpoints are read and written without
    the network's code.
    """


for command in (save_command, apply_command, remove_command, show_command, diff_command, merge_command):
    delta_command.add_command(command)
