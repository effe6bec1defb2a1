"""`tgd sweep`: which phi costs the old task next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from torch import nn

from tgdsurgery import sweep_phi
from tgdsurgery.cli.models import call_evaluation, example_inputs, load_function, load_model
from tgdsurgery.cli.options import (
    ArgumentError,
    InputShape,
    checkpoint_option,
    debug_option,
    input_shape_option,
    model_option,
    override_option,
)
from tgdsurgery.cli.output import refuse_input, refuse_one_file, say
from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.plan import Override
from tgdsurgery.sweep.result import plot_format

PHIS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"


def parse_phis(value: str) -> list[float]:
    """The numbers in `0.1,0.2,0.3`."""
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ArgumentError(f"{value!r} is no list of thresholds.", "Write them like 0.1,0.2,0.3") from None


@click.command("sweep")
@model_option
@checkpoint_option
@click.option(
    "--evaluate",
    "evaluation",
    required=True,
    metavar="MODULE:FUNCTION",
    help="Takes the network, returns one number for the old task: an error, the lower the better.",
)
@input_shape_option
@click.option(
    "--phis",
    type=parse_phis,
    metavar="PHI,PHI,...",
    default=PHIS,
    show_default=True,
    help="The thresholds to try.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.05,
    show_default=True,
    help="Largest relative rise of the number that is accepted.",
)
@override_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the result here, as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the result here (.png, .svg, .pdf).")
@debug_option
def sweep_command(
    *,
    model: str,
    checkpoint: Path | None,
    evaluation: str,
    input_shape: Sequence[InputShape],
    phis: Sequence[float],
    tolerance: float,
    overrides: Sequence[tuple[str, Override]],
    output: Path | None,
    plot: Path | None,
) -> None:
    """Leave out the channels below each phi, see what the old task says, and propose the largest harmless phi.

    \b
    Example:
        tgd sweep --model net.py:denoiser --checkpoint pretrained.pt \\
            --evaluate task.py:error
    """
    for written in (output, plot):
        refuse_input(written, checkpoint, model, evaluation)
    refuse_one_file({"-o": output, "--plot": plot})
    net, evaluate = load_model(model, checkpoint), load_function(evaluation)
    if plot is not None:
        _check_picture(plot)
    # Opened first, so that a path that cannot be written to fails before the work.
    with nullcontext() if output is None else replacing(output) as temporary:
        with _Measured(evaluation, evaluate, networks=1 + len(phis)) as measured:
            result = sweep_phi(
                net,
                measured,
                phis,
                example_inputs(net, input_shape),
                overrides=dict(overrides),
                tolerance=tolerance,
            )
        if temporary is not None:
            temporary.write_text(result.to_json(), encoding="utf-8")
        if plot is not None:
            result.plot(plot)
    say(str(result))
    for written in (path for path in (output, plot) if path is not None):
        click.echo(f"Written to {written}.", err=True)


def _check_picture(plot: Path) -> None:
    plot_format(plot)
    if not plot.parent.is_dir():
        raise ArgumentError(f"The folder of {plot} does not exist.", "Make it first.")


class _Measured:
    """The user's function, with a bar on stderr that moves at each call; its failures become one line.

    Args:
        name: what the user called it.
        evaluate: the function.
        networks: how often it will be called at most.
    """

    def __init__(self, name: str, evaluate: Callable[[nn.Module], object], networks: int) -> None:
        self.name, self.evaluate = name, evaluate
        console = Console(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("Measuring", total=networks)

    def __enter__(self) -> _Measured:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def __call__(self, network: nn.Module) -> object:
        try:
            return call_evaluation(self.name, self.evaluate, network)
        finally:
            self.bar.advance(self.task)
