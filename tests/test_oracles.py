"""The oracles against results worked out by hand, and against planted errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.batches import BatchedInterventions
from tests.oracles.gradients import Step, assert_same_gradients, hand_masked_step
from tests.oracles.interventions import (
    Influence,
    assert_same_influence,
    channel_layers_by_intervention,
    producers_by_intervention,
)
from tests.strategies import Case, call, scalar_loss
from tests.topologies import case_of
from tgdsurgery.core.plan import Flow, LayerPlan, NormStats, TGDPlan
from tgdsurgery.core.records import Layer, ParameterRows, Producer


def sets(text: str) -> tuple[frozenset[Producer], ...]:
    """`"a:0,b:1|"` -> two input channels: two producers reach the first, none the second."""
    found = []
    for channel in text.split("|"):
        pairs = [name.rsplit(":", 1) for name in channel.split(",") if name]
        found.append(frozenset(Producer(layer, int(number)) for layer, number in pairs))
    return tuple(found)


BY_HAND = {
    "reordered channels": {
        "stem": "||",
        "heads.0": "stem:2|stem:0|stem:1|stem:3",
        "heads.1": "stem:3|stem:2|stem:1|stem:0",
        "heads.2": "stem:3|stem:0|stem:1|stem:2",
        "heads.3": "stem:1|stem:3|stem:0|stem:2",
    },
    "chunk, swap, cat": {
        "stem": "||",
        "branch.0": "stem:3|stem:4|stem:5",
        "head": "branch.0:0|stem:0|branch.0:1|stem:1|branch.0:2|stem:2",
    },
    "slices written in place": {
        "first": "||",
        "second": "||",
        "head": "first:0|first:1|second:0|second:1||second:0",
    },
    "called twice": {
        "stem": "||",
        "body.0": "body.0:0,stem:0|body.0:1,stem:1|body.0:2,stem:2|body.0:3,stem:3",
        "head": "body.0:0|body.0:1|body.0:2|body.0:3",
    },
    "squeeze and excite": {
        "stem.0": "||",
        "squeeze": "stem.0:0|stem.0:1|stem.0:2|stem.0:3",
        "excite": "squeeze:0|squeeze:1|squeeze:2",
        "head": "excite:0,stem.0:0|excite:1,stem.0:1|excite:2,stem.0:2|excite:3,stem.0:3",
    },
    "fixed blur": {"0": "||", "4": "0:0|0:1|0:2|0:3", "7": "4:0|4:1|4:2"},
    "norms over channels": {
        "0": "||",
        "3": "0:0|0:1|0:2|0:3",
        "5": "3:0|3:1|3:2|3:3",
        "7": "5:0|5:1|5:2",
    },
    "functional convolution": {
        "own": "||",
        "kernel": "kernel:0,own:0|kernel:1,own:1|kernel:2,own:2|kernel:3,own:3",
        "head": "kernel:0|kernel:1|kernel:2|kernel:3",
    },
    "flatten head": {
        "0": "||",
        "4": "|".join(f"0:{channel}" for channel in range(4) for _ in range(9)),
        "6": "4:0|4:1|4:2|4:3|4:4",
    },
    "control flow on a value": {"stem": "||", "high": "stem:0|stem:1|stem:2", "head": "high:0|high:1|high:2"},
}


def by_hand(name: str) -> Influence:
    return {consumer: sets(text) for consumer, text in BY_HAND[name].items()}


@pytest.mark.parametrize("name", BY_HAND)
def test_interventions_find_the_map_worked_out_by_hand(name):
    assert_same_influence(producers_by_intervention(case_of(name)), by_hand(name))


@pytest.mark.parametrize("name", BY_HAND)
def test_batched_interventions_agree_with_the_map_worked_out_by_hand(name):
    case = case_of(name)
    assert BatchedInterventions(case, by_hand(name), batch=4).differences() == []


def test_batched_interventions_catch_planted_errors():
    case, true = case_of("reordered channels"), by_hand("reordered channels")
    heads = true["heads.1"]
    wrong = {
        "two channels swapped": (heads[1], heads[0], *heads[2:]),
        "a producer too many": (heads[0] | {Producer("stem", 0)}, *heads[1:]),
        "a producer too few": (frozenset(), *heads[1:]),
        "an unknown producer": (heads[0] | {Producer("body", 0)}, *heads[1:]),
    }
    for fault, planted in wrong.items():
        found = BatchedInterventions(case, {**true, "heads.1": planted}, batch=4).differences()
        assert found, fault
    others = {name: read for name, read in true.items() if name != "heads.1"}
    for planted in (others, {**true, "heads.1": heads[1:]}):
        found = BatchedInterventions(case, planted, batch=4).differences()
        assert f"only in one: heads.1, of {len(heads)} channels" in found


def test_heads_of_an_attention_read_their_own_queries_and_keys_and_one_value():
    found = producers_by_intervention(case_of("self-attention between convolutions"))
    rows = "attention.in_proj_weight"  # rows 0-3 queries, 4-7 keys, 8-11 values; two channels per head
    for channel, read in enumerate(found["attention.out_proj"]):
        first = channel // 2 * 2
        head = {first, first + 1, 4 + first, 5 + first}
        assert read == {Producer(rows, row) for row in head | {8 + channel}}


def norm_layer(name: str, channels: int) -> Layer:
    rows = tuple(ParameterRows(f"{name}.{kind}", (channels,)) for kind in ("weight", "bias"))
    statistics = (f"{name}.running_mean", f"{name}.running_var")
    return Layer(name, "channel", "BatchNorm2d", channels, rows, statistics)


def test_interventions_find_the_carriers_worked_out_by_hand():
    layers = {"0.1": norm_layer("0.1", 3), "1": norm_layer("1", 6)}
    layers["3"] = Layer("3", "channel", "PReLU", 1, (ParameterRows("3.weight", (1,)),))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.PixelUnshuffle(2), nn.Conv2d(12, 6, 1)),
        nn.BatchNorm2d(6),
        nn.ChannelShuffle(2),
        nn.PReLU(),
        nn.Conv2d(6, 1, 1),
    )
    found = channel_layers_by_intervention(Case(model.eval(), torch.randn(2, 2, 4, 4)), layers)
    expected = {
        "0.0": sets("|"),
        "0.3": sets("|".join(f"0.1:{channel}" for channel in range(3) for _ in range(4))),
        "4": sets("|".join(f"1:{channel},3:0" for channel in (0, 3, 1, 4, 2, 5))),
    }
    assert_same_influence(found, expected)


def test_an_intervention_on_carriers_changes_no_other_layer_and_leaves_the_case_as_it_was():
    case = case_of("norms with statistics")
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    found = channel_layers_by_intervention(case, {"8": norm_layer("8", 3)})
    assert found["9"] == sets("8:0|8:1|8:2")
    assert not any(any(read) for consumer, read in found.items() if consumer != "9")
    assert all(torch.equal(before[name], value) for name, value in case.model.state_dict().items())


@pytest.mark.parametrize("name", BY_HAND)
def test_two_swapped_channels_in_a_map_are_caught(name):
    planted = by_hand(name)
    consumer = max(planted, key=lambda key: len(set(planted[key])))
    first, second, *rest = sorted(range(len(planted[consumer])), key=lambda c: not planted[consumer][c])
    order = list(range(len(planted[consumer])))
    if planted[consumer][first] == planted[consumer][second]:  # two positions of one flattened channel
        second = rest[-1]
    order[first], order[second] = second, first
    planted[consumer] = tuple(planted[consumer][channel] for channel in order)
    with pytest.raises(AssertionError, match=consumer):
        assert_same_influence(producers_by_intervention(case_of(name)), planted)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_producer_dropped_from_a_map_is_caught(name):
    planted = by_hand(name)
    consumer, *_ = (key for key, read in planted.items() if any(read))
    channel, *_ = (c for c, read in enumerate(planted[consumer]) if read)
    read = list(planted[consumer])
    read[channel] = frozenset(sorted(read[channel])[1:])
    planted[consumer] = tuple(read)
    with pytest.raises(AssertionError, match=consumer):
        assert_same_influence(producers_by_intervention(case_of(name)), planted)


def test_a_consumer_missing_from_a_map_is_caught():
    planted = by_hand("fixed blur")
    del planted["4"]
    with pytest.raises(AssertionError, match="4"):
        assert_same_influence(producers_by_intervention(case_of("fixed blur")), planted)


def linear(name: str, inputs: int, outputs: int) -> Layer:
    rows = (ParameterRows(f"{name}.weight", (outputs, inputs)), ParameterRows(f"{name}.bias", (outputs,)))
    return Layer(name, "filter", "Linear", outputs, rows, modules=(name,), channel_axis=-1)


def plan_of(
    entries: dict[Layer, tuple[bool, ...]], *, flow: Flow = "masked", norm_stats: NormStats = "hold"
) -> TGDPlan:
    made = tuple(LayerPlan(layer, (None,) * layer.channels, mask) for layer, mask in entries.items())
    return TGDPlan(0.3, None, 5, 1.0, flow, norm_stats, made)


def three_linear_layers() -> tuple[Case, list[Layer]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)).double()
    return Case(model, torch.randn(4, 2, dtype=torch.float64)), [
        linear("0", 2, 3),
        linear("1", 3, 3),
        linear("2", 3, 2),
    ]


def loss_gradient(output: Tensor) -> Tensor:
    weights = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
    return weights + 2 * output / output.numel()


# Both sides are a handful of float64 products in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


@pytest.mark.parametrize("flow", ["masked", "full"])
def test_masked_gradients_of_three_linear_layers_equal_the_chain_rule(flow):
    case, layers = three_linear_layers()
    masks = ((True, False, True), (False, True, True), (False, False))
    found = hand_masked_step(case, plan_of(dict(zip(layers, masks, strict=True)), flow=flow))
    x, model = case.inputs, case.model
    m0, m1 = torch.tensor(masks[0]), torch.tensor(masks[1])
    h0 = model[0](x)
    h1 = model[1](h0)
    g2 = loss_gradient(model[2](h1))  # the last layer is frozen whole: no mask, the loss reaches the others
    g1 = g2 @ model[2].weight
    g0 = (g1 * m1 if flow == "masked" else g1) @ model[1].weight
    expected = {
        "0.weight": (g0 * m0).T @ x,
        "0.bias": (g0 * m0).sum(0),
        "1.weight": (g1 * m1).T @ h0,
        "1.bias": (g1 * m1).sum(0),
        "2.weight": torch.zeros_like(model[2].weight),
        "2.bias": torch.zeros_like(model[2].bias),
    }
    assert found.gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found.gradients[name], gradient, **CLOSE)


@pytest.mark.parametrize("flow", ["masked", "full"])
@pytest.mark.parametrize("layer", [0, 1])
def test_one_filter_unmasked_is_caught(flow, layer):
    case, layers = three_linear_layers()
    masks = [(True, False, True), (False, True, True), (False, False)]
    right = hand_masked_step(case, plan_of(dict(zip(layers, masks, strict=True)), flow=flow))
    masks[layer] = (True, True, True)
    wrong = hand_masked_step(case, plan_of(dict(zip(layers, masks, strict=True)), flow=flow))
    with pytest.raises(AssertionError, match="not close"):
        assert_same_gradients(wrong.gradients, right.gradients)
    # The mask of its own layer is there to be seen in any flow, whatever else it changes upstream.
    with pytest.raises(AssertionError, match="not close"):
        assert_same_gradients(*({f"{layer}.weight": g.gradients[f"{layer}.weight"]} for g in (wrong, right)))


def test_a_gradient_that_is_off_by_a_millionth_is_caught():
    case, layers = three_linear_layers()
    right = hand_masked_step(case, plan_of({layers[0]: (True, True, False)}))
    wrong = {name: gradient.clone() for name, gradient in right.gradients.items()}
    wrong["0.weight"][0, 0] *= 1 + 1e-6
    with pytest.raises(AssertionError, match=r"0\.weight"):
        assert_same_gradients(wrong, right.gradients)


def test_the_two_flows_differ_before_the_last_partly_frozen_layer_and_agree_in_it():
    case, layers = three_linear_layers()
    plan = plan_of(dict(zip(layers, ((True,) * 3, (False, True, True), (False,) * 2), strict=True)))
    masked = hand_masked_step(case, plan).gradients
    full = hand_masked_step(case, dataclasses.replace(plan, flow="full")).gradients
    assert torch.equal(masked["1.weight"], full["1.weight"])
    assert not torch.allclose(masked["0.weight"], full["0.weight"])


def norm_step(norm_stats: NormStats, *, training: bool) -> tuple[Case, Step]:
    torch.manual_seed(0)
    case = case_of("norms with statistics").double()
    case = Case(nn.Sequential(case.model[0], case.model[8:9][0]), case.inputs).train(training)
    case.model[1] = nn.BatchNorm2d(4, dtype=torch.float64).train(training)
    for tensor in (case.model[1].running_mean, case.model[1].weight, case.model[1].bias):
        tensor.data.normal_()
    case.model[1].running_var.uniform_(0.5, 2)
    plan = plan_of({norm_layer("1", 4): (True, False, True, False)}, flow="full", norm_stats=norm_stats)
    return case, hand_masked_step(case, _with_module(plan))


def _with_module(plan: TGDPlan) -> TGDPlan:
    entry = plan.entries[0]
    layer = dataclasses.replace(entry.layer, modules=(entry.layer.name,), channel_axis=-3)
    return dataclasses.replace(plan, entries=(dataclasses.replace(entry, layer=layer),))


def test_held_statistics_are_those_of_evaluation_for_frozen_channels_only():
    case, found = norm_step("hold", training=True)
    stored = call(case.train(False).model, case.inputs)
    fresh_model = case.train(True).model
    fresh = call(fresh_model, case.inputs)
    # The oracle writes the formula out; torch scales and shifts in one step.
    torch.testing.assert_close(found.output[:, [1, 3]], stored[:, [1, 3]], rtol=1e-12, atol=1e-12)
    assert torch.equal(found.output[:, [0, 2]], fresh[:, [0, 2]])
    before, after = dict(case.model.named_buffers()), found.buffers
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(after[name][[1, 3]], before[name][[1, 3]])
        assert torch.equal(after[name][[0, 2]], dict(fresh_model.named_buffers())[name][[0, 2]])
        assert not torch.equal(after[name][[0, 2]], before[name][[0, 2]])


@pytest.mark.parametrize(("norm_stats", "training"), [("batch", True), ("hold", False)])
def test_statistics_are_torchs_own_where_nothing_is_held(norm_stats, training):
    case, found = norm_step(norm_stats, training=training)
    plain = case.train(training).model
    output = call(plain, case.inputs)
    scalar_loss(output).backward()
    assert torch.equal(found.output, output)
    assert all(torch.equal(found.buffers[name], value) for name, value in plain.named_buffers())
    assert torch.equal(found.gradients["1.weight"][[0, 2]], plain[1].weight.grad[[0, 2]])


def test_a_layer_that_is_no_module_has_its_parameters_masked_and_not_its_output():
    case = case_of("layer scale and broadcast bias").double()
    scale = Layer("gamma", "channel", "Parameter", 4, (ParameterRows("gamma", (4,)),))
    rows = (ParameterRows("body.weight", (4, 4, 3, 3)),)
    body = Layer("body", "filter", "Conv2d", 4, rows, modules=("body",), channel_axis=-3)
    found = hand_masked_step(case, plan_of({scale: (True, False, False, True), body: (True,) * 4})).gradients
    plain = case.train(False).model
    scalar_loss(call(plain, case.inputs)).backward()
    assert torch.equal(found["gamma"], plain.gamma.grad * torch.tensor([1, 0, 0, 1]))
    assert torch.equal(found["body.weight"], plain.body.weight.grad)
