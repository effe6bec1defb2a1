"""The commands on ONNX files, and on networks of libraries by their names."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch

from tests.onnx.graphs import drawn, node, save
from tgdsurgery import TGDPlan, channel_map, from_onnx, kse, plan_tgd
from tgdsurgery.cli.models import load_model

WEIGHTS = {
    "stem.weight": drawn(8, 1, 3, 3),
    "grouped.weight": drawn(8, 4, 3, 3),
    "up.weight": drawn(8, 3, 2, 2),
    "fc.weight": drawn(6, 5),
    "last": drawn(5, 4),
}


@pytest.fixture
def file(folder):
    nodes = [
        node("Conv", "x stem.weight", "a", pads=[1, 1, 1, 1]),
        node("Conv", "a grouped.weight", "b", group=2),
        node("ConvTranspose", "b up.weight", "c", strides=[2, 2], group=2),
        node("GlobalAveragePool", "c", "d"),
        node("Flatten", "d", "e"),
        node("Gemm", "e fc.weight", "f"),
        node("MatMul", "f last"),
    ]
    return save(folder / "net.onnx", nodes, {"x": ("n", 1, 16, 16)}, WEIGHTS)


def test_layers_are_scored_as_what_they_are(file, tgd):
    result = tgd("inspect", "net.onnx", "--json")
    rows = {row["layer"]: row for row in json.loads(result.stdout)["layers"]}
    w = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    expected = {
        "stem": (8, 1, kse(w["stem.weight"])),
        "grouped": (8, 8, kse(w["grouped.weight"], groups=2)),
        "up": (6, 8, kse(w["up.weight"], groups=2, transposed=True)),
        "fc": (5, 6, kse(w["fc.weight"].t())),
        "y": (4, 5, kse(w["last"].t())),
    }
    assert {name: (row["filters"], row["inputs"]) for name, row in rows.items()} == {
        name: (filters, inputs) for name, (filters, inputs, _) in expected.items()
    }
    for name, (_, _, scores) in expected.items():
        assert rows[name]["scores"] == scores.tolist(), name


def test_nothing_is_guessed(file, tgd):
    shown = " ".join(tgd("inspect", "net.onnx").stdout.split())
    assert "input channels score below 0.3." in shown
    assert "give --model" not in shown


def test_map_and_plan_work_on_the_graph(file, tgd):
    found = channel_map(from_onnx(file))
    shown = json.loads(tgd("map", "--model", "net.onnx", "--layer", "up", "--json").stdout)
    assert [len(entry["producers"]) for entry in shown["inputs"]] == [len(ps) for ps in found.producers("up")]
    assert "grouped[0-7]" in tgd("map", "--model", "net.onnx", "--layer", "up").stdout
    assert tgd("plan", "--model", "./net.onnx", "-o", "plan.json").exit_code == 0
    assert TGDPlan.from_json(file.with_name("plan.json").read_text()) == plan_tgd(from_onnx(file))
    assert tgd("plan", "--model", "net.onnx", "--input-shape", "3x1x16x16").exit_code == 0


def test_the_scores_of_the_plan(file, tgd):
    result = tgd("inspect", "net.onnx", "--model", "net.onnx", "--json")
    assert TGDPlan.from_json(json.dumps(json.loads(result.stdout)["plan"])) == plan_tgd(from_onnx(file))


def test_a_sweep(file, folder, tgd):
    code = "import torch\n\ndef loss(net):\n    return net(torch.ones(1, 1, 16, 16)).abs().sum().item() + 1\n"
    (folder / "judge.py").write_text(code)
    result = tgd("sweep", "--model", "net.onnx", "--evaluate", "judge.py:loss", "--phis", "0.3,0.6")
    assert result.exit_code == 0, result.output


def test_weights_from_another_file(file, tgd):
    state = {name: tensor + 1 for name, tensor in from_onnx(file).state_dict().items()}
    torch.save(state, "other.pt")
    made = load_model("net.onnx", file.with_name("other.pt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())


# torch's exporter copies a deprecated class.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_onnx_file_as_the_checkpoint(folder, network, tgd):
    """Of a model whose code is there."""
    with torch.no_grad():
        network.stem.weight.add_(1)
    torch.onnx.export(
        network.eval(), (torch.ones(1, 1, 8, 8),), "net.onnx", dynamo=True, optimize=False, verbose=False
    )
    made = load_model("network:make", folder / "net.onnx")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in made.state_dict().items())


def test_bad_files(folder, assert_refused):
    (folder / "bad.onnx").write_text("hello")
    save(folder / "op.onnx", [node("NonZero", "x")], {"x": (2, 2)})
    for command in (["plan", "--model"], ["map", "--layer", "y", "--model"]):
        assert_refused([*command, "bad.onnx"], "bad.onnx is damaged, cut off or not an ONNX model.")
        assert_refused([*command, "none.onnx"], "none.onnx does not exist.")
        assert_refused([*command, "op.onnx"], "the op NonZero (node 'y') is not supported.")


class TestLibraries:
    """MONAI is in this environment; torchvision and timm are in the zoo's."""

    def test_a_network_by_its_name(self, folder, tgd):
        result = tgd("plan", "--model", "monai:BasicUNet", "--input-shape", "1x1x32x32x32")
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("monai:BasicUnett", "monai has no network called 'BasicUnett'. Did you mean"),
            ("monai:DynUNet", "monai:DynUNet cannot be made by its name alone: TypeError"),
            ("timm:resnet18", "timm is not installed. Try: pip install timm"),
        ],
    )
    def test_what_cannot_be_made(self, folder, assert_refused, name, problem):
        assert_refused(["plan", "--model", name], problem)

    def test_code_of_ones_own_in_a_module_of_that_name(self, folder):
        assert type(load_model("network:make")).__name__ == "Net"


def test_the_file_agrees_with_onnxruntime(file):
    x = drawn(2, 1, 16, 16)
    (expected,) = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})
    with torch.no_grad():
        np.testing.assert_allclose(from_onnx(file)(torch.from_numpy(x)), expected, rtol=1e-4, atol=1e-5)
