"""docs/zoo.md, made from the results of `benchmarks/zoo.py`: `python -m benchmarks.zoo_page`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import markdown

PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
RESULTS = measuring.RESULTS / "zoo.json"
Result = Mapping[str, Any]

TEXT = """\
# The zoo: on which networks it works

Made by `make bench-zoo` from [its results](../benchmarks/results/zoo.json); do not edit. {setting}.

[Networks](networks.md) says in words what works and what does not.

Weights are random. The input is the smallest that the network takes, in a batch of two, or of one where that is large
and no batch norm needs two. `make zoo` tests the laws on the same networks: both forms up to 30 million parameters,
only the compact form above. Times are CPU seconds on one thread:

* *forward*: one forward pass of the batch;
* *map*: recording two runs, one in evaluation and one in training mode, and following every channel through them;
* *plan*: `plan_tgd`, which maps the network and scores all its layers;
* *apply*: `apply_tgd` with that plan and `form="layers"`, which makes the layers form and compares its outputs and
  gradients with the original's. The *form* is a torch.fx graph, or a copy of the model with its own classes where a
  graph cannot hold all of its forward. It was not made for the two networks with more than 600 million parameters;
* *MiB*: how far the memory grows in `plan_tgd`;
* *peer*: building the dependency graph of Torch-Pruning, the nearest equivalent of the map. It is quicker, because it
  looks at one run in one mode, and at whole modules. `failed` stands for an exception, with its type.

In the compact form of these networks no Parameter holds a frozen entry, so no optimizer can move one. `make zoo`
asserts it for every network here.

The network that is refused lets its input mix the kernels of layer upon layer. The error says where, and what to do.
CPU seconds depend on what else the machine does: they may be off by a factor of two.

## In short

{summary}

## Large networks at their native size

One image. A plan should take a few seconds on one core, and 2048 MiB in all (*total*: with Python, torch and
the network itself). Bold: more than 10 seconds, or more than that memory. The map runs the network twice, which is
nearly half of its time for EfficientNet-B7 at 600 pixels. A channel map does not depend on the size of the input, so a
small input does the same (see the same network below). KSE grows with the number of pairs of kernels: ResNet-152 has
many layers of 512 x 512, VGG-16 a linear layer of 4096 x 25088.

{native}

## All networks

{networks}
"""
SECONDS, MIB = 10, 2048  # what planning a large network may take
COLUMNS = ("network", "parameters", "forward", "map", "plan", "apply", "MiB", "form", "peer")


def write_page() -> None:
    """Make the page anew."""
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Written: {PAGE}")


def page(found: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    results: Mapping[str, Result] = found["networks"]
    native = {name: result for name, result in results.items() if " at " in name}
    small = {name: result for name, result in results.items() if " at " not in name}
    libraries = list(dict.fromkeys(name.partition("/")[0] for name in small))
    groups = {library: [r for n, r in small.items() if n.startswith(f"{library}/")] for library in libraries}
    return TEXT.format(
        setting=", ".join(f"{name} {value}" for name, value in found["setting"].items()),
        summary=markdown(
            (
                "library",
                "networks",
                "operated on",
                "mapped only",
                "refused",
                "map / forward",
                "map s",
                "peer: graph built",
                "peer s",
            ),
            [_summary(library, group) for library, group in groups.items()]
            + [_summary("all", list(small.values()))],
        ),
        native=markdown(
            (*COLUMNS, "plan s", "total"),
            [[*_row(name, result), *_aim(result)] for name, result in native.items()],
        ),
        networks=markdown(COLUMNS, [_row(name, result) for name, result in small.items()]),
    )


def _summary(library: str, results: Sequence[Result]) -> list[str]:
    done = [result for result in results if "error" not in result]
    built = [result["peer"]["seconds"] for result in results if "seconds" in result["peer"]]
    return [
        library,
        str(len(results)),
        str(sum("form" in result for result in done)),
        str(sum("form" not in result for result in done)),
        str(len(results) - len(done)),
        f"{median(r['map'] / max(r['forward'], 1e-3) for r in done):.0f}" if done else "",
        _spread(result["map"] for result in done),
        str(len(built)),
        _spread(built),
    ]


def _spread(values: Iterable[float]) -> str:
    values = sorted(values)
    return f"{median(values):.2f} (max {values[-1]:.1f})" if values else ""


def _row(name: str, result: Result) -> list[str]:
    peer = result["peer"]
    seen = f"{peer['seconds']:.2f}" if "seconds" in peer else f"failed: {peer['error'].partition(':')[0]}"
    if "error" in result:
        return [name, *[""] * 6, f"refused: {result['error'].partition(':')[0]}", seen]
    times = [f"{result[key]:.2f}" if key in result else "" for key in ("forward", "map", "plan", "apply")]
    size = f"{result['parameters'] / 1e6:.1f} M"
    return [name, size, *times, str(result["mib"]), result.get("form", ""), seen]


def _aim(result: Result) -> list[str]:
    seconds, total = result["plan"], result["total_mib"]
    return [
        f"**{seconds:.1f}**" if seconds > SECONDS else f"{seconds:.1f}",
        f"**{total}**" if total > MIB else str(total),
    ]


if __name__ == "__main__":
    write_page()
