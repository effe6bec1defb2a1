"""`tgd pet`: commands that parse, call the package and print, one file each.

Nothing heavy is imported here: a command's module, and with it torch, is loaded when the command runs.
"""

from __future__ import annotations

import click

from tgd_kit.cli.lazy import LazyGroup

# name -> the line shown in the list; `tgd_pet.cli.<name>` holds the command as `<name>_command`
COMMANDS = {
    "simulate": "Simulate patients and their scans.",
    "train": "Train a new network on simulated patients.",
    "finetune": "Adapt a trained network to simulated patients.",
    "denoise": "Denoise a scan; DICOM or NIfTI, in and out.",
    "online": "Adapt a network to one patient from two half-count images.",
    "demo": "Simulate, train, fine-tune in four ways, and compare.",
    "study": "The paper's study on simulated scans, from one file of settings.",
}


@click.group(cls=LazyGroup, package=__name__, summaries=COMMANDS, context_settings={"show_default": True})
def pet() -> None:
    """PET denoising: simulate scans, train, fine-tune with TGD, denoise."""
