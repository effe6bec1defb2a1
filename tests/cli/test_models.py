"""`--model` and `--checkpoint`: the network comes from the user's code, and every misfit is one line."""

from __future__ import annotations

import pytest
import torch

from tgdsurgery.cli.models import example_inputs, load_model
from tgdsurgery.cli.options import InputShape


@pytest.mark.parametrize("where", ["network", "network.py", "./network.py"])
@pytest.mark.parametrize("name", ["make", "ready", "Net"])
def test_the_model_is_made(folder, where, name):
    made = load_model(f"{where}:{name}")
    assert type(made).__name__ == "Net"


def test_a_file_may_import_its_neighbours(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "part.py").write_text(
        "from torch import nn\ndef conv():\n    return nn.Conv2d(1, 1, 1)\n"
    )
    (folder / "sub" / "whole.py").write_text("from part import conv\n")
    assert load_model("sub/whole.py:conv").weight.shape == (1, 1, 1, 1)


def test_the_checkpoint_is_loaded(folder, network):
    with torch.no_grad():
        network.stem.weight.add_(1)
    torch.save({"epoch": 1, "model": network.state_dict()}, "other.pt")
    made = load_model("network:make", folder / "other.pt")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in made.state_dict().items())
    assert not torch.equal(made.stem.weight, load_model("network:make").stem.weight)


def test_example_inputs_fit_the_parameters():
    shapes = (InputShape((2, 1, 8, 8)), InputShape((2, 3)), InputShape((4,), whole=True))
    given = example_inputs(torch.nn.Conv2d(1, 1, 1).double(), shapes)
    assert [tuple(x.shape) for x in given] == [shape.sizes for shape in shapes]
    assert [x.dtype for x in given] == [torch.float64, torch.float64, torch.int64]
    assert example_inputs(torch.nn.ReLU(), ()) is None


def test_a_prefix_that_a_trainer_put_before_all_names_comes_off(folder, network):
    torch.save({"state_dict": {f"model.{n}": t for n, t in network.state_dict().items()}}, "lightning.ckpt")
    made = load_model("network:make", folder / "lightning.ckpt")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize(
    "command", [["inspect", "net.pt"], ["plan"], ["map", "--layer", "fc"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("factory", "problem"),
    [
        ("network", "'network' names no model. Write package.module:factory or path/to/file.py:factory."),
        (":make", "':make' names no model."),
        (
            "net.pt",
            "net.pt is a file of weights, and no network. Give what makes the network, package.module:",
        ),
        ("net.pt2", "and this file as --checkpoint."),
        ("none.py:make", "none.py does not exist."),
        ("no_such_package.nets:make", "No module named 'no_such_package'."),
        ("broken.py:make", "broken.py cannot be imported: SyntaxError:"),
        ("network:mak", "network has no 'mak'. Did you mean make?"),
        ("network:number", "network:number is not a function but int."),
        ("network:fails", "network:fails() failed: ValueError: on two lines."),
        ("network:needs_arguments", "missing 1 required positional argument: 'width'."),
        ("network:returns_number", "network:returns_number() returned no module but int."),
    ],
)
def test_wrong_factories(folder, network, assert_refused, command, factory, problem):
    (folder / "broken.py").write_text("def make(:\n")
    assert_refused([*command, "--model", factory], problem)


@pytest.mark.parametrize("command", [["inspect"], ["plan", "--checkpoint"]], ids=lambda c: c[0])
def test_a_checkpoint_of_another_model(folder, network, assert_refused, command):
    state = network.state_dict()
    torch.save({**state, "fc.weight": torch.rand(3, 7), "stem.bias": torch.rand(9)}, "sizes.pt")
    renamed = {name.replace("up.", "upper."): tensor for name, tensor in state.items()}
    torch.save(renamed, "names.pt")
    for name, problem in {
        "names.pt": "2 missing (up.weight, up.bias); 2 unexpected (upper.weight, upper.bias).",
        "sizes.pt": "sizes.pt does not fit the model: 2 misfit (size mismatch for stem.bias:",
        "missing.pt": "missing.pt does not exist.",
    }.items():
        assert_refused([*command, name, "--model", "network:make"], problem)
