"""Videos in the simulated shop: what they show, who watches, and which queries viewers click.

Each video shows a product, names parts of it in a noisy title, and often shows a second thing that
no title names. The log holds what a bar under the video offered; the truth stays in `VideoTruth`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minisearch.profiles import derive_seed
from minisearch.worlds.shop_catalogue import (
    ATTRIBUTES,
    CATEGORY,
    NONE,
    Goods,
    ShopConfig,
    Words,
    invented_names,
    make_goods,
    make_words,
    pick_form,
    zipf,
)
from minisearch.worlds.shop_log import make_people
from minisearch.worlds.shop_truth import People
from minisearch.worlds.video_truth import (
    IDLE,
    ORDER_RATES,
    SHOP,
    TURNS,
    Judge,
    VideoConfig,
    Videos,
    VideoTruth,
    VideoWorld,
    Views,
    Wants,
)

# ours: words of titles that say nothing of what is sold
OPENINGS = ("omg", "look", "haul", "must", "see", "today", "my", "new", "review", "vlog", "wow")
TRENDS = ("fyp", "viral", "trending", "foryou", "daily", "sale", "dailylife", "follow", "mood")
PETS = ("kitten", "sunset", "mountain", "puppy", "choir", "clouds", "river", "baking", "poem")
HARM = ("accident", "ambulance", "lawsuit", "outbreak", "gunfire", "overdose", "wildfire")


def stream(world_seed: int, name: str) -> np.random.Generator:
    """The random numbers of one named step."""
    return np.random.default_rng(derive_seed(world_seed, "videos", name))


def make_videos(profile: str, world_seed: int, **changes: Any) -> VideoWorld:
    """Build one world; the same settings and seed give the same world in every process."""
    config = VideoConfig.of(profile, **changes)
    shop = ShopConfig.of(profile)
    words = make_words(shop, world_seed)
    goods, people = make_goods(words, shop, world_seed), make_people(words, shop, world_seed)
    rng = stream(world_seed, "usual")
    usual = np.array([rng.integers(len(forms)) for forms in words.forms])
    judge = Judge(words, goods, usual)
    truth, author = _shown(goods, config, world_seed)
    writer = _Writer(words, goods, usual, config)
    videos = _described(writer, truth, author, config, world_seed)
    tastes = _tastes(len(people.activity), world_seed)
    searches = _searches(writer, people, tastes, world_seed)
    numbers: dict[str, int] = {}
    views: dict[str, Views] = {}
    wants: dict[str, Wants] = {}
    for name, count in (("log", config.views), ("test", config.test_views)):
        rng = stream(world_seed, name)
        video, user = _watched(goods, people, truth, videos, config, name, count, rng)
        wants[name] = _wants(goods, truth, tastes, config, video, user, rng)
        texts = _retrieved(writer, truth, config, video, rng)
        rows = np.array([numbers.setdefault(text, len(numbers)) for text in texts.ravel()])
        rows = rows.reshape(texts.shape)
        views[name] = _acted(judge, texts, rows, wants[name], config, video, user, rng)
    return VideoWorld(
        config, world_seed, words, goods, people, videos, list(numbers), views["log"],
        views["test"], searches, truth, wants["log"], wants["test"], judge,
    )  # fmt: skip


def outcomes(
    world: VideoWorld, wants: Wants, video: np.ndarray, lists: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """What bars with these queries bring, without sampling noise.

    A bar shows up to three queries in turn until one is clicked. `exposed` is 1 where it showed
    any; `bad` where its first query has the wrong noun, or the video is none to sell under.

    Args:
        wants: of the viewers, a row a list.
        video: which video each list belongs to.

    Shape: -> (S,) float each: exposed, clicks, orders, money, bad.
    """
    count, shown = len(lists), len(TURNS)
    owner = np.array([n for n, each in enumerate(lists) for _ in each[:shown]], int)
    place = np.array([p for each in lists for p in range(len(each[:shown]))], int)
    texts = [text for each in lists for text in each[:shown]]
    found = {name: np.zeros((count, shown)) for name in ("click", "order", "noun")}
    if texts:
        fit = world.judge.fit(texts, wants.item[owner], wants.value[owner])
        looked = world.config.attention * np.array(TURNS)[place]
        found["click"][owner, place] = looked / (1 + np.exp(-fit["logit"]))
        rates = np.select([fit["exact"], fit["plain"]], list(ORDER_RATES.values())[:2], 0.01)
        quality = 2 / (1 + np.exp(-world.goods.quality[wants.item[owner]]))
        found["order"][owner, place] = rates * quality * (wants.item[owner] != NONE)
        main, other = (_noun_of(world, texts, t[video[owner]]) for t in _things(world.truth))
        found["noun"][owner, place] = main | other
    still = np.cumprod(1 - found["click"], 1)
    clicks = found["click"] * np.concatenate([np.ones((count, 1)), still[:, :-1]], 1)
    orders = (clicks * found["order"]).sum(1)
    exposed = np.array([float(len(each) > 0) for each in lists])
    price = np.where(wants.item == NONE, 0.0, world.goods.price[wants.item] / 100)
    safe = world.truth.kind[video] == SHOP
    bad = exposed * (1 - safe * found["noun"][:, 0])
    return {
        "exposed": exposed, "clicks": clicks.sum(1), "orders": orders, "money": orders * price,
        "bad": bad,
    }  # fmt: skip


def _things(truth: VideoTruth) -> tuple[np.ndarray, np.ndarray]:
    return truth.item, truth.aside


def _noun_of(world: VideoWorld, texts: Sequence[str], item: np.ndarray) -> np.ndarray:
    nothing = np.full(len(texts), NONE)
    return np.asarray(world.judge.fit(texts, item, nothing)["noun"])


def _shown(goods: Goods, config: VideoConfig, world_seed: int) -> tuple[VideoTruth, np.ndarray]:
    """What videos show: authors keep to a few categories, one angle, and one second thing."""
    rng, count = stream(world_seed, "shown"), config.videos
    leaves, width = len(goods.leaf_name), len(ATTRIBUTES)
    home = rng.integers(0, leaves, (config.authors, 3))
    habit = rng.integers(0, leaves, config.authors)
    angle = rng.integers(0, width - 1, config.authors)
    author = rng.choice(config.authors, count, p=zipf(config.authors, 0.5))
    leaf = home[author, rng.integers(0, 3, count)]
    second = np.where(rng.random(count) < 0.7, habit[author], rng.integers(0, leaves, count))
    item, aside = (_drawn(goods, leaf, rng), _drawn(goods, second, rng))
    keys = rng.gumbel(size=(count, width)) + 3.0 * (angle[author][:, None] == np.arange(width))
    keys[goods.values[item] == NONE] = -np.inf
    keys[:, CATEGORY] = -np.inf
    kind = rng.choice(3, count, p=[1 - config.idle - config.unsafe, config.idle, config.unsafe])
    item, aside = np.where(kind == SHOP, item, NONE), np.where(kind == SHOP, aside, NONE)
    return VideoTruth(kind, item, aside, np.argsort(-keys, 1)[:, :2]), author


def _drawn(goods: Goods, leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A product of each leaf, by demand. Shape: (N,) -> (N,)."""
    total = np.concatenate([[0.0], np.cumsum(goods.demand)])
    first, end = (np.searchsorted(goods.leaf, leaf, side) for side in ("left", "right"))
    draw = total[first] + rng.random(len(leaf)) * (total[end] - total[first])
    return np.clip(np.searchsorted(total, draw, "right") - 1, first, end - 1)


class _Writer:
    """Puts values into words."""

    def __init__(self, words: Words, goods: Goods, usual: np.ndarray, config: VideoConfig) -> None:
        self.words, self.goods, self.usual, self.config = words, goods, usual, config

    def said(self, value: int, rng: np.random.Generator) -> str:
        """A value in people's usual word, or now and then in another."""
        forms = self.words.forms[value]
        if rng.random() < self.config.usual:
            return forms[self.usual[value]]
        return forms[rng.integers(len(forms))]

    def query(self, item: int, values: Sequence[int], rng: np.random.Generator) -> str:
        """Values and noun of a product, as somebody would type them."""
        noun = self.said(self.goods.values[item, CATEGORY], rng)
        return " ".join([*(self.said(value, rng) for value in values), noun])

    def any_value(self, item: int, rng: np.random.Generator) -> int:
        """Some value of the product's category, its own or not."""
        choices = self.words.leaves[self.goods.leaf[item]].values
        kinds = [a for a in choices if a != CATEGORY]
        return int(rng.choice(choices[kinds[rng.integers(len(kinds))]]))

    def own_value(self, item: int, rng: np.random.Generator) -> int:
        """Some value that the product has, apart from its category."""
        values = self.goods.values[item]
        kept = np.flatnonzero((values != NONE) & (np.arange(len(values)) != CATEGORY))
        return int(values[kept[rng.integers(len(kept))]])


def _described(
    writer: _Writer, truth: VideoTruth, author: np.ndarray, config: VideoConfig, world_seed: int
) -> Videos:
    rng, count = stream(world_seed, "titles"), config.videos
    names = invented_names(rng, config.authors)
    weak = rng.random(count) < config.weak
    titles, summaries = [], []
    for video in range(count):
        title = [OPENINGS[n] for n in rng.integers(0, len(OPENINGS), rng.integers(1, 4))]
        words = _about(writer, truth, video, config, rng)
        for word in words["title"] if not weak[video] else []:
            title.insert(rng.integers(len(title) + 1), word)
        if weak[video]:
            title = []
        if rng.random() < 0.15 and title:
            title.append("link in bio buy now")
        title.append(f"@{names[author[video]]}")
        tags = [TRENDS[n] for n in rng.integers(0, len(TRENDS), 2)]
        if rng.random() < config.title_noise:  # a hashtag of something else that people look for
            leaf = writer.words.leaves[rng.integers(len(writer.words.leaves))]
            tags.append(leaf.name.replace(" ", ""))
        title += [f"#{tag}" for tag in tags]
        titles.append(" ".join(title))
        summaries.append("" if weak[video] else " ".join(words["summary"]))
    bad = truth.kind != SHOP
    reviewed = np.where(rng.random(count) < config.label_noise, ~bad, bad)
    new = rng.random(count) < config.new
    return Videos(titles, [names[a] for a in author], summaries, reviewed, new)


def _about(
    writer: _Writer, truth: VideoTruth, video: int, config: VideoConfig, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Words of a title and of a summary, each with noise of its own."""
    item, goods = truth.item[video], writer.goods
    if truth.kind[video] != SHOP:
        pool = PETS if truth.kind[video] == IDLE else HARM
        said = [[pool[n] for n in rng.integers(0, len(pool), size)] for size in (2, 3)]
        return {"title": said[0], "summary": said[1]}
    values = goods.values[item]
    focus = [int(values[a]) for a in truth.focus[video] if values[a] != NONE]
    title, summary = [], []
    if rng.random() < 0.6:
        forms = writer.words.forms[values[CATEGORY]]
        title.append(pick_form(forms, rng.random() < 0.5, rng.random()))
    for value in focus:
        if rng.random() < 0.45:
            forms = writer.words.forms[value]
            title.append(pick_form(forms, rng.random() < 0.5, rng.random()))
    for _ in range(3):
        if rng.random() < config.title_noise:
            title.append(writer.words.forms[writer.any_value(item, rng)][0])
    seen = [int(values[CATEGORY]), *focus, *(writer.own_value(item, rng) for _ in range(2))]
    for value in dict.fromkeys(seen):  # a summary has each thing's first form, or a wrong one
        if rng.random() < 0.85:
            slip = rng.random() < config.summary_noise
            summary.append(writer.words.forms[writer.any_value(item, rng) if slip else value][0])
    if rng.random() < 0.3:
        summary.append(writer.words.forms[goods.values[truth.aside[video], CATEGORY]][0])
    return {"title": title, "summary": summary}


def _tastes(users: int, world_seed: int) -> np.ndarray:
    """Which attributes matter to each user: two do. Shape: -> (U, 18)."""
    rng = stream(world_seed, "tastes")
    taste = np.zeros((users, len(ATTRIBUTES)))
    for column in rng.integers(0, len(ATTRIBUTES) - 1, (2, users)):
        taste[np.arange(users), column] = 2.5
    return taste


def _chosen_values(
    goods: Goods, item: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The value of each product that somebody with these weights cares about. Shape: -> (N,)."""
    keys = weights + rng.gumbel(size=weights.shape)
    keys[goods.values[item] == NONE] = -np.inf
    keys[:, CATEGORY] = -np.inf
    return np.asarray(goods.values[item, np.argmax(keys, 1)])


def _searches(
    writer: _Writer, people: People, tastes: np.ndarray, world_seed: int, each: int = 6
) -> list[list[str]]:
    """What users typed into the shop before, about their favourite categories."""
    rng, users = stream(world_seed, "searches"), len(tastes)
    user = np.repeat(np.arange(users), each)
    leaf = people.favourites[user, rng.integers(0, 3, len(user))]
    item = _drawn(writer.goods, leaf, rng)
    value = _chosen_values(writer.goods, item, tastes[user], rng)
    texts = [writer.query(i, [v], rng) for i, v in zip(item, value, strict=True)]
    return [texts[start : start + each] for start in range(0, len(texts), each)]


def _watched(
    goods: Goods, people: People, truth: VideoTruth, videos: Videos, config: VideoConfig,
    part: str, count: int, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Which user sees which video: half of the time one about a favourite category."""
    user = rng.choice(len(people.activity), count, p=people.activity / people.activity.sum())
    odds = np.where(videos.new, 0.0 if part == "log" else 1.6, 1.0)
    odds *= zipf(config.videos, 0.5)[np.random.default_rng(1).permutation(config.videos)]
    video = rng.choice(config.videos, count, p=odds / odds.sum())
    leaf = np.where(truth.item == NONE, NONE, goods.leaf[truth.item])
    wanted = people.favourites[user, rng.integers(0, 3, count)]
    personal = rng.random(count) < 0.5
    for number in np.unique(wanted):
        rows, about = np.flatnonzero(personal & (wanted == number)), np.flatnonzero(leaf == number)
        if len(about) and odds[about].sum():
            video[rows] = rng.choice(about, len(rows), p=odds[about] / odds[about].sum())
    return video, user


def _wants(
    goods: Goods, truth: VideoTruth, tastes: np.ndarray, config: VideoConfig,
    video: np.ndarray, user: np.ndarray, rng: np.random.Generator,
) -> Wants:  # fmt: skip
    other = rng.random(len(video)) < config.aside
    item = np.where(other, truth.aside[video], truth.item[video])
    weights = tastes[user].copy()
    rows = np.arange(len(video))
    for column in truth.focus[video].T:
        weights[rows, column] += np.where(other, 0.0, 2.0)
    value = np.where(item == NONE, NONE, _chosen_values(goods, item, weights, rng))
    return Wants(item, value)


def _retrieved(
    writer: _Writer, truth: VideoTruth, config: VideoConfig, video: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Queries of the logging policy, some about something else. Shape: -> (S, C) of texts."""
    shape = (len(video), config.candidates)
    draw, right, length = rng.random(shape), rng.random((*shape, 2)), rng.random(shape)
    stray = rng.integers(0, len(writer.goods.leaf), shape)
    main, aside = (thing[video][:, None] for thing in _things(truth))
    item = np.select([draw < 0.6, draw < 0.87], [main, aside], NONE)
    item = np.where(item == NONE, stray, item)
    texts = np.empty(shape, object)
    for place in np.ndindex(shape):
        about, wanted = int(item[place]), 0 if length[place] < 0.2 else 1 + (length[place] > 0.8)
        values = [
            writer.own_value(about, rng) if right[place][n] < 0.9 else writer.any_value(about, rng)
            for n in range(wanted)
        ]
        texts[place] = writer.query(about, list(dict.fromkeys(values)), rng)
    return texts


def _acted(
    judge: Judge, texts: np.ndarray, rows: np.ndarray, wants: Wants, config: VideoConfig,
    video: np.ndarray, user: np.ndarray, rng: np.random.Generator,
) -> Views:  # fmt: skip
    """The bar shows three of the retrieved queries in turn; at most one is clicked."""
    count, shown = len(video), len(TURNS)
    fit = judge.fit(
        list(texts[:, :shown].ravel()), np.repeat(wants.item, shown), np.repeat(wants.value, shown)
    )
    chance = config.attention * np.array(TURNS) / (1 + np.exp(-fit["logit"].reshape(count, shown)))
    happens = rng.random((count, shown)) < chance
    clicked = np.where(happens.any(1), happens.argmax(1), -1)
    exact = fit["exact"].reshape(count, shown)[np.arange(count), clicked.clip(0)]
    engaged = (clicked >= 0) & (rng.random(count) < np.where(exact, 0.7, 0.3))
    return Views(video, user, rows, clicked, engaged)
