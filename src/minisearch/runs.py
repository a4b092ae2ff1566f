"""Running chapters: one cell of a grid, or many; what has its final name is complete.

Every run has a worker process of its own (`minisearch.worker`), which ends with this process.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minisearch.cells import (
    RESERVED,
    Cell,
    Value,
    code_key,
    expand,
    parse_range,
    read_json,
    sorted_overrides,
)
from minisearch.chapters import checked_parameters, find, parameters, source_hash
from minisearch.claims import Card
from minisearch.errors import InputError, MinisearchError, one_of
from minisearch.profiles import Settings
from minisearch.storage import build_dir, project_root, run_dir, writing
from minisearch.worker import Failure, cell_folder

_workers: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class RunResult:
    """What became of one cell of the grid.

    `status` is "ran", "complete" (it was so before), "failed", or "skipped" (its chapter failed).
    """

    cell: Cell
    folder: Path
    status: str
    seconds: float = 0.0
    failure: Failure | None = None


def page_cell(chapter: str, **values: Any) -> Cell:
    """The cell of a chapter's page: its default parameters, save the `values` given.

    Raises:
        InputError: for an unknown chapter or parameter, or a value of the wrong type.
    """
    given = checked_parameters(chapter, values)
    usual = {name: parameter.default for name, parameter in parameters(chapter).items()}
    fixed: dict[str, Any] = {name: given.pop(name, usual[name]) for name in RESERVED}
    arm = fixed.pop("arms")
    return Cell(find(chapter).stem, arm=arm, **fixed, overrides=sorted_overrides(given))


def cell_parameters(cell: Cell) -> dict[str, Any]:
    """The chapter's parameters for a cell, checked against its `parameters` cell.

    Raises:
        InputError: for an unknown chapter, profile or parameter, or a value of the wrong type.
    """
    Settings.of(cell.profile)
    return checked_parameters(cell.chapter, cell.parameters())


def completed(cell: Cell, mode: str, key: str) -> dict[str, Any] | None:
    """The `run.json` of a run that need not be repeated: of this code, with all cells of `mode`."""
    file = cell_folder(cell) / "run.json"
    if not file.is_file():
        return None
    run = read_json(file)
    same = run["code_key"] == key and run["mode"] in ("page", mode)
    # A page also shows the prose, which is no part of the code key.
    fresh = mode == "grid" or run["source_sha256"] == source_hash(find(cell.chapter))
    return run if same and fresh else None


def run_cell(
    cell: Cell,
    mode: str = "page",
    *,
    key: str = "",
    force: bool = False,
    progress: bool = False,
) -> RunResult:
    """Run one cell of the grid, unless it is complete with the code of now.

    Args:
        cell: what to run.
        mode: "page" for the whole chapter, "grid" without its prose and `page-only` cells.
        key: the chapter's code key, where the caller has computed it already.
        force: run it even if it is complete.
        progress: show a bar of the notebook's cells on standard error.

    Raises:
        InputError: for a parameter that does not fit, or a folder that cannot be written.
    """
    values, folder = cell_parameters(cell), cell_folder(cell)
    done = None if force else completed(cell, mode, key or code_key(find(cell.chapter)))
    if done:
        return RunResult(cell, folder, "complete", done["wall_seconds"])
    with writing(folder):  # before the seconds that it takes to start a kernel
        folder.parent.mkdir(parents=True, exist_ok=True)
    job = {"cell": cell.to_dict(), "parameters": values, "mode": mode, "progress": progress}
    job["command"] = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    started = time.perf_counter()
    answer = _in_worker(job, progress)
    if answer["status"] == "refused":
        raise InputError(*answer["error"])
    failure = Failure(**answer["failure"]) if answer["status"] == "failed" else None
    seconds = time.perf_counter() - started
    return RunResult(cell, folder, answer["status"], seconds, failure)


def _in_worker(job: dict[str, Any], progress: bool) -> dict[str, Any]:
    """The worker's answer: one JSON line, the last that it prints."""
    places = {"MINISEARCH_ROOT": str(project_root()), "MINISEARCH_BUILD": str(build_dir())}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        worker = subprocess.Popen(
            [sys.executable, "-m", "minisearch.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if progress else complaints,
            text=True,
            env={**os.environ, **places},
            start_new_session=True,  # Ctrl-C reaches it through its standard input, in good order
        )
        assert worker.stdin
        assert worker.stdout
        _workers.add(worker)
        try:
            with suppress(BrokenPipeError):  # it died at once; its last words tell why
                worker.stdin.write(json.dumps(job) + "\n")
                worker.stdin.flush()
            lines = worker.stdout.read().splitlines()
        finally:
            _workers.discard(worker)
            _end(worker)
        complaints.seek(0)
        said = complaints.read().split("\n")
    if lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    reason = next(filter(None, reversed(said)), f"exit status {worker.returncode}")
    return {"status": "failed", "failure": asdict(Failure("-", "-", f"no answer: {reason}", ""))}


def _end(worker: subprocess.Popen[str]) -> None:
    """Close a worker's standard input, which ends it and its kernel, and wait for that."""
    assert worker.stdin
    with suppress(BrokenPipeError):
        worker.stdin.close()
    worker.wait()


def fresh_folder(cell: Cell) -> Path:
    """The folder of a grid cell that has just been run again.

    Raises:
        MinisearchError: where it fails.
    """
    result = run_cell(cell, "grid", force=True)
    if result.failure:
        stop = result.failure
        raise MinisearchError(f"{label(cell)}: {stop.error} ({stop.cell} of {stop.notebook})")
    return result.folder


# --- many cells ---------------------------------------------------------------------------------


def named_arms(chapter: str, text: str) -> list[str]:
    """The arms that "main", "all" or "a,b" mean for a chapter.

    Raises:
        InputError: for an arm that the card does not name.
    """
    if text == "main":
        return ["main"]
    known = list(Card.read(chapter).arms)
    chosen = known if text == "all" else [arm.strip() for arm in text.split(",")]
    for arm in chosen:
        if arm not in known:
            raise one_of(f"option --arms, chapter {chapter}", arm, ["all", "main", *known])
    return chosen


def grid(
    chapter: str,
    profile: str,
    arms: str,
    seeds: tuple[str, str, str],
    overrides: tuple[tuple[str, Value], ...] = (),
) -> list[Cell]:
    """The cells that the command line's `--arms`, `--worlds`, `--inits` and `--seeds` mean.

    Args:
        chapter: its full name.
        arms: as for `named_arms`.
        seeds: worlds, inits and seeds, such as "0-2"; where "", the card's (for main, the page's).

    Raises:
        InputError: for an unknown arm or profile, or a range that is none.
    """
    options = zip(("--worlds", "--inits", "--seeds"), seeds, strict=True)
    given = [parse_range(text, option) if text else () for option, text in options]
    cells = []
    for arm in named_arms(chapter, arms):
        usual: tuple[tuple[int, ...], ...] = ((0,), (0,), (1000,))
        chosen = given[2]
        if arm != "main":
            card = Card.read(chapter)
            usual = (parse_range(card.grid.worlds), card.inits(arm), card.seeds(arm))
            if card.arms[arm].seeds == "deterministic":
                chosen = chosen[:1]
            elif card.arms[arm].seed_range:  # it is registered for fewer seeds than the others
                chosen = tuple(seed for seed in chosen if seed in usual[2]) or chosen
        worlds, inits = (some or all_ for some, all_ in zip(given, usual[:2], strict=False))
        cells += expand(chapter, profile, [arm], worlds, chosen or usual[2], inits, overrides)
    return cells


def reproduce(
    cells: Sequence[Cell], jobs: int = 1, mode: str = "grid", *, force: bool = False
) -> list[RunResult]:
    """Run many cells, `jobs` at a time; results come in the order of `cells`.

    A cell that fails stops the later cells of its chapter, not the other chapters. Whatever was
    complete before is not run again.

    Raises:
        InputError: before anything runs, for a cell whose parameters do not fit, or where the
            build folder cannot be written.
    """
    cells = list(dict.fromkeys(cells))
    for cell in {(c.chapter, c.profile, c.overrides): c for c in cells}.values():
        cell_parameters(cell)
    with writing(build_dir()):
        run_dir("", "").mkdir(parents=True, exist_ok=True)
    keys = {name: code_key(find(name)) for name in {cell.chapter for cell in cells}}
    broken: set[str] = set()
    running: list[Cell] = []
    results: dict[Cell, RunResult] = {}
    bar = _bar()
    line = bar.add_task("", total=len(cells), left="?", now="")

    def one(cell: Cell) -> RunResult:
        if cell.chapter in broken:
            return RunResult(cell, cell_folder(cell), "skipped")
        running.append(cell)
        bar.update(line, now=", ".join(map(label, running)))
        try:
            result = run_cell(cell, mode, key=keys[cell.chapter], force=force)
        except InputError as error:
            stopped = Failure("-", "-", str(error), "")
            result = RunResult(cell, cell_folder(cell), "failed", failure=stopped)
        finally:
            running.remove(cell)
        if result.failure:
            broken.add(cell.chapter)
        return result

    with ThreadPoolExecutor(jobs) as pool, bar:
        try:
            for task in as_completed([pool.submit(one, cell) for cell in cells]):
                result = task.result()
                results[result.cell] = result
                took = f"{result.seconds:.1f} s"
                bar.console.print(f"{result.status:>8}  {label(result.cell)}  {took}")
                bar.update(line, advance=1, left=time_left(results, cells, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in list(_workers):
                _end(worker)
            raise
    return [results[cell] for cell in cells]


def label(cell: Cell) -> str:
    """A cell in a few words, for people."""
    return f"{cell.chapter} {cell.arm} world {cell.world_seed} seed {cell.seed}"


def time_left(results: Mapping[Cell, RunResult], cells: Iterable[Cell], jobs: int) -> str:
    """Minutes and seconds until `cells` are done, from what finished cells of the chapter took."""
    took: dict[str, list[float]] = {}
    for result in results.values():
        if result.seconds:
            took.setdefault(result.cell.chapter, []).append(result.seconds)
    if not took:
        return "?"
    means = {chapter: sum(times) / len(times) for chapter, times in took.items()}
    usual = sum(means.values()) / len(means)
    seconds = sum(means.get(c.chapter, usual) for c in cells if c not in results) / jobs
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = "time left {task.fields[left]}", "{task.fields[now]}"
    return Progress(BarColumn(), MofNCompleteColumn(), *map(TextColumn, columns))
