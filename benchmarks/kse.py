"""How long does KSE take for all 53 convs of a ResNet-50, beside the two obvious ways to compute it?

CPU seconds (steadier than the clock on a busy machine) per layer shape, in one run on the same weights:

* ours: `tgdsurgery.kse`;
* plain: float64 `torch.cdist` with its defaults and `topk`, one input channel (N x N distances) at a time;
* published: one scikit-learn nearest-neighbour query per kernel, as in the program of the KSE paper.
  The C N queries of all layers would take hours, so a random sample is timed and extrapolated (marked ~).

Run `python -m benchmarks.kse`; Linux only, for the memory.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from benchmarks.measuring import RESULTS, forget_peak, peak_mib, print_table, setting, write_json
from tgdsurgery import kse

K = 5
Shape = tuple[int, ...]  # (N, C, height, width)
COLUMNS = ("weight", "layers", "ours s", "plain s", "published s", "plain / ours", "published / ours", "MiB")


@dataclass(frozen=True)
class Timing:
    """CPU seconds for one layer of a shape, or for all, and the memory that ours needs beside the weight."""

    name: str
    layers: int
    ours: float
    plain: float
    published: float
    peak_mib: float

    def cells(self) -> tuple[object, ...]:
        ratios = f"{self.plain / self.ours:.1f}", f"~{self.published / self.ours:,.0f}"
        seconds = f"{self.ours:.4f}", f"{self.plain:.4f}", f"~{self.published:,.1f}"
        return (self.name, self.layers, *seconds, *ratios, f"{self.peak_mib:.0f}")


def resnet50_convs() -> Counter[Shape]:
    """The conv weights of a ResNet-50 (He et al., 2016, table 1) and how often each shape occurs."""
    shapes: Counter[Shape] = Counter({(64, 3, 7, 7): 1})
    incoming = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        shapes[4 * width, incoming, 1, 1] += 1  # the projection shortcut
        for _ in range(blocks):
            shapes.update([(width, incoming, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)])
            incoming = 4 * width
    return shapes


def plain(weight: Tensor) -> Tensor:
    """The distances of the entropy the obvious way; the rest of the score takes no time beside them."""
    kernels = weight.double().transpose(0, 1).flatten(2)
    sums = [torch.cdist(points, points).topk(K + 1, largest=False).values.sum(1) for points in kernels]
    return torch.stack(sums)


def published_seconds(weight: Tensor, queries: int) -> float:
    """Time of one index per channel and one query per kernel, extrapolated from a random sample."""
    kernels = weight.transpose(0, 1).flatten(2).numpy()
    channels, filters, _ = kernels.shape
    chosen = random.sample(range(channels), min(8, channels))
    start = time.process_time()
    indices = {c: NearestNeighbors(n_neighbors=K + 1).fit(kernels[c]) for c in chosen}
    per_channel = (time.process_time() - start) / len(chosen)
    points = [(c, random.randrange(filters)) for c in random.choices(chosen, k=queries)]
    start = time.process_time()
    for c, n in points:
        indices[c].kneighbors(kernels[c, n].reshape(1, -1))
    per_query = (time.process_time() - start) / queries
    return channels * (per_channel + filters * per_query)


def median_seconds(compute: Callable[[Tensor], Tensor], weight: Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        compute(weight)
        times.append(time.process_time() - start)
    return statistics.median(times)


def wall_seconds(repeats: int) -> float:
    """Seconds on the clock for all layers one after the other, the fastest run of some."""
    weights = [torch.randn(shape) for shape, count in resnet50_convs().items() for _ in range(count)]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for weight in weights:
            kse(weight)
        times.append(time.perf_counter() - start)
    return min(times)


def growth_mib(shape: Shape) -> float:
    """How far the resident memory of a fresh process grows while a weight it already holds is scored."""
    torch.set_num_threads(1)
    weight = torch.randn(shape)
    kse(torch.randn(8, 8, *shape[2:]))  # what is loaded on first use does not count
    forget_peak()
    before = peak_mib()
    kse(weight)
    return peak_mib() - before


def measure(shape: Shape, layers: int, repeats: int, queries: int) -> Timing:
    weight = torch.randn(shape)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        peak = fresh.submit(growth_mib, shape).result()
    return Timing(
        "x".join(map(str, shape)),
        layers,
        median_seconds(kse, weight, repeats),
        median_seconds(plain, weight, repeats),
        published_seconds(weight, queries),
        peak,
    )


def whole(timings: list[Timing]) -> Timing:
    ours, plain, published = (
        sum(getattr(timing, way) * timing.layers for timing in timings)
        for way in ("ours", "plain", "published")
    )
    layers = sum(timing.layers for timing in timings)
    return Timing("ResNet-50", layers, ours, plain, published, max(timing.peak_mib for timing in timings))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "kse.json")
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--repeats", default=3, show_default=True, help="Runs of ours and plain; the median counts.")
@click.option("--queries", default=200, show_default=True, help="Sampled queries per shape, published way.")
def main(out: Path, threads: int, repeats: int, queries: int) -> None:
    """Time KSE on the layers of a ResNet-50 with random weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random.seed(0)
    used = setting("numpy", "scikit-learn", threads=threads, repeats=repeats)
    timings = [measure(shape, layers, repeats, queries) for shape, layers in resnet50_convs().items()]
    caption = (
        f"{', '.join(f'{name} {value}' for name, value in used.items())}; k {K}, normal weights.\n"
        f"s: CPU seconds per layer. ~: extrapolated from {queries} random queries per shape.\n"
        "MiB: growth of resident memory while ours runs."
    )
    wall = wall_seconds(repeats)
    caption += f"\nAll {whole(timings).layers} layers, on the clock: {wall:.2f} s."
    rows = [timing.cells() for timing in (*timings, whole(timings))]
    print_table("KSE of a ResNet-50", COLUMNS, rows, caption)
    layers = [asdict(timing) for timing in timings]
    write_json(
        out,
        {
            "setting": used,
            "wall_seconds": wall,
            "queries": queries,
            "layers": layers,
            "total": asdict(whole(timings)),
        },
    )


if __name__ == "__main__":
    main()
