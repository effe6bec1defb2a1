"""At which input channels a layer's gradient can reach anything trainable."""

from __future__ import annotations

from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.records import ChannelMap, Producer


def needed_inputs(channels: ChannelMap, plan: TGDPlan) -> dict[str, tuple[bool, ...]]:
    """For every consumer: at which input channels its gradient can reach anything trainable.

    A filter layer that is frozen whole lets the loss reach what is before it; so does a channel layer, but only to the
    filters that it passed. Where a channel comes from the network's own input, the gradient may be asked for
    outside. Coupling by the statistics of a norm over channels is not in a channel map: check before use.
    """
    if plan.flow == "full":
        return {}

    filters = {e.layer.name for e in plan.entries if e.layer.role == "filter"}
    open_filters = {
        e.layer.name
        for e in plan.entries
        if e.layer.name in filters and (not any(e.mask) or not e.layer.modules)
    }

    def lets_through(producer: Producer) -> bool:
        return producer.layer in open_filters or plan[producer.layer].mask[producer.channel]

    leads = [
        not any(p.layer in filters for p in producers) or any(map(lets_through, producers))
        for producers in channels.sets
    ]
    return {name: tuple(leads[index] for index in inputs) for name, inputs in channels.inputs.items()}
