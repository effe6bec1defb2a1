"""`tgd pet demo`: the paper's comparison in small."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from tgd_kit.cli.options import FOLDER, SEED
from tgd_kit.cli.say import say
from tgd_pet.demo import PROFILES, run_demo


@click.command("demo")
@click.option("--out", type=FOLDER, default=Path("runs/demo"), help="Folder for all results.")
@click.option("--seed", type=SEED, default=0, help="Seed of patients, patches and first weights.")
@click.option("--profile", type=click.Choice(list(PROFILES)), default="quick", help="Size of everything.")
def demo_command(out: Path, seed: int, profile: str) -> None:
    """Simulate, train on v1 images, fine-tune on few v2 images in four ways, and compare.

    "quick" takes minutes on two cores, with networks half as wide as the paper's; "tiny" takes seconds, and its
    networks learn nothing useful.

    \b
    Example:
        tgd pet demo
    """
    results = run_demo(out, PROFILES[profile], seed=seed)
    Console().print(results.table())
    say(f"Results, networks and picture are in {out}")
