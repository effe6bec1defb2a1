"""Networks to test on: what a case is, and random ones."""

from tests.strategies.case import Case, call, leaves, randomise, scalar_loss
from tests.strategies.networks import cases

__all__ = ["Case", "call", "cases", "leaves", "randomise", "scalar_loss"]
