"""The plain network back out of a TGD network, in either form and through wrappers."""

from __future__ import annotations

from torch import fx, nn

from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.sharding import is_sharded
from tgdsurgery.core.torch_private import PRESERVED
from tgdsurgery.surgery.compact import frozen_buffers
from tgdsurgery.surgery.intact import refuse_replaced
from tgdsurgery.surgery.layers.graph import TGDGraphModule
from tgdsurgery.surgery.mount import IGNORED_BY_DDP, dismount
from tgdsurgery.surgery.tgd_network import tgd_form


def remove_tgd(tgd_model: nn.Module) -> nn.Module:
    """The plain network out of either form: a copy, of the original class, with the present weights.

    Nothing of TGD is left in it, its `state_dict` has the same keys, and `requires_grad` is as it was
    before. Wrappers (DDP, DataParallel, torch.compile) are looked through.

    Raises:
        RewriteError: `tgd_model` is not a TGD network, or FSDP2 keeps it in pieces; or a layer of it was replaced or
            pruned after apply_tgd.
    """
    net = tgd_form(tgd_model)
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise RewriteError(
            f"This {type(net).__name__} is in pieces in several processes (fully_shard).",
            "Load its get_model_state_dict with full_state_dict=True into a TGD network of one process.",
        )
    refuse_replaced(net)
    plain = copy_model(net.source() if isinstance(net, TGDGraphModule) else net)
    frozen = frozen_buffers(plain)
    known: dict[str, nn.Parameter] = {}
    for module in list(plain.modules()):
        dismount(module, known)
    for attributes in (
        vars(plain),
        plain.meta.get(PRESERVED, {}) if isinstance(plain, fx.GraphModule) else {},
    ):
        for name in ("tgd_plan", "tgd_masked"):
            attributes.pop(name, None)
        if rest := [name for name in attributes.pop(IGNORED_BY_DDP, ()) if name not in frozen]:
            attributes[IGNORED_BY_DDP] = rest
    return plain
