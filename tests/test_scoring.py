"""Scores land on the filters that feed a consumer; several consumers take the max."""

import pytest
import torch
from torch import nn

from tgdsurgery.core.arguments import as_arguments
from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.records import LayerScores
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.scoring.gather import score
from tgdsurgery.scoring.kse import kse


def scores_of(model: nn.Module, *shape: int) -> dict[str, LayerScores]:
    mapped = map_model(model, as_arguments(torch.randn(*shape)))
    return {scored.layer.name: scored for scored in score(mapped)}


def test_chain() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    found = scores_of(model, 2, 1, 8, 8)
    expected = kse(model[3].weight)
    assert torch.equal(found["0"].scores, expected)
    assert torch.equal(found["1"].scores, expected)
    assert found["3"].scores.isnan().all()


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 5, 1), nn.Conv2d(5, 4, 3), nn.Conv2d(5, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        return torch.cat([self.a(y), self.b(y.flip(1))], 1)


def test_several_consumers_take_the_max() -> None:
    model = TwoReaders()
    found = scores_of(model, 1, 1, 6, 6)
    assert torch.equal(found["stem"].scores, torch.maximum(kse(model.a.weight), kse(model.b.weight).flip(0)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_linear_after_flatten_folds_the_places_of_a_channel(channels_last: bool) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 3, 1), nn.Linear(3 * 4, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.fc((y.permute(0, 2, 3, 1) if channels_last else y).flatten(1))

    model = Head()
    found = scores_of(model, 1, 1, 2, 2)
    weight = (
        model.fc.weight.unflatten(1, (4, 3)).transpose(1, 2)
        if channels_last
        else model.fc.weight.unflatten(1, (3, 4))
    )
    assert torch.equal(found["conv"].scores, kse(weight))


def test_transposed_and_grouped_consumers() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 6, 3, groups=3)
    )
    found = scores_of(model, 1, 1, 6, 6)
    assert torch.equal(found["0"].scores, kse(model[1].weight, groups=2, transposed=True))
    assert torch.equal(found["1"].scores, kse(model[2].weight, groups=3))


def test_weights_that_cannot_be_scored_name_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(PlanError, match="Layer '1'"):
        scores_of(model, 1, 1, 4, 4)
