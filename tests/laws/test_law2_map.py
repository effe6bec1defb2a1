"""Law 2: the channel map is what interventions find."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.laws.subjects import ACCEPTED, REFUSED
from tests.oracles.interventions import (
    Influence,
    assert_same_influence,
    channel_layers_by_intervention,
    producers_by_intervention,
)
from tests.strategies import Case, cases
from tests.topologies import FORWARD_ONLY, case_of
from tgdsurgery import ChannelMap, UnsupportedOpError, channel_map

# Maps that may hold more producers than there are (more is kept than needed), and why.
COARSER = {
    "mixture of kernels": "a kernel made from the input: all its rows count for all its channels",
}
# What looks like a layer to the oracle, but makes the kernel of a convolution: no feature maps come out of it.
NO_LAYER = {"mixture of kernels": "experts"}


def producers(found: ChannelMap) -> Influence:
    return {name: found.producers(name) for name in found.consumers}


def channel_layers(found: ChannelMap) -> Influence:
    return {name: found.channel_layers(name) for name in found.consumers}


def by_intervention(case: Case) -> Influence:
    """Producers in evaluation; layers that run in training only are added, the others must not differ."""
    evaluated, trained = producers_by_intervention(case.train(False)), producers_by_intervention(case.train())
    assert_same_influence({name: trained.get(name, ()) for name in evaluated}, evaluated)
    return {**evaluated, **trained}


def channel_layers_everywhere(case: Case, found: ChannelMap) -> Influence:
    """Channel layers in evaluation, where stored statistics count too; and of layers that run in training only."""
    trained = channel_layers_by_intervention(case.train(), found.layers)
    return {**trained, **channel_layers_by_intervention(case.train(False), found.layers)}


def assert_true_map(case: Case) -> None:
    """Raise unless the map's producers and channel layers are exactly those that interventions find."""
    found = channel_map(case.model, case.inputs)
    assert_same_influence(producers(found), by_intervention(case))
    assert_same_influence(channel_layers(found), channel_layers_everywhere(case, found))


@given(case=cases(smooth=True))
def test_random_networks(case):
    assert_true_map(case)


@pytest.mark.parametrize("name", [name for name in (*ACCEPTED, *FORWARD_ONLY) if name not in COARSER])
def test_catalogue(name):
    assert_true_map(case_of(name))


@pytest.mark.parametrize("name", COARSER)
def test_coarser_maps_miss_nothing(name):
    case = case_of(name)
    found, expected = producers(channel_map(case.model, case.inputs)), by_intervention(case)
    expected.pop(NO_LAYER[name])
    assert found.keys() == expected.keys()
    for consumer, read in expected.items():
        for want, have in zip(read, found[consumer], strict=True):
            assert {producer for producer in want if producer.layer != NO_LAYER[name]} <= have


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_describes_is_refused_by_name(name):
    case = case_of(name)
    with pytest.raises(UnsupportedOpError, match="register_rule"):
        channel_map(case.model, case.inputs)


@pytest.mark.parametrize("name", REFUSED)
def test_on_request_an_unknown_op_mixes_and_misses_nothing(name):
    case = case_of(name)
    found = channel_map(case.model, case.inputs, on_unknown="mix")
    assert found.mixed
    for consumer, read in by_intervention(case).items():
        assert all(want <= have for want, have in zip(read, found.producers(consumer), strict=True))


@given(case=cases(smooth=True))
def test_mixing_on_request_changes_nothing_where_every_op_has_a_rule(case):
    strict, mixing = (channel_map(case.model, case.inputs, on_unknown=how) for how in ("raise", "mix"))
    assert strict == mixing
