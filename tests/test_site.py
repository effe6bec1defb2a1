"""The docs site: built strictly, with a place for every public name, and nothing loaded from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.exceptions import PluginError

import tgdsurgery

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_there_and_in_the_contents(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "changelog"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert {name for name in pages if f"{name}.md" not in contents} == set()


def test_every_public_name_has_its_entry(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in tgdsurgery.__all__:
        assert f'id="tgdsurgery.{name}"' in text, name


def test_a_public_name_without_an_entry_fails_the_build(hooks: ModuleType) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    hooks.check_names(text)
    with pytest.raises(PluginError, match="kse"):
        hooks.check_names(text.replace("::: tgdsurgery.kse\n", ""))


def test_links_lead_to_files_of_the_site(site: Path) -> None:
    for page in site.glob("*.html"):
        if page.stem == "404":  # its links begin at the root of a server
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"https?:|mailto:|data:", target):
                assert (site / target).exists(), f"{page.name}: {target}"


def test_long_tables_start_folded(site: Path) -> None:
    text = (site / "zoo.html").read_text(encoding="utf-8")
    folded = re.findall(r"<details.*?</details>", text, re.DOTALL)
    assert any("torchvision/resnet50" in part for part in folded)
    assert "<details" not in (site / "sweep.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="([^"]+)"', text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page.name
