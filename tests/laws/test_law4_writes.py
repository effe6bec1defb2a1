"""Law 4 where others write: to statistics, to a `state_dict`, to weights between steps. Frozen entries come back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn, optim

from tests.laws.subjects import (
    Method,
    assert_equal_tensors,
    in_both_forms,
    methods,
    operated,
    with_flags_of,
)
from tests.laws.test_law4_frozen import frozen_part
from tests.laws.test_law4_loops import assert_only_trainable_moved, subject
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of
from tgdsurgery import remove_tgd
from tgdsurgery.core.norm_statistics import STATISTICS, held_statistics

# New statistics ---------------------------------------------------------------------------------------------


def norms_of(net: nn.Module) -> list[Any]:
    """The modules that keep running statistics."""
    return [module for module in net.modules() if getattr(module, "running_mean", None) is not None]


def assigned(norm: Any) -> None:
    """As Lightning's StochasticWeightAveraging does it."""
    norm.running_mean = torch.zeros_like(norm.running_mean)
    norm.running_var = torch.ones_like(norm.running_var)
    norm.momentum = None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked *= 0


@torch.no_grad()
def in_place(norm: Any) -> None:
    for name in STATISTICS:
        getattr(norm, name).mul_(0.9).add_(0.3)


def through_data(norm: Any) -> None:
    for name in STATISTICS:
        getattr(norm, name).data.fill_(2.0)
    norm.train(norm.training)  # torch does not count such writes, so they are seen when a mode is set


def in_its_state(norm: Any) -> None:
    state = norm.state_dict()
    for name in STATISTICS:
        state[name].add_(1.0)


RENEWED: dict[str, Callable[[Any], None]] = {
    "assigned": assigned,
    "in place": in_place,
    "through data": through_data,
    "in its state": in_its_state,
    "reset": lambda norm: norm.reset_running_stats(),
    "other type and back": lambda norm: in_place(norm.bfloat16().float()) or norm.double().float(),
}


def assert_held_statistics_come_back(case: Case, method: Method, how: str, *, training: bool) -> None:
    """Raise unless they are back in the next forward, and in every state, of the network and of its copies."""
    tgd = operated(case.train(training), method)
    if how == "other type and back":  # exact in both types, so that nothing else moves
        tgd.bfloat16().float()
    before = frozen_part(tgd)
    if not norms_of(tgd):
        return
    for norm in norms_of(tgd):
        RENEWED[how](norm)
    copies = copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd))
    assert_equal_tensors(frozen_part(copies[0]), before)
    for net in (tgd, copies[1]):
        call(net, case.inputs)
        for name, mask in held_statistics(net.tgd_plan).items():
            assert torch.equal(net.get_buffer(name)[~mask], before[name]), name
        assert_equal_tensors(frozen_part(net), before)
        plain = with_flags_of(remove_tgd(net).eval(), net)
        assert_equal_tensors(leaves(call(plain, case.inputs)), leaves(call(net.eval(), case.inputs)))


@given(case=cases(), method=methods, how=st.sampled_from(sorted(RENEWED)), training=st.booleans())
def test_random_networks_whose_statistics_are_written_to(case, method, how, training):
    assert_held_statistics_come_back(case, method, how, training=training)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", RENEWED)
@pytest.mark.parametrize("name", ["residual stages", "norms with statistics"])
@in_both_forms
def test_held_statistics_come_back(name, how, training, form):
    assert_held_statistics_come_back(case_of(name), Method(phi=0.5, form=form), how, training=training)


@pytest.mark.parametrize("assign", [False, True])
@in_both_forms
def test_statistics_that_are_loaded_are_held_from_then_on(form, assign):
    _, tgd = subject(form)
    state = {name: value + 1 for name, value in tgd.state_dict().items()}
    tgd.load_state_dict(copy.deepcopy(state), assign=assign)
    for norm in norms_of(tgd):
        in_place(norm)
    for name, mask in held_statistics(tgd.tgd_plan).items():
        assert torch.equal(tgd.state_dict()[name][~mask], state[name][~mask])


@in_both_forms
def test_averages_of_statistics_gathered_anew(form):
    """Without a momentum a norm keeps the mean over all batches since the last reset."""
    case, tgd = subject(form)
    before, state = frozen_part(tgd), copy.deepcopy(tgd.state_dict())
    for norm in norms_of(tgd):
        assigned(norm)
    for scale in (1, 2):
        call(tgd, scale * case.inputs)
    mask = tgd.tgd_plan.trainable("blocks.0.1")
    assert_equal_tensors(frozen_part(tgd), before)
    mean = tgd.state_dict()["blocks.0.1.running_mean"]
    assert (mean[mask] != state["blocks.0.1.running_mean"][mask]).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@in_both_forms
def test_a_compiled_network_sees_to_its_statistics_itself(form):
    case, tgd = subject(form)
    before = frozen_part(tgd)
    expected = call(copy.deepcopy(tgd).eval(), case.inputs)
    compiled = torch.compile(tgd.eval(), backend="eager")
    call(compiled, case.inputs)
    for norm in norms_of(tgd):
        trainable = {name: getattr(norm, name).clone() for name in STATISTICS}
        in_place(norm)
        mask = tgd.tgd_plan.trainable(next(n for n, m in tgd.named_modules() if m is norm))
        with torch.no_grad():
            for name in STATISTICS:
                getattr(norm, name)[mask] = trainable[name][mask]
    assert torch.equal(call(compiled, case.inputs), expected)
    assert_equal_tensors(frozen_part(tgd), before)


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # in Lightning
@in_both_forms
def test_lightnings_weight_averaging(form):
    """Its callback puts other tensors in the place of all statistics, and gathers them anew."""
    case, tgd = subject(form)
    before, state = frozen_part(tgd), copy.deepcopy(tgd.state_dict())

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tgd

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return scalar_loss(self.net(batch))

        def configure_optimizers(self) -> optim.Optimizer:
            return optim.SGD([p for p in self.net.parameters() if p.requires_grad], 0.01)

    callback = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    options = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    task, batches = Task(), [case.inputs, 2 * case.inputs]
    lightning.Trainer(max_epochs=3, accelerator="cpu", callbacks=[callback], **options).fit(
        task, torch.utils.data.DataLoader(batches, batch_size=None)
    )
    assert_only_trainable_moved(task.net, before, state)
