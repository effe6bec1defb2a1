"""Hooks that run around every step of every optimizer of torch: installed at the first use and never removed.

One hook serves all networks. Taking one away while torch goes through them is an error, and the garbage collector,
which would have to do it, runs at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Hook = Callable[[Optimizer, Any, Any], None]


@cache
def before_every_step(hook: Hook) -> None:
    """Call `hook(optimizer, args, kwargs)` before every step from now on; later calls do nothing."""
    register_optimizer_step_pre_hook(hook)


@cache
def after_every_step(hook: Hook) -> None:
    """Call `hook(optimizer, args, kwargs)` after every step from now on; later calls do nothing."""
    register_optimizer_step_post_hook(hook)
