"""Folders import in one direction: no circles, and everything can be read from top to bottom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tgdsurgery

# A folder imports those of the rows above it; folders in one row do not import each other.
FLOORS = (
    ("core",),
    ("settings", "onnx_graph"),
    ("mapping", "surgery"),
    ("scoring", "training"),
    ("storage", "sweep"),
    ("certificate", "export", "report"),
    ("api",),
    ("advice",),
    ("cli",),
)
# Inside a folder, the same for its own folders and files.
INSIDE = {
    "mapping": (
        ("labels", "nodes", "state"),
        ("rules", "exits", "original", "fixed"),
        ("recorder",),
        ("capture", "unwritten", "example_inputs"),
        ("propagate",),
        ("collect",),
        ("channel_map",),
    ),
    "surgery": (
        ("derived", "held_statistics", "hooks", "needed_inputs", "tgd_network"),
        ("compact",),
        ("entries", "equivalence", "validate"),
        ("layers",),
        ("mount", "intact"),
        ("remove", "apply"),
    ),
    "onnx_graph": (
        ("reading", "names", "shapes", "ops"),
        ("flatten",),
        ("layers", "recurrent"),
        ("modules",),
        ("build",),
        ("check",),
        ("importing",),
    ),
}
ROOT = Path(tgdsurgery.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
on_every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def parts(path: Path) -> tuple[str, ...]:
    """`core/plan.py` -> ("core", "plan")."""
    return tuple(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")


def imports(tree: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules of this package that the code imports, anywhere in it, with the names that it takes from each.

    Imports for type checkers count: a reader follows them as well. A public name taken from the package itself
    counts as the API.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names if alias.name.startswith("tgdsurgery."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tgdsurgery":
            names = tuple(alias.name for alias in node.names)
            public = node.module == "tgdsurgery"
            yield from [("tgdsurgery.api", names)] if public else [(node.module or "", names)]


def floor(floors: tuple[tuple[str, ...], ...], name: str) -> int:
    """The row that a folder or file stands in."""
    return next(number for number, row in enumerate(floors) if name in row)


def assert_in_order(floors: tuple[tuple[str, ...], ...], own: str, imported: str) -> None:
    assert own == imported or floor(floors, imported) < floor(floors, own), f"{own} imports {imported}"


@on_every_file
def test_folders_import_in_one_direction(path):
    own = parts(path)
    for module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
        imported = tuple(module.split(".")[1:])
        assert_in_order(FLOORS, own[0], imported[0])
        if imported[0] == own[0] in INSIDE and len(imported) > 1 and len(own) > 1:
            assert_in_order(INSIDE[own[0]], own[1], imported[1])


@on_every_file
def test_private_names_stay_in_their_file(path):
    for module, names in imports(ast.parse(path.read_text(encoding="utf-8"))):
        private = [name for name in (*module.split("."), *names) if re.match(r"_[^_]", name)]
        assert not private, f"{'.'.join(parts(path))} takes {private} from {module}"


@on_every_file
def test_what_torch_keeps_private_is_named_in_one_file(path):
    if parts(path) == ("core", "torch_private"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in modules if re.match(r"torch\.(.*\.)?_[^_]", name)]
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch"
        for alias in node.names
    ]
    assert not [name for name in names if re.match(r"_[^_]", name)]
    read = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [name for name in read if re.match(r"(torch|nn|F)\._[^_]", name)]


def test_every_folder_and_file_has_its_floor():
    assert {parts(path)[0] for path in FILES} == {name for row in FLOORS for name in row}
    for folder, floors in INSIDE.items():
        inside = {parts(path)[1] for path in FILES if parts(path)[0] == folder and len(parts(path)) > 1}
        assert inside == {name for row in floors for name in row}


@on_every_file
def test_no_relative_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import tgdsurgery.api", [("tgdsurgery.api", ())]),
        ("from tgdsurgery import apply_tgd", [("tgdsurgery.api", ("apply_tgd",))]),
        ("def f():\n    from tgdsurgery.cli.main import _run", [("tgdsurgery.cli.main", ("_run",))]),
        ("import torch", []),
    ],
)
def test_imports_are_seen_wherever_they_stand(code, found):
    assert list(imports(ast.parse(code))) == found


def test_a_circle_is_found():
    with pytest.raises(AssertionError, match="core imports mapping"):
        assert_in_order(FLOORS, "core", "mapping")
    with pytest.raises(AssertionError, match="surgery imports mapping"):
        assert_in_order(FLOORS, "surgery", "mapping")


REPOSITORY = ROOT.parent
# What these try or measure is inside of the library: another backward, and what its backward moves.
LOOK_INSIDE = {REPOSITORY / "benchmarks" / name for name in ("adapt/sampled.py", "rows.py")}


@pytest.mark.parametrize("folder", ["adapters", "benchmarks", "examples"])
def test_others_use_public_names_only(folder):
    files = set((REPOSITORY / folder).rglob("*.py")) - LOOK_INSIDE
    assert files
    for path in sorted(files):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tgdsurgery":
                assert node.module == "tgdsurgery", path
                assert {alias.name for alias in node.names} <= set(tgdsurgery.__all__), path
