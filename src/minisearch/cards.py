"""Reproduction cards at work: gather logs, publish verdicts, check them again.

Everything of a card is in `book/cards`: `<chapter>.yaml` (registered, by hand), `logs/` (by
`collect`) and `<chapter>.results.json` (by `publish`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minisearch import stats
from minisearch.cells import Cell
from minisearch.claims import Card, cards_folder
from minisearch.errors import InputError
from minisearch.logs import Logs, Record, read_logs, read_rows, read_run, write_logs
from minisearch.showing import card_box as card_box
from minisearch.showing import claims_markdown as claims_markdown
from minisearch.showing import readme_table
from minisearch.storage import atomic_write, build_dir, project_root
from minisearch.verdicts import evaluate

EQUAL = {"deterministic": 1e-9, "trained": 1e-6}  # of a recheck on the machine of the log
NEAR = 0.01  # on another one, which rounds otherwise: of 10,000 requests some change, or one of 100
RECHECK_LEVEL = 0.999  # elsewhere; a check that runs on every push must not cry wolf
LIVE_LEVEL = 0.95  # of a page's own run, all arms of the primary claim together


def logs_of(chapter: str) -> Logs:
    """The committed log of a chapter."""
    return read_logs(cards_folder() / "logs", chapter)


def load_cells(chapter: str) -> list[Record]:
    """Every logged cell of a chapter, at any setting of its dials."""
    return list(logs_of(chapter).records.values())


def collect(chapter: str, run_root: Path | None = None) -> Logs:
    """Gather the complete runs of a chapter's grid into its log; cells not run again stay in it.

    Args:
        run_root: holds `<chapter>/<profile>/<cell>/`; `_build/runs` by default.

    Raises:
        InputError: for a run that lacks a field, or a log larger than may be committed.
    """
    import pandas

    card, logs = Card.read(chapter), logs_of(chapter)
    records, frames = dict(logs.records), dict[str, Any](logs.by_cell)
    root = (run_root or build_dir() / "runs") / chapter / card.grid.profile
    for file in sorted(root.glob("[!.]*/run.json")):
        record = read_run(file.parent)
        name = record.cell.folder_name
        if file.parent.name == name and card.wants(record.cell):
            records[name] = record
            frames[name] = read_rows(file.parent, record.cell, card.logged_metrics(record.cell))
    records = {name: r for name, r in sorted(records.items()) if card.wants(r.cell)}
    kept = [frames[name] for name in records if frames.get(name) is not None]
    rows = pandas.concat(kept, ignore_index=True) if kept else None
    gathered = Logs(records, rows, logs.rechecks)
    write_logs(gathered, cards_folder() / "logs", chapter)
    return gathered


def publish(chapter: str) -> dict[str, Any]:
    """Evaluate a chapter's committed log; write `<chapter>.results.json` and the README's table."""
    results = evaluate(Card.read(chapter), logs_of(chapter))
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    atomic_write(cards_folder() / f"{chapter}.results.json", text)
    _write_readme()
    return results


def _write_readme() -> None:
    """Renew the table between the two scoreboard comments of the README, where it has them."""
    path = project_root() / "README.md"
    marked = r"(<!-- scoreboard[^>]*-->\n).*(<!-- end of scoreboard -->)"
    if path.is_file():
        text = path.read_text("utf-8")
        renewed = re.sub(marked, lambda m: f"{m[1]}{readme_table()}\n{m[2]}", text, flags=re.DOTALL)
        if renewed != text:
            atomic_write(path, renewed)


# --- checking again -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One metric of a cell, logged and run again: "equal", "as predicted" or "different"."""

    cell: Cell
    metric: str
    logged: float
    fresh: float
    outcome: str


def recheck(
    card: Card,
    logs: Logs,
    run_cell: Callable[[Cell], Path],
    rng: np.random.Generator,
    per_arm: bool = False,
    beside: Path | None = None,
) -> list[Comparison]:
    """Run one random cheap cell again, or one of each arm, and compare it with the log.

    Equal numbers in every arm clear STALE: the current code key joins the log's rechecks.

    On another machine than the log's a trained arm does not end at equal numbers, whatever the
    code. There `beside` helps: runs made on this machine by code that is not STALE.

    Args:
        run_cell: runs a cell afresh, whatever is complete, and returns its folder.
        beside: a folder of runs to compare with in place of what another machine logged.
    """
    compared: list[Comparison] = []
    fresh: list[Record] = []
    for cell in _drawn(card, logs, rng, per_arm, beside):
        logged = logs.records[cell.folder_name]
        fresh.append(read_run(run_cell(cell)))
        if beside and card.arms[cell.arm].seeds == "trained" and not _alike(logged, fresh[-1]):
            logged = _stand_in(logs, beside / cell.folder_name) or logged
        compared += _compared(card, logs, logged, fresh[-1])
    keys = {record.code_key for record in fresh}
    if per_arm and len(keys) == 1 and all(row.outcome == "equal" for row in compared):
        names = [record.cell.folder_name for record in fresh]
        entry = {"code_key": keys.pop(), "date": fresh[-1].date, "cells": names}
        logs.rechecks.append(entry | {"commit": fresh[-1].commit, "machine": fresh[-1].machine})
        write_logs(logs, cards_folder() / "logs", card.chapter)
    return compared


def _stand_in(logs: Logs, folder: Path) -> Record | None:
    """A run by code whose numbers are known to be the log's, if there is one."""
    if not (folder / "run.json").is_file():
        return None
    found = read_run(folder)
    known = {record.code_key for record in logs.records.values()}
    if found.code_key not in known | {check["code_key"] for check in logs.rechecks}:
        expected = "one that the log has, or that was checked"
        raise InputError(str(folder), f"code key {found.code_key}", expected, "run that code.")
    return found


def _alike(one: Record, other: Record) -> bool:
    """Whether two runs were made on the same kind of machine with the same versions."""
    return one.machine.get("cpu") == other.machine.get("cpu") and one.versions == other.versions


def _drawn(
    card: Card, logs: Logs, rng: np.random.Generator, per_arm: bool, beside: Path | None = None
) -> Iterator[Cell]:
    """A random cell of each logged arm, or one cell among the cheapest quarter of the arms.

    Of an arm's cells those are preferred that have a run `beside`.
    """
    arms: dict[str, list[Record]] = {}
    for record in logs.records.values():
        arms.setdefault(record.cell.arm, []).append(record)
    if not arms:
        where, remedy = f"card of {card.chapter}", "run and collect its grid first."
        raise InputError(where, "an empty log", "logged cells", remedy)
    if not per_arm:
        cost = {arm: np.mean([r.cpu_seconds or 0.0 for r in group]) for arm, group in arms.items()}
        cheapest = sorted(arms, key=lambda arm: cost[arm])[: -(-len(arms) // 4)]
        arms = {"cheap": [record for arm in cheapest for record in arms[arm]]}
    for group in arms.values():
        there = [r for r in group if beside and (beside / r.cell.folder_name).is_dir()]
        chosen = there or group
        yield chosen[rng.integers(len(chosen))].cell


def _compared(card: Card, logs: Logs, logged: Record, fresh: Record) -> Iterator[Comparison]:
    """Metric by metric; on another machine small buckets are left out, and near is good enough.

    A metric in seconds is another one each time and is not compared.
    """
    arm = logged.cell.arm
    kind = card.arms[arm].seeds
    exact = _alike(logged, fresh)
    for name, value in logged.metrics.items():
        if not name.startswith(f"{arm}/") or not (exact or name.count("/") == 1):
            continue
        if name.startswith(f"{arm}/seconds "):
            continue
        again = fresh.metrics.get(name, float("nan"))
        outcome = "different"
        if abs(again - value) <= EQUAL[kind] * max(1.0, abs(value)):  # logs keep ten digits
            outcome = "equal"
        elif not exact and abs(again - value) <= NEAR * max(1.0, abs(value)):
            outcome = "as predicted"
        elif not exact and kind == "trained":
            low, high = _predicted(logs, logged.cell, name, RECHECK_LEVEL)
            outcome = "as predicted" if low <= again <= high else "different"
        yield Comparison(logged.cell, name, value, again, outcome)


def _predicted(logs: Logs, like: Cell, metric: str, level: float) -> tuple[float, float]:
    """Where one more seed of a cell's arm would fall in its world; empty below two runs.

    An arm with one seed a world is judged by its runs in all worlds and from all checkpoints.
    """
    for free in (("seed",), ("seed", "world_seed", "init_seed")):
        values = [
            record.metrics[metric]
            for record in logs.records.values()
            if metric in record.metrics
            and replace(record.cell, **{name: getattr(like, name) for name in free}) == like
        ]
        if len(values) > 1:
            return stats.prediction_interval(np.array(values), level)
    return 1.0, 0.0


def live_check(
    chapter: str, profile: str, world_seed: int, metrics: Mapping[str, float | None]
) -> str | None:
    """What to warn of when a page's own run falls outside what the grid predicts; else None.

    None too where the grid has nothing to compare with: another profile or world, or no log.
    """
    card, logs = Card.read(chapter), logs_of(chapter)
    compared, complaints = card.primary.arms, []
    for arm in compared:
        name = f"{arm}/{card.primary.metric}"
        cells = [c for c in card.cells(arm) if c.world_seed == world_seed and c.profile == profile]
        logged = [logs.records[c.folder_name] for c in cells if c.folder_name in logs.records]
        value = metrics.get(name)
        if not logged or value is None:
            continue
        if card.arms[arm].seeds == "deterministic":
            low = high = logged[0].metrics[name]
        else:
            level = 1 - (1 - LIVE_LEVEL) / len(compared)
            low, high = _predicted(logs, logged[0].cell, name, level)
        if low <= high and not low - EQUAL["trained"] <= value <= high + EQUAL["trained"]:
            complaints.append(
                f"{name} of this run is {value:.4f}, the grid predicts {low:.4f} to {high:.4f}"
            )
    return "; ".join(complaints) or None
