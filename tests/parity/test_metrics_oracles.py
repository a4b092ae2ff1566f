"""The measures against scikit-learn and torchmetrics on random inputs with ties."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional import retrieval

from minisearch import metrics
from minisearch.records import Ragged

DOCUMENTS, K = 60, 20


@pytest.fixture(scope="module")
def lists():
    """Ranked lists of 60 documents for 40 queries, cut at 20, with 1 to 30 positives each."""
    random = np.random.default_rng(0)
    ranked = np.array([random.permutation(DOCUMENTS) for _ in range(40)])
    positives = [random.choice(DOCUMENTS, random.integers(1, 31), replace=False) for _ in ranked]
    return ranked, Ragged.from_lists(positives)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize(
    ("ours", "oracle"),
    [
        (metrics.recall_at_k, retrieval.retrieval_recall),
        (lambda h, n, k: metrics.hit_rate_at_k(h, k), retrieval.retrieval_hit_rate),
        (
            lambda h, n, k: metrics.reciprocal_rank_at_k(h, k),
            retrieval.retrieval_reciprocal_rank,
        ),
        (metrics.ndcg_at_k, retrieval.retrieval_normalized_dcg),
    ],
    ids=["recall", "hit rate", "reciprocal rank", "ndcg"],
)
def test_ranked_lists_against_torchmetrics(lists, ours, oracle, k):
    ranked, positives = lists
    hits = metrics.relevance_matrix(ranked[:, :K], positives)
    found = ours(hits, positives.lengths, k)
    scores = torch.arange(DOCUMENTS, 0, -1).float()
    for row, (order, right) in enumerate(zip(ranked, positives, strict=True)):
        target = torch.from_numpy(np.isin(order, right))
        assert found[row] == pytest.approx(float(oracle(scores, target, top_k=k)), abs=1e-6)


@pytest.mark.parametrize("k", [3, 20])
def test_ndcg_against_scikit_learn(lists, k):
    ranked, positives = lists
    hits = metrics.relevance_matrix(ranked[:, :K], positives)
    truth = np.array([np.isin(o, p) for o, p in zip(ranked, positives, strict=True)], dtype=float)
    scores = np.broadcast_to(np.arange(DOCUMENTS, 0, -1.0), truth.shape)
    expected = sklearn_metrics.ndcg_score(truth, scores, k=k)
    assert metrics.ndcg_at_k(hits, positives.lengths, k).mean() == pytest.approx(expected)


@pytest.mark.parametrize("levels", [3, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_scores_against_scikit_learn(levels, seed):
    random = np.random.default_rng(seed)
    labels = random.random(200) < 0.3
    scores = random.integers(0, levels, 200) / levels
    for ours, oracle in (
        (metrics.roc_auc, sklearn_metrics.roc_auc_score),
        (metrics.average_precision, sklearn_metrics.average_precision_score),
    ):
        assert ours(scores, labels) == pytest.approx(oracle(labels, scores))
    expected = sklearn_metrics.log_loss(labels, scores)
    assert metrics.log_loss(scores, labels) == pytest.approx(expected)


def delong_variance(scores, labels):
    """DeLong's variance of an AUC, pair by pair, as in the paper."""
    positive, negative = scores[labels], scores[~labels]
    higher = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)  # (m, n)
    by_positive, by_negative = higher.mean(axis=1), higher.mean(axis=0)
    return by_positive.var(ddof=1) / len(positive) + by_negative.var(ddof=1) / len(negative)


@pytest.mark.parametrize("levels", [4, 10**6])
def test_auc_of_single_rows_has_delongs_variance(levels):
    random = np.random.default_rng(levels)
    labels = random.random(3000) < 0.3
    scores = np.floor(levels * (random.random(3000) + 0.3 * labels)) / levels
    values = metrics.auc_by_group(scores, labels, np.arange(3000))
    assert values.mean() == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
    assert values.var(ddof=1) / 3000 == pytest.approx(delong_variance(scores, labels), rel=3e-3)


def test_auc_of_groups_has_the_variance_of_new_groups():
    """Users whose rows share their luck: the spread within one log tells that between logs."""

    def draw(random):
        users, taste = np.repeat(np.arange(150), 8), random.normal(size=150)
        labels = random.random(len(users)) < 1 / (1 + np.exp(-2 * taste[users]))
        return taste[users] + random.normal(size=len(users)), labels, users

    logs = [draw(np.random.default_rng(n)) for n in range(600)]
    values = np.array([metrics.auc_by_group(*log) for log in logs])
    between, told = values.mean(axis=1).var(ddof=1), values.var(axis=1, ddof=1).mean() / 150
    rows = [metrics.auc_by_group(*log[:2], np.arange(1200)) for log in logs]
    assert told == pytest.approx(between, rel=0.2)  # a variance from 600 logs is 6 % uncertain
    assert (
        np.var(rows, axis=1).mean() / 1200 < 0.6 * between
    )  # rows counted as independent tell too little


def test_auc_of_groups_against_a_bootstrap_of_groups():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), random.integers(1, 9, 200))
    labels = random.random(len(groups)) < 0.4
    scores = labels + random.normal(size=200)[groups] + random.normal(size=len(groups))
    values = metrics.auc_by_group(scores, labels, groups)
    rows = [np.flatnonzero(groups == g) for g in range(200)]
    resampled = []
    for _ in range(1500):
        taken = np.concatenate([rows[g] for g in random.integers(0, 200, 200)])
        resampled.append(metrics.roc_auc(scores[taken], labels[taken]))
    assert values.std(ddof=1) / np.sqrt(200) == pytest.approx(np.std(resampled), rel=0.1)
