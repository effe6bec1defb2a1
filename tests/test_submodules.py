"""TGD on a part of a network: the part is replaced, the whole is trained, the plain part comes back."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.laws.subjects import assert_equal_tensors, in_both_forms, with_flags_of
from tests.strategies.case import randomise, scalar_loss
from tgdsurgery import apply_tgd, remove_tgd, verify

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Backbone(nn.Module):
    """Features at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.down = nn.Conv2d(6, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        x = x + self.body(x)
        return [x, self.down(x)]


class BranchingBackbone(Backbone):
    """The same, with control flow that no graph holds: the result keeps this class."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x if x.sum() < float("inf") else x * 0)


class Decoder(nn.Module):
    """The features brought together."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral, self.mix = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.score = nn.Conv2d(6, 2, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine, coarse = features
        x = fine + F.interpolate(self.lateral(coarse), scale_factor=2.0)
        return self.score(F.silu(self.mix(x)))


class Segmenter(nn.Module):
    """The network that its user owns: backbone, decoder, and parameters of its own."""

    def __init__(self, backbone: type[nn.Module] = Backbone) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"backbone": backbone()})
        self.decoder = Decoder()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.parts["backbone"](x)) * self.scale


backbones = pytest.mark.parametrize("backbone", [Backbone, BranchingBackbone])


def operated(form: str, backbone: type[nn.Module] = Backbone) -> tuple[Segmenter, Segmenter]:
    """A segmenter, and a copy of it with TGD in its backbone."""
    plain = randomise(Segmenter(backbone), seed=0)
    model = copy.deepcopy(plain)
    model.parts["backbone"] = apply_tgd(model.parts["backbone"], X, phi=0.8, form=form)
    assert 0 < model.parts["backbone"].tgd_plan.share < 1
    return plain, model


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Two steps of the whole, in training mode."""
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        scalar_loss(model(X)).backward()
        optimizer.step()


def over_all(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that would move everything."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def assert_rows_as_planned(before: nn.Module, after: nn.Module) -> None:
    """Raise unless, in a part, exactly the frozen rows and statistics are the same bits."""
    plan = after.tgd_plan
    assert verify(before, after, plan).ok
    for name, mask in plan.parameter_masks().items():
        old, new = before.state_dict()[name], after.state_dict()[name]
        assert torch.equal(new[~mask], old[~mask])
        # Weight decay alone moves an entry by a thousandth; a gradient of Adam's by a hundredth.
        assert mask.any() == (new != old).any()


@in_both_forms
@backbones
def test_the_whole_computes_the_same(backbone, form):
    plain, model = operated(form, backbone)
    assert torch.equal(model.eval()(X), with_flags_of(plain.eval(), model)(X))


@in_both_forms
@backbones
def test_state_goes_both_ways(backbone, form):
    plain, model = operated(form, backbone)
    changed = {name: value + 1 for name, value in plain.state_dict().items()}
    assert_equal_tensors(model.state_dict(), plain.state_dict())
    model.load_state_dict(changed, strict=True)
    assert_equal_tensors(model.state_dict(), changed)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert_equal_tensors(plain.state_dict(), changed)


@in_both_forms
@backbones
def test_training_the_whole(backbone, form):
    plain, model = operated(form, backbone)
    optimizer = over_all(model)
    trained(model, optimizer)
    assert_rows_as_planned(plain.parts["backbone"], model.parts["backbone"])
    # The rest belongs to no plan, and all of it is trained.
    for name, value in plain.decoder.named_parameters():
        assert (model.decoder.get_parameter(name) != value).all()
    assert not torch.equal(model.scale, plain.scale)


@in_both_forms
@backbones
def test_removing_leaves_the_users_network(backbone, form):
    plain, model = operated(form, backbone)
    optimizer = over_all(model)
    trained(model, optimizer)
    expected = model.eval()(X)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.parts["backbone"] = remove_tgd(model.parts["backbone"])
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(X), expected)
    assert_equal_tensors(model.state_dict(), state)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain.eval()(X), expected)
    model.load_state_dict(plain.state_dict(), strict=True)


@in_both_forms
@backbones
def test_copies_of_the_whole_stay_masked(backbone, form):
    """Checkpoints of the whole network, as a training loop makes them."""
    plain, model = operated(form, backbone)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        optimizer = over_all(twin)
        trained(twin, optimizer)
        assert_rows_as_planned(plain.parts["backbone"], twin.parts["backbone"])


@in_both_forms
def test_two_parts_with_plans_of_their_own(form):
    plain, model = operated(form)
    features = plain.eval().parts["backbone"](X)
    model.decoder = apply_tgd(model.decoder, (features,), phi=0.5, form=form)
    assert torch.equal(model.eval()(X), with_flags_of(plain.eval(), model)(X))
    optimizer = over_all(model)
    trained(model, optimizer)
    assert_rows_as_planned(plain.parts["backbone"], model.parts["backbone"])
    assert_rows_as_planned(plain.decoder, model.decoder)


@in_both_forms
def test_a_part_that_is_called_twice(form):
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x) - self.encoder(x.flip(-1))

    plain = randomise(Pair(), seed=0)
    model = copy.deepcopy(plain)
    model.encoder = apply_tgd(model.encoder, X, phi=0.8, form=form)
    assert torch.equal(model(X), with_flags_of(copy.deepcopy(plain), model)(X))
    optimizer = over_all(model)
    trained(model, optimizer)
    assert_rows_as_planned(plain.encoder, model.encoder)
