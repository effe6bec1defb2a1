"""Names of tensors in files: prefixes that are taken off, and second names of tied tensors."""

from __future__ import annotations

import pytest
import torch

from tgdsurgery.storage.weights import bare_names, not_finite, tied_name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn, torch.complex64, torch.int64])
def test_a_tensor_with_the_bits_of_another_is_tied_to_it(dtype):
    one = torch.arange(4.0).to(dtype)
    states = [{"a.weight": one, "b.weight": one.clone()} for _ in range(2)]
    assert tied_name("b.weight", ["a.weight"], states) == "a.weight"
    states[1]["b.weight"] = one.flip(0) if dtype != torch.float8_e4m3fn else one.clone()[:2]
    assert tied_name("b.weight", ["a.weight"], states) is None


@pytest.mark.parametrize("shape", [(3,), (2, 2), (0, 3)])
def test_equal_constants_are_not_tied_unless_they_are_one_tensor(shape):
    """Biases begin at 0, and scales of norms at 1."""
    one = torch.ones(shape)
    assert tied_name("b.weight", ["a.weight"], [{"a.weight": one, "b.weight": torch.ones(shape)}]) is None
    assert tied_name("b.weight", ["a.weight"], [{"a.weight": one, "b.weight": one}]) == "a.weight"


def test_only_tensors_of_one_kind_are_tied():
    one = torch.arange(4.0)
    assert tied_name("b.bias", ["a.weight", "none.bias"], [{"a.weight": one, "b.bias": one}]) is None


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["model.a", "model.b"], ["a"], ["a", "b"]),
        (["model.a", "b"], ["a"], ["model.a", "b"]),
        (["model.a"], ["model.a"], ["model.a"]),
        (["a.a"], ["a"], ["a"]),
        (["model.a"], ["c"], ["model.a"]),
        ([], ["a"], []),
    ],
)
def test_prefixes(names, known, expected):
    assert list(bare_names({name: torch.ones(1) for name in names}, known)) == expected


def test_tensors_of_all_kinds_are_looked_at_for_infinity():
    odd = [torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.empty(0), torch.ones(2).bool()]
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.complex64, torch.uint16):
        odd.append(torch.ones(2).to(dtype))
    state = {str(number): tensor for number, tensor in enumerate(odd)}
    assert not_finite({**state, "bad": torch.tensor([1.0, torch.inf]).bfloat16()}) == ["bad"]
