"""The report's page in a real browser: what a reader clicks, types and sees."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.report.test_content import NETWORK, hostile
from tgdsurgery import channel_map, plan_tgd
from tgdsurgery.cli.report import content_of
from tgdsurgery.report.render import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Opened:
    """A page, what it asked the network for, and what went wrong in it."""

    def __init__(self, browser: Browser, path: Path, scheme: str = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda one: self.faults.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda one: self.faults.append(str(one)))
        self.page.on("dialog", lambda one: (self.faults.append(one.message), one.dismiss()))
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#map .heatmaplayer")

    def classed(self, name: str) -> set[str]:
        """Names of the layers whose row has this class."""
        rows = self.page.locator(f"#list li.{name}")
        return {rows.nth(n).get_attribute("title") or "" for n in range(rows.count())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "browser_net.py").write_text(NETWORK)
    found: dict[str, object] = {}
    exec(NETWORK, found)
    net = found["Net"]()  # type: ignore[operator]
    torch.save(net.state_dict(), folder / "base.pt")
    with torch.no_grad():
        net.left.weight[3] *= 1.5
    torch.save(net.state_dict(), folder / "tuned.pt")
    model = f"{folder / 'browser_net.py'}:Net"
    content = content_of(model, folder / "tuned.pt", folder / "base.pt", (), 0.3, {"right": 0.6})
    write_page(content, folder / "report.html")
    return folder


@pytest.fixture
def opened(browser: Browser, made: Path) -> Iterator[Opened]:
    found = Opened(browser, made / "report.html")
    yield found
    assert found.faults == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in found.asked)
    found.page.close()


def tuned(folder: Path) -> torch.nn.Module:
    found: dict[str, object] = {}
    exec(NETWORK, found)
    net: torch.nn.Module = found["Net"]()  # type: ignore[operator]
    net.load_state_dict(torch.load(folder / "tuned.pt", weights_only=True))
    return net


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.55, 1.0])
def test_the_slider_shows_the_share_of_the_plan(opened: Opened, made: Path, phi: float) -> None:
    opened.page.evaluate(
        "value => { const slider = document.getElementById('phi'); slider.value = value;"
        " slider.dispatchEvent(new Event('input')); }",
        phi,
    )
    plan = plan_tgd(tuned(made), phi=phi, overrides={"right": 0.6})
    filters = [entry for entry in plan.entries if entry.layer.role == "filter"]
    shown = opened.page.inner_text("#share")
    assert shown.startswith(f"{100 * plan.share:.1f} % of all parameters trainable")
    assert f"{sum(entry.trainable for entry in filters)} of" in shown
    for entry in plan.entries:
        row = opened.page.locator(f"#list li[title='{entry.layer.name}'] .count")
        assert row.inner_text() == f"{entry.trainable} / {entry.layer.channels}"


def test_a_click_on_a_layer_shows_who_feeds_it_and_who_reads_it(opened: Opened, made: Path) -> None:
    wiring = channel_map(tuned(made))
    for name in wiring.consumers:
        opened.page.click(f"#list li[title='{name}']")
        feeds = {p.layer for one in wiring.producers(name) for p in one}
        reads = {
            c for c in wiring.consumers if any(p.layer == name for one in wiring.producers(c) for p in one)
        }
        assert opened.classed("reads") == feeds
        assert opened.classed("feeds") == reads
        assert opened.page.locator("#arcs path.reads").count() == len(feeds)
        assert opened.page.inner_text("#detail h3") == name


def test_the_list_is_searched_and_walked_by_keys(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("T")  # in left, right and first and last
    assert page.inner_text("#found").startswith("4 of 6")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail h3") == "first"
    page.keyboard.press("Escape")
    assert page.inner_text("#found") == "6 layers"
    page.focus("#list")
    page.keyboard.press("End")
    assert page.inner_text("#detail h3") == "last"
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#detail h3") == "up"


def test_a_click_on_the_map_chooses_a_layer(opened: Opened) -> None:
    area = opened.page.locator("#map .nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box
    place = box["x"] + box["width"] / 2, box["y"] + box["height"] * 4.5 / 6  # up, the fifth of six
    opened.page.mouse.move(*place)
    expect(opened.page.locator("#map .hovertext")).to_contain_text("up")
    opened.page.mouse.click(*place)
    expect(opened.page.locator("#detail h3")).to_have_text("up")


def test_what_moved_can_be_seen(opened: Opened) -> None:
    opened.page.click("#show-moved")
    assert opened.page.get_attribute("#show-moved", "aria-pressed") == "true"
    shown = opened.page.evaluate("document.getElementById('map').data[0].z.map(row => Math.max(...row))")
    assert [round(value, 6) for value in shown] == [0, 0.5, 0, 0, 0]  # first, left, right, up, last


def test_dark_is_dark(browser: Browser, made: Path) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        found = Opened(browser, made / "report.html", scheme)
        colour = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
        assert (brightness < 200) == dark
        assert found.faults == []
        found.page.close()


def test_names_run_no_code(browser: Browser, tmp_path: Path) -> None:
    write_page(hostile(), tmp_path / "report.html")
    found = Opened(browser, tmp_path / "report.html")
    assert found.page.inner_text("#detail h3") == hostile().layers[0].name
    assert found.page.locator("img").count() == 0
    assert found.faults == []
    found.page.close()
