"""Every chapter runs at `smoke`, as a page and as a cell of the grid, and its own checks hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minisearch import runs

PATHS = sorted((Path(__file__).parents[2] / "chapters").glob("*.py"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem),
    pytest.mark.parametrize("mode", ["page", "grid"]),
]


def test_a_chapter_at_smoke(path, mode, monkeypatch, tmp_path):
    # A page goes where the site finds it; a grid cell, which that run would stand for, elsewhere.
    if mode == "grid":
        monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    result = runs.run_cell(runs.page_cell(path.stem, profile="smoke"), mode)
    assert result.status in ("ran", "complete"), result.failure
    metrics, checks, run = (
        json.loads((result.folder / f"{name}.json").read_text())
        for name in ("metrics", "checks", "run")
    )
    assert metrics
    assert all(isinstance(value, float) for value in metrics.values())
    assert all(check["passed"] for check in checks.values())
    assert run["cpu_seconds"] < 90
    notebook = json.loads((result.folder / "notebook.ipynb").read_text())
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out["output_type"] == "error"]
    noise = [out for out in outputs if out.get("name") == "stderr"]
    assert not noise, noise[0]["text"]
