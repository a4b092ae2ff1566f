"""Who asks what in the shop, what the engine shows, and what people then click and order.

Three things are kept apart. The *logging policy* (`show`) decides what is shown and sees neither
taste nor quality. The *truth* (`shop_truth`) decides what people do. The *training reward*
(`market.logged_reward`) is what can be computed from the log alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minisearch.worlds.shop_catalogue import (
    ATTRIBUTES,
    BRAND,
    CATEGORY,
    NONE,
    QUERY_TYPES,
    SUBTYPE,
    TASTE_DIM,
    Goods,
    ShopConfig,
    Words,
    lexicon,
    pick_form,
    stream,
    zipf,
)
from minisearch.worlds.shop_truth import (
    People,
    Requests,
    ShopTruth,
    click_probability,
    order_probability,
)

SLOTS = 3  # most attribute values that one query asks for
GENDER_SHARES = (0.5934, 0.4066)  # F, M (KuaiSearch, authors' statistics)
# As printed from 12-17 up; they add up to 99.62 %, the rest goes to the unlisted bucket 0-11.
AGE_SHARES = (0.0038, 0.1531, 0.1594, 0.1133, 0.2496, 0.1618, 0.1590)
HEAD, BRANDED, TORSO, TAIL, AMBIGUOUS, NEGATION, QUESTION = range(len(QUERY_TYPES))


def _leaf_odds(words: Words) -> np.ndarray:
    """Share of each leaf in the requests of women and of men. Shape: (2, L)."""
    share = np.array([leaf.share for leaf in words.leaves])
    female = np.array([leaf.female for leaf in words.leaves])
    odds = np.stack([share * female, share * (1 - female)])
    return np.asarray(odds / odds.sum(1, keepdims=True))


def make_people(words: Words, config: ShopConfig, world_seed: int) -> People:
    """Draw the users. Taste is partly shared by people of one gender and age."""
    rng, count = stream(world_seed, "people"), config.users
    gender = rng.choice(2, count, p=GENDER_SHARES)
    age = rng.choice(len(AGE_SHARES), count, p=AGE_SHARES)
    group = rng.normal(size=(2, len(AGE_SHARES), TASTE_DIM))
    by_gender = [rng.choice(len(words.leaves), (count, 3), p=odds) for odds in _leaf_odds(words)]
    return People(
        gender=gender,
        age=age,
        favourites=np.where(gender[:, None] == 0, *by_gender),
        taste=0.6 * group[gender, age] + 0.8 * rng.normal(size=(count, TASTE_DIM)),
        price=rng.normal(size=count),
        activity=rng.lognormal(0, config.activity_sigma, count),
    )


def make_requests(
    words: Words, goods: Goods, people: People, config: ShopConfig, world_seed: int
) -> Requests:
    """Draw the requests: user, time, intent and wording."""
    rng, count = stream(world_seed, "requests"), config.sessions
    odds = people.activity / people.activity.sum()
    extra = rng.choice(config.users, count - config.users, p=odds)
    user = rng.permutation(np.concatenate([np.arange(config.users), extra]))
    by_gender = [rng.choice(len(words.leaves), count, p=odds) for odds in _leaf_odds(words)]
    usual = np.where(people.gender[user] == 0, *by_gender)
    favourite = people.favourites[user, rng.integers(0, 3, count)]
    leaf = np.where(rng.random(count) < 0.4, favourite, usual)
    requests = Requests(
        user=user,
        time=np.cumsum(rng.integers(1, 3, count)),  # strictly increasing, with gaps
        kind=rng.choice(len(QUERY_TYPES), count, p=config.query_mix),
        leaf=leaf,
        required=np.full((count, SLOTS), NONE),
        forbidden=np.full(count, NONE),
        engine_leaf=leaf.copy(),
        query=np.full(count, "", object),
    )
    _ask_for_values(goods, requests, rng)
    _ask_indirectly(words, config, requests, rng)
    _write_queries(words, config, requests, rng)
    _repeat(config, requests, rng)
    return requests


def _ask_for_values(goods: Goods, requests: Requests, rng: np.random.Generator) -> None:
    """Take the wanted values from an item of the leaf that is in demand, so that they exist."""
    kind, count = requests.kind, len(requests.kind)
    total = np.concatenate([[0.0], np.cumsum(goods.demand)])
    first, end = (np.searchsorted(goods.leaf, requests.leaf, side) for side in ("left", "right"))
    draw = total[first] + rng.random(count) * (total[end] - total[first])
    values = goods.values[np.clip(np.searchsorted(total, draw, "right") - 1, first, end - 1)]
    weights = np.ones(len(ATTRIBUTES))
    weights[[BRAND, CATEGORY, SUBTYPE]] = 1e-9, 1e-9, 2
    # The top of log-weights plus Gumbel noise is a draw without replacement by those weights.
    keys = np.where(values == NONE, -np.inf, np.log(weights) + rng.gumbel(size=values.shape))
    asked = np.take_along_axis(values, np.argsort(-keys, axis=1)[:, :SLOTS], 1)
    length = np.select([kind == TORSO, kind == TAIL], [1, 2 + (rng.random(count) < 0.4)], 0)
    requests.required[:] = np.where(np.arange(SLOTS) < length[:, None], asked, NONE)
    brand = np.where(values[:, BRAND] == NONE, asked[:, 0], values[:, BRAND])
    requests.required[kind == BRANDED, 0] = brand[kind == BRANDED]
    requests.forbidden[kind == NEGATION] = asked[kind == NEGATION, 0]


def _indirect(words: Words, config: ShopConfig) -> list[tuple[int, str, list[tuple[int, int]]]]:
    """(query type, phrase, (leaf, value) meanings) of each ambiguous word and question phrase."""
    numbers, found = {leaf.name: n for n, leaf in enumerate(words.leaves)}, []

    def meanings(senses: list[tuple[str, str]]) -> list[tuple[int, int]]:
        known = []
        for leaf, value in senses:
            if leaf in numbers:
                choices = np.concatenate(list(words.leaves[numbers[leaf]].values.values()))
                match = [int(v) for v in choices if words.forms[v][0] == value]
                known.append((numbers[leaf], match[0] if match else NONE))
        return known

    for word, senses in list(lexicon()["homonyms"].items())[: config.homonyms]:
        split = [(s.split("/")[0], s.partition("/")[2]) for s in senses]
        if len(known := meanings(split)) > 1:
            found.append((AMBIGUOUS, word, known))
    for question in lexicon()["questions"]:
        known = meanings([(leaf, question["want"]) for leaf in question["leaves"]])
        found += [(QUESTION, phrase, known) for phrase in question["say"] if known]
    return found


def _ask_indirectly(
    words: Words, config: ShopConfig, requests: Requests, rng: np.random.Generator
) -> None:
    """Word ambiguous queries and questions; draw one of their meanings, and the engine's guess."""
    phrases, openings = _indirect(words, config), lexicon()["openings"]
    for kind in (AMBIGUOUS, QUESTION):
        choices = [p for p in phrases if p[0] == kind]
        rows = np.flatnonzero(requests.kind == kind)
        if not choices:  # a very small shop, or homonyms=0
            requests.kind[rows] = HEAD
            continue
        odds = rng.permutation(zipf(len(choices), 0.5))
        for row, chosen in zip(rows, rng.choice(len(choices), len(rows), p=odds), strict=True):
            _, phrase, meanings = choices[chosen]
            opening = f"{openings[rng.integers(len(openings))]} " if kind == QUESTION else ""
            requests.query[row] = opening + phrase
            requests.leaf[row], requests.required[row, 0] = meanings[rng.integers(len(meanings))]
            requests.engine_leaf[row] = meanings[rng.integers(len(meanings))][0]


def _write_queries(
    words: Words, config: ShopConfig, requests: Requests, rng: np.random.Generator
) -> None:
    """Word the direct requests: values and category, each in one of its forms."""
    shape = (len(requests.kind), SLOTS + 1)
    other, draws = rng.random(shape) < 0.7 * config.synonyms, rng.random(shape)
    style, text = rng.random(len(draws)), lexicon()
    for row in np.flatnonzero(requests.query == ""):
        pick, noun_value = draws[row], words.leaves[requests.leaf[row]].values[CATEGORY][0]
        noun = pick_form(words.forms[noun_value], other[row, -1], pick[-1])
        if requests.kind[row] == NEGATION:
            value = pick_form(words.forms[requests.forbidden[row]], other[row, 0], pick[0])
            pattern = text["negations"][int(style[row] * len(text["negations"]))]
            requests.query[row] = pattern.format(leaf=noun, value=value)
            continue
        values = [v for v in requests.required[row] if v != NONE]
        parts = [pick_form(words.forms[v], other[row, i], pick[i]) for i, v in enumerate(values)]
        parts.insert(0 if style[row] < 0.15 else len(parts), noun)
        if style[row] > 0.85 and requests.kind[row] in (BRANDED, TORSO, TAIL):
            parts.insert(0, text["query_fillers"][row % len(text["query_fillers"])])
        requests.query[row] = " ".join(parts)


def _repeat(config: ShopConfig, requests: Requests, rng: np.random.Generator) -> None:
    """Let some requests be their user's previous one again, word for word."""
    order = np.argsort(requests.user, kind="stable")
    earlier = np.arange(len(order))
    again = requests.user[order][1:] == requests.user[order][:-1]
    again &= rng.random(len(again)) < config.repeat_query
    earlier[order[1:][again]] = order[:-1][again]
    while (earlier != earlier[earlier]).any():  # a repetition of a repetition
        earlier = earlier[earlier]
    for name in ("kind", "leaf", "required", "forbidden", "engine_leaf", "query"):
        setattr(requests, name, getattr(requests, name)[earlier])


@dataclass(eq=False)
class Events:
    """What was shown and what happened to it, sessions in time order. Shape: (P,) each."""

    session: np.ndarray
    item: np.ndarray
    rank: np.ndarray  # from 1
    clicked: np.ndarray
    ordered: np.ndarray


def show(truth: ShopTruth) -> Events:
    """The logging policy: rank by category, the values the engine can see, demand, and noise.

    It reads an ambiguous query as one of its meanings, does not understand "without", and shows
    nothing before its launch. Nothing is clicked yet.
    """
    goods, requests, config = truth.goods, truth.requests, truth.config
    rng = stream(truth.world_seed, "engine")
    cap = max(3, round(config.impressions_cap * config.items))
    spread = config.impressions_sigma * rng.normal(size=config.sessions)
    length = np.clip(np.round(config.impressions_median * np.exp(spread)), 3, cap).astype(int)
    hidden = rng.random(goods.values.shape) < config.engine_hidden
    seen, clock = np.where(hidden, NONE, goods.values), requests.time / requests.time[-1]
    parts = []
    for leaf in np.unique(requests.engine_leaf):
        items, closeness = _candidates(goods, leaf, 5 * cap // 4, rng)
        base = 2.5 * closeness + 0.3 * np.log(goods.demand[items])
        everyone = np.flatnonzero(requests.engine_leaf == leaf)
        for rows in np.array_split(everyone, 1 + len(everyone) // 4096):  # bounds the memory
            noise = rng.standard_exponential((len(rows), len(items)), dtype=np.float32)
            score = base - config.engine_noise * np.log(noise + 1e-30)  # -log Exp(1) is Gumbel
            worth = 1.5 / (requests.required[rows] != NONE).sum(1).clip(1)
            for wanted in requests.required[rows].T:
                has = wanted[:, None] == seen[items][:, goods.value_attribute[wanted]].T
                score += has * np.where(wanted == NONE, 0, worth)[:, None]
            score[goods.launch[items] > clock[rows, None]] = -np.inf
            shown = np.minimum(length[rows], np.isfinite(score).sum(1))
            query, place = np.nonzero(np.arange(len(items)) < shown[:, None])
            chosen = items[np.argsort(-score, axis=1)[query, place]]
            parts.append((rows[query], chosen, place + 1))
    session, item, rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    order, nothing = np.argsort(session, kind="stable"), np.zeros(len(session), bool)
    return Events(session[order], item[order], rank[order], nothing, nothing)


def _candidates(
    goods: Goods, leaf: int, at_least: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The leaf and its sisters, topped up from the branch, then the shop. Shape: (C,), (C,)."""
    closeness = np.select(
        [level[goods.leaf] == level[leaf] for level in (goods.leaf_level2, goods.leaf_level1)],
        [0.4, 0.15],
    )
    closeness[goods.leaf == leaf] = 1.0
    order = np.lexsort((rng.random(len(closeness)), -closeness))
    items = order[: max(at_least, int((closeness >= 0.4).sum()))]
    return items, closeness[items]


def act(truth: ShopTruth, events: Events) -> None:
    """Draw clicks and orders. Attention varies between requests, so clicks come in bursts."""
    rng, config = stream(truth.world_seed, "clicks"), truth.config
    shape = config.engagement * config.attention, config.engagement * (1 - config.attention)
    attention = rng.beta(*shape, config.sessions)[events.session]
    chance = click_probability(truth, events.session, events.item, events.rank)
    events.clicked = rng.random(len(chance)) < attention * chance
    rows = np.flatnonzero(events.clicked)
    chance = order_probability(truth, events.session[rows], events.item[rows])
    events.ordered = np.zeros(len(events.clicked), bool)
    events.ordered[rows] = rng.random(len(rows)) < chance
