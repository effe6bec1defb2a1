"""The benchmark of batch norm: what it trains, and that it runs through."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.measuring import RESULTS
from benchmarks.pet_batch_norm import PAGE, Trial, main, network, page, trials


def test_only_what_a_trial_names_is_different() -> None:
    usual = network(Trial(norm=True, batch=8, zero=True, cycle=True, seed=1), limit=12.0)
    drawn = network(Trial(norm=True, batch=8, zero=False, cycle=True, seed=1), limit=12.0)
    plain = network(Trial(norm=False, batch=8, zero=True, cycle=True, seed=1), limit=12.0)
    for one, other, bare in zip(
        usual.convolutions[:-1], drawn.convolutions[:-1], plain.convolutions[:-1], strict=True
    ):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.weight, bare.weight)
        assert bare.bias.any()
    assert not usual.convolutions[-1].weight.any()
    assert drawn.convolutions[-1].weight.all()
    assert not plain.convolutions[-1].weight.any()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())


def test_it_runs_and_its_page_is_made_from_its_results(tmp_path: Path) -> None:
    out, text = tmp_path / "found.json", tmp_path / "page.md"
    options = ("--profile", "tiny", "--steps", "2", "--seeds", "2", "--out", str(out), "--text", str(text))
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.exception
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found["rows"]) == len(trials(2)) == 32
    assert all(row["rmse"] > 0 for row in found["rows"])
    assert text.read_text(encoding="utf-8") == page(found)


def test_the_page_shows_the_results() -> None:
    found = json.loads((RESULTS / "pet_batch_norm.json").read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(found)
