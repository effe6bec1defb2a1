"""`tgd inspect`: the scores are those of `kse`, and bad files are refused in one line."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tgdsurgery import kse, plan_tgd
from tgdsurgery.cli.layer_rows import weights_in
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.storage.checkpoints import write_state_dict
from tgdsurgery.storage.tensor_file import TensorFile


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("made"),)


@pytest.fixture
def layers(tgd):
    """The rows of `tgd inspect --json`, by layer."""

    def read(*args: str) -> dict[str, dict]:
        result = tgd("inspect", *args, "--json")
        assert result.exit_code == 0, result.output
        return {row["layer"]: row for row in json.loads(result.stdout)["layers"]}

    return read


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_scores_of_a_checkpoint(folder, network, layers, suffix):
    write_state_dict({f"module.{k}": v for k, v in network.state_dict().items()}, folder / f"wrapped{suffix}")
    found = layers(f"wrapped{suffix}", "--phi", "0.5")
    assert found.keys() == {"stem", "branch", "body", "up", "fc"}  # no bias, no norm
    for name, row in found.items():
        weight = network.get_submodule(name).weight
        scores = kse(weight)
        assert row["shape"] == list(weight.shape)
        assert (row["filters"], row["inputs"]) == tuple(weight.shape[:2])
        assert row["scores"] == scores.tolist()
        assert row["below"] == int((scores < 0.5).sum())
        assert row["share"] == row["below"] / len(scores)
        assert len(row["histogram"]) == 10
        assert sum(row["histogram"]) == len(scores)


def test_the_table(folder, network, tgd):
    result = tgd("inspect", "net.pt")
    lines = [line.split() for line in result.output.splitlines()]
    assert ["layer", "shape", "filters", "inputs", "<", "0.3", "KSE", "0", "to", "1"] in lines
    assert ["body", "8x3x3x3", "8", "3"] in [line[:4] for line in lines]
    assert "for transposed and grouped convs give --model" in " ".join(result.output.split())
    assert max(map(len, result.output.splitlines())) <= 80


def test_names_of_a_resnet_fit_into_80_columns(folder, tgd):
    torch.save({"layer4.0.downsample.0.weight": torch.rand(2048, 1024, 1, 1)}, "net.pt")
    lines = tgd("inspect", "net.pt").output.splitlines()
    assert any("layer4.0.downsample.0   2048x1024x1x1" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_csv(folder, network, layers, tgd):
    rows = list(csv.DictReader(io.StringIO(tgd("inspect", "net.pt", "--csv").stdout)))
    expected = layers("net.pt")
    assert [row["layer"] for row in rows] == list(expected)
    assert [row["shape"] for row in rows] == ["4x1x3x3", "2x1x3x3", "8x3x3x3", "8x4x2x2", "3x256"]
    for row in rows:
        assert float(row["share"]) == expected[row["layer"]]["share"]


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (["b.0"], ["b.0"]),
        (["b"], ["b.0", "b.10", "b.2"]),
        (["*.2", "a"], ["a", "b.2"]),
        ([], ["a", "b.0", "b.10", "b.2"]),
    ],
)
def test_layer(folder, layers, given, chosen):
    torch.save({f"{name}.weight": torch.rand(3, 2) for name in ("a", "b.0", "b.10", "b.2")}, "net.pt")
    assert list(layers("net.pt", *(word for name in given for word in ("--layer", name)))) == chosen


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("order", ["b.10", "b.2", "a"]),
        ("name", ["a", "b.2", "b.10"]),
        ("filters", ["a", "b.10", "b.2"]),
        ("inputs", ["b.2", "a", "b.10"]),
        ("share", ["a", "b.2", "b.10"]),
    ],
)
def test_sort(folder, layers, by, order):
    used, unused = torch.rand(4, 3, 3, 3), torch.zeros(4, 4, 3, 3)
    wide = torch.cat([used[:3], used[:3]], 1)
    mostly_unused = torch.cat([used[:, :1], unused, used[:, :0]], 1)
    state = {
        "b.10.weight": torch.ones(4, 2, 1, 1),
        "b.2.weight": wide,
        "a.weight": mostly_unused.repeat(2, 1, 1, 1),
    }
    torch.save(state, "net.pt")
    assert list(layers("net.pt", "--sort", by)) == order


def parametrized(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


def hooked(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def stored(state: dict[str, Tensor]) -> TensorFile:
    """These tensors as those of a file."""
    return TensorFile(
        Path(), {name: tensor.to("meta") for name, tensor in state.items()}, state.__getitem__, 0
    )


@pytest.mark.parametrize("norm", [parametrized, hooked])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3), nn.ConvTranspose1d(3, 2, 2), nn.Linear(3, 5)], ids=repr
)
def test_weight_norm_counts_as_the_weight_it_makes(norm, layer):
    layer = norm(copy.deepcopy(layer))
    with torch.no_grad():
        magnitude = next(p for name, p in layer.named_parameters() if name.endswith(("_g", "original0")))
        magnitude *= torch.rand_like(magnitude) + 1
    before = {f"net.{name}": tensor.clone() for name, tensor in layer.state_dict().items()}
    found = weights_in(stored(before))
    assert found.keys() == {"net"}
    layer(torch.ones(1, 3, *(4,) * (layer.weight.ndim - 2)))  # the hook makes the weight anew
    torch.testing.assert_close(found["net"].read(), layer.weight)  # the same product in another order
    assert all(torch.equal(before[f"net.{name}"], tensor) for name, tensor in layer.state_dict().items())


def test_spectral_norm_counts_as_a_weight():
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    assert weights_in(stored({f"net.{k}": v for k, v in layer.state_dict().items()})).keys() == {"net"}


def test_what_is_no_kernel():
    state = {"steps": torch.ones(2, 2, dtype=torch.long), "bias": torch.ones(3), "empty": torch.ones(0, 3)}
    assert weights_in(stored({**state, "table": torch.ones(2, 3)})).keys() == {"table"}


def test_with_a_model_the_scores_are_those_of_the_plan(folder, network, tgd):
    result = tgd("inspect", "net.pt", "--model", "network.py:make", "--phi", "0.5", "--json")
    data = json.loads(result.stdout)
    expected = plan_tgd(network, phi=0.5)
    assert TGDPlan.from_json(json.dumps(data["plan"])) == expected
    rows = {row["layer"]: row for row in data["layers"]}
    assert list(rows) == ["stem", "branch", "body", "up", "fc"]
    assert [row["inputs"] for row in rows.values()] == [1, 1, 6, 8, 256]
    assert [row["filters"] for row in rows.values()] == [4, 2, 8, 4, 3]
    for name in ("stem", "branch", "body", "up"):
        assert rows[name]["scores"] == list(expected[name].scores)
        assert rows[name]["below"] == expected[name].trainable
    assert rows["fc"]["scores"] == []
    assert rows["fc"]["share"] is None


def test_with_a_model_the_plan_is_printed(folder, network, tgd):
    result = tgd(
        "inspect", "net.pt", "--model", "network:make", "--layer", "fc", "--input-shape", "2x1x16x16"
    )
    assert result.exit_code == 0, result.output
    first, _, second = result.output.partition("TGD plan, phi 0.3")
    assert next(line.split()[:5] for line in first.splitlines() if "x" in line) == [
        "fc",
        "3x256",
        "3",
        "256",
        "-",
    ]
    assert second.strip() == str(plan_tgd(network)).partition("TGD plan, phi 0.3")[2].strip()


def test_bad_files(folder, assert_refused):
    torch.save({"conv.weight": torch.rand(50, 4, 3, 3)}, "good.pt")
    Path("cut.pt").write_bytes(Path("good.pt").read_bytes()[:4000])
    Path("text.pt").write_text("hello")
    Path("net.onnx").write_text("hello")
    torch.save({"bias": torch.rand(3)}, "flat.pt")
    torch.save({"conv.weight": torch.full((2, 2), torch.nan)}, "nan.pt")
    torch.save({"epoch": 3}, "none.pt")
    for name, problem in {
        "missing.pt": "missing.pt does not exist.",
        ".": ". is a directory.",
        "cut.pt": "cut.pt is damaged or cut off.",
        "text.pt": "text.pt is not a checkpoint.",
        "net.onnx": "net.onnx is damaged, cut off or not an ONNX model.",
        "flat.pt": "flat.pt holds no weights of filters",
        "none.pt": "none.pt holds no tensors by name.",
        "nan.pt": "nan.pt holds NaN or infinity in layer conv. Give a state from before the training broke down.",
    }.items():
        assert_refused(["inspect", name], problem)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_is_refused_by_name(folder, network, assert_refused, value):
    network.norm.running_var[1] = value  # KSE reads no norm
    write_state_dict(network.state_dict(), "nan.pt")
    for command in (["inspect", "nan.pt", "--model", "network:make"], ["plan", "--model", "network:make"]):
        checkpoint = [] if "inspect" in command else ["--checkpoint", "nan.pt"]
        assert_refused([*command, *checkpoint], "nan.pt holds NaN or infinity in norm.running_var.")


def test_a_pickle_with_code_is_refused_and_never_run(folder, assert_refused):
    torch.save({"state_dict": {"w": torch.rand(2, 2)}, "payload": Payload()}, "code.pt")
    assert_refused(["inspect", "code.pt"], "so it was not loaded. If you trust it,")
    assert not Path("made").exists()
    torch.load("code.pt", weights_only=False)
    assert Path("made").exists()  # the payload works


def test_options_that_do_not_fit(folder, network, assert_refused):
    for options, problem in (
        (["--phi", "-1"], "phi is -1.0. Give a number from 0 to 1"),
        (["--phi", "nan"], "phi is nan."),
        (["--json", "--csv"], "--json and --csv are both given. Give one."),
        (["--input-shape", "1x1x8x8"], "--input-shape would do nothing here. Give the network, too: --model"),
    ):
        assert_refused(["inspect", "net.pt", *options], problem)


def test_an_unknown_layer_names_near_ones(folder, network, assert_refused):
    assert_refused(
        ["inspect", "net.pt", "--layer", "stemm"], "No layer is called 'stemm'. Did you mean stem?"
    )


def test_layers_that_nothing_reads_sort_last_by_share(folder, network, layers):
    found = layers("net.pt", "--model", "network:make", "--sort", "share")
    shares = [row["share"] for row in found.values()]
    assert shares[-1] is None
    assert shares[:-1] == sorted(shares[:-1], reverse=True)


def test_a_pruned_weight_counts_with_its_mask(folder, layers):
    conv = nn.Conv2d(4, 6, 3)
    prune.random_unstructured(conv, "weight", 0.5)
    prune.random_unstructured(conv, "bias", 0.5)
    torch.save({f"net.{name}": tensor for name, tensor in conv.state_dict().items()}, "pruned.pt")
    found = layers("pruned.pt")
    assert list(found) == ["net"]
    assert found["net"]["scores"] == kse(conv.weight).tolist()


def test_a_weight_with_several_names_counts_once(folder, layers):
    w = torch.rand(4, 3, 3, 3)
    torch.save(
        {"encoder.conv.weight": w, "decoder.encoder.conv.weight": w, "head.weight": torch.rand(2, 4)},
        "tied.pt",
    )
    assert list(layers("tied.pt")) == ["encoder.conv", "head"]


@pytest.mark.parametrize(
    ("name", "is_a_table"),
    [
        ("pos_embed", True),
        ("embeddings.position_embeddings.weight", True),
        ("tok_embeddings.weight", True),
        ("wte.weight", True),
        ("blocks.0.attn.relative_position_bias_table", True),
        ("cls_token", True),
        ("patch_embed.proj.weight", False),
        ("compose.weight", False),
        ("decoder.upsample.weight", False),
        ("in_proj_weight", False),
        ("embedding_net.0.conv.weight", False),
    ],
)
def test_tables_are_not_scored(name, is_a_table):
    assert (weights_in(stored({name: torch.rand(4, 6)})) == {}) == is_a_table


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_every_floating_dtype_is_scored(folder, layers, dtype):
    w = torch.rand(6, 4, 3, 3).to(dtype)
    torch.save({"conv.weight": w}, "small.pt")
    assert layers("small.pt")["conv"]["scores"] == kse(w.float()).tolist()


class TestTerminal:
    """Names from files are shown, and do nothing else."""

    NAME = "a\x1b]0;title\x07\x1b[2J[red]b"

    def test_names_of_layers(self, folder, tgd):
        torch.save({f"{self.NAME}.weight": torch.rand(4, 3)}, "net.pt")
        for options in ([], ["--csv"], ["--json"]):
            result = tgd("inspect", "net.pt", *options)
            assert result.exit_code == 0, result.output
            assert "\x1b" not in result.output
            assert "\x07" not in result.output
            assert "[red]" in result.output

    def test_names_of_files_and_errors(self, folder, tgd, assert_refused):
        torch.save({"w": torch.rand(4, 3)}, "[red]x.pt")
        assert "KSE of [red]x.pt" in tgd("inspect", "[red]x.pt").output
        result = tgd("inspect", f"{self.NAME}.pt")
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        assert len(tgd("inspect", "net.pt" * 2000).output) < 2100

    def test_long_names_are_cut(self, folder, tgd):
        torch.save({"a" * 2**21: torch.rand(4, 3)}, "net.pt")
        started = time.perf_counter()
        result = tgd("inspect", "net.pt")
        assert result.exit_code == 0
        assert len(result.output) < 5000
        assert time.perf_counter() - started < 20


def test_a_stdout_without_line_drawing_gets_ascii(folder, network):
    command = [Path(sys.executable).with_name("tgd"), "inspect", "net.pt", "--model", "network:make"]
    for encoding in ("ascii", "cp1252"):
        run = subprocess.run(
            command,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert b"stem" in run.stdout.decode(encoding).encode("ascii")


def test_a_full_disk_is_one_line(folder, network):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    command = [Path(sys.executable).with_name("tgd"), "inspect", "net.pt"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 2
    assert (
        run.stderr
        == "Error: The output: No space left on device. Check the path, its permissions and the disk.\n"
    )
