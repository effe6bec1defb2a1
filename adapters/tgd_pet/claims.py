"""The paper's claims, put to the study's numbers: each is one paired difference and the sign it should have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tgd_pet.recipes import FULL_FLOW, TGD, TGD_TWICE
from tgd_pet.results import StudyResults
from tgd_pet.statistics import PAIRS, Difference, agreed_sign
from tgd_pet.tables import IMAGE_COLUMNS, interval, markdown

TITLES = {column.key: column.title for column in IMAGE_COLUMNS}
Verdict = Literal["holds", "does not hold", "not shown"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or one that its reader would make of it.

    Args:
        text: the statement.
        what: the difference that decides.
        found: it, over patients and over seeds; for unseen features, where each seed has its own patient, once.
        sign: +1 where the claim says it is above 0, -1 where below.
        format: how the difference is written.
    """

    text: str
    what: str
    found: tuple[Difference, ...]
    sign: int
    format: str

    @property
    def verdict(self) -> Verdict:
        """What the 95% intervals say: "not shown" where one includes 0, or they disagree."""
        agreed = agreed_sign(*self.found)
        if not agreed:
            return "not shown"
        return "holds" if agreed == self.sign else "does not hold"


def claims(results: StudyResults) -> list[Claim]:
    """All claims."""
    return [*_about_networks(results), *_about_unseen(results)]


def claims_table(results: StudyResults) -> str:
    """Claim, difference with its 95% intervals, verdict."""
    rows = []
    for claim in claims(results):
        shown = [interval(found, claim.format, bold=bool(found.sign)) for found in claim.found]
        patients, seeds = shown if len(shown) == 2 else ("", shown[0])
        rows.append([claim.text, claim.what, patients, seeds, claim.verdict])
    return markdown(["claim", "what was compared", "over patients", "over seeds", "verdict"], rows)


def _about_networks(results: StudyResults) -> list[Claim]:
    bias, cov, rmse = ("bias", "+.2f"), ("cov", "+.2f"), ("body.rmse", "+.4f")
    small, top = ("bias_small", "+.2f"), ("bias_max", "+.2f")

    def claim(text: str, first: str, second: str, version: str, measure: tuple[str, str], sign: int) -> Claim:
        key, form = measure
        title = TITLES[key]
        found = tuple(results.difference(first, second, version, key, over) for over in PAIRS)
        return Claim(text, f"{title} on {version}: {first} minus {second}", found, sign, form)

    return [
        claim(
            "A network of v1 images underestimates lesions on v2 images", "v1-net", "v2-net", "v2", bias, -1
        ),
        claim("... lesions below 15 mm", "v1-net", "v2-net", "v2", small, -1),
        claim("... the largest SUV of lesions", "v1-net", "v2-net", "v2", top, -1),
        claim("... and its error there is larger", "v1-net", "v2-net", "v2", rmse, 1),
        claim("TGD takes lesion bias away", TGD, "v1-net", "v2", bias, 1),
        claim("TGD lowers the error on the new images", TGD, "v1-net", "v2", rmse, -1),
        claim("TGD leaves less lesion bias than FT-net", TGD, "FT-net", "v2", bias, 1),
        claim("TGD leaves less noise than FT-net", TGD, "FT-net", "v2", cov, -1),
        claim("TGD leaves less lesion bias than a network of many v2 images", TGD, "v2-net", "v2", bias, 1),
        claim("TGD keeps the old task better than FT-net", TGD, "FT-net", "v1", rmse, -1),
        claim("TGD keeps the old task better than full fine-tuning", TGD, "full fine-tuning", "v1", rmse, -1),
        claim("TGD does not harm the old task", TGD, "v1-net", "v1", rmse, -1),
        claim("A second round, TGD2, lowers the error further", TGD_TWICE, TGD, "v2", rmse, -1),
        claim("... with full flow", TGD_TWICE + FULL_FLOW, TGD + FULL_FLOW, "v2", rmse, -1),
        claim(
            "Gradients through frozen maps (full flow) fit the new images better",
            TGD + FULL_FLOW,
            TGD,
            "v2",
            rmse,
            -1,
        ),
    ]


def _about_unseen(results: StudyResults) -> list[Claim]:
    phi = results.settings.online_phis[0]
    masked, through = f"TGD-N2N, phi {phi:g}", f"TGD-N2N{FULL_FLOW}, phi {phi:g}"
    near, bias = ("artefacts.rmse", "RMSE nearby", "+.3f"), ("bias", "lesion bias %", "+.1f")
    rmse = "body.rmse", "RMSE", "+.3f"

    def claim(text: str, case: str, pair: tuple[str, str], measure: tuple[str, str, str], sign: int) -> Claim:
        key, title, form = measure
        first, second = pair
        found = results.unseen_difference(first, second, case, key)
        return Claim(text, f"{title}, {case}: {first} minus {second}", (found,), sign, form)

    found = []
    for case in ("bladder", "line"):
        found += [
            claim(f"N2N lessens artefacts near a hot {case}", case, ("N2N", "v2-net"), near, -1),
            claim(f"TGD-N2N lessens artefacts near a hot {case}", case, (masked, "v2-net"), near, -1),
        ]
    for case in ("bladder", "line", "low counts"):
        found += [
            claim(f"N2N keeps lesions, {case}", case, ("N2N", "v2-net"), bias, 1),
            claim(f"TGD-N2N keeps lesions better than N2N, {case}", case, (masked, "N2N"), bias, 1),
            claim(f"... with full flow, {case}", case, (through, "N2N"), bias, 1),
            claim(f"... at no larger error than N2N, {case}", case, (masked, "N2N"), rmse, -1),
            claim(f"N2N leaves less error than the scan has, {case}", case, ("N2N", "input"), rmse, -1),
            claim(f"TGD-N2N leaves less error than the scan has, {case}", case, (masked, "input"), rmse, -1),
        ]
    return found
