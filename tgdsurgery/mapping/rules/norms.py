"""Per-channel layers with parameters of their own: norms.

A norm's statistics over channels are not followed: channel c of the output is channel c of the input,
scaled and shifted by row c of the affine parameters. (PReLU and layer scale are pointwise ops on
parameters, whose rows are writers already; nothing more is needed for them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from torch import Tensor

from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import rule_for


def _with_rows(call: Call, tensor: Traced, rows: Sequence[Traced | None], trailing: int) -> Tensor:
    """The input's labels united with those of per-channel `rows`, `trailing` axes before the last one."""
    shaped = [
        row.labels.reshape(*row.shape, *[1] * trailing) for row in rows if row is not None and row.labelled
    ]
    return reduce(call.table.union, [*shaped, tensor.labels])


@rule_for("native_batch_norm", "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training")
@rule_for("_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update")
@rule_for("_batch_norm_no_update", "batch_norm")
def batch_norm(
    call: Call,
    tensor: Traced,
    weight: Traced | None = None,
    bias: Traced | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """(B, C, *): affine rows and running statistics of channel c write channel c.

    Instance norm arrives here as (1, B * C, *) with its rows repeated B times.
    """
    statistics = [row for row in args[:2] if isinstance(row, Traced)]
    return _with_rows(call, tensor, [weight, bias, *statistics], tensor.labels.dim() - 2)


@rule_for("native_group_norm")
def group_norm(
    call: Call,
    tensor: Traced,
    weight: Traced | None = None,
    bias: Traced | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """(B, C, *)."""
    return _with_rows(call, tensor, [weight, bias], tensor.labels.dim() - 2)


@rule_for("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(
    call: Call,
    tensor: Traced,
    shape: Any,
    weight: Traced | None = None,
    bias: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Affine parameters cover the last axes, element by element."""
    return _with_rows(call, tensor, [weight, bias if isinstance(bias, Traced) else None], 0)
