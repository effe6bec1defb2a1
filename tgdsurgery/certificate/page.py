"""The certificate's page: a template filled in. Names come from files that anybody may have written."""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files

from tgdsurgery.core.tables import MAX_MESSAGE, shortened, spans


def render(certificate: object) -> str:
    """The page of a `Certificate`: no markup and no control character in it comes from a file."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 (slow, and seldom needed)

    pages = Environment(autoescape=True, undefined=StrictUndefined, finalize=_printable, trim_blocks=True)
    pages.filters |= {"number": number, "size": _size, "day": _day, "spans": spans}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return pages.from_string(template).render(certificate=certificate)


def number(value: float | None) -> str:
    """A change as text; one that is not a finite number is said to be so."""
    return "not finite" if value is None else f"{value:.3g}"


def _printable(value: object) -> object:
    return shortened(value, MAX_MESSAGE) if isinstance(value, str) else value


def _size(count: int) -> str:
    """Bytes as text: `12.3 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _day(made: str) -> str:
    """A time in UTC as people write it."""
    return datetime.fromisoformat(made).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
