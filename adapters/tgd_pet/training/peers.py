"""What else keeps a network near its old self while it learns: L2-SP, learning without forgetting, LoRA.

All three train like full fine-tuning, on the same patches and schedule. Their strengths are the usual ones
and were not tuned: a fair tuning would need the old task's data, which are gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from tgd_kit.errors import RunError
from tgd_pet.network import DnCNN

L2_SP_STRENGTH = 0.01
LWF_STRENGTH = 1.0
LORA_RANK = 8

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


def lora(network: DnCNN, train: Train) -> tuple[DnCNN, float]:
    """Low-rank updates of every convolution, by the package PEFT; batch norms keep parameters and statistics.

    The updates are merged into the weights at the end, so no weight keeps its old value.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.

    Returns:
        The tuned copy, and the share of the parameters (without the adapters) that the adapters amount to.

    Raises:
        RunError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 (optional, and heavy)
    except ImportError as error:
        raise RunError("LoRA needs the package PEFT.", "Try: pip install peft") from error
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    # What PEFT draws at random decides nothing: B starts at zero, and A's draw is part of the seed's spread.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(
            copy.deepcopy(network), LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=names)
        )
    norms = [module for module in adapted.modules() if isinstance(module, nn.BatchNorm2d)]
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    train(adapted, purpose=f"LoRA of rank {LORA_RANK}", held=norms)
    merged = cast(DnCNN, adapted.merge_and_unload().requires_grad_(True).eval())
    return merged, trained / sum(p.numel() for p in network.parameters())
