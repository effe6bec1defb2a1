"""`tgd delta save`, `apply`, `remove` and `merge`: those that write a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import click

from tgdsurgery.cli.delta.checkpoint import read_checkpoints, refuse_unplanned
from tgdsurgery.cli.delta.look import size
from tgdsurgery.cli.options import ArgumentError, debug_option
from tgdsurgery.cli.output import refuse_input, say
from tgdsurgery.core.bits import differs
from tgdsurgery.core.plan import TGDPlan, check_share
from tgdsurgery.storage.delta import checked, made, taken_off
from tgdsurgery.storage.delta_entries import entries_of, movable_values, with_values
from tgdsurgery.storage.delta_file import SUFFIX, read_delta, write_delta
from tgdsurgery.storage.delta_merge import Overlap, merged
from tgdsurgery.storage.plan_file import read_plan

FILE = click.Path(path_type=Path)


def parse_condition(value: str) -> tuple[str, str]:
    """The tag and the text of `ManufacturerModelName=Discovery MI`."""
    tag, equals, text = value.partition("=")
    if not equals:
        raise ArgumentError(
            f"{value!r} is not a condition.", 'Write TAG=VALUE, as in "ManufacturerModelName=Discovery MI".'
        )
    return tag.strip(), text.strip()


def _output(name: str, text: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option("-o", "--output", type=FILE, required=True, metavar=name, help=text)


@click.command("save")
@click.argument("base", type=FILE)
@click.argument("tuned", type=FILE)
@click.option(
    "--plan",
    "plan_file",
    type=FILE,
    required=True,
    help="What was trained: JSON of `tgd plan`, or a delta, whose plan is taken.",
)
@_output("DELTA", "The delta, a .safetensors file.")
@click.option(
    "--when",
    "conditions",
    type=parse_condition,
    metavar="TAG=VALUE",
    multiple=True,
    help="A DICOM tag that a scan must have for the delta to be chosen; repeatable.",
)
@click.option(
    "--reversible", is_flag=True, help="Store the base's rows, too, for `tgd delta remove`: twice the size."
)
@debug_option
def save_command(
    *,
    base: Path,
    tuned: Path,
    plan_file: Path,
    output: Path,
    conditions: Sequence[tuple[str, str]],
    reversible: bool,
) -> None:
    """Write what was retrained in TUNED, a checkpoint trained from BASE.

    Refused if anything that the plan freezes differs between the two.

    \b
    Example:
        tgd delta save base.pt tuned.pt --plan plan.json -o patient.safetensors
    """
    refuse_input(output, base, tuned, plan_file)
    plan = _plan(plan_file)
    before, after = read_checkpoints(plan.tensors, base, tuned)
    for checkpoint in (before, after):
        refuse_unplanned(checkpoint, plan)
    old = entries_of(before.state, plan)
    delta = made(
        entries_of(after.state, plan), plan, before=old, when=dict(conditions), reversible=reversible
    )
    write_delta(delta, output)
    if not any(differs(values, delta.values[name]) for name, values in movable_values(old).items()):
        click.echo(f"Warning: {tuned} is {base} to the bit: the delta changes nothing.", err=True)
    say(size(delta, output))
    click.echo(f"Written to {output}.", err=True)


@click.command("apply")
@click.argument("base", type=FILE)
@click.argument("delta", type=FILE)
@_output("TUNED", "The adapted checkpoint.")
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="0 is the base, 1 the adapted network."
)
@debug_option
def apply_command(*, base: Path, delta: Path, output: Path, scale: float) -> None:
    """Write the checkpoint that DELTA makes of BASE; bit for bit the one that was saved.

    \b
    Example:
        tgd delta apply base.pt patient.safetensors -o tuned.pt
    """
    refuse_input(output, base, delta)
    check_share("--scale", scale)
    found = read_delta(delta)
    (checkpoint,) = read_checkpoints(found.base, base)
    entries = checked(entries_of(checkpoint.state, found.plan), found, delta)
    checkpoint.write(with_values(checkpoint.state, entries, found.values, scale), output)
    click.echo(f"Written to {output}.", err=True)


@click.command("remove")
@click.argument("tuned", type=FILE)
@click.argument("delta", type=FILE)
@_output("BASE", "The base as a checkpoint.")
@debug_option
def remove_command(*, tuned: Path, delta: Path, output: Path) -> None:
    """Take DELTA off TUNED: write the base, bit for bit.

    Needs a delta saved with --reversible, and a checkpoint with just its rows.

    \b
    Example:
        tgd delta remove tuned.pt patient.safetensors -o base.pt
    """
    refuse_input(output, tuned, delta)
    found = read_delta(delta)
    (checkpoint,) = read_checkpoints(found.base, tuned)
    entries = entries_of(checkpoint.state, found.plan)
    checkpoint.write(with_values(checkpoint.state, entries, taken_off(entries, found, delta)), output)
    click.echo(f"Written to {output}.", err=True)


@click.command("merge")
@click.argument("base", type=FILE)
@click.argument("deltas", type=FILE, nargs=-1, required=True)
@_output("DELTA", "The merged delta, a .safetensors file.")
@click.option(
    "--overlap",
    type=click.Choice(get_args(Overlap)),
    default="refuse",
    show_default=True,
    help="Whose value counts where two deltas write other values to one entry.",
)
@debug_option
def merge_command(*, base: Path, deltas: Sequence[Path], output: Path, overlap: Overlap) -> None:
    """Write one delta that does what all DELTAS over BASE do.

    \b
    Example:
        tgd delta merge base.pt scanner.safetensors patient.safetensors -o both.safetensors
    """
    refuse_input(output, base, *deltas)
    found = {path: read_delta(path) for path in deltas}
    (checkpoint,) = read_checkpoints(found[deltas[0]].base, base)
    delta = merged(checkpoint.state, found, overlap)
    write_delta(delta, output)
    say(size(delta, output))
    click.echo(f"Written to {output}.", err=True)


def _plan(path: Path) -> TGDPlan:
    return read_delta(path).plan if path.suffix.lower() == SUFFIX else read_plan(path)
