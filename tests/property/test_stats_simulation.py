"""What the intervals promise, on data whose truth is known: coverage and false verdicts.

Seeds are fixed, so a test that passes keeps passing. A bound is the promise (95 % coverage, 2.5 %
of false SUPPORTED) and the error of the simulation itself, wide enough for 72 comparisons to hold
together; pooled over the scenarios the same promises are checked more sharply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from minisearch import stats

RUNS, QUERIES, SAMPLES = 800, 80, 400
TOGETHER = 3.8  # standard errors that 72 comparisons stay within, all of them, 99 times in 100


def error(rate: float, runs: int, errors: float = TOGETHER) -> float:
    """How far a simulated rate may stray from the true one."""
    return errors * math.sqrt(rate * (1 - rate) / runs)


Draw = Callable[[np.random.Generator, int], list[np.ndarray]]


def crossed_normal(seed_sd: float, query_sd: float, noise_sd: float, worlds: int) -> Draw:
    """Differences of true mean zero: seed effects + query effects + their interaction."""

    def draw(rng: np.random.Generator, seeds: int) -> list[np.ndarray]:
        return [
            seed_sd * rng.normal(size=(seeds, 1))
            + query_sd * rng.normal(size=(1, QUERIES))
            + noise_sd * rng.normal(size=(seeds, QUERIES))
            for _ in range(worlds)
        ]

    return draw


def skewed_hits(rng: np.random.Generator, seeds: int) -> list[np.ndarray]:
    """Hits of two arms of equal quality: most queries hopeless, a few easy, seeds good or bad."""
    worlds = []
    for _ in range(2):
        easy = rng.beta(0.3, 1.5, size=(1, QUERIES))
        arms = []
        for _ in range(2):
            skill = 1 + 0.2 * rng.normal(size=(seeds, 1))
            arms.append(rng.random((seeds, QUERIES)) < np.clip(easy * skill, 0, 1))
        worlds.append(arms[0].astype(float) - arms[1])
    return worlds


SCENARIOS: dict[str, Draw] = {
    "seeds decide, one world": crossed_normal(1, 1, 1, worlds=1),
    "seeds and queries alike": crossed_normal(0.1, 1, 0.5, worlds=2),
    "interaction decides": crossed_normal(0.005, 0.05, 1, worlds=1),
    "skewed hits": skewed_hits,
}


@cache
def intervals(scenario: str, seeds: int) -> list[stats.Interval]:
    rng = np.random.default_rng(seeds)
    draw = SCENARIOS[scenario]
    return [stats.interval(draw(rng, seeds), samples=SAMPLES, seed=n) for n in range(RUNS)]


def covers(found: list[stats.Interval], truth: float = 0.0) -> float:
    return share([i.low <= truth <= i.high for i in found])


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def shifted(found: stats.Interval, by: float) -> stats.Interval:
    """The interval that the same draw gives when the true effect is `by` instead of zero."""
    moved = {"estimate": found.estimate + by, "low": found.low + by, "high": found.high + by}
    return stats.Interval(**{**vars(found), **moved})


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_coverage_and_false_verdicts_are_as_promised(scenario: str, seeds: int) -> None:
    found, one_sided = intervals(scenario, seeds), 0.025 + error(0.025, RUNS)
    assert covers(found) == pytest.approx(0.95, abs=error(0.95, RUNS))
    for wrong in ("SUPPORTED", "CONTRADICTED"):
        assert share([stats.verdict("superiority", i) == wrong for i in found]) <= one_sided
    margin = 3 * float(np.median([i.width for i in found]))  # wide enough for power at zero
    for kind, truth in (
        ("non_inferiority", -margin),
        ("equivalence", margin),
        ("equivalence", -margin),
    ):
        false = [stats.verdict(kind, shifted(i, truth), margin) == "SUPPORTED" for i in found]
        assert share(false) <= one_sided
    assert share([stats.verdict("equivalence", i, margin) == "SUPPORTED" for i in found]) > 0.9


@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_over_all_scenarios_the_promises_hold_more_closely(seeds: int) -> None:
    found = [i for scenario in SCENARIOS for i in intervals(scenario, seeds)]
    assert covers(found) == pytest.approx(0.95, abs=error(0.95, len(found), 3))
    false = share([stats.verdict("superiority", i) == "SUPPORTED" for i in found])
    assert false <= 0.025 + error(0.025, len(found), 3)


def plain_bootstrap(worlds: list[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
    """The crossed bootstrap without any correction, by multinomial weights."""
    means = np.zeros(SAMPLES)
    for matrix in worlds:
        seeds, queries = (rng.multinomial(n, np.full(n, 1 / n), SAMPLES) / n for n in matrix.shape)
        means += ((seeds @ matrix) * queries).sum(axis=1) / len(worlds)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def plain_coverage(scenario: str, seeds: int, runs: int = 200) -> float:
    rng, hits = np.random.default_rng(seeds), []
    for _ in range(runs):
        low, high = plain_bootstrap(SCENARIOS[scenario](rng, seeds), rng)
        hits.append(low <= 0 <= high)
    return share(hits)


def test_why_the_plain_crossed_bootstrap_is_corrected() -> None:
    """It misses the truth too often with five seeds, and is far too wide under interaction."""
    assert plain_coverage("seeds decide, one world", 5) < 0.95 - error(0.95, 200, 3)
    assert plain_coverage("interaction decides", 20) > 0.99


def test_why_the_paired_t_over_seeds_is_not_enough() -> None:
    """Seeds share their queries: t over seeds alone takes the luck of the queries for knowledge."""
    rng = np.random.default_rng(1)
    draws = [SCENARIOS["seeds and queries alike"](rng, 5) for _ in range(RUNS)]
    assert covers([stats.paired_t_interval(draw) for draw in draws]) < 0.85


def test_clustered_queries_are_covered_only_by_cluster() -> None:
    """Sixty query strings asked five times each, with the same luck every time."""
    runs, rng, clusters = 250, np.random.default_rng(2), np.repeat(np.arange(60), 5)
    by_query, by_cluster = [], []
    for _ in range(runs):
        matrix = np.repeat(rng.exponential(size=(1, 60)) - 1, 5, axis=1)
        matrix = matrix + 0.3 * rng.normal(size=(10, 300))
        totals = stats.cluster_totals(matrix, clusters)
        by_query.append(stats.interval([matrix], samples=SAMPLES))
        by_cluster.append(stats.interval([totals], samples=SAMPLES))
    assert covers(by_query) < 0.75
    assert covers(by_cluster) >= 0.95 - error(0.95, runs, 3)


def test_ratio_interval_covers_and_rarely_supports_its_own_threshold() -> None:
    runs, rng, found = 400, np.random.default_rng(3), []
    for n in range(runs):
        skill = 1 + 0.1 * rng.normal(size=(10, 1))
        new = (rng.random((10, 200)) < 0.24 * skill).astype(float)
        old = (rng.random((1, 200)) < 0.2).astype(float)
        found.append(stats.ratio_interval([new], [old], samples=SAMPLES, seed=n))
    assert covers(found, 1.2) >= 0.95 - error(0.95, runs, 3)
    supported = share([stats.verdict("ratio", i, 1.2) == "SUPPORTED" for i in found])
    assert supported <= 0.025 + error(0.025, runs, 3)


def test_prediction_interval_holds_the_next_run() -> None:
    rng = np.random.default_rng(4)
    runs = rng.normal(size=(2000, 6))
    limits = [stats.prediction_interval(row[:5]) for row in runs]
    held = [low <= row[5] <= high for (low, high), row in zip(limits, runs, strict=True)]
    assert share(held) == pytest.approx(0.95, abs=error(0.95, 2000, 3))


def test_the_stated_number_of_seeds_sees_the_stated_effect() -> None:
    effect, sd = 0.5, 0.6
    seeds = stats.seeds_needed(effect, sd)
    rng = np.random.default_rng(5)
    draws = [[effect + sd * rng.normal(size=(seeds, 1))] for _ in range(RUNS)]
    seen = [stats.verdict("superiority", stats.paired_t_interval(d)) == "SUPPORTED" for d in draws]
    assert share(seen) == pytest.approx(0.8, abs=error(0.8, RUNS, 3))
