"""The floor plan of the adapters: who may import whom, and that only public names cross a wall."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tgdsurgery

ROOT = Path(__file__).parents[2] / "adapters"
KIT = "tgd_kit"
# The files and folders of each package: each imports only those before it.
ORDER = {
    KIT: (
        "arrays",
        "errors",
        "devices",
        "progress",
        "runs",
        "imaging",
        "simulation",
        "training",
        "report",
        "cli",
    ),
    "tgd_pet": (
        "errors",
        "network",
        "denoising",
        "images",
        "simulation",
        "training",
        "evaluation",
        "experiment",
        "report",
        "demo",
        "cli",
    ),
    "tgd_ct": (
        "case",
        "scanner",
        "networks",
        "inference",
        "images",
        "simulation",
        "loading",
        "training",
        "evaluation",
        "experiment",
        "report",
        "demo",
        "cli",
    ),
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent.parent != ROOT or path.stem != "__init__")
PARSED = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def place(path: Path) -> tuple[str, str]:
    """Package, and the file or folder in it: `tgd_pet/report/page.py` -> `("tgd_pet", "report")`."""
    package, room, *_ = path.relative_to(ROOT).with_suffix("").parts
    return package, room


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of everything imported, anywhere in the code; `import module` has the name ""."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def room_of(module: str, name: str) -> str:
    """Where an imported module lies in its package; `from tgd_pet import network` has it in the name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else name


def fault(package: str, room: str, module: str, name: str) -> str:
    """What is wrong with an import in a room of a package; nothing if it is allowed."""
    imported = module.split(".", maxsplit=1)[0]
    if imported == "tgdsurgery":
        public = module == imported and name in tgdsurgery.__all__
        return "" if public else f"{module} {name} is not public"
    if imported not in ORDER:
        return ""
    other = room_of(module, name)
    if (imported, other) != (package, room) and any(
        part.startswith("_") for part in (name, *module.split("."))
    ):
        return f"{module} {name} is private"
    if imported == package:
        rooms = ORDER[package]
        early = other == room or rooms.index(other) < rooms.index(room)
        return "" if early else f"{room} comes before {other}"
    return "" if imported == KIT else f"{package} imports {imported}"


@every_file
def test_only_what_comes_before_is_imported(path: Path) -> None:
    package, room = place(path)
    assert room in ORDER[package], "a new file or folder: say where it stands"
    faults = [fault(package, room, *found) for found in imports(PARSED[path])]
    assert not any(faults), faults


def test_everything_in_the_order_is_there() -> None:
    assert {place(path) for path in FILES} == {
        (name, room) for name, rooms in ORDER.items() for room in rooms
    }


@pytest.mark.parametrize(
    ("package", "room", "code", "words"),
    [
        ("tgd_kit", "runs", "from tgd_pet.network import DnCNN", "tgd_kit imports tgd_pet"),
        ("tgd_kit", "runs", "import tgd_kit.training.fit", "runs comes before training"),
        ("tgd_kit", "runs", "def f():\n    from tgd_kit import training", "runs comes before training"),
        ("tgd_kit", "training", "from tgd_kit.runs.jobs import _prepare", "private"),
        ("tgd_pet", "cli", "from tgd_kit.runs.jobs import _prepare", "private"),
        ("tgd_pet", "cli", "from tgdsurgery.surgery.apply import layers_form", "not public"),
        ("tgd_pet", "cli", "import tgdsurgery.api", "not public"),
        ("tgd_pet", "cli", "from tgdsurgery import rewrite", "not public"),
        ("tgd_pet", "training", "from tgd_pet.training.fit import _any", ""),
        ("tgd_pet", "cli", "from tgd_kit.runs.jobs import run_jobs", ""),
        ("tgd_pet", "cli", "from tgdsurgery import apply_tgd", ""),
        ("tgd_kit", "runs", "import torch", ""),
    ],
)
def test_a_wrong_import_is_seen(package: str, room: str, code: str, words: str) -> None:
    ((module, name),) = imports(ast.parse(code))
    found = fault(package, room, module, name)
    assert words in found
    assert bool(words) == bool(found)
