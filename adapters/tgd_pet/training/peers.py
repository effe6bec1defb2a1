"""What else keeps a network near its old self while it learns: L2-SP, and learning without forgetting.

Both train like full fine-tuning, on the same patches and schedule. Their strengths are the usual ones
and were not tuned: a fair tuning would need the old task's data, which are gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tgd_pet.network import DnCNN

L2_SP_STRENGTH = 0.01
LWF_STRENGTH = 1.0

Train = Callable[..., None]  # `tgd_pet.training.fit.fit` with data, folder and schedule set


def l2_sp(network: DnCNN, train: Train) -> tuple[DnCNN, float]:
    """Full fine-tuning with a spring from every parameter to its first value.

    Adds ``L2_SP_STRENGTH / 2 * sum (w - w0)^2`` to the loss (in SUV^2). All parameters have an old value here, so the
    paper's second term, for a new head, does not apply.

    Reference: Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", ICML 2018, equation 2.

    Returns:
        The tuned copy, and the share of the parameters that were trainable.
    """
    tuned = copy.deepcopy(network)
    anchors = [parameter.detach().clone() for parameter in tuned.parameters()]

    def penalty(noisy: Tensor, denoised: Tensor) -> Tensor:
        pairs = zip(tuned.parameters(), anchors, strict=True)
        squares = ((now - then.to(now.device)).square().sum() for now, then in pairs)
        return L2_SP_STRENGTH / 2 * sum(squares, start=torch.zeros((), device=noisy.device))

    train(tuned, purpose=f"L2-SP, strength {L2_SP_STRENGTH:g}", penalty=penalty)
    return tuned, 1.0


def learning_without_forgetting(network: DnCNN, train: Train) -> tuple[DnCNN, float]:
    """Full fine-tuning that also imitates the old network on the new images.

    Adds ``LWF_STRENGTH`` times the mean squared difference between the outputs of both networks: distillation for a
    network that regresses. With strength 1 the target is halfway between the truth and the old output.

    Reference: Li and Hoiem, "Learning without Forgetting", ECCV 2016, equation 1; the distance between
    outputs replaces the cross-entropy of classifiers.

    Returns:
        The tuned copy, and the share of the parameters that were trainable.
    """
    tuned, old = copy.deepcopy(network), copy.deepcopy(network).eval().requires_grad_(False)

    def penalty(noisy: Tensor, denoised: Tensor) -> Tensor:
        with torch.no_grad():
            remembered = old.to(noisy.device)(noisy)
        return LWF_STRENGTH * nn.functional.mse_loss(denoised, remembered)

    train(tuned, purpose=f"learning without forgetting, strength {LWF_STRENGTH:g}", penalty=penalty)
    return tuned, 1.0
