"""`tgd export`: an adapted network for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from torch import Tensor, nn

from tgdsurgery import remove_tgd
from tgdsurgery.cli.models import example_inputs, load_model
from tgdsurgery.cli.options import (
    MODEL,
    ArgumentError,
    InputShape,
    debug_option,
    input_shape_option,
    refuse_idle,
)
from tgdsurgery.cli.output import refuse_input, say
from tgdsurgery.core.atomic import check_suffix
from tgdsurgery.export.export import Exported, export_network
from tgdsurgery.export.formats import FORMATS
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.storage.checkpoints import read_state_dict, write_state_dict
from tgdsurgery.storage.delta_state import is_delta, plan_of_delta, state_with_delta
from tgdsurgery.storage.weights import bare_names, check_finite, load_weights
from tgdsurgery.surgery.tgd_network import unwrapped

FILE = click.Path(path_type=Path)


@click.command("export")
@click.argument("tuned", type=FILE)
@click.option(
    "--format", "form", type=click.Choice([*FORMATS, "safetensors"]), required=True, help="What to write."
)
@click.option("-o", "--output", type=FILE, required=True, help="The file to write.")
@click.option("--base", type=FILE, help="The base's checkpoint, where TUNED is a delta.")
@click.option("--model", metavar="MODULE:FACTORY", help=f"{MODEL} Not needed for safetensors.")
@input_shape_option
@debug_option
def export_command(
    tuned: Path,
    *,
    form: str,
    output: Path,
    base: Path | None,
    model: str | None,
    input_shape: Sequence[InputShape],
) -> None:
    """Write the network in TUNED, a checkpoint or a delta, for other programs.

    ONNX files are checked and run in onnxruntime, torch.export archives (pt2) are loaded and run again, and the
    largest difference from PyTorch is shown. Batch and space may have other sizes where the network allows it.

    \b
    Example:
      tgd export tuned.pt --model net.py:denoiser --format onnx -o tuned.onnx
    """
    refuse_input(output, tuned, base, model)
    if form == "safetensors":
        refuse_idle("Leave it out: weights alone are not run.", input_shape=input_shape)
    state = _state(tuned, base)
    check_finite(state, tuned if base is None else f"{tuned} on {base}")
    if form == "safetensors":
        check_suffix(output, ".safetensors")
        write_state_dict(state if model is None else _network(model, state, tuned).state_dict(), output)
    elif model is None:
        raise ArgumentError(f"{form} needs the network itself.", "Give --model MODULE:FACTORY.")
    else:
        net = _network(model, state, tuned)
        inputs = arguments_for(net, example_inputs(net, input_shape)).args
        say(_report(export_network(net, inputs, output, form)))
    click.echo(f"Written to {output}.", err=True)


def _state(tuned: Path, base: Path | None) -> Mapping[str, Tensor]:
    if is_delta(tuned):
        if base is None:
            raise ArgumentError(f"{tuned} is a delta.", "Give the checkpoint that it belongs on: --base.")
        names = plan_of_delta(tuned).tensors
        return state_with_delta(bare_names(read_state_dict(base), names), tuned)
    if base is not None:
        raise ArgumentError(f"{tuned} is no delta, and needs no base.", "Leave out --base.")
    return read_state_dict(tuned)


def _network(model: str, state: Mapping[str, Tensor], origin: Path) -> nn.Module:
    """The plain network with these weights."""
    net = load_model(model)
    load_weights(net, state, origin)
    return remove_tgd(net) if "tgd_plan" in vars(unwrapped(net)) else net


def _report(found: Exported) -> str:
    free = f"may have other sizes: {', '.join(found.dynamic)}" if found.dynamic else "all sizes are fixed"
    first = f"Largest difference from PyTorch: {found.largest:.3g}; {free}."
    return "\n".join([first, *(f"Fixed {note}." for note in found.notes)])
