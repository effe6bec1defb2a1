"""Where values leave torch's dispatcher and come back: what cannot be followed is refused, the rest is let go."""

from __future__ import annotations

import copy
import ctypes
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from tests.test_custom_ops import Around, fed_by
from tgdsurgery import UnsupportedOpError, channel_map, plan_tgd

OWN = [[0], [1], [2], [3]]


def unseen(kernel: Callable[..., None], *tensors: Tensor) -> None:
    """Run a kernel as one in C++ or CUDA runs: no mode of torch's sees what it does."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        kernel(*tensors)


def doubled(x: Tensor, out: Tensor) -> None:
    out.numpy()[:] = 2 * x.numpy()


class Raw(torch.autograd.Function):
    """The usual wrapper around such a kernel."""

    @staticmethod
    def forward(ctx: object, x: Tensor, out: Tensor) -> Tensor:
        unseen(doubled, x, out)
        return out

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return 2 * gradient, None


FRESH = {
    "empty_like": torch.empty_like,
    "empty": lambda x: torch.empty(x.shape),
    "empty_strided": lambda x: torch.empty_strided(x.shape, x.stride()),
    "empty_permuted": lambda x: torch.empty_permuted(x.shape, (0, 1, 2, 3)),
    "new_empty": lambda x: x.new_empty(x.shape),
    "new_empty_strided": lambda x: x.new_empty_strided(x.shape, x.stride()),
}
READ = {
    "as it is": lambda out: out,
    "in place": lambda out: out.relu_(),
    "in place, not marked by torch": lambda out: nn.functional.hardswish(out, inplace=True),
    "through a view": lambda out: out.flatten(2).view(out.shape).clone(),
    "converted": lambda out: out.double().float(),
    "beside what is known": lambda out: out + 1,
}


@pytest.mark.parametrize("made", FRESH.values(), ids=FRESH)
def test_memory_that_a_kernel_filled_unseen(made):
    with pytest.raises(UnsupportedOpError, match=r"module 'last'\) reads memory.*custom_op.*custom_ops\.md"):
        fed_by(lambda x: Raw.apply(x, made(x)))


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_such_memory_is_refused_however_it_is_read(read):
    with pytest.raises(UnsupportedOpError, match="reads memory that no op of torch has written"):
        fed_by(lambda x: read(Raw.apply(x, torch.empty_like(x))), on_unknown="mix")


class Skipping(Around):
    """The refused path is not the only one: without it the map would look whole."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y + self.op(y))


def test_a_path_beside_it_does_not_hide_it():
    with pytest.raises(UnsupportedOpError, match="reads memory"):
        plan_tgd(Skipping(lambda x: Raw.apply(x, torch.empty_like(x))), torch.randn(2, 3, 6, 6))


def filled(fill: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        fill(out := torch.empty_like(x), x)
        return out

    return run


def by_slices(out: Tensor, x: Tensor) -> None:
    out[:, :2] = x[:, :2]
    out[:, 2:] = x[:, 2:]


def within_a_border(x: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2)
    out[..., 1:-1, 1:-1] = x
    return out[..., 1:-1, 1:-1]


def by_masks(out: Tensor, x: Tensor) -> None:
    out.masked_fill_(x > 0, 1.0).masked_fill_(x <= 0, -1.0)


WRITTEN = {
    "copy_": filled(lambda out, x: out.copy_(x)),
    "slices": filled(by_slices),
    "out=": filled(lambda out, x: torch.mul(x, 2, out=out)),
    "a view": filled(lambda out, x: out.flatten(2).copy_(x.flatten(2))),
    "inside a border": within_a_border,
    "random numbers": lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5),
    "a constant": lambda x: x + torch.empty_like(x).fill_(1),
    "masks": lambda x: x + filled(by_masks)(x),
    "nothing to fill": lambda x: torch.cat([x, torch.empty(0)], 0),
    "only its shape": lambda x: x.view(torch.empty_like(x).shape) + torch.zeros_like(torch.empty_like(x)),
    "converted, then filled": lambda x: torch.empty(x.shape, dtype=torch.float64).to(x.dtype).copy_(x),
}


@pytest.mark.parametrize("op", WRITTEN.values(), ids=WRITTEN)
def test_memory_that_ops_fill_is_memory_like_any_other(op):
    assert fed_by(op) == OWN


def moved(x: Tensor, address: int) -> Tensor:
    out = torch.zeros(x.shape)
    ctypes.memmove(out.data_ptr(), address, 4 * x.numel())
    return out


LEAVING = {
    "Tensor.numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "Tensor.__array__": lambda x: torch.from_numpy(np.asarray(x) * 2),
    "Tensor.tolist": lambda x: torch.tensor(x.tolist()),
    "Tensor.__dlpack__": lambda x: torch.from_numpy(np.from_dlpack(x) * 2),
    "Tensor.data_ptr": lambda x: moved(x, x.data_ptr()),
    "Tensor.untyped_storage": lambda x: moved(x, x.untyped_storage().data_ptr()),
    "torch.tensor": lambda x: x + torch.tensor([x.mean(), x.amax()]).sum(),
    "Tensor.new_tensor": lambda x: x + x.new_tensor([x.mean(), x.amax()]).sum(),
    "Tensor.map_": lambda x: torch.zeros(x.shape).map_(x, lambda _, value: 2 * value),
}


@pytest.mark.parametrize("how", LEAVING)
def test_values_that_leave_torch(how):
    with pytest.raises(UnsupportedOpError, match=rf"the model itself.*{how}.*custom_op.*custom_ops\.md"):
        fed_by(LEAVING[how], on_unknown="mix")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_tensors_made_of_a_storage(copied):
    with pytest.raises(UnsupportedOpError, match=r"another one's storage .*Use clone\(\)"):
        fed_by(copied)


class Prepared(nn.Module):
    """What is done to the input first."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare, self.last = prepare, nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.prepare(x))


def test_the_input_must_not_leave_torch_either():
    """As a constant it would be followed exactly where it picks channels: the map would be that of one input."""
    with pytest.raises(UnsupportedOpError, match=r"Tensor\.numpy"):
        channel_map(Prepared(lambda x: torch.from_numpy(x.numpy() / 255)), torch.randn(2, 3, 4, 4))


def by_table(x: Tensor) -> Tensor:
    order = torch.tensor([3, 1, 0, 2])
    return x[:, order.tolist()] * torch.from_numpy(torch.ones(4, 1, 1).numpy())


def by_branches(x: Tensor) -> Tensor:
    if x.mean().item() > -1e9 and float(x.amax()) > -1e9 and bool(x.sum() < 1e9):
        return x
    return x.flip(1)


def test_constants_may_leave_torch():
    assert fed_by(by_table) == [[3], [1], [0], [2]]


def test_a_forward_may_branch_on_single_numbers():
    assert fed_by(by_branches) == OWN


def test_lengths_in_the_input_may_be_read():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(2, 3, 1), nn.Conv1d(3, 1, 1)

        def forward(self, x: Tensor, lengths: Tensor) -> list[Tensor]:
            y = self.first(x)
            return [self.last(y[..., :length]) for length in lengths.tolist()]

    found = channel_map(Cut(), (torch.randn(2, 2, 8), torch.tensor([4, 6])))
    assert [sorted(p.channel for p in reached) for reached in found.producers("last")] == [[0], [1], [2]]


def test_order_that_feature_maps_decide_must_not_be_read_as_a_list():
    with pytest.raises(UnsupportedOpError, match=r"Tensor\.tolist"):
        fed_by(lambda x: x[:, x.mean((0, 2, 3)).argsort().tolist()])
