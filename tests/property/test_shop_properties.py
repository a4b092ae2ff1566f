"""Whatever the settings and the seed, the shop's tables keep the promises of the real ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minisearch.records import Ragged
from minisearch.worlds.market import expected_outcomes, oracle_ranking
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig
from minisearch.worlds.shop_truth import click_probability, grade, order_probability

share = st.floats(0, 1)
configs = st.builds(
    ShopConfig,
    items=st.integers(100, 300),
    sessions=st.integers(50, 300),
    users=st.integers(2, 50),
    leaves=st.integers(2, 40),
    synonyms=share,
    title_coverage=share,
    title_stuffing=share,
    repeat_query=share,
    homonyms=st.integers(0, 22),
    new_items=share,
    engine_hidden=share,
    impressions_cap=st.floats(0.01, 1),
    test_share=share,
    rank_share=share,
    future_history=share,
    relevance_pairs=st.integers(10, 200),
)


def pairs(lists: Ragged) -> set[tuple[int, int]]:
    return set(zip(lists.rows.tolist(), lists.values.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(configs, st.integers(0, 2**32))
def test_tables_keep_their_promises(config, seed):
    data, _ = make_shop(config, seed)
    recall = data.recall
    shown, clicked, bought = (
        recall[f"{name}_item_ids"] for name in ("impressed", "clicked", "purchased")
    )
    assert pairs(bought) <= pairs(clicked) <= pairs(shown)
    assert len(pairs(shown)) == len(shown.values)  # no item twice in a list
    assert set(shown.values) <= set(data.items["item_id"])
    assert set(recall["user_id"]) == set(data.users["user_id"])
    for table, key in ((data.items, "item_id"), (data.users, "user_id"), (recall, "session_id")):
        assert len(np.unique(table[key])) == len(table[key])
    assert (np.diff(recall["time_index"]) > 0).all()
    train = recall["split"] == "train"
    if train.any() and (~train).any():
        assert recall["time_index"][train].max() < recall["time_index"][~train].min()
    assert abs((~train).sum() - config.test_share * config.sessions) <= 0.5
    assert all(recall["query"])
    assert all(data.items["item_title"])
    if data.rank is not None:
        session = {s: row for row, s in enumerate(recall["session_id"])}
        rows = np.array([session[s] for s in data.rank["session_id"]])
        sampled = set(rows.tolist())
        targets = list(zip(rows.tolist(), data.rank["target_item_id"].tolist(), strict=True))
        assert set(targets) == {pair for pair in pairs(shown) if pair[0] in sampled}
        assert len(set(targets)) == len(targets)
        hits = {t for t, click in zip(targets, data.rank["is_clicked"], strict=True) if click}
        assert hits == {pair for pair in pairs(clicked) if pair[0] in sampled}
        assert data.rank["recently_clicked_item_ids"].lengths.max() <= 20
    assert set(data.relevance["score"]) <= {0, 1, 2, 3}


@settings(max_examples=15, deadline=None)
@given(configs, st.integers(0, 2**32), st.integers(1, 30))
def test_probabilities_and_grades_stay_in_range(config, seed, k):
    _, truth = make_shop(config, seed)
    ids = truth.session_id[:20]
    ranked = oracle_ranking(truth, ids, k)
    sessions = np.repeat(np.arange(20), 10)
    items = np.tile(np.arange(10), 20)
    assert set(grade(truth, sessions, items)) <= {0, 1, 2, 3}
    for chance in (
        click_probability(truth, sessions, items, items + 1),
        order_probability(truth, sessions, items),
    ):
        assert ((chance >= 0) & (chance <= 1)).all()
    found = expected_outcomes(truth, ids, ranked)
    assert (found["orders"] <= found["clicks"]).all()
    assert (found["clicks"] <= (1 / np.log2(2 + np.arange(k))).sum()).all()
    assert (found["relevance"] <= 1 + 1e-9).all()
