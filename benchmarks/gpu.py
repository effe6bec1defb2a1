"""TGD on a GPU: whether its laws hold there to the bit, and what a step costs beside full fine-tuning.

1. For a dozen networks and both forms: the forward in evaluation mode is that of the network; what is frozen has not
   changed after three steps of AdamW; the network without TGD computes the same. All compared bit for bit.
2. Time and memory of a training step: full fine-tuning, its forward alone, TGD with both flows at a quarter of the
   channels, and LoRA (with PEFT). In float32, TF32 and bfloat16 (autocast), contiguous and channels last. The ways take
   turns, one step each. The time is the median of CUDA events; the memory is what a step holds beyond what was held.
3. The same with torch.compile, for two networks in bfloat16.
4. The time of KSE for all weights of a network, and for those of a VGG-16.
5. What a step with TGD spends to take channels out and to put them back, by their numbers and in one block.

It runs from a plain checkout: `python -m benchmarks.gpu`. What is missing (torchvision, PEFT) is left out and named. It
starts nothing new after `--seconds`, and writes what it has after each part. `--device cpu --tiny` tries the script.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

from benchmarks.gpu_networks import OTHERS, OWN, VGG16, of_torchvision
from benchmarks.gpu_page import COLUMNS, FILE, rows
from benchmarks.gpu_page import laws as laws_of
from benchmarks.measuring import print_table, setting, write_json
from benchmarks.rows import moved
from tgdsurgery import TGDPlan, apply_tgd, kse, plan_tgd, remove_tgd, verify

SHARE = 0.25
RANK = 8
STEPS = 10  # of each way, after
WARM = 3  # others
Result = dict[str, Any]


class Subject(NamedTuple):
    """A network, and the shape of its batch; a small one to try the script with, and to plan with."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    small: tuple[int, ...]


SUBJECTS = {
    "DnCNN": Subject(OWN["DnCNN"], (64, 3, 64, 64), (2, 3, 16, 16)),
    "ResNet-50": Subject(OWN["ResNet-50"], (64, 3, 224, 224), (2, 3, 64, 64)),
    "U-Net 2-d": Subject(OWN["U-Net 2-d"], (12, 1, 512, 512), (2, 1, 32, 32)),
    "U-Net 3-d": Subject(OWN["U-Net 3-d"], (2, 1, 128, 128, 128), (2, 1, 16, 16, 16)),
    "EfficientNet-B0": Subject(lambda: of_torchvision("efficientnet_b0"), (64, 3, 224, 224), (2, 3, 64, 64)),
}
PRECISIONS = ("float32", "tf32", "bfloat16")
COMPILED = ("DnCNN", "ResNet-50")


class Clock:
    """Until when new parts are started."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.end


class Step:
    """A training step of a network with Adam."""

    def __init__(self, net: nn.Module, x: Tensor, precision: str) -> None:
        self.net, self.x, self.precision = net, x, precision
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-6, fused=True)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        with self._autocast():
            y = self.net(self.x)
        y.float().square().mean().backward()
        self.optimizer.step()

    @torch.no_grad()
    def forward(self) -> None:
        """Its forward alone."""
        with self._autocast():
            self.net(self.x)

    def _autocast(self) -> Any:
        if self.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.x.device.type, torch.bfloat16)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """The time of one run on the device."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    run()
    end_event.record()
    torch.cuda.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1000


def peak(run: Callable[[], None], device: torch.device) -> int | None:
    """Bytes held at most during a run beyond those before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def planned(net: nn.Module, small: Tensor) -> TGDPlan:
    """A plan with a quarter of the channels of every layer: those that score least."""
    plan = plan_tgd(net, small)
    chosen: dict[str, Any] = {}
    for entry in plan.entries:
        known = sorted(score for score in entry.scores if score is not None)
        if known:
            chosen[entry.layer.name] = known[min(len(known) - 1, round(SHARE * len(known)))]
    return plan.override(chosen)


def ways(net: nn.Module, small: Tensor) -> dict[str, nn.Module]:
    """The networks that take turns, on the CPU."""
    plan = planned(net, small)
    found = {"full": copy.deepcopy(net)}
    for flow in ("masked", "full"):
        found[f"TGD, {flow} flow"] = apply_tgd(net, small, plan=replace(plan, flow=flow))
    try:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 (may be missing)
    except ImportError:
        return found
    kinds = (nn.Conv2d, nn.Conv3d)
    names = [name for name, module in net.named_modules() if isinstance(module, kinds) and module.groups == 1]
    found["LoRA"] = inject_adapter_in_model(LoraConfig(r=RANK, target_modules=names), copy.deepcopy(net))
    return found


def measured(found: dict[str, nn.Module], x: Tensor, precision: str, last: bool) -> Result:
    """Time and memory of the ways, as they are and as ratios to the full step."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    layout = _last(x) if last else torch.contiguous_format
    x = x.to(memory_format=layout)
    steps = {
        name: Step(net.to(x.device, memory_format=layout).train(), x, precision)
        for name, net in found.items()
    }
    runs: dict[str, Callable[[], None]] = {"forward": steps["full"].forward, **steps}
    for run in runs.values():
        for _ in range(WARM):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(STEPS):
        for name, run in runs.items():
            taken[name].append(seconds(run, x.device))
    memory = {name: peak(run, x.device) for name, run in runs.items()}
    full, held = statistics.median(taken["full"]), memory["full"]
    return {
        name: {
            "seconds": statistics.median(taken[name]),
            "time": round(statistics.median(taken[name]) / full, 4),
            "memory": None if not held else round(memory[name] / held, 4),  # type: ignore[operator]
        }
        for name in runs
    }


def _last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def laws(device: torch.device, clock: Clock) -> Iterator[tuple[str, Result]]:
    """For each network and form, which laws hold to the bit."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    for name in (*OWN, *OTHERS):
        if clock.over():
            return
        try:
            net = (OWN[name] if name in OWN else lambda name=name: of_torchvision(name))().eval()
        except ImportError as error:
            yield name, {"missing": str(error)}
            continue
        shape = SUBJECTS[name].small if name in SUBJECTS else (2, 3, 64, 64)
        yield name, {form: kept(net, torch.rand(shape), device, form) for form in ("compact", "layers")}
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True


def kept(net: nn.Module, x: Tensor, device: torch.device, form: Any) -> dict[str, bool]:
    """The laws of one network in one form."""
    plan = planned(net, x)
    tgd = apply_tgd(net, x, plan=plan, form=form).to(device)
    plain, x = copy.deepcopy(net).to(device), x.to(device)
    with torch.no_grad():
        forward = torch.equal(tgd.eval()(x), plain(x))
    optimizer = torch.optim.AdamW(tgd.parameters(), lr=1e-3, weight_decay=0.1)
    tgd.train()
    for _ in range(3):
        optimizer.zero_grad()
        tgd(x).square().mean().backward()
        optimizer.step()
    frozen = verify(plain, tgd).ok
    with torch.no_grad():
        removed = torch.equal(remove_tgd(tgd).eval()(x), tgd.eval()(x))
    return {"forward": forward, "frozen": frozen, "removed": removed}


def weights_of(net: nn.Module) -> list[tuple[Tensor, int]]:
    """The weights of a network that KSE scores, and their groups."""
    layers = (nn.Conv2d, nn.Linear)
    return [(m.weight.detach(), getattr(m, "groups", 1)) for m in net.modules() if isinstance(m, layers)]


def scored(weights: list[tuple[Tensor, int]], device: torch.device) -> float:
    """The time of KSE."""
    weights = [(weight.to(device), groups) for weight, groups in weights]

    def run() -> None:
        for weight, groups in weights:
            kse(weight, groups=groups)

    return seconds(run, device)


def parts(device: torch.device, tiny: bool, clock: Clock, result: Result) -> Iterator[None]:
    """All parts, each written into the result when it is done."""
    for name, found in laws(device, clock):
        result["laws"][name] = found
        yield
    for name, subject in SUBJECTS.items():
        torch.manual_seed(0)
        try:
            net = subject.make()
        except ImportError as error:
            result["missing"][name] = str(error)
            continue
        x = torch.rand(subject.small if tiny else subject.shape).to(device)
        networks = ways(net, torch.rand(subject.small))
        for last in (False, True):
            for precision in PRECISIONS[::2] if device.type == "cpu" else PRECISIONS:
                if clock.over():
                    return
                key = f"{name}, {precision}, {'channels last' if last else 'contiguous'}"
                result["steps"][key] = measured(networks, x, precision, last)
                yield
        result["kse"][name] = scored(weights_of(net), device)
        for way in ("TGD, masked flow", "TGD, full flow"):
            step = Step(networks[way], x.to(memory_format=_last(x)), "float32")  # as they are now
            result["moved"][f"{name}, {way}"] = moved(step, partial(seconds, device=device))
        yield
        if name in COMPILED and not clock.over():
            compiled = {way: torch.compile(each) for way, each in networks.items() if way != "LoRA"}
            result["steps"][f"{name}, bfloat16, channels last, compiled"] = measured(
                compiled, x, "bfloat16", True
            )
            yield
    if not clock.over():
        shapes = VGG16[:3] if tiny else VGG16
        result["kse"]["VGG-16"] = scored([(torch.randn(shape), 1) for shape in shapes], device)
        yield


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Small batches, to try the script.")
@click.option("--seconds", "limit", default=430.0, show_default=True, help="Start nothing new after so long.")
@click.option("--out", type=click.Path(path_type=Path), default=FILE, show_default=True)
def main(device: str, tiny: bool, limit: float, out: Path) -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")
    where, clock = torch.device(device), Clock(limit)
    card = torch.cuda.get_device_name() if where.type == "cuda" else "CPU"
    result: Result = {"setting": setting(card=card, steps=STEPS, share=SHARE, rank=RANK)}
    result |= {"laws": {}, "steps": {}, "kse": {}, "moved": {}, "missing": {}}
    for _ in parts(where, tiny, clock, result):
        write_json(out, result)
    write_json(out, result)
    checked, left_out = laws_of(result)
    print_table(f"A step on {card}", COLUMNS, rows(result), json.dumps(result["setting"]))
    held = all(all(form.values()) for forms in checked.values() for form in forms.values())
    click.echo(f"{len(checked)} networks compared bit for bit: {'all equal' if held else 'NOT ALL EQUAL'}.")
    click.echo(f"Seconds for KSE: {json.dumps(result['kse'])}")
    if left_out:
        click.echo(f"Left out, as their library is not installed: {', '.join(left_out)}.")


if __name__ == "__main__":
    main()
