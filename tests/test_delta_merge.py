"""Deltas merged: disjoint ones exactly, overlapping ones refused unless told how; and the one that a scan asks for."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.deltas import bits, saved
from tests.laws.subjects import Method, on_every_topology
from tests.strategies import Case, cases
from tests.test_delta import IMAGES, base
from tests.topologies import case_of
from tgdsurgery import (
    CheckpointError,
    TGDPlan,
    apply_tgd,
    choose_delta,
    load_delta,
    merge_deltas,
    plan_tgd,
    save_delta,
)
from tgdsurgery.storage.delta_entries import entries_of, named_in, state_of
from tgdsurgery.storage.delta_file import contents, read_delta
from tgdsurgery.storage.delta_merge import merged_plan

CASE = Case(base(), IMAGES)


def divided(plan: TGDPlan, parts: int, seed: int) -> list[TGDPlan]:
    """Plans that share the channels among them, at random; some may get nothing."""
    draw = torch.Generator().manual_seed(seed)
    owners = [torch.randint(parts, (len(entry.mask),), generator=draw).tolist() for entry in plan.entries]
    return [
        replace(
            plan,
            entries=tuple(
                replace(entry, mask=tuple(m and o == part for m, o in zip(entry.mask, own, strict=True)))
                for entry, own in zip(plan.entries, owners, strict=True)
            ),
        )
        for part in range(parts)
    ]


def expected(case: Case, files: list[Path]) -> dict[str, Tensor]:
    """The base with the rows of one file after the other put in by hand; counters are the largest."""
    net = copy.deepcopy(case.model)
    state = net.state_dict()
    for file in files:
        delta = read_delta(file)
        for name, entry in entries_of(state_of(net), delta.plan, named_in(net)).items():
            if name in delta.values:
                values = delta.values[name]
                if name.endswith("num_batches_tracked"):
                    values = torch.maximum(values, state[name].flatten())
                state[name][entry.movable] = values
    return net.state_dict()


def assert_merges(case: Case, parts: int, seed: int, folder: Path) -> None:
    """Raise unless disjoint deltas merge to what all of them do, in any order, and the base stays."""
    plans = divided(plan_tgd(case.model, case.inputs, phi=1.0), parts, seed)
    files = [folder / f"{part}.safetensors" for part in range(parts)]
    for number, (plan, file) in enumerate(zip(plans, files, strict=True)):
        saved(case, file, number, plan=plan)
    before = bits(case.model.state_dict())
    merge_deltas(case.model, files, folder / "merged.safetensors")
    assert bits(case.model.state_dict()) == before
    merged = load_delta(case.model, folder / "merged.safetensors")
    assert bits(merged.state_dict()) == bits(expected(case, files))
    merge_deltas(case.model, files[::-1], folder / "reversed.safetensors")
    again = load_delta(case.model, folder / "reversed.safetensors")
    assert bits(again.state_dict()) == bits(merged.state_dict())
    plan = read_delta(folder / "merged.safetensors").plan
    for entry in plan.entries:
        masks = [part[entry.layer.name].mask for part in plans]
        assert entry.mask == tuple(map(any, zip(*masks, strict=True)))


@pytest.mark.filterwarnings("ignore::tgdsurgery.PlanWarning")  # a part may be small
@given(case=cases(), parts=st.integers(2, 3), seed=st.integers(0, 2**16))
def test_random_disjoint_deltas(case, parts, seed, tmp_path_factory):
    assert_merges(case, parts, seed, tmp_path_factory.mktemp("random"))


@pytest.mark.filterwarnings("ignore::tgdsurgery.PlanWarning")
@on_every_topology
def test_catalogue(name, tmp_path):
    assert_merges(case_of(name), 2, 0, tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two deltas over `base` that share most rows, the second of a wider plan."""
    names = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    saved(CASE, names[0], 1, method=Method(phi=0.3))
    saved(CASE, names[1], 2, method=Method(phi=0.6))
    return names


def test_shared_rows_are_refused_and_nothing_is_written(files, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"write other values to [\d,]+ entries that they share \(.*--overlap"
    ):
        merge_deltas(base(), files, tmp_path / "merged.safetensors")
    assert sorted(tmp_path.iterdir()) == files


def test_told_how_the_first_or_the_last_counts(files, tmp_path):
    for overlap, order in (("last", files), ("first", files[::-1])):
        merge_deltas(base(), files, tmp_path / "merged.safetensors", overlap=overlap)
        merged = load_delta(base(), tmp_path / "merged.safetensors")
        assert bits(merged.state_dict()) == bits(expected(CASE, order))
    assert bits(expected(CASE, files)) != bits(expected(CASE, files[::-1]))


def test_there_is_no_mean_and_no_merge_of_nothing(files, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"overlap='mean'\. Give one or more, and one of refuse, first, last"
    ):
        merge_deltas(base(), files, tmp_path / "merged.safetensors", overlap="mean")
    with pytest.raises(CheckpointError, match="0 deltas cannot be merged"):
        merge_deltas(base(), [], tmp_path / "merged.safetensors")


def test_equal_values_are_no_conflict(files, tmp_path):
    shutil.copy(files[0], tmp_path / "copy.safetensors")
    merge_deltas(base(), [files[0], tmp_path / "copy.safetensors"], tmp_path / "merged.safetensors")
    one, merged = (load_delta(base(), tmp_path / f"{name}.safetensors") for name in ("a", "merged"))
    assert bits(merged.state_dict()) == bits(one.state_dict())


def test_the_larger_count_of_batches_is_taken(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for batches, file, plan in zip(
        (9, 4), files, divided(plan_tgd(base(), IMAGES, phi=0.9), 2, 0), strict=True
    ):
        tgd = apply_tgd(base(), IMAGES, plan=plan).train()
        for _ in range(batches):
            tgd(IMAGES)
        save_delta(tgd, file)
    merge_deltas(base(), files, tmp_path / "merged.safetensors")
    assert load_delta(base(), tmp_path / "merged.safetensors")[1].num_batches_tracked == 9


def test_plans_of_both_norm_statistics(tmp_path):
    """Statistics of the batch are stored whole, and so they overlap with any others that moved."""
    files = [tmp_path / "hold.safetensors", tmp_path / "batch.safetensors"]
    for number, file in enumerate(files):
        saved(CASE, file, number, method=Method(norm_stats=file.stem))
    with pytest.raises(CheckpointError, match="share"):
        merge_deltas(base(), files, tmp_path / "merged.safetensors")
    merge_deltas(base(), files, tmp_path / "merged.safetensors", overlap="last")
    assert read_delta(tmp_path / "merged.safetensors").plan.norm_stats == "batch"
    merged = load_delta(base(), tmp_path / "merged.safetensors")
    assert bits(merged.state_dict()) == bits(expected(CASE, files))


def test_other_bases_and_plans_are_refused(files, tmp_path):
    other = base()
    with torch.no_grad():
        other[6].bias.add_(1)
    with pytest.raises(CheckpointError, match=r"a\.safetensors was made from another network"):
        merge_deltas(other, files, tmp_path / "merged.safetensors")
    plan = plan_tgd(base(), IMAGES)
    layer = replace(plan.entries[0].layer, statistics=("other",))
    with pytest.raises(CheckpointError, match="plans are of different networks: '0' differs"):
        merged_plan([plan, replace(plan, entries=(replace(plan.entries[0], layer=layer),))])


def test_conditions_are_united_or_contradict(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    plans = divided(plan_tgd(base(), IMAGES, phi=0.9), 2, 0)
    scanner, patient = {"ManufacturerModelName": "Discovery MI"}, {"PatientID": "7"}
    for file, plan, when in zip(files, plans, (scanner, patient), strict=True):
        saved(CASE, file, plan=plan, when=when)
    merge_deltas(base(), files, tmp_path / "merged.safetensors")
    assert read_delta(tmp_path / "merged.safetensors").when == scanner | patient
    saved(CASE, files[1], plan=plans[1], when={"ManufacturerModelName": "Vereos"})
    with pytest.raises(
        CheckpointError, match=r"b\.safetensors is for ManufacturerModelName=Vereos, and another"
    ):
        merge_deltas(base(), files, tmp_path / "merged.safetensors")


def test_merged_deltas_are_reversible_if_all_are(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, plan in zip(files, divided(plan_tgd(base(), IMAGES, phi=0.9), 2, 0), strict=True):
        saved(CASE, file, plan=plan, base=base())
    merge_deltas(base(), files, tmp_path / "merged.safetensors")
    delta = read_delta(tmp_path / "merged.safetensors")
    net = base()
    for name, entry in entries_of(state_of(net), delta.plan, named_in(net)).items():
        if name in delta.values:
            assert bits({name: delta.before[name]}) == bits({name: entry.tensor[entry.movable]})
    saved(CASE, files[1], plan=divided(plan_tgd(base(), IMAGES, phi=0.9), 2, 0)[1])
    merge_deltas(base(), files, tmp_path / "merged.safetensors")
    assert read_delta(tmp_path / "merged.safetensors").before is None


WHEN = {
    "scanner": {"ManufacturerModelName": "Discovery MI"},
    "kernel": {"ManufacturerModelName": "Discovery MI", "ConvolutionKernel": "PSF"},
    "patient": {"PatientID": "7"},
    "anybody": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One delta for each of `WHEN`."""
    where = tmp_path_factory.mktemp("choice")
    for name, when in WHEN.items():
        saved(CASE, where / f"{name}.safetensors", when=when)
    return where


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        ({"ManufacturerModelName": "Discovery MI "}, "scanner"),
        ({"ManufacturerModelName": "Discovery MI", "ConvolutionKernel": "PSF", "Modality": "PT"}, "kernel"),
        ({"PatientID": 7}, "patient"),
        ({"ManufacturerModelName": "Discovery"}, None),
        ({"ManufacturerModelName": "discovery mi"}, None),
        ({"ConvolutionKernel": "PSF"}, None),
        ({}, None),
    ],
)
def test_the_delta_of_a_scan_is_the_one_with_most_conditions_that_all_hold(folder, tags, chosen):
    found = choose_delta(sorted(folder.iterdir()), tags)
    assert (found and found.stem) == chosen


def test_two_that_fit_equally_are_refused(folder):
    tags = {"ManufacturerModelName": "Discovery MI", "PatientID": "7"}
    with pytest.raises(
        CheckpointError, match=r"2 deltas are for this scan.*patient\.safetensors and scanner\.safe"
    ):
        choose_delta(folder.iterdir(), tags)


@pytest.mark.parametrize("when", [{"Patient ID": "7"}, {"": "7"}, {"PatientID": " "}, {"0010,0020": "7"}])
def test_conditions_are_keywords_and_texts(when, tmp_path):
    with pytest.raises(CheckpointError, match="is not a condition"):
        saved(CASE, tmp_path / "delta.safetensors", when=when)
    assert not list(tmp_path.iterdir())


def test_the_base_of_a_reversible_delta_has_to_be_its_own(tmp_path):
    other = base()
    with torch.no_grad():
        other[6].bias.add_(1)
    with pytest.raises(
        CheckpointError, match=r"base and adapted network differ in what the plan freezes.*\(6\.bias\)"
    ):
        saved(CASE, tmp_path / "delta.safetensors", base=other)


def test_files_of_the_first_format_are_read(tmp_path):
    """As they were written before there were conditions."""
    saved(CASE, tmp_path / "new.safetensors")
    delta = read_delta(tmp_path / "new.safetensors")
    metadata = {
        "format": "tgdsurgery-delta-1",
        "plan": delta.plan.to_json(),
        "base": json.dumps(delta.base),
    }
    metadata["contents"] = contents(metadata, delta.values)
    safetensors.torch.save_file(dict(delta.values), tmp_path / "old.safetensors", metadata=metadata)
    old, new = (load_delta(base(), tmp_path / f"{age}.safetensors").state_dict() for age in ("old", "new"))
    assert bits(old) == bits(new)
    assert read_delta(tmp_path / "old.safetensors").when == {}
