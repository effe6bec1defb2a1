"""Law 9: a plan's scores are the KSE of the consumers, gathered onto what feeds them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.laws.subjects import ACCEPTED, PHI
from tests.strategies import Case, cases
from tests.topologies import case_of
from tgdsurgery import ChannelMap, Producer, TGDPlan, channel_map, kse, plan_tgd

# Kernels that are not a parameter as it lies in the state: computed, transposed, or another layer's.
COMPUTED = {
    *("standardised weights", "weight norm", "spectral norm", "old weight and spectral norm"),
    *("orthogonal weights", "parametrizations of one's own", "mixture of kernels", "tied weights"),
}


def scores_by_hand(model: nn.Module, found: ChannelMap) -> dict[Producer, float]:
    """For every channel that reaches a consumer, the largest KSE with which any consumer reads it."""
    best: dict[Producer, float] = {}
    for consumer in found.consumers:
        layer = found.layers[consumer]
        weight = model.get_parameter(layer.parameters[0].name).detach()
        sets = [a | b for a, b in zip(found.producers(consumer), found.channel_layers(consumer), strict=True)]
        for read, score in zip(sets, scores_of_inputs(weight, sets, layer), strict=True):
            for producer in read:
                best[producer] = max(score, best.get(producer, score))
    return best


def scores_of_inputs(weight: Tensor, sets: list[frozenset[Producer]], layer) -> list[float]:
    if weight.ndim > 2:
        return kse(weight, groups=layer.groups, transposed=layer.transposed).tolist()
    # The features of one flattened channel have the same producers: together they are its kernel.
    places = {read: [i for i, other in enumerate(sets) if other == read] for read in sets}
    sizes = {len(indices) for indices in places.values()}
    if len(sizes) > 1:
        return kse(weight).tolist()
    kernels = torch.stack([weight[:, indices] for indices in places.values()], 1)
    by_set = dict(zip(places, kse(kernels).tolist(), strict=True))
    return [by_set[read] for read in sets]


def assert_true_scores(case: Case, plan: TGDPlan) -> None:
    """Raise unless every score is the one gathered by hand, and every decision the one phi makes."""
    expected = scores_by_hand(case.model, channel_map(case.model, case.inputs))
    seen = set()
    for entry in plan.entries:
        for channel, (score, trainable) in enumerate(zip(entry.scores, entry.mask, strict=True)):
            producer = Producer(entry.layer.name, channel)
            want = expected.get(producer)
            assert (score is None) == (want is None), producer
            # Features gathered into a kernel in another order are summed in another order: rounding.
            assert score is None or abs(score - want) < 1e-9, producer
            below = score is not None and score < plan.phi
            assert trainable == (below and not entry.layer.frozen_by_user)
            seen.add(producer)
    assert expected.keys() <= seen


@given(case=cases(), phi=st.sampled_from([0.3, 0.0, 0.7, 1.0]))
def test_random_networks(case, phi):
    assert_true_scores(case, plan_tgd(case.model, case.inputs, phi=phi))


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in COMPUTED])
def test_catalogue(name):
    case = case_of(name)
    assert_true_scores(case, plan_tgd(case.model, case.inputs, phi=PHI))


@given(case=cases(), power=st.integers(-3, 3))
def test_scaling_the_layers_changes_no_score(case, power):
    scaled = copy.deepcopy(case.model)
    for module in scaled.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            module.weight.data.mul_(2.0**power)  # exact, so the scores are too
    plans = [plan_tgd(model, case.inputs) for model in (case.model, scaled)]
    assert plans[0].entries == plans[1].entries


@given(case=cases(), phis=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_higher_threshold_trains_no_fewer(case, phis):
    low, high = (plan_tgd(case.model, case.inputs, phi=phi) for phi in sorted(phis))
    for name in low.layers:
        assert not (low.trainable(name) & ~high.trainable(name)).any()
    assert plan_tgd(case.model, case.inputs, phi=0).share == 0


@given(case=cases(), budget=st.floats(0, 1))
def test_a_budget_is_kept(case, budget):
    plan = plan_tgd(case.model, case.inputs, budget=budget)
    filters = [entry for entry in plan.entries if entry.layer.role == "filter"]
    trainable, total = (sum(f(e) for e in filters) for f in (LayerEntries.trainable, LayerEntries.all))
    assert trainable <= budget * total


class LayerEntries:
    """Entries of a layer, counted from its mask."""

    @staticmethod
    def all(entry) -> int:
        return sum(rows.numel for rows in entry.layer.parameters)

    @staticmethod
    def trainable(entry) -> int:
        mask = torch.tensor(entry.mask)
        return sum(int(mask[rows.owner()].sum()) for rows in entry.layer.parameters)
