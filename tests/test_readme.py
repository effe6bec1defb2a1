"""The README's and the docs' snippets are run, block by block as a reader would; their figures and links are true."""

import doctest
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import ct_noise, delta_switch, epoch_end, step_page, zoo_page
from benchmarks.measuring import RESULTS, markdown
from tgdsurgery.cli import main

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
MOST_WORDS = 800  # of the README, without code and tables


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each code block, in order."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The `tgd` commands of a console block, and the output that it shows."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE):
        command, _, output = part.partition("\n")
        if command.startswith("tgd "):
            yield command, output


def words(text: str) -> list[str]:
    """Layout aside: what a terminal of another width shows too."""
    return re.sub(r"[─\s]+", " ", text).split()


def assert_runs(page: Path, folder: Path) -> int:
    """Run a page from top to bottom, in the working directory `folder`.

    A Python block that begins with a file's name (`# name.py`) becomes that file; one with prompts is a doctest;
    one without shows what only a reader's own setting can run, and is compiled. Commands must print what is shown.

    Returns:
        how many examples and commands were run.
    """
    count, names = 0, dict[str, Any]()
    for number, (language, block) in enumerate(blocks(page), start=1):
        if language == "console":
            for command, output in commands(block):
                result = CliRunner().invoke(main, shlex.split(command)[1:])
                assert result.exit_code == 0, result.output
                assert words(result.output) == words(output), command
                count += 1
        elif language == "python" and (name := re.match(r"# (\w+\.py)\n", block)):
            (folder / name[1]).write_text(block, encoding="utf-8")
        elif language == "python" and ">>>" in block:
            test = doctest.DocTestParser().get_doctest(
                block, {}, f"{page.name}, block {number}", str(page), 0
            )
            test.globs = names  # those of the whole page, not a copy
            found = doctest.DocTestRunner().run(test, clear_globs=False)
            assert found.failed == 0
            count += found.attempted
        elif language == "python":
            compile(block, str(page), "exec")
    return count


@pytest.mark.parametrize(
    "page", [page for page in DOCS if ">>>" in page.read_text(encoding="utf-8")], ids=lambda page: page.name
)
def test_docs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng():
        assert assert_runs(page, tmp_path) > 0


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_commands_for_the_readers_own_files_can_be_typed(page: Path) -> None:
    """They are not run, as they train for long or need other files; but their options exist."""
    for language, block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            if (command := line.strip()).startswith("tgd "):
                group, arguments = main, shlex.split(command)[1:]
                with click.Context(group) as context:
                    while isinstance(group, click.Group):
                        name, *arguments = arguments
                        found = group.get_command(context, name)
                        assert found is not None, command
                        group = found
                    group.make_context(name, arguments)


def test_the_readme_runs() -> None:
    """With a network, images and data such as the reader has."""
    (code,) = [block for language, block in blocks(README) if language == "python"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.rand(4, 1, 16, 16)
        setting: dict[str, Any] = {
            "net": nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)
            ),
            "images": images,
            "new_data": [(images, torch.zeros_like(images))] * 3,
            "loss": nn.functional.mse_loss,
        }
        exec(compile(code, str(README), "exec"), setting)
    before, after = setting["net"].state_dict(), setting["adapted"].state_dict()
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_the_readme_is_short() -> None:
    text = re.sub(r"^```.*?^```", "", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert len(" ".join(prose).split()) <= MOST_WORDS


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *DOCS], ids=lambda page: page.name)
def test_pictures_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert targets or page != README
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *DOCS], ids=lambda page: page.name)
def test_links_within_pages_lead_somewhere(page: Path) -> None:
    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]*)\)", page.read_text(encoding="utf-8")):
        aimed = page.parent / target if target else page
        assert anchor in anchors(aimed.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_contributing_names_files_that_exist() -> None:
    named = re.findall(r"`([^`\s]+)`", CONTRIBUTING.read_text(encoding="utf-8"))
    ours = ("tgdsurgery/", "adapters/", "tests/", "benchmarks/", "examples/")
    paths = [path for path in named if path.startswith(ours) and path.endswith((".py", "/"))]
    assert len(paths) > 20
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize(
    "picture", sorted((ROOT / "docs" / "images").rglob("*.svg")), ids=lambda path: path.name
)
def test_drawings_are_whole(picture: Path) -> None:
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None  # for those who cannot see it


@pytest.mark.parametrize("made", [zoo_page, step_page, epoch_end])
def test_the_pages_of_benchmarks_are_made_from_their_results(made: ModuleType) -> None:
    results = json.loads(made.RESULTS.read_text(encoding="utf-8"))
    assert made.PAGE.read_text(encoding="utf-8") == made.page(results)


def test_the_readme_has_the_figures_of_the_last_runs() -> None:
    text = flat(README)
    steps = results("step")["networks"]
    (denoiser, resnet), (masked, of_resnet) = (
        [steps[name]["ratios"][f"{flow} 0.25"][1] for name in ("DnCNN", "ResNet-50")]
        for flow in ("full flow", "masked")
    )
    words = f"{denoiser:.2f} of the time of full fine-tuning ({masked:.2f} with the paper's masked flow)"
    assert f"takes {words}, a ResNet-50's {resnet:.2f} ({of_resnet:.2f})" in text
    networks, operated = zoo()
    assert f"tests {networks} networks of" in text
    assert f"applies to {operated} of them" in text


def test_the_page_on_networks_has_the_figures_of_the_last_runs() -> None:
    text = flat(ROOT / "docs" / "networks.md")
    networks, operated = zoo()
    assert f"apply TGD to {operated} of {networks} networks" in text
    kse = results("kse")
    ours, plain, published = (kse["total"][way] for way in ("ours", "plain", "published"))
    assert f"takes a {plain / ours:.0f}th of the CPU time of plain" in text
    assert f"about a {round(published / ours, -2):.0f}th of the published" in text
    assert f"{ours:.1f} CPU seconds against {plain:.0f} and about {round(published, -2):.0f}" in text
    assert f"{kse['wall_seconds']:.1f} seconds by the clock on two cores" in text
    found = results("zoo")["networks"]
    densenet, resnet, efficientnet = (
        f"{found[name]['plan']:.1f}"
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


def test_the_page_on_ct_has_the_noise_of_the_last_run() -> None:
    table = markdown(ct_noise.COLUMNS, ct_noise.table(results("ct_noise")["rows"]))
    assert table in (ROOT / "docs" / "ct.md").read_text(encoding="utf-8")


def test_the_page_on_deltas_has_the_figures_of_the_last_run() -> None:
    found = results("delta_switch")
    assert delta_switch.table(found) in (ROOT / "docs" / "deltas.md").read_text(encoding="utf-8")
    ways = found["ways"]
    ours = [way for way in ways if way.startswith("DeltaSwitch")]
    few, many = (ways[way] for way in ours)
    flags, merged = (ways[way] for way in ways if way not in ours)
    assert few["switch_seconds"] < 1.5 * flags["switch_seconds"] < 1.5 * many["switch_seconds"]
    assert merged["switch_seconds"] > 5 * many["switch_seconds"]
    assert flags["forward_ratio"] > 1.1 > max(way["forward_ratio"] for way in (few, many, merged))
    assert few["error"] == many["error"] == flags["error"] == 0 < merged["error"]


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def zoo() -> tuple[int, int]:
    """How many networks were tried, and to how many TGD was applied."""
    found = {name: result for name, result in results("zoo")["networks"].items() if " at " not in name}
    return len(found), sum("form" in result for result in found.values())


def flat(page: Path) -> str:
    return " ".join(page.read_text(encoding="utf-8").split())
