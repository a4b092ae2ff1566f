"""How unequal counts are, and whether their tail is a power law.

Source: Clauset, Shalizi and Newman (2009), the fit and its test; Vuong (1989), the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import zeta
from scipy.stats import norm

from minisearch.profiles import derive_seed


def gini(counts: np.ndarray) -> float:
    """Gini coefficient; not a number where nothing was counted. Shape: (N,)."""
    size, total = len(counts), counts.sum()
    weights = 2 * np.arange(1, size + 1) - size - 1
    return float(weights @ np.sort(counts) / (size * total)) if total else np.nan


def concentration(counts: np.ndarray) -> dict[str, float]:
    """How unequally a count is spread: Gini, rare ones, traffic of the top. Shape: (N,)."""
    largest, total = np.sort(counts)[::-1], max(counts.sum(), 1)
    rare = {f"share with at most {k}": np.mean(counts <= k) for k in (0, 1, 5, 20)}
    top = {f"top {p} %": largest[: -(-len(counts) * p // 100)].sum() for p in (1, 10)}
    traffic = {f"traffic of {name}": part / total for name, part in top.items()}
    return {"Gini": gini(counts), **rare, **traffic}


@dataclass(frozen=True)
class TailFit:
    """A power law above `x_min`, and how far to trust it."""

    x_min: int
    share: float  # of the counts above 0 that reach x_min
    exponent: float
    error: float  # standard error of the exponent
    line: float  # the exponent that a line through the log-log histogram would give
    p: float  # share of bootstrap data sets that fit no better; nan without any
    z: float  # Vuong's z


def tail_fit(
    counts: np.ndarray, seed: int, replicates: int = 200, whole: bool = False
) -> TailFit | None:
    """Fit the tail, or all counts above 0 if `whole`; None where too few. Shape: (N,) int."""
    values = counts[counts > 0]
    edges, starts = candidates(values) if len(values) else (values, values)
    if not len(starts):
        return None
    starts = starts[:1] if whole else starts
    (start,), (alpha,), (distance,) = best_tails(in_cells(values, edges)[None], edges, starts)
    x_min, alpha = int(edges[start]), float(alpha)
    body, tail = values[values < x_min], values[values >= x_min]
    rng, drawn = np.random.default_rng(derive_seed(seed, "tail fit")), []
    for _ in range(replicates):
        size = rng.binomial(len(values), len(tail) / len(values))
        below = rng.choice(body, len(values) - size)
        both = np.concatenate([below, draw_power_law(rng, alpha, x_min, size)])
        drawn.append(in_cells(both, edges))
    farther = [np.nan]
    if drawn:
        farther = best_tails(np.array(drawn), edges, starts)[2] >= distance
    curve = np.log(zeta(alpha + np.array([-0.01, 0, 0.01]), x_min))
    error = float(0.01 / np.sqrt(np.diff(curve, n=2)[0] * len(tail)))
    points, heights = np.unique(tail, return_counts=True)
    line = -float(np.polyfit(np.log(points), np.log(heights), 1)[0])
    share, z = len(tail) / len(values), vuong_z(tail, x_min, alpha)
    return TailFit(x_min, share, alpha, error, line, float(np.mean(farther)), z)


def candidates(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to compare observed and fitted shares, and which places may be x_min.

    A tail needs 50 counts, 5 of them different. Shape: (n,) -> (G,), (C,), C may be 0.
    """
    tries = np.quantile(values, 1 - np.geomspace(1, 0.01, 25), method="lower")
    edges = np.geomspace(values.min(), values.max(), 300).round().astype(int)
    tails = [values[values >= start] for start in np.unique(tries)]
    rich = [len(tail) >= 50 and len(np.unique(tail)) >= 5 for tail in tails]
    edges = np.union1d(edges, tries)
    return edges, np.searchsorted(edges, np.unique(tries)[rich])


def best_exponents(mean_logs: np.ndarray, x_mins: np.ndarray) -> np.ndarray:
    """The likeliest exponent of each tail. Shape: (R, C) means of ln x, (C,) -> (R, C)."""
    grid = 1 + np.geomspace(0.05, 30, 700)  # (A,); a steeper tail is hardly a tail
    curve = np.log(zeta(grid[:, None], x_mins))
    expected = -np.diff(curve, axis=0) / np.diff(grid)[:, None]  # E[ln x], falling
    middle = (grid[1:] + grid[:-1]) / 2
    pairs = zip(mean_logs.T, expected.T, strict=True)
    return np.stack([np.interp(m, e[::-1], middle[::-1]) for m, e in pairs], axis=1)


def in_cells(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Number and sum of ln x of the values from each edge to the next. Shape: -> (2, G)."""
    cell = np.searchsorted(edges, values, side="right") - 1
    parts = [np.ones(len(values)), np.log(values)]
    return np.stack([np.bincount(cell, part, len(edges)) for part in parts])


def best_tails(
    cells: np.ndarray, edges: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of R data sets at once: the best start, its exponent and its distance.

    Shape: (R, 2, G) from `in_cells`, (G,), (C,) places in `edges` -> three of (R,).
    """
    above, logs = cells[..., ::-1].cumsum(-1)[..., ::-1].swapaxes(0, 1)  # (R, G) each
    sizes = np.maximum(above[:, starts], 1)  # (R, C)
    exponents = best_exponents(logs[:, starts] / sizes, edges[starts])
    total = zeta(exponents, edges[starts])
    model = zeta(exponents[..., None], edges) / total[..., None]  # (R, C, G)
    gaps = np.abs(above[:, None] / sizes[..., None] - model)
    distances = (gaps * (np.arange(len(edges)) >= starts[:, None])).max(axis=2)
    rows, best = np.arange(len(cells)), distances.argmin(axis=1)
    return starts[best], exponents[rows, best], distances[rows, best]


def draw_power_law(rng: np.random.Generator, exponent: float, x_min: int, size: int) -> np.ndarray:
    """Whole numbers from x_min on; far out the continuous law will do. Shape: -> (size,)."""
    reach = zeta(exponent, x_min + np.arange(1001)) / zeta(exponent, x_min)
    left = 1 - rng.random(size)
    values = x_min + np.maximum(np.searchsorted(-reach, -left) - 1, 0)
    far = left < reach[-1]
    stretch = (left[far] / reach[-1]) ** (-1 / (exponent - 1))
    values[far] = np.minimum((x_min + 999.5) * stretch + 0.5, 1e15).astype(int)
    return values


def vuong_z(tail: np.ndarray, x_min: int, exponent: float) -> float:
    """Above 0: the power law is likelier than a rounded log-normal cut off at x_min.

    Shape: tail (n,), whole numbers from x_min on, not all alike.
    """
    values, times = np.unique(tail, return_counts=True)

    def lognormal(place: np.ndarray) -> np.ndarray:
        edges = np.log([values - 0.5, values + 0.5, np.full(len(values), x_min - 0.5)])
        low, high, start = norm.logsf((edges - place[0]) / np.exp(place[1]))
        return low - start + np.log(np.maximum(-np.expm1(high - low), 1e-300))

    guess = [np.log(tail).mean(), np.log(np.log(tail).std())]
    best = minimize(lambda p: -(times @ lognormal(p)), guess, method="Nelder-Mead").x
    power = -exponent * np.log(values) - np.log(zeta(exponent, x_min))
    gap = power - lognormal(best)
    mean = times @ gap / len(tail)
    return float(mean * len(tail) / np.sqrt(times @ (gap - mean) ** 2))
