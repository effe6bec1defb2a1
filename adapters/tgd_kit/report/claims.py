"""Claims of a paper, put to a study's numbers: each is one paired difference and the sign it should have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from tgd_kit.report.markdown import interval, markdown
from tgd_kit.report.statistics import Difference, agreed_sign

Verdict = Literal["holds", "does not hold", "not shown"]
Origin = Literal["paper", "reader"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or one that its reader would make of it.

    Args:
        text: the statement.
        what: the difference that decides.
        found: it, over patients and over seeds; for unseen features, where each seed has its own patient, once.
        sign: +1 where the claim says it is above 0, -1 where below.
        format: how the difference is written.
        origin: whose statement it is.
        margin: how far on the wrong side of 0 the difference may be ("keeps", "does not harm").
        idle: which of the networks compared mostly stayed as they were, so that nothing can be shown of them.
    """

    text: str
    what: str
    found: tuple[Difference, ...]
    sign: int
    format: str
    origin: Origin = "reader"
    margin: float = 0.0
    idle: str = ""

    @property
    def decisive(self) -> tuple[Difference, ...]:
        """The differences from where the claim begins to hold: 0, or the margin."""
        moved = self.sign * self.margin
        return tuple(
            replace(found, mean=found.mean + moved, low=found.low + moved, high=found.high + moved)
            for found in self.found
        )

    @property
    def verdict(self) -> Verdict:
        """What the 95% intervals say: "not shown" where one includes 0 (or the margin), or they disagree."""
        agreed = agreed_sign(*self.decisive)
        if self.idle or not agreed:
            return "not shown"
        return "holds" if agreed == self.sign else "does not hold"


def claims_table(claims: Iterable[Claim]) -> str:
    """Claim, whose it is, difference with its 95% intervals, verdict."""
    rows = []
    for claim in claims:
        shown = [
            interval(found, claim.format, bold=bool(moved.sign))
            for found, moved in zip(claim.found, claim.decisive, strict=True)
        ]
        patients, seeds = shown if len(shown) == 2 else ("", shown[0])
        verdict = f"{claim.verdict}: {claim.idle}" if claim.idle else claim.verdict
        rows.append([claim.text, claim.origin, claim.what, patients, seeds, verdict])
    return markdown(["claim", "of the", "what was compared", "over patients", "over seeds", "verdict"], rows)
