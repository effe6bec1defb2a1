"""The networks of the study by name: how each is made from v1-net or v2-net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import Flow
from tgd_pet.experiment.settings import Settings
from tgd_pet.network import DnCNN
from tgd_pet.simulation.patient import SimulatedPatient
from tgd_pet.training.finetuning import Method, finetune
from tgd_pet.training.online import Online, OnlineMethod, online
from tgd_pet.training.patches import Scans

BASES = {"v1-net": "v1", "v2-net": "v2"}
TGD, TGD_TWICE, FULL_FLOW = "TGD-net", "TGD2-net", ", full flow"


@dataclass(frozen=True)
class Recipe:
    """A network of the study.

    Args:
        name: in tables and of its folder.
        method: how v1-net is adapted; None for the two that are trained from scratch.
        phis: thresholds of TGD, one for each round: scores and masks are made anew for each.
        flow: of TGD.
    """

    name: str
    method: Method | None = None
    phis: tuple[float, ...] = ()
    flow: Flow = "masked"


@dataclass(frozen=True)
class Variant:
    """An online learning of the study.

    Args:
        name: in tables and of its folder.
        base: name of the network that learns; None for the noisy image.
        method: None to apply the base as it is.
        phi: threshold of TGD.
        flow: of TGD.
    """

    name: str
    base: str | None
    method: OnlineMethod | None = None
    phi: float = 0.0
    flow: Flow = "masked"

    def learn(self, base: DnCNN, patient: SimulatedPatient, folder: Path, schedule: Schedule) -> Online:
        """The base after learning from the two halves of the patient's short scan, for a variant that learns."""
        half_a, half_b = patient.halves("v2")
        return online(
            base,
            half_a,
            half_b,
            folder,
            schedule,
            phi=self.phi,
            flow=self.flow,
            method=cast(OnlineMethod, self.method),
            progress=False,
        )


def recipes(settings: Settings) -> list[Recipe]:
    """All networks of a study, in the order of its tables."""
    first, again = settings.phi, settings.phi_again
    peers: dict[Method, str] = {"l2-sp": "L2-SP", "lwf": "LwF", "lora": "LoRA"}
    return [
        *(Recipe(name) for name in BASES),
        Recipe("FT-net", "last3"),
        Recipe("full fine-tuning", "full"),
        Recipe(TGD, "tgd", (first,)),
        Recipe(TGD_TWICE, "tgd", (first, again)),
        Recipe(TGD + FULL_FLOW, "tgd", (first,), "full"),
        Recipe(TGD_TWICE + FULL_FLOW, "tgd", (first, again), "full"),
        *(Recipe(f"{TGD}, phi {phi:g}", "tgd", (phi,)) for phi in settings.phis),
        *(Recipe(f"{TGD}{FULL_FLOW}, phi {phi:g}", "tgd", (phi,), "full") for phi in settings.phis),
        *(Recipe(title, peer) for peer, title in peers.items() if peer in settings.peers),
    ]


def variants(settings: Settings) -> list[Variant]:
    """All ways to treat an unseen case, in the order of its tables."""
    phis = settings.online_phis
    return [
        Variant("input", None),
        *(Variant(name, name) for name in ("v1-net", "v2-net", TGD)),
        Variant("N2N", "v2-net", "full"),
        *(Variant(f"TGD-N2N, phi {phi:g}", "v2-net", "tgd", phi) for phi in phis),
        *(Variant(f"TGD-N2N{FULL_FLOW}, phi {phi:g}", "v2-net", "tgd", phi, "full") for phi in phis),
        Variant(f"TGD2-N2N, phi {settings.phi_again:g}", TGD, "tgd", settings.phi_again),
        Variant("N2N from TGD-net", TGD, "full"),
    ]


def adapt(
    base: DnCNN, patients: Sequence[Scans], folder: Path, schedule: Schedule, recipe: Recipe
) -> tuple[float, bool | None]:
    """Adapt v1-net to v2 images by a recipe; the network is left in `folder`.

    Returns:
        Share of the parameters that were trainable, in the last round of several; and whether every frozen
        entry was kept in all of them; None where nothing was frozen.
    """
    if recipe.method != "tgd":
        tuned = finetune(
            base, patients, "v2", folder, schedule, method=cast(Method, recipe.method), progress=False
        )
        return tuned.share, tuned.kept
    kept = True
    *earlier, last = [folder / f"round {i}" for i in range(1, len(recipe.phis))] + [folder]
    for phi, run in zip(recipe.phis, (*earlier, last), strict=True):
        tuned = finetune(
            base, patients, "v2", run, schedule, method="tgd", phi=phi, flow=recipe.flow, progress=False
        )
        base, kept = tuned.network, kept and bool(tuned.kept)
    return tuned.share, kept
