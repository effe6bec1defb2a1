"""A timm classifier, adapted to images of another camera.

Run: python examples/timm_classifier.py    (needs `pip install timm`)
"""

import timm
import torch
from torch import nn

from tgdsurgery import apply_tgd, plan_tgd, remove_tgd, verify


def photos(camera: str, count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Stripes in one of four directions (count, 3, 32, 32), and which one. The new camera inverts and is noisy."""
    labels = torch.randint(4, (count,))
    angle, phase = labels * torch.pi / 4, 2 * torch.pi * torch.rand(count)
    grid = torch.linspace(-6, 6, 32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    wave = torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y
    images = (torch.sin(wave + phase[:, None, None]) > 0.5).float()[:, None].repeat(1, 3, 1, 1)
    if camera == "new":
        images = 0.5 * (1 - images) + 0.5 * torch.randn_like(images)
    return images + 0.3 * torch.randn_like(images), labels


def train(net: nn.Module, camera: str, steps: int) -> None:
    """An ordinary training loop. Nothing in it is about TGD."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for _ in range(steps):
        images, labels = photos(camera)
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


@torch.no_grad()
def error(net: nn.Module, camera: str) -> float:
    """Share of wrong answers on test images, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        images, labels = photos(camera, count=512)
    return (net(images).argmax(1) != labels).float().mean().item()


torch.manual_seed(0)
base = timm.create_model("test_resnet", num_classes=4)  # random weights; usually pretrained=True
train(base, "old", steps=60)

images, _ = photos("new")
plan = plan_tgd(base, images, budget=0.25)
plan = plan.override({"conv1": "freeze"})  # the stem stays as it is
print(plan)
tgd = apply_tgd(base, images, plan=plan)
train(tgd, "new", steps=60)

print(f"\nFrozen weights unchanged: {verify(base, tgd).ok}")
adapted = remove_tgd(tgd).eval()  # a plain timm network again
print(f"{'wrong answers':<24} before   after")
for task, camera in {"old camera (old task)": "old", "new camera (new task)": "new"}.items():
    print(f"{task:<24} {error(base, camera):6.1%}  {error(adapted, camera):6.1%}")
