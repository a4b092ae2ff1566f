"""Statistics against hand-computed values, scipy, and properties that must hold exactly."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import scipy.stats

from minisearch import curves, stats
from minisearch.errors import InputError

RNG = np.random.default_rng(0)


def an_interval(estimate: float, low: float, high: float, df: float = 10.0) -> stats.Interval:
    return stats.Interval(estimate, low, high, "by hand", df, 5, 1, 100)


def test_a_deterministic_arm_is_shared_by_every_seed():
    differences = stats.paired_differences([np.array([[1.0, 2], [3, 4]])], [np.array([[1.0, 1]])])
    assert np.array_equal(differences[0], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("treatment", "baseline", "message"),
    [
        ([np.zeros((2, 3))], [], "the same worlds"),
        ([np.zeros((2, 3))], [np.zeros((2, 4))], r"shapes \(2, 3\) and \(2, 4\)"),
        ([np.zeros((2, 3))], [np.zeros((3, 3))], "same queries and seeds"),
        ([np.full((2, 3), np.nan)], [np.zeros((1, 3))], "not finite"),
    ],
)
def test_what_does_not_pair_up_is_refused(treatment, baseline, message):
    with pytest.raises(InputError, match=message):
        stats.paired_differences(treatment, baseline)


def test_paired_t_of_one_world_is_the_textbook_interval():
    matrix = RNG.normal(0.3, 1, size=(7, 40))
    means = matrix.mean(axis=1)
    expected = scipy.stats.t.interval(0.95, 6, means.mean(), scipy.stats.sem(means))
    found = stats.paired_t_interval([matrix])
    assert (found.low, found.high) == pytest.approx(expected)


def test_two_worlds_are_strata_as_in_welch():
    """Half the sum of two means has half the standard error of their difference."""
    first, second = RNG.normal(size=(6, 1)), RNG.normal(scale=3, size=(9, 1))
    welch = scipy.stats.ttest_ind(first[:, 0], second[:, 0], equal_var=False).confidence_interval()
    found = stats.paired_t_interval([first, second])
    assert found.width == pytest.approx((welch.high - welch.low) / 2)


def test_bootstrap_has_the_width_that_the_variance_components_imply():
    """Closed form: var = s2/S + q2/Q + e2/(SQ), all three estimated without bias by ANOVA."""
    seeds, queries = 20, 300
    matrix = RNG.normal(size=(seeds, 1)) + RNG.normal(size=(1, queries))
    matrix = matrix + 3 * RNG.normal(size=(seeds, queries))
    found = stats.crossed_bootstrap([matrix], samples=20_000)
    rows, columns = matrix.mean(1).var(ddof=1), matrix.mean(0).var(ddof=1)
    residual = matrix - matrix.mean(1, keepdims=True) - matrix.mean(0) + matrix.mean()
    noise = (residual**2).sum() / (seeds - 1) / (queries - 1)
    error = math.sqrt(rows / seeds + columns / queries - noise / (seeds * queries))
    assert found.width == pytest.approx(2 * scipy.stats.t.ppf(0.975, found.df) * error, rel=0.03)


def test_resampled_effects_have_the_variance_of_the_true_ones():
    """A mean of n draws from effects e varies by mean(e ** 2) / n: no (n - 1) / n is lost."""
    matrix = RNG.normal(size=(4, 1)) + RNG.normal(size=(1, 6)) + 0.5 * RNG.normal(size=(4, 6))
    found = stats._effects(matrix)
    assert found.seed_variance == pytest.approx(matrix.mean(1).var(ddof=1) / 4)
    assert (found.seed_effects**2).mean() / 4 == pytest.approx(found.seed_variance)
    assert (found.query_effects**2).mean() / 6 == pytest.approx(found.query_variance)
    assert 0 < found.query_variance < matrix.mean(0).var(ddof=1) / 6  # the noise is taken out


def test_two_deterministic_arms_resample_queries_only():
    values = RNG.exponential(size=(1, 500))
    found = stats.interval([values], samples=20_000)
    expected = scipy.stats.bootstrap(
        (values[0],), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert found.method == "bootstrap over queries"
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=0.01)


def test_with_few_seeds_the_wider_interval_counts_and_the_other_is_kept():
    by_seed = RNG.normal(size=(5, 1)) + 0.01 * RNG.normal(size=(5, 50))
    by_query = RNG.normal(size=(1, 50)) + 0.01 * RNG.normal(size=(5, 50))
    for matrix in (by_seed, by_query):
        found = stats.interval([matrix])
        assert found.beside is not None
        assert found.width >= found.beside.width
        assert {found.method, found.beside.method} == {"crossed bootstrap", "paired t over seeds"}
    assert stats.interval([by_query]).method == "crossed bootstrap"
    assert stats.interval([np.tile(by_seed, (3, 1))]).beside is None  # fifteen seeds


def test_one_number_tells_no_noise():
    with pytest.raises(InputError, match="several seeds or queries"):
        stats.interval([np.ones((1, 1))])


def test_the_same_seed_gives_the_same_interval():
    matrix = RNG.normal(size=(5, 50))
    assert stats.interval([matrix], seed=3) == stats.interval([matrix], seed=3)


def test_no_difference_at_all_has_an_interval_of_no_width():
    found = stats.interval([np.zeros((5, 20))])
    assert (found.low, found.high) == (0, 0)
    assert stats.verdict("superiority", found) == "CONTRADICTED"
    assert stats.verdict("equivalence", found, 0.01) == "SUPPORTED"


def test_clusters_keep_the_mean_and_widen_the_interval():
    clusters = np.repeat(np.arange(40), 25)
    matrix = np.repeat(RNG.normal(size=(1, 40)), 25, axis=1)
    totals = stats.cluster_totals(matrix, clusters)
    assert totals.shape == (1, 40)
    assert totals.mean() == pytest.approx(matrix.mean())
    wide, narrow = stats.interval([totals]), stats.interval([matrix])
    assert wide.width == pytest.approx(5 * narrow.width, rel=0.1)  # sqrt(25) times


def test_uneven_clusters_have_the_error_of_a_ratio_of_totals():
    sizes = RNG.integers(1, 30, size=200)
    clusters = np.repeat(np.arange(200), sizes)
    values = RNG.normal(size=200)[clusters] + 1.0
    totals = stats.cluster_totals(values[None], clusters)[0]
    means = []
    for _ in range(4000):
        drawn = RNG.integers(200, size=200)
        sums = np.bincount(clusters, values)
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    assert totals.mean() == pytest.approx(values.mean())
    assert totals.std(ddof=1) / math.sqrt(200) == pytest.approx(np.std(means), rel=0.06)


def test_ratio_interval_agrees_with_a_bootstrap_of_the_ratio_itself():
    new, old = RNG.random((1, 400)) < 0.3, RNG.random((1, 400)) < 0.2
    found = stats.ratio_interval([new.astype(float)], [old.astype(float)], samples=20_000)
    drawn = RNG.integers(400, size=(20_000, 400))
    ratios = new[0][drawn].mean(1) / old[0][drawn].mean(1)
    assert found.estimate == pytest.approx(new.mean() / old.mean())
    assert found.width == pytest.approx(np.diff(np.quantile(ratios, [0.025, 0.975]))[0], rel=0.08)


def test_a_ratio_to_a_baseline_that_may_be_zero_is_refused():
    with pytest.raises(InputError, match="clearly above zero"):
        stats.ratio_interval([np.ones((1, 50))], [RNG.normal(size=(1, 50))])


VERDICTS = [
    ("superiority", 0.0, (0.01, 0.03), "SUPPORTED"),
    ("superiority", 0.0, (0.00, 0.03), "INCONCLUSIVE"),
    ("superiority", 0.0, (-0.03, 0.00), "CONTRADICTED"),
    ("non_inferiority", 0.02, (-0.01, 0.03), "SUPPORTED"),
    ("non_inferiority", 0.02, (-0.03, -0.01), "INCONCLUSIVE"),
    ("non_inferiority", 0.02, (-0.05, -0.03), "CONTRADICTED"),
    ("equivalence", 0.02, (-0.01, 0.01), "SUPPORTED"),
    ("equivalence", 0.02, (-0.03, 0.01), "INCONCLUSIVE"),
    ("equivalence", 0.02, (-0.03, 0.03), "INCONCLUSIVE"),
    ("equivalence", 0.02, (0.021, 0.03), "CONTRADICTED"),
    ("equivalence", 0.02, (-0.05, -0.03), "CONTRADICTED"),
    ("ratio", 1.2, (1.21, 1.5), "SUPPORTED"),
    ("ratio", 1.2, (1.1, 1.3), "INCONCLUSIVE"),
    ("ratio", 1.2, (1.0, 1.2), "CONTRADICTED"),
]


@pytest.mark.parametrize(("kind", "margin", "limits", "expected"), VERDICTS)
def test_the_verdict_follows_from_type_and_interval(kind, margin, limits, expected):
    found = an_interval(sum(limits) / 2, *limits)
    assert stats.verdict(kind, found, margin) == expected
    decided = stats.p_value(kind, found, margin) < 0.05
    on_the_line = limits[0] in (0, margin) or limits[1] in (0, margin)
    assert on_the_line or decided == (expected != "INCONCLUSIVE")


def test_an_unknown_claim_type_is_named():
    with pytest.raises(InputError, match="did you mean 'superiority'"):
        stats.verdict("superority", an_interval(0, -1, 1))  # type: ignore[arg-type]


def test_p_of_a_t_interval_is_the_t_test():
    means = RNG.normal(0.4, 1, size=(9, 1))
    found = stats.paired_t_interval([means])
    expected = scipy.stats.ttest_1samp(means[:, 0], 0).pvalue
    assert stats.p_value("superiority", found) == pytest.approx(expected)


def test_p_of_equivalence_is_the_worse_of_two_one_sided_tests():
    means = RNG.normal(0.0, 0.3, size=(12, 1))
    found = stats.paired_t_interval([means])
    sides = [
        scipy.stats.ttest_1samp(means[:, 0], bound, alternative=side).pvalue
        for bound, side in ((-0.5, "greater"), (0.5, "less"))
    ]
    assert stats.p_value("equivalence", found, 0.5) == pytest.approx(2 * max(sides))


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.6]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_detectable_effect_has_the_stated_power():
    """Against the noncentral t distribution."""
    seeds, sd = 12, 0.7
    half = scipy.stats.t.ppf(0.975, seeds - 1) * sd / math.sqrt(seeds)
    found = an_interval(0.0, -half, half, df=seeds - 1.0)
    effect = stats.smallest_detectable(found)
    centre = effect / (sd / math.sqrt(seeds))
    power = 1 - scipy.stats.nct.cdf(scipy.stats.t.ppf(0.975, seeds - 1), seeds - 1, centre)
    assert power == pytest.approx(0.8, abs=0.02)


def test_seeds_needed_reach_the_power_and_not_one_fewer():
    needed = stats.seeds_needed(0.5, 1.0)
    powers = []
    for seeds in (needed - 1, needed):
        critical = scipy.stats.t.ppf(0.975, seeds - 1)
        powers.append(1 - scipy.stats.nct.cdf(critical, seeds - 1, 0.5 * math.sqrt(seeds)))
    assert powers[0] < 0.805
    assert powers[1] > 0.795
    assert stats.seeds_needed(0.5, 1.0, worlds=3) == pytest.approx(needed / 3, abs=1)


def test_no_number_of_seeds_makes_up_for_too_few_queries():
    with pytest.raises(InputError, match="enlarge the evaluation set"):
        stats.seeds_needed(0.05, 0.1, query_error=0.02)


def test_prediction_interval_by_hand():
    low, high = stats.prediction_interval(np.array([1.0, 2.0, 3.0]))
    half = 4.302652729911275 * 1.0 * math.sqrt(4 / 3)
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    with pytest.raises(InputError, match="at least two runs"):
        stats.prediction_interval(np.array([1.0]))


def test_interquartile_mean_is_scipys_trimmed_mean():
    for count in (4, 5, 7, 20):
        values = RNG.normal(size=(count, 3))
        expected = scipy.stats.trim_mean(values, 0.25)
        assert curves.interquartile_mean(values) == pytest.approx(expected)


def test_learning_curve_ignores_one_collapsed_run_and_keeps_its_order():
    steps = np.linspace(0, 1, 11)
    worlds = [steps + 0.05 * RNG.normal(size=(8, 1)) for _ in range(2)]
    worlds[0][0] = -50.0
    estimate, low, high = curves.interquartile_mean_curve(worlds, samples=500)
    assert estimate == pytest.approx(steps, abs=0.06)
    assert (low <= estimate).all()
    assert (estimate <= high).all()
    assert estimate[0] > -1


def test_area_under_curve_is_a_mean_height():
    rollouts = np.array([0.0, 1.0, 4.0])
    assert curves.area_under_curve(rollouts, np.array([[2.0, 2, 2], [0, 1, 4]])) == pytest.approx(
        [2, 2]
    )


def test_twenty_seeds_ten_thousand_queries_three_worlds_in_under_three_seconds():
    worlds = [RNG.normal(size=(20, 10_000)) for _ in range(3)]
    started = time.process_time()
    stats.interval(worlds)
    assert time.process_time() - started < 3
