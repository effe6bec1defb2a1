"""What does it cost to change one network from one adaptation to another: rows copied in place, or PEFT's adapters?

One ResNet-18 with several adaptations in memory at once, in two ways:

* `DeltaSwitch` of this package: deltas whose plans train a share of every layer's filters. A block copies the rows in,
  and at its end the base's rows back.
* PEFT: LoRA on every convolution. `set_adapter` tells the layers which adapter counts, and copies nothing, but each
  forward pass runs through the adapter; for the base the layers are told to leave it out (`disable_adapter_layers`).
  Or the adapter is merged into the weight (`merge_adapter`) and taken out again (`unmerge_adapter`), by arithmetic.

All of them take turns, once in each round, and the medians are given; memory is that of the tensors held. *Error*: how
far the convolutions' weights are from the base's after all of it, at most.

Run `make bench-delta`; it puts the table into docs/deltas.md.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.measuring import RESULTS, markdown, print_table, setting, write_json
from tgdsurgery import DeltaSwitch, TGDPlan, apply_tgd, load_delta, plan_tgd, save_delta

PAGE = Path(__file__).parent.parent / "docs" / "deltas.md"
RESULT = RESULTS / "delta_switch.json"
SHARES = (0.05, 0.25)
RANK = 8
IMAGES = (4, 3, 128, 128)
COLUMNS = (
    "way",
    "switch on and off, ms",
    "forward / plain",
    "MB per adaptation",
    "share of the network",
    "largest error when off",
)


class Way:
    """A network that is switched.

    Args:
        net: takes images.
        on: switches to one of the adaptations.
        off: back to the base.
        held: bytes held for each adaptation.
        weights: those of the base's convolutions as they are now.
    """

    def __init__(
        self,
        net: nn.Module,
        on: Callable[[str], object],
        off: Callable[[], object],
        held: float,
        weights: Callable[[], list[Tensor]],
    ) -> None:
        self.net, self.on, self.off, self.held, self.weights = net, on, off, held, weights


def network() -> nn.Module:
    """MONAI's ResNet-18 with ImageNet's classes."""
    from monai.networks.nets import resnet18  # noqa: PLC0415 (the page is made without it)

    torch.manual_seed(0)
    net: nn.Module = resnet18(spatial_dims=2, n_input_channels=3, num_classes=1000)
    return net.eval()


def convolutions(net: nn.Module) -> list[str]:
    """Names of all convolutions."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]


def at_share(plan: TGDPlan, share: float) -> TGDPlan:
    """The share of the channels of each layer trainable: those that score least."""
    chosen: dict[str, Any] = {}
    for entry in plan.entries:
        if known := sorted(score for score in entry.scores if score is not None):
            chosen[entry.layer.name] = known[round(share * (len(known) - 1))]
    return plan.override(chosen)


def switched(net: nn.Module, plan: TGDPlan, names: list[str], folder: Path) -> Way:
    """Deltas of this package, of noise instead of training."""
    files = {name: folder / f"{name}.safetensors" for name in names}
    for file in files.values():
        tgd = apply_tgd(net, plan=plan)
        with torch.no_grad():
            for parameter in tgd.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        save_delta(tgd, file)
    base = copy.deepcopy(net)
    deltas, one = DeltaSwitch(base, files), DeltaSwitch(base, {names[0]: files[names[0]]})
    blocks: list[Any] = []

    def on(name: str) -> None:
        blocks.append(deltas(name))
        blocks[-1].__enter__()

    def off() -> None:
        blocks.pop().__exit__(None, None, None)

    on(names[0])  # it is this one's network, to the bit
    wanted = load_delta(net, files[names[0]]).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in base.state_dict().items())
    off()
    held = (deltas.nbytes - one.nbytes) / (len(names) - 1)
    return Way(base, on, off, held, lambda: [base.get_submodule(n).weight for n in convolutions(base)])


def adapters(net: nn.Module, names: list[str], *, merged: bool) -> Way:
    """LoRA of PEFT on every convolution."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    targets = convolutions(net)
    config = LoraConfig(r=RANK, target_modules=targets)
    model = get_peft_model(copy.deepcopy(net), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    own = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for parameter in own:
            parameter.copy_(torch.randn_like(parameter) * 1e-2)
    plain = model.get_base_model()

    def on(name: str) -> None:
        if not merged:
            model.enable_adapter_layers()
        model.set_adapter(name)
        if merged:
            model.merge_adapter()

    def off() -> None:
        if merged:
            model.unmerge_adapter()
        else:
            model.disable_adapter_layers()

    held = sum(parameter.nbytes for parameter in own) / len(names)
    return Way(
        model.eval(), on, off, held, lambda: [plain.get_submodule(name).base_layer.weight for name in targets]
    )


def ways(net: nn.Module, names: list[str], folder: Path) -> Iterator[tuple[str, Way]]:
    """All that is compared."""
    plan = plan_tgd(net, torch.zeros(2, *IMAGES[1:]))
    for share in SHARES:
        where = folder / str(share)
        where.mkdir()
        yield f"DeltaSwitch, {share:.0%} of the filters", switched(net, at_share(plan, share), names, where)
    yield f"PEFT LoRA of rank {RANK}, set_adapter", adapters(net, names, merged=False)
    yield f"PEFT LoRA of rank {RANK}, merged", adapters(net, names, merged=True)


def timed(run: Callable[[], object]) -> float:
    """Seconds of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Times, memory and exactness of all ways."""
    net, names = network(), [f"patient_{number}" for number in range(count)]
    x, before = torch.rand(IMAGES), [net.get_submodule(name).weight.clone() for name in convolutions(net)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        with torch.inference_mode(False):
            found = dict(ways(net, names, Path(folder)))
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in found}
        plain = []
        for number in range(rounds):
            name = names[number % count]
            plain.append(timed(lambda: net(x)))
            for label, way in found.items():
                on = timed(lambda way=way, name=name: way.on(name))  # type: ignore[misc]
                forward = timed(lambda way=way: way.net(x))  # type: ignore[misc]
                times[label].append((on + timed(way.off), forward))
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    return {
        "network_bytes": size,
        "plain_forward_seconds": statistics.median(plain),
        "ways": {
            label: {
                "switch_seconds": statistics.median(switch for switch, _ in times[label]),
                "forward_ratio": statistics.median(
                    forward / each for (_, forward), each in zip(times[label], plain, strict=True)
                ),
                "bytes": way.held,
                "error": max(
                    float((now - then).abs().max()) for now, then in zip(way.weights(), before, strict=True)
                ),
            }
            for label, way in found.items()
        },
    }


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The table's lines."""
    return [
        [
            way,
            f"{1e3 * found['switch_seconds']:.2f}",
            f"{found['forward_ratio']:.2f}",
            f"{found['bytes'] / 1e6:.2f}",
            f"{found['bytes'] / result['network_bytes']:.1%}",
            f"{found['error']:.1g}" if found["error"] else "0",
        ]
        for way, found in result["ways"].items()
    ]


def table(result: Mapping[str, Any]) -> str:
    """The table in Markdown, and what it was measured with."""
    versions = ", ".join(f"{name} {value}" for name, value in result["setting"].items())
    return f"{markdown(COLUMNS, rows(result))}\n\n{caption(result)} {versions}."


def caption(result: Mapping[str, Any]) -> str:
    """What the figures are relative to."""
    images = "x".join(map(str, IMAGES))
    return (
        f"A ResNet-18 of {result['network_bytes'] / 1e6:.1f} MB; a plain forward of {images} takes "
        f"{1e3 * result['plain_forward_seconds']:.0f} ms. CPU time of one thread, medians."
    )


def write_page() -> None:
    """Put the table in the place of the last one; all else on the page is written by hand."""
    text, made = PAGE.read_text(encoding="utf-8"), table(json.loads(RESULT.read_text(encoding="utf-8")))
    start = text.index(f"| {COLUMNS[0]} | {COLUMNS[1]} |")
    end = text.index("\n\n", text.index("\n\n", start) + 2)
    PAGE.write_text(text[:start] + made + text[end:], encoding="utf-8")
    print(f"Written: {PAGE}")


@click.command()
@click.option("--adaptations", default=5, show_default=True, help="How many are in memory at once.")
@click.option("--rounds", default=51, show_default=True, help="How often each way switches.")
def main(adaptations: int, rounds: int) -> None:
    """Measure what a switch costs."""
    torch.set_num_threads(1)
    result = {
        "setting": setting("monai", "peft", threads=1, rounds=rounds, adaptations=adaptations),
        **measure(adaptations, rounds),
    }
    write_json(RESULT, result)
    print_table("A switch", COLUMNS, rows(result), caption(result))
    write_page()


if __name__ == "__main__":
    main()
