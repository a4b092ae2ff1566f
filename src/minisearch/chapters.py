"""Chapters as data: find one, read its parameters, import its definitions, make it a notebook."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from minisearch.errors import InputError, one_of
from minisearch.storage import project_root

_MARK = 'tags=["parameters"'
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a chapter's `parameters` cell: `name: type = default  # comment`."""

    name: str
    type: type
    default: str | int | float | bool
    comment: str

    def checked(self, value: Any) -> str | int | float | bool:
        """`value` in the parameter's type (an int will do for a float).

        Raises:
            InputError: where it is of another type.
        """
        if self.type is float and type(value) is int:
            return float(value)
        if type(value) is not self.type:
            kind = self.type.__name__
            found = f"{value!r} ({type(value).__name__})"
            example = f"-p {self.name} {self.default or 'TEXT'}"
            raise InputError(f"parameter {self.name}", found, kind, f"pass {kind}, as in {example}")
        return cast("str | int | float | bool", value)


def chapter_paths() -> list[Path]:
    """The chapters' files, in the order of the book."""
    return sorted((project_root() / "chapters").glob("[0-9][0-9]_*.py"))


def find(name: str) -> Path:
    """A chapter's file by number ("01"), name ("kuaisearch"), or both ("01_kuaisearch", a path).

    Raises:
        InputError: where there is no such chapter.
    """
    stem = Path(name).stem if name.endswith(".py") else name
    paths = chapter_paths()
    for path in paths:
        number, _, rest = path.stem.partition("_")
        if stem in (path.stem, rest, number, str(int(number))):
            return path
    raise one_of("chapter", name, [path.stem for path in paths])


def source_hash(path: Path) -> str:
    """SHA-256 of a chapter's text, which ties a page to the notebook that was run from it."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def parameters(name: str) -> dict[str, Parameter]:
    """The parameters of a chapter in the order of its `parameters` cell.

    Raises:
        InputError: for an unknown chapter, or a cell that is not `name: type = literal  # why`.
    """
    path = find(name)
    # Without jupytext, whose import takes longer than a command line may.
    blocks = re.split(r"(?m)^# %%(.*)$", path.read_text(encoding="utf-8"))
    cells = [text for head, text in zip(blocks[1::2], blocks[2::2], strict=True) if _MARK in head]
    if len(cells) != 1:
        raise InputError(
            str(path), f"{len(cells)} cells tagged parameters", "one", "tag exactly one cell."
        )
    lines, statements = cells[0].splitlines(), ast.parse(cells[0]).body
    found = [_parameter(path, node, lines[node.lineno - 1]) for node in statements]
    return {parameter.name: parameter for parameter in found}


def _parameter(path: Path, node: ast.stmt, line: str) -> Parameter:
    """One statement of a `parameters` cell; InputError unless `name: type = literal  # why`."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        kind = TYPES.get(ast.unparse(node.annotation))
        comment = line[node.end_col_offset or 0 :].partition("#")[2].strip()
        value = _literal(node.value)
        fits = kind is type(value)
        if kind and fits:
            return Parameter(node.target.id, kind, value, comment)
    expected = "name: str|int|float|bool = literal of that type  # comment"
    raise InputError(f"{path.name}, parameters cell", line, expected, "rewrite that line.")


def _literal(node: ast.expr) -> Any:
    """The value of a literal, None of anything else."""
    with suppress(ValueError):
        return ast.literal_eval(node)
    return None


def checked_parameters(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` in the types that the chapter declares.

    Raises:
        InputError: for a parameter the chapter does not have, or a value of another type.
    """
    known = parameters(name)
    for unknown in values.keys() - known.keys():
        raise one_of(f"parameter of chapter {find(name).stem}", unknown, list(known))
    return {key: known[key].checked(value) for key, value in values.items()}


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.Assign):
        targets: list[ast.expr] = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value:
        targets = [node.target]
    else:
        return False
    named = all(isinstance(target, ast.Name) and target.id.isupper() for target in targets)
    return named and not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))


def load(name: str) -> ModuleType:
    """The definitions of a chapter as a module, without running it.

    Only its imports, functions, classes and constants (capital letters, no call on the right) are
    executed. The module is registered as `minisearch_chapter_<name>`, so that its classes pickle,
    and is loaded again only when the chapter's text has changed.

    Raises:
        InputError: for an unknown chapter.
    """
    path = find(name)
    full_name, text_hash = f"minisearch_chapter_{path.stem}", source_hash(path)
    module = sys.modules.get(full_name)
    if module is not None and vars(module).get("__source_hash__") == text_hash:
        return module
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    tree.body = [node for node in tree.body if _is_definition(node)]
    module = ModuleType(full_name, f"The definitions of {path.name}.")
    vars(module).update(__file__=str(path), __source_hash__=text_hash)
    sys.modules[full_name] = module
    try:
        exec(compile(tree, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[full_name]
        raise
    return module


def _read(path: Path) -> Any:
    import jupytext

    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem[:40]}-{number:03d}"  # stable, so that a cell can be found again
        cell.metadata.setdefault("tags", [])
    return notebook


def to_notebook(name: str, mode: str = "page", parameters: Mapping[str, Any] | None = None) -> Any:
    """A chapter as an nbformat notebook.

    Args:
        name: as for `find`.
        mode: "page" keeps every cell; "grid" drops the prose and the cells tagged `page-only`.
        parameters: put after the `parameters` cell, in a cell tagged `injected-parameters`.

    Raises:
        InputError: for an unknown chapter or parameter, or a value of the wrong type.
    """
    path = find(name)
    notebook = _read(path)
    if mode == "grid":
        notebook.cells = [
            cell
            for cell in notebook.cells
            if cell.cell_type == "code" and "page-only" not in cell.metadata.tags
        ]
    notebook.metadata["minisearch"] = {
        "chapter": path.stem,
        "mode": mode,
        "source_sha256": source_hash(path),
    }
    if parameters:
        from papermill.parameterize import parameterize_notebook

        values = checked_parameters(name, parameters)
        notebook.metadata["papermill"] = {}
        notebook = parameterize_notebook(notebook, values)
    return notebook
