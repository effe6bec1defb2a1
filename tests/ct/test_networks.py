"""The networks: shapes, what an untrained one does, and that files say which network they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tgd_ct.networks.critic import Critic
from tgd_ct.networks.extractors import VGG, Autoencoder, load_vgg
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_ct.networks.generator import HU_SCALE, KINDS, SLICES, Generator, Kind, kind_of, new_generator
from tgd_ct.networks.segmenters import ARCHITECTURES, Architecture, new_segmenter
from tgd_ct.networks.voxresnet import VoxResNet
from tgd_kit.training.weights import save_weights
from tgdsurgery import CheckpointError

WIDTHS = (3, 4, 5, 6)
every_kind = pytest.mark.parametrize("kind", KINDS)
with_and_without_attention = pytest.mark.parametrize("attention", [False, True])


def images(kind: Kind) -> Tensor:
    depth = [5] if kind == "3d" else []
    return 300 * torch.randn(2, SLICES[kind], *depth, 12, 10, generator=torch.Generator().manual_seed(0))


def stirred(network: nn.Module) -> nn.Module:
    """With no weight at zero."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(index))
    return network


@every_kind
@with_and_without_attention
def test_an_untrained_generator_returns_the_image(kind: Kind, attention: bool) -> None:
    given = images(kind)
    centre = given[:, 1:2] if kind == "2.5d" else given
    assert torch.equal(new_generator(0, kind, WIDTHS, attention=attention)(given), centre)


@every_kind
def test_the_generator_is_the_published_one_without_tanh(kind: Kind) -> None:
    network, given = stirred(Generator(kind, WIDTHS)), images(kind)
    assert isinstance(network, Generator)
    c1, c2, c3, c4, c5, c6, c7, c8 = network.convolutions

    def act(maps: Tensor) -> Tensor:
        axes = tuple(range(2, maps.ndim))
        normed = (maps - maps.mean(axes, keepdim=True)) / (
            maps.var(axes, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        return torch.where(normed > 0, normed, 0.2 * normed)

    seen = given.clamp(-1024, 1500) / HU_SCALE
    x1 = c1(seen)
    x2 = c2(act(x1))
    x3 = c3(act(x2))
    y = c4(act(x3))
    y = c5(act(y)) + x3
    y = c6(act(y)) + x2
    y = c7(act(y)) + x1
    centre = given[:, 1:2] if kind == "2.5d" else given
    wanted = centre + HU_SCALE * c8(act(y))
    torch.testing.assert_close(network(given), wanted, rtol=1e-4, atol=1e-2)  # sums in another order


def test_the_widths_are_those_of_the_published_code() -> None:
    shapes = [tuple(c.weight.shape[:2]) for c in Generator("3d").convolutions]
    assert shapes == [
        (32, 1),
        (64, 32),
        (128, 64),
        (256, 128),
        (128, 256),
        (64, 128),
        (32, 64),
        (1, 32),
    ]


@every_kind
@with_and_without_attention
def test_a_file_says_which_generator_it_holds(kind: Kind, attention: bool, tmp_path: Path) -> None:
    network = stirred(Generator(kind, WIDTHS, attention=attention))
    save_weights(network, tmp_path / "a.safetensors")
    loaded = load_generator(tmp_path / "a.safetensors")
    assert kind_of(loaded) == loaded.kind == kind
    assert torch.equal(loaded(images(kind)), network.eval()(images(kind)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_says_which_segmenter_it_holds(architecture: Architecture, tmp_path: Path) -> None:
    network = new_segmenter(0, architecture, 16 if architecture == "vnet" else 5).eval()
    save_weights(network, tmp_path / "a.safetensors")
    slices = images("2d")
    assert torch.equal(load_segmenter(tmp_path / "a.safetensors")(slices), network(slices))


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    save_weights(Autoencoder(4), tmp_path / "other.safetensors")
    save_weights(Generator("2d", WIDTHS), tmp_path / "generator.safetensors")
    with pytest.raises(CheckpointError, match="denoiser"):
        load_generator(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="segmenter"):
        load_segmenter(tmp_path / "generator.safetensors")
    with pytest.raises(CheckpointError, match="no file"):
        load_segmenter(tmp_path / "missing.safetensors")


def test_weights_of_vgg_that_torchvision_saved(tmp_path: Path) -> None:
    network = VGG()
    state = {**network.state_dict(), "classifier.0.weight": torch.zeros(3, 3)}
    torch.save(state, tmp_path / "vgg19.pth")
    loaded, image = load_vgg(tmp_path / "vgg19.pth"), images("2d").repeat(1, 1, 2, 2)
    assert torch.equal(loaded(image), network.eval()(image))
    assert loaded(image).shape == (2, 512, 1, 1)
    assert sum(isinstance(module, nn.Conv2d) for module in loaded.modules()) == 16
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"VGG-19.*vgg19"):
        load_vgg(tmp_path / "bad.pth")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_segmenters_take_any_size(architecture: Architecture) -> None:
    network = new_segmenter(0, architecture, 4).eval()
    assert network(torch.zeros(1, 1, 37, 18)).shape == (1, 3, 37, 18)


def test_the_critic_of_a_penalty_looks_at_each_image_alone() -> None:
    given = images("2d")
    critic = Critic(lipschitz="penalty")
    torch.testing.assert_close(critic(given), torch.cat([critic(image[None]) for image in given]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in critic.modules())


def test_the_critic_takes_volumes() -> None:
    assert Critic(axes=3)(torch.zeros(2, 1, 6, 20, 24)).shape == (2,)


def test_voxresnet_has_the_layers_of_the_paper() -> None:
    network = VoxResNet(4)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    # Two first ones, three strided ones, two in each of six blocks, and a classifier per size.
    assert len(convolutions) == 2 + 3 + 12 + 4
    assert [c.out_channels for c in convolutions[:3]] == [32, 32, 64]
    assert network(torch.zeros(1, 1, 8, 8, 16)).shape == (1, 4, 8, 8, 16)


@pytest.mark.parametrize("make", [new_generator, lambda seed: new_segmenter(seed, "unet", 4)])
def test_first_weights_follow_from_the_seed_alone(make: object) -> None:
    assert callable(make)
    before = torch.get_rng_state()
    a, b, c = (make(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
