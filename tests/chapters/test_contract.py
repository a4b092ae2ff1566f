"""What every chapter's source must be like, so that all tools can rely on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
import yaml

from minisearch import chapters
from minisearch.cells import grid_source

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "chapters").glob("*.py"))
TAGS = {
    "parameters", "page-only", "train", "exercise", "check",
    "hide-input", "hide-output", "hide-cell", "remove-cell", "remove-input", "remove-output",
    "nbval-check-output", "nbval-ignore-output", "nbval-skip",
}  # fmt: skip
FIRST = {"profile": "toy", "seed": 1000, "world_seed": 0, "init_seed": 0, "arms": "main"}
MARKER = re.compile(r"^\s*### (BEGIN|END) (SOLUTION|HIDDEN TESTS)\s*$")

pytestmark = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def notebook(path: Path):
    return jupytext.read(path, fmt="py:percent")


def code(path: Path) -> list[str]:
    return [cell.source for cell in notebook(path).cells if cell.cell_type == "code"]


def test_its_name_has_a_number(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert path.stem == chapters.find(path.stem[:2]).stem


def test_one_parameters_cell_typed_and_commented(path):
    found = chapters.parameters(path.stem)
    assert {name: found[name].default for name in list(found)[:5]} == FIRST
    assert list(found)[:5] == list(FIRST)
    assert len(found) <= 12  # profile, seed, and at most ten more
    assert all(parameter.comment for parameter in found.values())


def test_the_kernel_is_named(path):
    kernel = notebook(path).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


def test_tags_are_known(path):
    for cell in notebook(path).cells:
        assert set(cell.metadata.get("tags", [])) <= TAGS, cell.source[:80]


def test_metadata_is_what_jupytext_keeps(path):
    known = {"tags", "mystnb", "nbgrader", "lines_to_next_cell"}  # the last is jupytext's own
    for cell in notebook(path).cells:
        assert cell.metadata.keys() <= known, cell.source[:80]


def test_exercises_are_no_part_of_what_a_grid_measures(path):
    for cell in notebook(path).cells:
        if cell.cell_type == "code" and "nbgrader" in cell.metadata:
            assert "page-only" in cell.metadata.tags, cell.source[:80]


def test_a_grid_cell_needs_nothing_of_the_cells_it_leaves_out(path):
    """A name that only a `page-only` cell imports works on the page and fails in the grid."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    source = grid_source(path.read_text("utf-8"))
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_markers_are_paired_within_their_cell(path):
    for source in code(path):
        open_one = None
        for line in source.splitlines():
            if match := MARKER.match(line):
                begins, kind = match[1] == "BEGIN", match[2]
                assert (open_one is None) if begins else (open_one == kind), source[:200]
                open_one = kind if begins else None
            else:
                assert not re.search(r"#+ *(BEGIN|END) ", line), line
        assert open_one is None, source[:200]


def test_the_table_of_contents_lists_it(path):
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert files.count(f"chapters/{path.stem}") == 1


def test_it_survives_the_way_to_a_notebook_and_back(path, tmp_path):
    command = [sys.executable, "-m", "jupytext", "--test", "--to", "ipynb", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    there = jupytext.writes(notebook(path), fmt="ipynb")
    back = jupytext.reads(
        jupytext.writes(jupytext.reads(there, fmt="ipynb"), fmt="py:percent"), fmt="py:percent"
    )
    before = [(cell.metadata.get("tags"), cell.source) for cell in notebook(path).cells]
    assert [(cell.metadata.get("tags"), cell.source) for cell in back.cells] == before


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bsys\.path\b",
        r"^\s*[!%]\s*pip\b",
        r"\b(filterwarnings|simplefilter)\b",
        r"^%%? ?\w",
        r";\s*$",
    ],
    ids=["sys.path", "pip", "warning filter", "magic", "trailing semicolon"],
)
def test_what_a_chapter_does_not_do(path, pattern):
    for source in code(path):
        assert not re.search(pattern, source, re.M), source[:200]


def test_cells_are_short(path):
    for source in code(path):
        assert len(source.splitlines()) <= 40, source[:200]


def test_labels_begin_with_the_chapter(path):
    """Labels are shared by the whole book, and a repeated one breaks its build."""
    number = path.stem[:2]
    text = "\n".join(cell.source for cell in notebook(path).cells if cell.cell_type == "markdown")
    labels = re.findall(r"^\((\S+)\)=\s*$|^:(?:label|name):\s*(\S+)", text, re.M)
    labels += re.findall(r"^:::+\{exercise(?:-start)?\} *()(\S*)$", text, re.M)
    figures = [c.metadata.get("mystnb", {}).get("figure", {}) for c in notebook(path).cells]
    names = [a or b for a, b in labels if a or b] + [f["name"] for f in figures if "name" in f]
    for name in names:
        assert re.search(rf"(^|-){number}(-|$)|{path.stem[3:]}", name), name


def test_figures_have_a_caption_and_a_text_for_those_who_cannot_see_them(path):
    for cell in notebook(path).cells:
        shown = cell.metadata.get("mystnb", {})
        if "figure" in shown or "image" in shown:
            assert len(shown["figure"]["caption"]) > 40
            assert len(shown["image"]["alt"]) > 20


def test_its_definitions_can_be_loaded(path):
    command = [sys.executable, "-c", f"import minisearch.chapters as c; c.load({path.stem!r})"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
