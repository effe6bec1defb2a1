"""One PET denoiser for all, and a small file for each of fifty patients, whose scans have few counts.

Run: python examples/fifty_patients.py    (needs `pip install "tgdsurgery[pet]"`)
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from tgd_pet.denoising import denoise, triplets
from tgd_pet.network import DnCNN, new_network
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.patient import SimulatedPatient, simulate_patient
from tgdsurgery import DeltaSwitch, apply_tgd, choose_delta, plan_tgd, remove_tgd, save_delta, verify

TINY = PatientConfig.tiny()
GRID = replace(TINY.scanner.geometry, size=32, voxel_mm=13.0, angles=36, bins=32, bin_mm=13.0)
SCANNER = replace(TINY.scanner, geometry=GRID, slice_mm=13.0)
NORMAL = replace(TINY, scanner=SCANNER, slices=3, fractions=(0.5,), realisations=1)  # half of all counts
SHORT = replace(NORMAL, fractions=(0.02,))


def train(net: nn.Module, pairs: list[tuple[np.ndarray, np.ndarray]], steps: int, rate: float) -> None:
    """An ordinary training loop from noisy volumes to better ones. Nothing in it is about TGD."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for step in range(steps):
        volumes = map(torch.from_numpy, pairs[step % len(pairs)])
        noisy, target = (triplets(volume, torch.arange(len(volume))) for volume in volumes)
        loss = nn.functional.mse_loss(net(noisy), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()


def error(net: DnCNN, patient: SimulatedPatient) -> float:
    """Root mean square error of the denoised scan in the body, in SUV."""
    difference = denoise(net, patient.low("v1")[0]) - patient.true
    return float(np.sqrt(np.square(difference[patient.body()]).mean()))


torch.manual_seed(0)
population = [simulate_patient(1000 + seed, NORMAL) for seed in range(9)]
base = new_network(0, (24, 24, 24, 3))
train(base, [(one.low("v1")[0], one.full("v1")) for one in population[1:]], steps=250, rate=3e-3)
stranger, folder = population[0], Path(tempfile.mkdtemp())
old_task = error(base, stranger)
plan = plan_tgd(base, torch.zeros(2, 3, 32, 32), phi=0.5, flow="full")
print(plan)
patients, kept = {f"P{seed:02d}": simulate_patient(seed, SHORT) for seed in range(50)}, []
for name, patient in patients.items():
    half, other = patient.halves("v1")  # noise2noise: each half is the other one's target
    tgd = apply_tgd(base, torch.zeros(2, 3, 32, 32), plan=plan)
    train(tgd, [(half, other), (other, half)], steps=30, rate=5e-3)
    save_delta(tgd, folder / f"{name}.safetensors", when={"PatientID": name})
    kept.append(verify(base, remove_tgd(tgd), plan).ok)

files = {file.stem: file for file in sorted(folder.glob("*.safetensors"))}
chosen = choose_delta(files.values(), {"PatientID": "P07", "Modality": "PT"})  # tags of a DICOM series
deltas, before, after, others = DeltaSwitch(base, files), [], [], []
for name, patient in patients.items():
    before.append(error(base, patient))
    with deltas(name):
        after.append(error(base, patient))
        others.append(error(base, stranger))

size, sizes = sum(t.nbytes for t in base.state_dict().values()), [f.stat().st_size for f in files.values()]
print(f"\nthe base has {size:,} bytes, a delta {max(sizes):,}, all fifty {sum(sizes):,}")
print(f"for a scan of patient P07: {chosen.name}")
print(f"in memory beside the network: {deltas.nbytes:,} bytes")
print(f"median error on the patients (new task)  {median(before):.3f} -> {median(after):.3f} SUV")
print(f"a stranger's normal scan (old task)      {old_task:.3f} -> {median(others):.3f} SUV with their rows")
same = error(base, stranger) == old_task
print(f"frozen weights unchanged: {all(kept)}; after fifty switches the base as before: {same}")
