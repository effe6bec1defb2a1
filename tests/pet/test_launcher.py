"""Lightning's own launcher: two CPU processes train one network together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tgd_pet.network import load_network, new_network

SCRIPT = """
import hashlib, json, os
from pathlib import Path
from tgd_pet.finetuning import finetune
from tgd_pet.network import new_network
from tgd_pet.training import Schedule, fit
from tests.pet.scans import RandomScans

folder = Path({folder!r})
schedule = Schedule(epochs=2, steps=2, batch=2, patch=16, devices=2)
studies = [RandomScans(1)]
network = new_network(0, (4, 6, 6, 3))
fit(network, studies, "v1", folder / "base", schedule, progress=False)
tuned = finetune(network, studies, "v2", folder / "tgd", schedule, progress=False)
digest = hashlib.sha256()
for parameter in tuned.network.parameters():
    digest.update(parameter.detach().numpy().tobytes())
rank = os.environ.get("LOCAL_RANK", "0")
found = {{"kept": tuned.kept, "weights": digest.hexdigest(), "share": tuned.share}}
(folder / f"rank{{rank}}.json").write_text(json.dumps(found))
"""


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path)))
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == other  # the same weights on both, bit for bit
    assert one["kept"] is True
    assert 0 < one["share"] < 1
    base, tuned = (load_network(tmp_path / name / "network.safetensors") for name in ("base", "tgd"))
    first = new_network(0, (4, 6, 6, 3))
    for before, after in ((first, base), (base, tuned)):
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    assert json.loads((tmp_path / "tgd" / "run.json").read_text())["devices"] == 2
    assert not (tmp_path / "base" / "checkpoints").exists()
