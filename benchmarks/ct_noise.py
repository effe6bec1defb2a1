"""How noisy is the liver of simulated patients at each dose, in HU?

Each patient is projected once and scanned at each dose, and once without noise; the noise is the standard deviation of
the difference inside the liver, tumours and edge left out, the shift its mean. The liver's own texture is not in it.

Run `python -m benchmarks.ct_noise`, about a minute; the table stands in docs/ct.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
import numpy as np
from rich.progress import track
from scipy.ndimage import binary_erosion

from benchmarks.measuring import RESULTS, markdown, setting, write_json
from tgd_ct.case import DOSES, ORGAN
from tgd_ct.scanner import WATER
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.patient import SECTION_MM, blocks_along_z
from tgd_ct.simulation.phantom import random_abdomen
from tgd_kit.simulation.fbp import KERNELS

EDGE = 2  # voxels of the liver's edge that are left out
COLUMNS = ("dose", "photons a ray", *(f"noise, {kernel}" for kernel in KERNELS), "shift, standard")
Rows = Sequence[Mapping[str, Any]]


def measured(seed: int) -> list[dict[str, Any]]:
    """Noise and shift in the liver of one patient: dose, kernel, HU."""
    config, rng, rows = PatientConfig.quick(), np.random.default_rng(seed), []
    phantom = random_abdomen(rng, config.phantom_grid(), section_mm=rng.uniform(*SECTION_MM))
    lines = config.scanner.lines(blocks_along_z(phantom.hu), finer=True)
    liver = binary_erosion(phantom.target("liver") == ORGAN, iterations=EDGE)
    for dose in DOSES:
        counted = config.scanner.measured(rng, lines, dose)
        for kernel in KERNELS:
            noise = replace(config.scanner, kernel=kernel).attenuation(counted - lines)
            hu = noise[liver] * 1000 / WATER
            rows.append({"dose": dose, "kernel": kernel, "noise": float(hu.std()), "shift": float(hu.mean())})
    return rows


def table(rows: Rows) -> list[tuple[str, ...]]:
    """One row for each dose: means over patients, and the range of the noise."""
    photons = PatientConfig.quick().scanner.photons
    found = []
    for dose in DOSES:
        of_dose = [row for row in rows if row["dose"] == dose]
        noises = [[row["noise"] for row in of_dose if row["kernel"] == kernel] for kernel in KERNELS]
        shift = np.mean([row["shift"] for row in of_dose if row["kernel"] == "standard"])
        cells = [f"{np.mean(noise):.0f} ({min(noise):.0f} to {max(noise):.0f})" for noise in noises]
        found.append((f"{100 * dose:g} %", f"{dose * photons:,.0f}", *cells, f"{shift:+.0f}"))
    return found


@click.command()
@click.option("--patients", default=20, show_default=True, help="How many.")
def main(patients: int) -> None:
    """Measure, print the table, and write it down."""
    rows = [row for seed in track(range(patients)) for row in measured(seed)]
    click.echo(markdown(COLUMNS, table(rows)))
    write_json(RESULTS / "ct_noise.json", {"setting": setting("scipy", patients=patients), "rows": rows})


if __name__ == "__main__":
    main()
