"""The one-call API: wiring of the stages, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from tgdsurgery.core.errors import PlanError, PlanWarning
from tgdsurgery.core.plan import Flow, NormStats, Override, TGDPlan
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.mapping.collect import MappedModel
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.scoring import gather
from tgdsurgery.scoring.custom import by
from tgdsurgery.scoring.decide import make_plan
from tgdsurgery.settings import Form, OnUnknown, Score, TGDSettings, check_choice
from tgdsurgery.storage.checkpoints import check_readable
from tgdsurgery.surgery.apply import compact_form, layers_form
from tgdsurgery.training.optimizers import watch
from tgdsurgery.training.ranks import agree_on

# A plan with a smaller share of the filter parameters trains next to nothing.
MIN_FILTER_SHARE = 0.01


def plan_tgd(
    model: nn.Module,
    example_inputs: object = None,
    *,
    phi: float = 0.3,
    budget: float | None = None,
    overrides: Mapping[str, Override] | None = None,
    k: int = 5,
    alpha: float = 1.0,
    score: Score | None = None,
    align: int = 1,
    flow: Flow = "full",
    norm_stats: NormStats = "hold",
    on_unknown: OnUnknown = "raise",
) -> TGDPlan:
    """Score the channels of a pretrained CNN and decide which filters to retrain; the model is not touched.

    Args:
        model: any network whose forward runs: convs in 1 to 3 dimensions, transposed, grouped, linear layers.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; found by
            trying usual sizes if None. Small ones do: the channel map does not depend on their size.
        phi: the threshold in [0, 1]: feature maps with a KSE below it are retrained. A relative scale, per layer.
        budget: instead of phi, the largest share of filter parameters that may be trainable.
        overrides: layer name or module prefix -> "train", "freeze" or a phi of its own.
        k: nearest neighbours in the kernel entropy.
        alpha: weight of the kernel entropy.
        score: your own instead of KSE: a function of a layer of the model and its weight that gives (C,) numbers in
            [0, 1], one for each input channel, low for those whose filters are to be retrained. The weight is
            (N, C/g, *K), or (C, N/g, *K) of a transposed conv; of a linear layer after a flatten it is
            (N, C, H*W), and (N, C) of any other.
        align: the number of trainable channels of a layer is rounded to a multiple of it, for hardware that likes
            multiples of 8 or 16. It is rounded up: the next scores above phi are retrained too, at most all that
            are read by another layer. With a budget it is rounded down, and phi rises to what the budget allows.
            None and all stay none and all.
        flow: "full" masks parameters only; "masked" also stops gradients at frozen feature maps (the paper's layer).
        norm_stats: "hold" keeps the running statistics of frozen channels; "batch" lets them drift.
        on_unknown: "raise" at an op without a rule; "mix" keeps more filters than needed instead.

    Returns:
        The plan. `print` shows it as a table, `to_json` stores it, `override` changes single layers.

    Raises:
        CaptureError: the model does not run on the inputs, or none could be found.
        UnsupportedOpError: an op without a rule; see `register_rule`.
        MapConflictError: train and eval mode map the same layer differently.
        PlanError: a setting out of range, an override that names nothing, or a `score` of another shape or range.

    Warns:
        PlanWarning: the plan trains less than 1 % of the filter parameters, or some layers stay frozen because
            their parameters have `requires_grad=False`.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> plan = plan_tgd(net, phi=0.5)
        >>> plan.layers
        ('0', '2')
        >>> plan.trainable("2").tolist()  # the output layer is frozen
        [False]

        The norms of the kernels as the score, the smallest to be retrained:

        >>> def norm(module, weight):
        ...     norms = weight.flatten(2).norm(dim=(0, 2))
        ...     return norms / norms.max()
        >>> plan_tgd(net, budget=0.25, score=norm).score
        'norm'

    Reference:
        Chen, Asma, Chan: Targeted Gradient Descent, MICCAI 2021 (the plan: section 2.1, equations 1-3).
    """
    rules = dict(overrides or {})
    settings = TGDSettings(phi, budget, rules, k, alpha, flow, norm_stats, on_unknown, score, align)
    mapped = map_model(model, arguments_for(model, example_inputs), on_unknown=on_unknown)
    return _planned(model, mapped, settings)


def apply_tgd(
    model: nn.Module,
    example_inputs: object = None,
    *,
    plan: TGDPlan | None = None,
    phi: float = 0.3,
    budget: float | None = None,
    overrides: Mapping[str, Override] | None = None,
    k: int = 5,
    alpha: float = 1.0,
    score: Score | None = None,
    align: int = 1,
    flow: Flow = "full",
    norm_stats: NormStats = "hold",
    on_unknown: OnUnknown = "raise",
    form: Form = "compact",
) -> nn.Module:
    """A copy of a pretrained CNN in which training moves only the filters that the network hardly uses.

    The copy computes what the model computes, has the same `state_dict` keys and shapes, and trains in any
    loop, with an optimizer made from the copy's parameters (one made before raises RewriteError in `step`).

    In the compact form (the default) the trainable rows are the only Parameters and the frozen ones are
    buffers, so no optimizer can move them, and a step is cheaper than ordinary fine-tuning.

    Args: all others are those of `plan_tgd`, and make the plan if none is given.
        plan: a plan of this model, from `plan_tgd` or a file. Give the stored plan when training goes on after
            an interruption or on another machine: a score near the threshold can round differently there.
        form: "compact", or "layers": the paper's TGD layers in the torch.fx graph, with whole Parameters. Every
            `torch.optim` optimizer is made to keep the frozen entries; for others see `guard`.

    Returns:
        The copy. `plan_of` gives its plan; `remove_tgd` makes it a plain network again.

    Raises:
        RewriteError: the model cannot be copied, is a TGD network already, or the plan does not fit it.
        CaptureError, UnsupportedOpError, MapConflictError, PlanError: as `plan_tgd`. PlanError also if a plan is
            given together with settings other than the defaults, or if the processes of a torch.distributed group
            have different plans.

    Warns:
        PlanWarning: as `plan_tgd`.
        TGDWarning: a forward reads the weight of another layer, so a step costs as much as a full one.
        LayersFormWarning: the network cannot take the compact form, and is returned in the layers form.

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
    check_choice("form", form, get_args(Form))
    rules = dict(overrides or {})
    settings = TGDSettings(phi, budget, rules, k, alpha, flow, norm_stats, on_unknown, score, align)
    if plan is not None:
        _refuse_settings(settings)
        settings = replace(settings, on_unknown="mix" if plan.mixed else on_unknown)
    arguments = arguments_for(model, example_inputs)
    if plan is None:
        mapped = map_model(model, arguments, on_unknown=settings.on_unknown)
        plan, channels = _planned(model, mapped, settings), mapped.channels
    elif form == "compact":
        channels = map_model(model, arguments, on_unknown=settings.on_unknown).channels
    agree_on(plan)
    compact = form == "compact"
    tgd = compact_form(model, plan, channels, arguments) if compact else layers_form(model, plan, arguments)
    watch(tgd, model)
    return tgd


def _planned(model: nn.Module, mapped: MappedModel, settings: TGDSettings) -> TGDPlan:
    own = settings.score
    scorer = gather.by_kse(settings.k, settings.alpha) if own is None else by(own, model)
    plan = make_plan(mapped.channels, gather.score(mapped, scorer), settings)
    for message in _remarks(plan):
        warnings.warn(message, PlanWarning, stacklevel=3)
    return plan


def _remarks(plan: TGDPlan) -> list[str]:
    """What the user should know of a plan before training with it."""
    found = []
    if plan.filter_share < MIN_FILTER_SHARE:
        what = f"only {plan.filter_share:.2%}" if plan.filter_share else "none"
        more = f"Raise phi (it is {plan.phi:g}), or give budget=0.25."
        remedy = more if plan.budget is None else f"Raise the budget (it is {plan.budget:g})."
        found.append(f"This plan trains {what} of the filter parameters. {remedy}")
    if frozen := [entry.layer.name for entry in plan.entries if entry.layer.frozen_by_user]:
        names = ", ".join(frozen[:3]) + (", ..." if len(frozen) > 3 else "")
        found.append(
            f"{len(frozen)} of {len(plan.entries)} layers stay frozen, because their parameters have "
            f"requires_grad=False: {names}. Set it to True before planning to retrain some of their filters."
        )
    return found


def _refuse_settings(settings: TGDSettings) -> None:
    """Raise if both a plan and settings that differ from the defaults were given."""
    given: dict[str, Any] = vars(replace(settings, on_unknown="raise"))
    other = [name for name, value in vars(TGDSettings()).items() if given[name] != value]
    if other:
        raise PlanError(
            f"plan and {', '.join(other)} are both given.",
            "Give one: the plan has its settings; plan.override changes single layers.",
        )


def from_onnx(path: str | Path, *, check: bool = True) -> nn.Module:
    """The network in an ONNX file, as a torch module that TGD can be applied to.

    Convolutions, linear layers and norms become torch's layers, named after the weights in the file; all other ops
    become torch functions in a `torch.fx` graph. The forward takes the graph's inputs, in their order. Floating-point
    tensors of the file are Parameters, whether it calls them so or not; freeze what training must not move with
    `overrides`. The network is in evaluation mode.

    Args:
        path: an .onnx file of opset 7 or newer; its external data lies in the same folder. No code in it is run.
        check: run the file (in onnxruntime where it is installed, and else in onnx's reference evaluator) and the
            network on the same random inputs. How far they are apart is `meta["largest_difference"]`.

    Returns:
        a `torch.fx.GraphModule`; `meta["example_inputs"]` are inputs that it takes, and that `apply_tgd`,
        `plan_tgd` and `channel_map` use if no others are given.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or the network computes something else.
        UnsupportedOpError: an op that torch has nothing for here; it is named with its node.

    Example:
        >>> import tempfile
        >>> import warnings
        >>> import torch
        >>> from tgdsurgery import channel_map
        >>> file = Path(tempfile.mkdtemp()) / "net.onnx"
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3)).eval()
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # what torch says about its own exporter
        ...     _ = torch.onnx.export(net, (torch.zeros(1, 1, 8, 8),), file, dynamo=True, verbose=False)
        >>> found = from_onnx(file)
        >>> channel_map(found).consumers
        ('0', '2')
        >>> torch.equal(found.get_submodule("0").weight, net[0].weight)
        True
    """
    # The onnx package is slow to import, and most do without.
    from tgdsurgery.onnx_graph.importing import import_onnx  # noqa: PLC0415

    path = Path(path)
    check_readable(path)
    return import_onnx(path, check=check)
