"""The network a command works on, and the function that measures it, from the user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from tgdsurgery import from_onnx
from tgdsurgery.cli.libraries import LIBRARIES, make_named
from tgdsurgery.cli.options import ArgumentError, InputShape, is_onnx
from tgdsurgery.core.errors import TGDError
from tgdsurgery.core.tables import nearest
from tgdsurgery.storage.checkpoints import READ, read_state_dict
from tgdsurgery.storage.weights import check_finite, load_weights

FORM = "Write package.module:factory or path/to/file.py:factory."


class FunctionError(ArgumentError):
    """A function of the user failed."""


class FactoryError(ArgumentError):
    """A `--model` that cannot be imported or makes no module, or an `--evaluate` that is not a function."""


def load_model(factory: str, checkpoint: Path | None = None) -> nn.Module:
    """The network that `factory` makes, with the weights of `checkpoint`.

    Args:
        factory: `package.module:name` or `path/to/file.py:name`; the name of a module, or of something that
            returns one when called without arguments. An .onnx file. `torchvision:name`, `timm:name` or
            `monai:name`.
        checkpoint: its weights; every name and shape has to fit, and all have to be finite.

    Raises:
        FactoryError: it cannot be imported, has no such name, fails, or makes no module.
        LibraryError: the library does not have it.
        CheckpointError: the checkpoint cannot be read, does not fit or is not finite; so for an .onnx file.
        UnsupportedOpError: an .onnx file with an op that cannot be read.
    """
    model = _model(factory)
    if checkpoint is not None:
        state = read_state_dict(checkpoint)
        load_weights(model, state, checkpoint)
        check_finite(state, checkpoint)
    return model


def is_weights(name: str) -> bool:
    """Whether a name is that of a checkpoint, which is no model; an .onnx file is both."""
    return ":" not in name and not is_onnx(name) and Path(name).suffix.lower() in READ


def _model(factory: str) -> nn.Module:
    library, _, name = factory.partition(":")
    if is_onnx(factory):
        return from_onnx(factory)
    if library in LIBRARIES and name:
        return make_named(library, name)
    if is_weights(factory):
        raise FactoryError(
            f"{factory} is a file of weights, and no network.",
            "Give what makes the network, package.module:factory, and this file as --checkpoint.",
        )
    return _make(factory, _named(factory, "model", FORM))


def load_function(reference: str) -> Callable[..., object]:
    """The function that `package.module:name` or `path/to/file.py:name` names.

    Raises:
        FactoryError: it cannot be imported, has no such name, or that is not a function.
    """
    found = _named(reference, "function", FORM.replace("factory", "function"))
    if not callable(found) or isinstance(found, nn.Module):
        raise FactoryError(f"{reference} is not a function but {type(found).__name__}.", "Name a function.")
    return found


@contextmanager
def failures_of(reference: str, remedy: str) -> Iterator[None]:
    """Turns what a function of the user raises into one line.

    Args:
        reference: what the user called it.
        remedy: what it is called with, and what it returns.

    Raises:
        FunctionError: it failed.
    """
    try:
        yield
    except TGDError:
        raise
    except Exception as error:
        raise FunctionError(f"{reference} failed: {type(error).__name__}: {error}.", remedy) from error


def call_evaluation(reference: str, evaluate: Callable[[nn.Module], object], network: nn.Module) -> object:
    """What the user's function returns for a network.

    Raises:
        FunctionError: it failed.
    """
    with failures_of(reference, "It is called with the network, and returns one number."):
        return evaluate(network)


def example_inputs(model: nn.Module, shapes: Sequence[InputShape]) -> tuple[Tensor, ...] | None:
    """Inputs of these shapes where the model's parameters are; None (to be found, or the model's own) without.

    Random numbers, or zeros where whole numbers are asked for: 0 is an index into any table.
    """
    like = next(model.parameters(), torch.empty(0))
    return tuple(_example(shape, like) for shape in shapes) or None


def _example(shape: InputShape, like: Tensor) -> Tensor:
    try:
        if shape.whole:
            return torch.zeros(shape.sizes, dtype=torch.int64, device=like.device)
        return torch.rand(shape.sizes, dtype=like.dtype, device=like.device)
    except RuntimeError as error:  # no memory
        sizes = "x".join(map(str, shape.sizes))
        raise ArgumentError(
            f"No input of shape {sizes} can be made: {error}.", "Give a smaller one."
        ) from error


def _named(reference: str, what: str, form: str) -> object:
    where, colon, name = reference.rpartition(":")
    if not (colon and where and name):
        raise FactoryError(f"{reference!r} names no {what}.", form)
    return _attribute(_import(where), where, name)


def _import(where: str) -> ModuleType:
    path = Path(where)
    from_file = path.suffix == ".py"
    if from_file and not path.is_file():
        raise FactoryError(f"{where} does not exist.", FORM)
    # As `python file.py` and `python -m module` do; a console script has neither folder on its path.
    folder = str(path.parent.resolve()) if from_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _import_file(path) if from_file else importlib.import_module(where)
    except Exception as error:
        raise FactoryError(
            f"{where} cannot be imported: {type(error).__name__}: {error}.",
            "Check that it is installed or in this folder, and imports without error.",
        ) from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(f"_tgd_model_{path.stem}", path)
    assert spec is not None  # there is a loader for every .py
    assert spec.loader is not None
    known = sys.modules.get(spec.name)
    if known is not None and known.__file__ == str(path):  # imported twice, its classes would be two each
        return known
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _attribute(module: ModuleType, where: str, name: str) -> object:
    try:
        return getattr(module, name)
    except AttributeError:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise FactoryError(f"{where} has no {name!r}.", nearest(name, public)) from None


def _make(factory: str, source: object) -> nn.Module:
    if isinstance(source, nn.Module):
        return source
    if not callable(source):
        raise FactoryError(
            f"{factory} is not a function but {type(source).__name__}.",
            "Name a function that returns the model.",
        )
    try:
        model = source()
    except Exception as error:
        raise FactoryError(
            f"{factory}() failed: {type(error).__name__}: {error}.",
            "Name a function that makes the model when called without arguments.",
        ) from error
    if not isinstance(model, nn.Module):
        raise FactoryError(
            f"{factory}() returned no module but {type(model).__name__}.",
            "It has to return a torch.nn.Module.",
        )
    return model
