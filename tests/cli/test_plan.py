"""`tgd plan`: the plan of `plan_tgd`, shown and written."""

from __future__ import annotations

import pytest

from tgdsurgery import TGDPlan, plan_tgd
from tgdsurgery.cli.options import InputShape, parse_override, parse_shape


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--phi", "0.6"], {"phi": 0.6}),
        (["--budget", "0.2"], {"budget": 0.2}),
        (["--phi", "0.6", "--align", "2"], {"phi": 0.6, "align": 2}),
        (["--override", "up=train", "--override", "stem=0.9"], {"overrides": {"up": "train", "stem": 0.9}}),
        (["--flow", "full", "--norm-stats", "batch"], {"flow": "full", "norm_stats": "batch"}),
        (["--input-shape", "2x1x16x16"], {}),
    ],
    ids=str,
)
def test_the_plan_is_that_of_the_api(folder, network, tgd, options, settings):
    result = tgd("plan", "--model", "network:make", "--checkpoint", "net.pt", "-o", "plan.json", *options)
    assert result.exit_code == 0, result.output
    expected = plan_tgd(network, **settings)
    assert TGDPlan.from_json((folder / "plan.json").read_text()) == expected
    assert result.stdout.startswith(str(expected))
    assert "Written to plan.json." in result.output


def test_without_an_output_nothing_is_written(folder, tgd):
    assert tgd("plan", "--model", "network:make").exit_code == 0
    assert sorted(path.name for path in folder.iterdir() if path.suffix != "") == ["network.py"]


def test_bad_options(folder, assert_refused):
    plan = ["plan", "--model", "network:make"]
    for options, problem in (
        (["--phi", "0.3", "--budget", "0.2"], "--phi and --budget are both given."),
        (["--phi", "3"], "phi is 3.0."),
        (["--align", "0"], "align is 0."),
        (["--override", "up"], "'up' is not an override. Write NAME=train, NAME=freeze or NAME=0.5"),
        (
            ["--override", "zzz=train"],
            "'zzz' names no layer and no prefix of one. There are: stem, branch, norm,",
        ),
        (["--override", "stemm=train"], "names no layer and no prefix of one. Did you mean stem?"),
        (["--input-shape", "1x0x3"], "'1x0x3' is not an input shape. Write it like 1x3x64x64"),
        (["--input-shape", "2x5x16x16"], "to have 1 channels, but got 5 channels instead."),
        (["-o", "none/plan.json"], "The folder of none/plan.json does not exist."),
    ):
        assert_refused([*plan, *options], problem)


@pytest.mark.parametrize(
    ("text", "value"),
    [("up=train", ("up", "train")), ("a=b=freeze", ("a=b", "freeze")), ("4=0.5", ("4", 0.5))],
)
def test_overrides(text, value):
    assert parse_override(text) == value


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1x3x64x64", InputShape((1, 3, 64, 64))),
        ("2X10", InputShape((2, 10))),
        ("5", InputShape((5,))),
        ("2x16:int", InputShape((2, 16), whole=True)),
    ],
)
def test_shapes(text, shape):
    assert parse_shape(text) == shape


def test_a_network_of_whole_numbers_is_planned(folder, tgd):
    (folder / "words.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table, self.conv = nn.Embedding(9, 6), nn.Conv1d(6, 8, 3)\n"
        "        self.head = nn.Conv1d(8, 2, 1)\n"
        "    def forward(self, tokens):\n"
        "        return self.head(self.conv(self.table(tokens).transpose(1, 2)).relu())\n"
    )
    result = tgd("plan", "--model", "words.py:Net", "--input-shape", "2x16:int", "--phi", "0.9")
    assert result.exit_code == 0, result.output
    assert "conv" in result.output


def test_what_is_read_is_not_replaced(folder, network, assert_refused):
    before = (folder / "net.pt").read_bytes()
    plan = ["plan", "--model", "network.py:make", "--checkpoint", "net.pt"]
    for output in ("net.pt", "./net.pt", str(folder / "net.pt"), "network.py"):
        assert_refused([*plan, "-o", output], "is read by this command, and would be replaced.")
    sweep = ["sweep", *plan[1:], "--evaluate", "network.py:returns_number"]
    assert_refused([*sweep, "--plot", "net.pt"], "would be replaced")
    assert_refused([*sweep, "-o", "net.pt"], "would be replaced")
    assert (folder / "net.pt").read_bytes() == before


@pytest.mark.filterwarnings("always::tgdsurgery.PlanWarning")
def test_a_plan_that_trains_nothing_says_so_in_a_line(folder, tgd):
    result = tgd("plan", "--model", "network:make", "--phi", "0")
    assert result.exit_code == 0
    assert result.stderr.startswith("Warning: This plan trains none of the filter parameters.")
    assert result.stderr.count("\n") == 1
