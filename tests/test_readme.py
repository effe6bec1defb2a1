"""The README's snippets are run: Python as doctests in order, then the `tgd` commands with their output."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tgdsurgery.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FACTORY = """
from torch import nn

def denoiser():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 1, 3, padding=1),
    )
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """The `tgd` commands shown with output."""
    shown = [
        part for block in blocks("console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part
    ]
    pairs = [tuple(part.split("\n", 1)) for part in shown]
    return [(command, output) for command, output in pairs if command.startswith("tgd ")]


def words(text: str) -> list[str]:
    """Layout aside: what a terminal of another width shows too."""
    return re.sub(r"[─\s]+", " ", text).split()


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    with torch.random.fork_rng():
        source = "\n".join(blocks("python"))
        test = doctest.DocTestParser().get_doctest(source, {}, "README.md", "README.md", 0)
        results = doctest.DocTestRunner().run(test)
    assert results.failed == 0
    assert results.attempted > 10
    assert len(commands()) >= 3
    for command, output in commands():
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
        assert words(result.output) == words(output), command


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing
