"""`tgd pet`: commands that parse, call the package and print. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tgd_pet.studies import Study

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
COUNT, SEED = click.IntRange(min=1), click.IntRange(min=0)
VERSION = click.Choice(["v1", "v2"])
RUN = click.option("--out", type=FOLDER, required=True, help="Folder of the run; the same again resumes it.")


@click.group(context_settings={"show_default": True})
def pet() -> None:
    """PET denoising: simulate scans, train, fine-tune with TGD, denoise."""


@pet.command()
@click.argument("folder", type=FOLDER)
@click.option("--studies", type=COUNT, default=8, help="Number of patients.")
@click.option("--seed", type=SEED, default=0, help="Seed of the first patient; the others count on from it.")
@click.option("--body-size", type=click.Choice(["low", "high", "mixed"]), default="mixed", help="BMI.")
@click.option("--feature", type=click.Choice(["none", "bladder", "line"]), default="none", help="Hot object.")
@click.option("--realisations", type=click.IntRange(min=0), default=0, help="Repeated short scans of each.")
@click.option("--workers", type=COUNT, default=2, help="Processes.")
def simulate(folder: Path, studies: int, seed: int, workers: int, **drawn: Any) -> None:
    """Simulate patients and their scans into FOLDER, each reconstructed as v1 and as v2 images."""
    from dataclasses import replace

    from tgd_pet.studies import StudyConfig, simulate_set

    config = replace(StudyConfig.demo(), **drawn)
    paths = simulate_set(folder, range(seed, seed + studies), config, workers=workers)
    click.echo(f"{len(paths)} studies in {folder}")


def _schedule(*, rate: float) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """The options of a training run."""
    options = (
        click.option("--epochs", type=COUNT, default=20, help="A checkpoint is written after each."),
        click.option("--steps", type=COUNT, default=100, help="Optimizer steps per epoch."),
        click.option("--batch", type=COUNT, default=16, help="Patches per step."),
        click.option("--rate", type=float, default=rate, help="Highest learning rate of Adam."),
        click.option("--seed", type=SEED, default=0, help="Seed of patches, and of a new network's weights."),
    )

    def with_options(command: click.decorators.FC) -> click.decorators.FC:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


@pet.command()
@click.argument("studies", type=FOLDER)
@RUN
@click.option("--images", type=VERSION, default="v1", help="Reconstruction to train on.")
@click.option("--validation", type=FOLDER, help="Studies whose error is shown after each epoch.")
@_schedule(rate=1e-3)
def train(studies: Path, out: Path, images: str, validation: Path | None, **schedule: Any) -> None:
    """Train a new network on the simulated STUDIES of a folder."""
    from tgd_pet.network import new_network
    from tgd_pet.training import Schedule, fit

    watched = _open(validation) if validation else ()
    network = new_network(schedule["seed"])
    fit(network, _open(studies), images, out, Schedule(**schedule), validation=watched)
    click.echo(f"Wrote {out / 'network.safetensors'}")


@pet.command()
@click.argument("network", type=FILE)
@click.argument("studies", type=FOLDER)
@RUN
@click.option("--method", type=click.Choice(["tgd", "last3", "full"]), default="tgd", help="What moves.")
@click.option("--phi", type=float, default=0.3, help="Threshold of TGD.")
@click.option("--flow", type=click.Choice(["masked", "full"]), default="masked", help="Where TGD masks.")
@click.option("--images", type=VERSION, default="v2", help="Reconstruction to train on.")
@_schedule(rate=3e-4)
def finetune(
    network: Path, studies: Path, out: Path, method: Any, phi: float, flow: Any, images: str, **schedule: Any
) -> None:
    """Adapt a trained NETWORK to the simulated STUDIES of a folder."""
    from tgd_pet.finetuning import finetune as adapt
    from tgd_pet.network import load_network
    from tgd_pet.training import Schedule

    given, scans = load_network(network), _open(studies)
    tuned = adapt(given, scans, images, out, Schedule(**schedule), method=method, phi=phi, flow=flow)
    if tuned.plan is not None:
        click.echo(tuned.plan)
    click.echo(f"Trainable: {tuned.share:.1%} of the parameters")
    if tuned.kept is not None:
        click.echo(f"Frozen entries unchanged: {'yes' if tuned.kept else 'NO'}")
    click.echo(f"Wrote {out / 'network.safetensors'}")


@pet.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", type=FILE)
@click.option("--network", type=FILE, required=True, help="network.safetensors of a training run.")
def denoise(source: Path, out: Path, network: Path) -> None:
    """Denoise IN and write OUT, a NIfTI file in SUV on the grid of IN.

    IN is a folder or a zip of DICOM PET slices, converted to SUV by body weight, or a NIfTI file, which is
    taken to be in SUV already.
    """
    from rich.console import Console
    from rich.progress import Progress

    from tgd_pet.denoising import best_device
    from tgd_pet.denoising import denoise as run
    from tgd_pet.images import check_output, read_image, write_nifti
    from tgd_pet.network import load_network

    check_output(out, source)
    model = load_network(network).to(best_device())
    image = read_image(source)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("denoising slices")
        volume = run(
            model, image.axial(), progress=lambda done, of: bar.update(task, completed=done, total=of)
        )
    write_nifti(image.with_axial(volume), out)
    size = " x ".join(map(str, image.voxels.shape))
    click.echo(f"Wrote {out}: {size} voxels, largest SUV {volume.max():.1f}")


@pet.command()
@click.option("--out", type=FOLDER, default=Path("runs/demo"), help="Folder for all results.")
@click.option("--seed", type=SEED, default=0, help="Seed of patients, patches and first weights.")
@click.option("--profile", type=click.Choice(["quick", "tiny"]), default="quick", help="Size of everything.")
def demo(out: Path, seed: int, profile: str) -> None:
    """Simulate, train on v1 images, fine-tune on few v2 images in four ways, and compare.

    "quick" takes minutes on two cores; "tiny" seconds, and its networks learn nothing of use.
    """
    from rich.console import Console

    from tgd_pet.demo import PROFILES, run_demo

    results = run_demo(out, PROFILES[profile], seed=seed)
    Console().print(results.table())
    click.echo(f"Results, networks and picture are in {out}")


def _open(folder: Path) -> Sequence[Study]:
    from tgd_pet.errors import RunError
    from tgd_pet.studies import load_study

    studies = [load_study(path) for path in sorted(folder.glob("study_*.npz"))]
    if not studies:
        raise RunError(f"{folder} holds no study.", "Make some with `tgd pet simulate`.")
    return studies
