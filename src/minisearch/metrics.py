"""Measures of a ranked list and of a score, vectorised over queries: one value a query comes out.

The measures of a list take `hits`, the boolean matrix of `relevance_matrix`, so that ids are
compared once for all of them. Averages are left to the caller, who needs the values for intervals.

Source: recall and hit rate as in KuaiSearch's release (recall/); NDCG with binary gains, Järvelin
and Kekäläinen (2002).
"""

from __future__ import annotations

import numpy as np

from minisearch.errors import InputError
from minisearch.records import Ragged


def relevance_matrix(ranked_ids: np.ndarray, positives: Ragged) -> np.ndarray:
    """Which ranked ids, best first, are positives of their query; no id comes twice in a row.

    Shape: ranked_ids (Q, K) int, positives Q rows -> (Q, K) bool.

    Raises:
        InputError: when the two do not have the same number of queries.
    """
    if len(ranked_ids) != len(positives):
        found = f"{len(ranked_ids)} ranked lists and {len(positives)} rows of positives"
        raise InputError("relevance_matrix", found, "as many", "select the same queries for both.")
    hits = np.zeros(ranked_ids.shape, dtype=bool)
    lengths, starts = positives.lengths, positives.offsets[:-1]
    # The n-th positive of every query at once: the work is (number of positives) x K comparisons.
    for nth in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > nth)
        hits[rows] |= ranked_ids[rows] == positives.values[starts[rows] + nth][:, None]
    return hits


def recall_at_k(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """Share of a query's positives among its first k; nan for a query without positives.

    Shape: hits (Q, K) bool, n_positives (Q,) int -> (Q,) float64 in [0, 1].

    Raises:
        InputError: for k beyond the lists, or more hits than positives (an id came twice).
    """
    found = _first(hits, k).sum(axis=1)
    if (found > n_positives).any():
        row = int(np.argmax(found > n_positives))
        raise InputError(
            f"recall_at_k, query {row}", f"{found[row]} hits for {n_positives[row]} positives",
            "at most as many hits as positives", "remove repeated ids from both.",
        )  # fmt: skip
    return _share(found, n_positives)


def hit_rate_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """1 where any of the first k is a positive, else 0. Shape: (Q, K) bool -> (Q,) float64."""
    return np.asarray(_first(hits, k).any(axis=1), dtype=np.float64)


def reciprocal_rank_at_k(hits: np.ndarray, k: int) -> np.ndarray:
    """1 / rank of the first positive among the first k, 0 without one; its mean is MRR@k.

    Shape: hits (Q, K) bool -> (Q,) float64.
    """
    top = _first(hits, k)
    return np.where(top.any(axis=1), 1.0 / (top.argmax(axis=1) + 1.0), 0.0)


def ndcg_at_k(hits: np.ndarray, n_positives: np.ndarray, k: int) -> np.ndarray:
    """Discounted gain of the first k, over that of the best possible list; nan without positives.

    Shape: hits (Q, K) bool, n_positives (Q,) int -> (Q,) float64 in [0, 1].
    """
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal: np.ndarray = np.append(0.0, np.cumsum(discounts))[np.minimum(n_positives, k)]
    return _share(_first(hits, k) @ discounts, ideal)


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting one half.

    Shape: scores (N,) float, labels (N,) of 0 and 1.

    Raises:
        InputError: when only one class is present.
    """
    labels = _binary(labels, "roc_auc")
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # ranks from 1, shared within a tie
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    above = mean_rank[group][labels].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def auc_by_group(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, count: int | None = None
) -> np.ndarray:
    """One value a group whose mean is the AUC and whose spread holds its sampling error.

    For intervals where the rows of a group (a user, a session) share their luck. A value is
    `AUC + G * influence`, the influence being the sum of what the group's rows add by DeLong's
    placement values. A group of one class counts too, and a value may lie outside 0 to 1.

    Args:
        count: groups are then the numbers from 0 to `count` - 1, and one without rows has the AUC
            as its value; by default they are what `groups` holds.

    Shape: scores (N,) float, labels (N,) of 0 and 1, groups (N,) -> (G,) float64, in the order of
    `np.unique(groups)`.

    Raises:
        InputError: when only one class is present, or the three differ in length.

    Source: DeLong et al. (1988); for clustered rows Obuchowski (1997).
    """
    labels, scores = _binary(labels, "auc_by_group"), np.asarray(scores)
    names, group = np.unique(groups, return_inverse=True)
    if count is not None:
        names, group = np.arange(count), np.asarray(groups)
    if not len(scores) == len(labels) == len(group):
        found = f"{len(scores)} scores, {len(labels)} labels, {len(group)} groups"
        raise InputError("auc_by_group", found, "one of each a row", "select the same rows.")
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])
    placements = np.empty(len(scores))
    placements[labels] = _share_below(scores[labels], negative)
    placements[~labels] = 1.0 - _share_below(scores[~labels], positive)
    auc = placements[labels].mean()
    influence = (placements - auc) / np.where(labels, len(positive), len(negative))
    return np.asarray(auc + len(names) * np.bincount(group, influence, len(names)))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function over the distinct scores.

    Shape: scores (N,) float, labels (N,) of 0 and 1.

    Raises:
        InputError: when only one class is present.
    """
    labels = _binary(labels, "average_precision")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(labels[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = found[last_of_tie] / (last_of_tie + 1)
    gained = np.diff(found[last_of_tie], prepend=0) / found[-1]
    return float(precision @ gained)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats of 0/1 labels; certainty is cut at float epsilon.

    Shape: probabilities (N,) float in [0, 1], labels (N,) of 0 and 1.
    """
    labels = np.asarray(labels, dtype=bool)
    given = np.where(labels, probabilities, 1.0 - np.asarray(probabilities, dtype=np.float64))
    return float(-np.log(np.maximum(given, np.finfo(np.float64).eps)).mean())


def _first(hits: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k <= hits.shape[1]:
        expected = f"1 to {hits.shape[1]}, the results a query"
        raise InputError("parameter k", str(k), expected, "search for more results, or lower k.")
    return hits[:, :k]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _share_below(scores: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Share of the ascending `ordered` below each score, ties one half. Shape: (N,) -> (N,)."""
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return np.asarray(below / (2 * len(ordered)))


def _binary(labels: np.ndarray, where: str) -> np.ndarray:
    values = np.unique(labels)
    if not np.array_equal(values, [0, 1]):
        found = f"the values {values[:5].tolist()}"
        raise InputError(
            f"{where}, labels", found, "both 0 and 1, nothing else", "check the split."
        )
    return np.asarray(labels, dtype=bool)
