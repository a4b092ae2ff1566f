"""check() for learners; assignment notebooks that nbgrader itself builds from and grades."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from minisearch import chapters, classroom
from minisearch.classroom import build_assignment, check, checks, instructor_notebook
from minisearch.errors import InputError

EXERCISES = '''\
import math
import statistics as unused

LIMIT = 3
print("not a definition")


def floor(value: float) -> int:
    """A definition that another one calls."""
    return math.floor(value)


def half(value: float) -> float:
    """A definition that exercise code calls."""
    return floor(value) / 2


class Elsewhere:
    """A definition that no exercise needs."""


def named_in_the_text() -> None:
    """A definition that an exercise mentions."""


# %% tags=["page-only"]
from minisearch.classroom import check, checks


# %% tags=["train"]
raise RuntimeError("this would train")

# %% [markdown]
# ## Step 1
#
# Prose of another section.

# %%
total = 0

# %% [markdown]
# ## Exercises
#
# The {term}`mean` of a list, not `named_in_the_text`.

# %%
print("a cell between an exercise's text and its answer")

# %% tags=["exercise"] nbgrader={"grade": false, "solution": true, "grade_id": "ch91-ex1"}
def mean(values):
    """The mean; 0 of nothing."""
    ### BEGIN SOLUTION
    return 2 * half(sum(values)) / len(values) if values else 0
    ### END SOLUTION


# %% nbgrader={"grade": true, "points": 2, "grade_id": "ch91-ex1-test", "locked": true}
@checks("ch91-ex1")
def properties(mean):
    yield "the mean of one number is that number", lambda: mean([7]) == 7
    ### BEGIN HIDDEN TESTS
    yield "an empty list has mean 0", lambda: mean([]) == 0
    ### END HIDDEN TESTS


assert check("ch91-ex1", mean)

# %% tags=["exercise"] nbgrader={"grade": false, "solution": true, "grade_id": "ch91-ex2"}
### BEGIN SOLUTION
answer = LIMIT
### END SOLUTION

# %% nbgrader={"grade": true, "points": 1, "grade_id": "ch91-ex2-test", "locked": true}
assert answer == LIMIT

# %% [markdown] nbgrader={"grade": true, "solution": true, "points": 3, "grade_id": "ch91-ex3"}
# Because of the synonyms.
'''


@pytest.fixture
def chapter(write_chapter, monkeypatch):
    monkeypatch.setattr(classroom, "_registered", {})
    write_chapter("91_exercises", EXERCISES)
    yield "91_exercises"
    sys.modules.pop("minisearch_chapter_91_exercises", None)


@pytest.fixture
def properties_of_double(monkeypatch):
    monkeypatch.setattr(classroom, "_registered", {})

    @checks("double")
    def properties(double):
        yield "twice 2 is 4", lambda: double(2) == 4
        yield "twice 5 is 10", lambda: double(5) == 10
        yield "nothing stays nothing", double(0) == 0


# --- check() --------------------------------------------------------------------------------


def test_a_right_answer_passes_and_each_property_is_named(properties_of_double, capsys):
    assert check("double", lambda value: value + value)
    assert capsys.readouterr().out.splitlines() == [
        "✓ twice 2 is 4",
        "✓ twice 5 is 10",
        "✓ nothing stays nothing",
        "double: 3 of 3 properties hold",
    ]


def test_a_wrong_answer_fails_by_property_without_the_answer(properties_of_double, capsys):
    assert not check("double", lambda value: value**2)
    said = capsys.readouterr().out
    assert "✓ twice 2 is 4" in said
    assert "✗ twice 5 is 10: does not hold" in said
    assert "25" not in said


def _raises(value):
    raise ZeroDivisionError("division by zero")


def _leaves(value):
    sys.exit("bye")


def _unwritten(value):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: 4, "twice 2 is 4: raised TypeError: .* takes 0 positional arguments but 1"),
        (_raises, "twice 5 is 10: raised ZeroDivisionError: division by zero"),
        (_leaves, "twice 2 is 4: raised SystemExit: bye"),
        (_unwritten, "twice 2 is 4: not written yet"),
        (7, "the answer is a function: it is of type int"),
    ],
)
def test_an_answer_that_breaks_is_a_failed_property(properties_of_double, capsys, answer, words):
    assert not check("double", answer)
    said = capsys.readouterr().out
    assert re.search(words, said), said


def test_a_property_that_raises_outside_its_lambda_is_named_by_the_one_before(
    properties_of_double, capsys
):
    assert not check("double", lambda value: 2 * value if value else 1 / value)
    assert "✗ what follows (twice 5 is 10): raised ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_an_endless_loop_is_stopped(properties_of_double, capsys, monkeypatch):
    assert classroom.SECONDS < 5
    monkeypatch.setattr(classroom, "SECONDS", 0.5)

    def hopeful(value):
        while value == 5:
            try:
                time.sleep(0.01)
            except Exception:
                continue
        return 2 * value

    started = time.monotonic()
    assert not check("double", hopeful)
    assert time.monotonic() - started < 2
    said = capsys.readouterr().out
    assert "✓ twice 2 is 4" in said
    assert "no answer within 0.5 seconds" in said


def test_check_works_off_the_main_thread(properties_of_double):
    found = []
    thread = threading.Thread(target=lambda: found.append(check("double", lambda v: 2 * v)))
    thread.start()
    thread.join()
    assert found == [True]


def test_check_finds_the_properties_in_the_chapter(chapter, capsys):
    assert check("ch91-ex1", lambda values: sum(values) / max(len(values), 1))
    assert "an empty list has mean 0" in capsys.readouterr().out


def test_an_unknown_exercise_is_an_input_error(chapter):
    with pytest.raises(InputError, match=r"found 'ch91-ex9'; expected ch91-ex1"):
        check("ch91-ex9", len)
    with pytest.raises(InputError, match="one of 01_tiny, 91_exercises"):
        check("ch55-ex1", len)


def test_no_property_at_all_is_no_success(monkeypatch):
    monkeypatch.setattr(classroom, "_registered", {"empty": lambda answer: []})
    assert not check("empty", len)


# --- the two notebooks ----------------------------------------------------------------------


def _sources(path: Path) -> dict[str, str]:
    return {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}


def test_the_instructors_notebook_has_solutions_and_trains_nothing(chapter, tmp_path):
    source, release = build_assignment(chapter, tmp_path / "course")
    assert source == tmp_path / "course" / "source" / chapter / f"{chapter}.ipynb"
    assert release == tmp_path / "course" / "release" / chapter / f"{chapter}.ipynb"
    text = "\n".join(_sources(source).values())
    assert "return 2 * half" in text
    assert "an empty list has mean 0" in text
    assert "def half" in text
    assert "LIMIT = 3" in text
    assert "import math" in text
    assert "def named_in_the_text" in text
    for absent in (
        "would train",
        "not a definition",
        "total = 0",
        "another section",
        "{cite",
        "Elsewhere",
        "unused",
    ):
        assert absent not in text
    assert "The mean of a list, not `named" in text


def test_the_students_notebook_has_stubs_and_no_hidden_tests(chapter, tmp_path):
    cells = _sources(build_assignment(chapter, tmp_path)[1])
    assert cells["ch91-ex1"].endswith("    # YOUR CODE HERE\n    raise NotImplementedError()")
    assert cells["ch91-ex2"] == "# YOUR CODE HERE\nraise NotImplementedError()"
    assert cells["ch91-ex3"] == "YOUR ANSWER HERE"
    assert "the mean of one number" in cells["ch91-ex1-test"]
    assert not any("HIDDEN" in text or "empty list" in text for text in cells.values())


def test_building_twice_gives_the_same_bytes(chapter, tmp_path):
    first = [path.read_bytes() for path in build_assignment(chapter, tmp_path)]
    assert first == [path.read_bytes() for path in build_assignment(chapter, tmp_path)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    ### END SOLUTION\n", "", r"cell ch91-ex1, line 3: found ### BEGIN SOLUTION without"),
        ("    ### BEGIN SOLUTION\n", "", r"cell ch91-ex1, line 4: found ### END SOLUTION"),
        (
            "    ### END HIDDEN TESTS",
            "    ### END SOLUTION",
            r"ch91-ex1-test, line 6: found ### END",
        ),
        ("total = 0", "### BEGIN SOLUTION", r"cell 91_exercises-\d+, line 1: found ### BEGIN"),
        ('"ch91-ex2"', '"ch91-ex1"', r"found grade_id 'ch91-ex1' in two cells"),
        ('"points": 2, ', "", r"cell ch91-ex1-test, nbgrader metadata: found points None"),
        ('"grade_id": "ch91-ex1"', '"grade_id": "a b"', r"found grade_id 'a b'"),
    ],
)
def test_what_an_author_gets_wrong_is_named_and_nothing_is_written(
    chapter, project, tmp_path, old, new, words
):
    path = project / "chapters" / f"{chapter}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        build_assignment(chapter, tmp_path / "course")
    assert not (tmp_path / "course").exists()


def test_a_chapter_without_exercises_is_an_input_error(project, tmp_path):
    with pytest.raises(InputError, match=r"01_tiny\.py: found no exercise"):
        build_assignment("01_tiny", tmp_path / "course")


# --- nbgrader itself ------------------------------------------------------------------------


def _nbgrader(course: Path, *arguments: str) -> None:
    places = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    private = {name: str(course / ".jupyter" / name) for name in places}
    tools = Path(
        sys.executable
    ).parent  # nbgrader calls alembic, as an activated environment lets it
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments, "--CourseDirectory.root=" + str(course)],
        env={**os.environ, **private, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        cwd=course,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _scores(course: Path, assignment: str) -> dict[str, tuple[float, float]]:
    """Automatic points and their maximum, by student."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        found = {}
        for submission in gradebook.assignment_submissions(assignment):
            grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
            points = sum(grade.auto_score or 0 for grade in grades)
            found[submission.student.id] = (points, sum(grade.max_score for grade in grades))
    return found


def _grade(name: str, course: Path) -> dict[str, tuple[float, float]]:
    """Hand in the instructor's, nbgrader's student and our student notebook; grade all three."""
    source, release = build_assignment(name, course)
    ours = course / "ours.ipynb"
    shutil.copy(release, ours)
    _nbgrader(course, "generate_assignment", source.stem, "--force")
    assert _sources(release) == _sources(ours), "nbgrader's own student copy differs from ours"
    for student, notebook in (("teacher", source), ("untouched", release), ("ours", ours)):
        folder = course / "submitted" / student / source.stem
        folder.mkdir(parents=True)
        shutil.copy(notebook, folder / source.name)
    _nbgrader(course, "autograde", source.stem)
    return _scores(course, source.stem)


@pytest.mark.slow
def test_nbgrader_grades_the_notebooks(chapter, tmp_path):
    pytest.importorskip("nbgrader", reason="needs the extra `classroom`")
    scores = _grade(chapter, tmp_path / "course")
    automatic, total = 3, 6  # the question in words is graded by hand
    assert scores == {
        "teacher": (automatic, total),
        "untouched": (0, total),
        "ours": (0, total),
    }


REAL = [path.stem for path in chapters.chapter_paths() if "nbgrader=" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_nbgrader_grades_the_books_assignments(name, tmp_path):
    pytest.importorskip("nbgrader", reason="needs the extra `classroom`")
    scores = _grade(name, tmp_path / "course")
    manual = sum(
        cell.metadata.nbgrader.points
        for cell in instructor_notebook(name).cells
        if cell.metadata.get("nbgrader", {}).get("grade") and cell.cell_type == "markdown"
    )
    full = scores["teacher"][1]
    assert scores["teacher"] == (full - manual, full)
    assert scores["untouched"] == scores["ours"] == (0, full)


@pytest.mark.parametrize("name", REAL)
def test_the_books_own_solutions_have_every_property(name, capsys):
    module = chapters.load(name)
    answers = {
        cell.id: [node for node in vars(module) if f"def {node}(" in cell.source]
        for cell in instructor_notebook(name).cells
        if cell.metadata.get("nbgrader", {}).get("solution") and cell.cell_type == "code"
    }
    for exercise, functions in answers.items():
        started = time.monotonic()
        assert check(exercise, getattr(module, functions[-1])), capsys.readouterr().out
        assert time.monotonic() - started < 5
