"""A MONAI U-Net that segments images of one scanner, adapted to a second one.

Run: python examples/segmenter_second_scanner.py    (needs `pip install monai`)
"""

import torch
from monai.networks.nets import UNet
from torch import nn

from tgdsurgery import apply_tgd, plan_tgd, remove_tgd, verify


def scans(scanner: str, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, 48, 48) of a round organ, and its masks. Scanner B has less contrast, noise and a gradient."""
    grid = torch.linspace(-1, 1, 48)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    centre, radius = torch.rand(count, 2, 1, 1) - 0.5, 0.2 + 0.3 * torch.rand(count, 1, 1)
    masks = ((y - centre[:, 0]).square() + (x - centre[:, 1]).square()).sqrt() < radius
    images = masks + 0.2 * torch.randn(count, 48, 48)
    if scanner == "B":
        images = 0.4 * masks + 0.5 * x + 0.2 * torch.randn(count, 48, 48)
    return images[:, None], masks[:, None].float()


def train(net: nn.Module, scanner: str, steps: int) -> None:
    """An ordinary training loop. Nothing in it is about TGD."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    net.train()
    for _ in range(steps):
        images, masks = scans(scanner)
        loss = nn.functional.binary_cross_entropy_with_logits(net(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


@torch.no_grad()
def error(net: nn.Module, scanner: str) -> float:
    """1 - Dice on test images, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        images, masks = scans(scanner, count=64)
    found = (net(images) > 0).float()
    return 1 - (2 * (found * masks).sum() / (found.sum() + masks.sum())).item()


torch.manual_seed(0)
base = UNet(
    spatial_dims=2, in_channels=1, out_channels=1, channels=(12, 24, 48), strides=(2, 2), num_res_units=1
)
train(base, "A", steps=120)

images, _ = scans("B")
# At most half of the filter parameters. With flow="full" gradients pass frozen feature maps, unlike in the paper.
plan = plan_tgd(base, images, budget=0.5, flow="full")
print(plan)
tgd = apply_tgd(base, images, plan=plan)
train(tgd, "B", steps=120)

print(f"\nFrozen weights unchanged: {verify(base, tgd).ok}")
adapted = remove_tgd(tgd).eval()  # a plain MONAI U-Net again
print(f"{'1 - Dice':<28}  before   after")
for task, scanner in {"scanner A (old task)": "A", "scanner B (new task)": "B"}.items():
    print(f"{task:<28}  {error(base, scanner):.4f}  {error(adapted, scanner):.4f}")
