"""The study's tables in Markdown, laid out as the paper's where it has one, with the paper's figures beside ours.

Paper: Chen, Asma and Chan, MICCAI 2021, table 1, figure 4 and the supplement's figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tgd_kit.report.markdown import interval, markdown, spread
from tgd_kit.report.statistics import PAIRS, agreed_sign, summarise
from tgd_pet.experiment.recipes import TGD
from tgd_pet.report.results import StudyResults

PAPER_TABLE_1 = {  # network -> lesion bias in %, liver CoV in %
    "v1-net": (-6.30, 6.02),
    "v2-net": (-4.07, 8.56),
    "FT-net": (-4.71, 7.87),
    TGD: (-3.77, 6.46),
}
PAPER_DROPPED = {0.3: 0.514, 0.4: 0.516, 0.5: 0.530, 0.6: 0.673}  # phi -> share of the parameters, figure 4
# Catheter patient, liver CoV in %; TGD-N2N is at phi 0.36 there, chosen to make the CoV similar.
PAPER_CATHETER_COV = {"input": 11.6, "v2-net": 7.6, TGD: 7.6, "TGD-N2N": 7.2, "TGD2-N2N": 7.1}


@dataclass(frozen=True)
class Shown:
    """A column: its title, the measure, and how a number is written."""

    title: str
    key: str
    format: str


PERCENT, SIGNED, SUV = ".2f", "+.1f", ".4f"
IMAGE_COLUMNS = (
    Shown("lesion bias %", "bias", SIGNED),
    Shown("lesion bias % to the phantom", "bias_true", SIGNED),
    Shown("bias % < 15 mm", "bias_small", SIGNED),
    Shown("SUVmax bias %", "bias_max", SIGNED),
    Shown("liver CoV %", "cov", PERCENT),
    Shown("RMSE", "body.rmse", SUV),
    Shown("PSNR dB", "body.psnr", ".2f"),
    Shown("SSIM", "body.ssim", ".4f"),
    Shown("RMSE near lesions", "roi.rmse", SUV),
    Shown("PSNR near lesions", "roi.psnr", ".2f"),
    Shown("SSIM near lesions", "roi.ssim", ".4f"),
    Shown("SUVmean", "suv_mean", ".3f"),
    Shown("SUVmax", "suv_max", ".3f"),
)
UNSEEN_COLUMNS = (
    Shown("RMSE in the halo", "artefacts.halo", ".3f"),
    Shown("mean error nearby", "artefacts.mean", "+.3f"),
    Shown("RMSE nearby", "artefacts.rmse", ".3f"),
    Shown("lowest nearby", "artefacts.lowest", "+.2f"),
    Shown("artefact mL", "artefacts.volume", ".1f"),
    Shown("object bias %", "artefacts.hot", SIGNED),
)
LESION_COLUMNS = (
    Shown("lesion bias %", "bias", SIGNED),
    Shown("lesion bias % to the phantom", "bias_true", SIGNED),
    Shown("SUVmax bias %", "bias_max", SIGNED),
    Shown("liver CoV %", "cov", PERCENT),
    Shown("RMSE", "body.rmse", ".3f"),
)


def table_1(results: StudyResults) -> str:
    """Bias and CoV on v2 images of thin patients, ours above the paper's."""
    thin = slice(0, results.settings.test - results.settings.test // 2)
    rows = []
    for index, (title, key) in enumerate((("lesion bias %", "bias"), ("liver CoV %", "cov"))):
        ours = [summarise(results.values(name, "v2", key)[:, thin]) for name in PAPER_TABLE_1]
        rows.append([f"{title}, here", *(spread(found, ".2f") for found in ours)])
        rows.append([f"{title}, paper", *(f"{values[index]:.2f}" for values in PAPER_TABLE_1.values())])
    phi = f" ({results.settings.phi:g})"
    return markdown(["", *(name + phi * (name == TGD) for name in PAPER_TABLE_1)], rows)


def image_table(results: StudyResults, version: str) -> str:
    """Every measure of every network on one version."""
    rows = [
        [name, *(spread(results.summary(name, version, c.key), c.format) for c in IMAGE_COLUMNS)]
        for name in results.networks
    ]
    return markdown(["", *(c.title for c in IMAGE_COLUMNS)], rows)


def overview(results: StudyResults) -> str:
    """New task against old task, what trained, and whether the rest was kept."""
    rows = []
    for name in results.networks:
        rows.append(
            [
                name,
                *(
                    spread(results.summary(name, version, key), form)
                    for version, key, form in (
                        ("v2", "bias", SIGNED),
                        ("v2", "cov", PERCENT),
                        ("v2", "body.rmse", SUV),
                        ("v1", "bias", SIGNED),
                        ("v1", "body.rmse", SUV),
                    )
                ),
                *_what_trained(results, name),
            ]
        )
    titles = ["bias % v2", "CoV % v2", "RMSE v2 (new)", "bias % v1", "RMSE v1 (old)", "trained", "kept"]
    return markdown(["", *titles], rows)


def _what_trained(results: StudyResults, name: str) -> list[str]:
    share, kept = results.trained_share(name), results.kept(name)
    return ["" if share is None else f"{share:.1%}", {None: "", True: "yes", False: "NO"}[kept]]


def difference_table(results: StudyResults, name: str) -> str:
    """One network minus each other: 95% intervals over patients, bold where those over seeds agree on the sign."""
    shown = (
        ("v2", "bias", SIGNED),
        ("v2", "cov", "+.2f"),
        ("v2", "body.rmse", "+.4f"),
        ("v1", "body.rmse", "+.4f"),
    )
    rows = []
    for other in results.networks:
        if other not in (name, "input"):
            cells = []
            for version, key, form in shown:
                found = [results.difference(name, other, version, key, over) for over in PAIRS]
                cells.append(interval(found[0], form, bold=bool(agreed_sign(*found))))
            rows.append([other, *cells])
    return markdown([f"{name} minus", "bias % v2", "CoV % v2", "RMSE v2", "RMSE v1"], rows)


def sweep_table(results: StudyResults) -> str:
    """What leaving out the channels below phi does to v1-net on v1 images."""
    sweeps = [sweep["rows"] for sweep in results.sweeps]
    rows = []
    for same_phi in zip(*sweeps, strict=True):
        phi = same_phi[0]["phi"]
        dropped, change = (summarise([[row[key]] for row in same_phi]) for key in ("dropped", "change"))
        paper = PAPER_DROPPED.get(phi)
        rows.append(
            [
                f"{phi:g}",
                spread(dropped, ".1%"),
                "" if paper is None else f"{paper:.1%}",
                spread(change, "+.1%"),
            ]
        )
    return markdown(["phi", "left out, here", "left out, paper", "change of RMSE v1"], rows)


def unseen_table(results: StudyResults, case: str) -> str:
    """Every variant on one unseen case."""
    hot = case != "low counts"
    shown = (*(UNSEEN_COLUMNS if hot else ()), *LESION_COLUMNS)
    shown = tuple(c for c in shown if not np.isnan(results.unseen_values(case, "input", c.key)).all())
    paper = _paper_cov(results) if case == "line" else {}
    rows = []
    for name in results.variants:
        cells = [spread(summarise(results.unseen_values(case, name, c.key)), c.format) for c in shown]
        known = paper.get(name)
        rows.append(
            [name, _learnt(results, name, case), *cells, *([f"{known:g}" if known else ""] if paper else [])]
        )
    return markdown(["", "learnt in", *(c.title for c in shown), *(["CoV %, paper"] if paper else [])], rows)


def _learnt(results: StudyResults, variant: str, *cases: str) -> str:
    count = results.learnt(variant, *cases)
    return "" if count is None else f"{count[0]} of {count[1]}"


def _paper_cov(results: StudyResults) -> dict[str, float]:
    """The paper's figures by our names; its phi of 0.36 stands beside the nearest here."""
    settings = results.settings
    phi = min(settings.online_phis, key=lambda here: abs(here - 0.36))
    names = {"TGD-N2N": f"TGD-N2N, phi {phi:g}", "TGD2-N2N": f"TGD2-N2N, phi {settings.phi_again:g}"}
    return {names.get(name, name): cov for name, cov in PAPER_CATHETER_COV.items()}


def online_table(results: StudyResults) -> str:
    """What each online learning changes in the network that it starts from, paired by seed (and so by patient)."""
    halo, near = ("RMSE in the halo", "artefacts.halo", "+.3f"), ("RMSE nearby", "artefacts.rmse", "+.3f")
    rmse, bias = ("RMSE", "body.rmse", "+.3f"), ("lesion bias %", "bias", SIGNED)
    measured = {"bladder": (halo, near, rmse, bias), "line": (near, rmse, bias), "low counts": (rmse, bias)}
    shown = [(case, *column) for case, columns in measured.items() for column in columns]
    rows = []
    for variant in results.all_variants:
        if variant.method is not None:
            pair = variant.name, str(variant.base)
            share, learnt = f"{results.online_share(variant.name):.1%}", _learnt(results, variant.name)
            rows.append([variant.name, share, learnt, *(_change(results, pair, *column) for column in shown)])
    return markdown(["", "trained", "learnt in", *(f"{case}: {title}" for case, title, *_ in shown)], rows)


def _change(results: StudyResults, pair: tuple[str, str], case: str, _: str, key: str, form: str) -> str:
    found = results.unseen_difference(*pair, case, key)
    return interval(found, form, bold=bool(found.sign))
