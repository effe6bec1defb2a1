"""The DnCNN of the paper, its file, and its use on volumes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tgd_kit.devices import best_device
from tgd_kit.training.weights import save_weights
from tgd_pet.denoising import denoise, triplets
from tgd_pet.network import DnCNN, load_network, new_network
from tgdsurgery.core.errors import CheckpointError

NARROW = (6, 5, 4, 3)
widths = st.lists(st.integers(1, 6), min_size=2, max_size=6)


def trained(seed: int = 0, shape: tuple[int, ...] = NARROW) -> DnCNN:
    """A network that is not the identity, with statistics that are not those of a new one."""
    network = new_network(seed, shape)
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.ndim and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) / value[0].numel())
    return network.eval()


def volume(depth: int = 5, height: int = 20, width: int = 18, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 2.0, (depth, height, width)).astype(np.float32)


def test_architecture_is_the_papers() -> None:
    network = DnCNN()
    shapes = [tuple(convolution.weight.shape) for convolution in network.convolutions]
    channels = [3, 64, 64, 128, 128, 128, 256, 256, 3]
    assert shapes == [(out, into, 3, 3) for into, out in pairwise(channels)]
    assert sum(convolution.weight.numel() for convolution in network.convolutions) == 1_298_880
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(layer) for layer in network.noise] == [nn.Conv2d, nn.ReLU, *block * 6, nn.Conv2d]
    assert [c.bias is not None for c in network.convolutions] == [True, *[False] * 6, True]


@given(widths)
def test_untrained_network_returns_its_input(shape: list[int]) -> None:
    images = torch.rand(2, shape[-1], 9, 7)
    assert torch.equal(DnCNN(shape).eval()(images), images)


def test_output_is_input_minus_predicted_noise_at_the_suv_scale() -> None:
    network = trained()
    images = torch.rand(2, 3, 9, 7) * 12
    noise = 5 * network.noise(images / 5)
    assert noise.abs().max() > 0.1
    assert torch.equal(network(images), images - noise)


def test_what_is_hotter_than_the_limit_is_kept_and_changes_nothing_else() -> None:
    network = trained()
    images = torch.rand(1, 3, 9, 7) * 10
    hot = images.clone()
    images[0, 1, 4, 3], hot[0, 1, 4, 3] = 12.0, 66.5
    removed, changed = images - network(images), network(images)
    assert removed.abs().max() > 0.1
    changed[0, 1, 4, 3] = 66.5 - removed[0, 1, 4, 3]
    assert torch.equal(network(hot), changed)


def test_weights_follow_from_the_seed_and_random_state_stays() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (new_network(seed, NARROW).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["noise.conv1.weight"], other["noise.conv1.weight"])


@given(widths)
def test_file_gives_the_same_network_back(tmp_path_factory: pytest.TempPathFactory, shape: list[int]) -> None:
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    network = trained(3, tuple(shape))
    save_weights(network.to(memory_format=torch.channels_last), path)
    read = load_network(path)
    assert not read.training
    assert read.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in read.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": torch.zeros(3, 3, 3, 3)},
        {**DnCNN(NARROW).state_dict(), "more": torch.zeros(1)},
        {name: value for name, value in DnCNN(NARROW).state_dict().items() if name != "noise.norm2.bias"},
    ],
    ids=["empty", "other keys", "one too many", "one missing"],
)
def test_other_weights_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        load_network(tmp_path / "other.safetensors")


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        load_network(tmp_path / "none.safetensors")
    save_weights(DnCNN(NARROW), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for length in (0, 7, len(whole) // 2):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_network(tmp_path / "cut.safetensors")


@given(st.integers(1, 7), st.data())
def test_triplets_are_the_neighbouring_slices(depth: int, data: st.DataObject) -> None:
    centres = data.draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=4))
    slices = torch.arange(depth * 6.0).view(depth, 2, 3)
    for centre, triplet in zip(centres, triplets(slices, torch.tensor(centres)), strict=True):
        assert torch.equal(triplet[1], slices[centre])
        assert torch.equal(triplet[0], slices[centre - 1 if centre else 0])
        assert torch.equal(triplet[2], slices[centre + 1 if centre + 1 < depth else centre])


def test_each_slice_is_denoised_from_its_triplet() -> None:
    network, noisy = trained(), volume()
    padded = np.concatenate([noisy[:1], noisy, noisy[-1:]])
    with torch.no_grad():
        expected = [
            network(torch.from_numpy(padded[z : z + 3])[None])[0, 1].numpy() for z in range(len(noisy))
        ]
    # Convolutions in another memory layout add up in another order: a few units in the last place.
    np.testing.assert_allclose(denoise(network, noisy), expected, rtol=1e-5, atol=1e-5)


@given(depth=st.integers(1, 6), slab=st.integers(1, 8), seed=st.integers(0, 9))
def test_slab_size_changes_nothing(depth: int, slab: int, seed: int) -> None:
    network, noisy = trained(seed), volume(depth, seed=seed)
    # Another batch size may choose another kernel: not more than a few units in the last place of SUV ~10.
    np.testing.assert_allclose(
        denoise(network, noisy, slab=slab), denoise(network, noisy), rtol=1e-6, atol=1e-6
    )


def test_progress_counts_slices() -> None:
    seen: list[tuple[int, int]] = []
    denoise(trained(), volume(5), slab=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_mode_is_put_back_even_after_a_failure() -> None:
    class Failing(DnCNN):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(f"training: {self.training}")

    network = Failing(NARROW).train()
    with pytest.raises(RuntimeError, match="training: False"):
        denoise(network, volume())
    assert network.training


def test_device_is_one_that_exists() -> None:
    assert torch.zeros(1, device=best_device()).sum().item() == 0.0
