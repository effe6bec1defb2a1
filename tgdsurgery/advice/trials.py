"""A trial: a copy of the network is trained for a few dozen steps, and measured on the way."""

from __future__ import annotations

import copy
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.advice.records import Errors, Method, Trial
from tgdsurgery.api import apply_tgd, plan_tgd
from tgdsurgery.core.arguments import Arguments, as_arguments
from tgdsurgery.core.copying import own_randomness
from tgdsurgery.core.errors import CaptureError, PlanError, PlanWarning, TGDError
from tgdsurgery.core.measuring import FINITE, measured
from tgdsurgery.core.plan import Flow, TGDPlan
from tgdsurgery.core.torch_private import BatchNorm

Evaluate = Callable[[nn.Module], Any]
LORA_RANK = 8
MARKS = (1 / 3, 2 / 3, 1.0)  # of the steps, at which a network is measured
DIVERGED = "It was finite for the untouched network: give fewer steps, or a loss that does not diverge."
WARM_UP = 0.1  # of the steps, in which the rate rises


@dataclass(frozen=True)
class Way:
    """A way to adapt: everything, low-rank updates, or TGD with a flow and a share of the filters' parameters."""

    method: Method
    flow: Flow | None = None
    share: float | None = None


FULL = Way("full fine-tuning")


class Trials:
    """Trials of one network on the same batches.

    Args:
        model: the pretrained network; it is not touched.
        batches: (inputs, targets); the first `steps` of them are kept, or all, again and again, if there are fewer.
        loss: of outputs and targets.
        evaluate_old: the error on old data.
        evaluate_new: the error on new data.
        steps: of a trial.

    Raises:
        PlanError: there are no batches, or one is no pair.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Callable[[Any, Any], Any],
        evaluate_old: Evaluate,
        evaluate_new: Evaluate,
        steps: int,
    ) -> None:
        self.model, self.steps = model, steps
        self._criterion = loss
        self._evaluations = {"evaluate_old": evaluate_old, "evaluate_new": evaluate_new}
        self._batches = [_pair(batch) for batch in islice(batches, steps)]
        if not self._batches:
            raise PlanError("batches has none.", "Give (inputs, targets) of the new data to train on.")
        self._networks: dict[Way, nn.Module] = {}  # mapped once for all rates

    @property
    def inputs(self) -> Arguments:
        """What the network is called with; those of the first batch."""
        return self._batches[0][0]

    def plan(self) -> TGDPlan:
        """A plan of the network, with the scores that all trials use."""
        return plan_tgd(self.model, self.inputs, budget=1.0)

    def check_loss(self) -> None:
        """Raise if the loss of the first batch cannot be trained on."""
        with own_randomness(self.model):
            self._loss(self._prepared(FULL), *self._batches[0])

    def untouched(self) -> Errors:
        """Errors of the network as it is."""
        remedy = f"{FINITE} The weights may be the reason, or the function."
        return self._measure(copy.deepcopy(self.model), "for the untouched network", remedy)

    def run(self, way: Way, rate: float) -> Trial | None:
        """Train a copy in one way, with Adam; None if it leaves nothing to train, as a small share can."""
        with own_randomness(self.model):
            torch.manual_seed(0)
            network = self._prepared(way)
            trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
            if not trained:
                return None
            optimizer = torch.optim.Adam(trained, lr=rate)
            marks = {max(1, round(share * self.steps)) for share in MARKS}
            points: list[Errors] = []
            seconds: list[float] = []
            for count, (inputs, targets) in enumerate(islice(cycle(self._batches), self.steps), 1):
                optimizer.param_groups[0]["lr"] = rate * min(1.0, count / (WARM_UP * self.steps))
                start = time.process_time()
                optimizer.zero_grad()
                self._loss(network, inputs, targets).backward()
                optimizer.step()
                seconds.append(time.process_time() - start)
                if count in marks:
                    where = f"in a trial of {way.method} at a rate of {rate:g}"
                    points.append(self._measure(network, where, DIVERGED))
        count = sum(parameter.numel() for parameter in trained)
        return Trial(way.method, way.flow, way.share, rate, count, statistics.median(seconds), tuple(points))

    def _measure(self, network: nn.Module, where: str, remedy: str) -> Errors:
        """Old and new error of a network, whose modes stay as they are."""
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        old, new = (
            measured(evaluate, network, where, name=name, remedy=remedy)
            for name, evaluate in self._evaluations.items()
        )
        for module, training in modes:
            module.training = training
        return Errors(old, new)

    def _loss(self, network: nn.Module, inputs: Arguments, targets: Any) -> Tensor:
        """The loss of a batch, which can be trained on."""
        try:
            outputs = network(*inputs.args, **inputs.kwargs)
        except TGDError:
            raise
        except Exception as error:
            raise CaptureError(
                f"The model's forward failed on a batch: {type(error).__name__}: {error}.",
                "The inputs of a batch are a tensor, a tuple of positional arguments or a dict of keyword arguments.",
            ) from error
        found = self._criterion(outputs, targets)
        if isinstance(found, Tensor) and found.numel() == 1 and found.requires_grad:
            return found
        raise PlanError(
            f"loss returned {_described(found)}.",
            "It is called with the outputs and the targets of a batch, and has to return a scalar tensor that depends "
            "on the outputs.",
        )

    def _prepared(self, way: Way) -> nn.Module:
        """A copy that trains what the way trains; its batch norms keep their statistics, in all ways alike."""
        if way.share is not None and way.flow is not None:
            if way not in self._networks:
                with warnings.catch_warnings():  # the trial says how much it trained
                    warnings.simplefilter("ignore", PlanWarning)
                    self._networks = {
                        way: apply_tgd(self.model, self.inputs, budget=way.share, flow=way.flow)
                    }
            network = copy.deepcopy(self._networks[way])
        else:
            network = copy.deepcopy(self.model)
            network = _with_lora(network) if way.method == "LoRA" else network
        network.train()
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        return network


def has_lora() -> bool:
    """Whether low-rank updates can be tried: PEFT is an optional package."""
    return importlib.util.find_spec("peft") is not None


def _with_lora(network: nn.Module) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 (optional, and heavy)

    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        and getattr(module, "groups", 1) == 1
    ]
    found: nn.Module = inject_adapter_in_model(LoraConfig(r=LORA_RANK, target_modules=names), network)
    return found


def _pair(batch: Any) -> tuple[Arguments, Any]:
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise PlanError(f"A batch is {type(batch).__name__}.", "Give pairs: inputs and targets.")
    return as_arguments(batch[0]), batch[1]


def _described(found: Any) -> str:
    """What a loss returned, for an error."""
    if not isinstance(found, Tensor):
        return f"no tensor but {type(found).__name__}"
    return f"a tensor of shape {tuple(found.shape)}" if found.numel() != 1 else "a tensor without a gradient"
