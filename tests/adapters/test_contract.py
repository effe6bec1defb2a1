"""The contract finds what it is there for: adapters with one fault each fail the test that names it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.adapters import test_pet  # the module: names that start with Test are collected
from tests.adapters.contract import AdapterContract

GOOD = test_pet.TestPET.adapter


def contract(**faults: object) -> AdapterContract:
    checked = AdapterContract()
    checked.adapter = replace(GOOD, **faults)
    return checked


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The one file of a package called `planted`."""
    file = tmp_path / "planted" / "__init__.py"
    file.parent.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("planted", None)


@pytest.mark.parametrize(
    "code",
    [
        "from tgdsurgery.surgery.apply import layers_form",
        "import tgdsurgery.scoring",
        "from tgdsurgery import surgery",
    ],
)
def test_a_private_import_is_found(package: Path, code: str) -> None:
    package.write_text(f"def late():\n    {code}\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="planted"):
        contract(package="planted").test_only_public_names_are_imported()
    package.write_text("from tgdsurgery import kse\n", encoding="utf-8")
    contract(package="planted").test_only_public_names_are_imported()


def test_an_error_of_another_tree_is_found(package: Path) -> None:
    package.write_text("class LostError(ValueError):\n    pass\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="LostError"):
        contract(package="planted").test_every_error_is_a_tgd_error()


def test_a_command_of_another_package_is_found() -> None:
    with pytest.raises(AssertionError):
        contract(package="planted").test_command_is_found_and_light()


def test_randomness_without_a_seed_is_found() -> None:
    faulty = contract(make_network=lambda seed: GOOD.make_network(torch.seed()))
    with pytest.raises(AssertionError):
        faulty.test_network_and_inputs_follow_from_the_seed()


def test_a_wrong_output_layer_is_found() -> None:
    with pytest.raises(AssertionError):
        contract(output_layers=("noise.conv2",)).test_plan_has_both_kinds_and_freezes_outputs()


def test_a_threshold_without_effect_is_found() -> None:
    with pytest.raises(AssertionError):
        contract(phi=0.0).test_plan_has_both_kinds_and_freezes_outputs()


def _meddling(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """A loss that moves everything, frozen rows included."""
    with torch.no_grad():
        network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})
    return GOOD.loss(network, inputs)


def _deaf(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """A loss without a gradient for any layer."""
    return 0 * GOOD.loss(network, inputs)


@pytest.mark.parametrize("loss", [_meddling, _deaf])
def test_a_loss_that_moves_too_much_or_too_little_is_found(loss: object) -> None:
    faulty = contract(loss=loss)
    with pytest.raises(AssertionError):
        faulty.test_training_moves_what_the_plan_says_and_nothing_else(form="compact", flow="masked")
