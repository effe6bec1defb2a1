"""The user's hooks that watch or change what a module computes."""

from __future__ import annotations

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether there are any on the module itself or on its own parameters."""
    hooks = [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]
    parameters = list(module.parameters(recurse=False))
    hooks += [parameter._backward_hooks or {} for parameter in parameters]
    hooks += [parameter._post_accumulate_grad_hooks or {} for parameter in parameters]
    return any(hooks)
