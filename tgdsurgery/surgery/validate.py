"""Does the plan fit the model? Every misfit is found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tgdsurgery.core.copying import refuse_unfit
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.norm_statistics import norm_of
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.records import Layer
from tgdsurgery.surgery.tgd_network import unwrapped


def refuse(model: nn.Module, plan: TGDPlan) -> None:
    """Check everything first, and raise one error that lists all problems."""
    if unwrapped(model) is not model:
        raise RewriteError(
            f"The model is wrapped in {type(model).__name__}.",
            "Apply TGD to the network inside, and wrap the result.",
        )
    refuse_unfit(model)
    if misfits := list(_misfits(model, plan)):
        shown = "; ".join(misfits[:5]) + ("; ..." if len(misfits) > 5 else "")
        raise RewriteError(f"The plan does not fit the model: {shown}.", "Make the plan from this model.")


def _misfits(model: nn.Module, plan: TGDPlan) -> Iterator[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = tensors_of(model)
    for layer in layers_of(plan):
        yield from (f"no module {name!r}" for name in layer.modules if name not in modules)
        shapes = {rows.name: rows.shape for rows in layer.parameters}
        shapes |= dict.fromkeys(layer.statistics, (layer.channels,))
        for name, shape in shapes.items():
            if name not in tensors:
                yield f"no {name!r}"
            elif tuple(tensors[name].shape) != shape:
                yield f"{name!r} has shape {tuple(tensors[name].shape)}, planned {shape}"
    for entry in plan.entries if plan.norm_stats == "hold" else ():
        if entry.layer.statistics and not all(entry.mask):
            yield from _not_held(entry.layer)


def _not_held(layer: Layer) -> Iterator[str]:
    """Why the statistics of the layer's frozen channels cannot be held."""
    if norm_of(layer) is None:
        yield f"the statistics of {layer.name!r} belong to no norm module (use norm_stats='batch')"
    elif not layer.modules:
        yield f"no axis of what {layer.name!r} returns is that of its statistics (use norm_stats='batch')"


def layers_of(plan: TGDPlan) -> list[Layer]:
    """All layers of the plan."""
    return [entry.layer for entry in plan.entries]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, under all of their names."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}
