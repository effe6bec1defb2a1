"""Noise2noise online learning: one patient's two half-count images teach the network each other's signal.

The two halves of a scan have the same expectation and independent noise, so the best prediction of one from
the other, by the mean squared error, is the image without noise. Each is input once and target once. What the
network learns is for this patient alone; with TGD it is the trainable rows, in a file of their own.

References:
    Chen, Asma, Chan: Targeted Gradient Descent, MICCAI 2021 (online learning: TGD_N2N and TGD^2_N2N).
    Lehtinen et al.: Noise2Noise: Learning Image Restoration without Clean Data, ICML 2018.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_only

from tgd_kit.arrays import FloatArray
from tgd_kit.training.keep_best import KeepBest
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow, Tuned, with_tgd, without_tgd
from tgd_pet.network import DnCNN
from tgd_pet.training.finetuning import triplet
from tgd_pet.training.fit import fit
from tgd_pet.training.halves import hold_out, swapped
from tgdsurgery import save_delta

OnlineMethod = Literal["tgd", "full"]
ROWS = "patient.safetensors"
PATIENCE = 4


@dataclass(frozen=True)
class Online(Tuned[DnCNN]):
    """A network after online learning.

    Args:
        before: root mean squared difference, in SUV, between one denoised half and the other half as it is, over
            the held-out slices and in both directions, of the given network. It includes the other
            half's noise, so it is far from 0 even for the best network. Still, smaller is better.
        after: that of the network after training.
    """

    before: float = float("nan")
    after: float = float("nan")

    @property
    def learnt(self) -> bool:
        """Whether training brought a gain on the held-out slices; if not, the network is the given one."""
        return self.after < self.before


def online(
    network: DnCNN,
    scan_a: FloatArray,
    scan_b: FloatArray,
    folder: Path,
    schedule: Schedule,
    *,
    phi: float = PHI,
    flow: Flow = "full",
    method: OnlineMethod = "tgd",
    patience: int = PATIENCE,
    progress: bool = True,
) -> Online:
    """Train a copy of `network` on two independent half-count images of one patient.

    A quarter of the slices, in the middle, is held out with a gap on both sides: no triplet of slices that is
    trained on shares a slice with one that is held out. Training stops when `patience` epochs in a row brought
    no smaller error there, and the weights of the epoch with the smallest one are kept, or the given ones where
    no epoch was better. The same call continues an interrupted run (see `tgd_pet.training.fit.fit`).

    Args:
        network: the base, which stays as it is: v2-net for the paper's TGD_N2N, TGD-net for its TGD^2_N2N.
        scan_a: (z, y, x) in SUV, g/mL, as `PETImage.axial` gives it.
        scan_b: the other half, on the same grid.
        folder: the run's own folder. With TGD, the retrained rows are put there as `patient.safetensors`, which
            `tgdsurgery.load_delta` puts onto the base.
        schedule: how long and how fast; the largest number of epochs.
        phi: threshold of TGD; the paper takes 0.3 to 0.4.
        flow: "full" lets gradients through frozen feature maps; "masked" stops them there, as the paper does.
        method: "tgd", or "full" for plain noise2noise, which retrains everything.
        patience: epochs without gain.
        progress: show a bar.

    Raises:
        RunError: the images cannot be halves of one scan, are too small, or the folder holds another run.
        TGDError: the network cannot be rewritten.
    """
    held_out = hold_out(scan_a, scan_b, patch=schedule.patch)
    train = partial(
        fit,
        patients=swapped(held_out),
        version="halves",
        folder=folder,
        schedule=schedule,
        callbacks=[KeepBest(held_out.error, patience, "held-out RMSE")],
        progress=progress,
    )
    before = held_out.error(network)
    if method == "full":
        tuned = copy.deepcopy(network)
        train(tuned, purpose=f"noise2noise, patience {patience}")
        return Online(tuned, share=1.0, before=before, after=held_out.error(tuned))
    rewritten = with_tgd(network, triplet(network), phi, flow)
    train(rewritten, purpose=f"TGD noise2noise, phi {phi:g}, flow {flow}, patience {patience}")
    rank_zero_only(save_delta)(rewritten, folder / ROWS)
    found = without_tgd(network, rewritten)
    after = held_out.error(found.network)
    return Online(found.network, found.share, found.kept, found.plan, before=before, after=after)
