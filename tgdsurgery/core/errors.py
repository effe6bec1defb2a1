"""Every error and warning of the package: what went wrong, and what to do about it.

All of them are :class:`TGDError`, so one ``except`` catches them. The message ends with the remedy;
``exit_code`` is what the command line returns.
"""

from __future__ import annotations


class TGDError(Exception):
    """Base of all errors of this package.

    Args:
        problem: what is wrong, in one sentence.
        remedy: what the user can do, in one sentence.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[TGDError], tuple[str, str]]:
        return type(self), (self.problem, self.remedy)


class CaptureError(TGDError):
    """The model could not be run and recorded."""


class ExampleInputError(CaptureError):
    """No input was given, and none could be found that the model accepts."""


class UnsupportedOpError(TGDError):
    """The channel map met an op that no rule describes, or a wrong rule; guessing would freeze wrong filters."""


class MapConflictError(TGDError):
    """Two runs of one model (train and eval, or two input sizes) map channels differently."""


class PlanError(TGDError):
    """A threshold, budget, override or plan file that cannot be used."""


class RewriteError(TGDError):
    """The plan does not fit the model, or the model is not one that TGD made."""


class RowsError(RewriteError, RuntimeError):
    """Trainable rows met the whole of their parameter. A RuntimeError, as torch raises where shapes do not fit."""


class CheckpointError(TGDError):
    """A file that is missing, damaged, not a checkpoint, or would run code when loaded."""


class TGDWarning(UserWarning):
    """Base of all warnings of this package."""


class PlanWarning(TGDWarning):
    """A plan that trains nothing or next to nothing, or layers that stay frozen because the user froze them."""


class LayersFormWarning(TGDWarning):
    """The compact form was asked for, but the network is in the layers form: as correct, but no cheaper."""
