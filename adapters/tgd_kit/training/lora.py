"""Low-rank updates of convolutions, by the package PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tgd_kit.errors import RunError

RANK = 8

Network = TypeVar("Network", bound=nn.Module)


def lora(network: Network, train: Callable[[nn.Module, Sequence[nn.Module]], None]) -> tuple[Network, float]:
    """Train low-rank updates of every convolution; batch norms keep parameters and statistics.

    The updates are merged into the weights at the end, so no weight keeps its old value.

    Args:
        network: stays as it is.
        train: trains the network with updates in place; gets the norms to keep in eval mode, too.

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
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    # What PEFT draws at random decides nothing: B starts at zero, and A's draw is part of the seed's spread.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(
            copy.deepcopy(network), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
        )
    norms = [module for module in adapted.modules() if isinstance(module, _BatchNorm)]
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    train(adapted, norms)
    merged = cast(Network, adapted.merge_and_unload().requires_grad_(True).eval())
    return merged, trained / sum(p.numel() for p in network.parameters())
