"""`tgd ct prepare`: LiTS or KiTS in, cases to train on out."""

from __future__ import annotations

from pathlib import Path

import click

from tgd_ct.case import NORMAL
from tgd_ct.images.datasets import KITS, LITS, read_dataset
from tgd_ct.images.prepared import case_file, save_case
from tgd_kit.cli.options import COUNT, FOLDER
from tgd_kit.cli.say import say
from tgd_kit.errors import RunError
from tgd_kit.progress import progress
from tgd_kit.runs.reserve import reserve

LAYOUTS = {"lits": LITS, "kits": KITS}
LENGTH = click.FloatRange(min=0, min_open=True)


@click.command("prepare")
@click.argument("source", metavar="IN", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--layout", type=click.Choice(list(LAYOUTS)), required=True, help="How IN names its files.")
@click.option("--low", multiple=True, help="DOSE=FOLDER of images at a lower dose; as often as there are.")
@click.option("--patient", "patients", multiple=True, help="Name of a patient; all by default.")
@click.option("--spacing", type=LENGTH, nargs=3, help="Voxel size z y x in mm to resample to.")
@click.option("--shape", type=COUNT, nargs=3, help="Voxels z y x to cut out around the organ.")
def prepare_command(
    source: Path,
    out: Path,
    layout: str,
    low: tuple[str, ...],
    patients: tuple[str, ...],
    spacing: tuple[float, float, float] | None,
    shape: tuple[int, int, int] | None,
) -> None:
    """Write the patients of IN, a folder of LiTS or KiTS, as cases that all commands of `tgd ct` take.

    --low 0.05=lits_5 adds the images that `tgd ct insert --dose 0.05` made, under the same names in lits_5. Patients
    that are there already are kept.

    \b
    Example:
        tgd ct prepare lits cases --layout lits --low 0.05=lits_5
    """
    chosen, doses = LAYOUTS[layout], dict(_low(one) for one in low)
    asked = {
        "in": str(source.resolve()),
        "layout": layout,
        "low": {f"{dose:g}": str(folder.resolve()) for dose, folder in doses.items()},
        "spacing": spacing,
        "shape": shape,
    }
    names = list(patients) or list(chosen.patients(source))
    reserve(out / "prepared.json", asked, what="data set")
    missing = [name for name in names if not case_file(out, name).exists()]
    with progress("prepared patients", len(names), done=len(names) - len(missing)) as task:
        for name in missing:
            (case,) = read_dataset(
                chosen, source, patients=[name], low_dose=doses, spacing_mm=spacing, shape=shape
            )
            save_case(case, case_file(out, name))
            task.advance()
    say(f"{len(names)} cases in {out}")


def _low(given: str) -> tuple[float, Path]:
    dose, _, folder = given.partition("=")
    try:
        share = float(dose)
    except ValueError:
        share = NORMAL
    if not (folder and 0 < share < NORMAL):
        raise RunError(f"{given} is no dose with its folder.", "Write --low 0.05=FOLDER.")
    return share, Path(folder)
