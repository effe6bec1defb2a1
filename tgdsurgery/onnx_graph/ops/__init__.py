"""ONNX ops as torch functions, a file for each family."""

from tgdsurgery.onnx_graph.ops import filters, movement, norms, pointwise, pooling, reduction, resizing
from tgdsurgery.onnx_graph.ops.registry import OPS, Op

__all__ = ["OPS", "Op", "filters", "movement", "norms", "pointwise", "pooling", "reduction", "resizing"]
