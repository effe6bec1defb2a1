"""Copies that still hold the model they were made from.

`copy.deepcopy` copies no functions: a hook that is a closure, a `forward` that is a lambda, and a weak reference go
on looking at the original's layers, tensors and lists. Such a copy computes with the original's weights, or leaves
its features with the original and reads stale ones.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tgdsurgery.core.errors import CaptureError
from tgdsurgery.mapping.state import state_of

_REMEDY = (
    "Let hooks use the module and the tensors that they are given, and make them and forward methods of a class "
    "(self.taps), not closures, lambdas or weak references."
)
_DEEPEST = 6  # functions in containers in functions


@contextlib.contextmanager
def apart(model: nn.Module, trial: nn.Module) -> Iterator[None]:
    """While a copy of the model is run: raise if the model is used in its place, and leave it as it was.

    Raises:
        CaptureError: what holds the model was in the way, or changed what it keeps.
    """
    holders = ", ".join(functions_of(trial, held_by(model)))
    if not holders:
        yield
        return
    saved, before = _saved(model), _versions(model)
    told = f"{holders} uses the model that it was made for, not the copy it belongs to"
    try:
        yield
        changed = [place for place, version in _versions(model).items() if before.get(place) != version]
        if changed:
            raise CaptureError(
                f"A copy of the model writes to the model itself ({changed[0]}): {told}.", _REMEDY
            )
    except CaptureError as error:
        if holders in error.problem:
            raise
        raise type(error)(f"{error.problem} Perhaps because {told}.", _REMEDY) from error
    finally:
        for container, content in saved:
            _restore(container, content)


def refuse_tensor_of(model: nn.Module, trial: nn.Module, name: str, module: str) -> None:
    """Raise where a copy of the model reads the model's own tensor of that name.

    Other tensors than parameters may be constants of a file that both use.
    """
    holders = ", ".join(functions_of(trial, held_by(model)))
    if holders or name in dict(model.named_parameters()):
        raise CaptureError(
            f"In module {module or 'the model itself'!r} a copy of the model reads {name!r} of the model itself: "
            f"{holders or 'what is called there'} uses the model that it was made for, not the copy it belongs to.",
            _REMEDY,
        )


def held_by(model: nn.Module) -> set[int]:
    """What belongs to a model, by identity: modules, tensors, and the containers and objects they keep."""
    found = {id(module) for module in model.modules()}
    found.update(id(tensor) for tensor in (*model.parameters(), *model.buffers()))
    kept = (value for module in model.modules() for value in vars(module).values())
    found.update(id(value) for value in kept if hasattr(value, "__dict__") or isinstance(value, _CONTAINERS))
    return found


def functions_of(trial: nn.Module, held: set[int]) -> Iterator[str]:
    """The hooks and attributes of a copy in which something of the model is held."""
    own = held_by(trial)
    for name, module in trial.named_modules():
        for attribute, value in vars(module).items():
            if attribute.endswith("_hooks") and isinstance(value, dict):
                for hook in value.values():
                    if _holds(hook, held - own):
                        called = getattr(hook, "__qualname__", type(hook).__name__)
                        yield f"the hook {called!r} ({attribute.strip('_')} of module {name!r})"
            elif callable(value) and not isinstance(value, (nn.Module, type)) and _holds(value, held - own):
                yield f"{attribute!r} of module {name!r}"


_CONTAINERS = (dict, list, deque, set)


def _holds(value: Any, held: set[int], depth: int = 0) -> bool:
    if id(value) in held:
        return True
    if depth > _DEEPEST or isinstance(value, (nn.Module, Tensor, type, types.ModuleType)):
        return False
    return any(_holds(part, held, depth + 1) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        yield from (cell.cell_contents for cell in cells if cell != types.CellType())
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, deque, set)):
        yield from value
    elif callable(value) and hasattr(value, "__dict__"):
        yield from vars(value).values()


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {place: (id(tensor), tensor._version) for place, tensor in state_of(model).items()}


def _saved(model: nn.Module) -> list[tuple[Any, Any]]:
    """The containers of all modules, each with a shallow copy."""
    found: list[Any] = [vars(module) for module in model.modules()]
    found += [value for own in found for value in own.values() if type(value) in _CONTAINERS]
    return [(container, container.copy()) for container in found]


def _restore(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, (list, deque)) else container.update(content)
