"""One YAML file of settings: what it may hold, and how it is refused."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml

from tgd_kit.errors import RunError
from tgd_kit.training.schedule import Schedule
from tgd_pet.experiment.settings import PROFILES, Settings, read_settings


def changed(tmp_path: Path, **changes: object) -> Path:
    values = yaml.safe_load((PROFILES / "tiny.yaml").read_text()) | changes
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_settings(path: Path) -> None:
    settings = read_settings(path)
    assert isinstance(settings, Settings)
    assert isinstance(settings.tuning, Schedule)
    assert settings.simulated(body_size="low").slices == settings.slices
    assert settings.simulated().scanner.geometry.voxel_mm == settings.voxel_mm


def test_values_get_their_types(tmp_path: Path) -> None:
    settings = read_settings(changed(tmp_path, voxel_mm=9, phis=[1]))
    assert isinstance(settings.voxel_mm, float)
    assert settings.phis == (1.0,)
    assert isinstance(settings.phis[0], float)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phi": None}, "lacks phi"),
        ({"nonsense": 1}, "unknown nonsense"),
        ({"train": "many"}, "train is 'many'"),
        ({"train": 2.5}, "train is 2.5"),
        ({"train": True}, "train is True"),
        ({"seeds": 3}, "seeds is 3"),
        ({"seeds": ["a"]}, "seeds.0 is 'a'"),
        ({"seeds": []}, "seeds is .*at least 1"),
        ({"seeds": [0, 0]}, "seeds has one twice"),
        ({"seeds": [100]}, "seeds.0 is 100"),
        ({"seeds": [-1]}, "seeds.0 is -1"),
        ({"widths": [0]}, "widths"),
        ({"widths": [4, 4, 0, 4, 3]}, "widths.2 is 0"),
        ({"widths": [4, 6, 6, 6, 4]}, "widths must end with 3"),
        ({"widths": []}, "widths is"),
        ({"phi": 0}, "phi is 0"),
        ({"phi": 1.5}, "phi is 1.5"),
        ({"phi": float("nan")}, "phi is nan"),
        ({"sweep": []}, "sweep is"),
        ({"sweep_patients": 3}, "sweep_patients are more than test"),
        ({"realisations": 11}, "realisations is 11"),
        ({"realisations": 0}, "realisations is 0"),
        ({"old_realisations": 3}, "old_realisations are more"),
        ({"seconds": []}, "seconds is"),
        ({"seconds": [700]}, "seconds.0 is 700"),
        ({"suv_limit": float("inf")}, "suv_limit is inf"),
        ({"voxel_mm": float("nan")}, "voxel_mm is nan"),
        ({"prompts_per_slice": [1]}, "prompts_per_slice"),
        ({"prompts_per_slice": [2, 1]}, "range of prompts"),
        ({"angles": 47}, "47 angles"),
        ({"peers": ["dropout"]}, "peers.0 is 'dropout'"),
        ({"workers": 0}, "workers is 0"),
        ({"slices": 1}, "slices is 1"),
        ({"size": 31}, "smaller than a patch"),
        ({"bases": 0}, "bases is 0"),
        ({"train": 0}, "train is 0"),
        ({"train": 10**30}, "train is 1000"),
        ({"train": datetime.date(2020, 1, 1)}, "something else"),
        ({"tuning": {"epoch": 1}}, "unknown tuning.epoch"),
        ({"tuning": {"epochs": 0}}, "tuning.epochs is 0"),
        ({"tuning": {"steps": 0}}, "tuning.steps is 0"),
        ({"tuning": {"rate": float("nan")}}, "tuning.rate is nan"),
        ({"tuning": {"rate": 0}}, "tuning.rate is 0"),
        ({"tuning": {"patch": 1}}, "tuning.patch is 1"),
        ({"tuning": {"seed": -1}}, "tuning.seed is -1"),
        ({"tuning": 3}, "tuning is 3"),
        ({"tuning": {"devices": 2}}, "tuning has several devices"),
        ({"\x1b[2J": 1}, "x1b"),
        ({"n" * 10000: 1}, "has unknown nnn"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        read_settings(changed(tmp_path, **changes))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


NO_SETTINGS = {
    "list.yaml": "- 1",
    "broken.yaml": "a: [",
    "empty.yaml": "",
    "deep.yaml": "[" * 5000,
    "date.yaml": "a: 2001-99-99",
    "set.yaml": "!!set {a, b}",
    "key.yaml": "? [a, b]\n: 1",
    "bomb.yaml": "a: &a [x, x]\nb: &b [*a, *a]\n"
    + "".join(f"{c}: &{c} [*{chr(ord(c) - 1)}, *{chr(ord(c) - 1)}]\n" for c in "cdefghijklmnopqrstuvwxyz"),
    "large.yaml": "# " + "x" * 2**16,
    "number.yaml": "size: " + "9" * 5000,
}


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    for name, content in NO_SETTINGS.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(RunError):
            read_settings(tmp_path / name)
    (tmp_path / "bytes.yaml").write_bytes(bytes(range(256)))
    for name in ("absent.yaml", "bytes.yaml", "a" * 300, "a\0b", "."):
        with pytest.raises(RunError, match="cannot be read"):
            read_settings(tmp_path / name)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(
        f"phi: !!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path {tmp_path}/x]"
    )
    with pytest.raises(RunError):
        read_settings(path)
    assert not (tmp_path / "x").exists()
