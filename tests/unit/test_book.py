"""The book's parts: which notebook becomes a page, what readers see of it, and pages that agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from minisearch import book
from minisearch.errors import InputError
from minisearch.runs import page_cell
from minisearch.worker import cell_folder

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.py"))


def page(name: str) -> str:
    return (ROOT / "book" / name).read_text(encoding="utf-8")


# --- which run becomes the page -------------------------------------------------------------


def leave_run(source: str, mode: str = "page", **values) -> Path:
    """What the runner leaves of a page run of chapter 01_tiny."""
    folder = cell_folder(page_cell("01_tiny", **values))
    folder.mkdir(parents=True)
    digest = book.hashlib.sha256(source.encode()).hexdigest()
    (folder / "run.json").write_text(json.dumps({"mode": mode, "source_sha256": digest}))
    return folder


def test_the_page_is_the_run_of_the_same_text(project: Path) -> None:
    path = project / "chapters" / "01_tiny.py"
    source = path.read_text()
    assert book.find_run(source, "toy") is None
    folder = leave_run(source, profile="toy")
    assert book.find_run(source, "toy") == folder
    assert book.find_run(source, "smoke") is None
    path.write_text(source + "\n# changed\n")
    assert book.find_run(path.read_text(), "toy") is None


def test_a_grid_run_is_no_page(project: Path) -> None:
    source = (project / "chapters" / "01_tiny.py").read_text()
    leave_run(source, mode="grid", profile="toy")
    assert book.find_run(source, "toy") is None


def test_a_run_with_other_parameters_is_no_page(project: Path) -> None:
    source = (project / "chapters" / "01_tiny.py").read_text()
    leave_run(source, profile="toy", seed=7)
    leave_run(source, profile="toy", rate=0.25)
    assert book.find_run(source, "toy") is None


# --- what readers see -----------------------------------------------------------------------


def view(*cells: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return book.page_view(nbformat.v4.new_notebook(cells=list(cells))).cells


def code(source: str, **metadata) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def test_solutions_are_folded_and_markers_dropped() -> None:
    source = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n\n\nf(1)"
    (cell,) = view(code(source, mystnb={"figure": {"name": "fig-a"}}))
    assert cell.source == "def f(x):\n    return x\n\n\nf(1)"
    assert "hide-input" in cell.metadata.tags
    assert cell.metadata.mystnb.code_prompt_show == "Show a solution"
    assert cell.metadata.mystnb.figure.name == "fig-a"


def test_hidden_tests_leave_no_trace() -> None:
    hidden = "### BEGIN HIDDEN TESTS\nassert secret(2) == 4\n### END HIDDEN TESTS"
    cells = view(code(f"visible = 1\n{hidden}\nafter = 2"), code(hidden), code(""))
    assert [cell.source for cell in cells] == ["visible = 1\nafter = 2", ""]


def test_injected_parameters_are_hidden_and_the_rest_is_untouched() -> None:
    injected, plain, text = view(
        code('profile = "toy"', tags=["injected-parameters"]),
        code("x = 1  ### not a marker", tags=["nbval-check-output"]),
        nbformat.v4.new_markdown_cell("### BEGIN SOLUTION"),
    )
    assert injected.metadata.tags == ["injected-parameters", "hide-cell"]
    assert plain.metadata.tags == ["nbval-check-output"]
    assert plain.source == "x = 1  ### not a marker"
    assert text.source == "### BEGIN SOLUTION"


def test_unknown_profile() -> None:
    with pytest.raises(InputError, match="option --profile: found 'tiny'"):
        book.build("tiny")


# --- pages that agree with the code and with each other -------------------------------------


def test_the_plan_links_chapters_that_exist(project: Path) -> None:
    (project / "book").mkdir()
    row = {"title": "Tiny", "builds": "nothing", "cite": "x", "arxiv": "0000.00000"}
    chapters = [{"file": "01_tiny", **row}, {"file": "02_later", **row}]
    (project / "book" / "plan.yaml").write_text(
        yaml.safe_dump([{"part": "P", "chapters": chapters}])
    )
    table = book.chapter_table()
    assert "[1 Tiny](../chapters/01_tiny.py)" in table
    assert "| 2 Tiny |" in table


def test_the_plan_cites_what_the_bibliography_holds() -> None:
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}", page("references.bib"), re.S)
    bibliography = dict(entries)
    assert len(entries) == len(bibliography), "a key stands twice"
    rows = [row for part in yaml.safe_load(page("plan.yaml")) for row in part["chapters"]]
    assert len(rows) == 11
    for row in rows:
        assert f"eprint = {{{row['arxiv']}}}" in bibliography[row["cite"]]


def test_every_page_and_chapter_stands_in_the_table_of_contents() -> None:
    text = page("_toc.yml")
    files = re.findall(r"(?:file|root): (\S+)", text)
    pages = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    assert sorted(files) == sorted(pages + [f"chapters/{path.stem}" for path in CHAPTERS])
    planned = [
        row["file"] for part in yaml.safe_load(page("plan.yaml")) for row in part["chapters"]
    ]
    assert {path.stem for path in CHAPTERS} <= set(planned)


def test_the_sidebar_has_the_number_and_name_of_the_plan() -> None:
    plan = [row for part in yaml.safe_load(page("plan.yaml")) for row in part["chapters"]]
    names = {f"chapters/{row['file']}": f"{int(row['file'][:2])} {row['title']}" for row in plan}
    toc = [row for part in yaml.safe_load(page("_toc.yml"))["parts"] for row in part["chapters"]]
    titles = {row["file"]: row.get("title") for row in toc if row["file"] in names}
    assert len(titles) == len(CHAPTERS)
    assert titles == {file: names[file] for file in titles}


def test_every_data_package_is_credited() -> None:
    pins = (ROOT / "requirements-assets.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([\w-]+)==", pins, re.M)
    credited = page("credits.md")
    assert names
    assert [name for name in names if f"`{name}`" not in credited] == []


def test_the_arithmetic_of_the_scaling_page() -> None:
    text = page("scaling.md")
    vocabulary, width, layers = 21_128, 768, 12
    parameters = (vocabulary + 514) * width + 2 * width + layers * (12 * width**2 + 13 * width)
    expected = [
        f"{parameters / 1e6:.1f} M",
        f"{16 * parameters / 1e9:.2f} GB",
        f"{32 * parameters / 1e9:.2f} GB",
    ]
    for items in (6_634_118, 18_605_582):
        expected += [
            f"{items:,}",
            f"{4 * items * width / 1e9:.1f} GB",
            f"{2 * items * width / 1e9:.1f} billion",
        ]
    assert [figure for figure in expected if figure not in text] == []


def test_the_formula_of_the_scaling_page_counts_a_bert() -> None:
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=90,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == (90 + 512 + 2) * 16 + 2 * 16 + 2 * (12 * 16**2 + 13 * 16)


def test_terms_used_in_chapters_are_explained() -> None:
    glossary = re.findall(r"```\{glossary\}\n(.*?)```", page("glossary.md"), re.S)
    terms = {line.lower() for block in glossary for line in block.splitlines() if line[:1].strip()}
    assert {"bm25", "dual encoder", "verdict", "precondition"} <= terms
    for path in CHAPTERS:
        used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", path.read_text(encoding="utf-8"))
        assert {term.lower() for term in used} <= terms
