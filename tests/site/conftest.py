"""The built site, a server for it, and a browser, once for all tests of this folder."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["_config.yml", "book", "chapters", "src/minisearch/book.py", "src/minisearch/plots.py"]
# Without a sandbox of its own (containers) and without asking anybody for anything.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


def newest(names: list[str]) -> float:
    paths = [p for name in names for p in (ROOT / name, *(ROOT / name).rglob("*"))]
    return max(path.stat().st_mtime for path in paths if path.is_file())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`_build/html` where it is newer than its sources, else a site built from smoke runs."""
    from minisearch import book, runs
    from minisearch.chapters import chapter_paths
    from minisearch.storage import build_dir

    built = build_dir() / "html"
    if (built / "index.html").is_file() and (built / "index.html").stat().st_mtime > newest(
        SOURCES
    ):
        return built
    cells = [runs.page_cell(path.stem, profile="smoke") for path in chapter_paths()]
    for result in runs.reproduce(cells, 1, "page"):
        assert result.failure is None, result.failure
    return book.build("smoke", output=tmp_path_factory.mktemp("site") / "html")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The address of a plain static server of the site on this machine."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A headless Chromium; tests that need it are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()
