"""What the site needs beyond docs/: files from outside it, and a check that every public name has a place."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import tgdsurgery

ROOT = Path(__file__).parents[2]
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
MOST_ROWS = 25  # of a table that is shown whole
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside docs/, and each file that a page links to, such as an example or raw results."""
    check_names((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=LINK.sub(lambda found: inside(found[1], ""), text)))
    for path in linked_files():
        files.append(File.generated(config, f"files/{path.relative_to(ROOT)}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside docs/ lead to their copies; long tables start folded."""
    if page.file.src_uri in OUTSIDE.values():
        return markdown
    return TABLE.sub(folded, LINK.sub(lambda found: inside(found[1], "docs"), markdown))


def folded(table: re.Match[str]) -> str:
    """A long table behind a line that says how long it is; short ones as they are."""
    lines = table[0].splitlines()
    rows = len(lines) - 2
    if rows <= MOST_ROWS:
        return table[0]
    return "\n".join([f'??? example "The table: {rows} rows"', "", *(f"    {line}" for line in lines), ""])


def inside(target: str, folder: str) -> str:
    """Where a link of a page in `folder` (from the root) leads on the site."""
    whole = posixpath.normpath(posixpath.join(folder, target))
    if whole in OUTSIDE:
        return OUTSIDE[whole]
    if whole.startswith("docs/"):
        return whole.removeprefix("docs/")
    return f"files/{whole}"


def linked_files() -> list[Path]:
    """The files outside docs/ that pages link to."""
    pages = [(ROOT / name, "") for name in OUTSIDE] + [
        (path, "docs") for path in (ROOT / "docs").glob("*.md")
    ]
    found = set()
    for page, folder in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            whole = posixpath.normpath(posixpath.join(folder, target))
            if whole not in OUTSIDE and not whole.startswith("docs/") and (ROOT / whole).is_file():
                found.add(ROOT / whole)
    return sorted(found)


def check_names(text: str) -> None:
    """Fail the build where a public name has no place in the page on the API.

    Raises:
        PluginError: some are missing.
    """
    described = set(re.findall(r"^::: tgdsurgery\.(\w+)$", text, re.MULTILINE))
    if missing := sorted(set(tgdsurgery.__all__) - described):
        raise PluginError(f"docs/api.md lacks {', '.join(missing)}.")
