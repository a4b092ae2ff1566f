"""What people would do with a ranked list: expected clicks and orders, without sampling noise.

This is the evaluation truth. `logged_reward` is the other side: what training code can compute from
the log alone. The two are different functions on purpose, so that a method that games its reward
shows it here.
"""

from __future__ import annotations

import numpy as np

from minisearch.records import EMPTY, Ragged, Table, rows_of
from minisearch.worlds.shop_truth import ShopTruth, click_probability, grade, order_probability


def expected_outcomes(
    truth: ShopTruth, session_ids: np.ndarray, ranked_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Expected clicks and orders of each request, if it were shown this list from the top.

    Exact: the probability of each event, summed; the attention of a request enters by its mean.

    Args:
        session_ids: `recall.session_id` of Q requests.
        ranked_ids: `items.item_id`, best first, EMPTY where a list is shorter.

    Returns:
        clicks, orders, and relevance, the share of fully relevant items (grade 3) in the K places.

    Shape: (Q,), (Q, K) -> (Q,) each.
    """
    items = rows_of(truth.item_id, ranked_ids)
    query, place = np.nonzero(items != EMPTY)
    sessions, items = rows_of(truth.session_id, session_ids)[query], items[query, place]
    clicks = truth.config.attention * click_probability(truth, sessions, items, place + 1)
    found = {
        "clicks": clicks,
        "orders": clicks * order_probability(truth, sessions, items),
        "relevance": (grade(truth, sessions, items) == 3) / ranked_ids.shape[1],
    }
    count = len(session_ids)
    return {name: np.bincount(query, each, minlength=count) for name, each in found.items()}


def oracle_ranking(
    truth: ShopTruth, session_ids: np.ndarray, k: int, personal: bool = True
) -> np.ndarray:
    """The best list for someone who knows the intent: the headroom above every method.

    With `personal`, by the chance of a click, which maximises expected clicks. Without, by
    relevance, then demand: the most that can be done knowing the intent but not the user.

    Shape: (Q,) -> (Q, k) item ids.
    """
    goods, sessions = truth.goods, rows_of(truth.session_id, session_ids)
    wanted = truth.requests.leaf[sessions]
    ranked = np.empty((len(sessions), k), int)
    popular = np.argsort(-goods.demand)
    for leaf in np.unique(wanted):
        queries = np.flatnonzero(wanted == leaf)
        group = goods.leaf_level2[goods.leaf] == goods.leaf_level2[leaf]
        near = np.flatnonzero(group)  # only these have a grade above 0
        items = np.concatenate([near, popular[~group[popular]][: max(0, k - len(near))]])
        pairs = np.repeat(sessions[queries], len(items)), np.tile(items, len(queries))
        if personal:
            score = click_probability(truth, *pairs, np.ones(len(pairs[0])))
        else:
            score = grade(truth, *pairs) + goods.demand[pairs[1]]  # demand is below 1
        best = np.argsort(-score.reshape(len(queries), -1), axis=1, kind="stable")[:, :k]
        ranked[queries] = truth.item_id[items[best]]
    return ranked


def logged_reward(recall: Table, order_value: float = 3.0) -> Ragged:
    """A training reward from the log alone: clicks and orders, weighted against position bias.

    Each event counts log2(1 + rank), the inverse of the chance that its place was examined.

    Shape: -> one float for each impressed item.
    """
    shown = recall["impressed_item_ids"]
    rank = np.arange(len(shown.values)) - np.repeat(shown.offsets[:-1], shown.lengths) + 1
    events = np.zeros(len(rank))
    width = int(shown.values.max(initial=0)) + 1
    for column, value in (("clicked_item_ids", 1.0), ("purchased_item_ids", order_value)):
        happened = recall[column].rows * width + recall[column].values
        events += value * np.isin(shown.rows * width + shown.values, happened)
    return Ragged(events * np.log2(1 + rank), shown.offsets)
