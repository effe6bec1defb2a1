"""model -> ATen-level torch.fx graph, recorded from one real run.

Tracers that work on proxies stop at control flow; watching the ATen ops of a run does not. The graph is
therefore specialised to that run: to the mode (train or eval) and to the sizes of the inputs.

Every node of the graph carries in `meta`:
    val: the tensor it made, on the meta device (shape, strides, dtype only); a tuple for several outputs.
    module: name of the innermost module that was running.
    returned_by: names of the modules that returned this very tensor, innermost first.
    parameter or buffer: its name, for a `get_attr` node that reads one.
    fixed: True if the value does not depend on the network's input.
    value: the tensor itself, where `fixed`; `value_at` tells what was in it when another node read it.
    overwritten: where `fixed` memory was written to: the nodes that wrote, each with what was there before.
    random: True if chance had a part in it.
    left_behind: for a `get_attr` node that an earlier run has made: who reads it, and where it was kept.
    exit: how the values of this tensor left torch (`Tensor.numpy`), for a node that stands for just that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tgdsurgery.core.copying import own_randomness
from tgdsurgery.core.errors import CaptureError, TGDError, UnsupportedOpError
from tgdsurgery.core.torch_private import (
    tree_leaves,
    tree_map_only,
    without_fused_backends,
)
from tgdsurgery.mapping.exits import Exits
from tgdsurgery.mapping.nodes import alias_root, updated, written
from tgdsurgery.mapping.recorder import Recorder
from tgdsurgery.mapping.state import state_of, statistics_of


@dataclass(frozen=True)
class Capture:
    """One recorded run.

    Args:
        graph: its placeholders are the input's tensors in the order of `tree_leaves`.
        carried: memory that the next run starts with: what was read of it, its place, and what is there at the end.
        places: what the model keeps at the end, by where it is.
        left: the storages that the run has made and left behind, with the nodes that look at them.
        settled: whether the model keeps tensors in the same places as before the run.
        moved: names of the running statistics that are others than before.
    """

    graph: fx.Graph
    carried: Mapping[fx.Node, tuple[str, fx.Node]] = field(default_factory=dict)
    places: Mapping[str, fx.Node] = field(default_factory=dict)
    left: Mapping[StorageWeakRef, Sequence[fx.Node]] = field(default_factory=dict)
    settled: bool = True
    moved: Collection[str] = ()


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: bool,
    earlier: Iterable[StorageWeakRef] = (),
    original: nn.Module | None = None,
) -> Capture:
    """Run `model` once and record its ATen ops.

    `model` is run as it is, in the given mode: hand in a copy (`copying.copy_model`), since buffers
    such as running statistics move in train mode. Random generators are left as they were.

    Args:
        model: the copy.
        args: its positional arguments.
        kwargs: its keyword arguments.
        training: the mode.
        earlier: memory that earlier runs of the copy have left behind.
        original: the model that it is a copy of, whose tensors it must not use.

    Raises:
        CaptureError: the model's forward raised; the message has its error. Or it uses the original's tensors.
    """
    model.train().train(training)  # train mode clears what some networks keep for evaluation
    before, statistics = state_of(model), {name: (b, b.clone()) for name, b in statistics_of(model)}
    recorder = Recorder(model, before, earlier, original)
    handles = recorder.watch_modules(model)
    args, kwargs = tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            recorder.placeholder(leaf)
    try:
        with _plain_ops(model), own_randomness(model), recorder, Exits(recorder.exit):
            output = model(*args, **kwargs)
    except TGDError:
        raise
    except Exception as error:
        mode = "train" if training else "eval"
        raise CaptureError(
            f"The model's forward failed in {mode} mode: {type(error).__name__}: {error}.",
            "Give example_inputs that the model accepts in train and eval mode (a batch of 2 or more).",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    after = state_of(model)
    places = recorder.kept_at(after)
    graph, carried = recorder.finish(output, places)
    del output
    settled = before.keys() == after.keys()
    return Capture(graph, carried, places, recorder.left(), settled, _moved(statistics, model, graph))


def _moved(before: Mapping[str, tuple[Tensor, Tensor]], model: nn.Module, graph: fx.Graph) -> set[str]:
    """Names of the statistics that are others now; where there are no values, of those that were written to.

    And of those of a norm that took the batch's own instead: with a momentum of 0 it moves nothing by that.

    Args:
        before: by name the buffer before the run, and a copy of it.
        model: the model after the run.
        graph: the run.
    """
    by_norms = _buffers(target for node in graph.nodes for target in updated(node))
    reached = by_norms | _buffers(target for node in graph.nodes for target in written(node))
    after = dict(statistics_of(model))
    return {
        name
        for name, (buffer, values) in before.items()
        if (now := after.get(name)) is None
        or name in by_norms
        or ((now is not buffer or name in reached) if now.is_meta else not torch.equal(values, now))
    }


def _buffers(targets: Iterable[fx.Node]) -> set[str | None]:
    return {alias_root(target).meta.get("buffer") for target in targets}


def refuse_inference_mode() -> None:
    """Raise where torch does not record how a tensor is made."""
    if torch.is_inference_mode_enabled():
        raise CaptureError(
            "In torch.inference_mode a run cannot be recorded, and what is made there cannot be trained.",
            "Leave inference mode before the call; torch.no_grad() is fine.",
        )


def refuse_left_behind(run: Capture) -> None:
    """Raise if a run has read what an earlier one made, and does not itself leave something in its place."""
    for node in run.graph.nodes:
        if "left_behind" in node.meta and node not in run.carried:
            raise UnsupportedOpError(
                f"{node.meta['left_behind']}; what feeds it cannot be followed.",
                "Keep it in a buffer or attribute that every call writes anew, or give it to the model as an input.",
            )


@contextlib.contextmanager
def _plain_ops(model: nn.Module) -> Iterator[None]:
    """No gradients, and no fused ops that hide linear layers: those of attention and of recurrent layers."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        with torch.no_grad(), without_fused_backends() if recurrent else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
