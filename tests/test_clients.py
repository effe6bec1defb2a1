"""Training loops and tools of other libraries on a TGD network: what they freeze, average, wrap and save."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.callbacks import BackboneFinetuning, EMAWeightAveraging
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from tests.laws.subjects import in_both_forms
from tests.strategies.case import randomise
from tgdsurgery import RewriteError, apply_tgd, guard, plan_of, remove_tgd, verify

IMAGES = torch.linspace(-1, 1, 8 * 192).view(8, 3, 8, 8)
CLASSES = torch.arange(8) % 5
# What the libraries themselves tell their users: no GPU, few workers, no logger.
pytestmark = pytest.mark.filterwarnings("ignore")


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": IMAGES[index], "labels": CLASSES[index]}


class Net(nn.Module):
    """A backbone and a head; returns a loss where it gets labels, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.head(self.backbone(x).mean((2, 3)))
        return y if labels is None else {"loss": F.cross_entropy(y, labels), "logits": y}


def made(form: str) -> tuple[nn.Module, nn.Module]:
    net = randomise(Net(), seed=0).train()
    overrides = {"backbone.3": 0.5, "head": "train"}
    return net, apply_tgd(net, IMAGES, phi=0.5, form=form, overrides=overrides).train()


def assert_trained(net: nn.Module, tgd: nn.Module, still: tuple[str, ...] = ()) -> None:
    """Raise unless what is frozen is where it was, bit for bit, and trainable weights of all layers moved."""
    audit = verify(net, tgd)
    assert audit.ok, str(audit)
    before, after = net.state_dict(), tgd.state_dict()
    masks = plan_of(tgd).parameter_masks()
    for name in ("backbone.0.weight", "backbone.1.weight", "backbone.3.weight", "head.weight"):
        mask = masks[name]
        assert mask.any()
        moved = (after[name] != before[name])[mask]
        assert not moved.any() if name.startswith(still) and still else moved.any(), name


@in_both_forms
def test_the_trainer_of_transformers(form, tmp_path):
    """With clipping, weight decay and a schedule; a checkpoint loads into another TGD network and a plain one."""
    net, tgd = made(form)
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        weight_decay=0.1,
        max_grad_norm=1.0,
        save_strategy="epoch",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=tgd, args=arguments, train_dataset=Images()).train()
    assert_trained(net, tgd)
    (saved, *_) = sorted(tmp_path.glob("checkpoint-*/*.safetensors"), reverse=True)
    from safetensors.torch import load_file

    state = load_file(saved)
    other = made(form)[1]
    for network in (other, net):
        network.load_state_dict(state)
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@in_both_forms
def test_accelerate(form):
    net, tgd = made(form)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(tgd.parameters(), lr=0.05, weight_decay=0.1)
    prepared, optimizer, loader = accelerator.prepare(tgd, optimizer, DataLoader(Images(), batch_size=4))
    with guard(optimizer, tgd):
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(prepared(**batch)["loss"])
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
    assert_trained(net, accelerator.unwrap_model(prepared))


class Training(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def backbone(self) -> nn.Module:
        return self.net.get_submodule("backbone")

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.net(**batch)["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, 0.1, momentum=0.9, weight_decay=0.1)


def fitted(tgd: nn.Module, folder: Path, epochs: int, *callbacks: lightning.Callback) -> Training:
    training = Training(tgd)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(training, DataLoader(Images(), batch_size=4))
    return training


@in_both_forms
def test_lightnings_average_of_weights(form, tmp_path):
    net, tgd = made(form)
    fitted(tgd, tmp_path, 2, EMAWeightAveraging(decay=0.5))
    assert_trained(net, tgd)


@in_both_forms
@pytest.mark.parametrize("epoch", [1, 9])
def test_lightnings_frozen_backbone(form, epoch, tmp_path):
    """It stops the gradients of a backbone but for its norms, and lets it train from an epoch on."""
    net, tgd = made(form)
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=epoch, train_bn=False, backbone_initial_lr=0.1)
    fitted(tgd, tmp_path, 3, callback)
    assert_trained(net, tgd, () if epoch == 1 else ("backbone.0", "backbone.3"))


class ScheduleFree(torch.optim.Optimizer):
    """What `schedulefree.SGDScheduleFree` does to weights: `eval` and `train` move them between two averages."""

    def __init__(self, parameters: Iterator[nn.Parameter], lr: float, decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay, "beta": 0.9, "steps": 0})

    @torch.no_grad()
    def eval(self) -> None:
        self._to(lambda group: 1 - 1 / group["beta"])

    @torch.no_grad()
    def train(self) -> None:
        self._to(lambda group: 1 - group["beta"])

    def _to(self, weight: Any) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], weight(group))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                z = self.state[parameter].setdefault("z", torch.clone(parameter))
                gradient = parameter.grad + group["decay"] * parameter
                parameter.lerp_(z, 1 / group["steps"])
                parameter.add_(gradient, alpha=-group["lr"] * (1 - group["beta"]))
                z.sub_(gradient, alpha=group["lr"])


def test_an_optimizer_that_writes_outside_of_its_steps():
    net, tgd = made("compact")
    optimizer = ScheduleFree(tgd.parameters(), 0.1, decay=0.1)
    for _ in range(3):
        optimizer.train()
        optimizer.zero_grad()
        tgd(IMAGES, CLASSES)["loss"].backward()
        optimizer.step()
        optimizer.eval()
    assert_trained(net, tgd)


LORA = LoraConfig(target_modules=["backbone.3", "head"], r=2, init_lora_weights=False)


@in_both_forms
def test_lora_on_top(form):
    """The LoRA layers are torch's; only they train; unloaded, the network is what it was."""
    net, tgd = made(form)
    before = copy.deepcopy(tgd.state_dict())
    lora = get_peft_model(tgd, LORA)
    layers = [
        module for name, module in lora.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))
    ]
    assert {type(layer) for layer in layers} == {nn.Conv2d, nn.Linear}
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=0.05)
    lora.eval()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(lora(IMAGES), CLASSES).backward()
        optimizer.step()
    assert all(layer.weight.grad.any() for layer in layers)
    unloaded = lora.unload()
    assert all(torch.equal(value, before[name]) for name, value in unloaded.state_dict().items())
    assert verify(net, unloaded).ok


def test_lora_is_merged_into_a_plain_network_only():
    _, tgd = made("compact")
    with pytest.raises(RewriteError, match="remove_tgd"):
        get_peft_model(copy.deepcopy(tgd), LORA).merge_and_unload()
    lora = get_peft_model(remove_tgd(tgd), LORA).eval()
    expected = lora(IMAGES)
    merged = lora.merge_and_unload()
    assert type(merged.get_submodule("head")) is nn.Linear
    torch.testing.assert_close(merged(IMAGES), expected)


def test_lora_on_a_graph_is_refused():
    """The graph of the layers form calls the TGD layers by the names of what they follow."""
    tgd = apply_tgd(
        randomise(Net(), seed=0).backbone, IMAGES, phi=0.5, overrides={"3": 0.5}, flow="masked", form="layers"
    )
    lora = get_peft_model(tgd, LoraConfig(target_modules=["0"], r=2))
    with pytest.raises(RewriteError, match=r"replaced or wrapped after apply_tgd.*compact form"):
        lora(IMAGES)


def yolo_groups(net: nn.Module) -> list[dict[str, Any]]:
    """As `BaseTrainer.build_optimizer` of ultralytics 8 sorts parameters: by the module and the name that hold them."""
    norms = tuple(module for name, module in vars(nn).items() if "Norm" in name)
    decayed, of_norms, biases = [], [], []
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "bias" in name:
                biases.append(parameter)
            else:
                (of_norms if isinstance(module, norms) else decayed).append(parameter)
    return [
        {"params": biases, "lr": 0.05},
        {"params": decayed, "weight_decay": 5e-4},
        {"params": of_norms, "weight_decay": 0.0},
    ]


class YoloEMA:
    """As `ModelEMA` of ultralytics 8: a copy that is averaged in place through its `state_dict`."""

    def __init__(self, net: nn.Module) -> None:
        self.ema = copy.deepcopy(net).eval()
        for parameter in self.ema.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, decay: float = 0.5) -> None:
        new = net.state_dict()
        for name, value in self.ema.state_dict().items():
            if value.dtype.is_floating_point:
                value.mul_(decay).add_(new[name].detach(), alpha=1 - decay)


@in_both_forms
def test_the_loop_of_ultralytics(form, tmp_path):
    """Its loop written out: groups, nesterov, warm-up, clipping, average, and the average saved in half precision."""
    net, tgd = made(form)
    optimizer = torch.optim.SGD(yolo_groups(tgd), lr=0.05, momentum=0.937, nesterov=True)
    average = YoloEMA(tgd)
    with guard(optimizer, tgd):
        for step in range(4):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (step + 1) / 4
            tgd(IMAGES, CLASSES)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(tgd.parameters(), max_norm=10.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(tgd)
    assert_trained(net, tgd)
    assert_trained(net, average.ema)
    mask = plan_of(tgd).parameter_masks()["head.weight"]
    assert not torch.equal(
        average.ema.state_dict()["head.weight"][mask], tgd.state_dict()["head.weight"][mask]
    )

    half = copy.deepcopy(average.ema).half()
    torch.save(half.state_dict(), tmp_path / "best.pt")
    state = torch.load(tmp_path / "best.pt", weights_only=True)
    plain = Net().half()
    plain.load_state_dict(state)
    assert state.keys() == net.state_dict().keys()
    for name, value in remove_tgd(average.ema).state_dict().items():
        assert torch.equal(plain.state_dict()[name], value.half() if value.is_floating_point() else value)


@in_both_forms
def test_a_copy_that_needed_no_gradient_is_masked_once_it_does(form):
    _, tgd = made(form)
    twice = copy.deepcopy(copy.deepcopy(tgd).requires_grad_(False))
    twice.requires_grad_(True)
    for net in (tgd, twice):
        net(IMAGES, CLASSES)["loss"].backward()
    pairs = zip(tgd.named_parameters(), twice.named_parameters(), strict=True)
    for (name, first), (_, second) in pairs:
        if first.requires_grad:
            assert torch.equal(first.grad, second.grad), name
