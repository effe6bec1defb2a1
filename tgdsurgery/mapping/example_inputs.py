"""Find an example input: try a few usual sizes on meta tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.arguments import Arguments, as_arguments
from tgdsurgery.core.copying import copy_model, own_randomness, refuse_unfit
from tgdsurgery.core.errors import ExampleInputError
from tgdsurgery.mapping.original import apart, functions_of, held_by

# Two samples, since batch norm cannot train on one value per channel.
BATCH = 2


SIZES = {
    0: ((),),
    1: ((64,), (256,), (1024,), (4096,), (16000,), (32,), (16,)),
    2: tuple((s, s) for s in (64, 32, 96, 128, 224, 256, 299, 384, 512, 28, 16, 8)),
    3: (*((s, s, s) for s in (16, 32, 48, 64, 96, 128, 8)), (8, 64, 64), (16, 112, 112)),
}


_RANKS = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


def arguments_for(model: nn.Module, example_inputs: object) -> Arguments:
    """The arguments to call `model` with: those given, or those that it came with (`from_onnx`), or found if None."""
    if example_inputs is None and (kept := getattr(model, "meta", {}).get("example_inputs")):
        like = next(model.parameters(), torch.empty(0))
        return as_arguments(tuple(x.to(like) if x.is_floating_point() else x.to(like.device) for x in kept))
    return find_inputs(model) if example_inputs is None else as_arguments(example_inputs)


def find_inputs(model: nn.Module) -> Arguments:
    """One input tensor the model accepts in train and eval mode: channels of its first conv, a usual size.

    The sizes are tried on a copy of the model on the meta device, which computes nothing; where the model
    has parts that cannot go there, on the model's own device.

    Raises:
        ExampleInputError: the model has no conv or linear layer to start from, or accepts none of the sizes.
    """
    refuse_unfit(model)
    channels, rank, weight = _first_layer(model)
    refusal = ""
    for device in (torch.device("meta"), weight.device):
        trial = copy_model(model)
        with contextlib.suppress(NotImplementedError, RuntimeError):
            trial.to(device)
        with apart(model, trial):
            for size in SIZES[rank]:
                shape = (BATCH, channels, *size)
                try:
                    _try(trial, torch.zeros(shape, device=device, dtype=weight.dtype))
                except Exception as error:  # Any error of the user's forward means: not this size.
                    refusal = refusal or f"{type(error).__name__}: {error}"
                    continue
                with own_randomness(model):
                    sample = torch.randn(shape, dtype=torch.float32).to(weight)
                return Arguments((sample,), {})
    raise ExampleInputError(
        f"No input of the usual sizes fits the model; shape (2, {channels}, ...) gave {refusal}.{_told(model, trial)}",
        "Pass example_inputs=, as you would call the model.",
    )


def _first_layer(model: nn.Module) -> tuple[int, int, Tensor]:
    """Input channels, spatial axes and weight of the first conv, or else of the first linear layer."""
    for module in model.modules():
        for kind, rank in _RANKS.items():
            if isinstance(module, kind):
                channels: Any = module.in_channels
                return channels, rank, next(module.parameters())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return module.in_features, 0, module.weight
    raise ExampleInputError(
        "The model has no torch.nn conv or linear layer to find an input from.",
        "Pass example_inputs=, as you would call the model.",
    )


def _told(model: nn.Module, trial: nn.Module) -> str:
    holders = ", ".join(functions_of(trial, held_by(model)))
    return f" Perhaps because {holders} uses the model itself, not its copy." if holders else ""


def _try(trial: nn.Module, sample: Tensor) -> None:
    with torch.no_grad(), own_randomness(trial):
        for training in (False, True):
            trial.train(training)(sample)
