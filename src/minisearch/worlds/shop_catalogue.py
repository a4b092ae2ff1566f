"""The simulated shop's settings, words and products.

The words come from a hand-written lexicon; everything that is drawn comes from the world seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from minisearch.errors import InputError
from minisearch.profiles import derive_seed

QUERY_TYPES = ("head", "brand", "torso", "tail", "ambiguous", "negation", "question")
ATTRIBUTES = (
    *("brand", "colour", "material", "style", "pattern", "fit", "season", "scene", "function"),
    *("gender", "age", "size", "theme", "origin", "flavour", "spec", "subtype", "category"),
)
TASTE = ("brand", "colour", "material", "style", "pattern", "fit", "theme", "flavour", "origin")
TASTE_DIM = 8
BRAND, SUBTYPE, CATEGORY = (ATTRIBUTES.index(a) for a in ("brand", "subtype", "category"))
NONE = -1  # "this item has no value of that attribute"


def _set(default: Any, doc: str, source: str = "ours") -> Any:
    return field(default=default, metadata={"doc": doc, "source": source})


@dataclass(frozen=True)
class ShopConfig:
    """Everything that shapes a shop; the world seed alone chooses among shops of this shape."""

    items: int = _set(4000, "products in the catalogue")
    sessions: int = _set(40_000, "search requests in the log")
    users: int = _set(7350, "people who ask; 5.4 requests each", "5.44 requests a user (Lite)")
    leaves: int = _set(48, "leaf categories, of 116 in the lexicon")
    synonyms: float = _set(0.25, "0: only canonical words; 1: titles 50 %, queries 70 % others")
    title_coverage: float = _set(0.55, "chance that a title names an attribute of its item")
    title_stuffing: float = _set(0.3, "share of titles with one to three wrong attribute words")
    query_mix: tuple[float, ...] = _set(
        (0.2, 0.1, 0.28, 0.16, 0.06, 0.1, 0.1), "shares of " + ", ".join(QUERY_TYPES)
    )
    repeat_query: float = _set(0.02, "chance to repeat one's last query", "62 % repeated requests")
    homonyms: int = _set(22, "ambiguous words that people use, of 22 in the lexicon")
    preference: float = _set(0.7, "weight of a user's taste in the click decision, in logits")
    new_items: float = _set(0.15, "share of items that appear while the log runs")
    popularity_exponent: float = _set(0.9, "Zipf exponent of demand", "power law, exponent n/a")
    activity_sigma: float = _set(1.0, "log-normal spread of activity", "31 % cold requests")
    engine_hidden: float = _set(0.15, "share of attribute values the logging engine cannot see")
    engine_noise: float = _set(1.0, "scale of the Gumbel noise in the logging engine's ranking")
    impressions_median: float = _set(13.0, "items shown a request", "median 13 (Lite)")
    impressions_sigma: float = _set(1.356, "log-normal spread of it", "p95 121 / median 13 (Lite)")
    impressions_cap: float = _set(1 / 16, "most items shown, as a share of the catalogue")
    click_bias: float = _set(0.6, "offset of the click logit", "CTR 3.8 % an impression (Lite)")
    attention: float = _set(0.56, "mean attention a request gets", "1.23 clicks a request (Lite)")
    engagement: float = _set(1.4, "Beta(e m, e (1 - m)) attention; small e: bursts", "53 % clicked")
    order_bias: float = _set(-2.7, "offset of the order logit", ".092 orders a request (Lite)")
    future_history: float = _set(0.04, "share of recently_* from the future", "3.8-4.8 % (Lite)")
    test_share: float = _set(0.1, "latest requests held out", "3 % (Lite); larger, as we have few")
    judgement_noise: float = _set(0.1, "share of relevance scores that are one step off")
    rank_share: float = _set(0.05, "share of requests whose impressions become rank rows")
    relevance_pairs: int = _set(4000, "judged query-item pairs", "46,422 in the release")

    def __post_init__(self) -> None:
        for name, low, high in (
            *((n, 0, 1) for n in ("synonyms", "title_coverage", "title_stuffing", "test_share")),
            *((n, 0, 1) for n in ("repeat_query", "new_items", "engine_hidden", "rank_share")),
            *(("items", 100, 10**7), ("users", 2, self.sessions), ("leaves", 2, 10**4)),
        ):
            if not low <= getattr(self, name) <= high:
                expected = f"a number between {low} and {high}"
                found = str(getattr(self, name))
                raise InputError(f"ShopConfig.{name}", found, expected, f"change {name}.")
        if len(self.query_mix) != len(QUERY_TYPES) or abs(sum(self.query_mix) - 1) > 1e-6:
            expected = f"{len(QUERY_TYPES)} shares that add up to 1"
            raise InputError("ShopConfig.query_mix", str(self.query_mix), expected, "rescale them.")

    @classmethod
    def of(cls, profile: str, **changes: Any) -> ShopConfig:
        """The shop of a profile's size. `full` has none of its own: it runs on real data."""
        sizes: dict[str, dict[str, Any]] = {
            "smoke": {"items": 300, "sessions": 1500, "users": 276, "leaves": 24},
            "toy": {},
            "small": {
                "items": 10_000,
                "sessions": 70_000,
                "users": 12_860,
                "leaves": 90,
                "click_bias": 1.15,
            },
        }
        return cls(**({**sizes.get(profile, sizes["small"]), **changes}))

    @classmethod
    def table(cls) -> list[dict[str, Any]]:
        """One row a setting: name, default, what it does, and what it is fitted to."""
        return [{"setting": f.name, "default": f.default, **f.metadata} for f in fields(cls)]


@cache
def lexicon() -> dict[str, Any]:
    """The hand-written words, as parsed from the asset."""
    import yaml

    text = (files("minisearch") / "assets/shop_lexicon.yaml").read_text("utf-8")
    words: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return words


@dataclass(frozen=True)
class Leaf:
    """A leaf category: who asks for it, and the values its items can have."""

    name: str
    level1: int
    level2: int
    share: float  # of all requests, before scaling
    female: float  # share of women among those who ask
    values: dict[int, np.ndarray]  # attribute -> value numbers, most usual first


class Words:
    """Every (attribute, canonical form) of a shop, numbered once, and the leaves that use them."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.forms: list[list[str]] = []  # a value's surface forms, the canonical one first
        self.attribute: list[int] = []
        self._known: dict[tuple[str, str], int] = {}

    def add(self, attribute: str, spelled: str) -> int:
        """The number of a value, spelled "canonical/other form/..."."""
        forms = spelled.split("/")
        key = (attribute, forms[0])
        if key not in self._known:
            self._known[key] = len(self.forms)
            self.forms.append(forms)
            self.attribute.append(ATTRIBUTES.index(attribute))
        return self._known[key]


@dataclass(frozen=True, eq=False)
class Goods:
    """What the shop sells, in arrays; items are sorted by leaf, values are numbers.

    Shape: value_* (V,), leaf_* (L,), values (N, 18) with NONE where an attribute does not apply,
    taste (N, 8), the others (N,).
    """

    value_name: np.ndarray
    value_attribute: np.ndarray
    leaf_name: np.ndarray
    leaf_level1: np.ndarray
    leaf_level2: np.ndarray
    leaf: np.ndarray
    values: np.ndarray
    demand: np.ndarray  # how often people want it; sums to 1
    quality: np.ndarray  # standard normal
    price: np.ndarray  # in 1/100 of the currency
    price_rank: np.ndarray  # log price, standardised within the leaf
    launch: np.ndarray  # share of the log that passes before the item exists
    taste: np.ndarray


def stream(world_seed: int, name: str) -> np.random.Generator:
    """The random numbers of one named step of one world."""
    return np.random.default_rng(derive_seed(world_seed, "shop", name))


def invented_names(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different invented names of two or three syllables, none a word of the lexicon."""
    syllables = lexicon()["syllables"]
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choice(syllables, rng.integers(2, 4), replace=False))] = None
    return list(names)


def zipf(count: int, exponent: float) -> np.ndarray:
    """Probabilities proportional to 1 / rank ** exponent. Shape: -> (count,)."""
    weights = np.arange(1, count + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def _chosen_leaves(count: int) -> set[str]:
    """The first leaf of every group, then every second, ...: a small shop stays varied."""
    ranked = [
        (position, name)
        for branch in lexicon()["tree"].values()
        for group in branch["groups"].values()
        for position, name in enumerate(n for n in group if n != "pools")
    ]
    return {name for _, name in sorted(ranked, key=lambda pair: pair[0])[:count]}


def make_words(config: ShopConfig, world_seed: int) -> Words:
    """Choose the leaves, invent brands, and draw what is usual in each leaf."""
    rng, words, level2 = stream(world_seed, "words"), Words(), -1
    pools = {
        pool: (ATTRIBUTES.index(attribute), [words.add(attribute, s) for s in spelled])
        for attribute, by_pool in lexicon()["attributes"].items()
        for pool, spelled in by_pool.items()
    }
    chosen = _chosen_leaves(config.leaves)
    for level1, branch in enumerate(lexicon()["tree"].values()):
        names = invented_names(rng, max(4, config.items // 60))
        brands = [words.add("brand", name) for name in names]
        for group in branch["groups"].values():
            level2 += 1
            present = [n for n in group if n in chosen]
            shares = branch["share"] / len(branch["groups"]) * zipf(max(len(present), 1), 0.7)
            for name, share in zip(present, shares, strict=False):
                values = {a: rng.permutation(v) for a, v in (pools[p] for p in group["pools"])}
                values[BRAND] = rng.permutation(brands)
                values[SUBTYPE] = np.array([words.add("subtype", s) for s in group[name]])
                values[CATEGORY] = np.array([words.add("category", name)])
                place = (name.split("/")[0], level1, level2)
                words.leaves.append(Leaf(*place, share, branch["female"], values))
    return words


def make_goods(words: Words, config: ShopConfig, world_seed: int) -> Goods:
    """Draw the products: leaf, attributes, demand, quality, price, date of launch, taste."""
    rng, leaves, count = stream(world_seed, "goods"), words.leaves, config.items
    shares = np.array([leaf.share for leaf in leaves])
    drawn = rng.choice(len(leaves), count - len(leaves), p=shares / shares.sum())
    leaf = np.sort(np.concatenate([np.arange(len(leaves)), drawn]))  # no leaf is empty
    values = np.full((count, len(ATTRIBUTES)), NONE)
    quality = rng.normal(size=count)
    price, price_rank = np.empty(count), np.empty(count)
    for number, kind in enumerate(leaves):
        rows = np.flatnonzero(leaf == number)
        for attribute, choices in kind.values.items():
            values[rows, attribute] = rng.choice(choices, len(rows), p=zipf(len(choices), 0.8))
        logs = rng.normal(rng.normal(8.0, 0.8), 0.5, len(rows)) + 0.15 * quality[rows]
        price[rows] = np.round(np.exp(logs), -1)
        price_rank[rows] = (logs - logs.mean()) / (logs.std() + 1e-9)
    values[rng.random(count) < 0.25, BRAND] = NONE
    rank = np.argsort(np.argsort(-(0.5 * quality + rng.gumbel(size=count))))
    vectors = rng.normal(size=(len(words.forms) + 1, TASTE_DIM))
    vectors[NONE] = 0.0  # the last row: no value, no taste
    taste = vectors[values[:, [ATTRIBUTES.index(a) for a in TASTE]]].sum(1)
    late = rng.random(count) < config.new_items
    return Goods(
        value_name=np.array([forms[0] for forms in words.forms]),
        value_attribute=np.array(words.attribute),
        leaf_name=np.array([kind.name for kind in leaves]),
        leaf_level1=np.array([kind.level1 for kind in leaves]),
        leaf_level2=np.array([kind.level2 for kind in leaves]),
        leaf=leaf,
        values=values,
        demand=zipf(count, config.popularity_exponent)[rank],
        quality=quality,
        price=price,
        price_rank=price_rank,
        launch=np.where(late, rng.random(count), 0.0),
        taste=taste / (np.linalg.norm(taste, axis=1, keepdims=True) + 1e-9),
    )


def pick_form(forms: list[str], other: bool, draw: float) -> str:
    """The canonical form, or one of the others when `other`, chosen by `draw` in [0, 1)."""
    if not other or len(forms) == 1:
        return forms[0]
    return forms[1 + int(draw * (len(forms) - 1))]


def make_titles(words: Words, goods: Goods, config: ShopConfig, world_seed: int) -> list[str]:
    """Noisy keyword piles: the product's noun, some attributes, fillers, sometimes wrong words."""
    rng, shape = stream(world_seed, "titles"), goods.values.shape
    named = rng.random(shape) < config.title_coverage
    named[:, CATEGORY] |= rng.random(len(named)) < 0.9
    named &= goods.values != NONE
    other = rng.random(shape) < 0.5 * config.synonyms
    draws, order = rng.random(shape), rng.random(shape).argsort(1)
    wrong = (rng.random(len(named)) < config.title_stuffing) * rng.integers(1, 4, len(named))
    fillers, titles = lexicon()["fillers"], []
    for row, number in enumerate(goods.leaf):
        leaf = words.leaves[number]
        title = [
            pick_form(words.forms[goods.values[row, a]], other[row, a], draws[row, a])
            for a in order[row]
            if named[row, a]
        ]
        for _ in range(wrong[row]):
            forms = words.forms[rng.choice(leaf.values[rng.choice(list(leaf.values))])]
            title.insert(rng.integers(len(title) + 1), forms[rng.integers(len(forms))])
        for _ in range(rng.integers(0, 3)):
            title.insert(rng.integers(len(title) + 1), fillers[rng.integers(len(fillers))])
        titles.append(" ".join(title) or leaf.name)
    return titles
