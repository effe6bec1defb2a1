"""Assign the scores of input channels to the filters that produce them.

If several consumers read a channel, the highest score counts: the filter is kept if any of them needs it.
Channel layers are scored the same way, from the consumers downstream of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.records import LayerScores, Producer
from tgdsurgery.mapping.collect import ConsumerWeight, MappedModel
from tgdsurgery.scoring.kse import kse


def score(mapped: MappedModel, *, k: int = 5, alpha: float = 1.0) -> tuple[LayerScores, ...]:
    """Scores of every output channel of every layer of the map, in its order.

    Args:
        mapped: the channel map, and the weights of its consumers.
        k: nearest neighbours in the entropy (eq. 2 of the TGD paper).
        alpha: weight of the entropy (eq. 3).

    Returns:
        One `LayerScores` per layer; NaN where a channel reaches no consumer.

    Raises:
        PlanError: a weight that cannot be scored; the message names the layer.
    """
    channels = mapped.channels
    by_set = _scores_of_sets(mapped, k, alpha)
    best: dict[Producer, float] = {}
    for index in sorted(by_set, key=by_set.__getitem__):  # so that the largest score is written last
        best.update(dict.fromkeys(channels.sets[index], by_set[index]))
    gathered = {name: [math.nan] * layer.channels for name, layer in channels.layers.items()}
    for (name, channel), value in best.items():
        gathered[name][channel] = value
    return tuple(
        LayerScores(layer, torch.tensor(gathered[name], dtype=torch.float64))
        for name, layer in channels.layers.items()
    )


def _scores_of_sets(mapped: MappedModel, k: int, alpha: float) -> dict[int, float]:
    """The largest score with which any consumer reads each set of producers."""
    best: dict[int, float] = {}
    for name, ids in mapped.channels.inputs.items():
        values = consumer_scores(name, mapped.weights[name], ids, k=k, alpha=alpha)
        for index, value in zip(ids, values.tolist(), strict=True):
            best[index] = max(value, best.get(index, value))
    return best


def consumer_scores(
    name: str, consumer: ConsumerWeight, ids: Sequence[int], *, k: int, alpha: float
) -> Tensor:
    """KSE of each input channel of a conv, or of each input feature of a linear layer; (C,) float64 on the CPU.

    The features of a linear layer that come from the same producers, as many for each, are the places of
    one flattened feature map: together they are that channel's kernel.
    """
    weight = consumer.weight
    if weight.device.type == "meta":
        raise PlanError(f"The weights of {name!r} are on the meta device.", "Load the model's weights first.")
    try:
        if weight.dim() > 2:
            found = kse(weight, k=k, alpha=alpha, groups=consumer.groups, transposed=consumer.transposed)
            return found.cpu()
        channel = torch.unique(torch.tensor(ids), return_inverse=True)[1]
        sizes = torch.bincount(channel)
        if len(sizes) == len(ids) or len(sizes.unique()) > 1:
            return kse(weight, k=k, alpha=alpha).cpu()
        order = torch.argsort(channel, stable=True).to(weight.device)
        flattened = weight[:, order].unflatten(1, (len(sizes), -1))
        return kse(flattened, k=k, alpha=alpha).cpu()[channel]
    except PlanError as error:
        raise PlanError(f"Layer {name!r}: {error.problem}", error.remedy) from error
