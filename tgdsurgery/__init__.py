"""Retrain only the filters that a pretrained CNN hardly uses, and keep all others bit for bit.

In short::

    net = apply_tgd(net, phi=0.3)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    net = remove_tgd(net)

The public names and where they are stand in `__init__.pyi`. Each is imported when it is used first, so that the `tgd`
command can list its subcommands without torch.
"""

from importlib import import_module
from typing import Any

from lazy_loader import attach_stub

_public, __dir__, __all__ = attach_stub(__name__, __file__)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    try:
        return _public(name) if name in __all__ else import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
