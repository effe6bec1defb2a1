"""How the layers form protects itself, the guard for other optimizers, and the audit."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from tests.test_layers_form import MASKS, Net, TiedConvs, X, layer_of, plan_for
from tgdsurgery import apply_tgd
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.surgery.apply import layers_form
from tgdsurgery.surgery.layers import frozen_entries
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
        if isinstance(getattr(optimizer, "optimizer", optimizer), LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def as_it_is(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The state with the parameters as they are; the network's own `state_dict` puts frozen entries back."""
    return {**state, **{name: parameter.detach().clone() for name, parameter in net.named_parameters()}}


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


def by_file(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": by_file,
    "a copy of a copy": lambda net: copy.deepcopy(copy.deepcopy(net)),
}


class TestLayersForm:
    """Every optimizer of torch leaves the frozen entries where they are, and nobody has to ask for it."""

    @pytest.mark.parametrize("flow", ["masked", "full"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_frozen_stay_and_trainable_move(self, name, flow):
        _, tgd = rewritten(flow=flow)
        before = copy.deepcopy(tgd.state_dict())
        train(tgd, OPTIMIZERS[name](tgd.parameters()))
        assert_trained(before, tgd)

    @pytest.mark.parametrize("make", [Adam, AdamW, lambda p: SGD(p, 0.01, momentum=0.9)])
    def test_state_of_an_optimizer_used_before(self, make):
        net, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        train(tgd, used(make, net, tgd))
        assert_trained(before, tgd)

    @pytest.mark.parametrize("name", COPIES)
    @pytest.mark.parametrize("forward", [False, True])
    def test_copies_before_their_first_forward_and_after(self, name, forward):
        """Also where the original is gone."""
        _, tgd = rewritten()
        twin = COPIES[name](tgd)
        del tgd
        gc.collect()
        before = copy.deepcopy(twin.state_dict())
        optimizer = Muon(twin.parameters())
        if forward:
            train(twin, optimizer)
            assert_trained(before, twin)
        optimizer.step()
        assert verify(before, twin).ok

    def test_a_network_that_was_loaded_in_a_new_process(self, tmp_path):
        net, tgd = rewritten()
        for name, module in (("net", net), ("tgd", tgd)):
            torch.save(module, tmp_path / name)
        code = f"""
import torch
net, tgd = (torch.load(f"{tmp_path}/{{name}}", weights_only=False) for name in ("net", "tgd"))
from tests.test_guard import Muon, verify
Muon(tgd.parameters()).step()
assert verify(net, tgd).ok
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_several_networks_in_one_optimizer_and_one_in_several(self):
        (_, one), (_, other) = rewritten(), rewritten(flow="full")
        before = copy.deepcopy(one.state_dict())
        both = AdamW([*one.parameters(), *other.parameters()], 0.01, weight_decay=0.5)
        parts = [AdamW([parameter], 0.01, weight_decay=0.5) for parameter in one.parameters()]
        for optimizer in (both, *parts):
            one(X).square().mean().backward()
            other(X).square().mean().backward()
            optimizer.step()
        for net in (one, other):
            assert verify(before, net).ok
            assert not torch.equal(net.get_parameter("up.weight"), before["up.weight"])

    def test_plain_networks_move_as_ever(self):
        net, _ = rewritten()
        before = net.first.weight.detach().clone()
        Muon(net.parameters()).step()
        assert not (net.first.weight == before).any()

    def test_a_step_that_fails(self):
        _, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        optimizer = AdamW(tgd.parameters(), weight_decay=0.5)

        def closure() -> Tensor:
            raise ValueError("no data")

        with pytest.raises(ValueError, match="no data"):
            optimizer.step(closure)
        train(tgd, optimizer)
        assert_trained(before, tgd)

    def test_nothing_is_kept_alive(self):
        gc.collect()
        before = len(frozen_entries._protected)
        _, tgd = rewritten()
        optimizer = AdamW(tgd.parameters())
        train(tgd, optimizer)
        assert len(frozen_entries._protected) > before
        plain = remove_tgd(tgd)
        del tgd, optimizer
        gc.collect()
        assert len(frozen_entries._protected) == before
        state = plain.first.weight.detach().clone()
        Muon(plain.parameters()).step()
        assert not (plain.first.weight == state).any()

    def test_follows_new_weights_and_new_groups(self):
        _, tgd = rewritten()
        optimizer = AdamW(tgd.get_submodule("first").parameters(), weight_decay=0.5)
        optimizer.add_param_group({"params": list(tgd.get_submodule("up").parameters())})
        tgd.load_state_dict(Net().state_dict())
        before = copy.deepcopy(tgd.state_dict())
        train(tgd, optimizer)
        assert verify(before, tgd, tgd.tgd_plan).ok
        assert not torch.equal(tgd.get_parameter("up.weight"), before["up.weight"])

    def test_keeps_every_bit(self):
        _, tgd = rewritten()
        with torch.no_grad():
            state = {name: value.clone() for name, value in tgd.state_dict().items()}
            state["first.weight"][1, 0, 0] = torch.tensor([float("nan"), -0.0, 1e-42])
            tgd.load_state_dict(state)
            weight = tgd.get_parameter("first.weight")
        before = copy.deepcopy(tgd.state_dict())
        optimizer = SGD([weight], 0.1, weight_decay=0.5)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert torch.equal(weight.view(torch.int32)[1], before["first.weight"].view(torch.int32)[1])
        assert not verify(before, {**before, "first.weight": before["first.weight"] * 0.5}, tgd.tgd_plan).ok

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_types(self, dtype):
        _, tgd = rewritten()
        optimizer = AdamW(tgd.parameters(), weight_decay=0.5)
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
        train(tgd, optimizer)
        moved = (tgd.a.weight != before["a.weight"]).flatten(2).any(2)
        assert torch.equal(moved, torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool))

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


class Wrapper:
    """Does what an optimizer does without calling its step, so that no hook of torch runs."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, *args: object) -> object:
        return type(self.optimizer).step.__wrapped__(self.optimizer, *args)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class Decay:
    """No optimizer of torch's at all."""

    def __init__(self, parameters: object) -> None:
        self.param_groups = [{"params": list(parameters)}]

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


class Slow(Optimizer):
    """Like timm's Lookahead: a subclass that leaves out `Optimizer.__init__`, and writes to the parameters itself."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.original_optimizer, self.param_groups = optimizer, optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        self.original_optimizer.step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)

    def zero_grad(self) -> None:
        self.original_optimizer.zero_grad()


class TestGuard:
    """The handle for optimizers whose steps run none of torch's hooks."""

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_frozen_stay_and_trainable_move(self, name):
        _, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        optimizer = OPTIMIZERS[name](tgd.parameters())
        wrapper = Wrapper(optimizer)
        guard(wrapper, tgd)
        train(tgd, wrapper)
        assert_trained(before, tgd)

    @pytest.mark.parametrize("name", ["momentum", "nesterov", "Adam", "AdamW", "Muon-like"])
    def test_without_it_frozen_entries_move(self, name):
        """Until the next forward or `state_dict`. Where this holds no more, the tests above show nothing."""
        _, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        train(tgd, Wrapper(OPTIMIZERS[name](tgd.parameters())))
        assert not verify(before, as_it_is(before, tgd), tgd.tgd_plan).ok
        assert verify(before, tgd).ok

    @pytest.mark.parametrize("make", [lambda p: Slow(SGD(p, 0.1)), Decay])
    def test_any_object_with_a_step(self, make):
        _, tgd = rewritten()
        before = copy.deepcopy(tgd.state_dict())
        optimizer = make(tgd.parameters())
        with guard(optimizer, tgd):
            tgd(X).square().mean().backward()
            optimizer.step()
        assert verify(before, as_it_is(before, tgd), tgd.tgd_plan).ok
        assert not torch.equal(tgd.get_parameter("up.weight"), before["up.weight"])
        assert "step" not in vars(optimizer)
        optimizer.step()  # no longer guarded
        assert not verify(before, as_it_is(before, tgd), tgd.tgd_plan).ok

    def test_a_scheduler_may_come_before_or_after(self):
        for first in (True, False):
            _, tgd = rewritten()
            before = copy.deepcopy(tgd.state_dict())
            optimizer = Slow(SGD(tgd.parameters(), 0.1))
            optimizer.defaults = {}
            guarded = guard(optimizer, tgd) if first else None
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
            guarded = guarded or guard(optimizer, tgd)
            tgd(X).square().mean().backward()
            optimizer.step()
            scheduler.step()
            assert verify(before, tgd).ok
            assert optimizer.param_groups[0]["lr"] == 0.05
            guarded.remove()

    @pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
    def test_looks_through_wrappers(self, wrap):
        _, tgd = rewritten()
        guard(Wrapper(AdamW(tgd.parameters())), wrap(tgd)).remove()

    def test_does_nothing_where_nothing_is_to_do(self):
        _, tgd = rewritten()
        compact = apply_tgd(Net(), X, phi=0.5)
        for optimizer, net in ((AdamW(tgd.parameters()), tgd), (Decay(compact.parameters()), compact)):
            guard(optimizer, net)
            assert "step" not in vars(optimizer)

    def test_no_optimizer(self):
        _, tgd = rewritten()
        with pytest.raises(RewriteError, match=r"object has no param_groups.*Guard the optimizer"):
            guard(object(), tgd)

    def test_optimizer_of_another_model(self):
        net, tgd = rewritten()
        optimizer = AdamW(net.parameters())
        with pytest.raises(RewriteError, match="made from the model before apply_tgd"):
            guard(optimizer, tgd)
        with pytest.raises(RewriteError, match="This Net is not a TGD network"):
            guard(optimizer, net)
        assert "step" not in vars(optimizer)


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
