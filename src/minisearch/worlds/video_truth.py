"""The videos of the simulated shop as records, and the judge of how well a query fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from minisearch.errors import InputError
from minisearch.worlds.shop_catalogue import CATEGORY, NONE, Goods, Words
from minisearch.worlds.shop_truth import People

SHOP, IDLE, UNSAFE = range(3)  # kinds of video
TURNS = (1.0, 0.75, 0.55)  # how likely each query of a bar, shown in turn, is looked at
EXACT, PLAIN, OFF, WRONG = 1.2, -0.8, -2.2, -4.6  # ours: click logits of a query by how it fits
ORDER_RATES = {"exact": 0.2, "plain": 0.1, "else": 0.01}  # ours: orders a click
WORDS = 8  # most entries that a query is read by


def _set(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc, "source": "ours"})


@dataclass(frozen=True)
class VideoConfig:
    """What shapes the videos and their log; the shop's own settings are a `ShopConfig`."""

    videos: int = _set(2400, "videos")
    views: int = _set(60_000, "video views with a bar in the log")
    test_views: int = _set(6000, "later views that nothing is trained on")
    authors: int = _set(120, "people who make videos")
    new: float = _set(0.25, "share of videos that no view of the log has")
    idle: float = _set(0.14, "share of videos about nothing that a shop sells")
    unsafe: float = _set(0.06, "share under which nothing may be offered")
    weak: float = _set(0.05, "share of videos with hashtags alone")
    title_noise: float = _set(0.3, "chance of each of three wrong words in a title")
    summary_noise: float = _set(0.15, "chance that a word of a summary is wrong")
    aside: float = _set(0.35, "share of viewers who want the second thing")
    usual: float = _set(0.7, "chance that people use the usual word for a thing")
    candidates: int = _set(8, "queries that the logging policy retrieves for a view")
    attention: float = _set(0.7, "chance that a viewer looks at the bar at all")
    label_noise: float = _set(0.05, "share of videos whose reviewer was wrong")

    def __post_init__(self) -> None:
        shares = ("new", "idle", "unsafe", "weak", "title_noise", "summary_noise", "aside", "usual")
        for name in (*shares, "attention", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                found, expected = str(getattr(self, name)), "a number between 0 and 1"
                raise InputError(f"VideoConfig.{name}", found, expected, f"change {name}.")
        if self.candidates < len(TURNS):
            found, expected = str(self.candidates), f"at least {len(TURNS)}"
            raise InputError("VideoConfig.candidates", found, expected, "retrieve more.")

    @classmethod
    def of(cls, profile: str, **changes: Any) -> VideoConfig:
        """The world of a profile's size."""
        small = {"videos": 160, "views": 1500, "test_views": 200, "authors": 20}
        sizes = {"smoke": small, "toy": {}}
        more = {"videos": 12_000, "views": 200_000, "test_views": 10_000, "authors": 600}
        return cls(**{**sizes.get(profile, more), **changes})

    @classmethod
    def table(cls) -> list[dict[str, Any]]:
        """One row a setting: name, default, what it does, and where it comes from."""
        return [{"setting": f.name, "default": f.default, **f.metadata} for f in fields(cls)]


@dataclass(frozen=True, eq=False)
class Videos:
    """What a program may read of the videos. Shape: (V,) each."""

    title: list[str]  # as typed, with hashtags, mentions and advertising
    author: list[str]
    summary: list[str]  # what a model saw in the frames, made offline
    reviewed: np.ndarray  # whether a reviewer said that nothing may be offered, sometimes wrongly
    new: np.ndarray  # no view of the log


@dataclass(frozen=True, eq=False)
class Views:
    """Views of videos with what their bars did, in time order.

    Shape: (S,), candidates (S, C) rows of the world's queries, of which the first three were shown.
    """

    video: np.ndarray
    user: np.ndarray
    candidates: np.ndarray
    clicked: np.ndarray  # place of the clicked candidate, -1 for none
    engaged: np.ndarray  # the click was followed by looking at products


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """What decides clicks; for evaluation alone. Shape: (V,), but of views (S,)."""

    kind: np.ndarray
    item: np.ndarray  # rows of `goods`, the product that is shown
    aside: np.ndarray  # the second thing
    focus: np.ndarray  # (V, 2) attributes that the video is about


@dataclass(frozen=True, eq=False)
class Wants:
    """What viewers would like to find: a product, and the value that matters. Shape: (S,)."""

    item: np.ndarray  # NONE where the video is about nothing on sale
    value: np.ndarray


@dataclass(frozen=True, eq=False)
class VideoWorld:
    """Everything together; training code leaves `truth`, the wants and `judge` alone."""

    config: VideoConfig
    world_seed: int
    words: Words
    goods: Goods
    people: People
    videos: Videos
    queries: list[str]  # every query that the log retrieved
    log: Views
    test: Views
    searches: list[list[str]]  # what each user typed before
    truth: VideoTruth
    log_wants: Wants
    test_wants: Wants
    judge: Judge


class Judge:
    """How well texts fit products, by the shop's own words.

    Args:
        words: the shop's values and their forms.
        goods: its products.
        usual: the form of each value that people use most.
    """

    def __init__(self, words: Words, goods: Goods, usual: np.ndarray) -> None:
        self.goods, every = goods, [form for forms in words.forms for form in forms]
        self.forms = {form: n for n, form in enumerate(dict.fromkeys(every))}
        self.longest = max(len(form.split()) for form in self.forms)
        count = len(self.forms)
        self.value_form = np.zeros((len(words.forms), count + 1), bool)
        self.usual = np.zeros(count + 1, bool)
        for value, forms in enumerate(words.forms):
            self.value_form[value, [self.forms[form] for form in forms]] = True
            self.usual[self.forms[forms[usual[value]]]] = True
        self.has = np.zeros((len(goods.leaf), count + 1), bool)
        for values in goods.values.T:
            rows = np.flatnonzero(values != NONE)
            self.has[rows] |= self.value_form[values[rows]]
        self._read: dict[str, tuple[list[int], int]] = {}

    def entries(self, text: str) -> tuple[list[int], int]:
        """A text as numbers of forms, the longest first at each place; and words that are none."""
        if text not in self._read:
            tokens, found, unknown, place = text.split(), [], 0, 0
            while place < len(tokens):
                for length in range(min(self.longest, len(tokens) - place), 0, -1):
                    form = self.forms.get(" ".join(tokens[place : place + length]))
                    if form is not None:
                        found.append(form)
                        break
                else:
                    unknown += 1
                place += length
            self._read[text] = found[:WORDS], unknown + max(0, len(found) - WORDS)
        return self._read[text]

    def fit(self, texts: Sequence[str], item: np.ndarray, value: np.ndarray) -> dict[str, Any]:
        """How texts fit what was wanted.

        Returns:
            logit: of a click at full attention; exact: the right noun, the wanted value, nothing
            wrong; plain: the same without the value; noun: the right noun at least.

        Shape: N texts, item and value (N,), NONE where nothing is wanted -> (N,) each.
        """
        parsed = [self.entries(text) for text in texts]
        entries = np.full((len(texts), WORDS), len(self.forms))
        for row, (found, _) in enumerate(parsed):
            entries[row, : len(found)] = found
        there = entries < len(self.forms)
        wrong = np.array([unknown for _, unknown in parsed], int)
        wrong += (there & ~self.has[item[:, None], entries]).sum(1)
        ordered = np.sort(entries, 1)
        wrong += ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] < len(self.forms))).sum(1)
        category = self.goods.values[item, CATEGORY]
        some = item != NONE
        noun = some & self.value_form[category[:, None], entries].any(1)
        wanted = (value != NONE) & self.value_form[value[:, None], entries].any(1)
        exact, plain = noun & wanted & (wrong == 0), noun & ~wanted & (wrong == 0)
        logit = np.select([exact, plain, noun], [EXACT, PLAIN, OFF], WRONG)
        everyday = (self.usual[entries] | ~there).all(1) & there.any(1)
        logit += np.where(noun & everyday, 0.5, 0.0) - 0.4 * (there.sum(1) - 2).clip(0)
        return {"logit": logit, "exact": exact, "plain": plain, "noun": noun}
