"""Assign the scores of input channels to the filters that produce them.

If several consumers read a channel, the highest score counts: the filter is kept if any of them needs it.
Channel layers are scored the same way, from the consumers downstream of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.records import LayerScores, Producer
from tgdsurgery.mapping.collect import ConsumerWeight, MappedModel
from tgdsurgery.scoring.kse import kse

# The name, weight, groups and layout (transposed or not) of a consumer -> (C,) scores of its input channels.
Scorer = Callable[[str, Tensor, int, bool], Tensor]


def by_kse(k: int = 5, alpha: float = 1.0) -> Scorer:
    """KSE.

    Args:
        k: nearest neighbours in the entropy (eq. 2 of the TGD paper).
        alpha: weight of the entropy (eq. 3).
    """

    def scored(name: str, weight: Tensor, groups: int, transposed: bool) -> Tensor:
        try:
            return kse(weight, k=k, alpha=alpha, groups=groups, transposed=transposed).cpu()
        except PlanError as error:
            raise PlanError(f"Layer {name!r}: {error.problem}", error.remedy) from error

    return scored


def score(mapped: MappedModel, scorer: Scorer | None = None) -> tuple[LayerScores, ...]:
    """Scores of every output channel of every layer of the map, in its order.

    Args:
        mapped: the channel map, and the weights of its consumers.
        scorer: what scores a consumer's input channels; None for KSE.

    Returns:
        One `LayerScores` per layer; NaN where a channel reaches no consumer.

    Raises:
        PlanError: a weight that cannot be scored; the message names the layer.
    """
    channels = mapped.channels
    by_set = _scores_of_sets(mapped, scorer or by_kse())
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


def _scores_of_sets(mapped: MappedModel, scorer: Scorer) -> dict[int, float]:
    """The largest score with which any consumer reads each set of producers."""
    best: dict[int, float] = {}
    for name, ids in mapped.channels.inputs.items():
        values = consumer_scores(name, mapped.weights[name], ids, scorer)
        for index, value in zip(ids, values.tolist(), strict=True):
            best[index] = max(value, best.get(index, value))
    return best


def consumer_scores(name: str, consumer: ConsumerWeight, ids: Sequence[int], scorer: Scorer) -> Tensor:
    """Scores of each input channel of a conv, or of each input feature of a linear layer; (C,) float64 on the CPU.

    The features of a linear layer that come from the same producers, as many for each, are the places of
    one flattened feature map: together they are that channel's kernel.
    """
    weight = consumer.weight
    if weight.device.type == "meta":
        raise PlanError(f"The weights of {name!r} are on the meta device.", "Load the model's weights first.")
    if weight.dim() > 2:
        return scorer(name, weight, consumer.groups, consumer.transposed)
    channel = torch.unique(torch.tensor(ids), return_inverse=True)[1]
    sizes = torch.bincount(channel)
    if len(sizes) == len(ids) or len(sizes.unique()) > 1:
        return scorer(name, weight, 1, False)
    order = torch.argsort(channel, stable=True).to(weight.device)
    flattened = weight[:, order].unflatten(1, (len(sizes), -1))
    return scorer(name, flattened, 1, False)[channel]
