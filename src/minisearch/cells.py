"""Cells of the evidence grid: what one run is, when its numbers are stale.

A cell is (chapter, profile, arm, world, init, seed, overrides). Its code key hashes everything that
can change its numbers, so that a log knows whether it still speaks about the code beside it.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minisearch.errors import InputError, one_of
from minisearch.profiles import PROFILES

Value = str | int | float | bool
PACKAGE = Path(__file__).parent
RESERVED = ("profile", "seed", "world_seed", "init_seed", "arms")


@dataclass(frozen=True)
class Cell:
    """One run of a chapter: its arm, its three seeds, and the parameters it overrides."""

    chapter: str
    profile: str
    arm: str
    world_seed: int = 0
    init_seed: int = 0
    seed: int = 1000
    overrides: tuple[tuple[str, Value], ...] = ()

    @property
    def folder_name(self) -> str:
        """A readable name that no other cell has: it ends in a hash of all fields."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
        names = f"w{self.world_seed}-i{self.init_seed}-s{self.seed}"
        return f"{self.arm}-{names}-{digest[:10]}"

    def parameters(self) -> dict[str, Value]:
        """What papermill injects into the chapter's parameters cell."""
        seeds = {n: getattr(self, n) for n in ("seed", "world_seed", "init_seed")}
        return {"profile": self.profile, **seeds, "arms": self.arm, **dict(self.overrides)}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "overrides": dict(self.overrides)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Cell:
        return cls(**{**fields, "overrides": sorted_overrides(fields.get("overrides", {}))})


def sorted_overrides(overrides: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(overrides.items()))


def parse_range(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """Whole numbers from "0-4,7" -> (0, 1, 2, 3, 4, 7).

    Raises:
        InputError: for anything else, a range that runs backwards, or a number given twice.
    """
    expected, remedy = "numbers and ranges such as 0-4,7", "write for example 0-19."
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(option, repr(text), expected, remedy)
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(numbers)) < len(numbers):
        raise InputError(option, repr(text), "each number once", remedy)
    return tuple(numbers)


def parse_overrides(
    given: Iterable[tuple[str, str]], known: Mapping[str, type]
) -> tuple[tuple[str, Value], ...]:
    """Command-line parameters as typed, sorted overrides.

    Args:
        given: name and text of each, as in `-p synonym_rate 0.5`.
        known: the type of every parameter of the chapter.

    Raises:
        InputError: for an unknown or reserved name, a name given twice, or an unreadable value.
    """
    choices = sorted(set(known) - set(RESERVED))
    found: dict[str, Value] = {}
    for name, text in given:
        if name in RESERVED:
            remedy = f"use --{name.replace('_', '-')} instead."
            raise InputError(
                f"parameter {name}", "an override", "a parameter of the chapter", remedy
            )
        if name not in choices:
            raise one_of("parameter", name, choices)
        if name in found:
            raise InputError(f"parameter {name}", "two values", "one", "give it once.")
        found[name] = _typed(name, text, known[name])
    return sorted_overrides(found)


def _typed(name: str, text: str, wanted: type) -> Value:
    booleans = {"true": True, "1": True, "false": False, "0": False}
    try:
        value: Value = booleans[text.lower()] if wanted is bool else wanted(text)
    except (KeyError, ValueError):
        remedy = f"pass {name} as {wanted.__name__}."
        raise InputError(f"parameter {name}", repr(text), wanted.__name__, remedy) from None
    return value


def expand(
    chapter: str,
    profile: str,
    arms: Sequence[str],
    worlds: Sequence[int] = (0,),
    seeds: Sequence[int] = (1000,),
    inits: Sequence[int] = (0,),
    overrides: tuple[tuple[str, Value], ...] = (),
) -> list[Cell]:
    """All cells of a grid, arm by arm."""
    if profile not in PROFILES:
        raise one_of("--profile", profile, list(PROFILES))
    product = itertools.product(arms, worlds, inits, seeds)
    return [Cell(chapter, profile, a, w, i, s, overrides) for a, w, i, s in product]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: where the file is missing, unreadable or something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        remedy = "restore the file, or make it again."
        raise InputError(str(path), str(error), "a readable JSON object", remedy) from error
    if not isinstance(content, dict):
        raise InputError(str(path), type(content).__name__, "a JSON object", "make it again.")
    return content


# --- Code keys ------------------------------------------------------------------------------------


def code_key(chapter: Path, package: Path = PACKAGE) -> str:
    """Hash of all that can change a grid cell's numbers: 16 hexadecimal digits.

    That is: the chapter's code outside cells tagged `page-only`, every module of the package it
    reaches through imports (also those inside functions), and the assets its card lists. Comments,
    docstrings, formatting and names such as `__version__` do not count.
    """
    trees = {chapter.name: _tree(grid_source(chapter.read_text("utf-8")), chapter)}
    waiting = list(_imports(trees[chapter.name], package, package))
    while waiting:
        module = waiting.pop()
        if (name := module.relative_to(package.parent).as_posix()) not in trees:
            trees[name] = _tree(module.read_text("utf-8"), module)
            waiting += _imports(trees[name], package, module.parent)
    parts = {name: _normal(tree) for name, tree in trees.items()}
    parts |= {f"asset {name}": digest for name, digest in _assets(chapter, package)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def grid_source(text: str) -> str:
    """The code that a grid cell executes, from a chapter in the py:percent format."""
    header, kept = True, []
    for block in re.split(r"(?m)^(?=# %%)", text):
        first = block.partition("\n")[0]
        tags = re.search(r"tags=(\[[^\]]*\])", first)
        page_only = "page-only" in (json.loads(tags[1]) if tags else [])
        prose = re.match(r"# %%.*\[(markdown|md|raw)\]", first)
        if not (header or page_only or prose):
            kept.append(block)
        header = False
    return "".join(kept)


def _tree(source: str, path: Path) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        where, remedy = f"{path}, line {error.lineno}", "correct the syntax."
        raise InputError(where, error.msg, "Python", remedy) from error


def _imports(tree: ast.AST, package: Path, folder: Path) -> Iterator[Path]:
    """Files of the package that a tree in `folder` imports, with the packages they lie in."""
    for node in ast.walk(tree):
        dotted: list[str] = []
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = folder.relative_to(package.parent).parts
                base = ".".join([*inside[: len(inside) - node.level + 1], *base.split(".")])
            base = base.strip(".")
            dotted = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in dotted:
            parts = name.split(".")
            if parts[0] == package.name:
                for end in range(1, len(parts) + 1):
                    yield from _module_file(package.parent.joinpath(*parts[:end]))


def _module_file(stem: Path) -> Iterator[Path]:
    yield from (p for p in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if p.is_file())


def _normal(node: object) -> Any:
    """A tree as nested lists without positions, docstrings, empty fields and dunder assignments.

    Our own rather than `ast.dump`, whose text differs from one Python version to the next.
    """
    if isinstance(node, list):
        return [_normal(child) for child in node if not _idle(child)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return [type(node).__name__, {name: _normal(value) for name, value in fields}]


def _idle(node: object) -> bool:
    """Statements that compute nothing: strings standing alone and module facts in dunder names."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(t, ast.Name) and re.fullmatch("__.*__", t.id) for t in targets)


def _assets(chapter: Path, package: Path) -> Iterator[tuple[str, str]]:
    """Name and digest of each asset on the chapter's card: a shipped file, or a pinned package."""
    import yaml

    root = chapter.resolve().parent.parent
    card = root / "book" / "cards" / f"{chapter.stem}.yaml"
    listed = (yaml.safe_load(card.read_text("utf-8")) or {}) if card.is_file() else {}
    pins = root / "requirements-assets.txt"
    lines = pins.read_text("utf-8").replace("\\\n", " ").splitlines() if pins.is_file() else []
    for name in listed.get("assets", []):
        found = package / "assets" / name
        files = sorted(p for p in [found, *found.rglob("*")] if p.is_file())
        pinned = [line for line in lines if re.match(rf"{re.escape(name)}\s*(==|@)", line.strip())]
        if not files and not pinned:
            remedy = "correct the name or add the asset."
            raise InputError(
                f"{card}, assets", repr(name), f"a file in {found.parent} or a pin", remedy
            )
        content = b"".join(p.read_bytes() for p in files) or pinned[0].encode()
        yield name, hashlib.sha256(content).hexdigest()
