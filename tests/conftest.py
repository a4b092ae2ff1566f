"""Fixtures shared by the tests: a tiny project of its own for everything that runs chapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tiny chapter

# %% tags=["parameters"]
profile: str = "toy"  # smoke | toy | small | full
seed: int = 1000  # training and sampling
world_seed: int = 0  # which world
init_seed: int = 0  # which checkpoint
arms: str = "main"  # "main", or one arm of the card
rate: float = 0.5  # a number
data: str = ""  # a folder
loud: bool = False  # a switch
"""

BODY = """\
from minisearch.recorder import Recorder

record = Recorder.from_environment()
record.metric(f"{arms}/score", seed + world_seed + rate)
record.metric(f"{arms}/score/head", seed)
print("a line for the log")

# %% tags=["page-only"]
record.metric("page/only", 1)
"""

WriteChapter = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one chapter of two cells, `01_tiny`, and its own build folder."""
    (tmp_path / "chapters").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'tiny'\n")
    monkeypatch.setenv("MINISEARCH_ROOT", str(tmp_path))
    monkeypatch.delenv("MINISEARCH_BUILD", raising=False)
    monkeypatch.delenv("MINISEARCH_RUN_DIR", raising=False)
    (tmp_path / "chapters" / "01_tiny.py").write_text(f"{HEADER}\n# %%\n{BODY}")
    return tmp_path


@pytest.fixture
def write_chapter(project: Path) -> WriteChapter:
    """Write a chapter of the tiny project: its name, and the text after the parameters cell."""

    def write(name: str, body: str) -> Path:
        path = project / "chapters" / f"{name}.py"
        path.write_text(f"{HEADER}\n# %%\n{body}")
        return path

    return write


@pytest.fixture
def card_file(project: Path) -> Path:
    """The example card, as that of the tiny project's chapter."""
    path = project / "book" / "cards" / "01_tiny.yaml"
    path.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "unit" / "example_card.yaml", path)
    return path
