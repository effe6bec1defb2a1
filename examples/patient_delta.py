"""One base denoiser for all patients, and one small file for each of them.

Run: python examples/patient_delta.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from tgdsurgery import apply_tgd, load_delta, plan_tgd, remove_tgd, save_delta, verify


def signals(blur: int, count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy blurred signals (count, 1, 64) and the sharp ones behind them; each patient has another blur."""
    sharp = (torch.rand(count, 1, 64) > 0.8).float()
    blurred = nn.functional.avg_pool1d(sharp, blur, stride=1, padding=blur // 2)
    return blurred + 0.05 * torch.randn_like(blurred), sharp


def train(net: nn.Module, blurs: tuple[int, ...], steps: int, rate: float) -> None:
    """An ordinary training loop. Nothing in it is about TGD."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for step in range(steps):
        noisy, sharp = signals(blurs[step % len(blurs)])
        loss = nn.functional.mse_loss(net(noisy), sharp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


@torch.no_grad()
def error(net: nn.Module, blur: int) -> float:
    """Root mean square error on test signals, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noisy, sharp = signals(blur, count=256)
    return nn.functional.mse_loss(net(noisy), sharp).sqrt().item()


torch.manual_seed(0)
base = nn.Sequential(
    nn.Conv1d(1, 32, 9, padding=4), nn.BatchNorm1d(32), nn.ReLU(),
    nn.Conv1d(32, 32, 9, padding=4), nn.BatchNorm1d(32), nn.ReLU(),
    nn.Conv1d(32, 1, 9, padding=4),
)  # fmt: skip
train(base, blurs=(3,), steps=300, rate=3e-3)

plan = plan_tgd(base, signals(3)[0], budget=0.25)
print(plan)
folder = Path(tempfile.mkdtemp())
torch.save(base.state_dict(), folder / "base.pt")
print(f"The base network takes {(folder / 'base.pt').stat().st_size} bytes.")
for name, blur in {"patient A": 5, "patient B": 7}.items():
    file = folder / f"{name}.safetensors"
    tgd = apply_tgd(base, signals(3)[0], plan=plan)
    train(tgd, blurs=(blur,), steps=150, rate=3e-3)
    save_delta(tgd, file)  # the retrained rows only
    adapted = remove_tgd(tgd).eval()

    again = load_delta(base, file)  # refuses any other base
    same = all(torch.equal(value, again.state_dict()[key]) for key, value in adapted.state_dict().items())
    print(f"\n{name}: {file.stat().st_size} bytes")
    print(f"  error on the patient (new task)     {error(base, blur):.4f} -> {error(adapted, blur):.4f}")
    print(f"  error on the population (old task)  {error(base, 3):.4f} -> {error(adapted, 3):.4f}")
    print(f"  frozen weights unchanged: {verify(base, tgd).ok}; file + base = adapted network: {same}")
print("\nA delta is for its own patient: for all others take the base, which has not changed.")
