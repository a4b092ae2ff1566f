"""Concentration by hand, and tails with known exponents."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import zeta

from minisearch.tails import (
    best_exponents,
    best_tails,
    candidates,
    concentration,
    draw_power_law,
    gini,
    in_cells,
    tail_fit,
)

# --- concentration ---


def test_gini_of_known_shares():
    assert gini(np.array([3, 3, 3, 3])) == 0
    assert gini(np.array([0, 4, 0, 0])) == pytest.approx(0.75)  # (n - 1) / n
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert np.isnan(gini(np.zeros(3, int)))
    assert np.isnan(gini(np.empty(0, int)))


def test_concentration_by_hand():
    found = concentration(np.array([10, 0, 1, 5, 4, 0, 0, 0, 0, 0]))
    assert found["share with at most 0"] == 0.6
    assert found["share with at most 1"] == 0.7
    assert found["share with at most 5"] == 0.9
    assert found["traffic of top 10 %"] == 0.5


# --- the power law ---


def zeta_sample(exponent, x_min, size, seed):
    """Numpy's own sampler of the zeta law; above x_min it is the same law, cut off."""
    rng, parts = np.random.default_rng(seed), []
    while sum(map(len, parts)) < size:
        drawn = rng.zipf(exponent, 50 * size)
        parts.append(drawn[(drawn >= x_min) & (drawn < 2**40)])
    return np.concatenate(parts)[:size]


@pytest.mark.parametrize(("exponent", "x_min"), [(1.8, 1), (2.5, 1), (2.5, 4), (3.5, 2)])
def test_the_exponent_is_recovered(exponent, x_min):
    for seed in range(3):
        sample = zeta_sample(exponent, x_min, 3000, seed)
        fit = tail_fit(sample, seed, replicates=0, whole=True)
        assert fit.x_min == x_min
        assert fit.share == 1
        assert abs(fit.exponent - exponent) < 3 * fit.error
        assert np.isnan(fit.p)


def test_the_standard_error_is_the_spread_of_the_estimates():
    samples = (zeta_sample(2.5, 1, 400, seed) for seed in range(40))
    fits = [tail_fit(sample, 0, replicates=0, whole=True) for sample in samples]
    spread = np.std([fit.exponent for fit in fits])
    assert spread == pytest.approx(np.mean([fit.error for fit in fits]), rel=0.3)


def test_the_estimate_is_the_maximum_of_the_likelihood():
    tail = zeta_sample(2.2, 3, 400, seed=5)
    logs = np.log(tail).sum()
    loss = lambda a: len(tail) * np.log(zeta(a, 3)) + a * logs  # noqa: E731
    best = minimize_scalar(loss, bounds=(1.1, 6), method="bounded", options={"xatol": 1e-8}).x
    fit = tail_fit(tail, 0, replicates=0, whole=True)
    assert fit.exponent == pytest.approx(best, abs=1e-3)


def test_the_distance_is_the_largest_gap():
    values, edges = np.array([1, 1, 1, 2, 2, 5]), np.arange(1, 6)
    cells = in_cells(values, edges)
    assert cells[0].tolist() == [3, 2, 0, 0, 1]
    starts, exponents, distances = best_tails(cells[None], edges, np.array([0]))
    reached = np.array([6, 3, 1, 1, 1]) / 6
    law = zeta(exponents[0], edges) / zeta(exponents[0], 1)
    assert starts.tolist() == [0]
    assert distances[0] == pytest.approx(np.abs(reached - law).max())


def test_candidates_leave_a_tail_worth_fitting():
    values = np.concatenate([np.repeat([1, 2, 3], 200), np.repeat([4, 5, 6, 7, 8], 12)])
    edges, starts = candidates(values)
    assert edges[starts].max() == 4  # from 5 on 48 counts are left, and 50 are needed
    assert {1, 4} <= set(edges[starts])
    steps = np.repeat([1, 2, 3, 4, 5], 100)
    edges, starts = candidates(steps)
    assert edges[starts].tolist() == [1]  # from 2 on four different ones are left, of 5 needed


def test_cells_hold_how_many_counts_and_their_logarithms():
    cells = in_cells(np.array([2, 3, 3, 9, 40]), np.array([2, 3, 10]))
    expected = [[1, 3, 1], np.log([2, 3 * 3 * 9, 40])]
    np.testing.assert_allclose(cells, expected)


def test_the_exponent_is_where_the_mean_logarithm_is_the_expected_one():
    exponents, x_mins, x = np.array([1.7, 2.5]), np.array([3, 1]), np.arange(1.0, 2e6)
    means = []
    for exponent, x_min in zip(exponents, x_mins, strict=True):
        seen = x[x >= x_min]
        rest = seen[-1] + 0.5  # beyond it the sum is an integral
        far = rest ** (1 - exponent) / (exponent - 1)
        known = far * (np.log(rest) + 1 / (exponent - 1)) + (np.log(seen) * seen**-exponent).sum()
        means.append(known / zeta(exponent, x_min))
    found = best_exponents(np.array([means, means[::-1]]), x_mins)
    np.testing.assert_allclose(found[0], exponents, atol=2e-3)
    assert not np.allclose(found[1], exponents, atol=0.1)


def test_x_min_is_found_where_the_power_law_begins():
    rng = np.random.default_rng(0)
    tail = zeta_sample(2.5, 10, 1500, seed=0)
    fit = tail_fit(np.concatenate([rng.integers(1, 10, 2500), tail]), 0, replicates=0)
    assert 8 <= fit.x_min <= 20
    assert abs(fit.exponent - 2.5) < 4 * fit.error


def test_draws_follow_the_law_near_and_far():
    drawn = draw_power_law(np.random.default_rng(0), 1.5, 2, 200_000)
    assert drawn.min() == 2
    for x in (2, 3, 10, 100, 1001, 1002, 1003, 5000, 10**6):  # the method changes at 1002
        expected = zeta(1.5, x) / zeta(1.5, 2)
        error = np.sqrt(expected * (1 - expected) / len(drawn))
        assert abs(np.mean(drawn >= x) - expected) <= 4 * error + 1e-12


def test_true_power_laws_are_seldom_rejected():
    samples = {seed: zeta_sample(2.5, 1, 1000, seed) for seed in range(20)}
    fits = [tail_fit(sample, seed, replicates=60) for seed, sample in samples.items()]
    assert sum(fit.p >= 0.1 for fit in fits) >= 15
    assert sum(fit.p >= 0.9 for fit in fits) <= 9  # a test that passes everything is none
    assert sum(abs(fit.z) < 3 for fit in fits) == 20


@pytest.mark.parametrize("kind", ["poisson", "lognormal", "uniform"])
def test_other_laws_are_rejected_as_a_whole(kind):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        counts = {
            "poisson": rng.poisson(20, 1500),
            "lognormal": np.exp(rng.normal(3, 0.3, 1500)).round().astype(int),
            "uniform": rng.integers(1, 60, 1500),
        }[kind]
        assert tail_fit(counts, seed, replicates=60, whole=True).p == 0


def test_of_other_laws_only_a_small_piece_may_pass():
    for seed in range(6):
        counts = np.random.default_rng(seed).poisson(20, 1500)
        fit = tail_fit(counts, seed, replicates=40)
        assert fit.p < 0.1 or fit.share < 0.2


def test_vuong_tells_the_laws_apart_where_the_data_can():
    rng = np.random.default_rng(0)
    lognormal = np.exp(rng.normal(3, 0.5, 3000)).round().astype(int)
    assert tail_fit(lognormal, 0, replicates=0, whole=True).z < -5
    values = draw_power_law(rng, 2.5, 1, 3000)
    assert tail_fit(values, 0, replicates=0, whole=True).z > -2


def test_a_line_through_the_histogram_is_too_flat():
    fit = tail_fit(zeta_sample(2.5, 1, 3000, 1), 0, replicates=0, whole=True)
    assert fit.line < 2.2 < fit.exponent


def test_a_seed_gives_the_same_fit():
    counts = zeta_sample(2.5, 1, 300, 0)
    assert tail_fit(counts, 3, 20) == tail_fit(counts, 3, 20)


@pytest.mark.parametrize(
    "counts",
    [[], [0] * 500, [1], [7] * 500, [1, 2, 3, 4] * 200, list(range(1, 40)), [10**9] * 60],
    ids=["empty", "zeros", "one", "constant", "four values", "few", "huge"],
)
def test_too_few_is_said_not_raised(counts):
    assert tail_fit(np.array(counts, dtype=int), 0, 10) is None


def test_one_value_that_dwarfs_the_others_is_survived():
    counts = np.array([1, 2, 3, 4, 5] * 40 + [10**9])
    assert tail_fit(counts, 0, 10).x_min >= 1
