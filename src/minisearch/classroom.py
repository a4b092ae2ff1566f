"""Exercises: written once in a chapter; `check()` for a learner, notebooks for a course.

A chapter marks its exercises as nbgrader does. A cell whose nbgrader metadata says `solution` holds
the answer between `### BEGIN SOLUTION` and `### END SOLUTION`; the cell after it says `grade` and
`points`, and holds the properties that the answer must have, in one generator::

    @checks("ch01-ex1")
    def properties(recall):
        yield "every positive found gives 1", lambda: recall([[1, 2]], [[1, 2]]) == [1]
        ### BEGIN HIDDEN TESTS
        yield "no positive found gives 0", lambda: recall([[1]], [[2]]) == [0]
        ### END HIDDEN TESTS

    assert check("ch01-ex1", recall)
"""

from __future__ import annotations

import ast
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisearch.chapters import _is_definition, find, load, to_notebook
from minisearch.errors import InputError
from minisearch.storage import atomic_write

if TYPE_CHECKING:
    from nbformat import NotebookNode

SECONDS = 4.5  # a check's time limit, so that a learner waits less than five
STUBS = {"code": "# YOUR CODE HERE\nraise NotImplementedError()", "markdown": "YOUR ANSWER HERE"}
NBGRADER = {"grade": False, "locked": False, "solution": False, "task": False, "schema_version": 3}
INSTRUCTIONS = (
    "Write your answers where a cell says `YOUR CODE HERE`. The cell after each answer tells which "
    "properties it has; grading tries further ones. Cells with definitions from the chapter, and "
    "the checks, are put back as they were before grading."
)

# What must hold, in words that do not give the answer away; and the test, or its value.
Property = tuple[str, Callable[[], object] | bool]
Properties = Callable[[Callable[..., Any]], Iterable[Property]]
_registered: dict[str, Properties] = {}


# --- checks ---------------------------------------------------------------------------------


def checks(exercise: str) -> Callable[[Properties], Properties]:
    """Decorator: the function below it yields the properties of answers to `exercise`.

    Written as `lambda: ...`, a test that fails or raises does not keep the later ones from running.
    """

    def register(properties: Properties) -> Properties:
        _registered[exercise] = properties
        return properties

    return register


def check(exercise: str, function: Callable[..., Any]) -> bool:
    """Print which properties of an exercise `function` has, in under five seconds.

    Args:
        exercise: its id, e.g. "ch01-ex1"; looked up in chapter 01 unless its cell has been run.
        function: the learner's answer.

    Returns:
        whether it has them all.

    Raises:
        InputError: for an id that no chapter has.
    """
    verdicts = list(_verdicts(_properties(exercise), function))
    for description, fault in verdicts:
        print(f"\N{BALLOT X} {description}: {fault}" if fault else f"\N{CHECK MARK} {description}")
    held = sum(not fault for _, fault in verdicts)
    print(f"{exercise}: {held} of {len(verdicts)} properties hold")
    return held == len(verdicts) > 0


def _properties(exercise: str) -> Properties:
    number = re.match(r"ch(\d\d)-", exercise)
    if exercise not in _registered and number:
        load(number[1])
    if exercise not in _registered:
        known = ", ".join(sorted(_registered)) or "one that a chapter states, such as ch01-ex1"
        raise InputError("exercise", repr(exercise), known, "copy the id from the exercise.")
    return _registered[exercise]


class _TooSlow(BaseException):
    """The time is up. No Exception, so that `except Exception` in an answer lets it through."""


def _verdicts(properties: Properties, function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Description and fault ("" for none) of each property; the last one where time ran out."""
    if not callable(function):
        yield "the answer is a function", f"it is of type {type(function).__name__}"
        return
    deadline, name = time.monotonic() + SECONDS, "the answer can be tried"
    tests = iter(properties(function))
    try:
        while True:
            with _alarm(deadline - time.monotonic()):
                name, test = next(tests)
                fault = _fault(test)
            yield name, fault
            name = f"what follows ({name})"
    except StopIteration:
        return
    except _TooSlow:
        yield name, f"no answer within {SECONDS:g} seconds; does a loop never end?"
    except (Exception, SystemExit) as error:
        yield name, _raised(error)


def _fault(test: Callable[[], object] | bool) -> str:
    try:
        return "" if (test() if callable(test) else test) else "does not hold"
    except (Exception, SystemExit) as error:
        return _raised(error)


def _raised(error: BaseException) -> str:
    if isinstance(error, NotImplementedError):
        return "not written yet"
    return f"raised {type(error).__name__}: {error}".rstrip(": ")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise _TooSlow after `seconds`, again and again, in case the code below swallows it.

    Without effect off the main thread, on Windows, and inside one long call of a C function.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- assignments ----------------------------------------------------------------------------


def build_assignment(chapter: str, out: Path) -> tuple[Path, Path]:
    """Write a chapter's exercises as two notebooks, in the folders of an nbgrader course.

    `out/source/<chapter>/<chapter>.ipynb` is the instructor's, with solutions and hidden tests;
    `out/release/<chapter>/<chapter>.ipynb` the student's. Both hold the chapter's exercises and
    the definitions these need, and train nothing. In `out`, the environment activated,
    `nbgrader generate_assignment <chapter> --force` makes the same student's copy and a gradebook.
    Grading runs students' code: do it in a container.

    Returns:
        the paths of the instructor's and the student's notebook.

    Raises:
        InputError: for an unknown chapter or one without exercises, markers that are not in pairs
            or in a cell of another kind, incomplete metadata, or an id used twice.
    """
    import nbformat

    stem, source = find(chapter).stem, instructor_notebook(chapter)
    paths = []
    for kind, notebook in (("source", source), ("release", student_notebook(source))):
        nbformat.validate(notebook)
        paths.append(Path(out) / kind / stem / f"{stem}.ipynb")
        atomic_write(paths[-1], nbformat.writes(notebook) + "\n")
    return paths[0], paths[1]


def instructor_notebook(chapter: str) -> NotebookNode:
    """The exercises of a chapter and the definitions they need, with complete nbgrader metadata.

    Raises:
        InputError: as for `build_assignment`.
    """
    from nbformat.v4 import new_markdown_cell

    file, notebook = find(chapter).name, to_notebook(chapter)
    title = notebook.cells[0].source.partition("\n")[0]
    kept = [new_markdown_cell(f"{title}\n\n{INSTRUCTIONS}", id="heading")]
    section: list[NotebookNode] = []  # since its heading, or since the last exercise
    for cell in notebook.cells:
        _check_markers(cell, file)
        if "nbgrader" in cell.metadata:
            kept += [*section, _graded(cell, file)]
            section = []
            continue
        if cell.cell_type == "markdown":
            if cell.source.startswith(("# ", "## ")):  # no exercise: its prose is left out
                kept += [other for other in section if other.cell_type == "code"]
                section = []
            text = re.sub(r"\{[a-z:]+\}`([^`]+)`", r"\1", cell.source)  # the book's roles
            cell = new_markdown_cell(text, id=cell.id)
        section.append(cell)
    kept += [cell for cell in section if cell.cell_type == "code"]
    if not any(cell.metadata.get("nbgrader", {}).get("solution") for cell in kept):
        raise InputError(file, "no exercise", "a cell with solution true", "name another chapter.")
    ids = [cell.id for cell in kept]
    for name in (name for name in ids if ids.count(name) > 1):
        found, remedy = f"grade_id {name!r} in two cells", "give each cell one of its own."
        raise InputError(f"{file}, nbgrader metadata", found, "it in one", remedy)
    about = {key: notebook.metadata[key] for key in ("kernelspec", "minisearch")}
    notebook.cells, notebook.metadata = _only_needed(kept), type(notebook)(about)
    return notebook


def student_notebook(source: NotebookNode) -> NotebookNode:
    """The instructor's notebook with stubs for solutions and without hidden tests."""
    import copy

    notebook = copy.deepcopy(source)
    for cell in notebook.cells:
        about = cell.metadata.get("nbgrader", {})
        if about.get("solution"):
            stub, marked = STUBS[cell.cell_type], "### BEGIN SOLUTION" in cell.source
            cell.source = _cut(cell.source, "SOLUTION", stub) if marked else stub
        elif about.get("grade"):
            cell.source = _cut(cell.source, "HIDDEN TESTS", "")
    return notebook


def _only_needed(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells of exercises, and of others the definitions that exercises and their prose name.

    Nothing else of the chapter is executed, so that grading trains nothing and starts at once.
    """
    trees = {c.id: ast.parse(c.source) for c in cells if c.cell_type == "code"}
    prose = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    wanted = {"annotations", *re.findall(r"`(\w+)`", prose)}  # annotations: of __future__
    open_ones: list[ast.stmt] = []
    for cell in cells:
        if "nbgrader" in cell.metadata and cell.id in trees:
            wanted |= _names(trees[cell.id])
        elif cell.id in trees:
            open_ones += filter(_is_definition, trees[cell.id].body)
    needed: list[ast.stmt] = []
    while found := [node for node in open_ones if _defined(node) & wanted]:
        needed += found
        open_ones = [node for node in open_ones if node not in found]
        wanted = wanted.union(*map(_names, found))
    for cell in cells:
        if "nbgrader" not in cell.metadata and cell.id in trees:
            _reduce(cell, [node for node in trees[cell.id].body if node in needed])
    return [cell for cell in cells if cell.source]


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _defined(node: ast.stmt) -> set[str]:
    """The names that an import, function, class or assignment gives a meaning to."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    return {name.id for name in stored if isinstance(name.ctx, ast.Store)}


def _reduce(cell: NotebookNode, statements: list[ast.stmt]) -> None:
    """Leave these statements, decorators and all, in a cell, and lock it for grading."""
    lines, parts = cell.source.splitlines(), []
    for node in statements:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        block = isinstance(node, ast.FunctionDef | ast.ClassDef)
        parts.append("\n" * 2 * block + "\n".join(lines[first - 1 : node.end_lineno]))
    cell.source = "\n".join(parts).strip()
    locked = {**NBGRADER, "locked": True, "grade_id": cell.id}
    cell.metadata = type(cell)(nbgrader=locked)


def _graded(cell: NotebookNode, file: str) -> NotebookNode:
    """A cell with nbgrader metadata, completed and checked; its id becomes its grade id."""
    about = {**NBGRADER, **cell.metadata.nbgrader}
    name = about.get("grade_id")
    where = f"{file}, cell {name or cell.id}, nbgrader metadata"
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,64}", name):
        expected = "one of letters, digits, - and _"
        raise InputError(where, f"grade_id {name!r}", expected, 'write "ch01-ex1", say.')
    if about["grade"] and not isinstance(about.get("points"), int | float):
        raise InputError(where, f"points {about.get('points')!r}", "a number", "state the points.")
    cell.id, cell.metadata = name, type(cell)(nbgrader=about)
    return cell


def _check_markers(cell: NotebookNode, file: str) -> None:
    """Refuse markers that are not in pairs, or in a cell that is not of their kind."""
    about, opened, place = cell.metadata.get("nbgrader", {}), "", ""
    fitting = {"SOLUTION": about.get("solution"), "HIDDEN TESTS": about.get("grade")}
    expected = (
        "BEGIN and END in pairs, of SOLUTION in a cell with solution true, of HIDDEN TESTS in one "
        "with grade true"
    )
    for marker in re.finditer(r"### (BEGIN|END) (SOLUTION|HIDDEN TESTS)", cell.source):
        edge, kind = marker.groups()
        line = cell.source.count("\n", 0, marker.start()) + 1
        place = f"{file}, cell {about.get('grade_id', cell.id)}, line {line}"
        if not fitting[kind] or opened != (kind if edge == "END" else ""):
            raise InputError(place, marker[0], expected, "mend the marker or the metadata.")
        opened = kind if edge == "BEGIN" else ""
    if opened:
        found = f"### BEGIN {opened} without its END"
        raise InputError(place, found, expected, f"add ### END {opened}.")


def _cut(source: str, kind: str, stub: str) -> str:
    """Replace what is between a pair of markers, and they, by `stub` at their indentation."""

    def indented(match: re.Match[str]) -> str:
        return "".join(f"{match['indent']}{line}\n" for line in stub.splitlines())

    region = rf"^(?P<indent>[ \t]*)### BEGIN {kind}.*?### END {kind}[^\n]*\n?"
    return re.sub(region, indented, source, flags=re.M | re.S).rstrip("\n")
