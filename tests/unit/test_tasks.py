"""What recall and ranking are asked on a log made by hand; who is left after k-core filtering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minisearch.data.audit import audit
from minisearch.data.kuaisearch import KuaiSearch, positives
from minisearch.records import Ragged
from minisearch.tasks import (
    core_filter,
    in_buckets,
    only_items,
    ranking_task,
    recall_by_exposure,
    recall_task,
    request_buckets,
    train_exposure,
)
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig

# --- the two tasks ---

REQUESTS = [  # user, query, impressed, clicked, purchased, split
    (8, "red shoe", [50, 60], [60], [], "train"),
    (8, "hat", [60, 70, 50], [70], [50], "train"),  # 50 was bought without a click
    (9, "red shoe", [40, 50], [40], [40], "test"),  # clicked and bought: one positive
    (8, "lamp", [70], [], [], "test"),  # nothing to find
    (9, "cup", [50], [], [], "train"),  # nothing to learn; stands behind a test request
    (8, "hat", [60, 40, 70], [], [70], "test"),
]
ITEMS = [70, 50, 60, 40]  # neither row numbers nor in order


def made(requests, items):
    """A log with the columns that the tasks read, one request at a time."""
    user, query, impressed, clicked, purchased, split = zip(*requests, strict=True)
    recall = {
        "user_id": np.array(user),
        "query": np.array(query, object),
        "impressed_item_ids": Ragged.from_lists(impressed),
        "clicked_item_ids": Ragged.from_lists(clicked),
        "purchased_item_ids": Ragged.from_lists(purchased),
        "time_index": np.arange(len(requests)),
        "split": np.array(split, object),
    }
    titles = np.array([f"title of {item}" for item in items], object)
    users = {"user_id": np.unique(user)[::-1]}
    return KuaiSearch(users, {"item_id": np.array(items), "item_title": titles}, recall)


@pytest.fixture
def small():
    return made(REQUESTS, ITEMS)


def test_recall_learns_training_clicks_and_orders_and_is_asked_the_rest(small):
    task = recall_task(small)
    assert task.titles == [f"title of {item}" for item in ITEMS]
    assert task.train_queries == ["red shoe", "hat", "hat"]
    assert [ITEMS[row] for row in task.train_rows] == [60, 70, 50]
    assert task.queries == ["red shoe", "hat"]  # not "lamp", which found nothing
    assert [[ITEMS[row] for row in rows] for rows in task.positives] == [[40], [70]]
    assert task.query_rows.tolist() == [2, 5]


def test_equal_test_queries_share_a_cluster(small):
    task = replace(recall_task(small), queries=["b", "a", "b", "c"])
    numbers = task.clusters()
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3


def test_click_share_drops_whole_training_requests_and_no_test_request():
    both = [(1, f"query {n}", [50, 60], [50], [60], "train") for n in range(400)]
    log = made([*both, (2, "asked", [50], [50], [], "test")], [60, 50])
    tasks = {share: recall_task(log, share, seed=3) for share in (0.0, 0.25, 0.5, 1.0)}
    asked = {share: set(task.train_queries) for share, task in tasks.items()}
    assert [len(asked[share]) for share in (0.0, 1.0)] == [0, 400]
    assert 70 < len(asked[0.25]) < 130
    assert asked[0.25] < asked[0.5] < asked[1.0]  # a larger share adds, and takes none away
    for task in tasks.values():
        assert task.queries == ["asked"]
        assert len(task.train_queries) == len(task.train_rows) == 2 * len(set(task.train_queries))
    assert asked[0.5] == set(recall_task(log, 0.5, seed=3).train_queries)
    assert asked[0.5] != set(recall_task(log, 0.5, seed=4).train_queries)


def test_ranking_sees_every_impression_of_both_parts(small):
    shown = ranking_task(small)
    assert shown.request.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 5, 5]
    seen = [50, 60, 60, 70, 50, 40, 50, 70, 50, 60, 40, 70]
    assert [ITEMS[row] for row in shown.item] == seen
    assert shown.place.tolist() == [1, 2, 1, 2, 3, 1, 2, 1, 1, 1, 2, 3]
    # 60 was clicked in request 0 and not in 1; 50 was bought in 1 and not in 0
    assert shown.label.tolist() == [bool(x) for x in (0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1)]
    assert shown.training.tolist() == [True] * 5 + [False] * 3 + [True] + [False] * 3


def test_the_impressions_are_the_rows_of_the_rank_table(shop):
    """For requests that have rank rows, impression by impression."""
    shown = ranking_task(shop)
    session = shop.recall["session_id"][shown.request]
    ranked = np.isin(session, shop.rank["session_id"])
    order = np.argsort(session[ranked], kind="stable")
    rows = np.argsort(shop.rank["session_id"], kind="stable")
    found = (shop.rank["is_clicked"] + shop.rank["is_purchased"] > 0)[rows]
    goods = shop.items["item_id"][shown.item][ranked][order]
    assert goods.tolist() == shop.rank["target_item_id"][rows].tolist()
    assert shown.label[ranked][order].tolist() == found.tolist()
    assert 0 < found.mean() < 0.5


def test_the_audit_watches_over_that():
    """A rank row whose click the recall table does not know is flagged."""
    log = make_shop(ShopConfig.of("smoke"), 0)[0]
    passed = {check.name: check.passed for check in audit(log)}
    flipped = log.rank["is_clicked"].copy()
    flipped[:5] = 1 - flipped[:5]
    after = audit(replace(log, rank=log.rank | {"is_clicked": flipped}))
    assert [c.name for c in after if passed[c.name] and not c.passed]


# --- buckets ---


def test_the_borders_of_the_buckets():
    counts = np.array([0, 1, 5, 6, 20, 21, 1000])
    assert in_buckets(counts).tolist() == ["0", "1-5", "1-5", "6-20", "6-20", ">20", ">20"]


def test_a_request_is_told_by_its_query_and_its_users_past(small):
    found = request_buckets(small, np.array([5, 2, 3, 0]))
    assert found["query"].tolist() == ["seen", "seen", "new", "seen"]
    # user 8: one click, then a click and an order, before the two test requests
    assert found["user history"].tolist() == ["1-5", "0", "1-5", "0"]


def test_a_query_that_only_test_requests_asked_is_new():
    log = made([(1, q, [5], [5], [], s) for q, s in (("a", "test"), ("a", "test"))], [5])
    assert request_buckets(log, np.arange(2))["query"].tolist() == ["new", "new"]


def test_a_users_past_is_counted_beyond_twenty():
    log = made([(1, "q", [5], [5], [], "train")] * 25, [5])
    history = request_buckets(log, np.arange(25))["user history"].tolist()
    assert history == ["0"] + ["1-5"] * 5 + ["6-20"] * 15 + [">20"] * 4


def test_exposure_counts_what_training_requests_showed(small):
    assert dict(zip(ITEMS, train_exposure(small), strict=True)) == {70: 1, 50: 3, 60: 2, 40: 0}


def test_recall_by_exposure_by_hand():
    ranked = np.array([[0, 1, 2], [3, 1, 0], [2, 4, 0]])
    wanted = Ragged.from_lists([[1, 4], [1, 2], [4]])
    shown = np.array([9, 30, 0, 9, 3])
    found = recall_by_exposure(ranked, wanted, shown, 2)
    assert found == {
        "0": 0.0,  # product 2, of request 1 alone: not in its first two
        "1-5": 0.5,  # product 4: not found for request 0, found for request 2
        ">20": 1.0,  # product 1: found for both
    }  # no positive was shown 6 to 20 times
    assert recall_by_exposure(ranked, wanted, shown, 1) == {"0": 0.0, "1-5": 0.0, ">20": 0.0}


def test_a_bucket_counts_its_own_positives_alone():
    """Of three positives the two rare ones are half found, whatever became of the third."""
    ranked, wanted = np.array([[7, 1, 0]]), Ragged.from_lists([[1, 2, 3]])
    shown = np.array([0, 1, 2, 99, 0, 0, 0, 0])
    assert recall_by_exposure(ranked, wanted, shown, 3) == {"1-5": 0.5, ">20": 0.0}


# --- 5-core filtering ---

ASKED = [  # user, impressed, clicked, purchased, split
    (1, [10, 11, 12], [10, 11], [], "train"),
    (1, [10, 11, 14], [11, 10], [10], "train"),
    (2, [10, 13], [10], [], "train"),
    (2, [11, 15], [], [11], "test"),  # bought without a click
    (3, [12, 10], [12], [], "train"),  # 12 is clicked once: it goes,
    (3, [14, 11], [14], [], "train"),  # so user 3 has one left and goes,
    (4, [14, 10], [14], [], "train"),  # so 14 has one left and goes, and this request with it,
    (4, [10, 14, 13], [10], [], "train"),
    (4, [11, 12], [11], [], "test"),  # but user 4 keeps two
    (1, [10, 11], [], [], "test"),  # no click and no order
    (5, [13], [], [], "train"),
]


@pytest.fixture
def log():
    user, impressed, clicked, purchased, split = zip(*ASKED, strict=True)
    session = 100 + np.arange(len(ASKED))
    recall = {
        "user_id": np.array(user),
        "session_id": session,
        "impressed_item_ids": Ragged.from_lists(impressed),
        "clicked_item_ids": Ragged.from_lists(clicked),
        "purchased_item_ids": Ragged.from_lists(purchased),
        "time_index": np.arange(len(ASKED)),
        "query": np.array([f"query {n % 3}" for n in range(len(ASKED))], object),
        "split": np.array(split, object),
    }
    rows, items = recall["impressed_item_ids"].rows, recall["impressed_item_ids"].values
    rank = {
        "session_id": session[rows],
        "target_item_id": items,
        "recently_clicked_item_ids": Ragged.from_lists([[12, 10, 14, 11]] * len(items)),
    }
    users = {"user_id": np.array([5, 4, 3, 2, 1])}
    goods = {"item_id": np.array([15, 10, 14, 11, 13, 12])}
    relevance = {"score": np.array([3])}
    return KuaiSearch(users, goods, recall, rank, relevance)


def test_a_removed_item_pulls_its_user_and_that_user_another_item_with_it(log):
    core = core_filter(log, 2)
    assert core.users["user_id"].tolist() == [4, 2, 1]  # in the order of the table
    assert core.items["item_id"].tolist() == [10, 11]
    assert core.recall["session_id"].tolist() == [100, 101, 102, 103, 107, 108]
    shown = [row.tolist() for row in core.recall["impressed_item_ids"]]
    assert shown == [[10, 11], [10, 11], [10], [11], [10], [11]]
    clicked = [row.tolist() for row in core.recall["clicked_item_ids"]]
    assert clicked == [[10, 11], [11, 10], [10], [], [10], [11]]
    assert [row.tolist() for row in core.recall["purchased_item_ids"]][3] == [11]


def test_rank_rows_and_histories_follow(log):
    core = core_filter(log, 2)
    assert core.rank["session_id"].tolist() == [100, 100, 101, 101, 102, 103, 107, 108]
    assert core.rank["target_item_id"].tolist() == [10, 11, 10, 11, 10, 11, 10, 11]
    assert {tuple(row) for row in core.rank["recently_clicked_item_ids"]} == {(10, 11)}
    assert core.relevance is log.relevance
    assert core_filter(replace(log, rank=None), 2).rank is None


def test_zero_changes_nothing_and_one_drops_what_has_no_click(log):
    assert core_filter(log, 0) is log
    one = core_filter(log, 1)
    assert one.recall["session_id"].tolist() == list(range(100, 109))
    assert sorted(one.items["item_id"]) == [10, 11, 12, 14]
    assert len(log.recall["session_id"]) == 11  # the original is left alone
    assert log.recall["impressed_item_ids"][0].tolist() == [10, 11, 12]


def test_a_log_without_a_core_becomes_empty_and_is_survived(log):
    none = core_filter(log, 50)
    assert [len(table["user_id"]) for table in (none.users, none.recall)] == [0, 0]
    assert len(none.items["item_id"]) == len(none.rank["session_id"]) == 0


def test_everybody_in_the_core_has_k(shop):
    k = 5
    core = core_filter(shop, k)
    events = positives(core.recall)
    owners = {"user_id": core.recall["user_id"][events.rows], "item_id": events.values}
    for (key, ids), table in zip(owners.items(), (core.users, core.items), strict=True):
        found, counts = np.unique(ids, return_counts=True)
        assert found.tolist() == sorted(table[key])
        assert len(found) > 20
        assert counts.min() >= k
    assert events.lengths.min() >= 1
    assert len(core.users["user_id"]) < len(shop.users["user_id"])


@pytest.fixture(scope="module")
def shop():
    config = ShopConfig.of("smoke", sessions=4000, test_share=0.25, rank_share=0.1)
    return make_shop(config, 100)[0]


def same(one, other):
    """Whether two logs are equal, value by value."""
    for name, table in one.tables().items():
        for column, values in table.items():
            twin = other.tables()[name][column]
            pairs = [(values, twin)]
            if isinstance(values, Ragged):
                pairs = [(values.values, twin.values), (values.offsets, twin.offsets)]
            if not all(np.array_equal(a, b) for a, b in pairs):
                return False
    return True


def test_the_core_of_the_core_is_the_core(log, shop):
    for data in (log, shop):
        for k in (2, 3):
            core = core_filter(data, k)
            assert same(core, core_filter(core, k))
    assert not same(shop, core_filter(shop, 2))


def test_the_core_passes_every_check_that_the_log_passed(shop):
    before, after = audit(shop), audit(core_filter(shop, 5))
    assert [check.name for check in before] == [check.name for check in after]
    assert [a.name for b, a in zip(before, after, strict=True) if b.passed and not a.passed] == []
    assert sum(check.passed is True for check in after) > 20


def test_lists_are_cut_down_and_other_columns_are_not(small):
    cut = only_items(small.recall, np.array([70, 40, 999]))
    assert [row.tolist() for row in cut["impressed_item_ids"]] == [
        [],
        [70],
        [40],
        [70],
        [],
        [40, 70],
    ]
    assert [row.tolist() for row in cut["purchased_item_ids"]] == [[], [], [40], [], [], [70]]
    assert cut["query"] is small.recall["query"]
