"""Running statistics of norms: what they are called, which entries are held, and how they are updated."""

from __future__ import annotations

from tgdsurgery.core.records import Layer

STATISTICS = ("running_mean", "running_var")


def norm_of(layer: Layer) -> str | None:
    """Name of the norm module that keeps the layer's statistics; None if some other module keeps them."""
    owner, _, _ = layer.statistics[0].rpartition(".")
    return owner if owner in (layer.name, *layer.modules) else None
