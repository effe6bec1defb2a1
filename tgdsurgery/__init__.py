"""Retrain only the filters that a pretrained CNN hardly uses, and keep all others bit for bit.

In short::

    net = apply_tgd(net, phi=0.3)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    net = remove_tgd(net)

The public names and where they are stand in `__init__.pyi`. Each is imported when it is used first, so that the `tgd`
command can list its subcommands without torch.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
__version__ = "0.1.0"
