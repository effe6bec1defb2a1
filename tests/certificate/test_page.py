"""The page: what people see, in a browser without a network, whatever names the files have."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tests.certificate.test_certify import Files

HOSTILE = (
    "<script>alert(1)</script>",
    "\x1b[2Jclear",
    "a\u202egnp.exe",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;",
    "new\nline",
    "x" * 5000,
)


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str | None]] = {}
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " * (tag == "td")

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_an_accepted_network(files):
    task = (lambda net: 0.125, "<=0.25")
    found = files.certify(model=files.net, old_task=task, delta=files["delta.safetensors"])
    seen = Seen(found.to_html())
    assert seen.open == []
    text = " ".join(seen.text.split())
    assert text.index("✓ Accepted") < text.index("1. Description of modifications")
    headings = ["1. Description of modifications", "2. Modification protocol", "3. Impact assessment"]
    assert [text.count(heading) for heading in headings] == [1, 1, 1]
    assert sorted(headings, key=text.index) == headings
    assert "Old task, limit <=0.25 0.125 ✓" in text
    assert "This is not a regulatory statement." in text
    assert all(file.sha256 in text for file in found.files)
    assert found.digest in text
    for layer in files.plan.entries:
        assert f"{layer.layer.name} {layer.layer.type} {layer.layer.channels} {layer.trainable}" in text


def test_a_network_that_is_not_accepted(files):
    files.tuned["3.weight"][0, 3] *= -1
    files.write("tuned.pt", files.tuned)
    text = " ".join(Seen(files.certify().to_html()).text.split())
    assert "✗ Not accepted" in text
    assert "Accepted " not in text
    assert "3.weight: 9 of 144 frozen entries changed, in channels 0." in text
    assert "3.weight changed 1x16x3x3 float32 144 9 0" in text


def test_nothing_is_loaded(files):
    page = files.certify().to_html()
    seen = Seen(page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(seen.tags)
    assert not {"src", "href", "srcset"} & seen.attributes.keys()
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'; style-src 'unsafe-inline'" in seen.attributes["content"]


def test_names_from_files_are_text_and_nothing_else(files):
    plain = Seen(files.certify().to_html())
    for name in HOSTILE:
        files.tuned[name] = torch.zeros(1)
    torch.save(files.tuned, files["tuned.pt"])
    page = files.certify().to_html()
    seen = Seen(page)
    assert set(seen.tags) - {"ul", "li"} == set(plain.tags) - {"ul", "li"}
    assert seen.attributes.keys() == plain.attributes.keys()
    assert all(character.isprintable() or character == "\n" for character in page)
    for shown in (
        "<script>alert(1)</script>",
        r"\x1b[2Jclear",
        r"a\u202egnp.exe",
        "{{ 7 * 7 }}",
        "&lt;b&gt;",
        r"new\nline",
    ):
        assert f"{shown} was added." in seen.text or shown in seen.text
    assert "x" * 3000 not in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1100])
def test_a_browser_shows_it_whole(files, scheme, width):
    """Nothing sticks out of the page, no error is logged, and the verdict can be read against its ground."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("needs /usr/bin/chromium")
    files["page.html"].write_text(files.certify().to_html(), encoding="utf-8")
    with api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        logged, asked = [], []
        page.on("console", lambda message: logged.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(files["page.html"].as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.inner_text(".verdict strong") == "✓ Accepted"
        assert page.locator("h2").count() == 3
        browser.close()
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    assert logged == []
    assert asked == [files["page.html"].as_uri()]
