"""The layers form as a torch.fx graph: traced, checked, and kept in step with the network it came from."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from tgdsurgery.core.arguments import Arguments
from tgdsurgery.core.copying import copy_model, own_randomness
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.surgery.equivalence import same_results
from tgdsurgery.surgery.layers.held_norm import HeldNorm
from tgdsurgery.surgery.layers.tgd_layer import TGD, attach


class TGDGraphModule(fx.GraphModule):
    """A network's graph with a TGD layer after each planned module.

    Shares the parameters, buffers, child modules, hooks and plain attributes of the network it was traced
    from, its `source`: the state_dict has the same keys in the same order, those of modules that the graph
    never calls included. Copies and pickles are made from the source. Only the class is another one: the
    source's other methods (and the indexing of a Sequential) are not there, they would bypass the TGD layers.

    Args:
        source: the network, with its TGD layers as child modules.
        graph: from `traced(source)`.
    """

    _source: nn.Module
    _own: frozenset[str]

    def __init__(self, source: nn.Module, graph: fx.Graph) -> None:
        super().__init__(source, graph, f"TGD{type(source).__name__}")
        common = vars(nn.Module()).keys()
        own = {name: value for name, value in vars(self).items() if name not in common}
        vars(self).update({**vars(source), **own, "_source": source})
        vars(self)["_own"] = frozenset({*own, "_source", "_own"})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward; the graph calls the TGD layers by name, which a replaced module does not have."""
        try:
            return super().__call__(*args, **kwargs)
        except AttributeError as error:
            if f"no attribute {TGD!r}" not in str(error):
                raise
            raise RewriteError(
                f"A layer of this network was replaced or wrapped after apply_tgd: {error}.",
                "Do it before apply_tgd, or on what remove_tgd returns; layers of the compact form can be wrapped.",
            ) from error

    def source(self) -> nn.Module:
        """The network behind the graph, with the attributes that were set on the graph since."""
        vars(self._source).update({k: v for k, v in vars(self).items() if k not in self._own})
        return self._source

    def __deepcopy__(self, memo: dict[int, Any]) -> TGDGraphModule:
        memo[id(self)] = result = TGDGraphModule(
            copy.deepcopy(self.source(), memo), copy.deepcopy(self.graph)
        )
        return result

    def __reduce__(self) -> tuple[Callable[[nn.Module], nn.Module], tuple[nn.Module]]:
        return _retraced, (self.source(),)


def graph_form(net: nn.Module, arguments: Arguments) -> TGDGraphModule | None:
    """The graph of `net`; None if it cannot be traced, or if the trace behaves differently on the given inputs."""
    graph = traced(net)
    if graph is None:
        return None
    try:
        candidate = TGDGraphModule(copy_model(net), copy.deepcopy(graph))
        same = same_results(attach(copy_model(net)), candidate, arguments)
        candidate.graph.owning_module = None  # a circle, which would keep this copy in memory for a while
    except Exception:  # a wrong graph raises anything, and so does a network that cannot run in train mode
        return None
    return TGDGraphModule(net, graph) if same else None


def _retraced(source: nn.Module) -> nn.Module:
    graph = traced(source)
    return attach(source) if graph is None else TGDGraphModule(source, graph)


class _Tracer(fx.Tracer):
    """Does not look into modules that TGD added to, and refuses what a graph does not record."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = hasattr(m, TGD) or isinstance(m, HeldNorm)
        return ours or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _regions() != (True, False, 0):
            raise _UntraceableError
        return super().create_node(*args, **kwargs)


class _UntraceableError(Exception):
    """A `no_grad`, `inference_mode` or `autocast` region in the forward, which a graph would drop."""


def _regions() -> tuple[bool, bool, int]:
    """Whether gradients and inference mode are on, and how many autocast regions are open."""
    torch.autocast_increment_nesting()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.autocast_decrement_nesting()


def traced(net: nn.Module) -> fx.Graph | None:
    """The graph of `net` with its TGD layers called, or None where one graph cannot be all of its forward.

    That is: control flow on values, different code in train and eval mode, or a forward that draws random
    numbers while it is traced, writes to its module, or opens a `no_grad` or `autocast` region.
    """
    scratch = copy_model(net)
    before = _attributes(scratch)
    graphs = []
    for training in (True, False):
        scratch.train(training)
        with own_randomness(scratch):
            undisturbed = _draw()
        try:
            with own_randomness(scratch), torch.enable_grad():
                graphs.append(_Tracer().trace(scratch))
                if _draw() != undisturbed:
                    return None
        except Exception:  # user code that meets a fx.Proxy where it wants a tensor raises anything
            return None
    train, evaluation = (graph.python_code("self").src for graph in graphs)
    if train != evaluation or not _unchanged(before, _attributes(scratch)):
        return None
    if any(node.op == "placeholder" and node.args for node in graphs[0].nodes):
        return None  # An argument with a default: the tracer's stand-in for it never `is None`.
    _call_tgd_layers(scratch, graphs[0])
    return graphs[0]


def _draw() -> tuple[float, float, float]:
    """The next number of each generator: another one where something was drawn before."""
    return random.random(), float(numpy.random.random()), float(torch.rand(()))


def _call_tgd_layers(net: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and hasattr(net.get_submodule(node.target), TGD):
            with graph.inserting_after(node):
                masked = graph.call_module(f"{node.target}.{TGD}", (node,))
            node.replace_all_uses_with(masked, delete_user_cb=lambda user, masked=masked: user is not masked)
    graph.lint()


def _attributes(net: nn.Module) -> list[tuple[object, object, int]]:
    """Every attribute of every module: its name, the object, and how often a tensor was written to."""
    return [
        (name, value, value._version if isinstance(value, Tensor) else 0)
        for module in net.modules()
        for group in (vars(module), module._parameters, module._buffers)
        for name, value in group.items()
        if name != "training"
    ]


def _unchanged(before: list[tuple[object, object, int]], after: list[tuple[object, object, int]]) -> bool:
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(a[1] is b[1] and (a[0], a[2]) == (b[0], b[2]) for a, b in pairs)
