"""The bug catalogue: one small network per way of connecting channels that has gone wrong somewhere.

Every fixed bug leaves a network behind here; all laws run on all of them.
"""

from tests.topologies import gates, interfaces, movement, norms, sharing, weights, writes
from tests.topologies.registry import FORWARD_ONLY, TOPOLOGIES, case_of

__all__ = [
    "FORWARD_ONLY",
    "TOPOLOGIES",
    "case_of",
    "gates",
    "interfaces",
    "movement",
    "norms",
    "sharing",
    "weights",
    "writes",
]
