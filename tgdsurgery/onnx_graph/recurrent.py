"""LSTM and GRU as torch's layers: gates in torch's order, one layer in one or both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from tgdsurgery.onnx_graph.flatten import Flat, plain_attributes

# torch's gates, by their place in ONNX: input, output, forget, cell; and update, reset, new.
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
KINDS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
PLAIN = {"activations", "clip", "input_forget", "layout"}  # settings that torch's layers do not have


def make_recurrent(node: ir.Node, flat: Flat) -> nn.RNNBase:
    """The layer of a node, with its weights.

    Raises:
        NotImplementedError: its weights are computed, or it has settings that torch's layers do not have.
    """
    given, kind = plain_attributes(node), node.op_type
    weight, recurrent, bias, lengths, *_ = [*flat.inputs(node)[1:], None, None, None, None]
    peepholes = flat.inputs(node)[7:]
    w, r = flat.constant(weight), flat.constant(recurrent)
    b = flat.constant(bias)
    odd = sorted(name for name in PLAIN & given.keys() if given[name])
    if w is None or r is None or (bias is not None and b is None) or lengths is not None or any(peepholes):
        raise NotImplementedError("weights that are computed, lengths of sequences or peepholes")
    if odd or given.get("direction", "forward") == "reverse":
        raise NotImplementedError(odd[0] if odd else "direction='reverse'")
    if kind == "GRU" and not given.get("linear_before_reset"):
        raise NotImplementedError("linear_before_reset=0")
    directions, _, inputs = w.shape
    layer = KINDS[kind](inputs, r.shape[2], bias=b is not None, bidirectional=directions == 2)
    gates = GATES[kind]
    for way, suffix in enumerate(("", "_reverse")[:directions]):
        found = {"weight_ih_l0": w.read()[way], "weight_hh_l0": r.read()[way]}
        if b is not None:
            found["bias_ih_l0"], found["bias_hh_l0"] = b.read()[way].chunk(2)
        for name, tensor in found.items():
            setattr(layer, name + suffix, nn.Parameter(_ordered(tensor, gates)))
    return layer.eval()


def _ordered(tensor: Tensor, gates: tuple[int, ...]) -> Tensor:
    parts = tensor.chunk(len(gates))
    return torch.cat([parts[gate] for gate in gates])


def outputs(found: tuple[Tensor, Any]) -> tuple[Tensor, ...]:
    """What ONNX returns: all steps as (time, direction, sample, hidden), and the last states."""
    steps, last = found
    states = last if isinstance(last, tuple) else (last,)
    directions = states[0].shape[0]
    return steps.unflatten(2, (directions, -1)).transpose(1, 2), *states
