"""The study as a whole, on its smallest settings: every job's file, resuming, what is refused, the report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib import image as pictures

from benchmarks.pet_study import publish
from tgd_kit.errors import RunError
from tgd_pet.cli import pet
from tgd_pet.experiment.patients import CASES, patient_sets
from tgd_pet.experiment.recipes import BASES, TGD, recipes, variants
from tgd_pet.experiment.run import run_study, stages
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.network import load_network
from tgd_pet.report.claims import HARMLESS_BIAS, claims
from tgd_pet.report.figures import FIGURES
from tgd_pet.report.page import page
from tgd_pet.report.results import StudyResults, gather, read_results
from tgd_pet.report.tables import PAPER_TABLE_1
from tgd_pet.report.write import write_report

TINY = read_settings(PROFILES / "tiny.yaml")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    result = CliRunner().invoke(pet, ["study", "--config", "tiny", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    assert str(folder / "report" / "pet.md") in result.output
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> StudyResults:
    return gather(out, TINY)


def written(out: Path) -> dict[Path, int]:
    kinds = ("*.json", "*.npz", "*.safetensors")
    files = (path for kind in kinds for path in out.rglob(kind) if "report" not in path.parts)
    skipped = {"settings.json", "manifest.json", "run.json"}  # the last has times, which add up
    return {path: path.stat().st_mtime_ns for path in files if path.name not in skipped}


def test_no_patient_is_in_two_sets() -> None:
    for name in ("tiny", "quick", "full"):
        numbers = [
            n for chosen in patient_sets(read_settings(PROFILES / f"{name}.yaml")) for n in chosen.numbers
        ]
        assert len(numbers) == len(set(numbers))


def test_the_shipped_studies_are_as_large_as_the_papers() -> None:
    for name in ("quick", "full"):
        settings = read_settings(PROFILES / f"{name}.yaml")
        sets = {chosen.name: chosen for chosen in patient_sets(settings)}
        assert len(sets["train"].numbers) >= 20
        assert len(sets["adapt"].numbers) == 7 * len(settings.seeds) >= 35
        assert len(sets["test low"].numbers) + len(sets["test high"].numbers) == 8
        assert len(settings.seconds) == 6
        assert settings.realisations == 10
        assert sets["test low"].config.realisation_fraction * 600 == pytest.approx(60)
        assert set(settings.peers) == {"l2-sp", "lwf", "lora"}


def test_every_job_left_its_file(out: Path) -> None:
    jobs = [job for stage in stages(out, TINY).values() for job in stage]
    assert all(job.path.exists() for job in jobs)
    assert len({job.path for job in jobs}) == len(jobs)


def test_a_second_run_does_nothing(out: Path) -> None:
    before = written(out)
    run_study(out, TINY, progress=False)
    assert written(out) == before


def test_what_is_missing_is_made_again_the_same(out: Path) -> None:
    before = written(out)
    lost = [job.path for stage in stages(out, TINY).values() for job in stage[-1:]]
    contents = {path: path.read_bytes() for path in lost}
    for path in lost:
        path.unlink()
    run_study(out, TINY, progress=False)
    after = written(out)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == set(lost)
    assert {path: path.read_bytes() for path in lost} == contents


def test_other_settings_are_refused_but_more_of_the_same_is_not(out: Path) -> None:
    with pytest.raises(RunError, match="phi_again"):
        run_study(out, replace(TINY, phi_again=0.5), progress=False)
    more = replace(TINY, phis=())  # fewer are no other study either
    run_study(out, more, progress=False)
    run_study(out, TINY, progress=False)


SPOILED = (
    "",
    "[]",
    "{}",
    "null",
    "[" * 5000,
    '{"v1": 1, "v2": 2}',
    '{"seconds": 1}',
    '{"share": "all", "kept": 1}',
)


@pytest.mark.parametrize(
    "name", ["run.json", "measures/0/TGD-net.json", "sweep/base-0.json", "adapted/0/TGD-net.json"]
)
def test_a_damaged_record_is_refused(out: Path, name: str) -> None:
    path = out / name
    whole = path.read_text()
    deeper = whole.replace(": ", ': "x', 3)
    try:
        for content in (*SPOILED, deeper, whole.replace("0.", '"0.', 1)):
            path.write_text(content)
            with pytest.raises(RunError, match="Delete it"):
                gather(out, TINY)
    finally:
        path.write_text(whole)
    gather(out, TINY)


def test_frozen_kernels_were_kept(results: StudyResults, out: Path) -> None:
    for recipe in recipes(TINY):
        frozen = recipe.method in ("tgd", "last3")
        assert results.kept(recipe.name) is (True if frozen else None), recipe.name
    base = load_network(out / "networks" / "base-0" / "v1-net" / "network.safetensors")
    tuned = load_network(out / "networks" / "0" / TGD / "network.safetensors")
    same = [(a == b).all() for a, b in zip(base.parameters(), tuned.parameters(), strict=True)]
    assert any(same)
    assert not all(same)


def test_results_come_back_from_json(results: StudyResults, out: Path) -> None:
    read = read_results(out / "report" / "results.json")
    assert read.settings == TINY
    for key in ("bias", "cov", "body.rmse"):
        # Five digits are written.
        np.testing.assert_allclose(read.values(TGD, "v2", key), results.values(TGD, "v2", key), rtol=1e-4)
    assert page(read, "tiny") == (out / "report" / "pet.md").read_text(encoding="utf-8")


def test_the_page_shows_every_row_and_figure(out: Path, results: StudyResults) -> None:
    text = (out / "report" / "pet.md").read_text(encoding="utf-8")
    for name in (*results.networks, *results.variants):
        assert f"| {name} |" in text
    for bias, cov in PAPER_TABLE_1.values():
        assert f"{bias:.2f}" in text
        assert f"{cov:.2f}" in text
    for figure in FIGURES:
        assert f"(images/pet_{figure}.png)" in text
        drawn = pictures.imread(out / "report" / "images" / f"pet_{figure}.png")
        assert drawn.std() > 0.01
    assert "nan" not in text


def test_the_report_does_not_change_when_written_again(out: Path) -> None:
    write_report(out, TINY, "tiny")  # tests above took up the study, which adds to its times
    before = (out / "report" / "pet.md").read_bytes(), (out / "report" / "results.json").read_bytes()
    write_report(out, TINY, "tiny")
    after = (out / "report" / "pet.md").read_bytes(), (out / "report" / "results.json").read_bytes()
    assert before == after


def test_unseen_features_are_measured(results: StudyResults) -> None:
    for name in (variant.name for variant in variants(TINY)):
        near = results.unseen_values("bladder", name, "artefacts.rmse")
        assert near.shape == (2, 1)
        assert (near > 0).all()
    assert np.isnan(results.unseen_values("low counts", "N2N", "artefacts.rmse")).all()


def test_it_is_told_which_online_runs_learnt(results: StudyResults, out: Path) -> None:
    assert results.learnt("v2-net") is None
    assert results.online_share("N2N") == 1.0
    networks = {
        name: load_network(out / "networks" / "base-0" / name / "network.safetensors") for name in BASES
    }
    for seed, case in product(TINY.seeds, CASES):
        told = results.unseen[str(seed)][case]["N2N"]["online"]
        tuned = load_network(out / "online" / str(seed) / case / "N2N" / "network.safetensors")
        pairs = zip(tuned.parameters(), networks["v2-net"].parameters(), strict=True)
        assert told["learnt"] == (told["after"] < told["before"])
        assert told["learnt"] != all(torch.equal(one, other) for one, other in pairs)


def test_the_record_tells_times_and_versions(results: StudyResults, out: Path) -> None:
    assert set(results.run["seconds"]) == {"simulating patients", *stages(out, TINY)}
    assert results.run["cpu_seconds"] > 1
    assert results.run["versions"]["torch"] == torch.__version__
    assert results.run["cores"] >= 1


def test_claims_say_which_networks_learnt_nothing(results: StudyResults) -> None:
    found = {claim.text: claim for claim in claims(results)}
    for case in CASES:
        learnt, runs = results.learnt("N2N", case)
        assert runs == len(TINY.seeds)
        claim = found[f"N2N keeps lesions, {case}"]
        assert claim.margin == HARMLESS_BIAS
        assert claim.idle == (f"N2N learnt in {learnt} of {runs}" if 2 * learnt < runs else "")


def test_the_page_counts_claims_and_tells_the_finding(out: Path, results: StudyResults) -> None:
    text = (out / "report" / "pet.md").read_text(encoding="utf-8")
    origins = Counter(claim.origin for claim in claims(results))
    assert f"The paper's claims: {origins['paper']}, of which" in text
    assert f"put to the test: {origins['reader']}, of which" in text
    learnt, runs = results.learnt("N2N")
    bias = results.unseen_difference("N2N", "v2-net", "bladder", "bias").mean
    assert (
        f"learnt in {learnt} of {runs} runs, and changes the lesion bias of v2-net by {bias:+.1f} (bladder)"
        in text
    )
    for words in (
        "rises by at most 5%",
        "| learnt in |",
        "(n = 1)",
        "minutes by the clock",
        "has not been run",
    ):
        assert words in text


def test_differences_are_written_with_their_p(out: Path, results: StudyResults) -> None:
    written = json.loads((out / "report" / "results.json").read_text(encoding="utf-8"))
    found = results.difference(TGD, "FT-net", "v2", "cov")
    assert written[f"{TGD} minus"]["FT-net"]["v2"]["cov"]["patients"]["p"] == pytest.approx(found.p, rel=1e-4)
    assert [claim["verdict"] for claim in written["claims"]] == [claim.verdict for claim in claims(results)]


def test_a_report_is_put_where_it_belongs(out: Path, results: StudyResults, tmp_path: Path) -> None:
    for folder in ("docs", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
    publish(out / "report", tmp_path)
    for source, target in {"pet.md": "docs/pet.md", "results.json": "benchmarks/results/pet.json"}.items():
        assert (tmp_path / target).read_bytes() == (out / "report" / source).read_bytes()
    assert len(list((tmp_path / "docs" / "images").glob("pet_*.png"))) == len(FIGURES)


def test_settings_as_json_hold_the_schedule(out: Path) -> None:
    kept = json.loads((out / "settings.json").read_text())
    assert kept["tuning"]["steps"] == TINY.tuning.steps
