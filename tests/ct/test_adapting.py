"""Adapting a denoiser with TGD and its peers, in 2-D, 2.5-D and 3-D, with every loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ct.cases import DOSE, disc_cases
from tests.ct.test_training import same
from tgd_ct.networks.files import load_generator
from tgd_ct.networks.generator import KINDS, Generator, Kind, new_generator
from tgd_ct.networks.segmenters import new_segmenter
from tgd_ct.training.adapting import METHODS, Method, adapt
from tgd_ct.training.denoiser import Judges, train_denoiser
from tgd_ct.training.losses import Weights
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.lora import RANK
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import Tuned

SHORT = Schedule(epochs=1, steps=3, batch=2, rate=1e-2, patch=16)
WEIGHTS = Weights(mse=0.5, gan=1.0, task=1.0, lipschitz="penalty")


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    kind: Kind = request.param
    network = new_generator(0, kind, (4, 6, 6, 8))
    folder = tmp_path_factory.mktemp("base")
    train_denoiser(network, disc_cases(), DOSE, "liver", folder, SHORT, weights=Weights(), progress=False)
    return network


def adapted(
    base: Generator, folder: Path, method: Method, *, weights: Weights = WEIGHTS, attention: bool = False
) -> Tuned[Generator]:
    return adapt(
        base,
        disc_cases(first=10),
        DOSE,
        "liver",
        folder,
        SHORT,
        weights=weights,
        judges=Judges(new_segmenter(0, "unet", 4)),
        method=method,
        phi=0.6,
        progress=False,
    )


@pytest.mark.parametrize("weights", [Weights(task=1.0), WEIGHTS, replace(WEIGHTS, lipschitz="clip")])
def test_tgd_moves_what_its_plan_says(base: Generator, tmp_path: Path, weights: Weights) -> None:
    tuned = adapted(base, tmp_path, "tgd", weights=weights)
    assert tuned.kept is True
    assert tuned.plan is not None
    assert 0 < tuned.share == tuned.plan.share < 1
    for index, before in enumerate(base.convolutions):
        after = tuned.network.convolutions[index]
        moved = (before.weight != after.weight).flatten(1).any(1)
        assert torch.equal(moved, tuned.plan.trainable(f"convolutions.{index}")), index
    assert type(tuned.network) is Generator


def test_the_peers_move_what_they_say(base: Generator, tmp_path: Path) -> None:
    for method in METHODS[1:]:
        if method == "lora":
            pytest.importorskip("peft")
        tuned = adapted(base, tmp_path / method, method, weights=Weights(task=1.0))
        before, after = base.state_dict(), tuned.network.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        if method == "full":
            assert moved == before.keys()
            assert tuned.share == 1.0
        elif method == "last3":
            assert moved == {name for name in before if int(name.split(".")[1]) >= 5}
            assert tuned.kept is True
        else:
            assert moved == {name for name in before if name.endswith("weight")}
            for name in moved:
                update = (after[name] - before[name]).flatten(1)
                assert torch.linalg.matrix_rank(update, rtol=1e-3) <= RANK
        assert same(load_generator(tmp_path / method / NETWORK), tuned.network)
