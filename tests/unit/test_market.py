"""Expected clicks and orders: exact where they can be computed by hand, and true to the log."""

from __future__ import annotations

import numpy as np
import pytest

from minisearch.records import EMPTY, Ragged, rows_of
from minisearch.worlds.market import (
    expected_outcomes,
    logged_reward,
    oracle_ranking,
)
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig
from minisearch.worlds.shop_truth import GRADE_LOGITS, grade


@pytest.fixture(scope="module")
def shop():
    return make_shop(ShopConfig.of("smoke", items=1000, sessions=8000, users=1500), 100)


def test_the_log_happened_as_often_as_expected(shop):
    data, truth = shop
    recall = data.recall
    expected = expected_outcomes(truth, recall["session_id"], recall["impressed_item_ids"].padded())
    for name, column in (("clicks", "clicked_item_ids"), ("orders", "purchased_item_ids")):
        surplus = recall[column].lengths - expected[name]
        error = surplus.std() / np.sqrt(len(surplus))
        assert abs(surplus.mean()) < 3.5 * error
        assert error < 0.1 * expected[name].mean()  # the comparison has power


def test_two_places_by_hand(shop):
    _, truth = shop
    session, items = 17, np.array([5, 9])
    ids = truth.item_id[items]
    found = expected_outcomes(truth, truth.session_id[[session]], ids[None])
    user, goods = truth.requests.user[session], truth.goods
    grades = grade(truth, np.array([session, session]), items)
    suits = (
        truth.config.preference * goods.taste[items] @ truth.people.taste[user]
        + 0.5 * goods.quality[items]
        - 0.3 * np.abs(goods.price_rank[items] - truth.people.price[user])
    )
    attracted = 1 / (1 + np.exp(-(GRADE_LOGITS[grades] + suits + truth.config.click_bias)))
    clicks = truth.config.attention * attracted * np.array([1.0, 1 / np.log2(3)])
    buys = 1 / (1 + np.exp(-(0.8 * (grades - 3) + suits + truth.config.order_bias)))
    assert found["clicks"][0] == pytest.approx(clicks.sum())
    assert found["orders"][0] == pytest.approx((clicks * buys).sum())
    assert found["relevance"][0] == (grades == 3).mean()


def test_oracles_bound_the_log_and_each_other(shop):
    data, truth = shop
    recall = data.recall
    long = recall["impressed_item_ids"].lengths >= 10
    ids = recall["session_id"][long]
    logged = recall["impressed_item_ids"].select(long).padded(10)
    got, general, personal = (
        expected_outcomes(truth, ids, ranked)
        for ranked in (
            logged,
            oracle_ranking(truth, ids, 10, False),
            oracle_ranking(truth, ids, 10),
        )
    )
    assert (personal["clicks"] >= general["clicks"] - 1e-9).all()
    assert (personal["clicks"] >= got["clicks"] - 1e-9).all()
    assert (general["relevance"] >= got["relevance"] - 1e-9).all()
    assert personal["clicks"].mean() > 1.1 * general["clicks"].mean()
    assert general["clicks"].mean() > 1.1 * got["clicks"].mean()


def test_an_oracle_list_is_full_and_without_repetition(shop):
    _, truth = shop
    ranked = oracle_ranking(truth, truth.session_id[:50], 80)
    assert ranked.shape == (50, 80)
    assert all(len(set(row)) == 80 for row in ranked)


def test_a_better_place_is_never_worse(shop):
    _, truth = shop
    ids, best = truth.session_id[:200], oracle_ranking(truth, truth.session_id[:200], 10)
    forward, backward = (expected_outcomes(truth, ids, r) for r in (best, best[:, ::-1]))
    assert (forward["clicks"] > backward["clicks"]).all()


def test_unknown_ids_are_refused_and_empty_places_count_nothing(shop):
    _, truth = shop
    with pytest.raises(KeyError, match="999999"):
        rows_of(truth.item_id, np.array([[1, 999_999]]))
    nothing = expected_outcomes(truth, truth.session_id[:3], np.full((3, 4), EMPTY))
    assert all((values == 0).all() and len(values) == 3 for values in nothing.values())


def test_logged_reward_weighs_events_by_the_inverse_of_their_examination():
    recall = {
        "impressed_item_ids": Ragged.from_lists([[7, 8, 9], [7]]),
        "clicked_item_ids": Ragged.from_lists([[9], []]),
        "purchased_item_ids": Ragged.from_lists([[9], []]),
    }
    reward = logged_reward(recall)
    assert [row.tolist() for row in reward] == [[0, 0, (1 + 3) * 2], [0]]


def test_logged_reward_is_unbiased_for_attraction(shop):
    """Inverse weighting makes the mean reward independent of the place, given equal items."""
    data, truth = shop
    shown = data.recall["impressed_item_ids"]
    items = rows_of(truth.item_id, shown.values)
    rank = np.arange(len(items)) - shown.offsets[shown.rows] + 1
    reward = logged_reward(data.recall, order_value=0.0).values
    full = grade(truth, shown.rows, items) == 3
    early, late = reward[full & (rank <= 2)], reward[full & (rank > 2) & (rank <= 12)]
    raw_early = (reward[full & (rank <= 2)] > 0).mean()
    raw_late = (reward[full & (rank > 2) & (rank <= 12)] > 0).mean()
    assert raw_early > 1.5 * raw_late
    assert late.mean() == pytest.approx(early.mean(), rel=0.15)
