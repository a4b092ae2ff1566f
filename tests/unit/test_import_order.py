"""A module imports only from those listed before it; the package costs nothing to import."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import minisearch

PACKAGE = Path(minisearch.__file__).parent
ORDER = [
    "errors", "storage", "profiles", "records", "metrics", "stats", "curves", "tails",
    "plots", "text", "pictures",
    "data", "data.tables", "data.kuaisearch", "data.audit", "data.assets", "data.icons",
    "data.qa", "data.factbook", "data.images", "tasks",
    "worlds", "worlds.shop_catalogue", "worlds.shop_truth", "worlds.shop_log", "worlds.shop",
    "worlds.stored", "worlds.dictionary", "worlds.shop_statistics", "worlds.market",
    "worlds.needs", "worlds.online",
    "worlds.wiki_relations", "worlds.wiki", "worlds.icon_drawing", "worlds.icons",
    "worlds.icon_sets",
    "index", "retriever", "identifiers", "objectives", "lit",
    "models", "models.towers", "models.seq2seq", "models.qformer", "models.lm",
    "models.generative", "models.dense", "models.bart", "models.vision", "beam", "beam_viewer",
    "attention_viewer",
    "agents", "agents.protocol", "agents.trajectory", "agents.rewards", "agents.cache",
    "agents.rollout", "agents.scoring", "agents.objective", "agents.grpo", "agents.beliefs",
    "agents.demonstrator", "agents.curriculum", "agents.probes", "agents.evidence",
    "agents.report", "agents.viewer",
    "recorder", "agents.study", "agents.queries", "agents.screening",
    "cells", "schema", "claims", "logs", "verdicts", "showing", "cards", "pages",
    "chapters", "doctor", "worker", "runs", "book", "classroom", "cli",
]  # fmt: skip


def modules() -> list[str]:
    """Dotted names of all modules; a package counts under its own name."""
    paths = [path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")]
    names = [parts[:-1] if parts[-1] == "__init__" else parts for parts in paths]
    return sorted(".".join(parts) for parts in names if parts)


def file_of(name: str) -> Path:
    path = PACKAGE.joinpath(*filter(None, name.split(".")))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(file_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write imports with their full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(dotted: str) -> str | None:
    """`minisearch.data.audit.Check` as `data.audit`; None for other packages."""
    head, _, rest = dotted.partition(".")
    parts = rest.split(".")
    known = [".".join(parts[:end]) for end in (2, 1) if ".".join(parts[:end]) in ORDER]
    return known[0] if head == "minisearch" and known else None


def test_every_module_has_its_place():
    assert set(modules()) <= set(ORDER)


def test_the_package_itself_imports_nothing():
    assert list(imported("")) == []


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_from_earlier_ones(name):
    earlier = ORDER[: ORDER.index(name)]
    later = {found for dotted in imported(name) if (found := own(dotted)) and found != name}
    assert later <= set(earlier), f"{name} imports {sorted(later - set(earlier))}, which come later"


def test_the_package_is_imported_in_half_a_second():
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import minisearch"], check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5


def test_what_comes_first_loads_nothing_heavy():
    light = ["errors", "storage", "profiles", "recorder", "cells", "chapters", "worker"]
    code = "import sys, " + ", ".join(f"minisearch.{name}" for name in light)
    command = [sys.executable, "-c", f"{code}; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "torch",
        "lightning",
        "transformers",
        "datasets",
        "faiss",
        "scipy",
        "pandas",
        "pyarrow",
    }
    assert not heavy & set(loaded)
