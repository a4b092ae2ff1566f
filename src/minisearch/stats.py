"""Intervals, verdicts and power for paired comparisons over worlds, seeds and queries.

A comparison is a list with one matrix a world, ``D[s, q]`` = treatment minus baseline of seed ``s``
on query ``q``. Seeds and queries are drawn at random and crossed; the worlds are the ones at hand,
so every interval speaks about these worlds only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from minisearch.errors import InputError, one_of
from minisearch.profiles import derive_seed

Array = np.ndarray[Any, np.dtype[Any]]
ClaimType = Literal["superiority", "non_inferiority", "equivalence", "ratio"]
CLAIM_TYPES: tuple[ClaimType, ...] = ("superiority", "non_inferiority", "equivalence", "ratio")
LEVEL = 0.95  # of every interval: one-sided errors of 2.5 %
FEW_SEEDS = 15  # below it the paired t interval counts when it is the wider one
_MANY = 1e6  # degrees of freedom that stand for "no variance had to be estimated"


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and what it rests on; `seeds` is the fewest of a world."""

    estimate: float
    low: float
    high: float
    method: str
    df: float
    seeds: int
    worlds: int
    queries: int
    beside: Interval | None = None

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class _Effects:
    """One world's matrix taken apart: seed and query effects, and the variance each adds."""

    seed_effects: Array
    query_effects: Array
    seed_variance: float
    query_variance: float


def paired_differences(treatment: Sequence[Array], baseline: Sequence[Array]) -> list[Array]:
    """Treatment minus baseline, world by world; an arm with one row is shared by every seed.

    Shape: per world (S, Q) or (1, Q) -> (S, Q); row s of both arms comes from the same seed.

    Raises:
        InputError: when worlds, queries or seeds do not pair up, or a value is not finite.
    """
    if len(treatment) != len(baseline) or not treatment:
        found = f"{len(treatment)} worlds of the treatment and {len(baseline)} of the baseline"
        raise InputError("paired differences", found, "the same worlds", "run the missing cells.")
    differences = []
    for world, (new, old) in enumerate(zip(treatment, baseline, strict=True)):
        where, paired = f"paired differences, world {world}", len(new) == len(old)
        if new.shape[1] != old.shape[1] or not (paired or 1 in (len(new), len(old))):
            found, remedy = (
                f"shapes {new.shape} and {old.shape}",
                "pair the same queries and seeds.",
            )
            raise InputError(where, found, "equal shapes", remedy)
        differences.append(np.asarray(new, float) - np.asarray(old, float))
        if not differences[-1].size or not np.isfinite(differences[-1]).all():
            found = "no value, or one that is not finite"
            raise InputError(where, found, "one number a seed and query", "check the metric.")
    return differences


def cluster_totals(matrix: Array, clusters: Array) -> Array:
    """Queries that share their luck (the same words, asked often) as one unit for resampling.

    Column c is the row's mean plus the summed deviations of cluster c, scaled so that each row
    still averages to its mean over queries. Shape: (S, Q), (Q,) -> (S, C).
    """
    _, labels = np.unique(clusters, return_inverse=True)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) > 0])
    mean = matrix.mean(axis=1, keepdims=True)
    sums = np.add.reduceat((matrix - mean)[:, order], starts, axis=1)
    return np.asarray(mean + sums * len(starts) / matrix.shape[1])


def _effects(matrix: Array) -> _Effects:
    """Seed and query effects whose resampled means have the variance the true means have.

    The plain crossed bootstrap counts the seed-by-query noise three times and the seed variance
    only (S-1)/S times. Here row means are stretched by sqrt(S/(S-1)), and column means, which carry
    1/S of that noise once more, are shrunk to the variance of the query effects alone.
    """
    (seeds, queries), mean = matrix.shape, matrix.mean()
    rows, columns = matrix.mean(axis=1) - mean, matrix.mean(axis=0) - mean
    seed_variance = rows @ rows / (seeds - 1) / seeds if seeds > 1 else 0.0
    column_variance = columns @ columns / (queries - 1) / queries if queries > 1 else 0.0
    query_variance = column_variance
    if seeds > 1 and queries > 1:
        noise = ((matrix - mean) ** 2).sum() - queries * (rows @ rows) - seeds * (columns @ columns)
        noise /= (seeds - 1) * (queries - 1)
        query_variance = max(0.0, column_variance - noise / (seeds * queries))
    if seeds > 1:
        rows = rows * math.sqrt(seeds / (seeds - 1))
    if column_variance > 0:
        shrink = query_variance / column_variance
        columns = columns * math.sqrt(shrink * queries / (queries - 1))
    return _Effects(rows, columns, float(seed_variance), float(query_variance))


def _degrees_of_freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Satterthwaite's for a sum of estimated variances, each given with its own (n - 1)."""
    below = sum(variance**2 / df for variance, df in parts if df > 0)
    return min(sum(v for v, _ in parts) ** 2 / below, _MANY) if below > 0 else _MANY


def _quantile(df: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def _resampled_means(values: Array, samples: int, rng: np.random.Generator) -> Array:
    """Means of `samples` draws with replacement. Shape: (n,) -> (samples,)."""
    if not values.any():
        return np.zeros(samples)
    rows = max(1, 2_000_000 // len(values))  # bounds the index block to 16 MB
    sizes = [min(rows, samples - start) for start in range(0, samples, rows)]
    draws = (rng.integers(len(values), size=(n, len(values)), dtype=np.int32) for n in sizes)
    return np.concatenate([values[draw].mean(axis=1) for draw in draws])


def crossed_bootstrap(
    differences: Sequence[Array], *, samples: int = 2000, seed: int = 0
) -> Interval:
    """95 % bootstrap interval of the mean difference, seeds and queries resampled independently.

    Percentile limits around the estimate, corrected for small samples: effects as in `_effects`,
    deviations widened by t over normal quantiles (Satterthwaite's degrees of freedom).

    Args:
        differences: one matrix a world. Shape: (S_w, Q_w).
    """
    rng = np.random.default_rng(derive_seed(seed, "crossed bootstrap"))
    worlds = [_effects(matrix) for matrix in differences]
    deviations = np.zeros(samples)
    parts: list[tuple[float, int]] = []
    for world in worlds:
        by_seed = (world.seed_effects, world.seed_variance)
        for effects, variance in (by_seed, (world.query_effects, world.query_variance)):
            deviations += _resampled_means(effects, samples, rng) / len(worlds)
            parts.append((variance / len(worlds) ** 2, len(effects) - 1))
    df, tail = _degrees_of_freedom(parts), (1 + LEVEL) / 2
    widen = _quantile(df, tail) / _quantile(_MANY, tail)
    low, high = widen * np.quantile(deviations, [1 - tail, tail])
    return _interval(differences, (float(low), float(high)), "crossed bootstrap", df)


def paired_t_interval(differences: Sequence[Array]) -> Interval:
    """95 % t interval over seeds, worlds as strata; the queries count as the whole population."""
    count = len(differences)
    worlds = [_effects(matrix) for matrix in differences]
    parts = [(w.seed_variance / count**2, len(w.seed_effects) - 1) for w in worlds]
    df = _degrees_of_freedom(parts)
    half = _quantile(df, (1 + LEVEL) / 2) * math.sqrt(sum(variance for variance, _ in parts))
    return _interval(differences, (-half, half), "paired t over seeds", df)


def _interval(
    differences: Sequence[Array], offsets: tuple[float, float], method: str, df: float
) -> Interval:
    estimate = float(np.mean([matrix.mean() for matrix in differences]))
    seeds = min(matrix.shape[0] for matrix in differences)
    queries = sum(matrix.shape[1] for matrix in differences)
    low, high = estimate + offsets[0], estimate + offsets[1]
    return Interval(estimate, low, high, method, df, seeds, len(differences), queries)


def interval(differences: Sequence[Array], *, samples: int = 2000, seed: int = 0) -> Interval:
    """The interval that counts: the crossed bootstrap, or the paired t where it is wider.

    The paired t competes below `FEW_SEEDS` seeds; the loser stays readable in `.beside`. With one
    seed (two deterministic arms) only queries are resampled.

    Raises:
        InputError: for one seed and one number a world, from which no noise can be told.
    """
    if all(matrix.size == 1 for matrix in differences):
        expected, remedy = "several seeds or queries", "record per-query rows, or run more seeds."
        raise InputError("interval", "one number a world", expected, remedy)
    bootstrap = crossed_bootstrap(differences, samples=samples, seed=seed)
    if bootstrap.seeds == 1:
        return replace(bootstrap, method="bootstrap over queries")
    if bootstrap.seeds >= FEW_SEEDS:
        return bootstrap
    paired = paired_t_interval(differences)
    used, other = (paired, bootstrap) if paired.width > bootstrap.width else (bootstrap, paired)
    return replace(used, beside=other)


def ratio_interval(
    treatment: Sequence[Array], baseline: Sequence[Array], *, samples: int = 2000, seed: int = 0
) -> Interval:
    """`interval` for the ratio of means (averaged over worlds), linearised around its estimate.

    Raises:
        InputError: when the baseline's own interval reaches zero, where a ratio has no meaning.
    """
    below = interval([np.asarray(matrix, float) for matrix in baseline], samples=samples, seed=seed)
    if below.low <= 0:
        found = f"a baseline of {below.estimate:.4g} whose interval begins at {below.low:.4g}"
        remedy = "register a difference instead of a ratio."
        raise InputError("ratio claim", found, "a baseline clearly above zero", remedy)
    above = float(np.mean([matrix.mean() for matrix in treatment]))
    ratio = above / below.estimate
    parts = paired_differences(treatment, [matrix * ratio for matrix in baseline])
    linear = [ratio + part / below.estimate for part in parts]
    return interval(linear, samples=samples, seed=seed)


def verdict(kind: ClaimType, found: Interval, margin: float = 0.0) -> str:
    """SUPPORTED, CONTRADICTED or INCONCLUSIVE: where the 95 % interval lies against the claim.

    Claims: superiority d > 0, non-inferiority d > -margin, equivalence |d| < margin, ratio
    r > margin. Supported: the whole interval satisfies it; contradicted: no part of it does.
    Equivalence is two one-sided tests at 2.5 % each, so that all four types err equally often.
    """
    lower, upper = claimed_range(kind, margin)
    if found.low > lower and found.high < upper:
        return "SUPPORTED"
    if found.high <= lower or found.low >= upper:
        return "CONTRADICTED"
    return "INCONCLUSIVE"


def claimed_range(kind: ClaimType, margin: float = 0.0) -> tuple[float, float]:
    """The open range in which the claim says the effect lies."""
    if kind not in CLAIM_TYPES:
        raise one_of("claim type", kind, list(CLAIM_TYPES))
    lower = {"superiority": 0.0, "ratio": margin}.get(kind, -margin)
    return lower, margin if kind == "equivalence" else math.inf


def p_value(kind: ClaimType, found: Interval, margin: float = 0.0) -> float:
    """Two-sided p of the decision: below 0.05 exactly when `verdict` decides for or against.

    Each side of the interval is read as a t distribution with that side's own width.
    """
    lower, upper = claimed_range(kind, margin)
    held, broken = 0.0, 1.0
    for bound, inside in ((lower, found.estimate > lower), (upper, found.estimate < upper)):
        p = _beyond(found, bound)
        held, broken = max(held, p if inside else 1.0), min(broken, 1.0 if inside else p)
    return min(held, broken)


def _beyond(found: Interval, bound: float) -> float:
    """Two-sided p of a true effect at `bound`."""
    from scipy.special import stdtr

    side = found.estimate - found.low if bound < found.estimate else found.high - found.estimate
    distance = abs(found.estimate - bound)
    if side == 0:
        return 0.0 if distance > 0 else 1.0
    return 2 * float(stdtr(found.df, -distance / side * _quantile(found.df, (1 + LEVEL) / 2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def smallest_detectable(found: Interval, power: float = 0.8) -> float:
    """The smallest true effect that an interval of this width would have told from none."""
    tail = _quantile(found.df, (1 + LEVEL) / 2)
    return found.width / 2 * (1 + _quantile(found.df, power) / tail)


def seeds_needed(
    effect: float, seed_sd: float, *, worlds: int = 1, query_error: float = 0.0, power: float = 0.8
) -> int:
    """Seeds a world that show `effect` with the given power, at least 2.

    Args:
        effect: the true mean difference to be seen.
        seed_sd: standard deviation of the per-seed mean differences within a world.
        query_error: standard error that the finite set of queries leaves at any number of seeds.

    Raises:
        InputError: when no number of seeds is enough, because queries are the limit.
    """
    floor = (_quantile(_MANY, (1 + LEVEL) / 2) + _quantile(_MANY, power)) * query_error
    if effect <= floor:
        remedy = "enlarge the evaluation set."
        raise InputError("power", f"an effect of {effect:g}", f"more than {floor:.3g}", remedy)
    for seeds in range(2, 100_000):
        seed_part = seed_sd**2 / (worlds * seeds)
        df = _degrees_of_freedom([(seed_part, worlds * (seeds - 1)), (query_error**2, int(_MANY))])
        reach = _quantile(df, (1 + LEVEL) / 2) + _quantile(df, power)
        if reach * math.sqrt(seed_part + query_error**2) <= effect:
            return seeds
    raise InputError(
        "power", f"sd {seed_sd:g}", "fewer than 100,000 seeds", "state a larger effect."
    )


def prediction_interval(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """Where one more run would fall: mean +- t * sd * sqrt(1 + 1/n). Shape: (n,), n >= 2."""
    if len(values) < 2:
        found = f"{len(values)} run"
        raise InputError("prediction interval", found, "at least two runs", "run more seeds.")
    spread = float(values.std(ddof=1)) * math.sqrt(1 + 1 / len(values))
    half, mean = _quantile(len(values) - 1, (1 + level) / 2) * spread, float(values.mean())
    return mean - half, mean + half
