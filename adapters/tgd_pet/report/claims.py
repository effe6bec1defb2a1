"""The paper's claims, put to the study's numbers: each is one paired difference and the sign it should have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgd_kit.report.claims import Claim, Origin
from tgd_kit.report.statistics import PAIRS, compare
from tgd_pet.experiment.recipes import FULL_FLOW, TGD, TGD_TWICE
from tgd_pet.report.results import StudyResults
from tgd_pet.report.tables import IMAGE_COLUMNS

TITLES = {column.key: column.title for column in IMAGE_COLUMNS}
HARMLESS_RISE = 0.05  # of the other's RMSE: a smaller rise counts as no harm
# In points of lesion bias: a smaller loss counts as none. The paper's v1-net and v2-net are 2.2 apart.
HARMLESS_BIAS = 2.0
Measured = tuple[str, str, str]  # key, title, format


def claims(results: StudyResults) -> list[Claim]:
    """All claims."""
    return [*_about_networks(results), *_about_threshold(results), *_about_unseen(results)]


def _about_networks(results: StudyResults) -> list[Claim]:
    bias, cov, rmse = ("bias", "+.2f"), ("cov", "+.2f"), ("body.rmse", "+.4f")
    small, top = ("bias_small", "+.2f"), ("bias_max", "+.2f")
    thorough, twice = TGD + FULL_FLOW, TGD_TWICE + FULL_FLOW

    def claim(
        origin: Origin,
        text: str,
        pair: tuple[str, str],
        version: str,
        measure: tuple[str, str],
        sign: int,
        margin: float = 0.0,
    ) -> Claim:
        key, form = measure
        found = tuple(results.difference(*pair, version, key, over) for over in PAIRS)
        what = _compared(f"{TITLES[key]} on {version}", pair, form, sign, margin)
        return Claim(text, what, found, sign, form, origin, margin)

    harmless = HARMLESS_RISE * results.summary("v1-net", "v1", "body.rmse").mean
    early = "A network of v1 images underestimates lesions on v2 images"
    many = "a network of many v2 images"
    through = "Gradients through frozen maps (full flow) fit the new images better"
    return [
        claim("paper", early, ("v1-net", "v2-net"), "v2", bias, -1),
        claim("reader", "... lesions below 15 mm", ("v1-net", "v2-net"), "v2", small, -1),
        claim("reader", "... the largest SUV of lesions", ("v1-net", "v2-net"), "v2", top, -1),
        claim("reader", "... and its error there is larger", ("v1-net", "v2-net"), "v2", rmse, 1),
        claim("paper", "TGD takes lesion bias away", (TGD, "v1-net"), "v2", bias, 1),
        claim("reader", "TGD lowers the error on the new images", (TGD, "v1-net"), "v2", rmse, -1),
        claim("paper", "TGD leaves less lesion bias than FT-net", (TGD, "FT-net"), "v2", bias, 1),
        claim("paper", "TGD leaves less noise than FT-net", (TGD, "FT-net"), "v2", cov, -1),
        claim("paper", f"TGD leaves less lesion bias than {many}", (TGD, "v2-net"), "v2", bias, 1),
        claim("paper", f"TGD leaves less noise than {many}", (TGD, "v2-net"), "v2", cov, -1),
        claim("paper", "TGD does not harm the old task", (TGD, "v1-net"), "v1", rmse, -1, harmless),
        claim("reader", "TGD keeps the old task better than FT-net", (TGD, "FT-net"), "v1", rmse, -1),
        claim("reader", "... than full fine-tuning", (TGD, "full fine-tuning"), "v1", rmse, -1),
        claim("reader", "A second round, TGD2, lowers the error further", (TGD_TWICE, TGD), "v2", rmse, -1),
        claim("reader", "... with full flow", (twice, thorough), "v2", rmse, -1),
        claim("reader", through, (thorough, TGD), "v2", rmse, -1),
    ]


def _about_threshold(results: StudyResults) -> list[Claim]:
    phi = results.settings.phi
    changes = 100 * np.array(results.sweep_changes(phi))[:, None]
    if not changes.size:
        return []
    margin, form = 100 * results.sweeps[0]["tolerance"], "+.1f"
    text = f"Leaving out the filters below phi {phi:g} leaves the old task almost unchanged"
    what = _compared("change of RMSE on v1 in %", ("without them", "v1-net"), form, -1, margin)
    return [Claim(text, what, (compare(changes, 0 * changes, "seeds"),), -1, form, "paper", margin)]


def _about_unseen(results: StudyResults) -> list[Claim]:
    phi, again = results.settings.online_phis[0], results.settings.phi_again
    masked, through = f"TGD-N2N, phi {phi:g}", f"TGD-N2N{FULL_FLOW}, phi {phi:g}"
    paper_variants = {"TGD-N2N": masked, "TGD2-N2N": f"TGD2-N2N, phi {again:g}"}
    near, halo = ("artefacts.rmse", "RMSE nearby", "+.3f"), ("artefacts.halo", "RMSE in the halo", "+.3f")
    bias, rmse = ("bias", "lesion bias %", "+.1f"), ("body.rmse", "RMSE", "+.3f")

    def claim(
        origin: Origin,
        text: str,
        case: str,
        pair: tuple[str, str],
        measure: Measured,
        sign: int,
        margin: float = 0.0,
    ) -> Claim:
        key, title, form = measure
        found = results.unseen_difference(*pair, case, key)
        what = _compared(f"{title}, {case}", pair, form, sign, margin)
        return Claim(text, what, (found,), sign, form, origin, margin, _idle(results, case, pair))

    def against_artefacts(case: str, measure: Measured, where: str) -> list[Claim]:
        names: list[tuple[Origin, str, str]] = [("reader", "N2N", "N2N")]
        names += [("paper", short, name) for short, name in paper_variants.items()]
        return [
            claim(
                origin, f"{short} lessens artefacts {where} a hot {case}", case, (name, "v2-net"), measure, -1
            )
            for origin, short, name in names
        ]

    def about_lesions(case: str) -> list[Claim]:
        no_larger = HARMLESS_RISE * float(np.nanmean(results.unseen_values(case, "N2N", "body.rmse")))
        origin: Origin = "reader" if case == "low counts" else "paper"
        return [
            claim("reader", f"N2N keeps lesions, {case}", case, ("N2N", "v2-net"), bias, 1, HARMLESS_BIAS),
            *(
                claim(
                    origin, f"{short} keeps lesions, {case}", case, (name, "v2-net"), bias, 1, HARMLESS_BIAS
                )
                for short, name in paper_variants.items()
            ),
            claim("reader", f"TGD-N2N keeps lesions better than N2N, {case}", case, (masked, "N2N"), bias, 1),
            claim("reader", f"... with full flow, {case}", case, (through, "N2N"), bias, 1),
            claim("reader", f"... at no larger error, {case}", case, (masked, "N2N"), rmse, -1, no_larger),
            claim(
                "reader", f"N2N leaves less error than the scan has, {case}", case, ("N2N", "input"), rmse, -1
            ),
            claim("reader", f"TGD-N2N leaves less error, {case}", case, (masked, "input"), rmse, -1),
        ]

    return [
        *against_artefacts("bladder", halo, "at the edge of"),
        *(found for case in ("bladder", "line") for found in against_artefacts(case, near, "near")),
        *(found for case in ("bladder", "line", "low counts") for found in about_lesions(case)),
    ]


def _compared(title: str, pair: Sequence[str], form: str, sign: int, margin: float) -> str:
    """In words; a margin is where the interval has to be."""
    bound = f", {'above' if sign > 0 else 'below'} {-sign * margin:{form}}" if margin else ""
    return f"{title}: {pair[0]} minus {pair[1]}{bound}"


def _idle(results: StudyResults, case: str, names: Sequence[str]) -> str:
    """Those of the variants that learnt in fewer than half of their runs, in words."""
    counts = {name: results.learnt(name, case) for name in names}
    return ", ".join(
        f"{name} learnt in {count[0]} of {count[1]}"
        for name, count in counts.items()
        if count and 2 * count[0] < count[1]
    )
