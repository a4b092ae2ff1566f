"""Building a small book: what is written, and what stops a build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minisearch import book, runs
from minisearch.errors import InputError

ROOT = Path(__file__).parents[2]
BODY = """\
print("what the run printed")

# %%
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %%
### BEGIN HIDDEN TESTS
assert double(2) == 4
### END HIDDEN TESTS
"""


@pytest.fixture
def small_book(project: Path, write_chapter) -> Path:
    """A book of a first page and one chapter that was run."""
    write_chapter("01_tiny", BODY)
    (project / "book" / "_static").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", project)
    shutil.copy(ROOT / "book" / "references.bib", project / "book")
    for name in ("favicon.svg", "custom.css", "figure.js"):
        shutil.copy(ROOT / "book" / "_static" / name, project / "book" / "_static")
    row = {
        "file": "01_tiny",
        "title": "Tiny",
        "builds": "little",
        "cite": "plan",
        "arxiv": "2605.28354",
    }
    (project / "book" / "plan.yaml").write_text(json.dumps([{"part": "One", "chapters": [row]}]))
    (project / "book" / "intro.md").write_text(
        "# First\n\n% generated: chapters\n\n```{bibliography}\n```\n"
    )
    (project / "book" / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n  - file: chapters/01_tiny\n"
    )
    assert runs.run_cell(runs.page_cell("01_tiny", profile="smoke")).status == "ran"
    return project


@pytest.mark.slow
def test_a_book_is_built_from_its_runs_or_not_at_all(small_book: Path) -> None:
    site = book.build("smoke")
    assert site == small_book / "_build" / "html"
    page = (site / "chapters" / "01_tiny.html").read_text()
    assert "what the run printed" in page
    assert "Show a solution" in page
    assert "HIDDEN TESTS" not in page
    assert "BEGIN SOLUTION" not in page
    assert "assert" not in page
    assert "THEBE_JS_URL" not in page
    assert '<a class="reference internal" href="../chapters/01_tiny.html">' in (
        site / "book" / "intro.html"
    ).read_text().replace('"std std-doc"', "")
    assert 'rel="icon" href="data:,"' in (site / "index.html").read_text()
    assert not list((small_book / "_build").glob(".site-*"))

    chapter = small_book / "chapters" / "01_tiny.py"
    chapter.write_text(chapter.read_text() + "\n# another text\n")
    with pytest.raises(InputError, match=r"no smoke page run of this text of 'A tiny chapter'"):
        book.build("smoke")
    assert "what the run printed" in (site / "chapters" / "01_tiny.html").read_text()
    with pytest.raises(InputError, match="no toy page run"):
        book.build("toy", output=small_book / "elsewhere")
    assert not (small_book / "elsewhere").exists()
    assert not list((small_book / "_build").glob(".site-*"))
