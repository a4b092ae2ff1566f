"""Finding chapters, reading their parameters, importing their definitions, making notebooks."""

from __future__ import annotations

import pickle
import sys

import pytest

from minisearch import chapters
from minisearch.errors import InputError

DEFINITIONS = '''\
import math
from dataclasses import dataclass

LIMIT: int = 3
NAMES = ("a", "b")
left, RIGHT = 1, 2
CALLED = print("must not run")
lower = 1
LIMITS = {"pi": math.pi}
raise RuntimeError("a statement ran")


# %%
@dataclass
class Point:
    """A point."""

    x: int = LIMIT


def double(value: int) -> int:
    return 2 * value


print("must not run either")
'''


@pytest.fixture
def tiny(write_chapter):
    write_chapter("01_tiny", DEFINITIONS)
    yield "01_tiny"
    sys.modules.pop("minisearch_chapter_01_tiny", None)


@pytest.mark.parametrize("name", ["01", "1", "tiny", "01_tiny", "chapters/01_tiny.py"])
def test_a_chapter_has_a_number_and_a_name(project, name):
    assert chapters.find(name) == project / "chapters" / "01_tiny.py"


def test_an_unknown_chapter_is_an_error_with_a_suggestion(project):
    with pytest.raises(InputError, match=r"chapter: found '01_tinny'.*did you mean '01_tiny'"):
        chapters.find("01_tinny")


def test_chapters_come_in_the_order_of_the_book(write_chapter):
    write_chapter("10_last", "")
    write_chapter("02_next", "")
    write_chapter("notes", "")
    assert [path.stem for path in chapters.chapter_paths()] == ["01_tiny", "02_next", "10_last"]


def test_parameters_have_types_defaults_and_comments(project):
    found = chapters.parameters("tiny")
    assert list(found)[:5] == ["profile", "seed", "world_seed", "init_seed", "arms"]
    assert found["rate"] == chapters.Parameter("rate", float, 0.5, "a number")
    assert found["loud"] == chapters.Parameter("loud", bool, False, "a switch")


@pytest.mark.parametrize(
    "line", ["rate = 0.5", "rate: float = f()", "rate: int = 0.5", "rate: list = []", "rate: float"]
)
def test_a_parameter_that_is_not_a_typed_literal_is_an_error(project, line):
    path = project / "chapters" / "01_tiny.py"
    path.write_text(path.read_text().replace("rate: float = 0.5", line))
    with pytest.raises(InputError, match=r"01_tiny.py, parameters cell: found rate.*literal"):
        chapters.parameters("tiny")


def test_two_parameters_cells_are_an_error(write_chapter):
    write_chapter("01_tiny", '\n# %% tags=["parameters"]\nmore: int = 1\n')
    with pytest.raises(InputError, match="found 2 cells tagged parameters; expected one"):
        chapters.parameters("tiny")


def test_values_are_checked_against_the_parameters(project):
    assert chapters.checked_parameters("01", {"rate": 1, "seed": 7}) == {"rate": 1.0, "seed": 7}
    with pytest.raises(InputError, match=r"chapter 01_tiny: found 'raet'.*did you mean 'rate'"):
        chapters.checked_parameters("01", {"raet": 1})
    for name, value in {"rate": "x", "seed": 1.5, "loud": 1, "data": 3, "world_seed": True}.items():
        with pytest.raises(InputError, match=rf"parameter {name}: found {value!r} .*pass "):
            chapters.checked_parameters("01", {name: value})


def test_load_executes_definitions_and_nothing_else(tiny, capsys):
    module = chapters.load("tiny")
    assert module.LIMIT == 3
    assert module.NAMES == ("a", "b")
    assert module.LIMITS["pi"] == pytest.approx(3.14159, abs=1e-5)
    assert module.double(4) == 8
    assert module.Point().x == 3
    assert not {"CALLED", "lower", "left", "RIGHT", "seed"} & vars(module).keys()
    assert capsys.readouterr().out == ""


def test_a_loaded_class_pickles_and_keeps_its_source(tiny):
    import inspect

    module = chapters.load("tiny")
    assert module.__name__ == "minisearch_chapter_01_tiny"
    assert pickle.loads(pickle.dumps(module.Point(5))) == module.Point(5)
    assert inspect.getsource(module.double).startswith("def double(value: int)")


def test_load_again_only_when_the_text_has_changed(tiny, project):
    first = chapters.load("tiny")
    assert chapters.load("01") is first
    path = project / "chapters" / "01_tiny.py"
    path.write_text(path.read_text().replace("2 * value", "3 * value"))
    assert chapters.load("tiny").double(1) == 3


def test_a_chapter_that_cannot_be_loaded_is_not_left_half_loaded(write_chapter):
    write_chapter("01_tiny", "import no_such_module\n")
    with pytest.raises(ModuleNotFoundError):
        chapters.load("tiny")
    assert "minisearch_chapter_01_tiny" not in sys.modules


def test_a_page_has_all_cells_and_a_grid_only_what_is_measured(project):
    page, grid = (chapters.to_notebook("tiny", mode) for mode in ("page", "grid"))
    assert [cell.cell_type for cell in page.cells] == ["markdown", "code", "code", "code"]
    assert [cell.cell_type for cell in grid.cells] == ["code", "code"]
    assert not [cell for cell in grid.cells if "page-only" in cell.metadata.tags]
    assert page.metadata.kernelspec.name == "python3"
    assert page.metadata.minisearch.source_sha256 == chapters.source_hash(chapters.find("01"))


def test_cells_keep_their_ids(project):
    page, grid = (chapters.to_notebook("tiny", mode) for mode in ("page", "grid"))
    assert [cell.id for cell in page.cells] == [f"01_tiny-{number:03d}" for number in range(4)]
    assert [cell.id for cell in grid.cells] == ["01_tiny-001", "01_tiny-002"]


def test_parameters_are_injected_after_their_cell(project):
    notebook = chapters.to_notebook("tiny", "page", {"rate": 2, "data": "a'b"})
    assert notebook.cells[2].metadata.tags == ["injected-parameters"]
    values: dict = {}
    exec(notebook.cells[2].source, values)
    assert (values["rate"], values["data"]) == (2.0, "a'b")
    with pytest.raises(InputError, match="raet"):
        chapters.to_notebook("tiny", "page", {"raet": 2})
