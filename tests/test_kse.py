"""KSE against loops written from the papers, against the released program, and law 9."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.oracles import kse_loops as oracle
from tgdsurgery import PlanError, kse

# The package exports the function under the module's own name.
module = importlib.import_module("tgdsurgery.scoring.kse")

# Both sides compute in float64 but add in another order (1e-16); min-max stretches that by the inverse of the
# within-layer range of the entropy, here above 1e-4.
ROUNDING = 1e-9
# Rounding may split channels that tie for the least s: 0 becomes up to 1e-13 of the range (drawn weights are
# small integers, so the range is at least a few thousandths of s), and its square root up to 3e-7.
SPLIT_TIES = 1e-6


@dataclass(frozen=True)
class Case:
    """The weight of a layer and what `kse` has to know of it."""

    weight: Tensor
    groups: int = 1
    transposed: bool = False

    def score(self, **settings: object) -> Tensor:
        return kse(self.weight, groups=self.groups, transposed=self.transposed, **settings)

    def with_weight(self, weight: Tensor) -> Case:
        return Case(weight, self.groups, self.transposed)


def assert_equals_loops(case: Case, tolerance: float, k: int = 5, alpha: float = 1.0) -> None:
    weight = case.weight.detach().double().numpy()
    expected = oracle.kse_loops(weight, k=k, alpha=alpha, groups=case.groups, transposed=case.transposed)
    torch.testing.assert_close(
        case.score(k=k, alpha=alpha), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


CASES = {
    "3x3": Case(normal(12, 8, 3, 3)),
    "5x5": Case(normal(7, 4, 5, 5)),
    "1x1": Case(normal(20, 6, 1, 1)),
    "1x1 of a last layer": Case(normal(4, 6, 1, 1)),
    "1-d": Case(normal(9, 5, 3)),
    "3-d": Case(normal(8, 3, 3, 3, 3)),
    "linear": Case(normal(11, 9)),
    "linear after flatten": Case(normal(10, 6 * 4).reshape(10, 6, 4)),
    "wider than one k": Case(normal(40, 3, 3, 3)),
    "grouped": Case(normal(12, 3, 3, 3), groups=2),
    "grouped 1x1": Case(normal(24, 2, 1, 1), groups=3),
    "depthwise": Case(normal(6, 1, 3, 3), groups=6),
    "depthwise, multiplier 8": Case(normal(32, 1, 3, 3), groups=4),
    "transposed": Case(normal(6, 9, 2, 2), transposed=True),
    "transposed 1x1": Case(normal(6, 9, 1, 1), transposed=True),
    "transposed grouped": Case(normal(6, 7, 3, 3), groups=3, transposed=True),
    **{f"N={n}, {size}x{size}": Case(normal(n, 5, size, size)) for n in (1, 2, 3, 5, 6) for size in (1, 3)},
    "C=1": Case(normal(9, 1, 3, 3)),
}
LARGE = {"3x3": Case(normal(48, 20, 3, 3)), "1x1": Case(normal(64, 32, 1, 1))}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_loops(case: Case) -> None:
    assert_equals_loops(case, ROUNDING)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (3, 0.5), (100, 1.0), (5, 0.0), (5, 7.0)])
def test_settings_equal_loops(size: int, k: int, alpha: float) -> None:
    assert_equals_loops(Case(normal(12, 8, size, size)), ROUNDING, k, alpha)


@pytest.mark.parametrize("size", [1, 3])
def test_repeated_and_empty_kernels_equal_loops(size: int) -> None:
    weight = normal(14, 6, size, size)
    weight[:, 0] = 0  # a channel without weights
    weight[:, 1] = weight[0, 1]  # all kernels equal
    weight[3:11, 2] = weight[3, 2]  # more equal kernels than neighbours
    weight[5:, 3] = 0
    assert_equals_loops(Case(weight), ROUNDING)


def near_equal_kernels(spread: float = 1e-7, others: int = 0) -> Case:
    """Forty kernels that differ by a share of themselves, and others that have nothing in common."""
    near = normal(1, 6, 3, 3).double() + spread * normal(40, 6, 3, 3)
    return Case(torch.cat([near, normal(others, 6, 3, 3)]))


@pytest.mark.parametrize("size", [27, 400, 4096])
@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.05, 0.1, 0.3])
def test_kernels_in_line_lose_no_digits(size: int, spread: float) -> None:
    """The worst case for products: all terms of a square are equal, and round alike."""
    kernels = (1 + spread * torch.arange(9).double())[None, :, None].expand(1, 9, size) / 3
    expected = torch.cdist(kernels, kernels, compute_mode="donot_use_mm_for_euclid_dist")
    expected = expected.topk(4, largest=False).values.sum(2)
    torch.testing.assert_close(module.neighbour_distances(kernels, 3), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("others", [0, 10])
@pytest.mark.parametrize("spread", [1e-9, 1e-7, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1])  # around module.NEAR
def test_near_equal_kernels_equal_loops(spread: float, others: int) -> None:
    assert_equals_loops(near_equal_kernels(spread, others), ROUNDING)


def hard_kernels(count: int, size: int) -> Tensor:
    """Kernels of one channel each: random, repeated, in near ties, and far from 0 but close to each other."""
    random = normal(count, size).double()
    repeated = random[torch.arange(count) % 7]
    ties = random[:1] + 1e-7 * random
    far = 1e6 + random
    mixed = torch.where(torch.arange(count)[:, None] % 3 == 0, ties, random)
    return torch.stack([random, repeated, ties, far, mixed])


@pytest.mark.parametrize(
    "count", [1280, 1301, 1600]
)  # around LONG values per neighbour, and lengths of no groups
def test_many_kernels_find_their_nearest(count: int) -> None:
    kernels = hard_kernels(count, 4)
    assert count >= module.LONG * 5
    expected = torch.cdist(kernels, kernels, compute_mode="donot_use_mm_for_euclid_dist")
    expected = expected.topk(6, largest=False).values.sum(2)
    torch.testing.assert_close(module.neighbour_distances(kernels, 5), expected, rtol=1e-10, atol=0)


@given(st.data())
def test_candidates_hold_the_smallest(data: st.DataObject) -> None:
    k, length = data.draw(st.integers(1, 4)), data.draw(st.integers(64, 300))
    values = data.draw(hnp.arrays(np.float64, (2, length), elements=st.integers(0, 9)))
    found = module._candidates(torch.from_numpy(values), k)
    assert found.shape[1] < length
    assert torch.equal(found.sort().values[:, :k], torch.from_numpy(np.sort(values)[:, :k]))


@st.composite
def cases(draw: st.DrawFn, min_channels: int = 1) -> Case:
    """Layers of every kind; small integers, so that kernels repeat, and channels tie exactly."""
    groups = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    filters, channels = draw(st.integers(1, 9)), draw(st.integers(min_channels, 4))
    axes = (groups * channels, filters) if transposed else (groups * filters, channels)
    kernel = draw(st.sampled_from([(), (1,), (3,), (1, 1), (2, 1), (3, 3), (2, 2, 2)]))
    values = draw(hnp.arrays(np.int8, axes + kernel, elements=st.integers(-4, 4)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    return Case(torch.from_numpy(values).to(dtype), groups, transposed)


@given(case=cases(), k=st.integers(1, 7), alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_any_layer_equals_loops(case: Case, k: int, alpha: float) -> None:
    assert_equals_loops(case, SPLIT_TIES, k, alpha)


right = {
    name: getattr(module, name) for name in ("neighbour_distances", "_squared_distances", "channel_kernels")
}
PLANTED: dict[str, tuple[str, Callable[..., Tensor] | float, Case]] = {
    "L2 sparsity": ("sparsity", lambda x: x.square().sum((1, 2)), CASES["3x3"]),
    "one neighbour more": (
        "neighbour_distances",
        lambda x, k: right["neighbour_distances"](x, k + 1),
        CASES["3x3"],
    ),
    "one neighbour less": (
        "neighbour_distances",
        lambda x, k: right["neighbour_distances"](x, k - 1),
        CASES["1x1"],
    ),
    "squared distances": (
        "_squared_distances",
        lambda x, y, first: right["_squared_distances"](x, y, first).square(),
        CASES["3x3"],
    ),
    "matmul distances": ("NEAR", 0.0, near_equal_kernels()),
    "order of the weights": ("_ranked", lambda values: values, CASES["1x1"]),
    "no entropy": ("indicator", lambda s, e, alpha: s.sqrt(), CASES["3x3"]),
    "no root": ("indicator", lambda s, e, alpha: s / (1 + alpha * e), CASES["3x3"]),
    "no normalisation": ("normalise", lambda values, same: values, CASES["3x3"]),
    "filters for channels": (
        "channel_kernels",
        lambda w, groups, transposed: w.flatten(2),
        Case(normal(8, 8, 3, 3)),
    ),
    "groups ignored": (
        "channel_kernels",
        lambda w, groups, transposed: right["channel_kernels"](w).repeat(groups, 1, 1),
        CASES["grouped"],
    ),
}


@pytest.mark.parametrize(("name", "wrong", "case"), PLANTED.values(), ids=PLANTED)
def test_planted_error_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, case: Case
) -> None:
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_loops(case, SPLIT_TIES)


def test_planted_error_in_the_loops_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    correct = oracle.entropy
    monkeypatch.setattr(oracle, "entropy", lambda kernels, k: correct(kernels[1:], k))
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_loops(CASES["3x3"], SPLIT_TIES)


# Law 9


@given(case=cases(), data=st.data())
def test_order_of_filters_changes_nothing(case: Case, data: st.DataObject) -> None:
    axis = 1 if case.transposed else 0
    per_group = case.weight.shape[axis] // (1 if case.transposed else case.groups)
    order = torch.tensor(data.draw(st.permutations(range(per_group))))
    blocks = case.weight.unflatten(axis, (-1, per_group)).index_select(axis + 1, order)
    permuted = case.with_weight(blocks.flatten(axis, axis + 1))
    # Distances are added in another order.
    torch.testing.assert_close(permuted.score(), case.score(), rtol=0, atol=SPLIT_TIES)


@given(case=cases(min_channels=2), data=st.data())
def test_permuting_channels_permutes_scores(case: Case, data: st.DataObject) -> None:
    axis = 0 if case.transposed else 1
    channels = case.weight.shape[axis] // (case.groups if case.transposed else 1)
    order = torch.tensor(data.draw(st.permutations(range(channels))))
    blocks = case.weight.unflatten(axis, (-1, channels)).index_select(axis + 1, order)
    permuted = case.with_weight(blocks.flatten(axis, axis + 1))
    expected = case.score().unflatten(0, (case.groups, channels))[:, order].flatten()
    assert torch.equal(permuted.score(), expected)


@given(case=cases(), power=st.integers(-14, 10), sign=st.sampled_from([1, -1]))
def test_scaling_by_a_power_of_two_changes_nothing(case: Case, power: int, sign: int) -> None:
    assert torch.equal(case.with_weight(sign * 2.0**power * case.weight).score(), case.score())


@given(case=cases(), factor=st.floats(1e-3, 1e3), sign=st.sampled_from([1, -1]))
def test_scaling_changes_nothing(case: Case, factor: float, sign: int) -> None:
    # In float64, where scaling itself rounds least.
    weight = case.weight.double()
    scaled = case.with_weight(sign * factor * weight).score()
    torch.testing.assert_close(scaled, case.score(), rtol=0, atol=SPLIT_TIES)


@given(
    weight=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=7),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    ),
    alpha=st.sampled_from([0.0, 1.0, 1e300]),
)
def test_any_finite_weight_scores_between_0_and_1(weight: np.ndarray, alpha: float) -> None:
    scores = kse(torch.from_numpy(weight), alpha=alpha)
    assert scores.shape == (weight.shape[1],)
    assert scores.dtype == torch.float64
    assert ((scores >= 0) & (scores <= 1)).all()  # a NaN is neither
    assert scores.max() == 1


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4, 1, 1), (1, 4, 3, 3)])
@pytest.mark.parametrize("exponent", [-1073, -600, 600, 1021])
def test_squares_do_not_overflow_or_vanish(shape: tuple[int, ...], exponent: int) -> None:
    # Small integers stay exact at the very ends of float64.
    weight = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(kse(weight * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)), kse(weight))


# Degenerate layers


def ones(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_indistinguishable_channels_are_all_kept(size: int, value: float) -> None:
    assert torch.equal(kse(torch.full((7, 3, size, size), value)), ones(1, 1, 1))


def test_a_single_channel_is_kept() -> None:
    assert torch.equal(kse(normal(8, 1, 3, 3)), ones(1))


def test_equal_sparsity_leaves_the_decision_to_the_entropy() -> None:
    weight = torch.tensor([[1.0, 4.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert torch.equal(kse(weight), ones(1, 0))


def test_equal_entropy_leaves_the_decision_to_the_sparsity() -> None:
    # One filter: no neighbours, no entropy. The s of 1, 2, 5 are 0, 1/4, 1 of the way.
    assert torch.equal(kse(torch.tensor([[1.0, -2.0, 5.0]])), ones(0, 0.5, 1))


@pytest.mark.parametrize("size", [1, 3])
def test_two_filters_have_equal_entropies_whatever_the_rounding(size: int) -> None:
    weight = normal(2, 50, size, size)
    s = weight.double().abs().sum((0, 2, 3))
    expected = ((s - s.min()) / (s.max() - s.min())).sqrt()
    torch.testing.assert_close(kse(weight), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("gap", "expected"), [(1e-10, (1.0, 1.0)), (1e-8, (0.0, 1.0))])
def test_a_range_of_rounding_size_counts_as_the_same(gap: float, expected: tuple[float, float]) -> None:
    weight = torch.tensor([[1.0, 1.0 + gap]], dtype=torch.float64)
    assert torch.equal(kse(weight), ones(*expected))


# The tensor itself


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("elements", [1, 100, 1500, 5000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, case: Case, elements: int) -> None:
    whole = case.score()
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    # Products of matrices of other shapes may add in another order.
    torch.testing.assert_close(case.score(), whole, rtol=0, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers any op returned, the given weight and its views aside."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.elements = weight.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.weight:
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 500)
    with LargestTensor(case.weight) as largest:
        case.score()
    # One channel's 48 x (9 + 2) numbers; seven rows of sorted scalars, with k more on either side.
    assert 400 < largest.elements <= 500 + 10 * 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_scored_in_float64(dtype: torch.dtype) -> None:
    weight = normal(9, 5, 3, 3).to(dtype)
    assert torch.equal(kse(weight), kse(weight.double()))


def test_autocast_changes_nothing() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        scores = CASES["3x3"].score()
    assert torch.equal(scores, CASES["3x3"].score())


def test_a_parameter_is_scored_without_a_graph() -> None:
    weight = nn.Conv2d(5, 9, 3).weight
    before = weight.detach().clone()
    scores = kse(weight)
    assert not scores.requires_grad
    assert weight.requires_grad
    assert torch.equal(weight, before)


def test_memory_format_changes_nothing() -> None:
    weight = CASES["3x3"].weight
    assert torch.equal(kse(weight.to(memory_format=torch.channels_last)), kse(weight))


def test_transposed_is_the_same_layer_with_axes_swapped() -> None:
    weight = CASES["3x3"].weight
    assert torch.equal(kse(weight.transpose(0, 1), transposed=True), kse(weight))


def test_linear_is_a_1x1_conv() -> None:
    weight = CASES["linear"].weight
    assert torch.equal(kse(weight), kse(weight[:, :, None, None]))


@pytest.mark.parametrize(
    ("weight", "settings", "message"),
    [
        (torch.zeros(4), {}, r"shape \(4,\)"),
        (torch.tensor(1.0), {}, r"shape \(\)"),
        (torch.zeros(4, 0, 3), {}, r"shape \(4, 0, 3\)"),
        (torch.zeros(4, 2, dtype=torch.int8), {}, "int8"),
        (torch.zeros(4, 2, dtype=torch.complex64), {}, "complex64"),
        (torch.zeros(4, 2), {"groups": 3}, "3 groups"),
        (torch.zeros(4, 2), {"groups": 0}, "0 groups"),
        (torch.zeros(4, 6), {"groups": 3, "transposed": True}, "3 groups"),
        (torch.zeros(4, 2), {"k": 0}, "k=0"),
        (torch.zeros(4, 2), {"alpha": -1.0}, "not -1.0"),
        (torch.zeros(4, 2), {"alpha": math.nan}, "not nan"),
        (torch.zeros(4, 2), {"alpha": math.inf}, "not inf"),
        (torch.zeros(4, 2), {"variant": "code"}, "variant 'code'"),
        (torch.tensor([[1.0, math.nan]]), {}, "NaN"),
        (torch.tensor([[1.0, math.inf]]), {}, "NaN"),
        (torch.tensor([[1.0, -math.inf]], dtype=torch.bfloat16), {}, "NaN"),
    ],
)
def test_nonsense_is_refused(weight: Tensor, settings: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        kse(weight, **settings)


# The released program


def released(weight: np.ndarray) -> np.ndarray:
    """What the authors' program computes, in NumPy and with the nearest-neighbour search it calls."""
    filters, channels = weight.shape[:2]
    swapped = np.ascontiguousarray(weight.swapaxes(0, 1)).reshape(channels, filters, -1)
    misread = swapped.reshape(filters, channels, -1)
    entropies = []
    for c in range(channels):
        points = misread[:, c]
        distances, _ = NearestNeighbors(n_neighbors=6, algorithm="kd_tree").fit(points).kneighbors(points)
        density = distances[:, 1:].sum(1) / distances[:, 1:].sum()
        entropies.append(-(density * np.log2(density)).sum())

    def stretch(x: np.ndarray) -> np.ndarray:
        return (x - x.min()) / (x.max() - x.min())

    return stretch(np.sqrt(stretch(np.abs(swapped).sum((1, 2))) / (1 + stretch(np.array(entropies)))))


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (12, 5, 3, 3), (6, 9, 1, 1), (16, 16, 1, 1), (7, 3, 5, 5)])
def test_released_code_equals_its_program(shape: tuple[int, ...]) -> None:
    weight = normal(*shape).double()
    scores = kse(weight, variant="released-code")
    torch.testing.assert_close(scores, torch.from_numpy(released(weight.numpy())), rtol=0, atol=ROUNDING)
    assert (scores - kse(weight)).abs().max() > 0.01  # far beyond rounding: the quirk is there


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        (CASES["linear"], {}, "only has 2-d convs"),
        (CASES["grouped"], {}, "only has 2-d convs"),
        (CASES["transposed"], {}, "only has 2-d convs"),
        (CASES["3x3"], {"k": 4}, "only has 2-d convs"),
        (CASES["3x3"], {"alpha": 2.0}, "only has 2-d convs"),
        (Case(normal(5, 4, 3, 3)), {}, "5 filters have no 5 neighbours"),
        (Case(torch.zeros(9, 4, 3, 3)), {}, "logarithm"),
        (Case(normal(9, 1, 3, 3)), {}, "NaN"),
    ],
)
def test_released_code_says_where_it_fails(case: Case, settings: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        case.score(variant="released-code", **settings)
