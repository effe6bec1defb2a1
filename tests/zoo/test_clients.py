"""What timm and torchvision do with a network, done with a TGD network: optimizers, and features on the way."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from tgdsurgery import apply_tgd, guard, verify

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
in_both_forms = pytest.mark.parametrize("form", ["compact", "layers"])
# Of every kind that timm makes; those with weight decay of their own kind above all.
OPTIMIZERS = (
    "sgd",
    "adamw",
    "lamb",
    "lars",
    "adafactor",
    "lion",
    "madgrad",
    "adan",
    "radam",
    "lookahead_adamw",
    "adopt",
)


def made(form: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=5).train()
    return net, apply_tgd(net, IMAGES, phi=0.4, form=form, overrides={"fc": "train"}).train()


@in_both_forms
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_timm(name, form):
    """Its groups go by names and shapes of parameters: no decay of biases and norms."""
    net, tgd = made(form)
    optimizer = create_optimizer_v2(tgd, name, lr=0.05, weight_decay=0.1)
    assert len(optimizer.param_groups) == 2
    before = {name: p.detach().clone() for name, p in tgd.named_parameters()}
    with guard(optimizer, tgd):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(tgd(IMAGES), torch.tensor([0, 1])).backward()
            optimizer.step()
    audit = verify(net, tgd)
    assert audit.ok, str(audit)
    trained = {name: p for name, p in tgd.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert not [name for name, p in trained.items() if torch.equal(p, before[name])]


@in_both_forms
@pytest.mark.parametrize("training", [False, True])
def test_features_on_the_way(form, training):
    """The extractor shares the layers, so its features train the network's rows."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=5).train(training)
    tgd = apply_tgd(net, IMAGES, phi=0.4, form=form, norm_stats="batch").train(training)
    wanted = ["layer1.0.conv1", "layer2", "fc"]
    assert set(wanted[:1]) <= set(get_graph_node_names(tgd)[0])
    found: dict[str, Tensor] = create_feature_extractor(tgd, wanted)(IMAGES)
    expected = create_feature_extractor(net, wanted)(IMAGES)
    for name in wanted:
        torch.testing.assert_close(found[name], expected[name])
    found["layer2"].square().mean().backward()
    rows = dict(tgd.named_parameters())["layer1.0.conv1.weight"]
    assert rows.grad is not None
    assert rows.grad.any()
