"""docs/speed.md, made from the results of `benchmarks/step.py`: `python -m benchmarks.step_page`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import markdown

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
RESULTS = measuring.RESULTS / "step.json"
SHARES = ("0.1", "0.25", "0.5", "0.9", "1")
Result = Mapping[str, Any]

TEXT = """\
# What a training step costs

Made by `make bench-step` from [its results](../benchmarks/results/step.json); do not edit. {setting}.

A step is forward, backward and a fused Adam on one batch, in CPU seconds of one thread. A full step and two other ways
to fine-tune take turns, one step each, round after round. The ratio is to the full step of the same round: the median,
with the quartiles.

* *full*: ordinary fine-tuning. *forward*: only its forward pass.
* *last layers*: everything before the last three filter layers is frozen, as in the paper's FT-net.
* *LoRA*: adapters of rank {rank} on every convolution without groups (PEFT).
* *layers*, *compact*: the two forms of TGD with this share of the channels of every layer trainable, `flow="masked"`.
  Layers whose output no layer reads are frozen, as in the paper. At share 1 everything is trained.
* *bound*: `f + (1 - f) (a + a^2) / 2`, where f is the forward's share of a full step and a the share of trainable
  channels. That is the forward pass, and only the part of the backward pass that these channels need.
* *memory*: what torch's allocator holds at most during a step, beyond what it held before: activations, gradients and
  buffers of the backward. *state*: the optimizer's. Both are ratios to the full step's.

## In short

{summary}

## Goals

The worst share of each network counts. *Bound*: see above, for shares up to 0.5. The next section says why goals are
missed.

{goals}

## Where the time of a step goes

Shares of the CPU time of a full step, and of a compact step at 0.25, by kind of op. *Products*: the multiplications in
convolutions and linear layers of a compact step over those of a full one; empty where convolutions have groups, which
torch does not count. If the time ratio is above that of the products, the step waits for memory or for Python, not for
arithmetic.

{profile}

What keeps a compact step above its bound:

* The forward pass computes all channels. So do activations, pooling, sums and concatenations, in both directions. In
  networks of many small layers (EfficientNet) they are a large part of the step.
* Gathering channels and scattering them costs one pass over the feature map each. Writing the trainable rows into the
  whole weight costs one pass over the weight. This shows where a weight meets few pixels (ResNet's last stage on small
  images).
* Torch's kernels work on blocks of 8 or 16 channels. 4 trainable channels of 16, as in the first stages of MONAI's
  U-Net, take as long as 16.
* Some layers compute the plain backward of all channels, and keep in memory what it needs: norms without parameters,
  which are in no plan; a PReLU whose one parameter is shared by all channels, which is frozen whole; and group, layer
  and RMS norms, whose channels need each other. In MONAI's U-Net these are nearly all activations, so only the
  optimizer's memory is saved there.
* Where arithmetic is fast compared with memory, the passes weigh more. So ratios differ between machines.
* Residual networks read sums. A channel of a sum needs its gradient if any of its producers is trainable, which the
  bound ignores. In ResNet-50 that costs little arithmetic: see the products.
* At share 0.9 there is little left to save, but the passes remain. The step can cost more than a full one, in either
  form, and the gathered copies take memory in addition to the whole feature maps. Two rules limit this. Batch norms
  with more than 0.6 of their channels trainable compute the backward of all channels instead of gathering. Convolutions
  that need a gradient for more than 0.7 of their input channels compute it for all. Convolutions whose groups have
  unequal numbers of trainable channels take the plain backward too. Layers that are trainable whole are plain layers
  and cost nothing extra.
* In evaluation mode a compact layer calls the plain layer's kernel on one weight. Before that, some Python checks that
  the weight is up to date (*per layer* in the table of goals). It takes longer between kernels that fill the caches
  than alone. With many small layers and small images that is a few percent. `remove_tgd` gives a network without it.

## All ways

{networks}
"""


def write_page() -> None:
    """Make the page anew."""
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Written: {PAGE}")


def page(found: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    measured: dict[str, Result] = {n: r for n, r in found["networks"].items() if "error" not in r}
    return TEXT.format(
        setting=", ".join(f"{name} {value}" for name, value in found["setting"].items()),
        rank=found["setting"]["rank"],
        summary=markdown(
            (
                "network",
                "batch",
                "compact 0.1",
                "0.25",
                "0.5",
                "0.9",
                "1",
                "layers 0.25",
                "memory 0.25",
                "evaluation",
            ),
            [summary(name, result) for name, result in measured.items()],
        )
        + "\n\nTime ratios; in brackets, divided by the bound. *Evaluation*: the compact network's forward against the "
        "plain one's, in evaluation mode. After `remove_tgd` it is the plain one's.",
        goals=markdown(("goal", *measured), goals(measured)),
        profile=markdown(
            ("network", "step", "products", *next(iter(measured.values()))["profile"]["full"]),
            [
                [
                    name,
                    way,
                    _number(result["products"].get(way)),
                    *(f"{share:.0%}" for share in shares.values()),
                ]
                for name, result in measured.items()
                for way, shares in result["profile"].items()
            ],
        ),
        networks="\n\n".join(f"### {name}\n\n{ways(result)}" for name, result in measured.items()),
    )


def bound(result: Result, share: float) -> float:
    """The bound of a step at a share of trainable channels."""
    forward: float = result["ratios"]["forward"][1]
    return forward + (1 - forward) * (share + share**2) / 2


def goals(measured: Mapping[str, Result]) -> list[list[str]]:
    """Each goal, and for each network the figure that decides; in bold where it is missed."""

    def compact(result: Result, share: str) -> float:
        found: float = result["ratios"][f"compact {share}"][1]
        return found

    def of_bound(result: Result) -> float:
        return max(compact(result, share) / bound(result, float(share)) for share in ("0.1", "0.25", "0.5"))

    def memory(result: Result, *shares: str) -> float:
        full = result["memory"]["full"]["step_bytes"]
        return max(float(result["memory"][f"compact {share}"]["step_bytes"]) / full for share in shares)

    def line(text: str, value: Callable[[Result], float], limit: Callable[[str], float | None]) -> list[str]:
        cells = []
        for name, result in measured.items():
            most, found = limit(name), value(result)
            shown = f"{found:.2f}" if most is None or round(found, 2) <= most else f"**{found:.2f}**"
            cells.append("" if most is None else shown)
        return [text, *cells]

    def denoiser(most: float) -> Callable[[str], float | None]:
        return lambda name: most if name == "DnCNN" else None

    return [
        line("time at 0.25: 0.46", lambda r: compact(r, "0.25"), denoiser(0.46)),
        line("time at 0.5: 0.64", lambda r: compact(r, "0.5"), denoiser(0.64)),
        line(
            "time over bound: 1.1 (DnCNN), 1.25",
            of_bound,
            lambda name: 1.1 if name.startswith("DnCNN") else 1.25,
        ),
        line(
            "time up to 0.5: 1.02",
            lambda r: max(compact(r, share) for share in SHARES[:3]),
            lambda name: 1.02,
        ),
        line("time at 0.9: 1.02", lambda r: compact(r, "0.9"), lambda name: 1.02),
        line("time at 1: 1.02", lambda r: compact(r, "1"), lambda name: 1.02),
        line("memory at 0.25: 0.8", lambda r: memory(r, "0.25"), lambda name: 0.8),
        line("memory at any share: 1", lambda r: memory(r, *SHARES), lambda name: 1.0),
        line("evaluation: 1.01", lambda r: r["evaluation"]["compact 0.25"][1], lambda name: 1.01),
        line("... a second plain copy", lambda r: r["evaluation"]["control"][1], lambda name: inf),
        line("... per layer, microseconds", lambda r: r["evaluation"]["per_layer_us"], lambda name: inf),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def summary(name: str, result: Result) -> list[str]:
    """One line of the first table."""

    def ratio(share: str) -> str:
        found = result["ratios"][f"compact {share}"][1]
        return f"{found:.2f} ({found / bound(result, float(share)):.2f})"

    shape = "x".join(map(str, result["shape"]))
    memory = result["memory"]["compact 0.25"]["step_bytes"] / result["memory"]["full"]["step_bytes"]
    shares = [ratio(share) for share in SHARES]
    in_layers = f"{result['ratios']['layers 0.25'][1]:.2f}"
    return [
        name,
        shape,
        *shares,
        in_layers,
        f"{memory:.2f}",
        f"{result['evaluation']['compact 0.25'][1]:.3f}",
    ]


def ways(result: Result) -> str:
    """The table of one network."""
    rows = []
    for way, (low, mid, high) in result["ratios"].items():
        kind, _, share = way.partition(" ")
        limit = bound(result, float(share)) if kind == "compact" else None
        memory, full = result["memory"].get(way), result["memory"]["full"]
        rows.append(
            [
                way,
                f"{mid:.3f} ({low:.3f} to {high:.3f})",
                "" if limit is None else f"{limit:.3f}",
                "" if limit is None else f"{mid / limit:.2f}",
                "" if memory is None else f"{memory['step_bytes'] / full['step_bytes']:.2f}",
                "" if memory is None else f"{memory['state_bytes'] / full['state_bytes']:.2f}",
                "" if memory is None else f"{memory['trained'] / full['trained']:.1%}",
            ]
        )
    return markdown(("way", "time", "bound", "time / bound", "memory", "state", "trained"), rows)


if __name__ == "__main__":
    write_page()
