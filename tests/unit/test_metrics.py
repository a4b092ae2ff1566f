"""Every measure against values worked out by hand."""

import math

import numpy as np
import pytest

from minisearch import metrics
from minisearch.errors import InputError
from minisearch.records import Ragged

# Query 0: positives 7 and 3 at ranks 1 and 3; query 1: positive 5 at rank 2 of its four positives;
# query 2: positive 9 not found; query 3: no positive.
RANKED = np.array([[7, 1, 3, 2], [8, 5, 6, 7], [1, 2, 3, 4], [1, 2, 3, 4]])
POSITIVES = Ragged.from_lists([[3, 7], [5, 1, 2, 3], [9], []])
HITS = metrics.relevance_matrix(RANKED, POSITIVES)
COUNTS = POSITIVES.lengths


def test_relevance_matrix():
    assert HITS.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_an_id_is_compared_with_its_own_query_only():
    hits = metrics.relevance_matrix(np.array([[1], [2]]), Ragged.from_lists([[2], [1]]))
    assert not hits.any()


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [0.5, 0, 0, np.nan]), (2, [0.5, 0.25, 0, np.nan]), (4, [1, 0.25, 0, np.nan])],
)
def test_recall(k, expected):
    np.testing.assert_allclose(metrics.recall_at_k(HITS, COUNTS, k), expected)


def test_hit_rate():
    assert metrics.hit_rate_at_k(HITS, 1).tolist() == [1, 0, 0, 0]
    assert metrics.hit_rate_at_k(HITS, 2).tolist() == [1, 1, 0, 0]


def test_reciprocal_rank():
    assert metrics.reciprocal_rank_at_k(HITS, 4).tolist() == [1, 0.5, 0, 0]
    assert metrics.reciprocal_rank_at_k(HITS, 1).tolist() == [1, 0, 0, 0]


def test_ndcg():
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    ideal_of_four = 1 + second + third + 1 / math.log2(5)
    expected = [(1 + third) / (1 + second), second / ideal_of_four, 0, np.nan]
    np.testing.assert_allclose(metrics.ndcg_at_k(HITS, COUNTS, 4), expected)
    # at k = 2 the best list of query 1 holds two of its four positives
    np.testing.assert_allclose(metrics.ndcg_at_k(HITS, COUNTS, 2)[1], second / (1 + second))


def test_roc_auc_counts_ties_as_half():
    # pairs (positive, negative): .8>.5, .8>.2, .5=.5, .5>.2 -> 3.5 of 4
    scores, labels = np.array([0.8, 0.5, 0.5, 0.2]), np.array([1, 1, 0, 0])
    assert metrics.roc_auc(scores, labels) == pytest.approx(3.5 / 4)


def test_auc_by_group_by_hand():
    # Positives .8 and .5 have 1 and 3/4 of the negatives below them, negatives .5 and .2 have 3/4
    # and 1 of the positives above: AUC 7/8, of which a row alone is 4 * (+-1/8) / 2 away. Group a
    # adds (3/4 - 7/8) / 2 + (1 - 7/8) / 2 = 0.
    scores, labels = np.array([0.8, 0.5, 0.5, 0.2]), np.array([1, 1, 0, 0])
    by_row = metrics.auc_by_group(scores, labels, np.arange(4))
    np.testing.assert_allclose(by_row, 7 / 8 + np.array([1, -1, -1, 1]) / 4)
    in_two = metrics.auc_by_group(scores, labels, np.array(["b", "a", "b", "a"]))
    np.testing.assert_allclose(in_two, [7 / 8, 7 / 8])
    in_order = metrics.auc_by_group(scores, labels, np.array([9, 2, 2, 9]))
    np.testing.assert_allclose(in_order, 7 / 8 + np.array([-1, 1]) / 4)


def test_auc_by_group_of_a_perfect_score_has_no_spread():
    values = metrics.auc_by_group(np.arange(6), np.arange(6) > 2, np.array([1, 2, 3, 1, 1, 4]))
    assert values.tolist() == [1, 1, 1, 1]


def test_auc_by_group_needs_a_group_a_row():
    with pytest.raises(InputError, match="3 scores, 3 labels, 2 groups"):
        metrics.auc_by_group(np.arange(3), np.array([0, 1, 1]), np.array([1, 2]))


def test_average_precision():
    # precision 1 at recall 1/2, then 2/3 at recall 1
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])
    assert metrics.average_precision(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # a tie is one threshold: precision 1/2 at recall 1, whatever the order of the rows
    for tied in ([1, 0], [0, 1]):
        assert metrics.average_precision(np.array([0.5, 0.5]), np.array(tied)) == 0.5


def test_log_loss_is_finite_at_certainty():
    expected = -(math.log(0.8) + math.log(1 - 0.3)) / 2
    assert metrics.log_loss(np.array([0.8, 0.3]), np.array([1, 0])) == pytest.approx(expected)
    assert 30 < metrics.log_loss(np.array([0.0]), np.array([1])) < 40


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_lists(k):
    with pytest.raises(InputError, match=rf"parameter k: found {k}; expected 1 to 4"):
        metrics.hit_rate_at_k(HITS, k)


def test_repeated_ids_are_refused():
    hits = metrics.relevance_matrix(np.array([[3, 3]]), Ragged.from_lists([[3]]))
    with pytest.raises(InputError, match="query 0: found 2 hits for 1 positives"):
        metrics.recall_at_k(hits, np.array([1]), 2)


def test_other_number_of_queries():
    with pytest.raises(InputError, match="4 ranked lists and 1 rows of positives"):
        metrics.relevance_matrix(RANKED, Ragged.from_lists([[1]]))


@pytest.mark.parametrize(
    "measure",
    [
        metrics.roc_auc,
        metrics.average_precision,
        lambda scores, labels: metrics.auc_by_group(scores, labels, np.arange(len(scores))),
    ],
    ids=["roc_auc", "average_precision", "auc_by_group"],
)
@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [0, 2]])
def test_one_class_or_wrong_labels(measure, labels):
    with pytest.raises(InputError, match="expected both 0 and 1"):
        measure(np.array([0.1, 0.2]), np.array(labels))


def test_a_numbered_group_without_rows_has_the_auc_itself():
    scores, labels = np.array([0.9, 0.1, 0.4, 0.6]), np.array([1, 0, 1, 0])
    values = metrics.auc_by_group(scores, labels, np.array([0, 0, 3, 3]), count=4)
    assert values.mean() == pytest.approx(metrics.roc_auc(scores, labels))
    assert values[[1, 2]] == pytest.approx([0.75, 0.75])
