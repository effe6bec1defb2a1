"""The losses of task-oriented denoising.

Axis letters: B batch, C classes, then a slice (H, W) or a volume (D, H, W); images in HU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from monai.losses.dice import DiceLoss
from pydantic import Field
from torch import Tensor, nn

from tgd_ct.networks.critic import Critic, Lipschitz
from tgd_ct.networks.generator import HU_SCALE

CLIP = 0.01  # largest weight of a clipped critic, as published
PENALTY = 10.0  # Gulrajani et al.

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Weights:
    """What a denoiser is trained to make small, and how much each part counts; 0 leaves a part out.

    ``L_G = gan L_GAN + task L_task + mse L_MSE + perceptual L_perceptual``

    Args:
        mse: mean squared error, in units of (400 HU)^2, the published window. The published code has 0.5.
        gan: the critic's mean score of denoised images. Published: 1.
        task: 1 - Dice of the segmenter on denoised images. Meant to be 1; the published code leaves it out.
        perceptual: mean squared error of an extractor's features (VGG-WGAN).
        lipschitz: how the critic is kept smooth.

    Reference: Zhang et al., "Task-Oriented Low-Dose CT Image Denoising", MICCAI 2021.
    """

    mse: Weight = 1.0
    gan: Weight = 0.0
    task: Weight = 0.0
    perceptual: Weight = 0.0
    lipschitz: Lipschitz = "clip"


def mse_loss(denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error in units of (400 HU)^2."""
    return nn.functional.mse_loss(denoised / HU_SCALE, clean / HU_SCALE)


_dice_loss = DiceLoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - the mean Dice of the classes, each over the whole batch, with squared denominators, as published.

    The rest is a class, too: without it nothing keeps the others from filling the image.

    Args:
        logits: (B, C, ...).
        labels: (B, 1, ...), integers.
    """
    loss: Tensor = _dice_loss(logits, labels)
    return loss


def task_loss(segmenter: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How badly the segmenter does on these images; volumes slice by slice.

    The gradient flows through the segmenter to the images. Whether the segmenter itself moves is up to its caller.

    Args:
        segmenter: slices (B, 1, H, W) in HU to logits.
        images: (B, 1, H, W) or (B, 1, D, H, W) in HU.
        labels: of the same shape.
    """
    return segmentation_loss(segmenter(_slices(images)), _slices(labels))


def perceptual_loss(extractor: nn.Module, denoised: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference of features; volumes slice by slice.

    Args:
        extractor: slices (B, 1, H, W) in HU to features.
        denoised: (B, 1, H, W) or (B, 1, D, H, W) in HU.
        clean: of the same shape.

    Reference: Yang et al., IEEE TMI 2018, equation 5.
    """
    return nn.functional.mse_loss(extractor(_slices(denoised)), extractor(_slices(clean)))


def _slices(volumes: Tensor) -> Tensor:
    """(B, 1, D, H, W) as (B D, 1, H, W); slices as they are."""
    return volumes.flatten(0, 2)[:, None] if volumes.ndim == 5 else volumes


def critic_loss(critic: Critic, clean: Tensor, denoised: Tensor, lipschitz: Lipschitz) -> Tensor:
    """L_D: the critic learns small scores for normal dose and large ones for denoised images.

    Args:
        critic: scores images, (B,).
        clean: images of normal dose.
        denoised: of the same shape; no gradient flows into them.
        lipschitz: with "penalty", `gradient_penalty` is added.
    """
    denoised = denoised.detach()
    loss: Tensor = critic(clean).mean() - critic(denoised).mean()
    if lipschitz == "penalty":
        loss = loss + PENALTY * gradient_penalty(critic, clean, denoised)
    return loss


def gradient_penalty(critic: nn.Module, clean: Tensor, denoised: Tensor) -> Tensor:
    """How far the norm of the critic's gradient is from 1, at random points between pairs of images.

    The gradient is by the image in units of 400 HU, as the critic sees it.

    Reference: Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, equation 3.
    """
    share = torch.rand(len(clean), *[1] * (clean.ndim - 1), device=clean.device)
    between = (share * clean + (1 - share) * denoised).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms = (HU_SCALE * gradient).flatten(1).norm(dim=1)
    penalty: Tensor = (norms - 1).square().mean()
    return penalty


@torch.no_grad()
def clip(critic: nn.Module) -> None:
    """Limit every weight of the critic to +-0.01."""
    for parameter in critic.parameters():
        parameter.clamp_(-CLIP, CLIP)
