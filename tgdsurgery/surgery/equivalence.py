"""Whether a network and its forms are the same model: outputs and gradients, compared on example inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.arguments import Arguments
from tgdsurgery.core.copying import copy_model, own_randomness
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.torch_private import tree_flatten, tree_leaves, tree_map_only
from tgdsurgery.surgery.compact import full_parameters

Outcome = tuple[list[Any], Any, dict[str, Tensor]]
# Whether two tensors are the same, given the largest value of the module's tensors and of all.
_Close = Callable[[Tensor, Tensor, float, float], bool]

_MODES = {False: "eval", True: "train"}
_PARTS = "Apply TGD to the parts that it can be applied to: model.backbone = apply_tgd(model.backbone, ...)."

MAX_FLOAT64_PARAMETERS = 50_000_000  # up to which a network is tried in float64
MAX_SMALL_PARAMETERS = 1_000_000  # up to which nothing else is tried before
SAMPLES = 2  # that a first look takes
CLEAR = 1e-4  # part of the largest value that is rounding in any type; what is lost or added changes more
MAX_ENTRIES_AT_A_TIME = 2**20  # that are compared


def same_results(reference: nn.Module, other: nn.Module, arguments: Arguments) -> bool:
    """Whether both give exactly the same output, and the same gradients, in eval and in train mode.

    Runs both, so that their buffers move: hand in copies. An output that cannot be compared is not the same.
    """
    modes = (False, True)
    outcomes = ([_run(net, arguments, mode) for net in (reference, other)] for mode in modes)
    return all(_same(*pair, outputs=_equal, gradients=_close) for pair in outcomes)


def difference(
    model: nn.Module,
    reference: Callable[[], nn.Module],
    other: Callable[[], nn.Module],
    arguments: Arguments,
    *,
    holds: bool,
) -> str | None:
    """How two forms of a network differ by more than rounding, in words; None if they do not, in the modes that run.

    Outputs in eval and train mode are compared, and the gradients of parameters and inputs, of some loss;
    that of a compact layer's parameter in the parameter's full shape. In float64 if the reference runs in it
    and is not large: an activation that rounding takes across the kink of a ReLU changes a gradient by far more
    than rounding. In the network's own type each module's gradient is compared by its length instead.
    A first look at two samples spares all this where everything clearly is the same.

    Args:
        model: what both are made from; it is copied. The reference's outputs are compared with its.
        reference: makes a copy of the one form, to be run and thrown away.
        other: makes a copy of the other.
        arguments: what all are called with.
        holds: whether the forms hold statistics of norms, so that they compute something else in train mode.

    Raises:
        RewriteError: the reference is not `model`: it has other outputs, or does not run in a mode in which that runs.
    """
    ran, refusal = False, ""
    clear = _clearly_same(model, reference, other, arguments, holds=holds)
    for training in (False, True):
        failure: Exception | None = None
        if training in clear:
            ran = True
            continue
        for precise in (True, False):
            try:
                expected = _outcome(reference, arguments, training, precise)
            except (
                Exception
            ) as error:  # batch norm of a single value, say, or a type written into the forward
                failure = error
                continue
            ran, failure = True, None
            if not (training and holds):
                _refuse_other_output(model, expected, arguments, training, precise)
            try:
                found = _outcome(other, arguments, training, precise)
            except Exception as error:  # user code that reads a weight, and finds some of its rows
                return f"it does not run ({type(error).__name__}: {error})"
            if not _same(expected, found, outputs=_close, gradients=_close if precise else _alike):
                return "its outputs or gradients differ"
            break
        if failure is not None:
            _refuse_if_it_runs(model, arguments, training, failure)
            refusal = f"{type(failure).__name__}: {failure}"
    return None if ran else f"the network runs neither in eval nor in train mode ({refusal})"


def _clearly_same(
    model: nn.Module,
    reference: Callable[[], nn.Module],
    other: Callable[[], nn.Module],
    arguments: Arguments,
    *,
    holds: bool,
) -> list[bool]:
    """The modes (whether training) in which a first look at two samples shows that all are the same.

    It costs far less than a look at all of a large batch, and less still where float32 is enough to see it.

    Args: as those of `difference`.
    """
    size = sum(parameter.numel() for parameter in model.parameters())
    clear: list[bool] = []
    if not MAX_SMALL_PARAMETERS < size <= MAX_FLOAT64_PARAMETERS:
        return clear
    arguments, precise = _first_samples(arguments), False
    with contextlib.suppress(Exception):  # the second look tells what it was
        forms = reference(), other()
        for training in (False, True):
            same = partial(_same_at_first_sight, model, forms, training=training, held=training and holds)
            found = not precise and same(arguments, precise=False)
            if not (found or precise):
                precise, arguments = True, tree_map_only(Tensor, _double, arguments)
                for form in forms:
                    form.double()
            if found or same(arguments, precise=True):
                clear.append(training)
    return clear


def _same_at_first_sight(
    model: nn.Module,
    forms: tuple[nn.Module, nn.Module],
    arguments: Arguments,
    *,
    training: bool,
    held: bool,
    precise: bool,
) -> bool:
    """Whether the forms are the same in one mode, and the model itself if they do not hold statistics there."""
    expected, found = (_run(net, arguments, training, of_inputs=True) for net in forms)
    rounded = _close if precise else _clear
    # Where the outputs are the same to the bit, rounding has taken nothing across a kink.
    outputs = rounded if precise or held else _equal
    if not _same(expected, found, outputs=outputs, gradients=rounded):
        return False
    del found
    if held:
        return True
    plain = copy_model(model).double() if precise else copy_model(model)
    return _same_outputs(_run(plain, arguments, training, backward=False), expected, outputs)


def _first_samples(arguments: Arguments) -> Arguments:
    """The first samples of a batch, if all tensors have the same first axis."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    if len({tensor.shape[:1] for tensor in tensors}) != 1:
        return arguments
    few: Arguments = tree_map_only(
        Tensor, lambda tensor: tensor[:SAMPLES] if tensor.dim() else tensor, arguments
    )
    return few


def refuse_other(
    model: nn.Module, form: Callable[[], nn.Module], arguments: Arguments, *, holds: bool
) -> None:
    """Compare a form of a network with the network itself.

    Args: as those of `difference`.

    Raises:
        RewriteError: it has other outputs, or does not run in a mode in which `model` runs.
    """
    for training in (False, True):
        try:
            found = _outcome(form, arguments, training, precise=False)
        except Exception as error:  # see `difference`
            _refuse_if_it_runs(model, arguments, training, error)
            continue
        if not (training and holds):
            _refuse_other_output(model, found, arguments, training, precise=False)


def _refuse_if_it_runs(model: nn.Module, arguments: Arguments, training: bool, failure: Exception) -> None:
    try:
        _outcome(partial(copy_model, model), arguments, training, precise=False)
    except Exception:  # so it was not the rewriting
        return
    raise RewriteError(
        f"With TGD this {type(model).__name__} does not run in {_MODES[training]} mode, and without it does "
        f"({type(failure).__name__}: {failure}).",
        _PARTS,
    ) from failure


def _refuse_other_output(
    model: nn.Module, found: Outcome, arguments: Arguments, training: bool, precise: bool
) -> None:
    plain = partial(copy_model, model)
    try:
        expected = _outcome(plain, arguments, training, precise, backward=False)
        if _same_outputs(expected, found, _close):
            return
        again = _outcome(plain, arguments, training, precise, backward=False)
    except Exception:  # it cannot be compared
        return
    if _same_outputs(expected, again, _close):  # else it is another one in every call
        raise RewriteError(
            f"With TGD this {type(model).__name__} computes something else in {_MODES[training]} mode.",
            _PARTS,
        )


def _same_outputs(one: Outcome, other: Outcome, close: _Close) -> bool:
    pairs = (tree_map_only(Tensor, Tensor.detach, list(outcome[0])) for outcome in (one, other))
    return one[1] == other[1] and all(_same_output(a, b, close) for a, b in zip(*pairs, strict=True))


def _outcome(
    make: Callable[[], nn.Module],
    arguments: Arguments,
    training: bool,
    precise: bool,
    *,
    backward: bool = True,
) -> Outcome:
    """Run a fresh copy, and free it before the next is made: two of a large network are many gigabytes."""
    net = make()
    if precise:
        if sum(parameter.numel() for parameter in net.parameters()) > MAX_FLOAT64_PARAMETERS:
            raise ValueError("too large for float64")
        net = net.double()
        arguments = tree_map_only(Tensor, _double, arguments)
    return _run(net, arguments, training, of_inputs=True, backward=backward)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _run(
    net: nn.Module, arguments: Arguments, training: bool, *, of_inputs: bool = False, backward: bool = True
) -> Outcome:
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)
    net.train(training)
    wanted: dict[str, Tensor] = {}
    if of_inputs:
        inputs, structure = tree_flatten((args, kwargs))
        for index, leaf in enumerate(inputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                wanted[f"input {index}"] = leaf.requires_grad_()
                inputs[index] = leaf.clone()  # some models write to them, which a leaf does not allow
        args, kwargs = structure.unflatten(inputs)
    with own_randomness(net), torch.enable_grad():
        wanted |= {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        leaves, structure = tree_flatten(net(*args, **kwargs))
        terms = [leaf.square().sum() for leaf in _trained(leaves)]
        if not terms or not wanted or not backward:
            return leaves, structure, {}
        found = torch.autograd.grad(terms, list(wanted.values()), allow_unused=True)
    gradients = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
    return leaves, structure, full_parameters(net, gradients)


def _same(one: Outcome, other: Outcome, *, outputs: _Close, gradients: _Close) -> bool:
    return (
        one[1] == other[1]
        and all(_same_output(a, b, outputs) for a, b in zip(one[0], other[0], strict=True))
        and _same_gradients(one[2], other[2], _loss(one[0]), gradients)
    )


def _trained(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]


def _loss(leaves: list[Any]) -> float:
    return sum(float(leaf.detach().abs().square().sum().nan_to_num()) for leaf in _trained(leaves))


def _same_output(a: object, b: object, close: _Close) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.requires_grad != b.requires_grad or a.shape != b.shape:
            return False
        return torch.equal(a, b) or (a.is_floating_point() and close(a, b, _largest(a), 0.0))
    return type(a) is type(b) and isinstance(a, int | float | str | None) and a == b


def _same_gradients(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], loss: float, close: _Close
) -> bool:
    """Whether all are the same but for the order of sums, which differs even between runs on some devices.

    Many gradients are zero but for rounding: that of a bias before a batch norm, say. So an entry may be off
    by a part of the largest of its module, or by a far smaller one of the largest of all, or of the loss.
    """
    if one.keys() != other.keys():
        return False
    if all(torch.equal(gradient, other[name]) for name, gradient in one.items()):
        return True
    scales: dict[str, float] = {}
    for name, gradient in one.items():
        module = name.rpartition(".")[0]
        scales[module] = max(scales.get(module, 0.0), _largest(gradient))
    most = max(scales.values(), default=0.0) + loss
    return all(
        close(gradient, other[name], scales[name.rpartition(".")[0]], most) for name, gradient in one.items()
    )


def _equal(a: Tensor, b: Tensor, scale: float, background: float) -> bool:
    return torch.equal(a, b)


def _clear(a: Tensor, b: Tensor, scale: float, background: float) -> bool:
    """Whether the difference is nothing but rounding at first sight."""
    return all(bool(((x - y).abs() <= CLEAR * scale).all()) for x, y in _pieces(a, b))


def _alike(a: Tensor, b: Tensor, scale: float, background: float) -> bool:
    """Whether the difference is small compared with the gradient: kinks that rounding crosses change single entries."""
    absolute = torch.finfo(a.dtype).eps * (0.1 * scale + 10 * background) * a.numel() ** 0.5
    difference, length = (
        sum(float(t.float().nan_to_num().square().sum()) for t in tensors) ** 0.5
        for tensors in ((x - y for x, y in _pieces(a, b)), (x for x, _ in _pieces(a, b)))
    )
    return bool(difference <= 0.01 * length + absolute)


def _close(a: Tensor, b: Tensor, scale: float, background: float) -> bool:
    # Half of the digits. An op that was lost, or a gradient that was not handed on, changes far more. What cancels
    # out to nothing may have been larger than all that is left: a norm sometimes divides by almost zero.
    precision = torch.finfo(a.dtype).eps
    absolute = precision**0.5 * scale + precision ** (2 / 3) * background
    close = partial(torch.allclose, rtol=precision**0.5, atol=absolute, equal_nan=True)
    # The absolute part alone is looked at first, which is faster and nearly always enough.
    return all(bool(((x - y).abs() <= absolute).all()) or close(x, y) for x, y in _pieces(a, b))


def _largest(tensor: Tensor) -> float:
    """The largest absolute value that is finite."""
    largest = 0.0
    for piece, _ in _pieces(tensor, tensor):
        found = float(piece.abs().max()) if piece.numel() else 0.0
        finite = found if math.isfinite(found) else float(piece.nan_to_num(0.0, 0.0, 0.0).abs().max())
        largest = max(largest, finite)
    return largest


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in pieces of some rows: what is computed on the way takes several times the memory."""
    a, b = (t.detach().reshape(*(t.shape or [1]), 1).flatten(1) for t in (a, b))
    rows = max(1, MAX_ENTRIES_AT_A_TIME // max(1, a[:1].numel()))
    return zip(a.split(rows), b.split(rows), strict=True)
