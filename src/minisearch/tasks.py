"""The tasks that a search log poses: what is trained on, what is asked, and what counts as right.

`Collection` is the recall task, `Impressions` the ranking task. Both come from the recall table, as
the rows of the rank table are its impressions, one by one (a check of the audit says so).

Source: KuaiSearch (arXiv 2602.11518), rules of the recall and ranking tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from minisearch.data.kuaisearch import KuaiSearch, past_interactions, positives
from minisearch.metrics import recall_at_k, relevance_matrix
from minisearch.profiles import derive_seed
from minisearch.records import Ragged, Table, rows_of, select_rows

COUNT_BUCKETS = ("0", "1-5", "6-20", ">20")


@dataclass(frozen=True, eq=False)
class Collection:
    """Documents, training clicks and test requests, whatever they were made from."""

    titles: list[str]
    train_queries: list[str]
    train_rows: np.ndarray  # (C,) the document clicked for each training query
    queries: list[str]
    positives: Ragged  # per test query: rows of the documents that count as found
    query_rows: np.ndarray  # (Q,) where each test query stands in its source

    def clusters(self) -> np.ndarray:
        """A number for each distinct query string: equal queries share their luck. Shape: (Q,)."""
        return np.unique(np.array(self.queries), return_inverse=True)[1]


def recall_task(log: KuaiSearch, click_share: float = 1.0, seed: int = 0) -> Collection:
    """Clicked or bought pairs of the training part, and the test requests that have any.

    Args:
        click_share: share of the training requests whose clicks may be learnt from; `seed` draws
            them.
    """
    found = positives(log.recall)
    found = Ragged(rows_of(log.items["item_id"], found.values), found.offsets)
    training = log.recall["split"] == "train"
    test = np.flatnonzero(~training & (found.lengths > 0))
    draw = np.random.default_rng(derive_seed(seed, "click share"))
    kept = np.flatnonzero(training & (draw.random(len(training)) < click_share))
    clicks, text = found.select(kept), log.recall["query"]
    return Collection(
        titles=list(log.items["item_title"]),
        train_queries=list(np.repeat(text[kept], clicks.lengths)),
        train_rows=clicks.values,
        queries=list(text[test]),
        positives=found.select(test),
        query_rows=test,
    )


@dataclass(frozen=True, eq=False)
class Impressions:
    """Every product that was shown, with what came of it. Shape: (P,) each."""

    request: np.ndarray  # row of the recall table
    item: np.ndarray  # row of the items table
    place: np.ndarray  # in the list, from 1
    label: np.ndarray  # clicked or purchased
    training: np.ndarray  # of the training part


def ranking_task(log: KuaiSearch) -> Impressions:
    """The impressions of a log; a positive is one that was clicked or purchased."""
    shown, found = log.recall["impressed_item_ids"], positives(log.recall)
    item = rows_of(log.items["item_id"], shown.values)
    width = len(log.items["item_id"])
    wanted = found.rows * width + rows_of(log.items["item_id"], found.values)
    return Impressions(
        request=shown.rows,
        item=item,
        place=np.arange(len(item)) - shown.offsets[shown.rows] + 1,
        label=np.isin(shown.rows * width + item, wanted),
        training=(log.recall["split"] == "train")[shown.rows],
    )


def only_items(table: Table, items: np.ndarray) -> Table:
    """The table with every list of item ids cut down to `items`. Shape: items (M,)."""

    def cut(lists: Ragged) -> Ragged:
        keep = np.isin(lists.values, items)
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        return Ragged(lists.values[keep], kept_before[lists.offsets])

    return {n: cut(c) if isinstance(c, Ragged) else c for n, c in table.items()}


def core_filter(log: KuaiSearch, k: int) -> KuaiSearch:
    """The largest part of a log in which every user and product has k interactions.

    An interaction is a product clicked or bought in a request of either split. The 30-day
    statistics, counted before, and the judged pairs stay as they are; k = 0 changes nothing.
    """
    if k == 0:
        return log
    events = positives(log.recall)
    owners = (log.recall["user_id"][events.rows], events.values)
    user, item = (np.unique(ids, return_inverse=True)[1] for ids in owners)
    kept, before = np.ones(len(user), dtype=bool), -1
    while before != (before := kept.sum()):
        for owner in (user, item):
            kept &= np.bincount(owner[kept], minlength=len(kept))[owner] >= k
    items, requests = np.unique(events.values[kept]), np.unique(events.rows[kept])
    recall = only_items(select_rows(log.recall, requests), items)
    users = select_rows(log.users, np.isin(log.users["user_id"], recall["user_id"]))
    goods = select_rows(log.items, np.isin(log.items["item_id"], items))
    rank = log.rank
    if rank is not None:
        whole = np.isin(rank["session_id"], recall["session_id"])
        whole &= np.isin(rank["target_item_id"], items)
        rank = only_items(select_rows(rank, whole), items)
    return replace(log, users=users, items=goods, recall=recall, rank=rank)


# --- who pays for an average: buckets -------------------------------------------------------------


def in_buckets(counts: np.ndarray) -> np.ndarray:
    """The name of the bucket (0, 1-5, 6-20, >20) of each count. Shape: (n,) -> (n,)."""
    return np.array(COUNT_BUCKETS)[np.digitize(counts, [1, 6, 21])]


def request_buckets(log: KuaiSearch, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Labels of each request: is its query new, how much did its user do before. Shape: (Q,) each.

    Args:
        rows: of the recall table.
    """
    seen = set(log.recall["query"][log.recall["split"] == "train"])
    repeated = np.array([query in seen for query in log.recall["query"][rows]], dtype=bool)
    past = past_interactions(log, last=21).lengths[rows]
    return {"query": np.where(repeated, "seen", "new"), "user history": in_buckets(past)}


def train_exposure(log: KuaiSearch) -> np.ndarray:
    """How often training requests showed each product. Shape: (N,)."""
    shown = log.recall["impressed_item_ids"].select(log.recall["split"] == "train")
    rows = rows_of(log.items["item_id"], shown.values)
    return np.bincount(rows, minlength=len(log.items["item_id"]))


def recall_by_exposure(
    ranked: np.ndarray, wanted: Ragged, shown: np.ndarray, k: int
) -> dict[str, float]:
    """R@k counting only the products that training showed so often, by bucket.

    Shape: ranked (Q, K) rows of documents, wanted Q rows, shown (N,).
    """
    bucket, scores = in_buckets(shown[wanted.values]), {}
    for name in COUNT_BUCKETS:
        inside = bucket == name
        kept = Ragged.from_pairs(wanted.rows[inside], wanted.values[inside], len(wanted))
        rows = np.flatnonzero(kept.lengths)
        if len(rows):
            kept = kept.select(rows)
            hits = relevance_matrix(ranked[rows], kept)
            scores[name] = float(recall_at_k(hits, kept.lengths, k).mean())
    return scores
