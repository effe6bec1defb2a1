"""Names for modules and parameters, from those in the file."""

from __future__ import annotations

import re

from torch import fx, nn

WEIGHT = re.compile(
    r"(.+?)[._](weights?|w_0|w|kernel|gamma|scale)"
)  # conv.weight, conv2d_0.w_0, conv1_bn_scale
# What a module of this name would hide.
TAKEN = frozenset({*dir(nn.Module()), *dir(fx.GraphModule), "graph", "meta"})


class Names:
    """Names that are valid in torch, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def unique(self, name: str) -> str:
        """A name like this one that no other has.

        >>> names = Names()
        >>> names.unique("/layer1/layer1.0/conv1/Conv"), names.unique("onnx::Conv_3"), names.unique("onnx::Conv_3")
        ('layer1.0.conv1.Conv', 'onnx__Conv_3', 'onnx__Conv_3_2')
        """
        valid = _valid(name)
        number, found = 1, valid
        while found in self._given:
            number += 1
            found = f"{valid}_{number}"
        self._given.add(found)
        return found


def module_name(weight: str, node: str, output: str) -> str:
    """The layer that a weight belongs to; the node's name, or its output's, if the weight's says nothing.

    >>> module_name("layer1.0.conv1.weight", "node_conv2d_3", "conv2d_3"), module_name("val_3", "/fc/MatMul", "y")
    ('layer1.0.conv1', '/fc/MatMul')
    """
    found = WEIGHT.fullmatch(weight)
    return found[1] if found else node or output


def _valid(name: str) -> str:
    # TensorFlow's converter joins the names of all nodes that it merged.
    parts = [part for part in name.partition(";")[0].split("/") if part]
    # The exporter that traces repeats the path of the module around: /layer1/layer1.0/conv1
    kept = [
        part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{part}.")
    ]
    words = [re.sub(r"[^\w-]", "_", word, flags=re.ASCII) for word in ".".join(kept).split(".") if word]
    return ".".join(f"{word}_" if word in TAKEN else word for word in words) or "unnamed"
