"""Law 5: every trainable entry moves as its gradient says."""

from __future__ import annotations

import torch
from hypothesis import given
from torch import Tensor, nn

from tests.laws.subjects import Method, gradients, in_both_forms, methods, on_every_topology, operated
from tests.strategies import Case, call, cases, scalar_loss
from tests.topologies import case_of
from tgdsurgery import apply_tgd

RATE = 0.5


def assert_trainable_move(case: Case, method: Method) -> bool:
    """Raise unless one step of SGD is taken as written down; returns whether anything moved."""
    case = case.double()
    tgd = operated(case, method)
    loss = scalar_loss(call(tgd, case.inputs))
    if not loss.requires_grad:
        assert tgd.tgd_plan.share == 0
        return False
    optimizer = torch.optim.SGD(tgd.parameters(), lr=RATE)
    loss.backward()
    before = {name: value.clone() for name, value in tgd.state_dict().items()}
    found = gradients(tgd)
    optimizer.step()
    any_moved = False
    for name, mask in tgd.tgd_plan.parameter_masks().items():
        after = tgd.state_dict()[name]
        expected = torch.where(mask, torch.add(before[name], found[name], alpha=-RATE), before[name])
        assert torch.equal(after, expected), name
        # In float64 a step larger than 1e-12 of the value cannot be rounded away.
        large = mask & (found[name].abs() > 1e-12 * (1 + before[name].abs()))
        assert bool((after != before[name])[large].all()), name
        any_moved |= bool(large.any())
    return any_moved


@given(case=cases(), method=methods)
def test_random_networks(case, method):
    assert_trainable_move(case.train(), method)


@on_every_topology
@in_both_forms
def test_catalogue(name, form):
    assert assert_trainable_move(case_of(name).train(), Method(form=form))


class Quantised(nn.Module):
    """An autoencoder whose code is bytes, as of images (AutoencoderTiny of diffusers) or of sound (EnCodec)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
        self.decoder = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x).sigmoid().mul(255).round().byte()
        return self.decoder(code / 255)


@in_both_forms
def test_what_the_plain_network_has_no_gradient_for_stays(form):
    """Through bytes or an index goes no gradient: the encoder's trainable rows stay in any training loop."""
    torch.manual_seed(0)
    model, x = Quantised(), torch.randn(2, 1, 8, 8)
    scalar_loss(model(x)).backward()
    without = {
        name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None
    }
    assert without == {"encoder"}
    tgd = apply_tgd(
        model, x, form=form, on_unknown="mix", overrides={"encoder.0": "train", "decoder.0": "train"}
    )
    optimizer = torch.optim.SGD(tgd.parameters(), lr=RATE)
    scalar_loss(tgd(x)).backward()
    optimizer.step()
    after, before = tgd.state_dict(), model.state_dict()
    assert torch.equal(after["encoder.0.weight"], before["encoder.0.weight"])
    assert (after["decoder.0.weight"] != before["decoder.0.weight"]).all()
