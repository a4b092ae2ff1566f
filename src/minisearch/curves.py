"""Learning curves of many runs: their middle, its limits, and the area below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minisearch.profiles import derive_seed
from minisearch.stats import LEVEL, Array


def interquartile_mean(values: Array) -> Array:
    """Mean of the middle half along axis 0, a quarter (rounded down) cut off at each end."""
    cut = values.shape[0] // 4
    ordered = np.sort(values, axis=0)
    return np.asarray(ordered[cut : values.shape[0] - cut].mean(axis=0))


def interquartile_mean_curve(
    curves: Sequence[Array], *, samples: int = 2000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """IQM of all runs at each step with 95 % limits, runs resampled within their world.

    Shape: one (S_w, T) array a world -> estimate, low, high, each (T,).
    """
    rng = np.random.default_rng(derive_seed(seed, "learning curves"))
    draws = [
        interquartile_mean(np.concatenate([rng.choice(runs, size=len(runs)) for runs in curves]))
        for _ in range(samples)
    ]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return interquartile_mean(np.concatenate(list(curves))), low, high


def area_under_curve(rollouts: Array, values: Array) -> Array:
    """Mean height of a learning curve over its rollouts. Shape: (T,), (..., T) -> (...)."""
    return np.asarray(np.trapezoid(values, rollouts, axis=-1) / (rollouts[-1] - rollouts[0]))
