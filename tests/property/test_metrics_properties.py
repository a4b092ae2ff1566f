"""Laws that hold for every input."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minisearch import metrics
from minisearch.records import Ragged

ids = st.integers(0, 30)
query = st.tuples(st.lists(ids, min_size=8, max_size=8, unique=True), st.lists(ids, unique=True))
queries = st.lists(query, min_size=1, max_size=6)
LENGTH = 40


def hits_and_counts(rows):
    positives = Ragged.from_lists([right for _, right in rows])
    return metrics.relevance_matrix(np.array([r for r, _ in rows]), positives), positives.lengths


@given(queries)
def test_relevance_is_set_membership(rows):
    hits, _ = hits_and_counts(rows)
    assert hits.tolist() == [[i in set(right) for i in ranked] for ranked, right in rows]


@given(queries)
def test_recall_and_hits_grow_with_k_and_stay_in_bounds(rows):
    hits, counts = hits_and_counts(rows)
    for values in (
        [metrics.recall_at_k(hits, counts, k)[counts > 0] for k in range(1, 9)],
        [metrics.hit_rate_at_k(hits, k) for k in range(1, 9)],
        [metrics.reciprocal_rank_at_k(hits, k) for k in range(1, 9)],
    ):
        assert (np.diff(values, axis=0) >= 0).all()
        assert (np.array(values) >= 0).all()
        assert (np.array(values) <= 1).all()
    assert np.isnan(metrics.recall_at_k(hits, counts, 3)[counts == 0]).all()


@given(queries, st.integers(1, 8))
def test_ndcg_is_one_exactly_for_the_best_order(rows, k):
    hits, counts = hits_and_counts(rows)
    ndcg = metrics.ndcg_at_k(hits, counts, k)
    # the best order has as many positives on top as there are, or as fit
    best = [row[: min(n, k)].all() for row, n in zip(hits, counts, strict=True)]
    assert (np.isclose(ndcg, 1) == best)[counts > 0].all()
    assert (ndcg[counts > 0] <= 1 + 1e-12).all()


@given(
    arrays(np.float64, LENGTH, elements=st.integers(-5, 5).map(float)),
    arrays(np.bool_, LENGTH).filter(lambda labels: 0 < labels.sum() < LENGTH),
)
def test_auc_depends_on_order_only_and_mirrors(scores, labels):
    auc = metrics.roc_auc(scores, labels)
    assert np.isclose(metrics.roc_auc(np.exp(scores), labels), auc)
    assert np.isclose(metrics.roc_auc(-scores, labels), 1 - auc)
    assert np.isclose(metrics.roc_auc(scores, ~labels), 1 - auc)
    assert metrics.average_precision(scores, labels) <= 1 + 1e-12
    assert metrics.average_precision(labels.astype(float), labels) == 1


@given(
    arrays(np.float64, LENGTH, elements=st.integers(-5, 5).map(float)),
    arrays(np.bool_, LENGTH).filter(lambda labels: 0 < labels.sum() < LENGTH),
    arrays(np.int64, LENGTH, elements=st.integers(0, 12)),
    st.permutations(range(LENGTH)),
)
def test_auc_by_group_averages_to_the_auc_whatever_the_groups(scores, labels, groups, order):
    values = metrics.auc_by_group(scores, labels, groups)
    assert len(values) == len(np.unique(groups))
    assert np.isclose(values.mean(), metrics.roc_auc(scores, labels), atol=1e-12)
    again = metrics.auc_by_group(scores[order], labels[order], groups[order])
    np.testing.assert_allclose(again, values, atol=1e-12)
    # Groups that are merged add up what each adds.
    by_row = metrics.auc_by_group(scores, labels, np.arange(LENGTH))
    added = np.bincount(groups, (by_row - by_row.mean()) / LENGTH)[np.unique(groups)]
    np.testing.assert_allclose(values, by_row.mean() + len(values) * added, atol=1e-12)
