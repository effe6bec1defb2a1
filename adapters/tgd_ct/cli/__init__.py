"""`tgd ct`: commands that parse, call the package and print, one file each.

Nothing heavy is imported here: a command's module, and with it torch, is loaded when the command runs.
"""

from __future__ import annotations

import click

from tgd_kit.cli.lazy import LazyGroup

# name -> the line shown in the list; `tgd_ct.cli.<name>` holds the command as `<name>_command`
COMMANDS = {
    "simulate": "Simulate patients with tumours, and their scans at several doses.",
    "insert": "Insert low dose into a normal-dose CT.",
    "prepare": "Turn LiTS or KiTS into cases to train on.",
    "pretrain": "Train a segmenter, the task that denoising is for.",
    "train": "Train a denoiser: by MSE, against a critic, for a task.",
    "adapt": "Adapt a trained denoiser to another dose, kernel or task.",
    "denoise": "Denoise a scan; DICOM or NIfTI, in and out.",
    "segment": "Segment an organ and its tumours in a scan.",
    "evaluate": "Measure denoisers and segmenters on the same cases.",
    "demo": "Simulate, train for a task, adapt with TGD, and compare.",
    "study": "TOD-Net against its rivals, and adapted, from one file of settings.",
}


@click.group(cls=LazyGroup, package=__name__, summaries=COMMANDS, context_settings={"show_default": True})
def ct() -> None:
    """Low-dose CT: simulate, insert dose, denoise for a task, adapt with TGD."""
