"""Noise2noise online learning: what is held out stays unseen, the best weights stay, the patient's rows come apart."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pet.scans import RandomScans
from tgd_kit.errors import RunError
from tgd_kit.training.keep_best import KeepBest
from tgd_kit.training.schedule import Schedule
from tgd_pet.denoising import denoise
from tgd_pet.network import DnCNN, load_network, new_network
from tgd_pet.training.fit import fit
from tgd_pet.training.halves import GAP, HeldOut, hold_out, swapped
from tgd_pet.training.online import ROWS, Online, online
from tgd_pet.training.patches import PatchPairs
from tgdsurgery import load_delta

WIDTHS = (8, 8, 8, 8, 3)
SHORT = Schedule(epochs=3, steps=6, batch=4, rate=1e-3)
SCAN_A, SCAN_B = RandomScans(0, (12, 48, 40)).low("v1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DnCNN:
    """A network trained a little on other images, with statistics of its own."""
    network = new_network(0, WIDTHS)
    folder, schedule = tmp_path_factory.mktemp("base"), Schedule(epochs=1, steps=40, batch=4)
    fit(network, [RandomScans(7)], "v2", folder, schedule, progress=False)
    return network


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# What is held out ----------------------------------------------------------------------------------------


@given(depth=st.integers(6, 300), empty=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_no_trained_triplet_shares_a_slice_with_a_held_out_one(depth: int, empty: tuple[int, int]) -> None:
    scan = np.zeros((sum(empty) + depth, 4, 4), np.float32)
    scan[empty[0] : empty[0] + depth] = np.random.default_rng(depth).uniform(1, 2, (depth, 4, 4))
    held_out = hold_out(scan, scan[:, ::-1] * 1.01, patch=4)
    last = len(scan) - 1
    reach = [{min(max(z + step, 0), last) for step in (-1, 0, 1)} for z in range(len(scan))]
    trained = np.flatnonzero(held_out.trained().any(axis=(1, 2)))
    held = range(held_out.slices.start, held_out.slices.stop)
    filled = len(np.flatnonzero(held_out.active.any(axis=(1, 2))))
    assert len(held) == (min(max(filled // 4, 3), 16) if filled >= 8 else filled - 5)
    assert held_out.active[held_out.slices].any()
    assert not set().union(*(reach[z] for z in trained)) & set().union(*(reach[z] for z in held))


def seen(held_out: HeldOut) -> Iterator[torch.Tensor]:
    for noisy, target in PatchPairs(swapped(held_out), "halves", 200):
        yield from (noisy, target)


def poisoned(scan: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """NaN in every slice that a held-out triplet reads."""
    scan = scan.copy()
    scan[held_out.slices.start - 1 : held_out.slices.stop + 1] = np.nan
    return scan


def test_patches_never_touch_what_is_held_out() -> None:
    held_out = hold_out(SCAN_A, SCAN_B, patch=32)
    scans = [poisoned(scan, held_out) for scan in (SCAN_A, SCAN_B)]
    unseen = HeldOut(*scans, held_out.active, held_out.slices)
    assert all(patch.isfinite().all() for patch in seen(unseen))


def test_a_smaller_gap_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgd_pet.training.halves.GAP", GAP - 1)
    held_out = hold_out(SCAN_A, SCAN_B, patch=32)
    scans = [poisoned(scan, held_out) for scan in (SCAN_A, SCAN_B)]
    unseen = HeldOut(*scans, held_out.active, held_out.slices)
    assert not all(patch.isfinite().all() for patch in seen(unseen))


def test_both_directions_are_trained_on() -> None:
    pairs = PatchPairs(swapped(hold_out(SCAN_A, np.float32(1.1) * SCAN_B, patch=32)), "halves", 50)
    ratios = np.array([float(target.sum() / noisy.sum()) for noisy, target in pairs])
    assert (ratios > 1.05).any()
    assert (ratios < 0.95).any()


def test_error_is_that_of_the_whole_volumes_in_the_held_out_slices(base: DnCNN) -> None:
    held_out, network = hold_out(SCAN_A, SCAN_B, patch=32), base
    where = np.zeros(SCAN_A.shape, bool)
    where[held_out.slices] = held_out.active[held_out.slices]
    squares = [
        (denoise(network, noisy)[where] - other[where]) ** 2
        for noisy, other in ((SCAN_A, SCAN_B), (SCAN_B, SCAN_A))
    ]
    # Sums in float32 here, in float64 there.
    assert held_out.error(network) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (SCAN_B[:, :-1], "shapes"),
        (SCAN_A, "the same"),
        (np.float32(1 + 1e-3) * SCAN_A, "the same"),
        (SCAN_B * 2, "mean of one image"),
    ],
)
def test_what_cannot_be_halves_of_one_scan_is_refused(other: np.ndarray, said: str) -> None:
    with pytest.raises(RunError, match=said):
        hold_out(SCAN_A, other, patch=32)


@pytest.mark.parametrize("part", [np.s_[:, :31], np.s_[:, :, 4:35], np.s_[:5], np.s_[:1]])
def test_too_small_images_are_refused(part: tuple[slice, ...]) -> None:
    with pytest.raises(RunError, match=r"hold no patch|too few"):
        hold_out(SCAN_A[part], SCAN_B[part], patch=32)


def test_images_without_activity_are_refused() -> None:
    empty = np.zeros_like(SCAN_A)
    empty[0, 0, 0] = 1e-3
    with pytest.raises(RunError, match="0 slices with activity"):
        hold_out(empty, empty[::-1], patch=32)


# When to stop --------------------------------------------------------------------------------------------


def stopped(folder: Path, errors: list[float], patience: int) -> tuple[DnCNN, list[dict[str, torch.Tensor]]]:
    """The network after training with made-up errors, and its weights at each measurement."""
    states: list[dict[str, torch.Tensor]] = []

    def error(network: torch.nn.Module) -> float:
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return errors[len(states) - 1]

    network = new_network(0, WIDTHS)
    schedule = Schedule(epochs=len(errors) - 1, steps=1, batch=1)
    callback = KeepBest(error, patience, "error")
    fit(network, [RandomScans(1)], "v1", folder, schedule, progress=False, callbacks=[callback])
    return network, states


@pytest.mark.parametrize(
    ("errors", "measured", "best"),
    [
        ([5, 4, 3, 2], 4, 3),
        ([5, 4, 6, 6, 1, 1], 4, 1),
        ([5, 4, 6, 3, 6, 6, 1], 6, 3),
        ([5, 5, 5, 5], 3, 0),
        ([5, float("nan"), float("nan"), 1], 3, 0),
    ],
    ids=["all better", "stops", "waits anew", "no gain", "nan"],
)
def test_training_stops_and_leaves_the_best_weights(
    tmp_path: Path, errors: list[float], measured: int, best: int
) -> None:
    network, states = stopped(tmp_path, errors, 2)
    assert len(states) == measured
    for name, value in network.state_dict().items():
        assert torch.equal(value, states[best][name])
    assert not torch.equal(states[0]["noise.conv5.weight"], states[1]["noise.conv5.weight"])


# The whole ------------------------------------------------------------------------------------------------


def learned(network: DnCNN, folder: Path, **settings: object) -> Online:
    return online(network, SCAN_A, SCAN_B, folder, SHORT, progress=False, **settings)


@pytest.mark.parametrize("flow", ["masked", "full"])
def test_tgd_retrains_a_few_rows_which_stand_apart(tmp_path: Path, base: DnCNN, flow: str) -> None:
    before = copy.deepcopy(base)
    tuned = learned(base, tmp_path, phi=0.5, flow=flow)
    assert_same(base, before)
    assert type(tuned.network) is DnCNN
    assert tuned.kept is True
    assert (tuned.plan.phi, tuned.plan.flow) == (0.5, flow)
    assert 0 < tuned.share < 0.5
    assert tuned.after < tuned.before
    assert_same(load_delta(base, tmp_path / ROWS), tuned.network)
    assert_same(load_network(tmp_path / "network.safetensors"), tuned.network)
    assert (tmp_path / ROWS).stat().st_size > 0


def test_plain_noise2noise_retrains_everything(tmp_path: Path, base: DnCNN) -> None:
    tuned = learned(base, tmp_path, method="full")
    assert (tuned.share, tuned.kept, tuned.plan) == (1.0, None, None)
    assert tuned.after < tuned.before
    state = base.state_dict()
    still = {name for name, value in tuned.network.state_dict().items() if torch.equal(value, state[name])}
    assert still == {"suv_scale", "suv_limit"}
    assert not (tmp_path / ROWS).exists()


def test_the_same_again_is_the_same_and_something_else_is_refused(tmp_path: Path, base: DnCNN) -> None:
    first = learned(base, tmp_path)
    written = (tmp_path / "network.safetensors").stat().st_mtime_ns
    again = learned(base, tmp_path)
    assert (tmp_path / "network.safetensors").stat().st_mtime_ns == written
    assert_same(first.network, again.network)
    assert (first.before, first.after, first.kept) == (again.before, again.after, again.kept)
    for settings in ({"phi": 0.4}, {"flow": "masked"}, {"method": "full"}, {"patience": 9}):
        with pytest.raises(RunError, match="purpose"):
            learned(base, tmp_path, **settings)
    with pytest.raises(RunError, match="data"):
        online(base, SCAN_A, SCAN_A[::-1], tmp_path, SHORT, progress=False)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_network(
    tmp_path: Path, base: DnCNN, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    def broken(self: KeepBest, trainer: object, module: object) -> None:
        if trainer.current_epoch == epoch:
            raise ConnectionAbortedError

    with monkeypatch.context() as patch:
        patch.setattr(KeepBest, "on_train_epoch_start", broken)
        with pytest.raises(ConnectionAbortedError):
            learned(base, tmp_path / "broken")
    assert not (tmp_path / "broken" / ROWS).exists()
    taken_up, whole = learned(base, tmp_path / "broken"), learned(base, tmp_path / "whole")
    assert_same(taken_up.network, whole.network)
    assert taken_up.after == whole.after


def test_a_run_interrupted_after_its_last_epoch_does_not_train_on(tmp_path: Path) -> None:
    """Between the decision to stop and the file of the network."""
    errors = [5.0, 6, 6, 1, 1]
    network, states = stopped(tmp_path / "whole", errors, 2)
    assert len(states) == 3

    class Broken(KeepBest):
        def on_train_end(self, trainer: object, pl_module: object) -> None:
            raise ConnectionAbortedError

    def run(kind: type[KeepBest], measured: Iterator[float]) -> DnCNN:
        tuned = new_network(0, WIDTHS)
        callback = kind(lambda network: next(measured), 2, "error")
        callback.__class__.state_key = "KeepBest"
        fit(
            tuned,
            [RandomScans(1)],
            "v1",
            tmp_path / "broken",
            Schedule(epochs=4, steps=1, batch=1),
            progress=False,
            callbacks=[callback],
        )
        return tuned

    with pytest.raises(ConnectionAbortedError):
        run(Broken, iter(errors))
    assert_same(run(KeepBest, iter(())), network)
