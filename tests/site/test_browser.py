"""The pages in a browser: desktop and phone, light and dark, search, and the interactive chart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minisearch.plots import interactive_lines

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
STATIC = ROOT / "book" / "_static"
WIDTHS = {"desktop": 1280, "phone": 390}


def open_page(browser, width: int, address: str = "", **options):
    """A fresh page that collects complaints, and requests that leave `address`, in `page.bad`."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.bad = []
    page.on("console", lambda m: m.type in ("error", "warning") and page.bad.append(m.text))
    page.on("pageerror", lambda error: page.bad.append(str(error)))
    # Aborted is what this test does by moving on while a page's icon is on its way.
    page.on(
        "requestfailed",
        lambda r: r.failure == "net::ERR_ABORTED" or page.bad.append(f"failed {r.url} {r.failure}"),
    )
    page.on("response", lambda r: r.status >= 400 and page.bad.append(f"{r.status} {r.url}"))
    home = (address, "data:", "blob:", "file:")
    page.on("request", lambda r: r.url.startswith(home) or page.bad.append(f"external {r.url}"))
    return page


@pytest.mark.parametrize("screen", WIDTHS)
def test_every_page_is_clean(browser, site: Path, address: str, screen: str) -> None:
    page = open_page(browser, WIDTHS[screen], address)
    page.goto(address)  # sends on to the first page
    page.wait_for_url("**/book/intro.html")
    names = {str(p.relative_to(site)) for p in site.rglob("*.html") if "_static" not in p.parts}
    names -= {"index.html"}
    assert len(names) > 10
    for name in sorted(names):
        page.goto(address + name, wait_until="load")
        if page.query_selector(".math"):
            page.wait_for_selector("mjx-container svg", state="attached")
            assert (
                page.evaluate("document.querySelectorAll('mjx-merror, [data-mjx-error]').length")
                == 0
            )
        wide = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{name} scrolls sideways by {wide} pixels on a {screen}"
        assert page.bad == [], name
    page.context.close()


def test_search_finds_a_glossary_entry(browser, address: str) -> None:
    page = open_page(browser, 1280, address)
    page.goto(address + "search.html?q=pigeonhole+bootstrap")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("references" in url for url in found)
    assert page.bad == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_readers_colour_scheme(browser, address: str, scheme: str) -> None:
    page = open_page(browser, 1280, address, color_scheme=scheme)
    page.goto(address + "book/intro.html")
    page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(n) for n in re.findall(r"\d+", paper)[:3]) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    page.context.close()


# --- the interactive chart, without any site around it --------------------------------------


@pytest.fixture
def chart_page(tmp_path: Path) -> str:
    """The address, on disk, of a page that holds one chart of two lines."""
    rise = ([10, 20, 50], [0.25, 0.5, 0.75], [0.2, 0.4, 0.7], [0.3, 0.6, 0.8])
    chart = interactive_lines(
        {"dense": rise, "BM25": ([10, 50], [0.125, 0.375])},
        "K",
        "R@K",
        "Caption.",
        "Two rising lines.",
    )
    head = f'<link rel="stylesheet" href="{STATIC.as_uri()}/custom.css">'
    script = f'<script defer src="{STATIC.as_uri()}/figure.js"></script>'
    path = tmp_path / "chart.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8>{head}{script}"
        f"<article class=bd-article>{chart._repr_html_()}</article>"
    )
    return path.as_uri()


def test_a_chart_can_be_switched_and_read_out(browser, chart_page: str) -> None:
    page = open_page(browser, 800)
    page.goto(chart_page)
    assert page.locator(".ms-line").count() == 2
    assert not page.locator(".ms-static").is_visible()
    plot, button = page.get_by_role("slider"), page.get_by_role("button", name="dense")
    assert plot.get_attribute("aria-label") == "Two rising lines."

    plot.focus()
    page.keyboard.press("ArrowRight")
    assert plot.get_attribute("aria-valuetext") == "K: 10; dense: 0.25 (0.2 to 0.3); BM25: 0.125"
    page.keyboard.press("End")
    assert plot.get_attribute("aria-valuetext") == "K: 50; dense: 0.75 (0.7 to 0.8); BM25: 0.375"

    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator(".ms-line").count() == 1
    assert page.locator(".ms-readout").inner_text().split("\n")[0].startswith("K: 50")
    assert "dense" not in page.locator(".ms-readout").inner_text()
    page.get_by_role("button", name="BM25").click()
    assert page.locator(".ms-line").count() == 1, "the last line stays"
    button.click()
    assert page.locator(".ms-line").count() == 2
    assert page.bad == []
    page.context.close()


def test_a_chart_follows_pointer_and_finger(browser, chart_page: str) -> None:
    page = open_page(browser, 390, has_touch=True)
    page.goto(chart_page)
    box = page.locator(".ms-plot").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 20, box["y"] + 100)
    assert page.locator(".ms-readout").inner_text().startswith("K: 50")
    page.mouse.move(box["x"] + 60, box["y"] + 120)
    assert page.locator(".ms-readout").inner_text().startswith("K: 10")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 900, "height": 700})
    page.wait_for_function("document.querySelector('.ms-plot svg').clientWidth > 700")
    page.context.close()


def test_without_javascript_a_chart_is_a_picture(browser, chart_page: str) -> None:
    page = open_page(browser, 800, java_script_enabled=False)
    page.goto(chart_page)
    picture = page.locator("img.ms-static")
    assert picture.is_visible()
    assert picture.bounding_box()["width"] > 300
    assert picture.get_attribute("alt") == "Two rising lines."
    page.context.close()


def test_a_broken_chart_stays_a_picture(browser, chart_page: str, tmp_path: Path) -> None:
    path = tmp_path / "chart.html"
    path.write_text(path.read_text().replace('"series": [', '"series": [[', 1))
    page = open_page(browser, 800)
    page.goto(chart_page)
    assert page.locator("img.ms-static").is_visible()
    assert page.locator(".ms-chart").count() == 0
    page.context.close()
