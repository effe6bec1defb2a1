"""`tgd sweep`: the result of `sweep_phi`, shown, written and drawn."""

from __future__ import annotations

import re

import pytest
import torch

from tgdsurgery import SweepResult, sweep_phi

MEASURES = """
import torch

def error(net):
    torch.manual_seed(0)
    with torch.no_grad():
        return net(torch.randn(2, 1, 16, 16)).square().mean()

def rises(net):
    return 1.0 + sum("ZeroLayer" in type(module).__name__ for module in net.modules())

def fails(net):
    raise KeyError("no such" + chr(10) + "image")

def nothing(net):
    return None

def not_a_number(net):
    return float("nan")

def zero(net):
    return 0

number = 3
"""
SWEEP = ["sweep", "--model", "network:make", "--evaluate", "measures.py:error"]


@pytest.fixture
def measures(folder):
    """The folder, with functions to evaluate by in `measures.py`."""
    (folder / "measures.py").write_text(MEASURES)
    return folder


def error(net):
    torch.manual_seed(0)
    with torch.no_grad():
        return net(torch.randn(2, 1, 16, 16)).square().mean()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--tolerance", "0.5"], {"tolerance": 0.5}),
        (["--override", "up=train", "--override", "stem=0.9"], {"overrides": {"up": "train", "stem": 0.9}}),
        (["--input-shape", "2x1x16x16"], {}),
    ],
    ids=str,
)
def test_the_result_is_that_of_the_api(measures, network, tgd, options, settings):
    options = [*options, "--phis", "0.9,0.2, 0.5", "--checkpoint", "net.pt", "-o", "sweep.json"]
    result = tgd(*SWEEP, *options)
    assert result.exit_code == 0, result.output
    expected = sweep_phi(network, error, [0.2, 0.5, 0.9], **settings)
    assert SweepResult.from_json((measures / "sweep.json").read_text()) == expected
    assert result.stdout == f"{expected}\n"
    assert result.stderr == "Written to sweep.json.\n"


def test_the_usual_thresholds_and_a_plot(measures, tgd):
    result = tgd(*SWEEP, "--plot", "sweep.png")
    assert result.exit_code == 0, result.output
    assert re.findall(r"^ +(0\.\d)", result.stdout, re.MULTILINE) == [
        f"0.{tenths}" for tenths in range(1, 10)
    ]
    assert (measures / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_help_says_how_thresholds_are_written(tgd):
    assert "--phis PHI,PHI,... The thresholds to try." in " ".join(tgd("sweep", "--help").output.split())


def test_a_module_on_the_path_will_do_for_evaluate(measures, tgd):
    result = tgd("sweep", "--model", "network:make", "--evaluate", "network:returns_number", "--phis", "0.5")
    assert "network:returns_number failed: TypeError" in result.output
    assert tgd(*SWEEP[:-1], "measures:rises", "--phis", "0.5").exit_code == 0


def test_one_file_for_both_is_imported_once(folder, tgd):
    """Twice, and the network would be of another class than the function's own."""
    with (folder / "network.py").open("a") as file:
        file.write("\ndef known(net):\n    return 1 if type(net) is Net else 2\n")
    result = tgd("sweep", "--model", "network.py:make", "--evaluate", "./network.py:known", "--phis", "0.5")
    assert "Untouched network: 1." in result.output


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--evaluate", "measures.py"], "'measures.py' names no function. Write package.module:function or"),
        (["--evaluate", "none.py:error"], "none.py does not exist."),
        (["--evaluate", "measures.py:eror"], "measures.py has no 'eror'. Did you mean error"),
        (["--evaluate", "measures.py:number"], "measures.py:number is not a function but int."),
        (["--evaluate", "network:ready"], "network:ready is not a function but Net."),
        (["--evaluate", "measures.py:fails"], "measures.py:fails failed: KeyError: 'no such\\nimage'."),
        (
            ["--evaluate", "measures.py:nothing"],
            "evaluate returned None at phi 0. It has to return one finite",
        ),
        (["--evaluate", "measures.py:not_a_number"], "evaluate returned nan at phi 0."),
        (["--evaluate", "measures.py:zero"], "evaluate returns 0 for the untouched network"),
        (["--model", "network:number"], "network:number is not a function but int."),
        (["--checkpoint", "none.pt"], "none.pt does not exist."),
        (["--phis", "0.1;0.2"], "'0.1;0.2' is no list of thresholds. Write them like 0.1,0.2,0.3"),
        (["--phis", ""], "'' is no list of thresholds."),
        (["--phis", "0.1,3"], "phi is 3.0."),
        (["--tolerance", "-1"], "tolerance is -1.0."),
        (["--override", "nothing=train"], "'nothing'"),
        (["-o", "./q.png", "--plot", "q.png"], "-o and --plot name one file. Name two."),
        (["-o", "none/sweep.json"], "The folder of none/sweep.json does not exist."),
        (["--plot", "none/sweep.png"], "The folder of none/sweep.png does not exist."),
        (["--plot", "sweep.doc"], "sweep.doc has no suffix of a picture. Name it .png, .svg or .pdf."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_leaves_nothing_behind(measures, assert_refused, options, problem):
    before = set(measures.iterdir())
    output = [] if "-o" in options else ["-o", "sweep.json"]
    assert_refused([*SWEEP, *output, *options], problem)
    assert {path for path in measures.iterdir() if path.name != "__pycache__"} == before
