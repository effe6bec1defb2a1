"""Training of denoisers and segmenters: what moves, what does not, and that a broken run goes on to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.ct.cases import DOSE, disc_cases
from tgd_ct.networks.extractors import new_autoencoder
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_ct.networks.generator import KINDS, Generator, Kind, new_generator
from tgd_ct.networks.segmenters import Segmenter, new_segmenter
from tgd_ct.training import denoiser
from tgd_ct.training.denoiser import Judges, train_denoiser
from tgd_ct.training.extractor import train_extractor
from tgd_ct.training.joint import train_jointly
from tgd_ct.training.losses import CLIP, Weights
from tgd_ct.training.segmenter import train_segmenter
from tgd_kit.errors import RunError
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule

CASES = disc_cases()
SHORT = Schedule(epochs=2, steps=3, batch=2, rate=1e-2, patch=16)
WIDTHS = (3, 4, 4, 5)
ADVERSARIAL = Weights(mse=0.5, gan=1.0, task=1.0)


def segmenter() -> Segmenter:
    return new_segmenter(0, "unet", 4)


def trained(
    folder: Path,
    weights: Weights,
    *,
    kind: Kind = "2d",
    judges: Judges | None = None,
    schedule: Schedule = SHORT,
) -> Generator:
    network = new_generator(0, kind, WIDTHS)
    judges = judges or Judges(segmenter(), new_autoencoder(0, 2))
    train_denoiser(
        network, CASES, DOSE, "liver", folder, schedule, weights=weights, judges=judges, progress=False
    )
    return network


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "weights",
    [Weights(), Weights(task=1.0, perceptual=1.0), ADVERSARIAL, replace(ADVERSARIAL, lipschitz="penalty")],
)
def test_every_kind_trains_by_every_loss(kind: Kind, weights: Weights, tmp_path: Path) -> None:
    network = trained(tmp_path, weights, kind=kind)
    before = new_generator(0, kind, WIDTHS).state_dict()
    moved = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == list(before)
    assert same(load_generator(tmp_path / NETWORK), network)
    assert not network.training


@pytest.mark.parametrize("weights", [Weights(task=1.0, perceptual=1.0), ADVERSARIAL])
def test_the_judges_do_not_move(weights: Weights, tmp_path: Path) -> None:
    judges = Judges(segmenter(), new_autoencoder(0, 2))
    trained(tmp_path, weights, judges=judges)
    assert same(judges.all[0], segmenter())
    assert same(judges.all[1], new_autoencoder(0, 2))
    assert not any(parameter.requires_grad for judge in judges.all for parameter in judge.parameters())
    assert not any(judge.training for judge in judges.all)


@pytest.mark.parametrize("part", ["mse", "gan", "task", "perceptual"])
def test_every_loss_counts(part: str, tmp_path: Path) -> None:
    weights = Weights(mse=1.0, gan=1.0, task=1.0, perceptual=1.0)
    one = trained(tmp_path / "one", weights)
    other = trained(tmp_path / "other", replace(weights, **{part: 2.0}))
    assert not same(one, other)


def test_the_critic_is_clipped_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[float] = []

    class Watched(denoiser.Adversarial):
        def training_step(self, batch: tuple[Tensor, Tensor, Tensor], index: int) -> object:
            loss = super().training_step(batch, index)
            largest.append(max(float(p.detach().abs().max()) for p in self.critic.parameters()))
            return loss

    monkeypatch.setattr(denoiser, "Adversarial", Watched)
    trained(tmp_path / "clip", ADVERSARIAL)
    assert len(largest) == 6
    assert max(largest) == pytest.approx(CLIP)
    largest.clear()
    trained(tmp_path / "penalty", replace(ADVERSARIAL, lipschitz="penalty"))
    assert min(largest) > CLIP


@pytest.mark.parametrize("weights", [Weights(), ADVERSARIAL, replace(ADVERSARIAL, lipschitz="penalty")])
def test_a_broken_run_goes_on_to_the_same_network(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: denoiser.Denoising) -> None:
        if self.current_epoch == 1:
            raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(denoiser.Denoising, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(ConnectionAbortedError):
            trained(tmp_path / "broken", weights)
    assert (tmp_path / "broken" / "checkpoints" / "last.ckpt").exists()
    resumed = trained(tmp_path / "broken", weights)
    assert same(resumed, trained(tmp_path / "whole", weights))
    assert same(resumed, trained(tmp_path / "broken", weights))  # the finished run


def test_what_was_asked_is_held_against_another_run(tmp_path: Path) -> None:
    trained(tmp_path, Weights())
    with pytest.raises(RunError, match="weights"):
        trained(tmp_path, Weights(mse=2.0))
    other = new_segmenter(1, "unet", 4)
    trained(tmp_path / "judged", Weights(task=1.0))
    with pytest.raises(RunError, match="judges"):
        trained(tmp_path / "judged", Weights(task=1.0), judges=Judges(other))


def test_a_loss_without_its_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"segmenter.*tgd ct pretrain"):
        trained(tmp_path, Weights(task=1.0), judges=Judges())
    with pytest.raises(RunError, match="extractor"):
        trained(tmp_path, Weights(perceptual=1.0), judges=Judges())
    assert not any(tmp_path.iterdir())


def test_several_devices_are_refused_against_a_critic(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="one device"):
        trained(tmp_path, ADVERSARIAL, schedule=replace(SHORT, devices=2))
    assert not any(tmp_path.iterdir())


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    trained(tmp_path, replace(ADVERSARIAL, lipschitz="penalty"))
    assert torch.equal(torch.rand(3), wanted)


def test_a_segmenter_learns_discs(tmp_path: Path) -> None:
    network = segmenter()
    schedule = replace(SHORT, epochs=1, steps=60, batch=8, patch=32)
    train_segmenter(network, CASES, "liver", tmp_path, schedule, progress=False)
    slices = torch.from_numpy(CASES[0].image(1.0))[:, None]
    found = network(slices).argmax(1) > 0
    true = torch.from_numpy(CASES[0].target("liver")) > 0
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8
    assert same(load_segmenter(tmp_path / NETWORK), network)


def test_joint_training_moves_both(tmp_path: Path) -> None:
    generator, judge = new_generator(0, "2d", WIDTHS), segmenter()
    train_jointly(generator, judge, CASES, DOSE, "liver", tmp_path, SHORT, task_weight=0.1, progress=False)
    assert not same(generator, new_generator(0, "2d", WIDTHS))
    before = dict(segmenter().named_parameters())
    # A bias before a batch norm has no gradient.
    moved = [name for name, p in judge.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) > len(before) / 2


def test_an_extractor_learns_to_return_slices(tmp_path: Path) -> None:
    def error(network: nn.Module) -> float:
        slices = torch.from_numpy(CASES[0].image(1.0))[:, None].clamp(-200, 300)
        with torch.no_grad():
            return float((network.decode(network(slices)) - slices).square().mean().sqrt())

    network = new_autoencoder(0, 4)
    train_extractor(network, CASES, "liver", tmp_path, replace(SHORT, steps=40, patch=32), progress=False)
    assert error(network) < error(new_autoencoder(0, 4)) / 3
