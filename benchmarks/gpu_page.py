"""The section of docs/speed.md on GPUs, made from the results of `benchmarks/gpu.py`."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.measuring import RESULTS, markdown
from benchmarks.rows import saved

FILE = RESULTS / "gpu.json"
WAYS = ("forward", "TGD, masked flow", "TGD, full flow", "LoRA")
COLUMNS = ("time (memory)", "full, ms", *WAYS)
NOT_YET = """\
Not measured yet. `python -m benchmarks.gpu` takes at most eight minutes on one card, from a plain checkout. It compares
bits on a dozen networks, times steps in float32, TF32 and bfloat16, contiguous and channels last, and writes the
results that this section is made from. `tests/test_no_synchronising.py` holds that a step never waits for the
device."""
MEASURED = """\
Made by `python -m benchmarks.gpu`. {setting}.

A step of full fine-tuning takes the time in the first column. The others are ratios to it, of time and, in brackets, of
the memory that a step needs beyond what was held. A quarter of the channels of every layer is trainable. *bfloat16* is
autocast.

{table}

On {checked} networks and in both forms, the forward, what is frozen after three steps of AdamW, and the network without
TGD were compared bit for bit. {broken}

KSE of all weights takes {kse}.{missing}

Taking channels out and putting them back (float32, channels last), by their numbers, and what trainable rows in one
block would save of a step of full fine-tuning at most:

{moved}"""


def section() -> str:
    """What was measured, or that nothing was."""
    if not FILE.exists():
        return NOT_YET
    return text(json.loads(FILE.read_text(encoding="utf-8")))


def text(result: dict[str, Any]) -> str:
    """The section of these results."""
    checked, left_out = laws(result)
    broken = [
        f"{name} ({form})"
        for name, forms in checked.items()
        for form, held in forms.items()
        if not all(held.values())
    ]
    return MEASURED.format(
        setting=", ".join(f"{name} {value}" for name, value in result["setting"].items()),
        table=markdown(COLUMNS, rows(result)),
        checked=len(checked),
        broken=f"Not equal: {', '.join(broken)}." if broken else "All were equal.",
        kse=", ".join(f"{seconds:.2f} s ({name})" for name, seconds in result["kse"].items()),
        moved=markdown(("network, way", "by numbers", "saved at most"), moves(result)),
        missing=f" Left out, as their library was not there: {', '.join(left_out)}." if left_out else "",
    )


def laws(result: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What held for each network, and the networks that could not be made."""
    checked = {name: found for name, found in result["laws"].items() if "missing" not in found}
    return checked, sorted({*result["laws"], *result["missing"]} - set(checked))


def moves(result: dict[str, Any]) -> list[list[str]]:
    """A row for each network and flow: shares of a full step in float32, channels last."""
    found = []
    for key, taken in result["moved"].items():
        full = result["steps"][f"{key.split(', ')[0]}, float32, channels last"]["full"]["seconds"]
        found.append([key, f"{taken['numbers'] / full:.1%}", f"{saved(taken) / full:.1%}"])
    return found


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each network and setting."""
    found = []
    for key, ways in result["steps"].items():
        cells = [f"{1000 * ways['full']['seconds']:.1f}"]
        for way in WAYS:
            one = ways.get(way)
            memory = "" if one is None or one["memory"] is None else f" ({one['memory']:.2f})"
            cells.append("-" if one is None else f"{one['time']:.2f}{memory}")
        found.append([key, *cells])
    return found
