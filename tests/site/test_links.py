"""The pages as files: every link leads somewhere, every picture is described."""

from __future__ import annotations

import functools
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
CHAPTERS = [path.stem for path in sorted((ROOT / "chapters").glob("[0-9][0-9]_*.py"))]


@functools.cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def pages(site: Path) -> list[Path]:
    found = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    assert len(found) > 10
    return found


@functools.cache
def anchors(path: Path) -> set[str]:
    return {node[key] for key in ("id", "name") for node in soup(path).select(f"[{key}]")}


def test_every_internal_link_and_anchor_resolves(site: Path) -> None:
    broken, checked = [], 0
    for page in pages(site):
        for node in soup(page).find_all(["a", "link", "script", "img"]):
            url = urlsplit(node.get("href") or node.get("src") or "")
            if url.scheme or url.netloc or not (url.path or url.fragment):
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            checked += 1
            if not target.exists():
                broken.append((page.name, url.path))
            elif url.fragment and target.suffix == ".html":
                found = unquote(url.fragment) in anchors(target)
                broken += [] if found else [(page.name, f"{url.path}#{url.fragment}")]
    assert checked > 500
    assert broken == []


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = []
    for page in pages(site):
        for node in soup(page).select("script[src], img[src], iframe[src], link[rel=stylesheet]"):
            url = node.get("src") or node.get("href")
            if url.startswith(("http:", "https:", "//")):
                loaded.append((page.name, url))
        assert "unpkg.com" not in page.read_text(encoding="utf-8"), page
    assert loaded == []


def test_every_picture_is_described(site: Path) -> None:
    images = [(page.name, node) for page in pages(site) for node in soup(page).find_all("img")]
    assert images
    assert [
        (name, node["src"][:60]) for name, node in images if not node.get("alt", "").strip()
    ] == []


def test_every_figure_has_a_caption(site: Path) -> None:
    bare = [
        (page.name, str(figure)[:80])
        for page in pages(site)
        for figure in soup(page).find_all("figure")
        if not (figure.figcaption and figure.figcaption.get_text(strip=True))
    ]
    assert bare == []


def test_every_page_has_the_icon(site: Path) -> None:
    for page in pages(site):
        if page == site / "index.html":
            continue  # it only sends on to the first page
        icon = soup(page).select_one("link[rel~=icon]")
        assert icon, page
        assert (page.parent / icon["href"]).resolve() == site / "_static" / "favicon.svg"


def test_terms_lead_to_the_glossary(site: Path) -> None:
    terms = {node["id"] for node in soup(site / "book" / "glossary.html").select("dt[id]")}
    links = [node for page in pages(site) for node in soup(page).select('a[href*="#term-"]')]
    assert len(terms) > 50
    assert len(links) > 10
    assert {node["href"].partition("#")[2] for node in links} <= terms


def test_generated_parts_are_there(site: Path) -> None:
    texts = [soup(page).get_text() for page in pages(site)]
    assert not any("% generated" in text for text in texts)
    assert not any("|—" in text or "|--" in text for text in texts), "a table that stayed text"
    table = soup(site / "book" / "intro.html").select_one("article table")
    assert "IG-Search" in table.get_text()
    for chapter in CHAPTERS:
        assert table.select(f'a[href="../chapters/{chapter}.html"]'), chapter
        scoreboard = soup(site / "book" / "scoreboard.html").select_one("article")
        assert scoreboard.select(f'a[href="../chapters/{chapter}.html"]'), chapter


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_offers_its_notebook_and_source(site: Path, chapter: str) -> None:
    page = site / "chapters" / f"{chapter}.html"
    links = {
        a.get("title") or a.get_text(strip=True): a["href"]
        for a in soup(page).select(".article-header-buttons a.dropdown-item")
    }
    downloads = [
        page.parent / url for url in links.values() if "_sources/" in url and "://" not in url
    ]
    assert sorted(path.suffix for path in downloads) == [".ipynb", ".py"]
    notebook = nbformat.read(next(p for p in downloads if p.suffix == ".ipynb"), as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 'find_spec("minisearch")' in code[0].source
    assert any(cell.outputs for cell in code[1:]), "the download is not executed"
    assert not any("### BEGIN" in cell.source for cell in code)
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)
    addresses = " ".join(links.values())
    assert f"/edit/main/chapters/{chapter}.py" in addresses
    assert f"/blob/gh-pages/_sources/chapters/{chapter}.ipynb" in addresses
    assert f"urlpath=lab/tree/chapters/{chapter}.py" in addresses
