"""docs/speed.md, made from the results of `benchmarks/step.py`: `python -m benchmarks.step_page`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import gpu_page, measuring
from benchmarks.measuring import markdown
from benchmarks.rows import saved

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
RESULTS = measuring.RESULTS / "step.json"
ZOO = measuring.RESULTS / "zoo.json"
SHARES = ("0.1", "0.25", "0.5", "0.9", "1")
FLOWS = ("masked", "full flow")
WAY_IN = ("map", "plan", "apply")
SHORT = ("network", "batch", *SHARES)
MASKED_GOALS = {
    "DnCNN": 0.45,
    "ResNet-50": 0.52,
    "EfficientNet-B0": 0.65,
    "MONAI U-Net 2-d": 0.65,
    "MONAI U-Net 3-d": 0.65,
    "ResNet-18": 0.60,
}
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
* *masked*, *full flow*: TGD in its compact form with this share of the channels of every layer trainable. With
  `flow="masked"`, the paper's, no gradient passes through frozen channels; with `flow="full"` the gradient is that of
  the loss. Layers whose output no layer reads are frozen, as in the paper. At share 1 everything is trained.
* *layers*: the layers form, with `flow="masked"`. It costs the same at any share.
* *bound*: the forward pass, and only the part of the backward pass that the trainable channels need. With f for the
  forward's share of a full step and a for the share of trainable channels, it is `f + (1 - f) (a + a^2) / 2` for masked
  flow. For full flow it is `f + (1 - f) (a + 1) / 2`: the gradient of every input is needed whole.
* *memory*: what torch's allocator holds at most during a step, beyond what it held before: activations, gradients and
  buffers of the backward. *state*: the optimizer's. Both are ratios to the full step's.

## In short

`flow="masked"`:

{masked}

`flow="full"`:

{full_flow}

Time ratios; in brackets, divided by the bound. *Evaluation*: the compact network's forward against the plain one's, in
evaluation mode. After `remove_tgd` it is the plain one's.

## Goals

The worst share of each network counts. *Bound*: see above, for shares up to 0.5. The next section says why goals are
missed.

{goals}

## Where the time of a step goes

Shares of the CPU time of a full step, and of compact steps at 0.25, by kind of op. *Products*: the multiplications in
convolutions and linear layers of a compact step over those of a full one; empty where convolutions have groups, which
torch does not count. *In reach*: what would be left of the full step if its convolutions' backward took time in
proportion to the products, and the optimizer in proportion to what is trained, while the rest stayed as it is. *Over
it*: the measured time, divided by that; above 1 for gathers, copies and Python, below 1 where norms and activations
cost less too.

{profile}

If the trainable rows of every layer lay in one block (as S2FT does it for language models), slices would take the place
of gathers, and the rows would need no writing into the weight. The moves of one step were recorded, and done again
both ways; a slice counts as a copy, which torch's kernels make of it. One after another, the moves find the caches
warmer than in the step itself, where they take what the column *gather and scatter* says. Shares of a full step:

{moved}

What keeps a compact step above its bound:

* The forward pass computes all channels. So do activations, pooling, sums and concatenations, in both directions. In
  networks of many small layers (EfficientNet) they are a large part of the step.
* Gathering channels and scattering them costs one pass over the feature map each. Writing the trainable rows into the
  whole weight costs one pass over them in each step. This shows where a weight meets few pixels (ResNet's last stage on
  small images). The table above has the figures.
* Torch's kernels work on blocks of 8 or 16 channels. 4 trainable channels of 16, as in the first stages of MONAI's
  U-Net, take as long as 16.
* Some layers compute the backward of all channels, and keep in memory what it needs: norms without parameters,
  which are in no plan; a PReLU whose one parameter is shared by all channels, which is frozen whole; and group, layer
  and RMS norms, whose channels need each other. In MONAI's U-Net these are nearly all activations, so only the
  optimizer's memory is saved there. (On a CPU torch's own backward of PReLU is not vectorised. The compact form's is.)
* Where arithmetic is fast compared with memory, the passes weigh more. So ratios differ between machines.
* Residual networks read sums. A channel of a sum needs its gradient if any of its producers is trainable, which the
  bound ignores. In ResNet-50 that costs little arithmetic: see the products.
* At share 0.9 there is little left to save, but the passes remain. The step can cost more than a full one, in either
  form, and the gathered copies take memory in addition to the whole feature maps. Three rules limit this. A convolution
  takes the plain backward where the compact one would gain nothing by its shape and shares, in costs measured on one
  core: depthwise kernels of 3x3, 1x1 kernels on few channels, gates on one pixel, most shares of 0.9 with full flow.
  Batch norms with more than 0.6 of their channels trainable compute the backward of all channels instead of gathering.
  Convolutions that need a gradient for more than 0.7 of their input channels compute it for all. Convolutions whose
  groups have unequal numbers of trainable channels take the plain backward too. Layers that are trainable whole are
  plain layers and cost nothing extra.
* With full flow, frozen channels hand their gradient on, so nothing is saved in the products for the inputs, nor by the
  layers between convolutions. What is saved is in the weight gradients and the optimizer.
* In evaluation mode a compact layer calls the plain layer's kernel on one weight. Before that, some Python checks that
  the weight is up to date (*per layer* in the table of goals). It takes longer between kernels that fill the caches
  than alone. With many small layers and small images that is a few percent. `remove_tgd` gives a network without it.

## The way in

CPU seconds of one thread before the first step, for the batch above and a budget of 25%: the channel map alone
(`channel_map`); the map and the scores (`plan_tgd`); and all (`apply_tgd`), which also makes the network and compares
its outputs and gradients with those of the layers form. *Scores* and *form* are the differences.

{way_in}

The goal for a ResNet-50 is 2 s in all. KSE compares every kernel with all others of its input channel. The map records
the network in both modes. Making the form copies the network twice, and the comparison runs both copies forward and
backward in both modes, in float64 where rounding in float32 leaves a doubt.

{zoo}
What a map waits for is Python: a node for each op that is recorded, twice, a rule of a dozen small tensor ops for each,
and the sets that come out. Large networks with attention pass the channels of whole layers to each other, and their
sets have millions of members.

## On a GPU

{gpu}

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
        masked=markdown(
            (*SHORT, "layers 0.25", "memory 0.25", "evaluation"),
            [short(name, result, "masked") for name, result in measured.items()],
        ),
        full_flow=markdown(
            (*SHORT, "memory 0.25"), [short(name, result, "full flow") for name, result in measured.items()]
        ),
        goals=markdown(("goal", *measured), goals(measured)),
        profile=markdown(
            (
                "network",
                "step",
                "products",
                "in reach",
                "over it",
                *next(iter(measured.values()))["profile"]["full"],
            ),
            [
                [
                    name,
                    way,
                    _number(result["products"].get(way)),
                    *(["", ""] if way == "full" else _reach(result, way)),
                    *(f"{share:.0%}" for share in shares.values()),
                ]
                for name, result in measured.items()
                for way, shares in result["profile"].items()
            ],
        ),
        moved=markdown(
            ("network", "step", "gathers and scatters", "as slices", "rows into weights", "saved at most"),
            [
                [
                    name,
                    way,
                    *(f"{moves[part] / result['seconds']:.1%}" for part in ("numbers", "blocks", "weights")),
                    f"{saved(moves) / result['seconds']:.1%}",
                ]
                for name, result in measured.items()
                for way, moves in result["moved"].items()
            ],
        ),
        way_in=markdown(
            ("network", "parameters", *WAY_IN, "scores", "form"),
            [
                [
                    name,
                    f"{result['memory']['full']['trained'] / 1e6:.1f} M",
                    *(f"{result['way_in'][part]:.2f}" for part in WAY_IN),
                    *(
                        f"{result['way_in'][more] - result['way_in'][less]:.2f}"
                        for less, more in pairwise(WAY_IN)
                    ),
                ]
                for name, result in measured.items()
            ],
        ),
        zoo=over_the_zoo(),
        gpu=gpu_page.section(),
        networks="\n\n".join(f"### {name}\n\n{ways(result)}" for name, result in measured.items()),
    )


def over_the_zoo() -> str:
    """The time of a map over all networks of the zoo, beside the goals."""
    networks = json.loads(ZOO.read_text(encoding="utf-8"))["networks"]
    seconds = [each["map"] for name, each in networks.items() if "map" in each and " at " not in name]
    return (
        f"Over the {len(seconds)} networks of [the zoo](zoo.md) a map takes {median(seconds):.2f} s in the median, and "
        f"{max(seconds):.1f} s at most.\nThe goals are 0.2 and 5."
    )


def bound(result: Result, way: str) -> float | None:
    """The bound of a step such as "masked 0.25"; None where there is none."""
    flow, _, share = way.rpartition(" ")
    if flow not in FLOWS:
        return None
    forward, own = result["ratios"]["forward"][1], float(share)
    through: float = own * own if flow == "masked" else 1.0  # of the products for gradients of inputs
    return float(forward + (1 - forward) * (own + through) / 2)


def in_reach(result: Result, way: str) -> float:
    """The time of a step whose convolutions' backward and optimizer take what their work takes; the rest stays."""
    flow, _, share = way.rpartition(" ")
    spent, own = result["profile"]["full"], float(share)
    if way in result["products"]:  # of forward and backward; a third is the forward, which stays
        backward = (3 * result["products"][way] - 1) / 2
    else:
        backward = (own + (own * own if flow == "masked" else 1.0)) / 2
    kept = result["memory"][way]["trained"] / result["memory"]["full"]["trained"]
    return float(1 - spent["convolution backward"] * (1 - backward) - spent["optimizer"] * (1 - kept))


def _reach(result: Result, way: str) -> list[str]:
    reach = in_reach(result, way)
    return [f"{reach:.2f}", f"{time(result, way) / reach:.2f}"]


def over_bound(result: Result, way: str) -> float:
    """The time of a step divided by its bound."""
    limit = bound(result, way)
    assert limit is not None, way
    return time(result, way) / limit


def time(result: Result, way: str) -> float:
    """The median ratio of a way."""
    found: float = result["ratios"][way][1]
    return found


def memory(result: Result, way: str) -> float:
    """The most memory during a step, as a ratio."""
    found: float = result["memory"][way]["step_bytes"] / result["memory"]["full"]["step_bytes"]
    return found


def goals(measured: Mapping[str, Result]) -> list[list[str]]:
    """Each goal, and for each network the figure that decides; in bold where it is missed."""

    def line(text: str, value: Callable[[Result], float], limit: Callable[[str], float | None]) -> list[str]:
        cells = []
        for name, result in measured.items():
            most, found = limit(name), value(result)
            shown = f"{found:.2f}" if most is None or round(found, 2) <= most else f"**{found:.2f}**"
            cells.append("" if most is None else shown)
        return [text, *cells]

    def denoiser(most: float) -> Callable[[str], float | None]:
        return lambda name: most if name == "DnCNN" else None

    def at_a_quarter(name: str) -> float | None:
        return MASKED_GOALS[name.partition(",")[0]]

    def of_flow(flow: str) -> list[list[str]]:
        def worst(value: Callable[[Result, str], float], *shares: str) -> Callable[[Result], float]:
            return lambda result: max(value(result, f"{flow} {share}") for share in shares)

        return [
            line(
                f"{flow}: time over bound: 1.1 (DnCNN), 1.25",
                worst(over_bound, "0.1", "0.25", "0.5"),
                lambda name: 1.1 if name.startswith("DnCNN") else 1.25,
            ),
            line(f"{flow}: time up to 0.5: 1.02", worst(time, *SHARES[:3]), lambda name: 1.02),
            line(f"{flow}: time at 0.9: 1.02", worst(time, "0.9"), lambda name: 1.02),
            line(f"{flow}: time at 1: 1.02", worst(time, "1"), lambda name: 1.02),
            line(f"{flow}: memory at 0.25: 0.8", worst(memory, "0.25"), lambda name: 0.8),
            line(f"{flow}: memory at any share: 1", worst(memory, *SHARES), lambda name: 1.0),
        ]

    return [
        ["masked: time at 0.25", *(f"{at_a_quarter(name):.2f}" for name in measured)],
        line("... measured", lambda r: time(r, "masked 0.25"), at_a_quarter),
        line("... in reach (see below)", lambda r: in_reach(r, "masked 0.25"), lambda name: inf),
        line("masked: time at 0.5: 0.64", lambda r: time(r, "masked 0.5"), denoiser(0.64)),
        *(row for flow in FLOWS for row in of_flow(flow)),
        line("evaluation: 1.01", lambda r: r["evaluation"]["masked 0.25"][1], lambda name: 1.01),
        line("... a second plain copy", lambda r: r["evaluation"]["control"][1], lambda name: inf),
        line("... per layer, microseconds", lambda r: r["evaluation"]["per_layer_us"], lambda name: inf),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def short(name: str, result: Result, flow: str) -> list[str]:
    """One line of a flow's first table."""
    ways = [f"{flow} {share}" for share in SHARES]
    times = [f"{time(result, way):.2f} ({over_bound(result, way):.2f})" for way in ways]
    line = [name, "x".join(map(str, result["shape"])), *times]
    if flow == "masked":
        line.append(f"{time(result, 'layers 0.25'):.2f}")
    line.append(f"{memory(result, f'{flow} 0.25'):.2f}")
    if flow == "masked":
        line.append(f"{result['evaluation']['masked 0.25'][1]:.3f}")
    return line


def ways(result: Result) -> str:
    """The table of one network."""
    rows = []
    for way, (low, mid, high) in result["ratios"].items():
        limit = bound(result, way)
        used, full = result["memory"].get(way), result["memory"]["full"]
        rows.append(
            [
                way,
                f"{mid:.3f} ({low:.3f} to {high:.3f})",
                "" if limit is None else f"{limit:.3f}",
                "" if limit is None else f"{mid / limit:.2f}",
                "" if used is None else f"{used['step_bytes'] / full['step_bytes']:.2f}",
                "" if used is None else f"{used['state_bytes'] / full['state_bytes']:.2f}",
                "" if used is None else f"{used['trained'] / full['trained']:.1%}",
            ]
        )
    return markdown(("way", "time", "bound", "time / bound", "memory", "state", "trained"), rows)


if __name__ == "__main__":
    write_page()
