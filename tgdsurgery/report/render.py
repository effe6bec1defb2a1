"""The report as one HTML page that needs no network: data, style, code and the plotting library are in it."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jinja2

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import TGDError
from tgdsurgery.report.content import Content

STEPS = 10**6  # of a score on the page


class ReportError(TGDError):
    """A report that cannot be made."""


def write_page(content: Content, path: Path) -> None:
    """Write the page; the file is replaced only when all is written.

    Args:
        content: what it shows.
        path: the HTML file.

    Raises:
        ReportError: plotly is not installed.
    """
    text = render(content)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(content: Content) -> str:
    """The page as text.

    Raises:
        ReportError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 (optional, and heavy)
    except ImportError as error:
        raise ReportError("A report needs plotly.", 'Try: pip install "tgdsurgery[report]"') from error
    page = files("tgdsurgery.report").joinpath("page")
    parts = {
        name: page.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        parts["page.html"]
    )
    return template.render(
        title=content.title,
        version=version("tgdsurgery"),
        style=parts["page.css"],
        code=parts["page.js"],
        plotly=get_plotlyjs(),
        data=as_json(content),
    )


def as_json(content: Content) -> str:
    """The data of the page, safe inside a script element: scores are whole millionths, rounded down, and -1 for None.

    Rounded down, so that a score below a threshold stays below it.
    """
    data = asdict(content)
    for layer in data["layers"]:
        layer["scores"] = [-1 if score is None else int(score * STEPS) for score in layer["scores"]]
    # "<" could end the script element: a layer may be called </script>.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
