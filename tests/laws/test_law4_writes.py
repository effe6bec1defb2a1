"""Law 4 where others write: to statistics, to a `state_dict`, to weights between steps. Frozen entries come back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn, optim
from torch.multiprocessing.reductions import StorageWeakRef

from tests.laws.subjects import (
    Method,
    assert_equal_tensors,
    assigned,
    gradients,
    in_both_forms,
    methods,
    norms_of,
    operated,
    with_flags_of,
)
from tests.laws.test_law4_frozen import frozen_part, trained
from tests.laws.test_law4_loops import assert_only_trainable_moved, subject
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of
from tgdsurgery import remove_tgd
from tgdsurgery.core.norm_statistics import STATISTICS, held_statistics

# New statistics ---------------------------------------------------------------------------------------------


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


def reset(norm: Any) -> None:
    """By the method that torch's norms have for it."""
    (norm.reset_running_stats if hasattr(norm, "num_batches_tracked") else lambda: in_place(norm))()


RENEWED: dict[str, Callable[[Any], None]] = {
    "assigned": assigned,
    "in place": in_place,
    "through data": through_data,
    "in its state": in_its_state,
    "reset": reset,
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


def assert_looking_is_no_writing(case: Case, method: Method) -> None:
    """Raise unless a state and an evaluation between forward and backward change nothing."""
    tgd = operated(case, method)
    other = copy.deepcopy(tgd)
    losses = [scalar_loss(call(net, case.inputs)) for net in (tgd, other)]
    if not losses[0].requires_grad:
        return  # all is frozen
    for _ in range(2):
        tgd.state_dict()
        with torch.no_grad():
            call(tgd.eval(), case.inputs)
    for loss in losses:
        loss.backward()
    assert_equal_tensors(gradients(tgd), gradients(other))


@given(case=cases(), method=methods, training=st.booleans())
def test_random_networks_looked_at_before_the_backward(case, method, training):
    assert_looking_is_no_writing(case.train(training), method)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["residual stages", "norms with statistics", "tied weights"])
@in_both_forms
def test_looked_at_before_the_backward(name, training, form):
    assert_looking_is_no_writing(case_of(name).train(training), Method(phi=0.5, form=form))


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


# A state that is written to ---------------------------------------------------------------------------------


@torch.no_grad()
def averaged(state: dict[str, Tensor]) -> None:
    """As averages of weights do it."""
    for value in state.values():
        if value.is_floating_point():
            value.mul_(0.5).add_(torch.ones_like(value), alpha=0.125)


class Subject:
    """A network, and the state that somebody took from it at first and has kept. `masks`: what may move in it."""

    def __init__(self, net: nn.Module, masks: dict[str, Tensor]) -> None:
        self.net, self.masks, self.kept = net, masks, net.state_dict()

    def write(self) -> None:
        averaged(self.net.state_dict())

    def write_to_kept(self) -> None:
        averaged(self.kept)

    def write_to_views(self) -> None:
        views = [value.detach().flatten()[::2] for value in self.net.state_dict().values()]
        torch._foreach_mul_([view for view in views if view.is_floating_point()], 2.0)

    def step(self) -> None:
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        for name, parameter in self.net.named_parameters():
            mask = self.masks.get(name, torch.zeros(()))
            parameter.grad = (
                mask.to(parameter) if mask.shape == parameter.shape else torch.ones_like(parameter)
            )
        if parameters:
            optim.SGD(parameters, lr=0.25).step()

    def load(self) -> None:
        self.net.load_state_dict({name: 0.5 * value for name, value in self.net.state_dict().items()})

    def write_and_load(self) -> None:
        state = self.net.state_dict()
        averaged(state)
        self.net.load_state_dict(state)

    def set_mode(self) -> None:
        self.net.train().eval()

    def change_type(self) -> None:
        self.net.double().float()

    def copy(self) -> None:
        self.net = copy.deepcopy(self.net)


class ByHand(Subject):
    """The plain network, whose frozen entries are put back by hand after everything but a load of others."""

    def __init__(self, net: nn.Module, masks: dict[str, Tensor]) -> None:
        super().__init__(net, masks)
        self.frozen = copy.deepcopy(net.state_dict())

    def put_back(self) -> None:
        for state in (self.net.state_dict(), self.kept):
            for name, mask in self.masks.items():
                state[name].copy_(torch.where(mask, state[name], self.frozen[name]))

    def step(self) -> None:
        for name, parameter in self.net.named_parameters():
            if name not in self.masks:
                parameter.requires_grad_(False)
        super().step()

    def load(self) -> None:
        super().load()
        self.frozen = copy.deepcopy(self.net.state_dict())

    def write_and_load(self) -> None:
        averaged(self.net.state_dict())


EVENTS = (
    "write",
    "write_to_kept",
    "write_to_views",
    "write_and_load",
    "step",
    "load",
    "set_mode",
    "change_type",
    "copy",
)


def assert_state_is_the_networks_memory(case: Case, method: Method, events: Sequence[str]) -> None:
    """Raise unless writing to the state is what it is for a plain network with the frozen entries put back."""
    tgd = operated(case, method)
    masks: dict[str, Tensor] = {**tgd.tgd_plan.parameter_masks(), **held_statistics(tgd.tgd_plan)}
    unmapped = {
        name: torch.zeros_like(case.model.get_parameter(name)).bool() for name in tgd.tgd_plan.unmapped
    }
    masks = {name: mask.contiguous() for name, mask in (masks | unmapped).items()}
    subject, plain = Subject(tgd, masks), ByHand(copy.deepcopy(case.model), masks)
    for event in events:
        for each in (subject, plain):
            getattr(each, event)()
        plain.put_back()
        call(subject.net, case.inputs)
    assert_equal_tensors(subject.net.state_dict(), plain.net.state_dict())
    for name, mask in masks.items():
        assert torch.equal(subject.kept[name][mask], plain.kept[name][mask]), name
    found, expected = (
        leaves(call(net.eval(), case.inputs)) for net in (subject.net, with_flags_of(plain.net, subject.net))
    )
    assert_equal_tensors(found, expected)


events = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=6)


@given(case=cases(), method=methods, events=events)
def test_random_networks_whose_state_is_written_to(case, method, events):
    assert_state_is_the_networks_memory(case, method, events)


@pytest.mark.parametrize(
    "name", ["residual stages", "norms with statistics", "tied weights", "spectral norm"]
)
@pytest.mark.parametrize(
    "written", [("write",), ("write_to_kept", "step", "write_to_kept"), ("step", "copy", "write")]
)
@in_both_forms
def test_state_is_the_networks_memory(name, written, form):
    assert_state_is_the_networks_memory(case_of(name), Method(phi=0.5, form=form), written)


def test_a_state_that_nobody_has_any_more_takes_no_memory():
    case, tgd = subject("compact")
    state = tgd.state_dict()
    view = state["blocks.0.0.weight"].flatten()
    own = {tensor.data_ptr() for tensor in (*tgd.parameters(), *tgd.buffers())}
    made = [StorageWeakRef(v.untyped_storage()) for v in state.values() if v.data_ptr() not in own]
    assert len(made) > 3
    del state
    call(tgd.eval(), case.inputs)
    assert [ref.expired() for ref in made].count(False) == 1
    with torch.no_grad():
        view.add_(1.0)  # the one that is left is still the network's
    mask = tgd.tgd_plan.trainable("blocks.0.0")
    before = case.model.state_dict()["blocks.0.0.weight"]
    after = tgd.state_dict()["blocks.0.0.weight"]
    assert torch.equal(after[mask], before[mask] + 1)
    assert torch.equal(after[~mask], before[~mask])


# Optimizers that write outside of their step -------------------------------------------------------------------


class ScheduleFree(optim.SGD):
    """As the optimizers of that name: averages are the weights while it evaluates, and not while it trains."""

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["kept"] = parameter.clone()
                parameter.lerp_(torch.zeros_like(parameter), 0.1)

    @torch.no_grad()
    def train(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.copy_(self.state[parameter]["kept"] + 1e-3)


def assert_writes_outside_of_steps_do_no_harm(case: Case, method: Method) -> None:
    """Raise unless frozen entries are right in every forward and state, and the others are as they were written."""
    tgd = operated(case, method)
    if not any(parameter.requires_grad for parameter in tgd.parameters()):
        return  # all is frozen
    before, masks = frozen_part(tgd), tgd.tgd_plan.parameter_masks()
    optimizer = ScheduleFree(tgd.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        trained(tgd, case, optimizer, steps=1)
        state = copy.deepcopy(tgd.state_dict())
        optimizer.eval()
        copied = copy.deepcopy(tgd)
        call(tgd.eval(), case.inputs)
        for name, parameter in tgd.named_parameters():
            if name in masks and parameter.shape == masks[name].shape:  # not in the compact form
                assert torch.equal(parameter[~masks[name]], before[name]), name
        for net in (tgd, copied):
            assert_equal_tensors(frozen_part(net), before)
            for name, value in net.state_dict().items():
                if name in masks:
                    wanted = state[name].lerp(torch.zeros_like(value), 0.1)
                    assert torch.equal(value[masks[name]], wanted[masks[name]]), name
        optimizer.train()
        tgd.train(case.model.training)


@given(case=cases(), method=methods)
def test_random_networks_whose_optimizer_writes_outside_of_its_step(case, method):
    assert_writes_outside_of_steps_do_no_harm(case.train(), method)


@pytest.mark.parametrize("flow", ["masked", "full"])
@pytest.mark.parametrize(
    "name", ["residual stages", "norms with statistics", "tied weights", "spectral norm"]
)
@in_both_forms
def test_an_optimizer_that_writes_outside_of_its_step(name, flow, form):
    assert_writes_outside_of_steps_do_no_harm(case_of(name).train(), Method(phi=0.5, flow=flow, form=form))
