"""The losses against what they are defined as."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tgd_ct.networks.critic import Critic
from tgd_ct.networks.generator import HU_SCALE, Generator
from tgd_ct.networks.segmenters import new_segmenter
from tgd_ct.training.losses import (
    CLIP,
    clip,
    critic_loss,
    gradient_penalty,
    mse_loss,
    segmentation_loss,
    task_loss,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mse_is_in_units_of_the_published_window() -> None:
    assert mse_loss(torch.full((2, 3), 400.0), torch.zeros(2, 3)) == 1.0


def test_dice_loss_is_the_published_one() -> None:
    logits = draw(4, 3, 8, 8)
    labels = torch.randint(0, 3, (4, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    shares, wanted = logits.softmax(1), torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)
    over = (0, 2, 3)  # the whole batch
    dice = 2 * (shares * wanted).sum(over) / (shares.square().sum(over) + wanted.square().sum(over))
    torch.testing.assert_close(segmentation_loss(logits, labels), 1 - dice.mean(), rtol=1e-4, atol=1e-6)


def test_the_task_loss_of_a_volume_is_that_of_its_slices() -> None:
    segmenter = new_segmenter(0, "unet", 4).eval()
    volume = 100 * draw(2, 1, 5, 16, 16)
    labels = torch.randint(0, 3, volume.shape, generator=torch.Generator().manual_seed(1))
    slices = volume[:, 0].reshape(10, 1, 16, 16), labels[:, 0].reshape(10, 1, 16, 16)
    assert torch.equal(task_loss(segmenter, volume, labels), task_loss(segmenter, *slices))


def test_the_generators_gradient_changes_with_the_mask() -> None:
    """The published code computes the task loss, prints it, and leaves it out."""
    segmenter = new_segmenter(0, "unet", 4).eval().requires_grad_(False)
    images = 100 * draw(2, 1, 16, 16)
    masks = torch.zeros(2, 2, 1, 16, 16, dtype=torch.long)
    masks[0, ..., :8, :], masks[1, ..., :, :8] = 1, 2

    def gradient(mask: Tensor) -> Tensor:
        network = Generator("2d", (2, 3, 3, 4))
        with torch.no_grad():
            for index, parameter in enumerate(network.parameters()):
                parameter.copy_(0.3 * draw(*parameter.shape, seed=index))
        task_loss(segmenter, network(images), mask).backward()
        found = network.convolutions[0].weight.grad
        assert found is not None
        return found

    first, second = gradient(masks[0]), gradient(masks[1])
    assert first.abs().max() > 0
    assert not torch.allclose(first, second)
    assert all(parameter.grad is None for parameter in segmenter.parameters())


class Slope(nn.Module):
    """A critic whose gradient is the same everywhere."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, images: Tensor) -> Tensor:
        return (images / HU_SCALE * self.slope).flatten(1).sum(1)


def test_the_penalty_is_the_distance_of_the_gradients_norm_from_1() -> None:
    critic = Slope(draw(1, 4, 4))
    penalty = gradient_penalty(critic, draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=1))
    torch.testing.assert_close(penalty, (critic.slope.norm() - 1).square())
    penalty.backward()  # a second derivative
    wanted = 2 * (critic.slope.norm() - 1) * critic.slope / critic.slope.norm()
    torch.testing.assert_close(critic.slope.grad, wanted.detach())


@pytest.mark.parametrize("axes", [2, 3])
def test_the_critics_loss_has_no_gradient_for_the_images(axes: int) -> None:
    critic = Critic(axes, "penalty")
    clean = 100 * draw(2, 1, *[8] * axes)
    denoised = (clean + 10).requires_grad_()
    critic_loss(critic, clean, denoised, "penalty").backward()
    assert denoised.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_the_critics_loss_pulls_normal_dose_down() -> None:
    critic = Critic(2, "clip").eval()
    clean, denoised = 100 * draw(2, 1, 8, 8), 100 * draw(2, 1, 8, 8, seed=1)
    wanted = critic(clean).mean() - critic(denoised).mean()
    assert torch.equal(critic_loss(critic, clean, denoised, "clip"), wanted)


def test_clipping_limits_every_weight() -> None:
    critic = Critic(2, "clip")
    clip(critic)
    assert max(float(parameter.detach().abs().max()) for parameter in critic.parameters()) <= CLIP
