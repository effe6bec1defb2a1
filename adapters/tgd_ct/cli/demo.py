"""`tgd ct demo`: TOD-Net in small, and its adaptation with TGD."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from tgd_ct.demo import PROFILES, run_demo
from tgd_kit.cli.options import FOLDER, SEED
from tgd_kit.cli.say import say


@click.command("demo")
@click.option("--out", type=FOLDER, default=Path("runs/ct-demo"), help="Folder for all results.")
@click.option("--seed", type=SEED, default=0, help="Seed of patients, samples and first weights.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", help="Size of everything.")
def demo_command(out: Path, seed: int, profile: str) -> None:
    """Simulate, train a segmenter, train TOD-Net with its loss, adapt it to a lower dose in three ways, and compare.

    "quick" takes minutes on two cores; "tiny" takes seconds, and its networks learn nothing useful.

    \b
    Example:
        tgd ct demo
    """
    results = run_demo(out, PROFILES[profile], seed=seed)
    Console().print(results.table())
    say(f"Results, networks and picture are in {out}")
