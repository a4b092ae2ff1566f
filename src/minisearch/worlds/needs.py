"""Complex requests in the simulated shop: their words hide what is wanted, thoughts reveal it.

A *need* is what a person has in mind: one or two senses, each a category and wanted values, and
perhaps a value that is not wanted. It is worded in a dozen *forms*, which share no word that says
what is meant. Thoughts stand for what a large language model writes about a query: a function of
its text alone, with words left out and words that are wrong, and never of what was clicked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed
from minisearch.records import Ragged
from minisearch.worlds.shop_catalogue import (
    ATTRIBUTES,
    BRAND,
    CATEGORY,
    NONE,
    SUBTYPE,
    Goods,
    invented_names,
    zipf,
)
from minisearch.worlds.shop_log import SLOTS, Events, act
from minisearch.worlds.shop_truth import Requests, ShopTruth, grade

KINDS = ("negation", "question", "gift", "substitute", "ambiguous")
_SAYINGS = {
    "negation": ("anything but {}", "no more {} please", "not the {} sort", "never again {}"),
    "question": ("what helps with {}", "how to get through {}", "what do people use for {}"),
    "gift": ("present for a {} person", "something for my {} friend", "surprise for {} fans"),
    "substitute": ("instead of {}", "like {} but other", "cannot find {} any more"),
    "ambiguous": ("{}", "the {}", "{} thing"),
}
_ASIDES = ("again", "today", "for once", "as always", "this year", "at last")


@dataclass(frozen=True)
class NeedsConfig:
    """How many complex requests there are, and how well the engine that logged them did."""

    needs: int = 120
    forms: int = 12  # wordings of a need
    sessions: int = 16_000
    test_sessions: int = 5000  # asked later, of an engine that understands
    understood: float = 0.1  # share of the logged requests that the engine of the log understood
    unseen: float = 0.1  # share of the forms that nobody used before the test
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
    forms, need = _forms(needs, config, rng)
    seen = rng.permutation(len(forms)) >= round(config.unseen * len(forms))
    odds = rng.permutation(zipf(len(forms), 0.5))
    asked = seen * odds / (seen * odds).sum()
    form = rng.choice(len(forms), config.sessions, p=asked)
    log, _ = _traffic(shop, needs, forms, need, form, config.understood, config.shown, "log")
    form = rng.choice(len(forms), config.test_sessions, p=odds)
    test, truth = _traffic(shop, needs, forms, need, form, 1.0, config.shown, "test")
    return NeedsWorld(needs, forms, need, seen, log, test, truth)


def _need(goods: Goods, kind: int, rng: np.random.Generator) -> Need:
    """A need that at least five products meet; its values are those of a product there is."""
    count = {"gift": 2, "ambiguous": 2}.get(KINDS[kind], 1)
    while True:
        senses, relevant = [], 0
        for row in rng.choice(len(goods.leaf), count, replace=False):
            values = goods.values[row].copy()
            values[[BRAND, CATEGORY]] = NONE
            having = values[values != NONE]
            wanted = rng.choice(having, min(len(having), 1 + (count == 1)), replace=False)
            senses.append((int(goods.leaf[row]), tuple(wanted.tolist())))
            relevant += int(meets(goods, *senses[-1]).sum())
        if len({leaf for leaf, _ in senses}) < count or not 5 <= relevant <= 60:
            continue
        if KINDS[kind] != "negation":
            return Need(kind, tuple(senses))
        (leaf, wanted) = senses[0]
        inside = goods.values[goods.leaf == leaf]
        taken = [int(goods.value_attribute[v]) for v in wanted]
        choices = np.setdiff1d(np.arange(len(ATTRIBUTES)), [*taken, BRAND, CATEGORY, SUBTYPE])
        names = [v for a in choices for v in inside[:, a][inside[:, a] != NONE]]
        if names:
            wanted = wanted[:1]
            forbidden = int(rng.choice(names))
            left = meets(goods, leaf, wanted, forbidden).sum()
            if left >= 5:
                return Need(kind, ((leaf, wanted),), forbidden)


def meets(goods: Goods, leaf: int, wanted: Sequence[int], forbidden: int = NONE) -> np.ndarray:
    """Which products are of the category and have all values, but not the forbidden one. (N,)."""
    found = goods.leaf == leaf
    for value in wanted:
        found = found & (goods.values[:, goods.value_attribute[value]] == value)
    if forbidden != NONE:
        found = found & (goods.values[:, goods.value_attribute[forbidden]] != forbidden)
    return np.asarray(found)


def _forms(
    needs: list[Need], config: NeedsConfig, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Wordings: a saying of the kind around a name that nobody else uses, half with an aside."""
    names = invented_names(rng, config.needs * config.forms)
    forms, number = [], np.repeat(np.arange(config.needs), config.forms)
    for name, n in zip(names, number, strict=True):
        sayings = _SAYINGS[KINDS[needs[n].kind]]
        text = sayings[rng.integers(len(sayings))].format(name)
        if rng.random() < 0.5:
            text += " " + _ASIDES[rng.integers(len(_ASIDES))]
        forms.append(text)
    return forms, number


def _traffic(
    shop: ShopTruth, needs: list[Need], forms: list[str], need: np.ndarray, form: np.ndarray,
    understood: float, shown: int, name: str,
) -> tuple[Traffic, ShopTruth]:  # fmt: skip
    """Requests for forms, what the engine showed, what people clicked and ordered."""
    rng = np.random.default_rng(derive_seed(shop.world_seed, "complex", name))
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
    ids = 10_000_000 + 1_000_000 * (name == "test") + np.arange(count)
    truth = replace(shop, config=config, requests=requests, session_id=ids)
    events = _show(truth, rng.random(count) < understood, shown, rng)
    act(truth, events)
    lists = [
        Ragged.from_pairs(events.session[kept], events.item[kept], count)
        for kept in (np.ones(len(events.item), bool), events.clicked, events.ordered)
    ]
    return Traffic(list(requests.query), form, user, *lists), truth


def _show(truth: ShopTruth, understood: np.ndarray, shown: int, rng: np.random.Generator) -> Events:
    """The relevant products to those whose request was understood, popular ones to the others."""
    goods, parts = truth.goods, []
    base = 0.3 * np.log(goods.demand).astype(np.float32)
    every = np.arange(len(goods.leaf))
    for rows in np.array_split(np.arange(len(understood)), 1 + len(understood) // 500):
        waits = rng.standard_exponential((len(rows), len(every)), dtype=np.float32)
        score = base - np.log(waits + 1e-30)  # -log Exp(1) is Gumbel
        clear = np.flatnonzero(understood[rows])
        pairs = np.repeat(rows[clear], len(every)), np.tile(every, len(clear))
        score[clear] += 1.5 * grade(truth, *pairs).reshape(len(clear), -1)
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
    """Writes keywords about queries: a stand-in for a large language model, with two dials.

    Args:
        noise: chance that a word is replaced by one of the catalogue's.
        drop: chance that a word is left out.
    """

    goods: Goods
    meaning: dict[str, Need]  # of each query that it knows
    noise: float = 0.1
    drop: float = 0.1

    def __call__(self, query: str) -> list[str]:
        """The keywords, the same ones each time; none for a query that it knows nothing of."""
        if query not in self.meaning:
            return []
        seed = derive_seed(0, "thought", self.noise, self.drop, query)
        rng, need, found = np.random.default_rng(seed), self.meaning[query], []
        for word in self._words(need):
            kept, wrong = rng.random(2)
            other = str(rng.choice(self.goods.value_name))
            if kept >= self.drop:
                found.append(other if wrong < self.noise else word)
        return list(dict.fromkeys(found))

    def _words(self, need: Need) -> list[str]:
        """Category and values of each sense; for a value not wanted, two others there are."""
        goods, found = self.goods, []
        for leaf, values in need.senses:
            found += [str(goods.leaf_name[leaf]), *(str(goods.value_name[v]) for v in values)]
            if need.forbidden != NONE:
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


@dataclass(frozen=True)
class Judge:
    """An existing relevance model: grades of a query and a product, some of them a step off.

    3: category and all values of a sense, and not what is not wanted; 2: the category and not all;
    1: the category with the value not wanted; 0: another category. The best sense counts.

    Args:
        noise: share of grades that are a step off, the same ones whenever they are asked for.
    """

    goods: Goods
    meaning: dict[str, Need]
    noise: float = 0.1

    def __call__(self, queries: Sequence[str], items: np.ndarray) -> np.ndarray:
        """Shape: P queries, items (P,) rows -> (P,) int, 0 for a query that nobody knows."""
        items = np.asarray(items)
        grades = np.zeros(len(items), dtype=np.int64)
        asked = np.array(list(queries), dtype=object)
        for query in dict.fromkeys(queries):
            if query in self.meaning:
                rows = np.flatnonzero(asked == query)
                grades[rows] = self._grades(self.meaning[query], items[rows])
        draw = np.random.default_rng(derive_seed(0, "judge")).random(1 << 16)
        place = [
            derive_seed(item, query) % (1 << 16) for query, item in zip(asked, items, strict=True)
        ]
        slip = np.where(draw[place] < self.noise / 2, 1, 0) - np.where(
            draw[place] > 1 - self.noise / 2, 1, 0
        )
        return np.clip(grades + slip, 0, 3)

    def _grades(self, need: Need, items: np.ndarray) -> np.ndarray:
        goods, best = self.goods, np.zeros(len(items), dtype=np.int64)
        values = goods.values[items]
        for leaf, wanted in need.senses:
            has = [values[:, goods.value_attribute[v]] == v for v in wanted]
            grade_of = np.where(np.all([np.ones(len(items), bool), *has], axis=0), 3, 2)
            if need.forbidden != NONE:
                column = goods.value_attribute[need.forbidden]
                grade_of = np.where(values[:, column] == need.forbidden, 1, grade_of)
            best = np.maximum(best, np.where(goods.leaf[items] == leaf, grade_of, 0))
        return best
