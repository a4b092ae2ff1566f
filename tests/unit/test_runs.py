"""Runs are atomic, resumable and leave no process behind. Every test runs real kernels."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from minisearch import runs
from minisearch.cells import Cell, expand
from minisearch.errors import InputError
from minisearch.logs import read_run
from minisearch.runs import page_cell, reproduce, run_cell
from minisearch.worker import kernel_environment

SLOW = """\
import time
from pathlib import Path

import minisearch.storage as storage
from minisearch.recorder import Recorder

record = Recorder.from_environment()


def build(folder):
    with open(storage.project_root() / "built", "a") as log:
        log.write("built\\n")
    time.sleep(1)
    (folder / "world").write_text("x")


world = storage.cached("world", {"world": world_seed}, build)
record.metric("main/size", len((world / "world").read_text()))

# %%
while seed and (storage.project_root() / f"hold-{seed}").exists():
    time.sleep(0.1)
"""


def cell(chapter: str = "01_tiny", **fields) -> Cell:
    return Cell(chapter, "smoke", fields.pop("arm", "main"), **fields)


def read(result: runs.RunResult, name: str):
    return json.loads((result.folder / name).read_text())


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def processes_of(project: Path) -> list[psutil.Process]:
    """Every process whose environment names the project: runner, workers and kernels."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MINISEARCH_ROOT") == str(project):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def test_a_page_run_leaves_everything_under_its_own_name(project):
    page = run_cell(page_cell("01", profile="smoke"), "page")
    assert page.status == "ran"
    assert page.folder == project / "_build/runs/01_tiny/smoke" / page.cell.folder_name
    assert [path.name for path in page.folder.parent.iterdir()] == [page.folder.name]
    metrics = {"main/score": 1000.5, "main/score/head": 1000.0, "page/only": 1.0}
    assert read(page, "metrics.json") == metrics
    assert (page.folder / "log.txt").read_text() == "a line for the log\n"
    assert read(page, "notebook.ipynb")["cells"][-1]["execution_count"] == 4
    run = read(page, "run.json")
    assert (run["mode"], run["threads"], run["chapter"]) == ("page", 1, "01_tiny")
    assert run["parameters"] == page.cell.parameters()
    assert run["code_key"] == runs.code_key(runs.find("01"))
    assert run["source_sha256"] == runs.source_hash(runs.find("01"))
    assert run["versions"]["papermill"]
    assert run["machine"]["cpu"]
    assert 0 < run["cpu_seconds"] < 60
    assert 0 < run["wall_seconds"] < page.seconds
    assert 30 < run["peak_memory_mb"] < 1000
    assert read_run(page.folder).cell == page.cell


def test_a_complete_run_is_not_repeated_until_its_code_changes(project):
    chapter, one = project / "chapters" / "01_tiny.py", page_cell("01", profile="smoke")
    page = run_cell(one, "page")
    assert run_cell(one, "page").status == "complete"
    assert run_cell(one, "grid").status == "complete"  # a page holds all that a grid cell does
    chapter.write_text(chapter.read_text().replace("# A tiny chapter", "# Reworded"))
    assert run_cell(one, "grid").status == "complete"  # prose is no part of a grid cell
    assert run_cell(one, "page").status == "ran"
    chapter.write_text(chapter.read_text().replace("seed + world_seed", "2 * seed"))
    again = run_cell(one, "grid")
    assert (again.status, again.folder) == ("ran", page.folder)
    assert read(again, "metrics.json") == {"main/score": 2000.5, "main/score/head": 1000.0}
    assert runs.completed(one, "page", runs.code_key(chapter)) is None  # it has not all cells
    assert run_cell(one, "grid", force=True).status == "ran"


def test_parameters_reach_the_chapter(project):
    result = run_cell(cell(arm="bm25", seed=3, world_seed=2, overrides=(("rate", 0.25),)), "grid")
    assert read(result, "metrics.json") == {"bm25/score": 5.25, "bm25/score/head": 3.0}


def test_the_kernel_environment_is_fixed(write_chapter, monkeypatch):
    write_chapter("01_tiny", "import os\n\nprint(*(os.environ.get(n) for n in data.split(',')))\n")
    names = "OMP_NUM_THREADS,PYTHONHASHSEED,TQDM_DISABLE,HF_HUB_OFFLINE,TOKENIZERS_PARALLELISM"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    toy = run_cell(page_cell("01", data=names))
    assert (toy.folder / "log.txt").read_text().split() == ["1", "0", "1", "1", "false"]
    small = kernel_environment("small", "private")
    assert small["OMP_NUM_THREADS"] == "8"
    assert "HF_HUB_OFFLINE" not in small  # its data come from the network


def test_a_failure_keeps_the_partial_notebook_and_says_where(write_chapter):
    write_chapter("01_tiny", "print('before')\n")
    good = run_cell(cell())
    write_chapter(
        "01_tiny", "print('before')\n\n# %%\n# Why.\nvalue = 1 / 0\n\n# %%\nprint('after')\n"
    )
    result = run_cell(cell())
    assert result.status == "failed"
    stop = result.failure
    assert (stop.cell, stop.line) == ("In [4]", "value = 1 / 0")
    assert stop.error == "ZeroDivisionError: division by zero"
    partial = Path(stop.notebook)
    assert partial == result.folder.with_name(result.folder.name + ".failed") / "notebook.ipynb"
    assert "before" in partial.read_text()
    log = (partial.parent / "log.txt").read_text()
    assert log.startswith("before\n")
    assert "ZeroDivisionError" in log
    assert read(good, "run.json")["code_key"] != runs.code_key(runs.find("01"))  # still the old one
    write_chapter("01_tiny", "print('mended')\n")
    assert run_cell(cell()).status == "ran"
    assert not partial.parent.exists()


def test_a_kernel_that_dies_names_its_cell(write_chapter):
    write_chapter("01_tiny", "x = 1\n\n# %%\nimport os\n\nos._exit(9)\n\n# %%\ny = 2\n")
    stop = run_cell(cell()).failure
    assert (stop.cell, stop.line) == ("In [4]", "import os")
    assert stop.error.startswith("DeadKernelError")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Cell("01_tiny", "toi", "main"), "profile: found 'toi'.*did you mean 'toy'"),
        (Cell("02_none", "toy", "main"), "chapter: found '02_none'"),
        (cell(overrides=(("raet", 1.0),)), "found 'raet'.*did you mean 'rate'"),
        (cell(overrides=(("rate", "high"),)), r"parameter rate: found 'high' \(str\)"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_anything_runs(project, bad, message):
    for call in (run_cell, lambda cell: reproduce([cell])):
        with pytest.raises(InputError, match=message):
            call(bad)
    assert not (project / "_build").exists()


def test_a_failing_cell_stops_its_chapter_but_not_the_batch(write_chapter):
    write_chapter("01_tiny", "assert seed != 1\n")
    write_chapter("02_other", "assert True\n")
    cells = [*expand("01_tiny", "smoke", ["main"], seeds=[0, 1, 2]), cell("02_other")]
    results = reproduce(cells, jobs=1)
    assert [result.status for result in results] == ["ran", "failed", "skipped", "ran"]
    assert [result.cell for result in results] == cells


def test_chapters_side_by_side_build_a_shared_world_once(write_chapter, project):
    write_chapter("01_tiny", SLOW)
    write_chapter("02_other", SLOW)
    results = reproduce([cell("01_tiny"), cell("02_other")], jobs=2)
    assert [result.status for result in results] == ["ran", "ran"]
    assert (project / "built").read_text() == "built\n"


def batch(*words: str) -> subprocess.Popen[bytes]:
    # A job in the background of a script is deaf to SIGINT, and so would its children be.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from minisearch.cli import main; main(['reproduce', '--profile', 'smoke', *{words}])"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)


def held(project: Path) -> list[Path]:
    """Temporary folders of runs in progress."""
    return list(project.glob("_build/runs/*/smoke/.*.part/metrics.json"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_batch_leaves_no_process_and_resumes(write_chapter, project):
    write_chapter("01_tiny", SLOW)
    write_chapter("02_other", SLOW)
    (project / "hold-2").touch()
    words = ["--seeds", "1-2", "--jobs", "2"]

    def complete() -> dict[Path, int]:
        files = project.glob("_build/runs/*/smoke/[!.]*/run.json")
        return {path.parent: path.stat().st_mtime_ns for path in files}

    first = batch(*words)
    wait_for(lambda: len(complete()) == 2 and len(held(project)) == 2)
    assert len(processes_of(project)) >= 5  # the batch, two workers, two kernels
    first.kill()
    first.wait()
    wait_for(lambda: not processes_of(project), 5)
    before = complete()
    assert len(before) == 2  # what was held does not count
    # A killed process stays a zombie until init gets round to it; its folder is swept after that.
    left = [path for path in project.rglob("*") if path.name.endswith(".part")]
    owners = {path: int(re.search(r"@(\d+)-", path.name)[1]) for path in left}
    for _ in range(600):
        lingering = [path for path in left if psutil.pid_exists(owners[path])]
        if not lingering:
            break
        time.sleep(0.1)

    (project / "hold-2").unlink()
    assert batch(*words).wait(120) == 0
    after = complete()
    assert len(after) == 4
    assert all(after[path] == written for path, written in before.items())
    assert not [path for path in left if path.exists() and path not in lingering]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_batch_leaves_no_process(write_chapter, project):
    write_chapter("01_tiny", SLOW)
    (project / "hold-2").touch()
    first = batch("--seeds", "2")
    wait_for(lambda: held(project))
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130
    wait_for(lambda: not processes_of(project), 5)


def test_time_left_comes_from_what_finished_cells_took():
    cells = [cell(seed=seed) for seed in range(5)] + [cell("02_other")]
    assert runs.time_left({}, cells, 1) == "?"
    done = {c: runs.RunResult(c, Path(), "ran", 60.0) for c in cells[:2]}
    assert runs.time_left(done, cells, 1) == "4:00"
    assert runs.time_left(done, cells, 2) == "2:00"
    done[cells[5]] = runs.RunResult(cells[5], Path(), "ran", 600.0)
    assert runs.time_left(done, cells, 1) == "3:00"
