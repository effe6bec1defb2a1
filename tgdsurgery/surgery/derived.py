"""Classes made at run time: a mixin in front of the class that a module has, so that `isinstance` still holds."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar, NamedTuple

from torch import nn


class Recipe(NamedTuple):
    """What a derived class is made of.

    Args:
        mixin: the class in front, a `Derived`.
        original: the class that the module had; it can be a derived class itself.
        names: what the mixin makes properties of.
    """

    mixin: Any
    original: Any
    names: tuple[str, ...]


class Derived(nn.Module):
    """Base of the mixins: instances are copied and pickled with what their class is made of, as it has no address."""

    _tgd_recipe: ClassVar[Recipe]
    _tgd_prefix: ClassVar[str]  # what the name of the original becomes the class's name by

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """A new module of the original class: `type(layer)(...)` is how other code makes one more like it."""
        if "_tgd_recipe" in vars(type(self)):
            self.__class__ = original_class(type(self))
            self.__init__(*args, **kwargs)  # type: ignore[misc]
        else:
            super().__init__(*args, **kwargs)

    @classmethod
    def _tgd_members(cls, original: type[nn.Module], names: tuple[str, ...]) -> dict[str, Any]:
        """More members of the class that is made of this mixin and `original`."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        if "_tgd_recipe" not in vars(type(self)):  # a class defined in a module
            return reduced  # type: ignore[no-any-return]
        return _empty, (_portable(type(self)),), *reduced[2:]


# While a class is in use. The key holds on to what the class is made of, and no longer than the class does.
_made: weakref.WeakValueDictionary[Recipe, type[Any]] = weakref.WeakValueDictionary()


def derive(mixin: type[Derived], original: type[nn.Module], names: tuple[str, ...] = ()) -> type[Any]:
    """The class of a module of class `original` with `mixin` in front: the same class for the same arguments."""
    recipe = Recipe(mixin, original, names)
    if (made := _made.get(recipe)) is None:
        # Of the original's module: torch.fx looks into all modules but those that torch defines itself.
        members = {"_tgd_recipe": recipe, "__module__": original.__module__}
        members |= mixin._tgd_members(original, names)
        _made[recipe] = made = type(f"{mixin._tgd_prefix}{original.__name__}", (mixin, original), members)
    return made


def original_class(derived: type[nn.Module]) -> Any:
    """What `derive` made the class of."""
    return vars(derived)["_tgd_recipe"].original


def _portable(cls: type[Any]) -> Any:
    """The class itself, or the recipe down to classes that pickle finds by their names."""
    if (recipe := vars(cls).get("_tgd_recipe")) is None:
        return cls
    return recipe._replace(original=_portable(recipe.original))


def _class(portable: Any) -> type[Any]:
    if not isinstance(portable, Recipe):
        return portable  # type: ignore[no-any-return]
    return derive(portable.mixin, _class(portable.original), portable.names)


def _empty(portable: Any) -> Any:
    cls: Any = _class(portable)
    return cls.__new__(cls)
