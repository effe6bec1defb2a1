"""The one-call API: wiring of the stages, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tgdsurgery.core.arguments import Arguments
from tgdsurgery.core.plan import Flow, NormStats, Override, TGDPlan
from tgdsurgery.core.records import ChannelMap
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.mapping.propagate import OnUnknown
from tgdsurgery.scoring.decide import check_settings, make_plan
from tgdsurgery.scoring.gather import score
from tgdsurgery.surgery.apply import insert
from tgdsurgery.surgery.apply import lower as lowered
from tgdsurgery.training.optimizers import watch


def plan_tgd(
    model: nn.Module,
    example_inputs: object = None,
    *,
    phi: float = 0.3,
    budget: float | None = None,
    overrides: Mapping[str, Override] | None = None,
    k: int = 5,
    alpha: float = 1.0,
    flow: Flow = "masked",
    norm_stats: NormStats = "hold",
    on_unknown: OnUnknown = "raise",
) -> TGDPlan:
    """Score the kernels of a pretrained CNN and decide which to retrain; the model is not touched.

    Args:
        model: any network whose forward runs: convs in 1 to 3 dimensions, transposed, grouped, linear layers.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; found by
            trying usual sizes if None. Small ones do: what feeds what does not depend on their size.
        phi: the threshold in [0, 1]: feature maps with a KSE below it are retrained. A relative scale, per layer.
        budget: instead of phi, the largest share of filter parameters that may be trainable.
        overrides: layer name or module prefix -> "train", "freeze" or a phi of its own.
        k: nearest neighbours in the kernel entropy.
        alpha: weight of the kernel entropy.
        flow: "masked" stops gradients at frozen feature maps (the paper's layer); "full" masks parameters only.
        norm_stats: "hold" keeps the running statistics of frozen channels; "batch" lets them drift.
        on_unknown: "raise" at an op without a rule; "mix" keeps more kernels than needed instead.

    Returns:
        The plan; `print` shows it as a table, `to_json` stores it.

    Raises:
        CaptureError: the model does not run on the inputs, or none could be found.
        UnsupportedOpError: an op without a rule; see `register_rule`.
        MapConflictError: train and eval mode map the same layer differently.
        PlanError: a setting out of range, or an override that names nothing.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> plan = plan_tgd(net, phi=0.5)
        >>> plan.layers
        ('0', '2')
        >>> plan.trainable("2").tolist()  # the output layer is frozen
        [False]

    Reference:
        Chen, Asma, Chan: Targeted Gradient Descent, MICCAI 2021 (the plan: section 2.1, equations 1-3).
    """
    settings = {"phi": phi, "budget": budget, "overrides": overrides, "k": k, "alpha": alpha}
    arguments = arguments_for(model, example_inputs)
    _, plan = _planned(model, arguments, on_unknown, flow=flow, norm_stats=norm_stats, **settings)
    return plan


def apply_tgd(
    model: nn.Module,
    example_inputs: object = None,
    *,
    phi: float = 0.3,
    budget: float | None = None,
    overrides: Mapping[str, Override] | None = None,
    k: int = 5,
    alpha: float = 1.0,
    flow: Flow = "masked",
    norm_stats: NormStats = "hold",
    on_unknown: OnUnknown = "raise",
    lower: bool = True,
) -> nn.Module:
    """A copy of a pretrained CNN of which training moves only the kernels it hardly uses.

    The copy computes what the model computes, has the same `state_dict` keys and shapes, and trains in any
    loop, with an optimizer made from the copy's parameters (one made before raises RewriteError in `step`).

    In the lowered form (the default) the trainable rows are the only Parameters and the frozen ones are
    buffers, so no optimizer can move them, and a step is cheaper than ordinary fine-tuning. Layers that this
    cannot be done to (computed or shared weights, classes of one's own) keep whole Parameters with masked
    gradients: hand the optimizer to `guard` as well, so that weight decay and momentum cannot move those.

    Args: all others are those of `plan_tgd`.
        lower: False gives the literal form: TGD layers in the torch.fx graph, all Parameters whole. It
            always needs `guard`.

    Returns:
        The copy, with the plan as its `tgd_plan`; `remove_tgd` makes it a plain network again.

    Raises:
        RewriteError: the model cannot be copied, or has TGD layers already.
        CaptureError, UnsupportedOpError, MapConflictError, PlanError: as `plan_tgd`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> tgd = apply_tgd(net, phi=0.5)
        >>> image = torch.randn(2, 1, 8, 8)
        >>> torch.equal(tgd(image), net(image))
        True
        >>> tgd[0]
        CompactConv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), 1/4 trainable)
        >>> [tuple(parameter.shape) for parameter in tgd.parameters()]
        [(1, 1, 3, 3), (1,)]
        >>> tgd.state_dict()["0.weight"].shape
        torch.Size([4, 1, 3, 3])

    Reference:
        Chen, Asma, Chan: Targeted Gradient Descent, MICCAI 2021 (the layer: section 2.2, equation 4).
    """
    settings = {"phi": phi, "budget": budget, "overrides": overrides, "k": k, "alpha": alpha}
    arguments = arguments_for(model, example_inputs)
    channels, plan = _planned(model, arguments, on_unknown, flow=flow, norm_stats=norm_stats, **settings)
    tgd = lowered(model, plan, channels, *arguments) if lower else insert(model, plan, *arguments)
    watch(tgd, model)
    return tgd


def _planned(
    model: nn.Module, arguments: Arguments, on_unknown: OnUnknown, **settings: Any
) -> tuple[ChannelMap, TGDPlan]:
    names = ("phi", "budget", "flow", "norm_stats")
    check_settings(overrides=settings["overrides"] or {}, **{name: settings[name] for name in names})
    mapped = map_model(model, arguments, on_unknown=on_unknown)
    scores = score(mapped, k=settings["k"], alpha=settings["alpha"])
    return mapped.channels, make_plan(mapped.channels, scores, **settings)
