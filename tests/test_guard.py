"""The optimizer guard and the audit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from tests.test_rewrite import MASKS, Net, TiedConvs, X, layer_of, plan_for
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.surgery.apply import layers_form
from tgdsurgery.surgery.remove import remove_tgd
from tgdsurgery.training.audit import verify
from tgdsurgery.training.optimizers import guard


class Muon(Optimizer):
    """Like many published optimizers, makes zeros of missing gradients, and then decays every weight."""

    def __init__(self, params: object) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.mul_(0.99).sub_(0.003 * parameter.grad.sign())


OPTIMIZERS: dict[str, Callable[[object], Optimizer]] = {
    "SGD": lambda p: SGD(p, 0.01, weight_decay=0.1),
    "momentum": lambda p: SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True),
    "Adam": lambda p: Adam(p, 0.01, weight_decay=0.1),
    "fused": lambda p: Adam(p, 0.01, weight_decay=0.1, fused=True),
    "AdamW": lambda p: AdamW(p, 0.01, foreach=True),
    "RMSprop": lambda p: RMSprop(p, 0.01, momentum=0.9, weight_decay=0.1),
    "Adagrad": lambda p: Adagrad(p, 0.01, weight_decay=0.1),
    "NAdam": lambda p: NAdam(p, 0.01, weight_decay=0.1),
    "LBFGS": lambda p: LBFGS(p, 0.1, max_iter=3),
    "Muon-like": Muon,
}


def rewritten(**settings: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = Net()
    return net, layers_form(net, plan_for(net, MASKS, **settings), X)


def train(net: nn.Module, optimizer: Optimizer, steps: int = 3) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    for step in range(steps):
        torch.manual_seed(step)
        if isinstance(optimizer, LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def used(make: Callable[[object], Optimizer], plain: nn.Module, net: nn.Module) -> Optimizer:
    """An optimizer of `net` with the state of one that has trained the plain network."""
    old, optimizer = make(copy.deepcopy(plain).parameters()), make(net.parameters())
    for parameter in old.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    old.step()
    optimizer.load_state_dict(old.state_dict())
    return optimizer


def assert_trained(before: dict[str, Tensor], net: nn.Module) -> None:
    """Frozen entries are where they were, and trainable ones are not."""
    audit = verify(before, net, net.tgd_plan)
    assert audit.ok, str(audit)
    masks = net.tgd_plan.parameter_masks()
    after = net.state_dict()
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask], before[name][~mask]), name
        if name.endswith("weight"):  # a bias before a norm in train mode has no gradient but rounding
            assert (after[name][mask] != before[name][mask]).all(), name
    assert torch.equal(after["unused.weight"], before["unused.weight"])


class TestGuard:
    @pytest.mark.parametrize("flow", ["masked", "full"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_frozen_stay_and_trainable_move(self, name, flow):
        _, tgd = rewritten(flow=flow)
        before = copy.deepcopy(tgd.state_dict())
        optimizer = OPTIMIZERS[name](tgd.parameters())
        guard(optimizer, tgd)
        train(tgd, optimizer)
        assert_trained(before, tgd)

    @pytest.mark.parametrize("make", [Adam, AdamW, lambda p: SGD(p, 0.01, momentum=0.9)])
    def test_state_of_an_optimizer_used_before(self, make):
        net, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        optimizer = used(make, net, tgd)
        with guard(optimizer, tgd):
            train(tgd, optimizer)
        assert_trained(before, tgd)
        train(tgd, optimizer, 1)  # no longer guarded: the stale state moves frozen entries
        assert not verify(before, tgd, tgd.tgd_plan).ok

    @pytest.mark.parametrize("name", ["momentum", "nesterov", "Adam", "AdamW", "Muon-like"])
    def test_without_it_frozen_entries_move(self, name):
        _, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        train(tgd, OPTIMIZERS[name](tgd.parameters()))
        assert not verify(before, tgd, tgd.tgd_plan).ok

    def test_ends(self):
        _, tgd = rewritten()
        optimizer = AdamW(tgd.parameters())
        guard(optimizer, tgd).remove()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks

    def test_follows_new_weights_and_new_groups(self):
        _, tgd = rewritten()
        optimizer = AdamW(tgd.get_submodule("first").parameters(), weight_decay=0.5)
        guard(optimizer, tgd)
        optimizer.add_param_group({"params": list(tgd.get_submodule("up").parameters())})
        tgd.load_state_dict(Net().state_dict())
        before = copy.deepcopy(tgd.state_dict())
        train(tgd, optimizer)
        assert verify(before, tgd, tgd.tgd_plan).ok
        assert not torch.equal(tgd.get_parameter("up.weight"), before["up.weight"])

    def test_keeps_every_bit(self):
        _, tgd = rewritten()
        with torch.no_grad():
            weight = tgd.get_parameter("first.weight")
            weight[1, 0, 0] = torch.tensor([float("nan"), -0.0, 1e-42])
        before = copy.deepcopy(tgd.state_dict())
        optimizer = SGD([weight], 0.1, weight_decay=0.5)
        guard(optimizer, tgd)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert torch.equal(weight.view(torch.int32)[1], before["first.weight"].view(torch.int32)[1])
        assert not verify(before, {**before, "first.weight": before["first.weight"] * 0.5}, tgd.tgd_plan).ok

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_types(self, dtype):
        _, tgd = rewritten()
        optimizer = AdamW(tgd.parameters(), weight_decay=0.5)
        guard(optimizer, tgd)
        tgd.to(dtype)
        before = copy.deepcopy(tgd.state_dict())
        tgd(X.to(dtype)).square().mean().backward()
        optimizer.step()
        assert verify(before, tgd, tgd.tgd_plan).ok

    def test_a_mask_that_is_no_set_of_rows(self):
        net = TiedConvs()
        weight = layer_of(net, "a").parameters[0]
        columns = layer_of(net, "b", parameters=(type(weight)("a.weight", weight.shape, axis=1),))
        tgd = layers_form(net, plan_for(net, {"a": [1, 0, 1], columns: [1, 1, 0]}), X)
        before = copy.deepcopy(tgd.state_dict())
        optimizer = AdamW(tgd.parameters(), weight_decay=0.5)
        guard(optimizer, tgd)
        train(tgd, optimizer)
        moved = (tgd.a.weight != before["a.weight"]).flatten(2).any(2)
        assert torch.equal(moved, torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool))

    @pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
    def test_looks_through_wrappers(self, wrap):
        _, tgd = rewritten()
        optimizer = AdamW(tgd.parameters())
        guard(optimizer, wrap(tgd)).remove()

    @pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
    def test_parameters_sharded_by_fsdp2(self, tmp_path):
        from torch.distributed.fsdp import fully_shard

        _, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        try:
            fully_shard(tgd, mesh=dist.init_device_mesh("cpu", (1,)))
            optimizer = AdamW(tgd.parameters(), 0.01, weight_decay=0.5)
            guard(optimizer, tgd)
            train(tgd, optimizer)
            after = {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in tgd.state_dict().items()}
        finally:
            dist.destroy_process_group()
        assert verify(before, after, tgd.tgd_plan).ok
        assert not torch.equal(after["first.weight"], before["first.weight"])

    def test_optimizer_of_another_model(self):
        net, tgd = rewritten()
        optimizer = AdamW(net.parameters())
        with pytest.raises(RewriteError, match="made from the model before apply_tgd"):
            guard(optimizer, tgd)
        with pytest.raises(RewriteError, match="This Net has no TGD layers"):
            guard(optimizer, net)
        assert not optimizer._optimizer_step_pre_hooks


class TestVerify:
    @pytest.mark.parametrize("name", [*plan_for(Net(), MASKS).parameter_masks(), "unused.bias"])
    def test_finds_one_changed_entry(self, name):
        net, tgd = rewritten()
        after = remove_tgd(tgd)
        mask = tgd.tgd_plan.parameter_masks().get(name, torch.tensor([False]))
        entry = tuple((~mask).nonzero()[-1])
        with torch.no_grad():
            parameter = after.get_parameter(name)
            parameter[entry] = torch.nextafter(parameter[entry], torch.tensor(9.0))
        audit = verify(net, after, tgd.tgd_plan)
        assert not audit.ok
        assert [(row.name, row.changed) for row in audit.parameters if row.changed] == [(name, 1)]
        assert "FROZEN ENTRIES HAVE CHANGED" in str(audit)

    def test_lets_trainable_entries_change(self):
        net, tgd = rewritten()
        with torch.no_grad():
            for name, mask in tgd.tgd_plan.parameter_masks().items():
                tgd.get_parameter(name)[mask] += 1
        audit = verify(net, tgd, tgd.tgd_plan)
        assert audit.ok
        row = next(row for row in audit.parameters if row.name == "first.weight")
        assert (row.frozen, row.changed) == (2 * 3 * 9, 0)
        assert "nothing frozen has changed" in str(audit)

    def test_statistics_count_where_they_are_held(self):
        for norm_stats, changed in (("hold", 1), ("batch", 0)):
            net, tgd = rewritten(norm_stats=norm_stats)
            after = copy.deepcopy(net.state_dict())
            after["norm1.running_var"] += 1  # channels 1 and 3 are frozen
            after["norm2.running_mean"] -= 0
            audit = verify(net, after, tgd.tgd_plan)
            assert audit.ok == (norm_stats == "batch")
            assert [row.changed for row in audit.statistics if row.changed] == [2] * changed

    def test_is_bitwise(self):
        net, tgd = rewritten()
        state = copy.deepcopy(net.state_dict())
        state["first.bias"][1] = float("nan")
        state["first.bias"][3] = 0.0
        assert verify(state, copy.deepcopy(state), tgd.tgd_plan).ok
        other = copy.deepcopy(state)
        other["first.bias"][3] = -0.0
        assert not verify(state, other, tgd.tgd_plan).ok

    def test_states_that_do_not_fit(self):
        net, tgd = rewritten()
        state = net.state_dict()
        for other, message in (
            ({k: v for k, v in state.items() if k != "up.bias"}, "no 'up.bias'"),
            ({**state, "up.bias": torch.zeros(5)}, r"\(5,\)"),
            ({**state, "up.bias": state["up.bias"].double()}, "float64"),
        ):
            with pytest.raises(RewriteError, match=message):
                verify(state, other, tgd.tgd_plan)
