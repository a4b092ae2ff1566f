"""Complex requests in the simulated shop: their words hide what is wanted, thoughts reveal it.

A *need* is what a person has in mind: one or two senses, each a category and wanted values, and
perhaps a value that is not wanted. It is worded in a dozen *forms*, none of which has a word of the
catalogue or of an ordinary query. Thoughts stand for what a large language model writes about a
query: a function of its text alone, with words left out and words that are wrong, and never of what
was clicked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed
from minisearch.records import EMPTY, Ragged
from minisearch.text import words
from minisearch.worlds.shop_catalogue import (
    ATTRIBUTES,
    BRAND,
    CATEGORY,
    NONE,
    SUBTYPE,
    Goods,
    invented_names,
    lexicon,
    make_words,
    zipf,
)
from minisearch.worlds.shop_log import SLOTS, Events, act
from minisearch.worlds.shop_truth import Requests, ShopTruth, grade

KINDS = ("negation", "question", "gift", "substitute", "ambiguous")
_SAYINGS = {
    "negation": ("anything but {}", "enough of {} please", "not the {} sort", "never again {}"),
    "question": ("what helps with {}", "how to get through {}", "what do people use for {}"),
    "gift": ("present for that {} person", "something for my {} friend", "surprise for {} fans"),
    "substitute": ("instead of {}", "like {} but different", "cannot find {} any more"),
    "ambiguous": ("{}", "the {}", "{} thing"),
}
_ASIDES = ("again", "today", "for once", "as always", "these days", "at last")


@dataclass(frozen=True)
class NeedsConfig:
    """How many complex requests there are, and how well the engine that logged them did."""

    needs: int = 120
    forms: int = 12  # wordings of a need
    sessions: int = 16_000
    test_sessions: int = 1600  # asked later, of an engine that understands them all
    understood: float = 0.1  # share of the logged requests that the engine of the log understood
    clarity: float = 1.5  # what a grade weighs in its ranking, in units of the ranking's noise
    test_clarity: float = 6.0  # the same, for the engine of the test: relevant products come first
    unseen: float = 0.15  # share of the forms that nobody used before the test
    shown: int = 20

    def __post_init__(self) -> None:
        for name in ("understood", "unseen"):
            if not 0 <= getattr(self, name) <= 1:
                found = str(getattr(self, name))
                raise InputError(f"NeedsConfig.{name}", found, "a share", "change it.")
        if min(self.needs, self.forms, self.sessions, self.test_sessions, self.shown) < 1:
            raise InputError("NeedsConfig", "a count below 1", "1 or more", "change it.")


@dataclass(frozen=True)
class Need:
    """What a person wants: senses of (leaf, values), one of which is meant, and what is not."""

    kind: int
    senses: tuple[tuple[int, tuple[int, ...]], ...]
    forbidden: int = NONE


@dataclass(frozen=True, eq=False)
class Traffic:
    """Requests and what came of them, without the truth. Shape: (S,); the lists hold item rows."""

    queries: list[str]
    form: np.ndarray
    user: np.ndarray
    shown: Ragged
    clicked: Ragged
    ordered: Ragged


@dataclass(frozen=True, eq=False)
class NeedsWorld:
    """Complex requests of one shop: a log, later requests, and what is behind the latter."""

    needs: list[Need]
    forms: list[str]
    need: np.ndarray  # of each form
    seen: np.ndarray  # forms that the log may hold
    log: Traffic
    test: Traffic
    truth: ShopTruth  # of the test requests, for evaluation


def make_needs(shop: ShopTruth, config: NeedsConfig) -> NeedsWorld:
    """Draw needs, their wordings, a log and later requests over the goods of a shop."""
    rng = np.random.default_rng(derive_seed(shop.world_seed, "needs"))
    needs = [_need(shop.goods, n % len(KINDS), rng) for n in range(config.needs)]
    forms, need = _forms(needs, config, _catalogue_words(shop), rng)
    seen = rng.permutation(len(forms)) >= round(config.unseen * len(forms))
    odds = rng.permutation(zipf(len(forms), 0.5))
    asked = seen * odds / (seen * odds).sum()
    form = rng.choice(len(forms), config.sessions, p=asked)
    engine = _Engine(config.understood, config.clarity, config.shown)
    log, _ = _traffic(shop, needs, forms, need, form, engine, "log")
    form = rng.choice(len(forms), config.test_sessions, p=odds)
    engine = _Engine(1.0, config.test_clarity, config.shown)
    test, truth = _traffic(shop, needs, forms, need, form, engine, "test")
    return NeedsWorld(needs, forms, need, seen, log, test, truth)


def _need(goods: Goods, kind: int, rng: np.random.Generator) -> Need:
    """A need that at least five products meet; its values are those of a product there is.

    Negations forbid a value of an attribute that is not asked for, substitutes forbid the brand of
    the product itself.
    """
    name = KINDS[kind]
    count = 1 + (name in ("gift", "ambiguous"))
    while True:
        senses, relevant = [], 0
        for row in rng.choice(len(goods.leaf), count, replace=False):
            values = goods.values[row].copy()
            brand = int(values[BRAND])
            values[[BRAND, CATEGORY]] = NONE
            having = values[values != NONE]
            drawn = rng.choice(having, min(len(having), 1 + (count == 1)), replace=False)
            senses.append((int(goods.leaf[row]), tuple(drawn.tolist())))
            relevant += int(meets(goods, *senses[-1]).sum())
        if len({leaf for leaf, _ in senses}) < count or not 5 <= relevant <= 60:
            continue
        if name not in ("negation", "substitute"):
            return Need(kind, tuple(senses))
        leaf, wanted = senses[0]
        forbidden = brand if name == "substitute" else _another(goods, leaf, wanted, rng)
        wanted = wanted[: 1 + (name == "substitute")]
        if forbidden != NONE and meets(goods, leaf, wanted, forbidden).sum() >= 5:
            return Need(kind, ((leaf, wanted),), forbidden)


def _another(goods: Goods, leaf: int, wanted: Sequence[int], rng: np.random.Generator) -> int:
    """A value of the leaf, of an attribute that is not wanted: what a negation can forbid."""
    inside = goods.values[goods.leaf == leaf]
    taken = [int(goods.value_attribute[v]) for v in wanted]
    choices = np.setdiff1d(np.arange(len(ATTRIBUTES)), [*taken, BRAND, CATEGORY, SUBTYPE])
    names = [v for a in choices for v in inside[:, a][inside[:, a] != NONE]]
    return int(rng.choice(names)) if names else NONE


def meets(goods: Goods, leaf: int, wanted: Sequence[int], forbidden: int = NONE) -> np.ndarray:
    """Which products are of the category and have all values, but not the forbidden one. (N,)."""
    found = goods.leaf == leaf
    for value in wanted:
        found = found & (goods.values[:, goods.value_attribute[value]] == value)
    if forbidden != NONE:
        found = found & (goods.values[:, goods.value_attribute[forbidden]] != forbidden)
    return np.asarray(found)


def fulfils(goods: Goods, need: Need, items: np.ndarray) -> np.ndarray:
    """Which products meet some sense of a need: truth, for evaluation. Shape: (P,) -> (P,) bool."""
    found = [meets(goods, *sense, need.forbidden) for sense in need.senses]
    return np.asarray(np.any(found, axis=0)[items])


def _catalogue_words(shop: ShopTruth) -> set[str]:
    """Every word of titles, brands, categories and ordinary queries."""
    forms = make_words(shop.config, shop.world_seed).forms
    texts = [text for spelled in forms for text in spelled] + list(shop.requests.query)
    texts += [str(name) for name in (*shop.goods.value_name, *shop.goods.leaf_name)]
    fillers = [*lexicon()["fillers"], *lexicon()["query_fillers"]]
    return {word for text in texts + fillers for word in words(text)}


def _forms(
    needs: list[Need], config: NeedsConfig, taken: set[str], rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Wordings: a saying of the kind around a name that nobody else uses, half with an aside.

    Brands are names of the same making, so that those of the catalogue must be left out.
    """
    count, names = config.needs * config.forms, list[str]()
    while len(names) < count:
        names += [n for n in invented_names(rng, count) if n not in taken and n not in names]
    forms, number = [], np.repeat(np.arange(config.needs), config.forms)
    for name, n in zip(names, number, strict=False):
        sayings = _SAYINGS[KINDS[needs[n].kind]]
        text = sayings[rng.integers(len(sayings))].format(name)
        if rng.random() < 0.5:
            text += " " + _ASIDES[rng.integers(len(_ASIDES))]
        forms.append(text)
    return forms, number


@dataclass(frozen=True)
class _Engine:
    """How requests are answered: whose are understood, how sharply, and how long lists are."""

    understood: float
    clarity: float
    shown: int


def respond(world: NeedsWorld, lists: np.ndarray, sessions: int) -> Traffic:
    """Requests in the wordings of the log, answered with given lists, and what people did.

    Shape: lists (F, K) item rows for each of the F wordings, EMPTY where a list is shorter.

    Raises:
        InputError: for another number of lists than of wordings.
    """
    if len(lists) != len(world.forms):
        found, expected = f"{len(lists)} lists", f"one for each of {len(world.forms)} wordings"
        raise InputError("lists", found, expected, "leave those empty that nobody uses.")
    rng = np.random.default_rng(derive_seed(world.truth.world_seed, "complex", "feedback"))
    form = rng.choice(world.log.form, sessions)
    truth = _ask(world.truth, world.needs, world.forms, world.need, form, 2, rng)
    session, place = np.nonzero(lists[form] != EMPTY)
    nothing = np.zeros(len(session), bool)
    item = lists[form][session, place]
    return _outcome(truth, form, Events(session, item, place + 1, nothing, nothing.copy()))


def _traffic(
    shop: ShopTruth, needs: list[Need], forms: list[str], need: np.ndarray, form: np.ndarray,
    engine: _Engine, name: str,
) -> tuple[Traffic, ShopTruth]:  # fmt: skip
    """Requests for forms, what the engine showed, what people clicked and ordered."""
    rng = np.random.default_rng(derive_seed(shop.world_seed, "complex", name))
    truth = _ask(shop, needs, forms, need, form, ("log", "test").index(name), rng)
    events = _show(truth, rng.random(len(form)) < engine.understood, engine, rng)
    return _outcome(truth, form, events), truth


def _ask(
    shop: ShopTruth, needs: list[Need], forms: list[str], need: np.ndarray, form: np.ndarray,
    number: int, rng: np.random.Generator,
) -> ShopTruth:  # fmt: skip
    """The shop with requests for these forms in place of its own; `number` tells logs apart."""
    count, people = len(form), shop.people
    user = rng.choice(len(people.activity), count, p=people.activity / people.activity.sum())
    asked = [needs[n] for n in need[form]]
    meant = [each.senses[rng.integers(len(each.senses))] for each in asked]
    required = np.full((count, SLOTS), NONE)
    for row, (_, values) in enumerate(meant):
        required[row, : len(values)] = values
    leaf = np.array([sense[0] for sense in meant])
    requests = Requests(
        user=user, time=np.arange(count), kind=np.array([each.kind for each in asked]),
        leaf=leaf, required=required, forbidden=np.array([each.forbidden for each in asked]),
        engine_leaf=leaf, query=np.array([forms[f] for f in form], dtype=object),
    )  # fmt: skip
    config = replace(shop.config, sessions=max(count, shop.config.users))
    ids = 10_000_000 + 1_000_000 * number + np.arange(count)
    return replace(shop, config=config, requests=requests, session_id=ids)


def _outcome(truth: ShopTruth, form: np.ndarray, events: Events) -> Traffic:
    """What people click and order of what they are shown."""
    act(truth, events)
    lists = [
        Ragged.from_pairs(events.session[kept], events.item[kept], len(form))
        for kept in (np.ones(len(events.item), bool), events.clicked, events.ordered)
    ]
    return Traffic(list(truth.requests.query), form, truth.requests.user, *lists)


def _show(
    truth: ShopTruth, understood: np.ndarray, engine: _Engine, rng: np.random.Generator
) -> Events:
    """The relevant products to those whose request was understood, popular ones to the others."""
    goods, parts, shown = truth.goods, [], engine.shown
    base = 0.3 * np.log(goods.demand).astype(np.float32)
    every = np.arange(len(goods.leaf))
    for rows in np.array_split(np.arange(len(understood)), 1 + len(understood) // 500):
        waits = rng.standard_exponential((len(rows), len(every)), dtype=np.float32)
        score = base - np.log(waits + 1e-30)  # -log Exp(1) is Gumbel
        clear = np.flatnonzero(understood[rows])
        pairs = np.repeat(rows[clear], len(every)), np.tile(every, len(clear))
        score[clear] += engine.clarity * grade(truth, *pairs).reshape(len(clear), -1)
        best = np.argpartition(-score, shown, axis=1)[:, :shown]
        order = np.argsort(-np.take_along_axis(score, best, 1), axis=1, kind="stable")
        parts.append(np.take_along_axis(best, order, 1))
    item = np.concatenate(parts).ravel()
    count = len(item) // len(understood)
    nothing = np.zeros(len(item), bool)
    session = np.repeat(np.arange(len(understood)), count)
    rank = np.tile(np.arange(count) + 1, len(understood))
    return Events(session, item, rank, nothing, nothing.copy())


# -- thoughts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thinker:
    """Writes keywords about queries: a stand-in for a large language model, with three dials.

    Turning `noise` or `drop` up keeps the errors there are and adds others.

    Args:
        noise: chance that a word is replaced by one of the catalogue's.
        drop: chance that a word is left out.
        common: share of the words whose error, if any, is the same for all wordings of a need, as
            a misunderstanding would be; for the others each wording has luck of its own.
    """

    goods: Goods
    meaning: dict[str, Need]  # of each query that it knows
    noise: float = 0.1
    drop: float = 0.1
    common: float = 0.5

    def __call__(self, query: str) -> list[str]:
        """The keywords, the same ones each time; none for a query that it knows nothing of."""
        if query not in self.meaning:
            return []
        need, found = self.meaning[query], []
        own, shared = (
            np.random.default_rng(derive_seed(0, "thought", name)) for name in (query, need)
        )
        for word in self._words(need):
            draws = own.random(4), shared.random(4)
            kept, wrong, place, _ = draws[int(draws[1][3] < self.common)]
            other = str(self.goods.value_name[int(place * len(self.goods.value_name))])
            if kept >= self.drop:
                found.append(other if wrong < self.noise else word)
        return list(dict.fromkeys(found))

    def _words(self, need: Need) -> list[str]:
        """Category and values of each sense; for a negation two values that may be had instead."""
        goods, found = self.goods, []
        for leaf, values in need.senses:
            found += [str(goods.leaf_name[leaf]), *(str(goods.value_name[v]) for v in values)]
            if need.kind == KINDS.index("negation"):
                column = goods.values[goods.leaf == leaf, goods.value_attribute[need.forbidden]]
                column = column[(column != NONE) & (column != need.forbidden)]
                names, counts = np.unique(column, return_counts=True)
                found += [str(goods.value_name[v]) for v in names[np.argsort(-counts)][:2]]
        return list(dict.fromkeys(found))


def meanings(world: NeedsWorld, shop: ShopTruth) -> dict[str, Need]:
    """What every wording of a need and every direct query means; a direct query means its first."""
    known: dict[str, Need] = {}
    requests = shop.requests
    for row, query in enumerate(requests.query):
        if query not in known:
            values = tuple(int(v) for v in requests.required[row] if v != NONE)
            known[query] = Need(-1, ((int(requests.leaf[row]), values),))
    known |= {text: world.needs[n] for text, n in zip(world.forms, world.need, strict=True)}
    return known


def product_keywords(shop: ShopTruth, listed: float = 0.8) -> list[list[str]]:
    """Each product's attribute words, as an imperfect extractor would list them."""
    rng = np.random.default_rng(derive_seed(shop.world_seed, "product keywords"))
    goods = shop.goods
    kept = (rng.random(goods.values.shape) < listed) & (goods.values != NONE)
    kept[:, CATEGORY] = goods.values[:, CATEGORY] != NONE
    return [[str(goods.value_name[v]) for v in row[keep]]
            for row, keep in zip(goods.values, kept, strict=True)]  # fmt: skip
