"""A stage imports earlier stages only: no circles, and everything can be read from top to bottom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tgdsurgery

ORDER = (
    "errors",
    "report",
    "records",
    "copying",
    "inputs",
    "capture",
    "labels",
    "rules",
    "unwritten",
    "propagate",
    "channels",
    "kse",
    "scoring",
    "planning",
    "constants",
    "sharding",
    "layers",
    "compact",
    "trial",
    "graph_form",
    "rewrite",
    "guard",
    "watch",
    "checkpoints",
    "delta",
    "ablation",
    "sweep",
    "api",
    "cli",
)
ROOT = Path(tgdsurgery.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def stage(module: str) -> str:
    """`tgdsurgery.rules.kernels` -> `rules`."""
    return module.split(".")[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of this package that the code imports, anywhere in it, but not for type checkers only.

    A public name taken from the package itself counts as the API.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (name for other in node.orelse for name in imports(other))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("tgdsurgery."))
        elif isinstance(node, ast.ImportFrom) and node.module == "tgdsurgery":
            names = (alias.name for alias in node.names)
            yield from (f"tgdsurgery.{name if name in ORDER else 'api'}" for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tgdsurgery."):
            yield node.module
        else:
            yield from imports(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_earlier_stages_are_imported(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    assert own in ORDER, "a new stage: say where it stands"
    for module in imports(ast.parse(path.read_text(encoding="utf-8"))):
        imported = stage(module)
        assert imported == own or ORDER.index(imported) < ORDER.index(own), f"{own} imports {imported}"


def test_every_stage_is_there():
    assert {path.relative_to(ROOT).with_suffix("").parts[0] for path in FILES} == set(ORDER)


def test_no_relative_imports():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import tgdsurgery.api", ["tgdsurgery.api"]),
        ("from tgdsurgery import labels", ["tgdsurgery.labels"]),
        ("from tgdsurgery import apply_tgd", ["tgdsurgery.api"]),
        ("def f():\n    from tgdsurgery.cli.main import run", ["tgdsurgery.cli.main"]),
        ("if TYPE_CHECKING:\n    from tgdsurgery.api import apply_tgd", []),
        ("import torch", []),
    ],
)
def test_imports_are_seen_wherever_they_stand(code, found):
    assert list(imports(ast.parse(code))) == found


ADAPTER_FILES = sorted((ROOT.parent / "adapters").rglob("*.py"))


def test_adapters_use_public_names_only() -> None:
    assert ADAPTER_FILES
    for path in ADAPTER_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tgdsurgery"):
                assert node.module == "tgdsurgery", path
                assert {alias.name for alias in node.names} <= set(tgdsurgery.__all__), path
