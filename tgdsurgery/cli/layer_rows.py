"""The scores of the layers of a checkpoint or a plan, one table row for each layer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgdsurgery.cli.options import ArgumentError, is_onnx
from tgdsurgery.core.errors import CheckpointError, PlanError
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.tables import nearest
from tgdsurgery.scoring.kse import kse
from tgdsurgery.storage.checkpoints import check_readable, open_tensors
from tgdsurgery.storage.tensor_file import StoredWeight, TensorFile
from tgdsurgery.storage.weights import check_finite

BINS = 10
# Weight norm keeps a direction and a magnitude in place of the weight: as hooks, as parametrizations.
WEIGHT_NORM = (
    ("weight_v", "weight_g"),
    ("parametrizations.weight.original1", "parametrizations.weight.original0"),
)
PRUNED, MASK = "_orig", "_mask"  # what torch.nn.utils.prune makes of a parameter
# patch_embed.proj.weight is a convolution; pos_embed, tok_embeddings.weight and a bias table are looked up.
TABLE = re.compile(
    r"(^|_)(pos|position|positional|token|tok|word|cls|relative|rel)(_|$)|embed|^wte$|^wpe$|_table$"
)
WEIGHT_NAME = re.compile(r"\.(weight(_orig|_v)?|parametrizations\.weight\.original1?)$")


@dataclass(frozen=True)
class LayerRow:
    """One layer and the scores shown for it.

    Args:
        layer: its name.
        shape: the weight's shape.
        filters: N, its output channels.
        inputs: C, its input channels.
        scores: KSE of its input channels, or of its own filters where they come from a plan.
        below: how many of them are below phi.
    """

    layer: str
    shape: tuple[int, ...]
    filters: int
    inputs: int
    scores: tuple[float, ...]
    below: int

    @property
    def share(self) -> float | None:
        """Share of the scores below phi; None without scores (nothing reads these filters)."""
        return self.below / len(self.scores) if self.scores else None

    @property
    def histogram(self) -> list[int]:
        """Counts of the scores in equal bins over [0, 1]."""
        scores = torch.tensor(self.scores, dtype=torch.float64)
        return [int(count) for count in torch.histc(scores, BINS, 0, 1)]

    def as_dict(self) -> dict[str, Any]:
        """Everything by name, as JSON has it."""
        return {**asdict(self), "share": self.share, "histogram": self.histogram}


def open_weights(path: Path) -> dict[str, StoredWeight]:
    """The weights of a checkpoint, by layer; an ONNX file says which are grouped or transposed."""
    if is_onnx(path):
        # The onnx package is slow to import, and most do without.
        from tgdsurgery.storage.onnx_files import onnx_filters  # noqa: PLC0415

        check_readable(path)
        return onnx_filters(path)
    return weights_in(open_tensors(path))


def weights_in(file: TensorFile) -> dict[str, StoredWeight]:
    """The weights among the tensors of a checkpoint, by layer: floating-point and of two axes or more.

    Weight norm's two tensors become the one weight that they stand for, and so do a pruned weight and its mask.
    A tensor under several names counts once, under the first. Tables of positions and embeddings are left out:
    they have no kernels. None is read before it is asked for.
    """
    first = {id(tensor): name for name, tensor in reversed([*file.tensors.items()])}
    kept = {
        name: tensor
        for name, tensor in file.tensors.items()
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel()
        if first[id(tensor)] == name and not is_table(name)
    }
    found = {name: StoredWeight(tuple(like.shape), partial(file.read, name)) for name, like in kept.items()}
    for name in [name for name in found if name.endswith(PRUNED)]:
        mask = found.pop(name.removesuffix(PRUNED) + MASK, None)
        if mask is not None and mask.shape == found[name].shape:
            found[name] = replace(found[name], read=partial(_masked, found[name], mask))
    for direction, magnitude in WEIGHT_NORM:
        for name in [name for name in found if name.endswith(direction)]:
            size = found.pop(name.removesuffix(direction) + magnitude, None)
            if size is not None:
                found[name] = replace(found[name], read=partial(_normed, found[name], size))
    return {WEIGHT_NAME.sub("", name): weight for name, weight in found.items()}


def _masked(weight: StoredWeight, mask: StoredWeight) -> Tensor:
    return weight.read() * mask.read()


def _normed(direction: StoredWeight, magnitude: StoredWeight) -> Tensor:
    axes = [axis for axis, entries in enumerate(magnitude.shape) if entries == 1]
    weight = direction.read()
    length = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    found: Tensor = weight * (magnitude.read() / length)
    return found


def is_table(name: str) -> bool:
    """Whether a tensor of this name is looked up (positions, tokens), as far as a name can tell."""
    *_, module, leaf = f".{name}".split(".")
    return bool(TABLE.search(module if leaf == "weight" else leaf))


def weight_row(path: Path, layer: str, weight: StoredWeight, phi: float) -> LayerRow:
    """The scores of the input channels that a weight (N, C, *K) in a file reads."""
    entries = weight.read()
    check_finite({f"layer {layer}": entries}, path)
    try:
        scores = tuple(kse(entries, groups=weight.groups, transposed=weight.transposed).tolist())
    except PlanError as error:
        raise CheckpointError(f"{path}, layer {layer}: {error.problem}", error.remedy) from error
    first, second = weight.shape[0], weight.shape[1] * weight.groups
    filters, inputs = (second, first) if weight.transposed else (first, second)
    return LayerRow(layer, weight.shape, filters, inputs, scores, _below(scores, phi))


def plan_rows(plan: TGDPlan) -> list[LayerRow]:
    """The scores of each layer's own filters, from the layers that read them."""
    rows = []
    for entry in plan.entries:
        layer = entry.layer
        if layer.role == "filter":
            shape = layer.parameters[0].shape
            inputs = shape[0] if layer.transposed else shape[1] * layer.groups
            scores = tuple(score for score in entry.scores if score is not None)
            rows.append(LayerRow(layer.name, shape, layer.channels, inputs, scores, _below(scores, plan.phi)))
    return rows


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The layers that a name, a prefix (`layer4`) or a pattern (`*.conv1`) means; all without patterns."""
    names = list(names)
    meant: set[str] = set()
    for pattern in patterns:
        hits = {n for n in names if n.startswith(f"{pattern}.") or fnmatch.fnmatchcase(n, pattern)}
        if not hits:
            raise ArgumentError(f"No layer is called {pattern!r}.", nearest(pattern, names))
        meant |= hits
    return [name for name in names if name in meant or not patterns]


def natural(row: LayerRow) -> list[tuple[int, str]]:
    """A key that sorts by name, with numbers as numbers: layer2 before layer10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", row.layer)]


# "order" is that of the checkpoint, or of execution where there is a model; numbers come largest first.
SORTS = {
    "order": lambda _: 0,
    "name": natural,
    "share": lambda row: 1.0 if row.share is None else -row.share,
    "filters": lambda row: -row.filters,
    "inputs": lambda row: -row.inputs,
}


def _below(scores: Iterable[float], phi: float) -> int:
    return sum(score < phi for score in scores)
