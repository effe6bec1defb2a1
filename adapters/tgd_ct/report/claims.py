"""The paper's claims, and those that its critics would test, put to the study's numbers."""

from __future__ import annotations

from tgd_ct.case import Task
from tgd_ct.experiment.recipes import (
    JOINT,
    MSE,
    MSE_WGAN,
    NORMAL_DOSE,
    RETRAINED,
    SA_WGAN,
    TOD,
    perceptual_wgan,
)
from tgd_ct.report.results import StudyResults
from tgd_ct.report.tables import METHODS, TITLES
from tgd_kit.report.claims import Claim, Origin
from tgd_kit.report.statistics import PAIRS, compare

HARMLESS_RISE = 0.05  # of the error on old images: a smaller rise counts as no harm
LEAST_DICE = 0.1  # of a segmenter at normal dose, for a comparison with it to mean anything
RMSE, DICE = "+.2f", "+.3f"


def claims(results: StudyResults) -> list[Claim]:
    """All claims."""
    found = [claim for task in results.settings.tasks for claim in _about_denoisers(results, task)]
    return found + [claim for change in results.changes for claim in _about_adaptation(results, change)]


def _about_denoisers(results: StudyResults, task: Task) -> list[Claim]:
    settings, choice = results.settings, results.choices[task]
    idle = "" if choice.headroom else "no dose leaves head-room"
    first, *others = settings.architectures
    part = choice.parts[-1]

    def claim(
        origin: Origin,
        text: str,
        pair: tuple[str, str],
        key: str,
        title: str,
        sign: int,
        *,
        images: str = "low",
        form: str = DICE,
        idle: str = idle,
    ) -> Claim:
        found = tuple(results.difference(task, pair, images, key, over) for over in PAIRS)
        what = f"{title}: {pair[0]} minus {pair[1]}"
        return Claim(f"{text} ({task})", what, found, sign, form, origin, idle=idle)

    def dice(name: str) -> tuple[str, str]:
        return f"dice.{name}.{part}", f"Dice of {TITLES[name]}, {part}"

    def blind(name: str) -> str:
        """Why nothing can be shown with a segmenter that finds next to nothing at normal dose."""
        found = results.summary(task, NORMAL_DOSE, "low", dice(name)[0]).mean
        return f"{TITLES[name]} finds none at normal dose" if found < LEAST_DICE else ""

    image, roi = ("quality.image.rmse", "RMSE in HU"), ("quality.ROI.rmse", "RMSE in HU in the organ")
    rivals = MSE_WGAN, perceptual_wgan(settings), SA_WGAN
    seen = "On images of normal dose TOD-Net helps the segmenter"
    return [
        *(
            claim("paper", f"TOD-Net has less error than {rival}", (TOD, rival), *where, -1, form=RMSE)
            for rival in rivals
            for where in (image, roi)
        ),
        *(
            claim(
                "paper",
                f"{TITLES[first]} segments better after TOD-Net than after {rival}",
                (TOD, rival),
                *dice(first),
                1,
            )
            for rival in rivals
        ),
        *(
            claim(
                "paper",
                f"... {TITLES[name]}, which it was not trained with",
                (TOD, MSE_WGAN),
                *dice(name),
                1,
                idle=idle or blind(name),
            )
            for name in others
        ),
        claim("paper", seen, (TOD, NORMAL_DOSE), *dice(first), 1, images="normal"),
        claim("reader", "TOD-Net beats the denoiser by MSE", (TOD, MSE), *dice(first), 1),
        claim("reader", "... at no more error", (TOD, MSE), *image, -1, form=RMSE),
        claim(
            "reader", "The segmenter retrained at low dose beats TOD-Net", (RETRAINED, TOD), *dice(first), 1
        ),
        claim("reader", "Training both together is worse", (JOINT, TOD), *dice(first), -1),
    ]


def _about_adaptation(results: StudyResults, change: str) -> list[Claim]:
    key = "quality.body.rmse"

    def claim(text: str, pair: tuple[str, str], images: str, sign: int, margin: float = 0.0) -> Claim:
        first, second = (results.adapted_values(change, method, images, key) for method in pair)
        found = tuple(compare(first, second, over) for over in PAIRS)
        names = [METHODS.get(method, method) for method in pair]
        what = f"RMSE in HU on {images} images: {names[0]} minus {names[1]}"
        return Claim(f"{text} ({change})", what, found, sign, RMSE, margin=margin)

    harmless = HARMLESS_RISE * float(results.adapted_values(change, TOD, "old", key).mean())
    return [
        claim("TGD lowers the error on the new images", ("tgd", TOD), "new", -1),
        claim("TGD does not harm the old images", ("tgd", TOD), "old", -1, harmless),
        *(
            claim(f"TGD keeps the old images better than {METHODS[method]}", ("tgd", method), "old", -1)
            for method in ("full", "last3", "lora")
        ),
    ]
