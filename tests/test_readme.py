"""The README's and the docs' snippets are run: Python as doctests in order, then the `tgd` commands shown."""

import doctest
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from benchmarks import step_page, zoo_page
from benchmarks.measuring import RESULTS
from tgdsurgery.cli import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
FACTORY = """
from torch import nn

def denoiser():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 1, 3, padding=1),
    )
"""


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, str]]:
    """The `tgd` commands that a page shows with output."""
    shown = [
        part
        for block in blocks(page, "console")
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)
        if part
    ]
    pairs = [tuple(part.split("\n", 1)) for part in shown]
    return [(command, output) for command, output in pairs if command.startswith("tgd ")]


def write_files(page: Path, folder: Path) -> None:
    """The Python blocks that begin with a file's name (`# name.py`), as files."""
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block, encoding="utf-8")


def run_commands(page: Path) -> None:
    """Raise unless every command shown does what the page says."""
    for command, output in commands(page):
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
        assert words(result.output) == words(output), command


def words(text: str) -> list[str]:
    """Layout aside: what a terminal of another width shows too."""
    return re.sub(r"[─\s]+", " ", text).split()


def run_snippets(page: Path) -> doctest.TestResults:
    """All Python blocks of a page, one after the other."""
    test = doctest.DocTestParser().get_doctest("\n".join(blocks(page, "python")), {}, page.name, str(page), 0)
    with torch.random.fork_rng():
        return doctest.DocTestRunner().run(test)


def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    results = run_snippets(README)
    assert results.failed == 0
    assert results.attempted > 10
    assert len(commands(README)) >= 3
    run_commands(README)


@pytest.mark.parametrize(
    "page", [page for page in DOCS if ">>>" in page.read_text(encoding="utf-8")], ids=lambda page: page.name
)
def test_docs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files(page, tmp_path)
    results = run_snippets(page)
    assert results.failed == 0
    assert results.attempted > 0
    run_commands(page)


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_pictures_and_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert targets or page != README
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("made", [zoo_page, step_page])
def test_the_pages_of_benchmarks_are_made_from_their_results(made: ModuleType) -> None:
    results = json.loads(made.RESULTS.read_text(encoding="utf-8"))
    assert made.PAGE.read_text(encoding="utf-8") == made.page(results)


def test_the_readme_has_the_figures_of_the_last_runs() -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    kse = json.loads((RESULTS / "kse.json").read_text(encoding="utf-8"))
    ours, plain, published = (kse["total"][way] for way in ("ours", "plain", "published"))
    assert f"takes a {plain / ours:.0f}th of the CPU time of plain" in text
    assert f"about a {round(published / ours, -2):.0f}th of the published" in text
    assert f"{ours:.1f} CPU seconds against {plain:.0f} and about {round(published, -2):.0f}" in text
    assert f"{kse['wall_seconds']:.1f} seconds by the clock on two cores" in text
    zoo = json.loads((RESULTS / "zoo.json").read_text(encoding="utf-8"))["networks"]
    densenet, resnet, efficientnet = (
        f"{zoo[name]['map'] + zoo[name]['scores']:.1f}"
        for name in (
            "torchvision/densenet201 at 224",
            "torchvision/resnet152 at 224",
            "torchvision/efficientnet_b7 at 600",
        )
    )
    assert (
        f"{densenet} seconds on one core for a DenseNet-201, {resnet} for a ResNet-152, and {efficientnet} for"
        in text
    )
