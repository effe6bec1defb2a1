"""`tgd advise`: short trials on the user's data, before the long training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click
from torch import nn

from tgdsurgery import advise
from tgdsurgery.cli.models import FactoryError, call_evaluation, failures_of, load_function, load_model
from tgdsurgery.cli.options import ArgumentError, checkpoint_option, debug_option, model_option
from tgdsurgery.cli.output import progress, refuse_input, say
from tgdsurgery.core.atomic import replacing

FUNCTION = "MODULE:FUNCTION"


def parse_shares(value: str) -> list[float]:
    """The numbers in `0.1,0.25`."""
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ArgumentError(f"{value!r} are not shares.", "Write them like 0.1,0.25,0.5") from None


@click.command("advise")
@model_option
@checkpoint_option
@click.option(
    "--batches",
    required=True,
    metavar=FUNCTION,
    help="Takes nothing, returns pairs of inputs and targets of the new data.",
)
@click.option("--loss", required=True, metavar=FUNCTION, help="Takes outputs and targets, returns the loss.")
@click.option(
    "--evaluate-old",
    required=True,
    metavar=FUNCTION,
    help="Takes the network, returns one number for the old task: an error, the lower the better.",
)
@click.option("--evaluate-new", required=True, metavar=FUNCTION, help="The same for the new task.")
@click.option(
    "--shares",
    type=parse_shares,
    metavar="SHARE,SHARE,...",
    default="0.1,0.25,0.5",
    show_default=True,
    help="Budgets of TGD to try.",
)
@click.option("--steps", type=int, default=30, show_default=True, help="Steps of each trial.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the advice here, as JSON.")
@debug_option
def advise_command(
    *,
    model: str,
    checkpoint: Path | None,
    batches: str,
    loss: str,
    evaluate_old: str,
    evaluate_new: str,
    shares: Sequence[float],
    steps: int,
    output: Path | None,
) -> None:
    """Try TGD, full fine-tuning and LoRA for a few steps on your data, and say what they speak for.

    \b
    Example:
        tgd advise --model net.py:denoiser --checkpoint pretrained.pt \\
            --batches task.py:batches --loss task.py:loss \\
            --evaluate-old task.py:old_error --evaluate-new task.py:new_error
    """
    refuse_input(output, checkpoint, model, batches, loss, evaluate_old, evaluate_new)
    net = load_model(model, checkpoint)
    # Opened first, so that a path that cannot be written to fails before the work.
    with nullcontext() if output is None else replacing(output) as temporary:
        advice = advise(
            net,
            _batches(batches),
            _loss(loss),
            evaluate_old=_evaluation(evaluate_old),
            evaluate_new=_evaluation(evaluate_new),
            shares=shares,
            steps=steps,
            progress=partial(progress, what="Trying"),
        )
        if temporary is not None:
            temporary.write_text(advice.to_json(), encoding="utf-8")
    say(str(advice))
    if output is not None:
        click.echo(f"Written to {output}.", err=True)


def _batches(reference: str) -> Iterator[object]:
    """What the user's function of batches returns, one after the other."""
    with failures_of(reference, "It is called without arguments, and returns pairs of inputs and targets."):
        found = load_function(reference)()
        if not isinstance(found, Iterable):
            raise FactoryError(
                f"{reference} returned {type(found).__name__}.",
                "It has to return pairs of inputs and targets.",
            )
        yield from found


def _loss(reference: str) -> Callable[[object, object], object]:
    function = load_function(reference)
    remedy = (
        "It is the loss: called with the outputs and the targets of a batch, it returns a scalar tensor that depends "
        "on the outputs."
    )

    def loss(outputs: object, targets: object) -> object:
        with failures_of(reference, remedy):
            return function(outputs, targets)

    return loss


def _evaluation(reference: str) -> Callable[[nn.Module], object]:
    return partial(call_evaluation, reference, load_function(reference))
