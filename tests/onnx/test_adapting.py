"""A network that exists as an ONNX file alone is adapted, and goes out as one again."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tests.onnx.graphs import drawn, node, save
from tgdsurgery import apply_tgd, from_onnx, remove_tgd, verify


# torch's exporter copies a deprecated class.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("form", ["compact", "layers"])
def test_in_and_out(tmp_path, form):
    norm = "n.weight n.bias n.running_mean n.running_var"
    nodes = [
        node("Conv", "x a.weight a.bias", "h", pads=[1, 1, 1, 1]),
        node("BatchNormalization", f"h {norm}", "g"),
        node("Relu", "g", "r"),
        node(
            "Resize",
            "r - factors",
            "u",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        node("Conv", "u b.weight", "c", pads=[1, 1, 1, 1]),
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "n"),
        node("Concat", "n rest", "to", axis=0),
        node("Reshape", "c to"),
    ]
    weights = {
        "a.weight": drawn(16, 1, 3, 3),
        "a.bias": drawn(16),
        **{
            f"n.{name}": np.abs(drawn(16, seed=i)) + 0.5
            for i, name in enumerate(("weight", "bias", "running_mean", "running_var"))
        },
        "factors": np.array([1, 1, 2, 2], np.float32),
        "b.weight": drawn(1, 16, 3, 3),
        "zero": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([1, -1]),
    }
    base = from_onnx(save(tmp_path / "net.onnx", nodes, {"x": ("batch", 1, 8, 8)}, weights))
    tgd = apply_tgd(base, phi=0.5, form=form)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(tgd(images), base(images), rtol=0, atol=0)

    optimizer = torch.optim.Adam(tgd.parameters(), lr=0.01)
    tgd.train()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(tgd(images), torch.zeros(4, 1, 256))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert verify(base, tgd).ok

    adapted = remove_tgd(tgd.eval())
    assert adapted.state_dict().keys() == base.state_dict().keys()
    path = tmp_path / "adapted.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(adapted, (images,), path, dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (4, 3):
        given = torch.rand(count, 1, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), adapted(given), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_onnx(path)(images), adapted(images), rtol=1e-4, atol=1e-5)
