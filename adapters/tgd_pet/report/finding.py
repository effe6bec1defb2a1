"""What online learning does to lesions, and at what price: sentences made of the study's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgd_pet.experiment.patients import CASES
from tgd_pet.experiment.recipes import Variant
from tgd_pet.report.results import StudyResults


def finding(results: StudyResults) -> str:
    """N2N's lesion bias against its base, TGD masking's per phi and flow, what that costs, and what is certain."""
    learners = [variant for variant in results.all_variants if variant.base == "v2-net" and variant.method]
    plain, *masked = learners
    return " ".join(
        [
            f"Plain N2N {_trained(results, plain)} and changes the lesion bias of v2-net by "
            f"{_bias(results, plain)} points.",
            f"With TGD masking it is {'; '.join(_masking(results, variant) for variant in masked)}.",
            f"The price, as change of v2-net's: {'; '.join(_price(results, variant) for variant in learners)}.",
            _certain(results, plain, masked),
            "A network that stayed as it was has v2-net's lesions, and its artefacts: no merit of masking.",
        ]
    )


def _trained(results: StudyResults, variant: Variant) -> str:
    learnt, runs = results.learnt(variant.name) or (0, 0)
    return f"trains {results.online_share(variant.name):.0%} of the parameters, learnt in {learnt} of {runs} runs,"


def _masking(results: StudyResults, variant: Variant) -> str:
    learnt, runs = results.learnt(variant.name) or (0, 0)
    share = f"{results.online_share(variant.name):.0%} trained, learnt in {learnt} of {runs}"
    return f"{_bias(results, variant)} at phi {variant.phi:g} with {variant.flow} flow ({share})"


def _bias(results: StudyResults, variant: Variant) -> str:
    changes = {case: results.unseen_difference(variant.name, "v2-net", case, "bias").mean for case in CASES}
    return ", ".join(f"{change:+.1f} ({case})" for case, change in changes.items())


def _price(results: StudyResults, variant: Variant) -> str:
    body = ", ".join(f"{_relative(results, variant, case, 'body.rmse'):+.0%} ({case})" for case in CASES)
    halo = _relative(results, variant, "bladder", "artefacts.halo")
    near = ", ".join(
        f"{_relative(results, variant, case, 'artefacts.rmse'):+.0%} ({case})" for case in ("bladder", "line")
    )
    return f"{variant.name}: RMSE {body}, in the bladder's halo {halo:+.0%}, nearby {near}"


def _relative(results: StudyResults, variant: Variant, case: str, key: str) -> float:
    after, before = (
        float(np.nanmean(results.unseen_values(case, name, key))) for name in (variant.name, "v2-net")
    )
    return after / before - 1


def _certain(results: StudyResults, plain: Variant, masked: Sequence[Variant]) -> str:
    """Where the interval of the lesion bias leaves out N2N's."""
    better = [
        f"{variant.name} ({case})"
        for variant in masked
        for case in CASES
        if results.unseen_difference(variant.name, plain.name, case, "bias").sign == 1
    ]
    where = ", ".join(better) if better else "none"
    return f"Lesion bias above that of plain N2N by more than its interval: {where}."
