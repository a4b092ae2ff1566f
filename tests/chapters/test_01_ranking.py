"""Chapter 1, step 6: what click models may read, what each can learn, and how they are measured."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from minisearch import chapters
from minisearch.data.kuaisearch import past_interactions, positives
from minisearch.recorder import Recorder
from minisearch.records import Ragged, rows_of
from minisearch.tasks import (
    Impressions,
    core_filter,
    in_buckets,
    ranking_task,
    train_exposure,
)
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig

FIVE = ("rank_dnn", "rank_wide_deep", "rank_dcn", "rank_dcnv2", "rank_din")


@pytest.fixture(scope="module")
def chapter():
    return chapters.load("01_kuaisearch")


@pytest.fixture(scope="module")
def shop():
    return make_shop(ShopConfig.of("smoke", test_share=0.25, rank_share=0.2), 3)


@pytest.fixture
def page(chapter, shop, monkeypatch):
    """The chapter as it stands after its first steps have run on a smoke shop."""
    names = ("log", "truth", "ranking")
    for name, value in zip(names, (*shop, chapter.RankingSettings.of("smoke")), strict=True):
        monkeypatch.setattr(chapter, name, value, raising=False)
    cached = (chapter.features, chapter.request_labels)
    for function in cached:
        function.cache_clear()
    yield chapter
    for function in cached:
        function.cache_clear()


# --- a tiny market where the answer is known ---

USERS, ITEMS, REQUESTS = 40, 40, 1000


@pytest.fixture
def market(chapter, monkeypatch):
    """Users, products and histories without any meaning; `features()` hands them out."""
    rng = np.random.default_rng(0)

    def unit(count):
        vectors = rng.normal(size=(count, 2)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    numbers = np.arange(1, USERS + 1)
    facts = [1 + numbers % 2, *rng.integers(1, 4, (4, USERS))]
    made = chapter.Features(
        query_of=rng.integers(0, 20, REQUESTS),
        queries=unit(20),
        titles=np.pad(unit(ITEMS), ((1, 0), (0, 0))),
        user_of=rng.integers(1, USERS + 1, REQUESTS),
        users=np.pad(np.stack([numbers, facts[0], facts[1]], axis=1), ((1, 0), (0, 0))),
        items=np.pad(np.stack([numbers, facts[0], *facts[2:4]], axis=1), ((1, 0), (0, 0))),
        histories=rng.integers(1, ITEMS + 1, (REQUESTS, 3)),
    )
    monkeypatch.setattr(chapter, "features", lambda: made)
    return made


def shown_as(item, label):
    """Impressions of four products a request, the last quarter of the requests for testing."""
    request, place = np.divmod(np.arange(len(item)), 4)
    return Impressions(request, item, place + 1, label, training=request < REQUESTS * 3 // 4)


def settings_of(chapter, **changes):
    defaults = {"dropout": 0.0, "batch_size": 64, "learning_rate": 1e-2, "epochs": 3}
    return chapter.RankingSettings.of("smoke", **(defaults | changes))


def auc_of(chapter, model, shown):
    return roc_auc_score(shown.label[~shown.training], chapter.click_chances(model, shown, 1.0))


@pytest.fixture
def opposites(market):
    """One group of users clicks one category, the other group the other: no sum can say that."""
    item = np.random.default_rng(1).integers(0, ITEMS, 4 * REQUESTS)
    group = np.repeat(market.users[market.user_of, 1], 4)
    return shown_as(item, group != market.items[item + 1, 1])


@pytest.mark.parametrize("name", FIVE)
def test_the_five_learn_which_users_meet_which_products(chapter, opposites, name):
    model = chapter.train_clicks(name, opposites, settings_of(chapter), 0)
    assert auc_of(chapter, model, opposites) > 0.95


def test_a_linear_model_and_shuffled_labels_learn_nothing_of_it(chapter, opposites):
    settings = settings_of(chapter)
    model = chapter.train_clicks("rank_linear", opposites, settings, 0)
    assert abs(auc_of(chapter, model, opposites) - 0.5) < 0.1
    chance = chapter.shuffled_clicks(opposites, settings, 0)
    assert abs(roc_auc_score(opposites.label[~opposites.training], chance) - 0.5) < 0.1


@pytest.mark.parametrize("cross", ["vector", "matrix"])
def test_cross_layers_alone_learn_what_no_sum_can_say(chapter, opposites, monkeypatch, cross):
    monkeypatch.setitem(chapter.CLICK_MODELS, "alone", {"cross": cross, "deep": False})
    settings = settings_of(chapter, learning_rate=2e-2)
    model = chapter.train_clicks("alone", opposites, settings, 0)
    assert auc_of(chapter, model, opposites) > 0.95


def test_cross_layers_are_the_formula(chapter):
    torch.manual_seed(0)
    start = torch.randn(64, 5)
    for matrix in (False, True):
        layers, x = chapter.CrossLayers(5, 3, matrix), start
        for number, weight in enumerate(layers.weights):
            w = weight.weight  # (1, 5), or (5, 5)
            if matrix:
                x = x + start * (x @ w.T + weight.bias)
            else:  # and a batch norm, as in the release
                x = x + start * (x @ w[0])[:, None] + layers.biases[number]
                x = (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-5).sqrt()
        assert number == 2
        torch.testing.assert_close(layers(start), x)


def test_only_attention_to_the_target_finds_it_in_the_history(chapter, market):
    """The only difference of the two models is how the history is pooled."""
    rng = np.random.default_rng(2)
    past = np.repeat(market.histories, 4, axis=0)  # (P, 3)
    old, new = past[np.arange(len(past)), rng.integers(0, 3, len(past))] - 1, rng.permutation(past)
    item = np.where(rng.random(len(past)) < 0.45, old, new[:, 0] - 1)
    shown = shown_as(item, (past == item[:, None] + 1).any(axis=1))
    settings = settings_of(chapter, epochs=8, learning_rate=3e-2, batch_size=128)
    aucs = {}
    for name in ("rank_dcn", "rank_din"):
        model = chapter.train_clicks(name, shown, settings, 0)
        aucs[name] = auc_of(chapter, model, shown)
    assert aucs["rank_din"] > 0.95 > aucs["rank_dcn"] + 0.05


# --- nothing but the interaction differs ---


@pytest.fixture
def untrained(chapter, monkeypatch):
    """`train_clicks` stops before the training: it returns the model and keeps the batches."""
    seen = []
    monkeypatch.setattr(chapter, "fit", lambda model, batches, *_: seen.append(batches))
    return seen


def test_the_five_start_from_the_same_inputs_and_see_the_same_batches(
    chapter, opposites, untrained
):
    settings = settings_of(chapter)
    models = [chapter.train_clicks(name, opposites, settings, 5) for name in FIVE]
    first, other = models[0], chapter.train_clicks("rank_dnn", opposites, settings, 6)
    known = dict(first.inputs.named_parameters())
    assert len(known) == 7  # tables of three columns of users and four of products
    usual = list(untrained[0])
    for model, batches in zip(models[1:], untrained[1:5], strict=True):
        own = dict(model.inputs.named_parameters())
        assert own.keys() == known.keys()
        assert all(torch.equal(own[name], known[name]) for name in known)
        assert torch.equal(model.out.bias, first.out.bias)
        for batch, twin in zip(batches, usual, strict=True):
            assert all(torch.equal(batch[name], twin[name]) for name in batch)
    assert not torch.equal(other.inputs.user_tables[0].weight, known["user_tables.0.weight"])
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert len(set(sizes)) == 5  # and yet they are five models


def test_wide_is_a_weight_for_every_number(chapter, market, opposites, untrained):
    wide = chapter.train_clicks("rank_wide_deep", opposites, settings_of(chapter), 0).eval()
    deep = chapter.train_clicks("rank_dnn", opposites, settings_of(chapter), 0).eval()
    request = torch.arange(200)
    batch = {"request": request, "item": request % ITEMS}
    assert [t.num_embeddings for t in wide.wide] == [USERS + 1, 3, 4, ITEMS + 1, 3, 4, 4]
    with torch.no_grad():
        deep.deep.load_state_dict(wide.deep.state_dict())
        deep.out.load_state_dict(wide.out.state_dict())
        before = wide(batch)
        torch.testing.assert_close(before, deep(batch))  # the new weights start at zero
        wide.wide[0].weight[7] = 1.5
        wide.wide[3].weight[9] = -0.5
        moved = wide(batch) - before
    user, number = market.user_of[:200], np.arange(200) % ITEMS + 1
    expected = 1.5 * (user == 7) - 0.5 * (number == 9)
    assert len(set(expected)) >= 3
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_padding_adds_nothing_to_a_pooled_history(chapter):
    torch.manual_seed(0)
    past, target, mask = torch.randn(5, 4, 6), torch.randn(5, 6), torch.ones(5, 4, dtype=bool)
    more = torch.cat([past, 100 * torch.randn(5, 3, 6)], dim=1)
    longer = torch.nn.functional.pad(mask, (0, 3))
    nothing = torch.zeros_like(mask)
    for pool in (chapter.MeanPool(), chapter.TargetAttention(6, 8)):
        pooled = pool(past, target, mask)
        torch.testing.assert_close(pool(more, target, longer), pooled)
        assert pool(past, target, nothing).abs().max() == 0  # a user without a past
        assert pooled.abs().min() > 0
    torch.testing.assert_close(chapter.MeanPool()(past, target, mask), past.mean(dim=1))


def test_row_zero_stays_nothing_through_training(chapter, market, opposites, monkeypatch):
    holes = market.histories * (np.random.default_rng(3).random((REQUESTS, 3)) < 0.5)
    monkeypatch.setattr(chapter, "features", lambda: replace(market, histories=holes))
    settings = settings_of(chapter, epochs=1)
    model = chapter.train_clicks("rank_din", opposites, settings, 0).eval()
    for table in (*model.inputs.user_tables, *model.inputs.item_tables):
        assert table.weight[0].abs().max() == 0
        assert table.weight[1:].abs().min() > 0
    batch = {"request": torch.arange(50), "item": torch.arange(50) % ITEMS}
    with torch.no_grad():
        before = model(batch)
        model.inputs.histories = torch.nn.functional.pad(model.inputs.histories, (0, 4))
        torch.testing.assert_close(model(batch), before)


# --- what an arm reads ---

CHANGES = ("query", "title", "user number", "user facts", "item number", "item facts", "history")
READS = {
    ("query", "ids"): {"query", "user number", "item number", "history"},
    ("query", "title"): {"query", "title"},
    ("ids", "facts"): set(CHANGES) - {"query", "title"},
    ("query", "title", "ids", "facts"): set(CHANGES),
}


def changed(known, what):
    """The features with one thing moved to other rows; row 0 of a table stays where it is."""
    kind, _, part = what.partition(" ")
    name = {"query": "queries", "title": "titles", "history": "histories"}.get(kind, f"{kind}s")
    array = getattr(known, name).copy()
    columns = {"number": slice(0, 1), "facts": slice(1, None)}.get(part, slice(None))
    order = np.r_[0, 1 + np.random.default_rng(9).permutation(len(array) - 1)]
    array[:, columns] = array[order, columns]
    return replace(known, **{name: array})


def test_the_arms_of_numbers_and_of_text_leave_the_other_out(chapter):
    assert READS[chapter.USES["rank_ids"]].isdisjoint({"title", "user facts", "item facts"})
    assert READS[chapter.USES["rank_text"]] == {"query", "title"}
    assert READS[chapter.EVERYTHING] == set(CHANGES)


@pytest.mark.parametrize("use", READS, ids=" ".join)
def test_a_model_reads_the_parts_it_is_given_and_nothing_else(chapter, market, use):
    batch = {"request": torch.arange(100), "item": torch.arange(100) % ITEMS}

    def logits(features):
        torch.manual_seed(0)
        settings = chapter.RankingSettings.of("smoke")
        model = chapter.ClickModel(chapter.Inputs(features, settings, use), settings)
        with torch.no_grad():
            return model.eval()(batch)

    before = logits(market)
    moved = {what for what in CHANGES if not torch.equal(logits(changed(market, what)), before)}
    assert moved == READS[use]


def test_the_inputs_know_nothing_of_clicks_but_earlier_ones(page, shop):
    log = shop[0]
    full = page.features()
    page.log = silent(log, np.ones(len(log.recall["query"]), dtype=bool))
    page.features.cache_clear()
    empty = page.features()
    assert full.histories.any()
    assert not empty.histories.any()
    for field in fields(full):
        if field.name != "histories":
            same = np.array_equal(getattr(full, field.name), getattr(empty, field.name))
            assert same, field.name


def test_features_stand_at_the_right_rows(page, shop):
    log = shop[0]
    known = page.features()
    text = log.recall["query"].astype(str)
    for table in (known.users, known.items, known.titles):
        assert not table[0].any()
        assert np.abs(table[1:]).max(axis=1).min() > 0
    some = np.random.default_rng(0).integers(0, len(text), 2000).reshape(2, -1)
    same = known.query_of[some[0]] == known.query_of[some[1]]
    assert same.tolist() == (text[some[0]] == text[some[1]]).tolist()
    asked = log.users["user_id"][known.user_of - 1]
    assert asked.tolist() == log.recall["user_id"].tolist()
    for code, column in zip(known.users[1:].T[1:], ("gender", "age_bucket"), strict=True):
        assert len(set(zip(code, log.users[column], strict=True))) == len(set(code)) > 1
    titles = list(log.items["item_title"])
    vectors = page.text_vectors([*titles, *np.unique(text)], page.ranking)
    of_text = dict(zip([*titles, *np.unique(text)], vectors, strict=True))
    np.testing.assert_allclose(known.titles[1:], [of_text[title] for title in titles], atol=1e-5)
    asked = known.queries[known.query_of]
    np.testing.assert_allclose(asked, [of_text[query] for query in text], atol=1e-5)


def test_text_vectors_are_close_where_words_are_shared(chapter):
    settings = chapter.RankingSettings.of("smoke", text_width=2)
    texts = ["red running shoe", "blue running shoe", "garden lamp steel", "garden lamp", "?"]
    vectors = chapter.text_vectors(texts, settings)
    assert vectors.shape == (5, 2)
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, rtol=1e-5)
    assert not vectors[4].any()  # a text without words has no direction
    near = vectors @ vectors.T
    assert min(near[0, 1], near[2, 3]) > 0.9
    assert np.abs(near[:2, 2:4]).max() < 0.1


# --- histories ---


def silent(log, rows):
    """The log without any click or order in the given requests. Shape: rows (R,) bool."""
    recall = dict(log.recall)
    for column in ("clicked_item_ids", "purchased_item_ids"):
        lists = zip(recall[column], rows, strict=True)
        recall[column] = Ragged.from_lists(row[:0] if quiet else row for row, quiet in lists)
    return replace(log, recall=recall)


def test_a_history_is_what_the_user_did_in_earlier_requests(chapter, shop):
    log = shop[0]
    user, time, wanted = log.recall["user_id"], log.recall["time_index"], positives(log.recall)
    histories = chapter.histories_of(log, past_interactions(log, last=20), 20)
    for row in range(0, len(user), 7):
        earlier = np.flatnonzero((user == user[row]) & (time < time[row]))
        earlier = earlier[np.argsort(time[earlier], kind="stable")]
        items = [item for r in earlier for item in wanted[r]][-20:]
        found = histories[row][histories[row] > 0]
        assert log.items["item_id"][found - 1].tolist() == items
        assert not histories[row][len(items) :].any()
    assert (histories[:, 19] > 0).any()  # some are full
    assert (histories[:, 0] == 0).any()  # and some empty


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_no_history_changes_when_its_present_and_future_are_deleted(chapter, shop, share):
    log = shop[0]
    time = log.recall["time_index"]
    cut = np.quantile(time, share, method="lower")
    after = silent(log, time >= cut)
    one, two = (chapter.histories_of(x, past_interactions(x, last=20), 20) for x in (log, after))
    assert (time == cut).any()
    assert np.array_equal(one[time <= cut], two[time <= cut])
    assert not np.array_equal(one[time > cut], two[time > cut])


@pytest.fixture
def handed_on(page, monkeypatch):
    """`with_history(kind)` stopped before the training: the histories that a model would read."""
    monkeypatch.setattr(page, "clicks_by", lambda *given, **changes: (given, changes))

    def histories(kind):
        settings = page.RankingSettings.of("smoke", negatives_kept=0.2)
        (name, _, used, _), changes = page.with_history(kind, None, settings, 0)
        assert (name, used.negatives_kept) == ("rank_din", 1.0)
        return changes["histories"]

    return histories


def test_the_late_export_holds_the_answers_and_the_rebuilt_one_does_not(page, shop, handed_on):
    log = shop[0]
    late, past, wanted = handed_on("late"), handed_on("past"), positives(log.recall)
    rebuilt = page.histories_of(log, past_interactions(log, last=20), 20)
    assert np.array_equal(past, rebuilt)
    assert np.array_equal(page.features().histories, rebuilt)
    length = (late > 0).sum(axis=1)
    for row in np.flatnonzero(wanted.lengths):
        own = rows_of(log.items["item_id"], wanted[row]) + 1
        assert late[row, length[row] - len(own) : length[row]].tolist() == own.tolist()
    quiet = wanted.lengths == 0
    assert np.array_equal(late[quiet], past[quiet])


def test_the_logged_history_is_the_rank_tables_list(page, shop, handed_on):
    log = shop[0]
    logged, past = handed_on("logged"), handed_on("past")
    lists = dict(zip(log.rank["session_id"], log.rank["recently_clicked_item_ids"], strict=True))
    listed = np.isin(log.recall["session_id"], list(lists))
    for row in np.flatnonzero(listed):
        found = logged[row][logged[row] > 0]
        wanted = lists[log.recall["session_id"][row]]
        assert log.items["item_id"][found - 1].tolist() == wanted.tolist()
    assert np.array_equal(logged[~listed], past[~listed])
    assert (logged[listed] != past[listed]).any()


def test_history_arms_are_trained_and_tested_on_requests_with_rank_rows(page, shop):
    log = shop[0]
    whole = ranking_task(log)
    part = page.in_rank_table(whole)
    session = log.recall["session_id"][part.request]
    pairs = zip(session, log.items["item_id"][part.item], part.label, strict=True)
    rank = log.rank
    label = (rank["is_clicked"] + rank["is_purchased"]) > 0
    assert sorted(pairs) == sorted(
        zip(rank["session_id"], rank["target_item_id"], label, strict=True)
    )
    assert part.training.any()
    assert not part.training.all()
    assert len(part.item) < len(whole.item) / 2


# --- negatives that were left out, and references ---


def test_every_click_and_a_share_of_the_rest_is_learnt_from(chapter, market, untrained):
    rng = np.random.default_rng(4)
    item = rng.integers(0, ITEMS, 4 * REQUESTS)
    shown = shown_as(item, rng.random(4 * REQUESTS) < 0.1)
    model = chapter.train_clicks("rank_dnn", shown, settings_of(chapter, negatives_kept=0.2), 0)
    rows = untrained[0].tensors
    clicks = int((shown.label & shown.training).sum())
    rest = int((~shown.label & shown.training).sum())
    assert rows["label"].sum() == clicks
    assert len(rows["label"]) - clicks == pytest.approx(0.2 * rest, rel=0.15)
    assert not set(rows["request"].tolist()) & set(shown.request[~shown.training])
    known = set(zip(shown.request, shown.item, shown.label, strict=True))
    columns = (rows[name].tolist() for name in ("request", "item", "label"))
    assert set(zip(*columns, strict=True)) <= known
    rate = float(rows["label"].mean())
    assert model.out.bias.item() == pytest.approx(np.log(rate / (1 - rate)), abs=1e-5)


def test_leaving_out_negatives_is_undone_in_the_log_odds(chapter, market):
    rng = np.random.default_rng(5)
    item = rng.integers(0, ITEMS, 4 * REQUESTS)
    shown = shown_as(item, rng.random(4 * REQUESTS) < 0.1 + 0.2 * (item % 2))
    settings = settings_of(chapter, negatives_kept=0.2, epochs=4)
    model = chapter.train_clicks("rank_linear", shown, settings, 0)
    raw, undone = (chapter.click_chances(model, shown, kept) for kept in (1.0, 0.2))
    log_odds = [np.log(chance / (1 - chance)) for chance in (raw, undone)]
    np.testing.assert_allclose(log_odds[0] - log_odds[1], np.log(5), atol=1e-4)
    truth = (0.1 + 0.2 * (item % 2))[~shown.training]
    for side in (truth < 0.2, truth > 0.2):
        assert undone[side].mean() == pytest.approx(truth[side].mean(), abs=0.04)
    assert raw.mean() > undone.mean() + 0.2


def test_chances_are_those_of_the_test_impressions_in_their_order(chapter, opposites, untrained):
    model = chapter.train_clicks("rank_dcn", opposites, settings_of(chapter), 0)
    rows = np.flatnonzero(~opposites.training)[[0, 5, -1]]
    batch = {n: torch.from_numpy(getattr(opposites, n)[rows]) for n in ("request", "item")}
    with torch.no_grad():
        expected = torch.sigmoid(model.eval()(batch))
    model.train()  # what is left in training mode must not drop anything out
    chance = chapter.click_chances(model, opposites, 1.0)
    assert len(chance) == (~opposites.training).sum()
    np.testing.assert_allclose(chance[[0, 5, -1]], expected, rtol=1e-5)


def test_shuffling_moves_training_labels_alone(chapter, opposites, monkeypatch):
    monkeypatch.setattr(chapter, "clicks_by", lambda *given, **changes: (given[0], changes))
    model, changes = chapter.shuffled_clicks(opposites, None, 0)
    labels, training = changes["labels"], opposites.training
    assert model == "rank_dnn"
    assert np.array_equal(labels[~training], opposites.label[~training])
    assert labels[training].sum() == opposites.label[training].sum()
    assert 0.4 < (labels == opposites.label)[training].mean() < 0.6


def test_the_click_rate_of_a_product_is_shrunk_to_the_mean(page, shop):
    item = np.repeat([0, 1, 2], [60, 30, 10])
    label = np.zeros(100, dtype=bool)
    label[:20] = True
    training = np.arange(100) < 90
    training[0] = False  # one click of product 0 is for testing
    shown = Impressions(np.arange(100), item, np.ones(100), label, training)
    found = page.item_click_rate(shown, None, 0)
    mean = 19 / 89
    assert found[0] == pytest.approx((19 + 30 * mean) / (59 + 30))
    np.testing.assert_allclose(found[1:], mean)  # product 2 was never shown in training
    assert len(found) == 11


def test_the_truth_is_of_the_same_request_and_product_after_filtering(page, shop):
    """A filtered log has other rows than the truth, which is about the whole one."""
    log = shop[0]

    def known(of):
        page.log, shown = of, ranking_task(of)
        chance, test = page.true_chance(shown, None, 0), ~shown.training
        session = of.recall["session_id"][shown.request[test]]
        item = of.items["item_id"][shown.item[test]]
        kinds = page.bucket_labels(np.arange(len(of.recall["query"])))["query type"]
        pairs = dict(zip(zip(session, item, strict=True), chance, strict=True))
        return pairs | dict(zip(of.recall["session_id"], kinds, strict=True))

    whole, part = known(log), known(core_filter(log, 3))
    assert 0 < len(part) < len(whole) / 1.5
    assert {key: whole[key] for key in part} == part


def test_the_logged_order_is_the_place_of_the_test_impressions(page, shop):
    shown = ranking_task(shop[0])
    order = page.logged_order(shown, None, 0)
    place = shown.place[~shown.training]
    assert np.argsort(-order, kind="stable").tolist() == np.argsort(place, kind="stable").tolist()
    assert len(set(order)) == len(set(place)) > 5


def test_the_truth_orders_clicks_better_than_a_products_rate(page, shop):
    shown = ranking_task(shop[0])
    label = shown.label[~shown.training]
    truth, rate = page.true_chance(shown, None, 0), page.item_click_rate(shown, None, 0)
    assert roc_auc_score(label, truth) > roc_auc_score(label, rate) + 0.05
    assert roc_auc_score(label, truth) > 0.65
    assert 0 < truth.min() <= truth.max() < 1


# --- measures ---


def test_ndcg_is_scikit_learns(chapter):
    rng = np.random.default_rng(0)
    lengths = [1, 2, 5, 10, 11, 30, 4, 12]
    request = np.repeat([3, 4, 7, 8, 9, 20, 21, 30], lengths)
    for _ in range(20):
        scores = rng.permutation(len(request)).astype(float)
        labels = rng.random(len(request)) < 0.3
        labels[request == 21] = False  # a request without a click has no value
        found, expected = chapter.ndcg_of_requests(scores, labels, request), []
        for number in np.unique(request[labels]):
            own = request == number
            # a last place that holds nothing, as scikit-learn refuses a list of one
            gains, order = (np.append(x[own], low) for x, low in ((labels, 0), (scores, -1)))
            expected.append(ndcg_score([gains], [order], k=10))
        np.testing.assert_allclose(found, expected)


def test_equal_scores_do_not_repeat_the_logged_order(chapter):
    request = np.repeat(np.arange(500), 10)
    labels = np.arange(5000) % 10 == 0  # what stood first was clicked
    found = chapter.ndcg_of_requests(np.zeros(5000), labels, request)
    blind = np.mean(1 / np.log2(np.arange(2, 12)))
    assert found.mean() == pytest.approx(blind, abs=0.05)


@pytest.fixture
def measured(page, shop, tmp_path, monkeypatch):
    """Recorded measures of scores that know something, and the test impressions."""
    monkeypatch.setattr(page, "record", Recorder(tmp_path), raising=False)
    shown = ranking_task(shop[0])
    test = ~shown.training
    noise = np.random.default_rng(0).normal(size=test.sum())
    chance = 1 / (1 + np.exp(2 - shown.label[test] - noise))
    page.measure_clicks("rank_x", chance, shown)
    rows = pd.read_parquet(tmp_path / "rows" / "rank_x.parquet")
    return page.record.metrics, rows, chance, shown


def test_measures_of_clicks_are_scikit_learns(measured, shop):
    metrics, _, chance, shown = measured
    test = ~shown.training
    label, log = shown.label[test], shop[0]
    assert metrics["rank_x/auc"] == pytest.approx(roc_auc_score(label, chance))
    assert metrics["rank_x/log_loss"] == pytest.approx(log_loss(label, chance))
    exposure = train_exposure(log)[shown.item[test]]
    for bucket in np.unique(in_buckets(exposure)):
        own = in_buckets(exposure) == bucket
        name = f"rank_x/auc/product shown: {bucket}"
        assert metrics[name] == pytest.approx(roc_auc_score(label[own], chance[own])), bucket
    warm = exposure > 20
    head, tail = (roc_auc_score(label[s], chance[s]) for s in (warm, ~warm))
    assert metrics["rank_x/cold_penalty"] == pytest.approx(head - tail)
    kinds = [name for name in metrics if "/query type: " in name]
    assert len(kinds) == 7


def test_a_score_that_is_no_chance_has_no_log_loss(page, shop, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "record", Recorder(tmp_path), raising=False)
    shown = ranking_task(shop[0])
    for name in ("rank_place", "rank_item_ctr"):
        page.measure_clicks(name, page.logged_order(shown, None, 0), shown)
    assert "rank_place/auc" in page.record.metrics
    assert "rank_place/log_loss" not in page.record.metrics
    assert "rank_item_ctr/log_loss" in page.record.metrics


def test_rows_of_blocks_have_the_auc_as_their_mean(measured, chapter):
    metrics, rows, _, _ = measured
    assert len(rows) == chapter.BLOCKS
    assert rows["query_row"].tolist() == list(range(chapter.BLOCKS))
    for name in ("auc", "cold_penalty"):
        assert rows[name].mean() == pytest.approx(metrics[f"rank_x/{name}"], abs=1e-5)


def test_a_block_is_made_of_whole_users(page, shop, tmp_path, monkeypatch):
    """With the impressions of two users alone, two blocks hold all that differs."""
    monkeypatch.setattr(page, "record", Recorder(tmp_path), raising=False)
    log = shop[0]
    shown = ranking_task(log)
    user = log.recall["user_id"][shown.request]
    clicks = [(shown.label & ~shown.training)[user == u].sum() for u in np.unique(user)]
    busy = np.argsort(clicks)[-2:]  # numbers of users, in the order of their ids
    kept = np.isin(user, np.unique(user)[busy])
    shown = Impressions(**{name: column[kept] for name, column in vars(shown).items()})
    chance = np.random.default_rng(0).random((~shown.training).sum())
    page.measure_clicks("rank_y", chance, shown)
    auc = pd.read_parquet(tmp_path / "rows" / "rank_y.parquet")["auc"].to_numpy()
    usual = np.bincount(np.unique(auc, return_inverse=True)[1]).argmax()
    differs = np.flatnonzero(np.unique(auc, return_inverse=True)[1] != usual)
    assert sorted(differs) == sorted(busy % page.BLOCKS)


# --- the price of being new, in recall ---


@pytest.fixture
def rare(chapter, monkeypatch):
    """Ranked lists, wanted rows, and a function that computes the price for some requests."""
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 40, 300)
    monkeypatch.setattr(chapter, "shown", shown, raising=False)
    ranked = np.stack([rng.permutation(300)[:60] for _ in range(400)])
    wanted = []
    for row in ranked:  # something that was shown often tends to be found
        found = [r for r in row if shown[r] > 20][: rng.integers(0, 3)]
        wanted.append(sorted({*found, *rng.integers(0, 300, rng.integers(1, 4))}))

    def price(requests):
        means = []
        for side in (shown > 20, shown <= 20):
            shares = []
            for request in requests:
                own = {w for w in wanted[request] if side[w]}
                if own:
                    shares.append(len(own & set(ranked[request, :50])) / len(own))
            means.append(np.mean(shares))
        return means[0] - means[1]

    return ranked, Ragged.from_lists(wanted), price


def test_the_cold_penalty_is_the_difference_of_the_two_recalls(chapter, rare):
    ranked, wanted, price = rare
    values = chapter.cold_penalty(ranked, wanted)
    assert len(values) == 400
    assert values.mean() == pytest.approx(price(range(400)))
    assert values.mean() > 0.2


def test_the_spread_of_the_cold_penalty_is_its_error(chapter, rare):
    """A bootstrap of requests, each side's recall computed anew, has the same spread."""
    ranked, wanted, price = rare
    rng = np.random.default_rng(1)
    again = [price(rng.integers(0, 400, 400)) for _ in range(150)]
    error = chapter.cold_penalty(ranked, wanted).std() / np.sqrt(400)
    assert np.std(again) == pytest.approx(error, rel=0.2)


def test_a_log_without_rare_products_pays_nothing_for_them(chapter, monkeypatch):
    monkeypatch.setattr(chapter, "shown", np.full(60, 99), raising=False)
    wanted = Ragged.from_lists([[0], [1, 59]])
    values = chapter.cold_penalty(np.tile(np.arange(55), (2, 1)), wanted)
    assert values.mean() == pytest.approx(0.75)
