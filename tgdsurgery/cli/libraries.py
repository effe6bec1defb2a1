"""`torchvision:resnet50`: networks of libraries by their names there, without pretrained weights."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from tgdsurgery.cli.options import ArgumentError
from tgdsurgery.core.tables import nearest

# What MONAI's networks have no default for: two-dimensional, of one channel and two classes.
MONAI = {
    **{"spatial_dims": 2, "dimensions": 2, "in_channels": 1, "n_input_channels": 1, "out_channels": 2},
    **{"num_classes": 2, "img_size": (64, 64), "channels": (16, 32, 64, 128), "strides": (2, 2, 2)},
}


class LibraryError(ArgumentError):
    """A network that a library does not have or that cannot be made by its name alone."""


def make_named(library: str, name: str) -> nn.Module:
    """A network of a library, with random weights; nothing is downloaded.

    Raises:
        LibraryError: the library is not installed, has no such network, or its network needs more than a name.
    """
    if importlib.util.find_spec(library) is None:
        raise LibraryError(f"{library} is not installed.", f"Try: pip install {library}")
    return LIBRARIES[library](name)


def _torchvision(name: str) -> nn.Module:
    models = importlib.import_module("torchvision").models
    names = models.list_models()
    if name not in names:
        raise _unknown("torchvision", name, names)
    builder = models.get_model_builder(name)
    given = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        given["weights_backbone"] = None
    return _made("torchvision", name, builder, given)


def _timm(name: str) -> nn.Module:
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return _made("timm", name, timm.create_model, {"model_name": name, "pretrained": False})


def _monai(name: str) -> nn.Module:
    nets = importlib.import_module("monai.networks.nets")
    classes = {
        key: value
        for key, value in vars(nets).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    if name not in classes:
        raise _unknown("monai", name, classes)
    parameters = inspect.signature(classes[name]).parameters.values()
    given = {p.name: MONAI[p.name] for p in parameters if p.default is p.empty and p.name in MONAI}
    if "pretrained" in inspect.signature(classes[name]).parameters:
        given["pretrained"] = False
    return _made("monai", name, classes[name], given)


LIBRARIES: dict[str, Callable[[str], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "monai": _monai,
}


def _made(library: str, name: str, make: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    try:
        found = make(**given)
        assert isinstance(found, nn.Module)
    except Exception as error:  # whatever the library raises
        raise LibraryError(
            f"{library}:{name} cannot be made by its name alone: {type(error).__name__}: {error}.",
            "Write a function that makes it: path/to/file.py:function.",
        ) from error
    return found


def _unknown(library: str, name: str, names: Iterable[str]) -> LibraryError:
    return LibraryError(f"{library} has no network called {name!r}.", nearest(name, names))
