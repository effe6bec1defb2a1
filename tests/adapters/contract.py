"""The contract of an adapter: describe it in an `Adapter`, subclass `AdapterContract`, and pytest does the rest.

See docs/adapters.md. The class name must start with `Test` for pytest to find it.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import tgdsurgery
from tgdsurgery import (
    TGDError,
    TGDPlan,
    apply_tgd,
    guard,
    load_delta,
    plan_tgd,
    remove_tgd,
    save_delta,
    verify,
)

FORMS = pytest.mark.parametrize("form", ["compact", "layers"])
FLOWS = pytest.mark.parametrize("flow", ["masked", "full"])
STEPS = 3


@dataclass(frozen=True)
class Adapter:
    """An adapter as its contract sees it.

    Args:
        package: its import name.
        command: what comes after `tgd` on the command line.
        make_network: a small one for a seed, as if trained: no layer is all zero. Quick to run.
        example_inputs: its positional arguments, a batch of at least two, for a seed.
        loss: what the adapter minimises, for a network and such inputs; reaches every layer.
        output_layers: the layers whose outputs leave the network; nothing reads them, so they are frozen.
        phi: a threshold that leaves some channels on either side.
    """

    package: str
    command: str
    make_network: Callable[[int], nn.Module]
    example_inputs: Callable[[int], tuple[Tensor, ...]]
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    output_layers: tuple[str, ...]
    phi: float = 0.5

    def rewritten(self, **settings: Any) -> tuple[nn.Module, nn.Module]:
        """A network and its TGD copy."""
        network = self.make_network(0)
        return network, apply_tgd(network, self.example_inputs(0), phi=self.phi, **settings)

    def trained(self, **settings: Any) -> tuple[nn.Module, nn.Module]:
        """A network, and its TGD copy after a few steps of an optimizer that moves all it can."""
        network, tgd = self.rewritten(**settings)
        optimizer = torch.optim.AdamW(tgd.parameters(), lr=1e-2, weight_decay=0.1)
        with guard(optimizer, tgd):
            for step in range(STEPS):
                optimizer.zero_grad()
                self.loss(tgd.train(), self.example_inputs(step)).backward()
                optimizer.step()
        return network, tgd.eval()


class AdapterContract:
    """What holds for every adapter."""

    adapter: Adapter

    # The package ---------------------------------------------------------------------------------------

    def test_only_public_names_are_imported(self) -> None:
        for path, name in imported(self.adapter.package):
            assert name in tgdsurgery.__all__, f"{path} imports {name}"

    def test_every_error_is_a_tgd_error(self) -> None:
        for module in modules(self.adapter.package):
            for name, value in vars(module).items():
                if inspect.isclass(value) and issubclass(value, Exception):
                    assert value.__module__ != module.__name__ or issubclass(value, TGDError), name

    def test_command_is_found_and_light(self) -> None:
        (entry,) = entry_points(group="tgdsurgery.adapters", name=self.adapter.command)
        assert entry.module.partition(".")[0] == self.adapter.package
        assert isinstance(entry.load(), click.Command)
        code = f"import sys, {entry.module}; print('torch' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "False"

    # The network ---------------------------------------------------------------------------------------

    def test_network_and_inputs_follow_from_the_seed(self) -> None:
        make, draw = self.adapter.make_network, self.adapter.example_inputs
        assert_equal(make(0).state_dict(), make(0).state_dict())
        assert all(torch.equal(*pair) for pair in zip(draw(0), draw(0), strict=True))
        assert not all(torch.equal(*pair) for pair in zip(draw(0), draw(1), strict=True))

    def test_plan_has_both_kinds_and_freezes_outputs(self) -> None:
        network = self.adapter.make_network(0)
        before = copy.deepcopy(network.state_dict())
        plan = plan_tgd(network, self.adapter.example_inputs(0), phi=self.adapter.phi)
        masks = [plan.trainable(layer) for layer in plan.layers]
        assert any(mask.any() for mask in masks)
        assert not all(mask.all() for mask in masks)
        assert set(self.adapter.output_layers) <= set(plan.layers)
        assert not any(plan.trainable(layer).any() for layer in self.adapter.output_layers)
        assert TGDPlan.from_json(plan.to_json()) == plan
        assert_equal(network.state_dict(), before)

    @FORMS
    def test_forward_is_unchanged(self, form: str) -> None:
        network, tgd = self.adapter.rewritten(form=form)
        inputs = self.adapter.example_inputs(1)
        with torch.no_grad():
            assert_equal(outputs(tgd.eval(), inputs), outputs(network.eval(), inputs))

    @FORMS
    @FLOWS
    def test_training_moves_what_the_plan_says_and_nothing_else(self, form: str, flow: str) -> None:
        network, tgd = self.adapter.trained(form=form, flow=flow)
        plan, before, after = tgd.tgd_plan, network.state_dict(), tgd.state_dict()
        assert verify(network, tgd, plan).ok
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
        for entry in plan.entries:
            trains = bool(plan.trainable(entry.layer.name).any())
            for rows in entry.layer.parameters:
                assert (rows.name in moved) == trains, rows.name

    @FORMS
    def test_state_has_the_networks_names_and_goes_both_ways(self, form: str) -> None:
        network, tgd = self.adapter.trained(form=form)
        learnt = copy.deepcopy(tgd.state_dict())
        assert [(k, v.shape, v.dtype) for k, v in learnt.items()] == [
            (k, v.shape, v.dtype) for k, v in network.state_dict().items()
        ]
        for twin in (copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd))):
            assert_equal(twin.state_dict(), learnt)
            assert twin.tgd_plan == tgd.tgd_plan
        tgd.load_state_dict(network.state_dict(), strict=True)
        assert_equal(tgd.state_dict(), network.state_dict())
        network.load_state_dict(learnt, strict=True)
        assert_equal(network.state_dict(), learnt)

    @FORMS
    def test_removal_leaves_the_plain_network_with_what_was_learnt(self, form: str) -> None:
        network, tgd = self.adapter.trained(form=form)
        plain, inputs = remove_tgd(tgd), self.adapter.example_inputs(1)
        kinds = {name: type(module) for name, module in network.named_modules()}
        assert {name: type(module) for name, module in plain.named_modules()} == kinds
        assert list(plain.state_dict()) == list(network.state_dict())
        assert_equal(plain.state_dict(), tgd.state_dict())
        with torch.no_grad():
            assert_equal(outputs(plain.eval(), inputs), outputs(tgd, inputs))

    def test_retrained_rows_come_apart_and_go_back_on(self, tmp_path: Path) -> None:
        network, tgd = self.adapter.trained()
        save_delta(tgd, tmp_path / "rows.safetensors")
        assert_equal(load_delta(network, tmp_path / "rows.safetensors").state_dict(), tgd.state_dict())

    @FORMS
    def test_trained_network_is_exported(self, form: str) -> None:
        _, tgd = self.adapter.trained(form=form)
        inputs = self.adapter.example_inputs(0)
        program = torch.export.export(tgd, inputs)
        with torch.no_grad():
            # The compiler's decompositions may add up in another order.
            torch.testing.assert_close(outputs(program.module(), inputs), outputs(tgd, inputs))

    # onnxscript and torch's exporter call functions of their own that they have deprecated.
    @pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:onnxscript", "ignore::FutureWarning:torch|copyreg"
    )
    def test_adapted_network_runs_in_onnx(self, tmp_path: Path) -> None:
        plain, inputs = remove_tgd(self.adapter.trained()[1]).eval(), self.adapter.example_inputs(0)
        torch.onnx.export(plain, inputs, tmp_path / "net.onnx", dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        names = (argument.name for argument in session.get_inputs())
        found = session.run(None, dict(zip(names, (value.numpy() for value in inputs), strict=True)))
        with torch.no_grad():
            expected = outputs(plain, inputs)
        # Another library's kernels: a few units in the last place of float32, after a dozen layers.
        torch.testing.assert_close(
            [torch.from_numpy(value) for value in found], expected, rtol=1e-3, atol=1e-4
        )


def outputs(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All output tensors in order."""
    return [value for value in torch.utils._pytree.tree_leaves(network(*inputs)) if isinstance(value, Tensor)]


def assert_equal(found: Any, expected: Any) -> None:
    """Raise unless both hold the same tensors, bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def imported(package: str) -> Iterator[tuple[Path, str]]:
    """Every name that the package's files take from tgdsurgery; from a module of it, with the module's name."""
    folder = Path(importlib.import_module(package).__path__[0])
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tgdsurgery":
                prefix = "" if node.module == "tgdsurgery" else f"{node.module}."
                yield from ((path, f"{prefix}{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((path, a.name) for a in node.names if a.name.startswith("tgdsurgery."))


def modules(package: str) -> Iterator[ModuleType]:
    """All modules of a package."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(found.name)
