"""Patches, the training loop with its resuming, and the three ways to fine-tune."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import save

from tests.pet.scans import RandomScans
from tgd_kit.errors import RunError
from tgd_kit.training.schedule import Schedule
from tgd_pet.evaluation.scores import evaluate
from tgd_pet.network import DnCNN, load_network, new_network
from tgd_pet.training.finetuning import METHODS, Method, finetune
from tgd_pet.training.fit import fit
from tgd_pet.training.patches import PatchPairs, fingerprint
from tgdsurgery import TGDError

WIDTHS = (8, 8, 8, 8, 3)
SHORT = Schedule(epochs=3, steps=4, batch=4, patch=16)
PATIENTS = [RandomScans(1), RandomScans(2)]


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    before, after = one.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def fitted(folder: Path, schedule: Schedule = SHORT, **options: object) -> DnCNN:
    network = new_network(0, WIDTHS)
    fit(network, PATIENTS, "v1", folder, schedule, progress=False, **options)
    return network


class StopAfter(Callback):
    """Fails at the start of an epoch, as a crash would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise ConnectionAbortedError


# Patches -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(0, 19), st.sampled_from([4, 16, 40]))
def test_a_patch_depends_on_seed_and_index_alone(seed: int, index: int, patch: int) -> None:
    pairs = [PatchPairs(PATIENTS, "v1", 20, seed=(seed, 1), patch=patch) for _ in range(2)]
    pairs[1][3]
    for one, other in zip(pairs[0][index], pairs[1][index], strict=True):
        assert one.shape == (3, patch, patch)
        assert torch.equal(one, other)


def test_seeds_and_indices_give_different_patches() -> None:
    patches = [
        PatchPairs(PATIENTS, "v1", 5, seed=(seed,), patch=16)[i][0] for seed in range(3) for i in range(5)
    ]
    assert len({patch.numpy().tobytes() for patch in patches}) == 15


class Indexed(RandomScans):
    """Every voxel's value is its place in the volume; the noise is a constant."""

    def full(self, version: str) -> np.ndarray:
        return np.arange(self._target.size, dtype=np.float32).reshape(self._target.shape)

    def low(self, version: str) -> list[np.ndarray]:
        return [self.full(version) + 0.25]


def test_noisy_and_clean_are_the_same_place_inside_the_body() -> None:
    patient = Indexed()
    depth, height, width = patient.body().shape
    pairs = PatchPairs([patient], "v1", 200, patch=16)
    flips = set()
    for noisy, clean in (pairs[i] for i in range(len(pairs))):
        assert torch.equal(noisy, clean + 0.25)
        z, y, x = np.unravel_index(clean.long().numpy(), (depth, height, width))
        steps = [np.unique(np.diff(v, axis=a)) for a, v in enumerate((z, y, x))]
        flips.add(tuple(int(step[-1] if step[-1] else step[0]) for step in steps))
        assert all(set(step) <= {-1, 1} for step in steps[1:])
        assert set(steps[0]) <= {-1, 0} or set(steps[0]) <= {0, 1}  # the ends of the volume are repeated
        centres = patient.body()[z[1], y[1], x[1]][7:9, 7:9]
        assert centres.any()
    assert flips == {(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)}


def test_fingerprint_tells_data_apart() -> None:
    prints = {fingerprint([RandomScans(seed)], version) for seed in (1, 2) for version in ("v1", "v2")}
    assert len(prints) == 4
    assert fingerprint([RandomScans(1)], "v1") in prints


# The loop ------------------------------------------------------------------------------------------------


def test_training_denoises_new_images(tmp_path: Path) -> None:
    network = fitted(tmp_path, Schedule(epochs=4, steps=40, batch=8, patch=16, rate=5e-3))
    unseen = [RandomScans(7)]
    assert evaluate(network, unseen, "v1").rmse < 0.8 * evaluate(None, unseen, "v1").rmse


def test_same_seed_same_network_and_the_file_holds_it(tmp_path: Path) -> None:
    one, other = fitted(tmp_path / "one"), fitted(tmp_path / "other")
    assert_same(one, other)
    assert_same(one, load_network(tmp_path / "one" / "network.safetensors"))
    assert not one.training
    different = new_network(0, WIDTHS)
    fit(
        different, PATIENTS, "v1", tmp_path / "different", Schedule(3, 4, 4, seed=1, patch=16), progress=False
    )
    assert not torch.equal(one.noise.conv1.weight, different.noise.conv1.weight)


@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, epoch: int) -> None:
    with pytest.raises(ConnectionAbortedError):
        fitted(tmp_path / "broken", callbacks=[StopAfter(epoch)])
    assert not (tmp_path / "broken" / "network.safetensors").exists()
    seen: list[int] = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(trainer.current_epoch)

    resumed = fitted(tmp_path / "broken", callbacks=[Watch()])
    assert seen == list(range(epoch, SHORT.epochs))
    assert_same(resumed, fitted(tmp_path / "whole"))


def test_a_run_that_is_told_to_end_says_how_to_go_on(tmp_path: Path) -> None:
    class Terminated(Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise SIGTERMException

    with pytest.raises(RunError, match="continues where"):
        fitted(tmp_path / "ended", callbacks=[Terminated()])
    assert_same(fitted(tmp_path / "ended"), fitted(tmp_path / "whole"))


def test_finished_run_is_taken_from_its_file(tmp_path: Path) -> None:
    first = fitted(tmp_path)
    again = fitted(tmp_path, callbacks=[StopAfter(0)])
    assert_same(first, again)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["network.safetensors", "run.json"]


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    fitted(tmp_path)
    with pytest.raises(RunError, match="rate differ"):
        fitted(tmp_path, Schedule(3, 4, 4, rate=1e-4, patch=16))
    with pytest.raises(RunError, match="images, data differ"):
        fit(new_network(0, WIDTHS), PATIENTS, "v2", tmp_path, SHORT, progress=False)
    with pytest.raises(RunError, match="first weights differ"):
        fit(new_network(1, WIDTHS), PATIENTS, "v1", tmp_path, SHORT, progress=False)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        fitted(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(Evil())], ids=["empty", "text", "code"])
def test_damaged_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConnectionAbortedError):
        fitted(tmp_path, callbacks=[StopAfter(1)])
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
    with pytest.raises(RunError, match="not a checkpoint"):
        fitted(tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_checkpoint_with_planted_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConnectionAbortedError):
        fitted(tmp_path, callbacks=[StopAfter(1)])
    path = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), "planted": Evil()}, path)
    with pytest.raises(RunError, match="not a checkpoint"):
        fitted(tmp_path)
    assert "ran" not in capsys.readouterr().out


def _interrupted(folder: Path) -> Path:
    with pytest.raises(ConnectionAbortedError):
        fitted(folder, callbacks=[StopAfter(1)])
    return folder / "checkpoints" / "last.ckpt"


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = _interrupted(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="not a checkpoint"):
        fitted(tmp_path)


@pytest.mark.parametrize("key", ["state_dict", "optimizer_states", "lr_schedulers", "loops"])
@pytest.mark.parametrize("other", ["text", {"a": 1}, [1]])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, key: str, other: object) -> None:
    path = _interrupted(tmp_path)
    torch.save({**torch.load(path, weights_only=True), key: other}, path)
    with pytest.raises(RunError, match="cannot continue from"):
        fitted(tmp_path)


def test_a_damaged_network_of_a_finished_run_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path)
    path = tmp_path / "network.safetensors"
    for content in (b"", path.read_bytes()[:-9], save({"a": torch.ones(1)})):
        path.write_bytes(content)
        with pytest.raises(TGDError, match="Delete it"):
            fitted(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"steps": 2.5}, {"rate": float("nan")}, {"rate": -1.0}, {"seed": -1}, {"batch": "4"}],
)
def test_a_schedule_out_of_its_ranges_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(RunError, match="The schedule has a wrong value"):
        fitted(tmp_path / "run", replace(SHORT, **wrong))
    assert not (tmp_path / "run").exists()


def test_diverged_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="diverged"):
        fitted(tmp_path, Schedule(epochs=1, steps=4, batch=4, rate=1e30, patch=16))
    assert not (tmp_path / "network.safetensors").exists()


def test_nothing_trainable_is_an_error_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="larger phi"):
        finetune(new_network(0, WIDTHS), PATIENTS, "v2", tmp_path / "run", SHORT, phi=0.0)
    assert not (tmp_path / "run").exists()


def test_more_accelerators_than_there_are_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    with pytest.raises(RunError, match="1 of 2 devices"):
        fitted(tmp_path / "run", Schedule(devices=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [1, 9, 10, 11])
def test_the_shortest_runs_have_a_learning_rate(tmp_path: Path, steps: int) -> None:
    fitted(tmp_path, Schedule(epochs=1, steps=steps, batch=1, patch=16))


def test_no_patient_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no patient"):
        fit(new_network(0, WIDTHS), [], "v1", tmp_path, SHORT)


def test_nothing_but_the_bar_is_shown_and_nothing_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("silent", "shown"):
        network = new_network(0, WIDTHS)
        fit(
            network,
            PATIENTS,
            "v1",
            tmp_path / folder,
            SHORT,
            validation=[RandomScans(3)],
            progress=folder == "shown",
        )
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("validation RMSE" in shown.err.replace("\n", " ")) == (folder == "shown")
        for word in ("GPU", "Tip", "Trainer", "worker", "arning"):
            assert word not in shown.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shown", "silent"]
    assert json.loads((tmp_path / "shown" / "run.json").read_text())["epochs"] == 3


# Fine-tuning ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DnCNN:
    return fitted(tmp_path_factory.mktemp("base"))


def moved(before: DnCNN, after: DnCNN) -> set[str]:
    state = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, state[name])}


@pytest.mark.parametrize("method", METHODS)
def test_finetuning_leaves_the_given_network_alone(tmp_path: Path, base: DnCNN, method: Method) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    tuned = finetune(base, PATIENTS, "v2", tmp_path, SHORT, method=method, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert type(tuned.network) is DnCNN
    assert all(parameter.requires_grad for parameter in tuned.network.parameters())
    assert_same(tuned.network, load_network(tmp_path / "network.safetensors"))


def test_full_moves_everything(tmp_path: Path, base: DnCNN) -> None:
    tuned = finetune(base, PATIENTS, "v2", tmp_path, SHORT, method="full", progress=False)
    assert (tuned.share, tuned.kept, tuned.plan) == (1.0, None, None)
    assert moved(base, tuned.network) == set(base.state_dict()) - {"suv_scale", "suv_limit"}


def test_last3_moves_three_blocks_and_no_statistics_before(tmp_path: Path, base: DnCNN) -> None:
    tuned = finetune(base, PATIENTS, "v2", tmp_path, SHORT, method="last3", progress=False)
    assert tuned.kept is True
    expected = {
        name for name in base.state_dict() if name.split(".")[1:2][0:1] and name.split(".")[1][-1] in "345"
    }
    assert moved(base, tuned.network) == expected
    sizes = [(parameter.numel(), name in expected) for name, parameter in base.named_parameters()]
    assert tuned.share == sum(size for size, moves in sizes if moves) / sum(size for size, _ in sizes)


def test_tgd_moves_what_its_plan_says(tmp_path: Path, base: DnCNN) -> None:
    tuned = finetune(base, PATIENTS, "v2", tmp_path, SHORT, method="tgd", phi=0.5, progress=False)
    assert tuned.kept is True
    assert tuned.plan is not None
    assert tuned.plan.phi == 0.5
    assert 0 < tuned.share == tuned.plan.share < 1
    for index, convolution in enumerate(base.convolutions, start=1):
        change = (convolution.weight != tuned.network.convolutions[index - 1].weight).flatten(1).any(1)
        assert torch.equal(change, tuned.plan.trainable(f"noise.conv{index}")), index
    assert "noise.conv5.weight" not in moved(base, tuned.network)


def test_interrupted_tgd_resumes_to_the_same_network(
    tmp_path: Path, base: DnCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str) -> DnCNN:
        return finetune(base, PATIENTS, "v2", tmp_path / folder, SHORT, method="tgd", progress=False).network

    with monkeypatch.context() as patch:
        patch.setattr(
            "tgd_kit.training.tgd.Guarded.on_train_epoch_start",
            StopAfter.on_train_epoch_start,
            raising=False,
        )
        patch.setattr("tgd_kit.training.tgd.Guarded.epoch", 2, raising=False)
        with pytest.raises(ConnectionAbortedError):
            run("broken")
    assert_same(run("broken"), run("whole"))
