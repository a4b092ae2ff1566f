"""A simulated shop with exactly KuaiSearch's columns.

`make_shop` returns the tables, and apart from them the truth behind the log; training code gets the
tables alone, from `stored.open_shop`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minisearch.data.kuaisearch import KuaiSearch
from minisearch.records import AGE_BUCKETS, Ragged, Table
from minisearch.worlds.shop_catalogue import (
    BRAND,
    CATEGORY,
    NONE,
    ShopConfig,
    Words,
    invented_names,
    lexicon,
    make_goods,
    make_titles,
    make_words,
    stream,
    zipf,
)
from minisearch.worlds.shop_log import (
    AMBIGUOUS,
    QUESTION,
    Events,
    act,
    make_people,
    make_requests,
    show,
)
from minisearch.worlds.shop_truth import ShopTruth, grade

HISTORY = 20  # longest recently_* list
ENTRANCES = ("mall", "homepage", "mall placeholder", "homepage placeholder", "commodity detail")
ENTRANCE_SHARES = (0.4923, 0.4486, 0.0327, 0.0157, 0.0107)  # authors' statistics, made to add to 1
GRADE_SHARES = (0.1313, 0.1903, 0.3398, 0.3386)  # authors' statistics


def make_shop(config: ShopConfig, world_seed: int) -> tuple[KuaiSearch, ShopTruth]:
    """Build one world: the tables, and the truth that produced them.

    The same settings and seed give the same bytes in every process.
    """
    words = make_words(config, world_seed)
    goods = make_goods(words, config, world_seed)
    people = make_people(words, config, world_seed)
    requests = make_requests(words, goods, people, config, world_seed)
    # Public ids are shuffled, so that a row number taken for an id shows at once.
    rng = stream(world_seed, "ids")
    ids = [1 + rng.permutation(n) for n in (config.items, config.users, config.sessions)]
    truth = ShopTruth(config, world_seed, goods, people, requests, *ids)
    events = show(truth)
    act(truth, events)
    items, recall = _items(truth, words), _recall(truth, events)
    return KuaiSearch(
        users=_users(truth),
        items=items,
        recall=recall,
        rank=_rank(truth, events, recall),
        relevance=_relevance(truth, events, items),
    ), truth


def _text(values: Sequence[str] | np.ndarray) -> np.ndarray:
    return np.array(values, dtype=object)


def _users(truth: ShopTruth) -> Table:
    rng, count = stream(truth.world_seed, "places"), len(truth.user_id)
    countries, provinces, cities = np.split(_text(invented_names(rng, 76)), [4, 12])
    city = rng.choice(len(cities), count, p=zipf(len(cities), 0.8))
    return {
        "user_id": truth.user_id,
        "gender": _text(["F", "M"])[truth.people.gender],
        "age_bucket": _text(AGE_BUCKETS)[truth.people.age],
        "fre_country": countries[rng.choice(4, count, p=[0.97, 0.01, 0.01, 0.01])],
        "fre_province": provinces[city % len(provinces)],
        "fre_city": cities[city],
    }


def _items(truth: ShopTruth, words: Words) -> Table:
    goods, count = truth.goods, len(truth.item_id)
    rng = stream(truth.world_seed, "sellers")
    names, kinds = invented_names(rng, max(4, count // 8)), lexicon()["seller_kinds"]
    sellers = _text([f"{name} {kinds[rng.integers(len(kinds))]}" for name in names])
    seller = rng.choice(len(sellers), count, p=zipf(len(sellers), 0.6))
    brand, tree = goods.values[:, BRAND], lexicon()["tree"]
    level1, level2 = goods.leaf_level1[goods.leaf], goods.leaf_level2[goods.leaf]
    # Some items have no third level, as in the real data: id 0, name UNKNOWN.
    level3 = np.where(rng.random(count) < 0.1, 0, goods.leaf + 1)
    return {
        "item_id": truth.item_id,
        "item_title": _text(make_titles(words, goods, truth.config, truth.world_seed)),
        "brand_id": brand - NONE + 1,
        "brand_name": _text(np.where(brand == NONE, "other", goods.value_name[brand])),
        "seller_id": seller + 1,
        "seller_name": sellers[seller],
        "category_level1_id": level1 + 1,
        "category_level1_name": _text(list(tree))[level1],
        "category_level2_id": level2 + 1,
        "category_level2_name": _text([g for b in tree.values() for g in b["groups"]])[level2],
        "category_level3_id": level3,
        "category_level3_name": _text(["UNKNOWN", *goods.leaf_name])[level3],
    }


def _recall(truth: ShopTruth, events: Events) -> Table:
    requests, count = truth.requests, len(truth.session_id)

    def collect(which: np.ndarray) -> Ragged:
        ids = truth.item_id[events.item[which]]
        return Ragged.from_pairs(events.session[which], ids, count)

    held_out = np.arange(count) >= count - round(truth.config.test_share * count)  # the latest
    return {
        "user_id": truth.user_id[requests.user],
        "session_id": truth.session_id,
        "impressed_item_ids": collect(np.ones(len(events.item), bool)),
        "clicked_item_ids": collect(events.clicked),
        "purchased_item_ids": collect(events.ordered),
        "time_index": requests.time,
        "query": requests.query,
        "split": _text(["train", "test"])[held_out.astype(int)],
    }


def sums_before(keys: np.ndarray, sessions: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """For each event, the sums of `amounts` over its key's events of earlier sessions.

    Shape: keys, sessions (P,), sessions in rising order, amounts (P, C) -> (P, C).
    """
    order = np.argsort(keys, kind="stable")
    total = np.concatenate([np.zeros((1, amounts.shape[1])), np.cumsum(amounts[order], axis=0)])
    new_key = np.diff(keys[order], prepend=-1) != 0
    new_session = new_key | (np.diff(sessions[order], prepend=-1) != 0)
    place = np.arange(len(keys))
    of_key, of_session = (
        np.maximum.accumulate(np.where(new, place, 0)) for new in (new_key, new_session)
    )
    result = np.empty(amounts.shape)
    result[order] = total[of_session] - total[of_key]
    return result


def _history(
    truth: ShopTruth, events: Events, rows: np.ndarray, rng: np.random.Generator
) -> Ragged:
    """Each request's latest items among the events `rows`; as in the real data, some are later.

    Shape: rows (E,) -> Ragged of S lists of item ids.
    """
    sessions = np.arange(len(truth.session_id))
    base = truth.requests.user * len(sessions)  # base + session sorts by user, then time
    rows = rows[np.argsort(base[events.session[rows]], kind="stable")]
    keys = base[events.session[rows]] + events.session[rows]
    first, now, after, end = (
        np.searchsorted(keys, base + offset)
        for offset in (0, sessions, sessions + 1, len(sessions))
    )
    log = Ragged(events.item[rows], np.array([0, len(rows)]))
    past = log.slices(np.maximum(first, now - HISTORY), now)
    owner = past.rows
    later = (end - after)[owner]
    leak = (rng.random(len(owner)) < truth.config.future_history) & (later > 0)
    pick = np.where(leak, after[owner] + (rng.random(len(owner)) * later).astype(int), 0)
    return Ragged(truth.item_id[np.where(leak, log.values[pick], past.values)], past.offsets)


def _rank(truth: ShopTruth, events: Events, recall: Table) -> Table | None:
    """One row for each impression of a sample of the requests; None when the sample is empty."""
    rng, config = stream(truth.world_seed, "rank"), truth.config
    rows = np.flatnonzero((rng.random(config.sessions) < config.rank_share)[events.session])
    if not len(rows):
        return None
    session, item = events.session[rows], events.item[rows]
    user, price = truth.requests.user[events.session], truth.goods.price
    spent = events.ordered * price[events.item]
    amounts = np.stack([np.ones(len(user)), events.clicked, events.ordered, spent], axis=1)
    of_user = sums_before(user, events.session, amounts)[rows]
    of_item = sums_before(events.item, events.session, amounts[:, :3])[rows]
    table: Table = {
        "user_id": recall["user_id"][session],
        "session_id": recall["session_id"][session],
    }
    for name, median in (("fan", 12), ("follow", 55)):
        counts = (median * rng.lognormal(0, 1.5, config.users)).astype(int)
        table[f"user_{name}_number"] = counts[user[rows]]
    table["time_index"] = recall["time_index"][session]
    entrance = rng.choice(len(ENTRANCES), config.sessions, p=ENTRANCE_SHARES)
    table["search_entrance"] = _text(ENTRANCES)[entrance[session]]
    for name, happened in (("clicked", events.clicked), ("purchased", events.ordered)):
        past = _history(truth, events, np.flatnonzero(happened), rng)
        table[f"recently_{name}_item_ids"] = past.select(session)
    table |= {
        "query": recall["query"][session],
        "target_item_id": truth.item_id[item],
        "target_item_price": price[item],
        "is_clicked": events.clicked[rows].astype(int),
        "is_purchased": events.ordered[rows].astype(int),
    }
    for column, name in enumerate(("show_cnt", "click_cnt", "order_cnt", "gmv")):
        table[f"user_statistical_features.user_{name}_30d_hist"] = of_user[:, column]
    for column, name in enumerate(("show_cnt", "click_cnt", "order_cnt")):
        table[f"target_item_statistical_features.item_{name}_30d_hist"] = of_item[:, column]
    return table | {"split": recall["split"][session]}


def _relevance(truth: ShopTruth, events: Events, items: Table) -> Table:
    """Judged pairs of queries that name what they want, the four scores in the real shares."""
    rng, config = stream(truth.world_seed, "judges"), truth.config
    indirect = np.isin(truth.requests.kind, (AMBIGUOUS, QUESTION))
    stated = np.flatnonzero(~indirect[events.session])
    drawn = rng.choice(stated, min(len(stated), 12 * config.relevance_pairs), replace=False)
    slip = (rng.random(len(drawn)) < config.judgement_noise) * rng.choice([-1, 1], len(drawn))
    scores = np.clip(grade(truth, events.session[drawn], events.item[drawn]) + slip, 0, 3)
    wanted = np.round(np.array(GRADE_SHARES) * config.relevance_pairs).astype(int)
    kept = [np.flatnonzero(scores == score)[:n] for score, n in enumerate(wanted)]
    shuffled = rng.permutation(np.concatenate(kept))
    scores, session, item = scores[shuffled], events.session[drawn], events.item[drawn]
    session, item = session[shuffled], item[shuffled]
    values = truth.goods.values[item]
    listed = (rng.random(values.shape) < 0.8) & (values != NONE)
    listed[:, CATEGORY] = False
    attributes = [
        ",".join(truth.goods.value_name[row[keep]]) or r"\N"
        for row, keep in zip(values, listed, strict=True)
    ]
    brand = items["brand_name"][item]
    return {
        "query": truth.requests.query[session],
        "item_title": items["item_title"][item],
        "brand": _text(np.where(brand == "other", "no brand", brand)),
        "seller_name": items["seller_name"][item],
        "attr_value": _text(attributes),
        "score": scores,
        # Every tenth row is a test row, as in the release.
        "split": _text(["test", *["train"] * 9])[np.arange(len(scores)) % 10],
    }
