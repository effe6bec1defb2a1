"""The compact form's layers: torch's own layers whose only Parameters are the trainable rows.

`obstacles` says which layers of a network cannot be made compact, `compact` does it, `restore` undoes it.
"""

from tgdsurgery.surgery.compact.base import Compact, Compaction, frozen_buffers, full_parameters
from tgdsurgery.surgery.compact.swap import compact, obstacles, restore

__all__ = ["Compact", "Compaction", "compact", "frozen_buffers", "full_parameters", "obstacles", "restore"]
