"""The report's content, its page as text, and its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from torch import nn

from tgdsurgery import channel_map, plan_tgd
from tgdsurgery.cli.options import ArgumentError
from tgdsurgery.cli.plot import plot_command
from tgdsurgery.cli.report import content_of, report_command
from tgdsurgery.core.errors import CheckpointError, TGDError
from tgdsurgery.report.content import Content, ReportLayer, moved_filters
from tgdsurgery.report.figure import SUFFIXES, FigureError, Kind, draw
from tgdsurgery.report.render import render

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.left, self.right = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.up = nn.ConvTranspose2d(16, 10, 2, 2)
        self.last = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.up(torch.cat([self.left(x), self.right(x)], 1))))
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "report_net.py").write_text(NETWORK)
    return f"{tmp_path / 'report_net.py'}:Net"


def network(model: str) -> nn.Module:
    found: dict[str, object] = {}
    exec(NETWORK, found)
    return found["Net"]()  # type: ignore[operator, no-any-return]


def test_a_model_shows_its_plan_and_wiring(model: str) -> None:
    net = network(model)
    plan, wiring = plan_tgd(net, phi=0.4, overrides={"left": "train"}), channel_map(net)
    content = content_of(model, None, None, (), 0.4, {"left": "train"})
    assert [layer.name for layer in content.layers] == list(plan.layers)
    assert content.total == sum(parameter.numel() for parameter in net.parameters())
    for layer in content.layers:
        assert layer.scores == plan[layer.name].scores
        if layer.name in wiring.inputs:
            assert set(layer.producers) == {p.layer for one in wiring.producers(layer.name) for p in one}
    by_name = {layer.name: layer for layer in content.layers}
    assert by_name["left"].rule == "train"
    assert by_name["right"].rule is None
    assert [feed.filters for feed in by_name["up"].feeds] == [("left[0-7]",), ("right[0-7]",)]


def test_the_entries_add_up_to_the_plans_share(model: str) -> None:
    plan = plan_tgd(network(model), phi=0.4)
    content = content_of(model, None, None, (), 0.4, {})
    moving = sum(layer.entries * plan[layer.name].trainable for layer in content.layers)
    assert moving / content.total == pytest.approx(plan.share, rel=1e-12)


def test_what_moved_is_measured_filter_by_filter(model: str, tmp_path: Path) -> None:
    net = network(model)
    torch.save(net.state_dict(), tmp_path / "base.pt")
    with torch.no_grad():
        net.left.weight[3] *= 1.5
        net.up.weight[:, 4] *= 3  # the filters of a transposed conv are its second axis
    torch.save(net.state_dict(), tmp_path / "tuned.pt")
    content = content_of(model, tmp_path / "tuned.pt", tmp_path / "base.pt", (), 0.3, {})
    moved = {layer.name: layer.moved for layer in content.layers if layer.role == "filter"}
    assert moved["left"] == pytest.approx([0, 0, 0, 0.5, 0, 0, 0, 0], abs=1e-6)
    assert moved["up"] == pytest.approx([2 if n == 4 else 0 for n in range(10)], abs=1e-6)
    assert not any(moved["first"])
    alone = content_of(str(tmp_path / "tuned.pt"), None, tmp_path / "base.pt", (), 0.3, {})
    assert alone.scored == "inputs"
    assert {layer.name: layer.moved for layer in alone.layers}["left"] == moved["left"]


def test_a_filter_that_was_zero_counts_as_moved_whole() -> None:
    found = moved_filters(torch.zeros(2, 1), torch.tensor([[0.0], [3.0]]))
    assert found == [0.0, 1.0]


def test_other_networks_are_refused(model: str, tmp_path: Path) -> None:
    torch.save({"first.weight": torch.ones(2, 1, 3, 3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="12x1x3x3"):
        content_of(model, None, tmp_path / "other.pt", (), 0.3, {})


def test_another_state_that_is_not_finite_is_refused_by_name(model: str, tmp_path: Path) -> None:
    state = network(model).state_dict()
    torch.save(state, tmp_path / "net.pt")
    torch.save({**state, "left.weight": state["left.weight"] + torch.nan}, tmp_path / "nan.pt")
    for target in (model, str(tmp_path / "net.pt")):
        with pytest.raises(CheckpointError, match=r"nan\.pt holds NaN or infinity in (layer )?left"):
            content_of(target, None, tmp_path / "nan.pt", (), 0.3, {})


def hostile() -> Content:
    name = "</script><img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}"
    layer = ReportLayer(name, name, (2, 1, 3, 3), "filter", (0.1, None), 9.0)
    return Content(name, "filters", 0.3, (layer,), 18)


def test_names_are_data_and_never_markup() -> None:
    text = render(hostile())
    assert "<img src=x" not in text
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1])["layers"][0]["name"] == hostile().layers[0].name
    assert "49" not in re.search(r"<h1>(.*?)</h1>", text)[1]  # type: ignore[index]


def test_a_page_of_a_resnet_152_is_below_10_mb() -> None:
    widths = [64] + [256, 512, 1024, 2048] * 76  # 305 layers, more channels than a ResNet-152 has
    layers = [
        ReportLayer(
            f"layer{n}.{n}.conv2",
            "Conv2d",
            (width, 256, 3, 3),
            "filter",
            (0.123456,) * width,
            9.0,
            moved=(0.123456,) * width,
        )
        for n, width in enumerate(widths)
    ]
    text = render(Content("large", "filters", 0.3, tuple(layers), 1))
    assert len(text.encode()) < 10_000_000


def test_the_command_writes_a_page(model: str, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    result = CliRunner().invoke(report_command, [model, "-o", str(page)])
    assert result.exit_code == 0, result.exception
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("target", "page", "problem"),
    [
        ("missing.pt", "out.html", "missing.pt does not exist. Check the path."),
        ("missing.pt", "out.pdf", "out.pdf does not end in .html. Name it out.html."),
    ],
)
def test_wrong_files(target: str, page: str, problem: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(report_command, [target, "-o", str(tmp_path / page)])
    assert isinstance(result.exception, TGDError)
    assert problem in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_page_never_replaces_what_it_is_made_of(tmp_path: Path) -> None:
    weights = tmp_path / "net.pt"
    torch.save({"c.weight": torch.rand(4, 4, 3, 3)}, weights)
    before = weights.read_bytes()
    result = CliRunner().invoke(report_command, [str(weights), "-o", str(weights)])
    assert isinstance(result.exception, TGDError)
    assert weights.read_bytes() == before


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["histogram", "layers", "moved"])
def test_figures_are_the_same_every_time(kind: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("base", "tuned"):
        torch.save(
            {"a$_1$.weight": torch.rand(8, 6, 3, 3), "b.weight": torch.rand(4, 8)}, tmp_path / f"{name}.pt"
        )
    drawn = [tmp_path / f"{n}{suffix}" for n in range(2)]
    for path in drawn:
        against = ["--against", str(tmp_path / "base.pt")] if kind == "moved" else []
        given = [str(tmp_path / "tuned.pt"), *against, "--kind", kind, "-o", str(path)]
        result = CliRunner().invoke(plot_command, given)
        assert result.exit_code == 0, result.exception
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    assert drawn[0].stat().st_size > 2000


@pytest.mark.parametrize("kind", ["layers", "moved"])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_no_text_of_a_map_is_cut_off(
    kind: Kind, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    layers = [
        ReportLayer(f"c{n}", "", (2, 1), "filter", (0.1, 0.9), 1.0, moved=(0.1, 0.9)) for n in range(count)
    ]
    draw(Content("net", "filters", 0.3, tuple(layers), 1), kind, tmp_path / "out.png")
    (figure,) = drawn
    figure.canvas.draw()
    for label in (figure.axes[0].xaxis.label, figure.axes[1].yaxis.label):
        low, high = label.get_window_extent().get_points()
        assert (low >= 0).all()
        assert (high <= (figure.bbox.width, figure.bbox.height)).all()


@pytest.mark.parametrize("command", [report_command, plot_command])
def test_options_that_would_do_nothing_are_refused(command: click.Command, tmp_path: Path) -> None:
    net = str(tmp_path / "net.pt")
    torch.save({"c.weight": torch.rand(4, 4, 3, 3)}, net)
    given = {
        "--checkpoint": ["--checkpoint", net],
        "--override": ["--override", "c=train"],
        "--input-shape": ["--input-shape", "1x4x8x8"],
        "--input-shape and --override": ["--override", "c=train", "--input-shape", "1x4x8x8"],
    }
    if command is plot_command:
        given["--against"] = ["--against", net]
    for named, options in given.items():
        output = tmp_path / ("out.html" if command is report_command else "out.png")
        result = CliRunner().invoke(command, [net, *options, "-o", str(output)])
        assert isinstance(result.exception, ArgumentError)
        assert str(result.exception).startswith(f"{named} would do nothing here. Give ")
        assert not output.exists()


def test_a_figure_without_the_other_network_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"c.weight": torch.rand(4, 4, 3, 3)}, tmp_path / "net.pt")
    for more in (["--kind", "moved", "-o", str(tmp_path / "a.png")], ["-o", str(tmp_path / "a.gif")]):
        result = CliRunner().invoke(plot_command, [str(tmp_path / "net.pt"), *more])
        assert isinstance(result.exception, FigureError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt"]
