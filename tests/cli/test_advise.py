"""`tgd advise`: what `advise` says, shown and written."""

from __future__ import annotations

import pytest

from tgdsurgery import Advice
from tgdsurgery.storage.checkpoints import write_state_dict

TASK = """
import torch
from torch.nn import functional as F

X = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))

def batches():
    return [(X, torch.ones(4, 3))]

def loss(outputs, targets):
    return F.mse_loss(outputs, targets)

def old(net):
    return net(X).square().mean()

def new(net):
    return F.mse_loss(net(X), torch.ones(4, 3))

def fails(net):
    raise KeyError("image")

def number():
    return 3

def as_number(outputs, targets):
    return loss(outputs, targets).item()

def ends():
    yield from batches()
    raise ValueError("no file")

def wide():
    return [(X.expand(-1, 3, -1, -1), torch.ones(4, 3))]
"""
FUNCTIONS = {"--batches": "batches", "--loss": "loss", "--evaluate-old": "old", "--evaluate-new": "new"}


@pytest.fixture
def command(folder):
    (folder / "task.py").write_text(TASK)

    def made(**other):
        functions = FUNCTIONS | {f"--{name.replace('_', '-')}": value for name, value in other.items()}
        given = [part for option, name in functions.items() for part in (option, f"task.py:{name}")]
        return ["advise", "--model", "network.py:make", *given, "--shares", "0.25", "--steps", "3"]

    return made


def test_the_advice_is_shown_and_written(folder, network, command, tgd):
    result = tgd(*command(), "-o", "advice.json", "--checkpoint", "net.pt")
    assert result.exit_code == 0, result.output
    advice = Advice.from_json((folder / "advice.json").read_text())
    assert {trial.share for trial in advice.trials if trial.method == "TGD"} == {0.25}
    assert advice.text in " ".join(result.stdout.split())
    assert result.stderr == "Written to advice.json.\n"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"evaluate_old": "fails"}, "task.py:fails failed: KeyError: 'image'."),
        ({"batches": "number"}, "task.py:number returned int."),
        ({"batches": "loss"}, "task.py:loss failed: TypeError: loss() missing 2 required"),
        ({"batches": "none"}, "task.py has no 'none'."),
        ({"batches": "ends"}, "task.py:ends failed: ValueError: no file."),
        ({"batches": "wide"}, "The model's forward failed on a batch: RuntimeError: "),
        (
            {"loss": "old"},
            "task.py:old failed: TypeError: old() takes 1 positional argument but 2 were given. It is the loss: "
            "called with the outputs and the targets of a batch, it returns a scalar tensor",
        ),
        (
            {"loss": "as_number"},
            "loss returned no tensor but float. It is called with the outputs and the targets",
        ),
    ],
)
def test_bad_functions_are_one_line_and_write_nothing(folder, command, tgd, other, message):
    result = tgd(*command(**other), "-o", "advice.json")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (folder / "advice.json").exists()


def test_bad_shares(command, tgd):
    result = tgd(*command(), "--shares", "a,b")
    assert result.exit_code == 2
    assert "Write them like 0.1,0.25,0.5" in result.stderr


def test_what_is_read_is_not_replaced(command, tgd):
    result = tgd(*command(), "-o", "task.py")
    assert result.exit_code == 2
    assert "would be replaced" in result.stderr


def test_weights_of_nan_are_named(folder, network, command, tgd):
    state = network.state_dict()
    state["norm.running_mean"][1] = float("nan")
    write_state_dict(state, folder / "nan.pt")
    result = tgd(*command(), "--checkpoint", "nan.pt")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: nan.pt holds NaN or infinity in norm.running_mean. Give a state")


def test_the_help_says_what_shares_look_like(tgd):
    assert "--shares SHARE,SHARE,..." in tgd("advise", "--help").output
