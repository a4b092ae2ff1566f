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
