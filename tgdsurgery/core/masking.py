"""Masks on tensors: stop the gradient at frozen channels, and keep masks small."""

from __future__ import annotations

import torch
from torch import Tensor

from tgdsurgery.core.torch_private import in_forward_mode, is_traced, under_functorch

# Integers of an entry's size in bytes: equal integers are equal bits, whatever the type means by them.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def mask_gradient(x: Tensor, mask: Tensor, channel_axis: int) -> Tensor:
    """`x` itself, or an equal tensor; the gradient of the channels outside of the mask becomes zero."""
    if is_traced() or not (torch.is_grad_enabled() and (in_forward_mode() or x.requires_grad)):
        return x
    shaped = along(mask, channel_axis)
    if torch.compiler.is_compiling() or in_forward_mode() or x._is_view():
        # A compiler does not see hooks, and fuses this copy away; derivatives in forward mode pass by them. An in-place
        # op on a view (what nn.Linear and unbatched convs return) makes autograd go round the view, and a hook on it.
        return torch.where(shaped, x, x.detach())
    # A hook stays with the value it was set on, so an in-place activation may follow.
    x.register_hook(lambda gradient: zeroed(gradient, shaped))
    return x


def zeroed(gradient: Tensor, mask: Tensor) -> Tensor:
    """The gradient where the mask (broadcastable) is True, and zero, not a product with zero, elsewhere."""
    if not gradient.is_floating_point() or gradient.requires_grad or under_functorch():
        return torch.where(mask, gradient, 0)
    # The same by the bits of the numbers, several times faster on a CPU; but nothing to differentiate.
    bits = BITS[gradient.element_size()]
    return gradient.view(bits).bitwise_and(mask.to(bits).neg()).view(gradient.dtype)


def along(mask: Tensor, axis: int) -> Tensor:
    """The mask (N,) shaped to broadcast along `axis`, which is counted from the end."""
    return mask.view(-1, *[1] * (-axis - 1))


def collapsed(mask: Tensor) -> Tensor:
    """The mask without its expanded axes (size 1 instead): it still broadcasts the same way."""
    for axis, stride in enumerate(mask.stride()):
        if stride == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask
