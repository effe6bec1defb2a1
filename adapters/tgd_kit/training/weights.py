"""A network's weights as a safetensors file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tgd_kit.errors import printable, reason
from tgd_kit.runs.files import replacing
from tgdsurgery import CheckpointError


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state_dict as safetensors."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as temporary:
        save_file(weights, temporary)


def read_weights(path: Path, remedy: str) -> dict[str, Tensor]:
    """The state_dict that `save_weights` wrote.

    Args:
        path: the file.
        remedy: how to get such a file, for messages.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}.", remedy) from None
    except Exception as error:  # safetensors raises anything on damaged headers
        shown = printable(path)
        raise CheckpointError(f"{shown} cannot be read as safetensors ({reason(error)}).", remedy) from error


def finite(network: nn.Module) -> bool:
    """Whether all weights and buffers are numbers, neither NaN nor infinite."""
    return all(bool(value.isfinite().all()) for value in network.state_dict().values())


def check_finite(network: nn.Module, what: str) -> None:
    """Refuse a network whose weights are not finite, before any work is done with it.

    Raises:
        CheckpointError: they are not.
    """
    if not finite(network):
        raise CheckpointError(
            f"{what} has weights that are NaN or infinite.", "Train it again, at a lower rate."
        )


def digest(network: nn.Module) -> str:
    """Equal names and weights have equal digests."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
