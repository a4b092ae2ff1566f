"""From a card and its log to verdicts. The same log always gives the same answer."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

import numpy as np

from minisearch import stats
from minisearch.cells import Cell, parse_range
from minisearch.claims import Card, Claim, Precondition
from minisearch.errors import InputError
from minisearch.logs import Logs

CERTAIN = 1 - stats.LEVEL  # Holm-adjusted p below which a secondary claim is decided
_AXES = ("world", "init")  # what a stratum is one of
TOLERANCE = 1e-5  # between a logged mean and that of its single-precision rows


def evaluate(card: Card, logs: Logs) -> dict[str, Any]:
    """Preconditions, claims, controls and refuters, and cost, as plain JSON values.

    The interval decides; then Holm may withdraw the decision on a secondary claim; then a failed
    precondition overrides all, and one that was not measured leaves the claims NOT-RUN.

    Raises:
        InputError: where rows contradict logged means, or two arms saw different queries.
    """
    _check_rows(logs)
    needs = {name: _measured(card, logs, need) for name, need in card.preconditions.items()}
    claims = {name: _tested(card, logs, claim) for name, claim in card.claims.items()}
    later = [name for name, c in card.claims.items() if not c.primary and "p" in claims[name]]
    for name, p in zip(later, stats.holm([claims[n]["p"] for n in later]), strict=True):
        claims[name]["p_holm"] = p
        if p >= CERTAIN:
            claims[name]["verdict"] = "INCONCLUSIVE"
    for name, result in claims.items():
        met = [needs[need]["met"] for need in card.needs(name)]
        if False in met:
            result["verdict"] = "PRECONDITION-NOT-MET"
        elif None in met:
            result["verdict"] = "NOT-RUN"
    rivals = {
        arm: _tested(card, logs, replace(card.rivalled(arm), treatment=arm, among=()))
        for arm in card.rivals()
        if arm not in card.rivalled(arm).arms
    }
    for rival in rivals.values():
        rival["wins"] = rival["verdict"] == "SUPPORTED"
    results: dict[str, Any] = {"claims": claims, "preconditions": needs, "rivals": rivals}
    results |= {"cost": _cost(logs), "digest": card.digest()}
    results["code_keys"] = sorted({record.code_key for record in logs.records.values()})
    results["rechecked"] = [check["code_key"] for check in logs.rechecks]
    return dict(_plain(results))


def _plain(value: Any) -> Any:
    """JSON without NaN or infinity, and numbers to ten digits, so that machines agree."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


def _check_rows(logs: Logs) -> None:
    """A log whose rows do not average to its metrics was edited, or its parts mixed up."""
    for name, frame in logs.by_cell.items():
        record = logs.records[name]
        for metric in frame.columns.difference(["cell", "query_row", "cluster"]):
            logged = record.metrics.get(f"{record.cell.arm}/{metric}")
            mean = float(frame[metric].mean())
            if logged is not None and math.isfinite(mean) and abs(mean - logged) > TOLERANCE:
                where, found = f"log, cell {name}, {metric}", f"a mean of {mean:.6g} over the rows"
                raise InputError(where, found, f"{logged:.6g} as logged", "collect the runs again.")


def _measured(card: Card, logs: Logs, need: Precondition) -> dict[str, Any]:
    """A precondition's value in its worst world, and whether it is met (None: not measured)."""
    values = []
    for world in parse_range(card.grid.worlds):
        level = [
            _world_mean(logs, world, metric) for metric in (need.metric, need.against) if metric
        ]
        if not all(math.isfinite(mean) for mean in level):
            return {"value": None, "met": None}
        values.append(level[0] - sum(level[1:]))
    above = need.direction == "above"
    worst = min(values) if above else max(values)
    return {"value": worst, "met": worst >= need.threshold if above else worst <= need.threshold}


def _world_mean(logs: Logs, world: int, metric: str) -> float:
    cells = [
        r for r in logs.records.values() if r.cell.world_seed == world and not r.cell.overrides
    ]
    values = [record.metrics[metric] for record in cells if metric in record.metrics]
    return float(np.mean(values)) if values else math.nan


def _tested(card: Card, logs: Logs, claim: Claim) -> dict[str, Any]:
    """Effect, interval, p, power and verdict of one claim, before Holm and preconditions."""
    cells = [cell for arm in claim.arms for cell in _paired_cells(card, claim, arm)]
    missing = sum(cell.folder_name not in logs.records for cell in cells)
    if missing or not cells:
        return {"verdict": "NOT-RUN", "missing_cells": missing}
    per_query = all(_has_rows(logs, cell, claim.metric) for cell in cells)
    trained = any(card.arms[arm].seeds == "trained" for arm in claim.arms)
    alone = trained and len({cell.seed for cell in cells}) == 1
    blocks = _blocks(logs, cells, claim, per_query)
    values, runs = _by_stratum(blocks, per_query, alone)
    result = _any_two(claim, values) if claim.among else _one_pair(claim, values)
    result |= {f"{axis}s": len({getattr(cell, f"{axis}_seed") for cell in cells}) for axis in _AXES}
    method = result["method"]
    if alone:
        method = f"{method.removesuffix(' over seeds')} over {runs}, as there is one seed"
        result["seeds"] = 1
    if not per_query or runs == "worlds":
        method += ", of cell means without query noise"
        result["queries"] = 0
    return result | {"method": method}


def _blocks(
    logs: Logs, cells: list[Cell], claim: Claim, per_query: bool
) -> dict[str, list[list[stats.Array]]]:
    """For each arm, world and checkpoint the values of its runs. Shape: (S, Q) each."""
    worlds = list(dict.fromkeys(cell.world_seed for cell in cells))
    inits = list(dict.fromkeys(cell.init_seed for cell in cells))
    read = _query_values if per_query else _cell_means
    blocks: dict[str, list[list[stats.Array]]] = {arm: [] for arm in claim.arms}
    for world in worlds:
        here = [cell for cell in cells if cell.world_seed == world]
        matrix = read(logs, here, claim)
        for arm in claim.arms:
            of = [(cell.arm, cell.init_seed) for cell in here]
            blocks[arm].append([matrix[[one == (arm, init) for one in of]] for init in inits])
    return blocks


def _by_stratum(
    blocks: dict[str, list[list[stats.Array]]], per_query: bool, alone: bool
) -> tuple[dict[str, list[stats.Array]], str]:
    """Matrices of independent strata, and what their rows are.

    Checkpoints of a world answer the same queries, so that a row is the mean of a seed's runs from
    each of them. Means without queries are independent between checkpoints, each a stratum. Where
    trained arms have one seed, only checkpoints tell the noise of training, and with one of
    them only the worlds do.
    """
    values: dict[str, list[stats.Array]] = {}
    for arm, worlds in blocks.items():
        if alone and len(worlds[0]) > 1:
            values[arm] = [np.concatenate(inits) for inits in worlds]
        elif alone:
            values[arm] = [np.array([[inits[0].mean()] for inits in worlds])]
        elif per_query:
            values[arm] = [np.mean(inits, axis=0) for inits in worlds]
        else:
            values[arm] = [matrix for inits in worlds for matrix in inits]
    some = next(iter(blocks.values()))
    runs = "seeds" if not alone else "checkpoints" if len(some[0]) > 1 else "worlds"
    return values, runs


def _one_pair(claim: Claim, values: dict[str, list[stats.Array]]) -> dict[str, Any]:
    """Treatment against baseline. Shape: values, an arm, one (S, Q) a world."""
    new, old = values[claim.treatment], values[claim.baseline]
    if claim.type == "ratio":
        found = stats.ratio_interval(new, old)
    else:
        found = stats.interval(stats.paired_differences(new, old))
    return {
        **asdict(found),
        "treatment_mean": _mean(new),
        "baseline_mean": _mean(old),
        "p": stats.p_value(claim.type, found, claim.margin),
        "smallest_detectable_effect": stats.smallest_detectable(found),
        "verdict": stats.verdict(claim.type, found, claim.margin),
    }


def _any_two(claim: Claim, values: dict[str, list[stats.Array]]) -> dict[str, Any]:
    """Equivalence of any two arms: the decisive pair's result, with those of all pairs.

    Supported if every pair is, each at the full level (intersection-union test), so its p is the
    largest. Contradicted if some pair is with its p multiplied by the number of pairs (Bonferroni).
    """
    named = list(combinations(claim.arms, 2))
    found = [_one_pair(replace(claim, treatment=a, baseline=b), values) for a, b in named]
    held, broken = [], []  # p of the two decisions; a pair's estimate speaks for one of them
    for pair in found:
        inside = abs(pair["estimate"]) < claim.margin
        held.append(pair["p"] if inside else 1.0)
        broken.append(1.0 if inside else min(1.0, len(found) * pair["p"]))
        if pair["verdict"] == "CONTRADICTED" and broken[-1] >= CERTAIN:
            pair["verdict"] = "INCONCLUSIVE"
    told = {pair["verdict"] for pair in found}
    verdict = next((v for v in ("CONTRADICTED", "INCONCLUSIVE") if v in told), "SUPPORTED")

    def reach(n: int) -> tuple[float, float]:
        clear = -broken[n] if verdict == "CONTRADICTED" else 0.0
        return clear, max(-found[n]["low"], found[n]["high"])

    place = max(range(len(found)), key=reach)
    shown = ("estimate", "low", "high", "verdict")
    rows = [
        {"treatment": a, "baseline": b, **{key: pair[key] for key in shown}}
        for (a, b), pair in zip(named, found, strict=True)
    ]
    own = {"p": min(max(held), min(broken)), "decisive": list(named[place]), "pairs": rows}
    return found[place] | own | {"verdict": verdict}


def _mean(matrices: list[stats.Array]) -> float:
    return float(np.mean([matrix.mean() for matrix in matrices]))


def _paired_cells(card: Card, claim: Claim, arm: str) -> list[Cell]:
    """An arm's registered cells at checkpoints, and if trained at seeds, that both arms have."""
    seeds, inits = card.common_seeds(claim), card.common_inits(claim)
    fixed = card.arms[arm].seeds == "deterministic"
    shared = [cell for cell in card.cells(arm) if cell.init_seed in inits]
    return [cell for cell in shared if fixed or cell.seed in seeds]


def _has_rows(logs: Logs, cell: Cell, metric: str) -> bool:
    frame = logs.by_cell.get(cell.folder_name)
    return frame is not None and metric in frame and bool(frame[metric].notna().any())


def _query_values(logs: Logs, cells: list[Cell], claim: Claim) -> stats.Array:
    """Per-query values of the cells of one world, by cluster where there are clusters.

    A row without a value of the metric belongs to another question that the arm was asked.

    Shape: (cells, Q), or (cells, C).
    """
    frames = [logs.by_cell[cell.folder_name].dropna(subset=[claim.metric]) for cell in cells]
    first = frames[0]["query_row"].to_numpy()
    for cell, frame in zip(cells, frames, strict=True):
        if not np.array_equal(frame["query_row"].to_numpy(), first):
            found, expected = f"other queries than {cells[0].folder_name}", "the same queries"
            remedy = "run both with the same code."
            raise InputError(f"log, cell {cell.folder_name}", found, expected, remedy)
    matrix = np.stack([frame[claim.metric].to_numpy(float) for frame in frames])
    if "cluster" not in frames[0]:
        return matrix
    return stats.cluster_totals(matrix, frames[0]["cluster"].to_numpy())


def _cell_means(logs: Logs, cells: list[Cell], claim: Claim) -> stats.Array:
    """Logged means, for metrics that no query has by itself. Shape: (cells, 1)."""
    values = []
    for cell in cells:
        name = f"{cell.arm}/{claim.metric}"
        if name not in (metrics := logs.records[cell.folder_name].metrics):
            remedy = "correct the claim's metric, or record it."
            raise InputError(f"log, cell {cell.folder_name}", "no such metric", name, remedy)
        values.append([metrics[name]])
    return np.array(values)


def _cost(logs: Logs) -> dict[str, Any]:
    records = list(logs.records.values())
    return {
        "cells": len(records),
        "wall_seconds": sum(record.wall_seconds for record in records),
        "cpu_seconds": sum(record.cpu_seconds or 0.0 for record in records),
        "first_run": min((record.date for record in records), default=None),
        "last_run": max((record.date for record in records), default=None),
        "commits": sorted({record.commit for record in records if record.commit}),
    }
