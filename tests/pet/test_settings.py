"""One YAML file of settings: what it may hold, and how it is refused."""

from __future__ import annotations

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
        ({"seeds": ["a"]}, "seeds is 'a'"),
        ({"tuning": {"epoch": 1}}, "unknown epoch"),
        ({"tuning": 3}, "not a list of settings"),
        ({"tuning": {"devices": 2}}, "tuning has several devices"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(RunError, match=words):
        read_settings(changed(tmp_path, **changes))


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    for name, content in {"list.yaml": "- 1", "broken.yaml": "a: [", "empty.yaml": ""}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(RunError):
            read_settings(tmp_path / name)
    with pytest.raises(RunError, match="cannot be read"):
        read_settings(tmp_path / "absent.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(
        f"phi: !!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path {tmp_path}/x]"
    )
    with pytest.raises(RunError):
        read_settings(path)
    assert not (tmp_path / "x").exists()
