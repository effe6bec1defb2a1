"""How a network is called and what it does besides: inputs, outputs, control flow, modes, user settings."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.topologies.registry import topology


@topology("two inputs", [(2, 1, 6, 6), (2, 2, 3, 3)])
class TwoInputs(nn.Module):
    """Inputs of different resolution, each with its own stem."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 3, 3, 2, 1), nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.head(torch.cat([self.fine(fine), self.coarse(coarse)], 1))


@topology("keyword inputs", {"image": (2, 3, 6, 6), "mask": (2, 1, 6, 6)})
class KeywordInputs(nn.Module):
    """Inputs by name; the result is a dict of a tensor and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.image, self.label = nn.Conv2d(4, 3, 1), nn.Linear(4, 2)

    def forward(self, image: Tensor, *, mask: Tensor) -> dict[str, object]:
        x = F.silu(self.stem(image)) * mask.sigmoid()
        return {"image": self.image(x), "others": (self.label(x.mean((2, 3))), x.shape[0])}


@topology("any number of inputs", [(2, 2, 6, 6), (2, 2, 6, 6), (2, 2, 6, 6)])
class AnyNumber(nn.Module):
    """forward(*images): a signature that symbolic tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(9, 2, 1)

    def forward(self, *images: Tensor) -> Tensor:
        return self.head(torch.cat([self.stem(image) for image in images], 1))


@topology("no mask by position", [(2, 3, 6, 6), None])
@topology("no mask by keyword", {"image": (2, 3, 6, 6), "mask": None})
class OptionalMask(nn.Module):
    """An argument that may be None: a tracer's stand-in for it never is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.silu(self.stem(image))
        return self.head(x if mask is None else x * self.gate(mask).sigmoid())


class Levels(NamedTuple):
    """Outputs under names."""

    fine: Tensor
    coarse: list[Tensor | None]


@topology(
    "nested inputs and outputs",
    {"images": [(2, 3, 6, 6), (2, 2, 3, 3)], "extras": {"weights": {"gain": (2, 1, 1, 1)}, "mask": None}},
)
class Nested(nn.Module):
    """Lists in dicts in dicts, on both sides, with None among the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(2, 3, 3, padding=1)
        self.head, self.label = nn.Conv2d(6, 2, 1), nn.Linear(3, 2)

    def forward(self, images: list[Tensor], extras: dict[str, object]) -> dict[str, object]:
        fine, coarse = (F.silu(layer(x)) for layer, x in zip((self.fine, self.coarse), images, strict=True))
        fine = fine * extras["weights"]["gain"]
        both = self.head(torch.cat([fine, coarse], 1))
        label = self.label(coarse.mean((2, 3)))
        return {"levels": Levels(both, [coarse, extras["mask"]]), "others": {"labels": ([label], None)}}


@topology("intermediate outputs")
class Intermediate(nn.Module):
    """Features are returned as well as read on: a filter that is output and input at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(F.silu(self.stem(x)))
        # The third channel of the body reaches the output only, and no consumer.
        return features, self.head(features[:, :2])


@topology("control flow on a value")
class ControlFlow(nn.Module):
    """A number read from a tensor chooses the branch and scales the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.low, self.high = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        level = x.detach().abs().mean().item()
        branch = self.high if level > 1e-9 else self.low
        x = branch(x)
        if (x.detach().sum() > 1e9).any():
            x = x.flip(1)
        return self.head(x / (1 + level))


@topology("heads in training only")
class DeepSupervision(nn.Module):
    """A second head that runs in training and not in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head, self.extra = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.silu(self.stem(x))
        y = self.head(F.silu(self.body(x)))
        return (y, self.extra(x)) if self.training else y


@topology("unused layers")
class Unused(nn.Module):
    """Layers and parameters that no forward touches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.idle, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        self.token = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.stem(x)))


@topology("partly frozen by the user")
class PartlyFrozen(nn.Module):
    """The user has switched off gradients of some parameters before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).requires_grad_(False)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.body.bias.requires_grad_(False)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.body(F.silu(self.stem(x)))))


@topology("activations in place everywhere")
class InPlace(nn.Module):
    """Results written over: functions with a trailing underscore, in-place arithmetic and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu_(self.stem(x), 0.1)
        y = self.norm(self.body(x)).mul_(0.5).add_(x)
        return torch.tanh_(self.head(self.act(y)))


@topology("input written in place")
class InputWritten(nn.Module):
    """A forward that normalises its input where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(2)
        return self.head(F.silu(self.stem(x)))


@topology("recomputed in backward")
class Checkpointed(nn.Module):
    """Activations thrown away and computed again for the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=False))


@topology("random depth and dropout")
class RandomDepth(nn.Module):
    """In training a whole branch is dropped per sample, and single elements and channels besides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout2d(0.3))
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.SiLU()
        )
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        if self.training:
            keep = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype) < 0.8
            y = y * keep / 0.8
        return self.head(x + y)


@topology("without a batch axis", (2, 8))
def unbatched() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.SiLU(),
        nn.ConvTranspose1d(4, 3, 2, 2),
        nn.SiLU(),
        nn.Conv1d(3, 1, 1),
    )


@topology("linear layers only", (3, 5))
def linear_only() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)
    )
