"""`tgd export`: what is written is what PyTorch computes, at other sizes too."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tgdsurgery import apply_tgd, remove_tgd, save_delta
from tgdsurgery.export.export import export_network
from tgdsurgery.storage.checkpoints import read_state_dict, write_state_dict

IMAGES = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)


@pytest.fixture
def tuned(network, folder) -> nn.Module:
    """The network after training, in `tuned.pt` and `delta.safetensors`."""
    tgd = apply_tgd(network, phi=0.8)
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(0.25)
    save_delta(tgd, folder / "delta.safetensors")
    plain = remove_tgd(tgd).eval()
    write_state_dict(plain.state_dict(), folder / "tuned.pt")
    return plain


def in_onnxruntime(path, *inputs) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})


def in_torch(path, *inputs) -> list[np.ndarray]:
    return [torch.export.load(path).module()(*inputs).numpy()]


RUNNERS: dict[str, Callable[..., list[np.ndarray]]] = {"onnx": in_onnxruntime, "pt2": in_torch}
in_both_formats = pytest.mark.parametrize("form", RUNNERS)


@in_both_formats
@pytest.mark.parametrize(
    "source", [["tuned.pt"], ["delta.safetensors", "--base", "net.pt"]], ids=["pt", "delta"]
)
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
def test_programs_compute_what_torch_does(folder, tuned, tgd, form, source):
    result = tgd("export", *source, "--format", form, "--model", "network:make", "-o", f"out.{form}")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Largest difference from PyTorch: ")
    # The converter takes the pooling to a fixed size for one of fixed steps; run at another size, that shows.
    free = "batch." if form == "onnx" else "batch, axis 2, axis 3."
    assert f"may have other sizes: {free}" in result.stdout
    assert ("Fixed axis 2: " in result.stdout) == (form == "onnx")
    for shape in ((1, 64, 64), (2, 64, 64), (5, 64, 64), (3, 40, 24))[: 3 if form == "onnx" else 4]:
        images = torch.rand(shape).unsqueeze(1)
        (found,) = RUNNERS[form](folder / f"out.{form}", images)
        np.testing.assert_allclose(found, tuned(images).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in folder.glob("*out*")) == [f"out.{form}"]


@pytest.mark.parametrize(
    "source", [["tuned.pt"], ["delta.safetensors", "--base", "net.pt"]], ids=["pt", "delta"]
)
@pytest.mark.parametrize("options", [[], ["--model", "network:make"]], ids=["no code", "with the model"])
def test_weights_alone_are_the_same_bits(folder, tuned, tgd, source, options):
    result = tgd("export", *source, *options, "--format", "safetensors", "-o", "out.safetensors")
    assert result.exit_code == 0, result.output
    found, expected = read_state_dict(folder / "out.safetensors"), tuned.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_factory_of_tgd_networks_is_exported_plain(folder, tuned, tgd):
    (folder / "surgery.py").write_text(
        "import network\nfrom tgdsurgery import apply_tgd\ndef make():\n    return apply_tgd(network.make(), phi=0.8)\n"
    )
    result = tgd("export", "tuned.pt", "--format", "pt2", "--model", "surgery:make", "-o", "out.pt2")
    sys.modules.pop("surgery", None)
    assert result.exit_code == 0, result.output
    program = torch.export.load(folder / "out.pt2")
    assert program.state_dict.keys() == tuned.state_dict().keys()
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(program.module()(images), tuned(images))


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
def test_weights_that_are_not_finite_are_named_and_nothing_is_written(folder, network, assert_refused, form):
    network.body.weight.data[3, 0, 0, 0] = torch.nan
    network.norm.running_mean[0] = torch.inf
    write_state_dict(network.state_dict(), folder / "nan.pt")
    command = ["export", "nan.pt", "--model", "network:make", "--format", form, "-o", f"out.{form}"]
    assert_refused(command, "nan.pt holds NaN or infinity in norm.running_mean, body.weight.")
    assert not list(folder.glob("*out*"))


def test_a_mask_of_minus_infinities_is_exported(folder, tgd):
    state = {"weight": torch.ones(2), "mask": torch.tensor([0.0, -torch.inf])}
    write_state_dict(state, folder / "masked.pt")
    result = tgd("export", "masked.pt", "--format", "safetensors", "-o", "out.safetensors")
    assert result.exit_code == 0, result.output


class Flat(nn.Module):
    """Takes one image size only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 3)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


class Branching(nn.Module):
    """Does something else at other widths, which no traced program can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x + 1 if x.shape[-1] < 12 else x)


class Two(nn.Module):
    """Takes two images, by any number of arguments, and returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, *images):
        return {"seen": self.conv(torch.cat(images, 1)), "sums": [image.sum((2, 3)) for image in images]}


@in_both_formats
@pytest.mark.parametrize(
    ("net", "inputs", "dynamic", "notes"),
    [
        (Flat(), (IMAGES,), ("batch",), ["axis 2: the network accepts no", "axis 3: the network accepts no"]),
        (Branching(), (IMAGES,), ("batch", "axis 2"), ["axis 3: "]),
        (Two(), (IMAGES, IMAGES + 1), ("batch", "axis 2", "axis 3"), []),
        (nn.Conv2d(1, 2, 1), (IMAGES[:1, :, :1],), ("batch", "axis 2", "axis 3"), []),
        (nn.Linear(8, 2), (IMAGES[0, 0],), ("batch",), []),
    ],
    ids=["one size", "branching", "two inputs", "sizes of 1", "linear"],
)
def test_axes_are_free_where_the_network_allows_it(tmp_path, form, net, inputs, dynamic, notes):
    found = export_network(net, inputs, tmp_path / f"net.{form}", form)
    assert found.dynamic == dynamic
    assert len(found.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(found.notes, notes, strict=True))
    assert found.largest < 1e-4
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_real_network(tmp_path):
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    net = UNet(2, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm="batch").eval()
    found = export_network(net, (torch.rand(1, 1, 32, 32),), tmp_path / "net.onnx", "onnx")
    assert found.dynamic == ("batch", "axis 2", "axis 3")
    images = torch.rand(3, 1, 48, 80)
    (output,) = in_onnxruntime(tmp_path / "net.onnx", images)
    np.testing.assert_allclose(output, net(images).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from tgdsurgery.export import formats
    from tgdsurgery.export.check import ExportError

    wrong = formats.FORMATS["pt2"]._replace(loaded=lambda content: lambda inputs: [inputs[0] + 1])
    monkeypatch.setitem(formats.FORMATS, "pt2", wrong)
    with pytest.raises(ExportError, match=r"differs from PyTorch's by 1, where the largest value is 1\."):
        export_network(nn.Identity(), (IMAGES,), tmp_path / "net.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages(folder, tuned, assert_refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    command = ["export", "tuned.pt", "--format", "onnx", "--model", "network:make", "-o", "out.onnx"]
    assert_refused(command, 'Install them: pip install "tgdsurgery[onnx]".')
    assert not (folder / "out.onnx").exists()


def test_bad_options(folder, tuned, assert_refused):
    model = ["--model", "network:make"]
    for args, problem in (
        (["tuned.pt", "--format", "onnx", "-o", "a.onnx"], "onnx needs the network itself. Give --model"),
        (
            ["tuned.pt", "--format", "onnx", "-o", "a.pt", *model],
            "a.pt does not end in .onnx. Name it a.onnx.",
        ),
        (["tuned.pt", "--format", "safetensors", "-o", "a.pt"], "a.pt does not end in .safetensors."),
        (["delta.safetensors", "--format", "pt2", "-o", "a.pt2", *model], "is a delta. Give the checkpoint"),
        (
            ["tuned.pt", "--base", "net.pt", "--format", "pt2", "-o", "a.pt2"],
            "is no delta, and needs no base.",
        ),
        (["tuned.pt", "--format", "safetensors", "-o", "tuned.pt"], "would be replaced"),
        (
            ["tuned.pt", "--format", "safetensors", "-o", "a.safetensors", "--input-shape", "1x1x8x8"],
            "--input-shape would do nothing here.",
        ),
        (
            ["tuned.pt", "--format", "pt2", "-o", "a.pt2", *model, "--input-shape", "2x3x16x16"],
            "forward failed for inputs of shape 2x3x16x16: Given groups=1, weight of size",
        ),
        (["none.pt", "--format", "pt2", "-o", "a.pt2", *model], "none.pt does not exist."),
        (["tuned.pt", "--format", "pt2", "-o", "no/a.pt2", *model], "The folder of no/a.pt2 does not exist."),
    ):
        assert_refused(["export", *args], problem)


def test_a_network_that_cannot_be_traced_says_so(tmp_path):
    from tgdsurgery.export.check import ExportError

    class Data(nn.Module):
        def forward(self, x):
            return x + float(x.sum())

    with pytest.raises(ExportError, match="The network cannot be exported: "):
        export_network(Data(), (IMAGES,), tmp_path / "net.pt2", "pt2")
    assert not list(tmp_path.iterdir())
