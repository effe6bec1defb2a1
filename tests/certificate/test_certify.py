"""Certificates from files: any formats, deltas, prefixes, tasks and limits, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.certificate.states import denoiser
from tests.laws.subjects import in_both_forms
from tgdsurgery import (
    Certificate,
    CheckpointError,
    PlanError,
    TGDPlan,
    TGDWarning,
    apply_tgd,
    certify,
    from_onnx,
    remove_tgd,
    save_delta,
)
from tgdsurgery.export.export import export_network
from tgdsurgery.storage.checkpoints import read_state_dict, write_state_dict
from tgdsurgery.storage.delta_state import is_delta, state_with_delta


class Files:
    """A base, what training made of it in several formats, its delta and its plan, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.net = denoiser()
        tgd = apply_tgd(self.net, phi=0.5)
        self.plan: TGDPlan = tgd.tgd_plan
        with torch.no_grad():
            for parameter in tgd.parameters():
                parameter.add_(0.125)
        tgd.train()(torch.rand(2, 1, 8, 8))
        self.base, self.tuned = self.net.state_dict(), remove_tgd(tgd).state_dict()
        self.write("base.pt", self.base)
        self.write("tuned.pt", self.tuned)
        self["plan.json"].write_text(self.plan.to_json())
        save_delta(tgd, self["delta.safetensors"])

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, state: dict[str, Tensor]) -> Path:
        write_state_dict(state, self[name])
        return self[name]

    def certify(self, base: str = "base.pt", tuned: str = "tuned.pt", **settings: Any) -> Certificate:
        return certify(self[base], self[tuned], settings.pop("plan", self["plan.json"]), **settings)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_what_is_recorded(files):
    found = files.certify(delta=files["delta.safetensors"])
    assert found.ok
    assert found.findings == ()
    data = json.loads(found.to_json())
    assert data["format"] == "tgdsurgery-certificate-1"
    assert data["ok"] is True
    sections = ["description_of_modifications", "modification_protocol", "impact_assessment"]
    assert [key for key in data if key in sections] == sections
    assert {file["role"]: file["sha256"] for file in data["files"]} == {
        role: hashlib.sha256(files[name].read_bytes()).hexdigest()
        for role, name in (
            ("base", "base.pt"), ("tuned", "tuned.pt"), ("plan", "plan.json"), ("delta", "delta.safetensors")
        )
    }  # fmt: skip
    assert data["versions"]["torch"] == torch.__version__
    assert data["versions"]["python"] == platform.python_version()
    assert data["made"].endswith("+00:00")
    first = data["description_of_modifications"]["layers"][0]
    assert first["trainable"] == files.plan["0"].trainable > 0
    assert found.digest == hashlib.sha256(found.to_json().encode()).hexdigest()
    impact = data["impact_assessment"]
    assert impact["rollback"] == {"restores_base": True, "delta_makes_tuned": True, "differing": []}
    assert {t["name"] for t in impact["comparison"]["tensors"]} == files.base.keys()
    assert "ACCEPTED: nothing changed but what the plan allows" in str(found)


@pytest.mark.parametrize("base", ["base.pt", "base.safetensors", "base.bin"])
@pytest.mark.parametrize("tuned", ["tuned.pt", "tuned.safetensors", "tuned.ckpt"])
def test_any_pair_of_formats(files, base, tuned):
    files.write(base, files.base)
    files.write(tuned, files.tuned)
    found = files.certify(base, tuned)
    assert found.ok
    same = files.certify()
    assert [file.contents for file in found.files] == [file.contents for file in same.files]
    files.tuned["3.weight"][0, 0, 0, 0] += 1
    files.write(tuned, files.tuned)
    found = files.certify(base, tuned)
    assert found.findings[0] == "3.weight: 1 of 144 frozen entries changed, in channels 0."
    assert found.files[1].contents != same.files[1].contents


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
def test_programs_of_torch_export(files):
    for name, state in (("base", files.base), ("tuned", files.tuned)):
        files.net.load_state_dict(state)
        program = torch.export.export(files.net, (torch.rand(2, 1, 8, 8),))
        torch.export.save(program, files[f"{name}.pt2"])
    found, same = files.certify("base.pt2", "tuned.pt2"), files.certify()
    assert found.ok
    assert [file.contents for file in found.files] == [file.contents for file in same.files]
    assert files.certify("base.pt2", "tuned.pt").ok


def test_a_network_that_came_as_onnx(tmp_path):
    """Its plan, its training and its certificate need no other file of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    export_network(net, (torch.rand(2, 1, 8, 8),), tmp_path / "base.onnx", "onnx")
    tgd = apply_tgd(from_onnx(tmp_path / "base.onnx"), torch.rand(2, 1, 8, 8), phi=0.5)
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(0.125)
    state = remove_tgd(tgd).state_dict()
    write_state_dict(state, tmp_path / "tuned.pt")
    save_delta(tgd, tmp_path / "delta.safetensors")
    for tuned in ("tuned.pt", "delta.safetensors"):
        assert certify(tmp_path / "base.onnx", tmp_path / tuned, tgd.tgd_plan).ok
    weight = next(name for name in state if name.endswith("weight") and len(state[name]) == 1)
    state[weight][0, 5] *= -1
    write_state_dict(state, tmp_path / "tuned.pt")
    found = certify(tmp_path / "base.onnx", tmp_path / "tuned.pt", tgd.tgd_plan)
    assert found.findings[0] == f"{weight}: 9 of 144 frozen entries changed, in channels 0."


def test_a_whole_checkpoint_with_prefixes(files):
    wrapped = {f"model.{name}": tensor for name, tensor in files.tuned.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, files["last.ckpt"])
    assert files.certify(tuned="last.ckpt").ok
    assert files.certify(tuned="last.ckpt", delta=files["delta.safetensors"]).ok


def test_a_delta_is_what_it_makes(files):
    found = certify(files["base.pt"], files["delta.safetensors"])
    assert found.ok
    assert [file.role for file in found.files] == ["base", "delta"]
    assert found.files[1].contents == files.certify().files[1].contents
    assert found.impact_assessment.rollback.delta_makes_tuned is None
    assert found.description_of_modifications == files.certify().description_of_modifications


def test_a_delta_that_does_not_make_the_tuned_network(files):
    files.tuned["0.weight"][files.plan.trainable("0")] += 1
    files.write("tuned.pt", files.tuned)
    assert files.certify().ok
    found = files.certify(delta=files["delta.safetensors"])
    assert found.findings == ("Base and delta together are not the tuned network.",)
    assert found.impact_assessment.rollback.differing == ("0.weight",)


def test_a_delta_of_another_plan_or_base_is_refused(files):
    with pytest.raises(CheckpointError, match="was made with another plan"):
        files.certify(plan=files.plan.override({"0": "freeze"}), delta=files["delta.safetensors"])
    with pytest.raises(CheckpointError, match="is a delta itself"):
        files.certify(tuned="delta.safetensors", delta=files["delta.safetensors"])
    files.base["3.weight"] = files.base["3.weight"] + 1
    files.write("base.pt", files.base)
    with pytest.raises(CheckpointError, match="was made from another network"):
        certify(files["base.pt"], files["delta.safetensors"])


def test_a_delta_on_a_file_that_keeps_tied_weights_twice(tmp_path):
    from tests.topologies import case_of

    case = case_of("tied weights")
    tgd = apply_tgd(case.model, case.inputs, phi=0.95)
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(1)
    save_delta(tgd, tmp_path / "delta.safetensors")
    write_state_dict(case.model.state_dict(), tmp_path / "base.safetensors")
    found = state_with_delta(read_state_dict(tmp_path / "base.safetensors"), tmp_path / "delta.safetensors")
    expected = remove_tgd(tgd).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(expected["first.weight"], case.model.state_dict()["first.weight"])
    assert certify(tmp_path / "base.safetensors", tmp_path / "delta.safetensors").ok


@pytest.mark.parametrize("without", ["base", "tuned"])
def test_files_without_counters(files, without):
    """As old checkpoints are."""
    state = getattr(files, without)
    del state["1.num_batches_tracked"]
    files.write(f"{without}.pt", state)
    assert files.certify().ok


def test_what_is_a_delta(files):
    assert is_delta(files["delta.safetensors"])
    files.write("tuned.safetensors", files.tuned)
    for name in ("tuned.safetensors", "tuned.pt", "none.safetensors"):
        assert not is_delta(files[name])


class TestTasks:
    @staticmethod
    def sharpness(net: nn.Module) -> Tensor:
        assert not net.training
        return net(torch.rand(1, 1, 8, 8)).abs().mean()

    def test_limits_decide(self, files):
        before = copy.deepcopy(files.net.state_dict())
        for limit, met in (("<=1e9", True), (">= 1e9", False), ("<1e9", True), (">-1", True)):
            found = files.certify(model=files.net, old_task=(self.sharpness, limit))
            assert found.ok is met
            ((kept, measured),) = found.measured
            assert (kept.task, kept.text, measured.met) == ("old", limit, met)
            assert kept.evaluation == "TestTasks.sharpness"
            assert measured.base != measured.tuned
        assert all(torch.equal(files.net.state_dict()[name], before[name]) for name in before)

    def test_a_missed_limit_is_a_finding(self, files):
        found = files.certify(
            model=files.net, old_task=(self.sharpness, "<9"), new_task=(lambda net: 0.5, "<=0.25")
        )
        assert found.findings == ("The new task is at 0.5; its limit is <=0.25.",)
        assert "new task: 0.5 before, 0.5 after, limit <=0.25" in str(found)

    def test_the_same_random_numbers_for_both(self, files):
        (_, one), (_, other) = files.certify(
            model=files.net, old_task=(self.sharpness, "<9"), new_task=(self.sharpness, "<9")
        ).measured
        assert (one.base, one.tuned) == (other.base, other.tuned)

    def test_no_limit_no_measurement(self, files):
        def never(net: nn.Module) -> float:
            raise AssertionError("measured before the limit was read")

        for limit in ("0.5", "<=", "=0.5", "<=nan", "<= 0.5 mm"):
            with pytest.raises(PlanError, match="is not a limit"):
                files.certify(model=files.net, old_task=(never, limit))

    def test_what_cannot_be_measured(self, files):
        with pytest.raises(PlanError, match="There is no network to measure"):
            files.certify(old_task=(self.sharpness, "<9"))
        with pytest.raises(PlanError, match=r"evaluate returned nan for the base \(.*lambda"):
            files.certify(model=files.net, old_task=(lambda net: float("nan"), "<9"))
        with pytest.raises(CheckpointError, match="The base does not fit the model"):
            files.certify(model=nn.Conv2d(1, 1, 1), old_task=(self.sharpness, "<9"))


@pytest.mark.parametrize("norm_stats", ["hold", "batch"])
@in_both_forms
def test_real_training_of_a_real_network(tmp_path, form, norm_stats):
    """A U-Net of MONAI, trained by AdamW with weight decay: accepted; trained without TGD it is not."""
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    net = UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=1, norm="batch")
    tgd = apply_tgd(net, torch.rand(2, 1, 32, 32), phi=0.6, form=form, norm_stats=norm_stats)
    write_state_dict(net.state_dict(), tmp_path / "base.pt")
    for name, model in (("tuned.pt", tgd), ("full.pt", net)):
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.rand(2, 1, 32, 32)).square().mean().backward()
            optimizer.step()
        write_state_dict(model.state_dict(), tmp_path / name)
    save_delta(tgd, tmp_path / "delta.safetensors")
    files = [tmp_path / "base.pt", tmp_path / "tuned.pt"]
    found = certify(*files, tgd.tgd_plan, delta=tmp_path / "delta.safetensors")
    assert found.findings == ()
    moved = [drift for drift in found.impact_assessment.comparison.layers if drift.trainable]
    assert moved
    assert all(drift.moved == drift.trainable for drift in moved)
    assert len(certify(files[0], tmp_path / "full.pt", tgd.tgd_plan).findings) > 10


def test_many_findings_are_all_in_the_file_and_few_on_the_screen(files):
    for name in list(files.tuned):
        files.tuned[f"copy.{name}"] = files.tuned[name].clone()
    files.write("tuned.pt", files.tuned)
    found = files.certify()
    # All but the counter were added, and the base does not come back.
    assert len(found.findings) == len(files.base) - 1 + 1
    assert "And 4 more." in str(found)
    assert json.loads(found.to_json())["findings"] == list(found.findings)


def test_changes_that_are_no_numbers_are_written_with_a_warning(files):
    row = int(files.plan.trainable("0").nonzero()[0])
    files.tuned["0.weight"][row] = torch.nan
    files.write("tuned.pt", files.tuned)
    with pytest.warns(TGDWarning, match=r"tuned\.pt holds NaN or infinity in 0\.weight\."):
        found = files.certify()
    assert found.ok
    assert json.loads(found.to_json())["impact_assessment"]["comparison"]["layers"][0]["largest"] is None
    assert "not finite" in str(found)
    assert "not finite" in found.to_html()


def test_a_plan_is_needed(files):
    with pytest.raises(PlanError, match="Nothing says what was allowed to change"):
        files.certify(plan=None)
    for name, problem in (("none.json", "No such file"), ("base.pt", "is not text")):
        with pytest.raises(PlanError, match=f"cannot be read: .*{problem}"):
            files.certify(plan=files[name])
    files["plan.json"].write_text("{}")
    with pytest.raises(PlanError, match="not a TGD plan"):
        files.certify()
