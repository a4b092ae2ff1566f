"""What a chapter records is on disk, whole, after every call."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from minisearch.recorder import Recorder


def read(record: Recorder, name: str):
    return json.loads((record.folder / f"{name}.json").read_text())


@pytest.fixture
def record(tmp_path) -> Recorder:
    return Recorder(tmp_path / "run")


def test_the_runner_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_RUN_DIR", str(tmp_path / "run"))
    assert Recorder.from_environment().folder == tmp_path / "run"


def test_without_a_runner_each_session_has_a_new_folder(project):
    first, second = Recorder.from_environment(), Recorder.from_environment()
    assert first.folder != second.folder
    assert first.folder.parent == second.folder.parent == project / "_build" / "interactive"


def test_an_empty_run_has_empty_metrics(record):
    assert read(record, "metrics") == read(record, "checks") == read(record, "phases") == {}


def test_metrics_are_flat_numbers(record):
    record.metric("bm25/recall@50", np.float32(0.5))
    record.metric("bm25/recall@50/head", np.int64(1))
    record.metric("bm25/recall@50/empty bucket", float("nan"))
    assert read(record, "metrics") == {"bm25/recall@50": 0.5, "bm25/recall@50/head": 1.0}


def test_a_check_that_holds_is_recorded(record):
    record.check("masks are disjoint", np.bool_(True), "0 shared")
    assert read(record, "checks") == {"masks are disjoint": {"passed": True, "detail": "0 shared"}}


def test_a_check_that_fails_is_recorded_and_raised(record):
    with pytest.raises(AssertionError, match="masks are disjoint: 3 shared"):
        record.check("masks are disjoint", 3 == 0, "3 shared")
    assert read(record, "checks")["masks are disjoint"] == {"passed": False, "detail": "3 shared"}


def test_rows_are_a_table_of_single_precision(record):
    columns = {"query_row": np.arange(3), "ndcg": np.array([0.1, 0.2, np.nan])}
    path = record.rows("bm25", {**columns, "kind": np.array(["head", "tail", "head"])})
    table = pq.read_table(path)
    assert path == record.folder / "rows" / "bm25.parquet"
    assert [str(field.type) for field in table.schema] == ["int64", "float", "string"]
    assert table["query_row"].to_pylist() == [0, 1, 2]
    np.testing.assert_allclose(table["ndcg"].to_numpy(), columns["ndcg"], rtol=1e-6)


def test_rows_of_unequal_length_are_refused(record):
    with pytest.raises(ValueError, match=r"'bm25' differ in length: .*'b': 3"):
        record.rows("bm25", {"a": np.zeros(2), "b": np.zeros(3)})
    assert not (record.folder / "rows").exists()


def test_a_figure_is_saved_twice_over_with_its_caption_and_the_same_bytes(record):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    folder = record.folder / "figures"
    saved = []
    for _ in range(2):
        figure = Figure()
        figure.subplots().plot([1, 2])
        record.figure(figure, "loss", "It falls.")
        saved.append([(folder / f"loss.{kind}").read_bytes() for kind in ("png", "svg")])
    assert saved[0] == saved[1]
    assert saved[0][0].startswith(b"\x89PNG")
    assert b"<svg" in saved[0][1]
    assert json.loads((folder / "captions.json").read_text()) == {"loss": "It falls."}


def test_phases_add_up_wall_and_cpu_time(record):
    with record.phase("wait"):
        time.sleep(0.2)
    with record.phase("work"):
        deadline = time.process_time() + 0.3
        while time.process_time() < deadline:
            pass
    before = read(record, "phases")
    assert before["wait"]["wall_seconds"] >= 0.2 > before["wait"]["cpu_seconds"]
    assert before["work"]["cpu_seconds"] >= 0.25
    with record.phase("wait"):
        time.sleep(0.1)
    assert read(record, "phases")["wait"]["wall_seconds"] >= 0.3


def test_a_phase_that_fails_is_still_timed(record):
    with pytest.raises(RuntimeError), record.phase("train"):
        raise RuntimeError
    assert "train" in read(record, "phases")


def test_it_costs_a_notebook_next_to_nothing_to_import():
    code = "import sys, minisearch.recorder; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "pandas", "pyarrow", "matplotlib", "papermill", "psutil"}
    assert not heavy & set(loaded.stdout.split())
