"""What a command says of a network that it adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from tgd_kit.cli.say import say
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.tgd import Tuned


@rank_zero_only
def say_tuned(tuned: Tuned[Any], out: Path) -> None:
    """The plan, what trained, whether the rest was kept, and where the network is."""
    if tuned.plan is not None:
        say(tuned.plan)
    say(f"Trainable: {tuned.share:.1%} of the parameters")
    if tuned.kept is not None:
        say(f"Frozen entries unchanged: {'yes' if tuned.kept else 'NO'}")
    say(f"Wrote {out / NETWORK}")
