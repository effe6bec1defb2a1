"""Work on a copy and with a private random state, so that the caller's model stays as it is."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tgdsurgery.core.errors import CaptureError, RewriteError
from tgdsurgery.core.torch_private import tree_leaves

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_model(model: ModuleT) -> ModuleT:
    """A deep copy, also of models that keep computed tensors as attributes.

    `copy.deepcopy` refuses a tensor that carries autograd history, such as the weight that the old
    `torch.nn.utils.weight_norm` leaves in a module; the copy gets its value without the history.

    Raises:
        RewriteError: some part of the model cannot be copied.
    """
    try:
        try:
            return copy.deepcopy(model, _empty(model))
        except RuntimeError:
            return copy.deepcopy(model, _empty(model) | _computed(model))
    except Exception as error:  # whatever the classes of the model's parts raise
        raise RewriteError(
            f"The model cannot be copied: {type(error).__name__}: {error}.",
            "Remove or detach the attribute that copy.deepcopy(model) fails on.",
        ) from error


def _empty(model: nn.Module) -> dict[int, Any]:
    """Copies of the empty dicts of hooks: `copy.deepcopy` spends most of its time on those."""
    found = (value for module in model.modules() for value in vars(module).values())
    return {id(value): OrderedDict() for value in found if type(value) is OrderedDict and not value}


def _computed(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that have a history."""
    found = (leaf for module in model.modules() for leaf in tree_leaves(vars(module)))
    return {
        id(leaf): leaf.detach().clone() for leaf in found if isinstance(leaf, Tensor) and not leaf.is_leaf
    }


def refuse_unfit(model: nn.Module) -> None:
    """Raise if it cannot be used: no module, TorchScript, TGD was applied to it, or it has no weights yet."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"The model is of type {type(model).__name__}.", "Give a torch.nn.Module.")
    if any("tgd_plan" in vars(module) for module in model.modules()):
        raise RewriteError("TGD has been applied to this model already.", "Undo it with remove_tgd first.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"The module {name or 'given'!r} is TorchScript, which cannot be looked into.",
                "Give the nn.Module it was made from.",
            )
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise CaptureError(
                f"The module {name or 'given'!r} ({type(module).__name__}) has parameters that are not initialised.",
                "Call the model once first, on an input like those that it will be used on.",
            )


@contextlib.contextmanager
def own_randomness(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run with a fixed seed, and give the generators of torch, Python and NumPy back as they were."""
    used = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    accelerators = [device for device in used if device.type not in ("cpu", "meta")]
    kind = accelerators[0].type if accelerators else "cuda"
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(accelerators, device_type=kind):
            # Not torch.manual_seed: where CUDA is not in use, it queues a call each time, and the queue never empties.
            torch.default_generator.manual_seed(seed)
            if accelerators:
                torch.get_device_module(kind).manual_seed_all(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed)
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
