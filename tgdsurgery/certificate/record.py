"""The certificate as data, in the order of a change control plan: modifications, protocol, impact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tgdsurgery.certificate.compare import MAX_CHANNELS, Comparison, TensorRecord
from tgdsurgery.certificate.limits import Limit
from tgdsurgery.certificate.page import number, render
from tgdsurgery.core.plan import KSE
from tgdsurgery.core.tables import as_text, spans, table

CERTIFICATE_FORMAT = "tgdsurgery-certificate-1"
Role = Literal["base", "tuned", "plan", "delta"]


@dataclass(frozen=True)
class FileRecord:
    """A file that the certificate speaks of.

    Args:
        role: what it is.
        path: as it was given.
        size: in bytes.
        sha256: of its bytes.
        contents: SHA-256 of names, dtypes, shapes and bits of the tensors that were read from it, in the order of
            their names: the same for the same tensors in another format. None for a plan.
    """

    role: Role
    path: str
    size: int
    sha256: str
    contents: str | None = None


@dataclass(frozen=True)
class PlannedLayer:
    """What may change in one layer: `channels` folds the numbers of the trainable ones, as in `0-3,7`."""

    layer: str
    type: str
    total: int
    trainable: int
    channels: str


@dataclass(frozen=True)
class Modifications:
    """What was allowed to change: the plan.

    Args:
        phi: the threshold.
        budget: the share of parameters that picked it; None if none did.
        flow: which gradient reached earlier layers.
        norm_stats: whether statistics of frozen channels were held.
        overrides: layers that were decided by hand.
        share: share of all parameter entries that was allowed to change, in [0, 1].
        layers: every layer of the plan.
        unmapped: parameters that belong to no layer; frozen whole.
        score: the name of what scored the channels.
    """

    phi: float
    budget: float | None
    flow: str
    norm_stats: str
    overrides: Mapping[str, float | str]
    share: float
    layers: tuple[PlannedLayer, ...]
    unmapped: tuple[str, ...]
    score: str = KSE


@dataclass(frozen=True)
class Protocol:
    """How the change was checked: the rules, and the limits that were given before anything was measured."""

    rules: tuple[str, ...]
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class Measurement:
    """What one evaluation said of the base and of the tuned network, and whether the tuned one keeps the limit."""

    task: str
    base: float
    tuned: float
    met: bool


@dataclass(frozen=True)
class Rollback:
    """Whether the change can be taken back.

    Args:
        restores_base: the base's values in the entries that were allowed to move make the tuned network the base
            again, every tensor of it, bit for bit.
        delta_makes_tuned: base and delta together are the tuned network, bit for bit; None if no delta was given
            beside a tuned checkpoint.
        differing: names of tensors in which one of these fails.
    """

    restores_base: bool
    delta_makes_tuned: bool | None
    differing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all that was checked holds."""
        return self.restores_base and self.delta_makes_tuned is not False


@dataclass(frozen=True)
class Impact:
    """What became of the network."""

    comparison: Comparison
    rollback: Rollback
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class Certificate:
    """What was allowed to change in a network, and proof that the rest did not; prints as a table.

    Its sections follow the order of a predetermined change control plan: a description of the modifications, the
    modification protocol, and the impact assessment. It is not a regulatory statement.

    Args:
        made: when, in UTC (ISO 8601).
        versions: of tgdsurgery, torch and Python.
        files: base, tuned, plan and delta, with their SHA-256.
        description_of_modifications: what was allowed to change.
        modification_protocol: how it was checked.
        impact_assessment: what was found.
    """

    made: str
    versions: Mapping[str, str]
    files: tuple[FileRecord, ...]
    description_of_modifications: Modifications
    modification_protocol: Protocol
    impact_assessment: Impact

    @property
    def ok(self) -> bool:
        """Whether nothing changed but what was allowed to, it can be taken back, and all limits are met."""
        return not self.findings

    @property
    def findings(self) -> tuple[str, ...]:
        """What speaks against the tuned network, one sentence each; empty if it is as certified."""
        impact = self.impact_assessment
        found = [_sentence(record) for record in impact.comparison.tensors if not record.ok]
        if not impact.rollback.restores_base:
            found.append("The base's values in the trainable entries do not give the base back.")
        if impact.rollback.delta_makes_tuned is False:
            found.append("Base and delta together are not the tuned network.")
        found += [
            f"The {limit.task} task is at {measured.tuned:g}; its limit is {limit.text}."
            for limit, measured in self.measured
            if not measured.met
        ]
        return tuple(found)

    @property
    def measured(self) -> tuple[tuple[Limit, Measurement], ...]:
        """Each limit, and what was measured."""
        return tuple(zip(self.modification_protocol.limits, self.impact_assessment.measurements, strict=True))

    def to_json(self) -> str:
        """The certificate as JSON text: an object with the sections, the verdict and the findings."""
        verdict = {"ok": self.ok, "findings": self.findings}
        return json.dumps(
            {"format": CERTIFICATE_FORMAT, **verdict, **dataclasses.asdict(self)}, indent=1, allow_nan=False
        )

    def to_html(self) -> str:
        """The certificate as one page of HTML for people: it loads nothing, and prints."""
        return render(self)

    @property
    def digest(self) -> str:
        """SHA-256 of `to_json`, and so of the file that it was written to."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __str__(self) -> str:
        rows = [
            (
                drift.layer,
                drift.type,
                drift.channels,
                drift.trainable,
                drift.moved,
                f"{drift.frozen_changed:,}",
                number(drift.largest),
                number(drift.rms),
            )
            for drift in self.impact_assessment.comparison.layers
        ]
        columns = ("layer", "type", "channels", "trainable", "moved", "frozen changed", "largest", "RMS")
        return as_text(table(columns, rows, title="TGD certificate", caption=self._caption()))

    def _caption(self) -> str:
        shown = list(self.findings[:5])
        if more := len(self.findings) - len(shown):
            shown.append(f"And {more} more.")
        measured = [
            f"{limit.task} task: {found.base:g} before, {found.tuned:g} after, limit {limit.text}"
            for limit, found in self.measured
        ]
        verdict = "ACCEPTED: nothing changed but what the plan allows" if self.ok else "NOT ACCEPTED"
        return "\n".join([verdict, *shown, *measured])


def _sentence(record: TensorRecord) -> str:
    what = {
        "added": "was added.",
        "removed": "is missing.",
        "reshaped": f"has another shape ({record.shape}).",
        "recast": f"has another dtype ({record.dtype}).",
        "permuted": "has the same rows in another order.",
    }
    if record.state in what:
        return f"{record.name} {what[record.state]}"
    unknown = ", and the plan knows nothing of it" if record.kind == "unknown" else ""
    count = f"{record.frozen_changed:,} of {record.frozen:,} frozen entries"
    return f"{record.name}: {count} changed{_where(record)}{unknown}."


def _where(record: TensorRecord) -> str:
    first = "the first of them " if len(record.channels) == MAX_CHANNELS else ""
    return f", {first}in channels {spans(record.channels)}"
