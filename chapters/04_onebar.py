# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # OneBar: the query that a video suggests
#
# Somebody watches a stranger pack for a camping trip. Under the video stands a bar with a query in it: *mini tent*. Tap it, and the shop opens.
# Today such bars are filled by a {term}`cascade`: queries that others clicked are looked up, filtered and ranked, and a video
# that went up an hour ago has none. OneBar {cite:p}`onebar` *writes* the query instead, from what the video shows, what similar videos led to, and what the viewer searched before. It learns which query is
# preferred from clicks alone, without a model of what a query is worth: in training, a copy of the model reads the clicked query and teaches the model, which does not. This chapter
# asks what OneBar's stages add beyond longer training, and whether it beats a fair cascade.

# %% tags=["page-only", "hide-input"]
from IPython.display import Markdown

from minisearch.showing import card_box

Markdown(card_box("04_onebar"))

# %% tags=["hide-input"]
import copy
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BartConfig

# %% tags=["hide-input"]
from minisearch.errors import InputError, one_of
from minisearch.index import DenseIndex
from minisearch.lit import Batches, History, Module, Optimisation, fit
from minisearch.metrics import roc_auc
from minisearch.models.bart import StepwiseBart
from minisearch.models.generative import Alphabet, Seq2Seq, toy_bart_config
from minisearch.models.towers import TextTower, bag_config, encode
from minisearch.objectives import in_batch_softmax, same_items
from minisearch.profiles import Settings, derive_seed, dial, quiet, use_threads
from minisearch.recorder import Recorder
from minisearch.storage import cached
from minisearch.text import END, PAD, Vocabulary, words
from minisearch.worlds.video_truth import TURNS, Videos, VideoWorld, Views, Wants
from minisearch.worlds.videos import make_videos, outcomes

# %% [markdown]
# ## Three videos and their bars
#
# The world is the simulated shop of chapters 1 and 2 with videos in it. Three of a very small one: the title as it was typed, a summary of what a model saw in the frames, and a query that somebody clicked.

# %% tags=["page-only"]
tiny = make_videos("smoke", 0)
for view in np.flatnonzero(tiny.log.clicked >= 0)[[0, 1, 5]]:
    video = tiny.log.video[view]
    taken = tiny.log.candidates[view, tiny.log.clicked[view]]
    print(f"title    {tiny.videos.title[video]}")
    print(f"summary  {tiny.videos.summary[video]}")
    print(f"clicked  {tiny.queries[taken]}\n")

# %% [markdown]
# Titles are full of words that sell nothing or name something else; the summary is better and has errors of its own. The first query stands in the title, the second says in other words what the title says, the third is named in neither. A third of the viewers
# want the *second thing* in the picture, which no title names and a summary now and then. Behaviour knows it: others who watched such videos, or others of the same author, clicked on it.
#
# ## What the paper claims
#
# A cascade relies on caches, and each step has a goal of its own. Earlier generators suffered from noisy titles, from candidates that had to stand in a
# table, and from models of rewards that drift or get *hacked*: the generator finds what the model likes and viewers do not. OneBar generates from evidence, with a short prompt. Training has three stages:
#
# 1. likelihood of the clicked query;
# 2. lists of queries, ordered by what people did with them;
# 3. distillation from a *teacher*, a copy that reads the clicked query, to the *student*, which does not.
#
# | | OneBar | its short prompt | a prompt with instructions, same model | nearest neighbours alone | a large language model, zero-shot |
# |---|---|---|---|---|---|
# | HR@8 | **.3690** | .3564 | .1864 | .1322 | .0224 |
#
# | online, against the cascade | exposure | clicks | query CTR | orders | GMV | total time |
# |---|---|---|---|---|---|---|
# | OneBar | +16.91 % | +18.68 % | +0.19 % | +20.36 % | +21.67 % | -8 % |
#
# HR@8 is the share of views whose clicked query is, word for word, among the eight written. OneBar's MRR@8, the mean of one over its place among them, is .2402; its ED-HR@8, which forgives two letters, .4934; its BLEU@8, which counts runs of words in common with the best of the eight, .5039.
# GMV is the money of all orders, total time that of serving a request. Why the short prompt has .3564 and the whole .3690 we could not read; the former may be stage 1 alone.
#
# :::{admonition} What we could and could not read
# :class: note
# We could read the abstract, the authors' project page and the first lines of the text. OneBar's own figures and the online row are from the project page, the other HR@8 from a reading note, the losses and
# their weights from an unofficial re-implementation. We follow its structure; weights that it alone names are weak evidence. Tables of ablations, the share of rejections, latency by prompt and the log's size by stage are not known to
# us. The world, every toy size and every margin are **ours**, and no verdict compares a toy number with the paper's.
# :::
#
# The figures for exposures, clicks and query CTR do not agree (exercise 4); what that CTR is a ratio of we could not read. Below, CTR is clicks over exposures, and an exposure is a view in which the bar showed a query.
#
# ## Symbols
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $x$, $u$ | a video, and who watches it | a row of `Views` |
# | $T_x, M_x, A_x, H_u$ | title, summary, {term}`anchors`, the user's history | `FIELDS` |
# | $s_x$; $s_x^+$ | the prompt made of them; the teacher's, with $y^+$ in it | `prompts_of`; `inserted` |
# | $y^+$; $\hat y$ | the clicked query; what the student writes | `Table.targets`; `rollout` |
# | $p_\theta$ | the model's probability of a token | `logits_of` |
# | $\ell_\theta(y)$, $\ell_0(y)$ | log-probability of a query after $s_x$; the same after stage 1 | `log_chance` |
# | $y_1, \dots, y_n$; $b(y)$ | a list's candidates, best first; their level | `levels_of` |
# | $\beta, h, \lambda_{\text{sft}}$ | scale and temperature of a list; weight of likelihood in it | `beta`, `heat`, `list_sft` |
# | $z, p$; $z^+, q$ | the student's logits and probabilities of the next token; the teacher's | `divergences` |
# | $\tau, \lambda_F, \lambda_R, \lambda_E$ | temperature of the teacher; weights of the terms | `tau`, `forward`, `reverse`, `entropy` |
#
# ## Parameters
#
# The four values of a `dial` are those of the profiles smoke, toy, small and full; `source` says where they come from.


# %% tags=["parameters"]
profile: str = "toy"  # smoke | toy | small | full
seed: int = 1000  # training; the published grid uses other seeds
world_seed: int = 0  # which simulated videos
init_seed: int = 0  # which base model the arms start from
arms: str = "main"  # "main", or arms of the card with commas between them
data: str = ""  # folder of talks, see "At scale"; empty: the simulated videos
title_noise: float = -1.0  # chance of each wrong word in a title; -1: the world's own
gate: float = -1.0  # share of pairs that the gate is wrong about; -1: the profile's

# %%
quiet()


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """How much is read, and how it is put into a prompt."""

    early: float = dial(*[0.4] * 4, source="ours; share of the log for the encoder")
    requests: int = dial(40, 1200, 5000, 10_000, source="ours; test clicks")
    bars: int = dial(60, 1500, 5000, 10_000, source="ours; views of the online test")
    title_words: int = dial(14, 14, 24, 64, source="not published; ours")
    summary_words: int = dial(12, 12, 48, 128, source="not published; ours")
    query_words: int = dial(7, 7, 10, 16, source="not published; ours")
    anchors: int = dial(4, 4, 6, 8, source="not published; ours")
    history: int = dial(2, 2, 4, 8, source="not published; ours")
    similarity: float = dial(
        0.3, 0.3, 0.3, 0.88, source="0.88 (re-implementation); ours"
    )
    budget: int = dial(56, 56, 128, 512, source="not published; ours; tokens a prompt")
    width: int = dial(32, 96, 256, 768, source="BART-base; ours")
    inner: int = dial(96, 288, 1024, 3072, source="BART-base; ours")
    heads: int = dial(4, 4, 8, 12, source="BART-base; ours")
    devices: int = dial(1, 1, 1, 1, source="ours; refusals are counted on one device")
    strategy: str = dial("auto", "auto", "auto", "auto", source="ours; one device")
    encoder_steps: int = dial(10, 400, 2000, 20_000, source="not published; ours")
    encoder_rate: float = dial(5e-3, 5e-3, 2e-3, 1e-4, source="not published; ours")
    gate: float = dial(*[0.02] * 4, source="ours; pairs that the gate is wrong about")


# %%
@dataclass(frozen=True, kw_only=True)
class StageSettings(DataSettings):
    """The generator and its three stages."""

    layers: int = dial(1, 1, 3, 6, source="BART-base; ours; of encoder and decoder")
    dropout: float = dial(*[0.1] * 4, source="BART's")
    batch_size: int = dial(16, 64, 128, 128, source="128 (note); ours")
    refusals: int = dial(3, 10, 20, 20, source="not published; ours; of these rows")
    steps: int = dial(6, 1000, 10_000, 100_000, source="6 epochs (note); ours")
    prompt_steps: int = dial(
        4, 400, 10_000, 100_000, source="ours; of arms that compare prompts"
    )
    rate: float = dial(2e-3, 2e-3, 5e-4, 1e-5, source="1e-5 (note); ours")
    warmup: int = dial(2, 50, 200, 1000, source="not published; ours")
    hints: float = dial(*[0.2] * 4, source="ours; rows of stage 1 that read a hint")
    hint_right: float = dial(*[0.5] * 4, source="ours; of these, hints that are right")
    triggers: int = dial(
        6, 24, 64, 128, source="not published; ours; a step of stage 2"
    )
    list_steps: int = dial(3, 150, 1000, 5000, source="not published; ours")
    list_rate: float = dial(3e-4, 3e-4, 1e-4, 5e-5, source="5e-5 (note); ours")
    beta: float = dial(*[0.1] * 4, source="0.1 (note)")
    heat: float = dial(*[1.0] * 4, source="1 (re-implementation); h")
    list_sft: float = dial(*[1.0] * 4, source="1 (re-implementation)")
    distil_steps: int = dial(3, 250, 500, 500, source="500 (note); ours")
    distil_rate: float = dial(5e-4, 5e-4, 1e-4, 1e-6, source="1e-6 (note); ours")
    distil_batch: int = dial(8, 48, 64, 64, source="64 (note); ours")


# %%
@dataclass(frozen=True, kw_only=True)
class BarSettings(StageSettings):
    """Distillation, decoding, and the rivals."""

    tau: float = dial(*[2.0] * 4, source="2 (note)")
    softened: str = dial(
        *["teacher"] * 4, source="re-implementation; teacher or both: what tau divides"
    )
    forward: float = dial(*[1.0] * 4, source="1 (re-implementation)")
    reverse: float = dial(*[1.0] * 4, source="1 (re-implementation)")
    entropy: float = dial(*[0.01] * 4, source="0.01 (re-implementation)")
    k: int = dial(*[8] * 4, source="K = 8 (page)")
    neighbours: int = dial(8, 24, 24, 24, source="ours; queries that the cascade takes")
    ridge: float = dial(*[1.0] * 4, source="ours; of the cascade's ranker")
    group: int = dial(
        *[4] * 4, source="ours; samples a trigger, of the rival with rewards"
    )
    click_steps: int = dial(20, 1500, 5000, 20_000, source="ours; of models of clicks")
    frame_steps: int = dial(5, 300, 3000, 3000, source="ours; of the frame encoder")
    pictures: int = dial(60, 3000, 20_000, 20_000, source="ours; it learns from")
    longer: float = dial(*[1.7] * 4, source="ours; steps of likelihood in equal time")
    timed: int = dial(8, 100, 200, 1000, source="ours; requests that are timed")


# %%
settings = BarSettings.of(profile, **({"gate": gate} if gate >= 0 else {}))
use_threads(settings.threads)
record = Recorder.from_environment()

# %% [markdown]
# ## Step 1: what may be read
#
# Of a video: title, author, summary, and whether a reviewer said that nothing may be offered under it (one in twenty is wrong). Of a view: who watched, which queries were retrieved, which three the bar showed in turn, which was clicked, and whether a look at products followed (`engaged`). Of a user: earlier searches in the shop.
# The truth (which two things a video shows, what each viewer wants) is kept from every method. It serves `outcomes`, which says how often a bar would be clicked, the gate, and the arms `oracle` and `frames` (for its pictures).
#
# A *new* video is one that no view of the log has.


# %%
@dataclass(frozen=True, eq=False)
class Corpus:
    """Videos, the log of their bars, later views for testing; the world where it is simulated."""

    videos: Videos
    queries: list[str]
    log: Views
    test: Views
    searches: list[list[str]]  # of each user, may be empty
    world: VideoWorld | None

    def clicked(self, views: Views) -> np.ndarray:
        """The clicked query of each view, -1 for none. Shape: -> (S,)."""
        place = np.arange(len(views.video)), views.clicked.clip(0)
        return np.where(views.clicked >= 0, views.candidates[place], -1)


def simulated(profile: str, world_seed: int, noise: float) -> Corpus:
    """The videos of the simulated shop."""
    changes = {"title_noise": noise} if noise >= 0 else {}
    world = make_videos(profile, world_seed, **changes)
    parts = world.videos, world.queries, world.log, world.test, world.searches
    return Corpus(*parts, world)


# %% [markdown]
# Real videos with clicks are not to be had. The code also reads 21,715 recorded talks {cite:p}`pyvideo`, with *constructed* queries in place of clicks: a tag of the
# talk or, without one, the two rarest words of its title. The talks test that the code takes real text, not the claims.


# %%
def read_talks(path: Path) -> list[dict]:
    """Rows of a `talks.jsonl`: title, speakers, summary, tags, category and date of each talk.

    Raises:
        InputError: where the file is missing, or a line is not such a row.
    """
    if not path.is_file():
        remedy = f"run `python data_scripts/pyvideo.py {path.parent}`."
        raise InputError(str(path), "no such file", "a file of talks", remedy)
    talks, names = [], {"title", "speakers", "summary", "tags", "category", "recorded"}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            talk = json.loads(line)
            found = (
                f"without {sorted(names - talk.keys())}" if names - talk.keys() else ""
            )
        except (ValueError, AttributeError) as error:
            found = str(error)
        if found:
            where, expected = f"{path}, line {number}", "a talk as a JSON object"
            raise InputError(where, found, expected, "write the file anew.")
        talks.append(talk)
    return talks


def constructed_queries(talk: dict, counts: Counter) -> list[str]:
    """The queries that a talk stands for: its tags, or the two rarest words of its title."""
    tags = [" ".join(words(tag)) for tag in talk["tags"]]
    if any(tags):
        return list(dict.fromkeys(tag for tag in tags if tag))[:5]
    title = list(dict.fromkeys(words(talk["title"])))
    rare = sorted(title, key=lambda word: (counts[word], word))[:2]
    return [" ".join(word for word in title if word in rare)] if rare else []


# %%
def views_of(pairs: list[tuple[int, int]], pools: np.ndarray, draw_seed: int) -> Views:
    """A view for each talk and query: that query, and seven of other talks; all constructed."""
    random = np.random.default_rng(derive_seed(draw_seed, "talks"))
    video, query = np.array(pairs).T
    others = pools[random.integers(0, len(pools), (len(pairs), 7))]
    candidates = np.concatenate([query[:, None], others], 1)
    nobody = np.zeros(len(pairs), int)
    return Views(video, nobody, candidates, nobody, np.zeros(len(pairs), bool))


def talks_of(folder: Path, limit: int) -> Corpus:
    """Talks as videos: the latest tenth of them is for testing. Nobody has a history here."""
    talks = read_talks(folder / "talks.jsonl")
    talks = sorted(talks, key=lambda talk: talk["recorded"] or "")[-limit:]
    counts = Counter(word for talk in talks for word in words(talk["title"]))
    numbers: dict[str, int] = {}
    pairs = [
        (row, numbers.setdefault(query, len(numbers)))
        for row, talk in enumerate(talks)
        for query in constructed_queries(talk, counts)
    ]
    new = np.arange(len(talks)) >= round(0.9 * len(talks))
    parts = [[p for p in pairs if bool(new[p[0]]) == later] for later in (False, True)]
    if not all(parts):
        found, remedy = f"{len(talks)} talks", "fetch the whole set."
        raise InputError(str(folder), found, "enough for training and test", remedy)
    pool = np.array([query for _, query in parts[0]])
    titles = [talk["title"] for talk in talks]
    authors = [" ".join(talk["speakers"][:1]) for talk in talks]
    summaries = [" ".join(talk["summary"].split()) for talk in talks]
    videos = Videos(titles, authors, summaries, np.zeros(len(talks), bool), new)
    log, test = (views_of(part, pool, n) for n, part in enumerate(parts))
    return Corpus(videos, list(numbers), log, test, [[]], None)


# %%
corpus = (
    talks_of(Path(data), 25_000)
    if data
    else simulated(profile, world_seed, title_noise)
)

# %% tags=["page-only"]
taken, late = corpus.clicked(corpus.log), corpus.videos.new[corpus.test.video]
print(
    f"{len(corpus.videos.title):,} videos, {corpus.videos.new.mean():.0%} of them new"
)
print(f"{len(taken):,} views in the log, {np.mean(taken >= 0):.0%} with a click")
print(f"{len(late):,} views for testing, {late.mean():.0%} of new videos")
print(
    f"{len(corpus.queries):,} queries retrieved, {len(set(taken)) - 1:,} ever clicked"
)

# %% [markdown]
# ## Step 2: the evidence, and its anchors
#
# The paper's evidence has four fields: title $T_x$, summary $M_x$, anchors $A_x$, history $H_u$.


# %%
FIELDS = "TMAH"
ADVERTISING = ("link in bio buy now", "link in bio", "buy now", "subscribe")


def cleaned(title: str, author: str = "") -> str:
    """A title without mentions, hashtags, advertising and repeated words; the author behind it."""
    for phrase in ADVERTISING:
        title = title.replace(phrase, " ")
    kept = [token for token in title.split() if token[0] not in "@#"]
    return " ".join(dict.fromkeys([*kept, *author.split()]))


# %% tags=["page-only", "nbval-check-output"]
print(cleaned("omg mini tent mini @milo link in bio buy now #viral", "milo"))

# %% [markdown]
# One numbering serves all that is read and written: words, and marks for the four fields, for an inserted query (step 6), and for `reject`, written when nothing should be shown.


# %%
OPENING = (
    "you are the assistant of a shop app a user is watching a video and under "
    "the video stands a search bar"
)
LABELS = {
    "T": "the title of the video reads",
    "M": "what can be seen in the video in a few words",
    "A": "people who watched similar videos searched for",
    "H": "the same user searched before for",
}
CLOSING = "write one short query that this user would like to search for now"


# %%
class Reader:
    """Texts to tokens and back.

    Args:
        texts: everything that may be read or written in training.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        spoken = [OPENING, CLOSING, *LABELS.values()]
        self.vocabulary = Vocabulary.build([*texts, *spoken], min_count=1, pieces=64)
        self.alphabet = Alphabet(
            len(self.vocabulary), ("insert", "reject", *FIELDS), ()
        )
        self.insert, self.reject = (self.alphabet.mark(m) for m in ("insert", "reject"))
        self.writable = torch.zeros(len(self.alphabet), dtype=torch.bool)
        self.writable[END : self.vocabulary.first_piece] = True
        self.writable[self.reject] = True
        self._tokens: dict[str, tuple[int, ...]] = {}

    def tokens(self, text: str, most: int) -> tuple[int, ...]:
        """At most so many tokens of a text."""
        if text not in self._tokens:
            found = [i for word in words(text) for i in self.vocabulary.ids_of(word)]
            self._tokens[text] = tuple(found)
        return self._tokens[text][:most]

    def text(self, tokens: Sequence[int]) -> str:
        """What was written, "" for a rejection or nothing."""
        if self.reject in tokens:
            return ""
        first, last = END + 1, self.vocabulary.first_piece
        frequent = self.vocabulary.frequent
        return " ".join(frequent[t - first] for t in tokens if first <= t < last)


# %%
def all_texts(corpus: Corpus) -> list[str]:
    """Everything that can be read: of test views, the words only."""
    pairs = zip(corpus.videos.title, corpus.videos.author, strict=True)
    titles = [cleaned(*pair) for pair in pairs]
    typed = [text for own in corpus.searches for text in own]
    return [*titles, *corpus.videos.summary, *corpus.queries, *typed]


reader = Reader(all_texts(corpus))

# %% [markdown]
# {term}`Anchors` are queries that behaviour puts near the video. A bag-of-words tower learns from pairs of a video and a query clicked under it, and of two queries clicked one after the other under a video. Each video that it has met also has a word of its own, its number, where
# what only behaviour knows can be kept; a new video gets what its author's others taught.
#
# The tower trains on the first 40 % of the log, the generator on the rest, with anchors from those 40 %. Else the anchors of a training view would know its own click, those of a test view not. A test prompt's anchors come from the whole log.


# %%
@dataclass(frozen=True, eq=False)
class Space:
    """Videos and queries as unit vectors. Shape: videos (V, D), queries (Q, D)."""

    tower: TextTower
    videos: np.ndarray
    queries: np.ndarray

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of any queries. Shape: N -> (N, D)."""
        return unit(encode(self.tower, query_ids(texts)))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one; rows of zeros stay. Shape: (N, D) -> (N, D)."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length == 0, 1, length))


def query_ids(texts: Sequence[str]) -> Tensor:
    """Tokens of queries for the tower. Shape: N -> (N, L)."""
    most = settings.query_words
    return torch.from_numpy(padded([reader.tokens(text, most) for text in texts], most))


def padded(rows: Sequence[Sequence[int]], width: int = 0) -> np.ndarray:
    """Rows of tokens filled with 0. Shape: N rows -> (N, longest, at least `width`)."""
    longest = max([width, 1, *map(len, rows)])
    table = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


# %%
def early(views: Views) -> int:
    """Views of the log that the tower trains on; the generator gets the others."""
    return round(settings.early * len(views.video))


def video_ids(met: np.ndarray) -> Tensor:
    """Tokens of videos for the tower; those that were met have a word of their own in front."""
    texts = zip(
        corpus.videos.title, corpus.videos.author, corpus.videos.summary, strict=True
    )
    rows = []
    for number, (title, author, summary) in enumerate(texts):
        own = [len(reader.alphabet) + number] if met[number] else []
        title_tokens = reader.tokens(cleaned(title, author), settings.title_words)
        rows.append(
            [*own, *title_tokens, *reader.tokens(summary, settings.summary_words)]
        )
    return torch.from_numpy(padded(rows))


# %%
def at(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table that stays where it is, on the device of the numbers."""
    return table[rows.to(table.device)].to(rows.device)


class Pairing(Module):
    """One tower for videos and queries, trained on pairs of both."""

    def __init__(self, tower: TextTower, videos: Tensor, queries: Tensor) -> None:
        super().__init__()
        self.tower, self.videos, self.queries = tower, videos, queries

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Contrastive loss of v-q and q-v pairs, and half of that of q-q pairs."""
        video, query = batch["video"], batch["query"]
        seen = F.normalize(self.tower(at(self.videos, video)), dim=1)
        asked = F.normalize(self.tower(at(self.queries, query)), dim=1)
        total = in_batch_softmax(seen, asked, None, 0.1, same_items(query))
        total = total + in_batch_softmax(asked, seen, None, 0.1, same_items(video))
        if "left" in batch:
            one, two = (
                F.normalize(self.tower(at(self.queries, batch[side])), dim=1)
                for side in ("left", "right")
            )
            same = same_items(batch["right"])
            total = total + 0.5 * in_batch_softmax(one, two, None, 0.1, same)
        return total


def together(video: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different queries that follow each other under one video, as pairs. Shape: (N,) -> (P,) x 2."""
    order = np.argsort(video, kind="stable")
    video, query = video[order], query[order]
    pair = (video[1:] == video[:-1]) & (query[1:] != query[:-1])
    return query[:-1][pair], query[1:][pair]


# %%
def new_tower(size: int) -> TextTower:
    """A bag of words over so many tokens, for texts as long as a video's may be."""
    longest = 1 + settings.title_words + settings.summary_words
    return TextTower(bag_config(size, settings.width, max_position_embeddings=longest))


def make_space(draw_seed: int) -> Space:
    """Train the tower, and place all videos and queries."""
    log, end = corpus.log, early(corpus.log)
    query = corpus.clicked(log)[:end]
    rows = np.flatnonzero(query >= 0)
    rows = np.concatenate(
        [rows, rows[log.engaged[rows]]]
    )  # once more: a look at products
    met = np.zeros(len(corpus.videos.title), bool)
    met[log.video[rows]] = True
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(draw_seed, "tower"))
        tower = new_tower(len(reader.alphabet) + len(met))
    pairs = {"video": log.video[rows], "query": query[rows]}
    columns = {name: torch.from_numpy(values) for name, values in pairs.items()}
    left, right = (torch.from_numpy(q) for q in together(*pairs.values()))
    pools = {"left": left, "right": right} if len(left) else {}
    module = Pairing(tower, video_ids(met), query_ids(corpus.queries))
    batches = Batches(columns, min(192, len(rows)), draw_seed, pools)
    steps = settings.encoder_steps
    fit(
        module, batches, settings, Optimisation(settings.encoder_rate),
        epochs=1 + steps // max(1, len(batches)), max_steps=steps,
    )  # fmt: skip
    places = [unit(encode(tower, ids)) for ids in (module.videos, module.queries)]
    return Space(tower, *places)


# %%
space = make_space(derive_seed(init_seed, "space"))


def nearest(pool: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k queries of a pool nearest to each video, and their cosines. Shape: -> (V, k) twice."""
    index = DenseIndex(space.queries[pool])
    hits = index.search(space.videos, min(k, len(pool)))
    return pool[hits.ids], hits.scores


def pool_until(end: int) -> np.ndarray:
    """Queries that were clicked in the first views of the log."""
    return np.unique(
        [query for query in corpus.clicked(corpus.log)[:end] if query >= 0]
    )


# %% tags=["page-only"]
wanted = corpus.clicked(corpus.test)
shown = np.flatnonzero(wanted >= 0)
near, cosine = nearest(pool_until(len(corpus.log.video)), settings.k)
met = [wanted[view] in near[corpus.test.video[view]] for view in shown]
print(
    f"{len(shown):,} test clicks; among the eight nearest queries: {np.mean(met):.3f}"
)
print(
    "cosine of the first and the eighth, middle video:",
    np.median(cosine[:, [0, -1]], 0).round(2),
)

# %% [markdown]
# Alone, nearest neighbours are a weak method. Those whose cosine passes a cut, four at most at toy, become anchors.
#
# ## Step 3: one prompt, two ways to write it
#
# The fields are put side by side, without a word of instruction, and an empty field takes no place:
#
# $$s_x = [\,T_x\,;\,M_x\,;\,A_x\,;\,H_u\,].$$ (eq-04-prompt)
#
# The paper puts a separator between fields; we put a mark of its kind in front of every entry, so that it is plain which field is missing. This is what the paper calls compression; nothing is learnt in it. The *verbose* prompt has the same entries and marks, with labels and
# instructions around them. It comes whole, and cut at `budget` tokens, which the short prompt does not reach at toy. The cut takes the closing sentence, then history, so that only the whole one compares wording alone.


# %%
@dataclass(frozen=True)
class Style:
    """How a prompt is made."""

    fields: str = FIELDS
    verbose: bool = False
    whole: bool = False  # a verbose prompt is not cut
    frames: bool = False  # the summary comes from pictures


Prompt = list[tuple[int, ...]]  # entries; of a verbose prompt, sentences


@cache
def anchors_now(end: int) -> tuple[np.ndarray, np.ndarray]:
    """Anchors of each video by the queries clicked in the first views, and which pass the cut."""
    found, cosine = nearest(pool_until(end), settings.anchors)
    return found, cosine >= settings.similarity


@cache
def typed() -> tuple[dict[str, int], np.ndarray]:
    """The row of every different query that users typed, and their vectors. Shape: N, (N, D)."""
    texts = sorted({text for own in corpus.searches for text in own})
    vectors = space.of(texts) if texts else np.zeros((0, settings.width))
    return {text: row for row, text in enumerate(texts)}, vectors


def history_of(user: int, video: int) -> list[str]:
    """What a user typed that is nearest to the video; of this user alone, each query once."""
    (places, vectors), texts = typed(), sorted(set(corpus.searches[user]))
    near = vectors[[places[text] for text in texts]] @ space.videos[video]
    order = np.argsort(-near, kind="stable")[: settings.history]
    return [texts[row] for row in order]


# %%
def evidence(video: int, user: int, end: int, summary: str) -> dict[str, list[str]]:
    """The fields of a view as texts, in their order; empty ones are left out."""
    title, author = corpus.videos.title[video], corpus.videos.author[video]
    found, passes = anchors_now(end)
    anchors = [corpus.queries[q] for q in found[video][passes[video]]]
    fields = {
        "T": [cleaned(title, author)],
        "M": [summary],
        "A": anchors,
        "H": history_of(user, video),
    }
    return {name: texts for name, texts in fields.items() if any(texts)}


def aligned(fields: dict[str, list[str]]) -> Prompt:
    """Entries with the mark of their field in front."""
    most = {"T": settings.title_words, "M": settings.summary_words}
    return [
        (
            reader.alphabet.mark(name),
            *reader.tokens(text, most.get(name, settings.query_words)),
        )
        for name, texts in fields.items()
        for text in texts
        if words(text)
    ]


def in_words(fields: dict[str, list[str]]) -> Prompt:
    """The same entries, with labels and instructions around them."""
    said = [reader.tokens(OPENING, 200)]
    for name, texts in fields.items():
        label = (reader.alphabet.mark(name), *reader.tokens(LABELS[name], 200))
        said += [label, *aligned({name: texts})]
    return [*said, reader.tokens(CLOSING, 200)]


# %%
def prompts_of(views: Views, rows: np.ndarray, style: Style, end: int) -> list[Prompt]:
    """The prompt of each view; its anchors come from the first `end` views of the log.

    Raises:
        InputError: for a field that does not exist, or no field at all.
    """
    if not style.fields or set(style.fields) - set(FIELDS):
        remedy = "name some of T, M, A, H."
        raise InputError("fields", repr(style.fields), "some of TMAH", remedy)
    summaries = seen_summaries() if style.frames else corpus.videos.summary
    write = in_words if style.verbose else aligned
    found = []
    for video, user in zip(
        views.video[rows].tolist(), views.user[rows].tolist(), strict=True
    ):
        fields = evidence(video, user, end, summaries[video])
        found.append(write({n: t for n, t in fields.items() if n in style.fields}))
    return found


def sources(prompts: Sequence[Prompt], whole: bool = False) -> Tensor:
    """Prompts as one table, cut at the budget unless whole. Shape: B -> (B, S)."""
    rows = [[token for entry in prompt for token in entry] for prompt in prompts]
    most = None if whole else settings.budget
    return torch.from_numpy(padded([row[:most] for row in rows]))


# %% tags=["page-only"]
example = np.flatnonzero(corpus.clicked(corpus.test) >= 0)[:1]
for verbose in (False, True):
    (prompt,) = prompts_of(
        corpus.test, example, Style(verbose=verbose), len(corpus.log.video)
    )
    plain = [reader.text(entry) for entry in prompt]
    print(f"{sum(map(len, prompt))} tokens: {' / '.join(plain)}\n")

# %% [markdown]
# ## Step 4: a generator, and stage 1
#
# At toy the generator is a BART {cite:p}`bart` with one small layer on either side, and every token of a prompt gets a vector of its *kind*, which the mark in front of its entry decides. Beam search writes eight different queries, or `reject` among them.
#
# Stage 1 is likelihood of the clicked query, or of `reject` where a reviewer refused the video:
#
# $$L_{\text{SFT}} = -\mathbb{E} \sum_t \log p_\theta(y^+_t \mid y^+_{<t}, s_x).$$ (eq-04-sft)
#
# The code takes the mean over all tokens of a batch; of its `batch_size` rows `refusals` are refused.
#
# *Hints* are ours. The teacher of stage 3 will find the clicked query in its prompt; a model that never saw such prompts hardly heeds it (trials on the card).
# So one row in five of stage 1 reads a hint, a query at a random place: half of the time the clicked one, else any that was retrieved for the view. All arms that go on after stage 1 start from this model; none reads a hint when it serves.


# %%
def shape(size: int) -> BartConfig:
    """Of a generator over so many tokens, with places for a whole prompt and a hint."""
    layers, inner, heads = settings.layers, settings.inner, settings.heads
    return toy_bart_config(
        size, d_model=settings.width, encoder_layers=layers, decoder_layers=layers,
        encoder_ffn_dim=inner, decoder_ffn_dim=inner, encoder_attention_heads=heads,
        decoder_attention_heads=heads, dropout=settings.dropout,
        max_position_embeddings=settings.budget + 256,
    )  # fmt: skip


def new_model(draw_seed: int) -> Seq2Seq:
    """A generator whose words start where the tower has them."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(draw_seed, "generator"))
        model = Seq2Seq(shape(len(reader.alphabet)), len(reader.alphabet))
        model.kinds = nn.Embedding(1 + len(reader.alphabet.marks), settings.width)
        nn.init.normal_(model.kinds.weight, std=0.05)
    table = space.tower.bert.embeddings.word_embeddings.weight
    model.start_from(table.detach().numpy()[: len(reader.alphabet)])
    return model


# %%
def kinds_of(source: Tensor) -> Tensor:
    """Of each token, the mark in front of it, from 1; 0 where there is none. (B, S) -> (B, S)."""
    first = reader.alphabet.text
    place = torch.arange(source.shape[1], device=source.device).expand_as(source)
    last = torch.where(source >= first, place, 0).cummax(1).values
    return (source.gather(1, last) - first + 1).clamp_min(0)


def read(model: Seq2Seq, source: Tensor) -> tuple[Tensor, Tensor]:
    """States of a prompt's tokens, and where there are any. Shape: (B, S) -> (B, S, D), (B, S)."""
    source = source.to(model.kinds.weight.device)
    mask = source != PAD
    mask[:, 0] = True  # an empty prompt still has a place to look at
    table, encoder = model.model.model.shared, model.model.model.encoder
    inputs = table(source) + model.kinds(kinds_of(source))
    states = encoder(inputs_embeds=inputs, attention_mask=mask.long())
    return states.last_hidden_state, mask


def logits_of(model: Seq2Seq, states: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Logits of each token of a query. Shape: target (B, L) -> (B, L, V)."""
    hidden, mask = states
    before = F.pad(target[:, :-1], (1, 0), value=END)  # the end token starts it
    before = before.to(hidden.device)
    out = model.model(
        encoder_outputs=(hidden,), attention_mask=mask.long(), decoder_input_ids=before,
        use_cache=False,
    )  # fmt: skip
    logits: Tensor = out.logits
    return logits


# %%
def log_chance(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probability of each query, the sum over its tokens. Shape: (B, L, V), (B, L) -> (B,)."""
    target = target.to(logits.device)
    chosen = logits.log_softmax(-1).gather(2, target[..., None])[..., 0]
    return torch.where(target == PAD, 0.0, chosen).sum(1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of a token. Shape: (B, L, V), (B, L) -> scalar."""
    wanted = target.flatten().to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=PAD)


# %%
class Writer(StepwiseBart):
    """Decoding word by word, of prompts that were read with their kinds."""

    def __init__(self, model: Seq2Seq, source: Tensor) -> None:
        super().__init__(model.model)
        hidden, mask = read(model, source)
        self._now, self._mask, self._own = 0, mask[:, None, None], {}
        flat = hidden.flatten(0, 1)
        self._query = [
            query.keys_and_values(flat, len(source)) for _, query, _ in self._decoder
        ]


# %%
@torch.no_grad()
def written(model: Seq2Seq, source: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The likeliest queries by beam search, and their log-probabilities, best first.

    Shape: (B, S) -> (B, width, L), (B, width).
    """
    bart, count, size = Writer(model, source), len(source), len(reader.alphabet)
    tokens, parents = torch.full((count, 1), END, device=bart.device), None
    score, done = torch.zeros_like(tokens, dtype=torch.float), tokens != END
    found = tokens.new_empty(count, 1, 0)
    writable = reader.writable.to(bart.device)
    rest = torch.arange(size, device=bart.device) != END
    for place in range(settings.query_words + 1):
        logits = bart.step(tokens, parents).view(count, -1, size)
        chances = logits.masked_fill(~writable, -torch.inf).log_softmax(-1)
        if place == settings.query_words:  # no room for more than the end
            chances[..., rest] = -1e9
        chances = chances.masked_fill(done[..., None], -torch.inf)
        chances[..., PAD] = torch.where(done, 0.0, -torch.inf)
        score, best = (score[..., None] + chances).flatten(1).topk(width)
        rows, tokens = best // size, best % size
        first = torch.arange(count, device=bart.device)[:, None] * done.shape[1]
        parents = (rows + first).flatten()
        done = done.gather(1, rows) | (tokens == END)
        kept = found.gather(1, rows[..., None].expand(-1, -1, place))
        found = torch.cat([kept, tokens[..., None]], 2)
        if done.all():
            break
    return found, score


# %%
@torch.no_grad()
def rollout(model: Seq2Seq, source: Tensor) -> Tensor:
    """One query for each prompt, drawn word by word, with its end. Shape: (B, S) -> (B, L)."""
    bart = Writer(model, source)
    tokens, parents = torch.full((len(source), 1), END, device=bart.device), None
    found, done = [], tokens[:, 0] != END
    writable = reader.writable.to(bart.device)
    for place in range(settings.query_words + 1):
        logits = bart.step(tokens, parents).masked_fill(~writable, -torch.inf)
        drawn = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        if place == settings.query_words:
            drawn = torch.full_like(drawn, END)
        drawn = torch.where(done, PAD, drawn)
        done = done | (drawn == END)
        found.append(drawn)
        tokens = drawn[:, None]
        parents = torch.arange(len(source), device=bart.device)
        if done.all():
            break
    return torch.stack(found, 1)


# %%
@dataclass(frozen=True, eq=False)
class Table:
    """Training rows: prompts, what was clicked, and prompts under which nothing may be shown."""

    prompts: list[Prompt]
    targets: list[tuple[int, ...]]  # with END
    refused: list[Prompt]
    views: np.ndarray  # of the prompts


def target_of(query: str) -> tuple[int, ...]:
    """What is to be written for a query."""
    return (*reader.tokens(query, settings.query_words), END)


@cache
def table_of(style: Style, reject: bool = True) -> Table:
    """Views after the tower's, with a click or a reviewer's refusal."""
    log, end = corpus.log, early(corpus.log)
    late, query = np.arange(end, len(log.video)), corpus.clicked(log)
    refused = corpus.videos.reviewed[log.video[late]] & reject
    clicks = late[(query[late] >= 0) & ~refused]
    none = late[refused][: len(clicks) // 4]
    prompts = [prompts_of(log, rows, style, end) for rows in (clicks, none)]
    targets = [target_of(corpus.queries[q]) for q in query[clicks]]
    return Table(prompts[0], targets, prompts[1], clicks)


def batches_of(table: Table, size: int, draw_seed: int) -> Batches:
    """Numbers of rows, and of as many refused ones."""
    rows = {"row": torch.arange(len(table.prompts))}
    pools = {"refused": torch.arange(len(table.refused))} if table.refused else {}
    return Batches(rows, min(size, len(table.prompts)), draw_seed, pools)


# %%
def inserted(prompt: Prompt, query: Sequence[int], place: int) -> Prompt:
    """A prompt with a query between its entries, behind `place` of them."""
    return [*prompt[:place], (reader.insert, *query), *prompt[place:]]


def place_in(prompt: Prompt, how: str, random: np.random.Generator) -> int:
    """Where a query is inserted: anywhere, or always at the end."""
    return int(random.integers(0, len(prompt) + 1)) if how == "random" else len(prompt)


def hinted(table: Table, row: int, random: np.random.Generator) -> Prompt:
    """The prompt of a training row with a hint at a random place: the target, or another query."""
    query, prompt = table.targets[row][:-1], table.prompts[row]
    if random.random() >= settings.hint_right:
        near = corpus.log.candidates[table.views[row]]
        other = corpus.queries[near[random.integers(len(near))]]
        query = target_of(other)[:-1]
    return inserted(prompt, query, place_in(prompt, "random", random))


# %%
class Sft(Module):
    """Stage 1: what was clicked, or the rejection, is likely."""

    def __init__(
        self,
        model: Seq2Seq,
        table: Table,
        style: Style,
        draw_seed: int,
        hints: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.table, self.style, self.hints = model, table, style, hints
        self.random = np.random.default_rng(derive_seed(draw_seed, "places"))

    def rows(self, batch: dict[str, Tensor], most: int) -> tuple[Tensor, Tensor]:
        """Sources and targets, clicked ones first; the last ones are refused."""
        refused = batch.get("refused", torch.zeros(0, dtype=torch.long))
        refused = refused[: settings.refusals]
        clicked = batch["row"][: most - len(refused)].tolist()
        prompts = [
            hinted(self.table, row, self.random)
            if self.random.random() < self.hints
            else self.table.prompts[row]
            for row in clicked
        ]
        prompts += [self.table.refused[row] for row in refused.tolist()]
        targets = [self.table.targets[row] for row in clicked]
        targets += [(reader.reject, END)] * len(refused)
        whole = self.style.whole or self.hints > 0
        return sources(prompts, whole), torch.from_numpy(padded(targets))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy."""
        source, target = self.rows(batch, settings.batch_size)
        return cross_entropy(
            logits_of(self.model, read(self.model, source), target), target
        )


# %%
def train(
    module: Module, batches: Batches, steps: int, rate: float, draw_seed: int
) -> History:
    """So many steps; all that is random follows from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(draw_seed, "dropout"))
        optimisation = Optimisation(rate, warmup_steps=min(settings.warmup, steps // 4))
        epochs = 1 + steps // max(1, len(batches))
        fit(module, batches, settings, optimisation, epochs=epochs, max_steps=steps)
    module.eval()
    return module.history


# %%
def supervised(
    model: Seq2Seq,
    style: Style,
    steps: int,
    rate: float,
    draw_seed: int,
    reject: bool = True,
    hints: float = 0.0,
) -> History:
    """More likelihood for a model, in place."""
    table = table_of(style, reject)
    batches = batches_of(table, settings.batch_size, draw_seed)
    module = Sft(model, table, style, draw_seed, hints)
    return train(module, batches, steps, rate, draw_seed)


# %%
RECIPE = 3  # raised whenever kept base models must be trained anew
STAGE_1 = (
    "width",
    "inner",
    "heads",
    "layers",
    "dropout",
    "batch_size",
    "refusals",
    "steps",
    "rate",
    "warmup",
    "hints",
    "hint_right",
    "query_words",
    "budget",
    "early",
    "encoder_steps",
    "encoder_rate",
    "precision",
)  # what it depends on beside its rows


def with_weights(model: Seq2Seq, path: Path) -> Seq2Seq:
    """Read what `base_model` wrote."""
    weights = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model.eval()


# %%
def base_model() -> Seq2Seq:
    """After stage 1: what the other arms start from, trained once for each `init_seed`."""
    model, table = new_model(init_seed), table_of(Style())
    rows = table.prompts, table.targets, table.refused
    digest = sha256(repr((reader.vocabulary.frequent, *rows)).encode()).hexdigest()
    key = {"digest": digest, "init": init_seed, "recipe": RECIPE}
    key |= {name: getattr(settings, name) for name in STAGE_1}

    def build(folder: Path) -> None:
        draw_seed = derive_seed(init_seed, "stage 1")
        recipe = (settings.steps, settings.rate, draw_seed, True, settings.hints)
        rows = supervised(model, Style(), *recipe).rows
        kept = {n: p.detach().half().contiguous() for n, p in model.named_parameters()}
        save_file(kept, folder / "weights.safetensors")
        (folder / "history.json").write_text(json.dumps(rows), encoding="utf-8")

    folder = cached("onebar", key, build)
    HISTORIES["base"] = History(
        json.loads((folder / "history.json").read_text("utf-8"))
    )
    return with_weights(model, folder / "weights.safetensors")


# %%
HISTORIES, MODELS, LISTS = {}, {}, {}  # of this run, by arm

# %% tags=["page-only"]
table = table_of(Style())
lengths = [sum(map(len, prompt)) for prompt in table.prompts]
print(f"{len(table.prompts):,} clicked and {len(table.refused):,} refused prompts")
print(f"tokens of a prompt: {np.mean(lengths):.0f} on average, {max(lengths)} at most")
few = sources(table.prompts[:2])
model = new_model(0).eval()
queries, chances = written(model, few, settings.k)
again = padded([[t for t in row if t] for row in queries[0].tolist()])
states = read(model, few[:1].expand(len(again), -1))
with torch.no_grad():
    logits = logits_of(model, states, torch.from_numpy(again))
    logits = logits.masked_fill(~reader.writable, -torch.inf)
gap = (log_chance(logits, torch.from_numpy(again)) - chances[0]).abs().max()
record.check("a beam's score is its log-probability", bool(gap < 1e-3), f"{gap:.0e}")
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, beams as scored")

# %% [markdown]
# ## Step 5: stage 2, lists of behaviour
#
# A query near a view has a *level*: (1) this viewer clicked it and looked at products, (2) clicked it, (3) others clicked it under this video and looked, (4) others clicked it, (5) it was shown, not clicked, (6) retrieved, not shown. Lower numbers should be likelier. Such lists are noisy; a
# *monotone filter* keeps one query a level, the one with the highest click rate, and then drops each whose rate is above that of the last one kept. Only views with a click get a list. Rates and the clicks of others come from the whole log, the view's own click included in rates. That is no leak: no prompt has them, and no test view is in them.


# %%
class Past:
    """How often queries were shown and clicked, under each video and author, and in all."""

    def __init__(self, views: Views, clicked: np.ndarray) -> None:
        self.by_author: dict[str, Counter] = {}
        self.shown: Counter = Counter()
        self.clicks: Counter = Counter()
        self.engaged: Counter = Counter()
        self.under: dict[int, set[int]] = {}
        bars = views.candidates[:, : len(TURNS)].tolist()
        rows = zip(
            views.video.tolist(),
            bars,
            clicked.tolist(),
            views.engaged.tolist(),
            strict=True,
        )
        for video, bar, query, engaged in rows:
            self.shown.update([*((video, q) for q in bar), *bar])
            if query >= 0:
                self.clicks.update([(video, query), query])
                self.engaged[video, query] += engaged
                self.under.setdefault(video, set()).add(query)
                author = corpus.videos.author[video]
                self.by_author.setdefault(author, Counter())[query] += 1
        self.usual = max(1, int((clicked >= 0).sum())) / max(1, 3 * len(clicked))

    def rate(self, video: int, query: int) -> float:
        """Click rate of a query under a video, drawn to its rate in all, and that to the mean."""
        all_over = (self.clicks[query] + 4 * self.usual) / (self.shown[query] + 4)
        pair = video, query
        return (self.clicks[pair] + 4 * all_over) / (self.shown[pair] + 4)


# %%
@cache
def past(start: int = 0, end: int = 0) -> Past:
    """The past of a span of the log's views; of all of them by default."""
    log, end = corpus.log, end or len(corpus.log.video)
    part = Views(
        *(getattr(log, name)[start:end] for name in Views.__dataclass_fields__)
    )
    return Past(part, corpus.clicked(log)[start:end])


# %%
def levels_of(
    bar: Sequence[int], unseen: Sequence[int], own: int, engaged: bool,
    others: dict[int, bool],
) -> dict[int, int]:  # fmt: skip
    """The level of every query near a view, 1 the strongest.

    Args:
        bar: what was shown; unseen: what was retrieved besides.
        own: the clicked query, -1 for none; engaged: it was followed by a look at products.
        others: queries that others clicked under the video; whether anybody looked on.
    """
    levels = dict.fromkeys(unseen, 6) | dict.fromkeys(bar, 5)
    levels |= {query: 3 if looked else 4 for query, looked in others.items()}
    if own >= 0:
        levels[own] = 1 if engaged else 2
    return levels


def monotone(levels: dict[int, int], rates: dict[int, float]) -> list[int]:
    """One query a level, the highest rate first, without those whose rate breaks the order."""
    best: dict[int, int] = {}
    for query, level in sorted(levels.items()):
        if level not in best or rates[query] > rates[best[level]]:
            best[level] = query
    kept: list[int] = []
    for level in sorted(best):
        if not kept or rates[best[level]] <= rates[kept[-1]]:
            kept.append(best[level])
    return kept


# %% tags=["page-only", "nbval-check-output"]
some = levels_of(
    [10, 11, 12], [13, 14], own=11, engaged=True, others={11: True, 20: False}
)
print(dict(sorted(some.items())))
print(monotone(some, {10: 0.1, 11: 0.3, 12: 0.2, 13: 0.05, 14: 0.4, 20: 0.35}))

# %% [markdown]
# In the example 20 and 14 are dropped, whose rates are above that of the last query kept.
#
# Every clicked query in a list learns to beat all that follow, measured by how much likelier each became than it was after stage 1:
#
# $$r_i = \ell_\theta(y_i) - \ell_0(y_i), \qquad
# L_{\text{list}} = \sum_{j:\, b(y_j) \le 4,\ j < n} \Bigl[ \log\Bigl(1 + \sum_{i > j} e^{\frac{\beta}{h}(r_i - r_j)}\Bigr) - \lambda_{\text{sft}}\, \ell_\theta(y_j) \Bigr].$$ (eq-04-list)
#
# The first term is the negative log-probability that $y_j$ is drawn first among itself and its successors (Plackett and Luce) with scores $\frac{\beta}{h} r$: a ranking likelihood that stops where clicks do. A step reads `triggers` lists; the code adds cross entropy of `refusals` refused prompts.


# %%
def list_loss(
    now: Tensor,
    before: Tensor,
    clicked: Tensor,
    there: Tensor,
    scale: float,
    weight: float,
) -> Tensor:
    """The loss of equation (list), summed over a list and averaged over lists.

    Args:
        now, before: log-probabilities of the candidates, best first.
        clicked: levels 1 to 4. there: candidates, not padding.
        scale: beta / h. weight: of the likelihood.

    Shape: all (B, N) -> scalar.
    """
    gain = scale * (now - before)
    gain = gain.masked_fill(~there, -torch.inf)
    suffix = gain.flip(1).logcumsumexp(1).flip(1)  # of itself and all that follow
    last = there.sum(1, keepdim=True) - 1
    place = torch.arange(now.shape[1], device=now.device)
    winner = clicked & there & (place < last)
    terms = torch.where(winner, suffix - gain, 0.0)
    terms = terms - weight * torch.where(winner, now, 0.0)
    return terms.sum(1).mean()


# %%
@cache
def lists_of(
    style: Style,
) -> tuple[list[Prompt], list[list[tuple[int, ...]]], list[list[bool]]]:
    """Prompts, candidates best first, and which of them were clicked; of views after the tower's."""
    log, table, history = corpus.log, table_of(style), past()
    clicked, found = corpus.clicked(log), ([], [], [])
    for view, prompt in zip(table.views.tolist(), table.prompts, strict=True):
        video, own = int(log.video[view]), int(clicked[view])
        seen = {
            q: history.engaged[video, q] - (q == own and bool(log.engaged[view])) > 0
            for q in history.under[video]
            if history.clicks[video, q] > (q == own)
        }
        near = log.candidates[view].tolist()
        bar, unseen = near[: len(TURNS)], near[len(TURNS) :]
        levels = levels_of(bar, unseen, own, bool(log.engaged[view]), seen)
        kept = monotone(levels, {q: history.rate(video, q) for q in levels})
        if len(kept) > 1 and levels[kept[0]] <= 4:
            found[0].append(prompt)
            found[1].append([target_of(corpus.queries[q]) for q in kept])
            found[2].append([levels[q] <= 4 for q in kept])
    return found


# %%
class Lists(Sft):
    """Stage 2: clicked queries gain on those behind them; refused prompts stay refused."""

    def __init__(
        self, model: Seq2Seq, table: Table, style: Style, draw_seed: int
    ) -> None:
        super().__init__(model, table, style, draw_seed)
        self.reference = [copy.deepcopy(model).eval()]  # in a list: not trained
        self.lists = lists_of(style)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Equation (list), and cross entropy of a few refusals."""
        rows = batch["row"].tolist()
        prompts, candidates, clicked = (
            [part[row] for row in rows] for part in self.lists
        )
        width = max(map(len, candidates))
        filled = [own + [(END,)] * (width - len(own)) for own in candidates]
        target = torch.from_numpy(padded([query for own in filled for query in own]))
        marks = [own + [False] * (width - len(own)) for own in clicked]
        there = [[n < len(own) for n in range(width)] for own in candidates]
        source = sources(prompts, self.style.whole)
        with torch.no_grad():
            reference = self.reference[0].to(self.device)
            before = self.chances(reference, source, target, width)
        now = self.chances(self.model, source, target, width)
        scale = settings.beta / settings.heat
        masks = (torch.tensor(part, device=now.device) for part in (marks, there))
        total = list_loss(now, before, *masks, scale, settings.list_sft)
        if "refused" not in batch:
            return total
        source, target = self.rows(batch | {"row": batch["row"][:0]}, settings.refusals)
        again = logits_of(self.model, read(self.model, source), target)
        return total + cross_entropy(again, target)

    @staticmethod
    def chances(model: Seq2Seq, source: Tensor, target: Tensor, width: int) -> Tensor:
        """Log-probabilities of `width` queries for each prompt. Shape: -> (B, width)."""
        states = tuple(part.repeat_interleave(width, 0) for part in read(model, source))
        return log_chance(logits_of(model, states, target), target).view(-1, width)


# %%
def align(model: Seq2Seq, style: Style, draw_seed: int) -> History:
    """Stage 2, in place."""
    module = Lists(model, table_of(style), style, draw_seed)
    rows = {"row": torch.arange(len(module.lists[0]))}
    pools = {"refused": torch.arange(len(module.table.refused))}
    pools = pools if module.table.refused else {}
    batches = Batches(rows, min(settings.triggers, len(rows["row"])), draw_seed, pools)
    return train(module, batches, settings.list_steps, settings.list_rate, draw_seed)


# %% [markdown]
# ## Step 6: stage 3, what a reader of the answer knows
#
# No model of rewards is trained. The teacher is a frozen copy of the model after stage 2 that *reads the clicked query*, inserted before, between or behind the prompt's entries at random, so that no place gives it away. The student reads the prompt as it is served, and writes. On its words
# both say what comes next:
#
# $$s_x^+ = s_x \oplus_{\text{rand}} y^+, \qquad \hat y \sim p_\theta(\cdot \mid s_x), \qquad
# p = \operatorname{softmax}(z),\ q = \operatorname{softmax}(z^+ / \tau),$$ (eq-04-teacher)
#
# $$L = L_{\text{SFT}} + \tau^2 \bigl[ \lambda_F\, \mathrm{KL}(q \Vert p) + \lambda_R\, \mathrm{KL}(p \Vert q) \bigr] - \lambda_E\, \operatorname{Ent}(p).$$ (eq-04-distil)
#
# $L_{\text{SFT}}$ is that of stage 1, refusals included, on `distil_batch` rows. The divergence $\mathrm{KL}(q \Vert p) = \sum q \log (q / p)$, 0 where both agree, is *forward* with the teacher in front and *reverse* with the student in front (exercise 3). The entropy $\operatorname{Ent}$ is to be *large*, against a collapse onto one query. The paper adds R-Drop and an adversarial step, left out here.
#
# *What can be learnt from this teacher?* With the forward divergence alone, the best student is the teacher's average over what was clicked under such a prompt, $\mathbb{E}[q \mid s_x]$. A teacher that copies averages to the chance of each click, which likelihood teaches too. A gain has to come from a teacher that spreads some chance
# over queries close to the clicked one, or from places that only the student's own writing leads to. The arm `off_policy` takes the second away, `same_prompt` the told query.
#
# *What does $\tau$ divide?* Here, as in the re-implementation, the teacher's logits alone. Then both divergences are zero only for a student whose logits are the teacher's over $\tau$: it is drawn to a *flatter* teacher even where that one knows no more. In distillation $\tau$ usually divides both, and $\tau^2$ makes up for
# gradients that shrink by as much. The arm `tau_both` is that reading; $\operatorname{Ent}(p)$ is without $\tau$ in either.


# %%
def divergences(
    teacher: Tensor, student: Tensor, there: Tensor, tau: float, own_tau: float = 1.0
) -> dict[str, Tensor]:
    """Forward and reverse divergence, and the entropy of what the student writes, nats a token.

    The caller leaves out tokens that nobody can write.

    Args:
        tau, own_tau: what the teacher's and the student's logits are divided by in divergences.

    Shape: teacher, student (B, L, V) logits, there (B, L) bool -> scalars.
    """
    told = (teacher / tau).log_softmax(-1)
    own, served = (student / own_tau).log_softmax(-1), student.log_softmax(-1)
    terms = {
        "forward": told.exp() * (told - own),
        "reverse": own.exp() * (own - told),
        "entropy": -served.exp() * served,
    }
    return {name: term.sum(-1)[there].mean() for name, term in terms.items()}


# %%
@dataclass(frozen=True)
class Plan:
    """What an arm does after stage 1, and how its prompts are made."""

    lists: bool = True  # stage 2; else likelihood for as many steps
    distil: str = "own"  # whose text: "own" or "clicked"; "" for likelihood instead
    insert: str = (
        "random"  # or "last"; "" for a teacher that reads what the student reads
    )
    softened: str = ""  # what tau divides, if other than in the settings
    forward: float = 1.0  # factors of the settings' weights
    reverse: float = 1.0
    entropy: float = 1.0
    rewards: bool = False  # stage 3 maximises a model of clicks
    longer: bool = False  # more steps of likelihood, as many as take the stages' time
    scratch: bool = False  # stage 1 alone, from the start
    style: Style = Style()
    reject: bool = True


# %%
class Distil(Sft):
    """Stage 3."""

    def __init__(
        self, model: Seq2Seq, table: Table, plan: Plan, draw_seed: int
    ) -> None:
        super().__init__(model, table, plan.style, draw_seed)
        self.plan = plan
        self.teacher = [copy.deepcopy(model).eval()]

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy of the clicked query, and equation (distil) on the student's own."""
        source, target = self.rows(batch, settings.distil_batch)
        states = read(self.model, source)
        total = cross_entropy(logits_of(self.model, states, target), target)
        own = {"sft": total.detach()}
        count = len(source) - min(settings.refusals, len(batch.get("refused", ())))
        rows = batch["row"][:count].tolist()
        text = target[:count]
        if self.plan.distil == "own":
            text = sampled(self.model, source[:count])
        with torch.no_grad():
            guide = self.teacher[0].to(self.device)
            told = logits_of(guide, read(guide, augmented(self, rows)), text)
        found = logits_of(self.model, (states[0][:count], states[1][:count]), text)
        plan, square = self.plan, settings.tau**2
        both = (plan.softened or settings.softened) == "both"
        parts = divergences(
            told[..., reader.writable], found[..., reader.writable],
            (text != PAD).to(told.device), settings.tau, settings.tau if both else 1.0,
        )  # fmt: skip
        total = total + square * settings.forward * plan.forward * parts["forward"]
        total = total + square * settings.reverse * plan.reverse * parts["reverse"]
        total = total - settings.entropy * plan.entropy * parts["entropy"]
        return {"loss": total} | own | {n: p.detach() for n, p in parts.items()}


# %%
def sampled(model: Seq2Seq, source: Tensor) -> Tensor:
    """What a student in training writes, without dropout. Shape: (B, S) -> (B, L)."""
    model.eval()
    text = rollout(model, source)
    model.train()
    return text


def augmented(training: Distil, rows: Sequence[int]) -> Tensor:
    """The teacher's prompts of training rows. Shape: -> (B, S)."""
    table, how = training.table, training.plan.insert
    prompts = [table.prompts[row] for row in rows]
    if how:
        places = [place_in(prompt, how, training.random) for prompt in prompts]
        queries = [table.targets[row][:-1] for row in rows]
        prompts = list(map(inserted, prompts, queries, places))
    return sources(prompts, whole=True)


# %%
def distil(model: Seq2Seq, plan: Plan, draw_seed: int) -> History:
    """Stage 3, in place."""
    table = table_of(plan.style)
    batches = batches_of(table, settings.distil_batch, draw_seed)
    module = Distil(model, table, plan, draw_seed)
    return train(
        module, batches, settings.distil_steps, settings.distil_rate, draw_seed
    )


# %% tags=["page-only"]
guide, text = copy.deepcopy(model), rollout(model, few)
told = [inserted(p, table.targets[n][:-1], 1) for n, p in enumerate(table.prompts[:2])]
apart = {}
with torch.no_grad():
    own = logits_of(model, read(model, few), text)
    for label, source in (("same", few), ("told", sources(told, whole=True))):
        said = logits_of(guide, read(guide, source), text)
        for tau in (1.0, settings.tau):
            parts = divergences(said, own, text != PAD, tau)
            apart[label, tau] = float(parts["forward"])
for (label, tau), value in apart.items():
    print(f"teacher that reads the {label:4s}, tau {tau:.0f}: forward {value:.1e}")
same, other, flat = (
    apart[key] for key in (("same", 1.0), ("told", 1.0), ("same", settings.tau))
)
record.check("a teacher that reads the same says the same", same < 1e-6, f"{same:.0e}")
record.check("one that was told says something else", other > 1e-6, f"{other:.0e}")
record.check("tau alone sets the two apart", flat > 1e-6, f"{flat:.0e}")
for place in range(3):
    entries = inserted([(2, 3), (4,)], (9,), place)
    print(["query" if e[0] == reader.insert else "entry" for e in entries])

# %% [markdown]
# Is the teacher better at all? `teacher_hr@8` measures that before stage 3: without a gap to what the model serves there is nothing to distil.
#
# A student that learns to copy from its prompt shows in `copied`, the share of its queries
# that stand word for word in the prompt. Anchors are often right, so some copying is healthy: the yardstick is the arm `sft`.
#
# ## Step 7: rivals
#
# **A model of rewards.** A model of clicks learns from all that bars showed. In the arm `reward`, stage 3 maximises what it says of sampled queries (each counts by its *advantage*, how far it lies above the mean of its group of four), beside the likelihood of the clicked query. What the model says is a *proxy* of clicks, hacked where it
# rises and true clicks do not. The area under its ROC curve on later views (`auc`) says how good it is: a poor one is easily hacked, and says little about good ones.


# %%
class Clicks(nn.Module):
    """Chance of a click from bags of tokens of a video and a query."""

    def __init__(self, size: int, width: int = 32) -> None:
        super().__init__()
        make = {"padding_idx": PAD, "mode": "mean"}
        self.video, self.query = (
            nn.EmbeddingBag(size, width, **make) for _ in range(2)
        )
        self.alone = nn.EmbeddingBag(size, 1, **make)
        for table in self.children():
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, video: Tensor, query: Tensor) -> Tensor:
        """Logits. Shape: (B, S), (B, L) -> (B,)."""
        return (self.video(video) * self.query(query)).sum(1) + self.alone(query)[:, 0]


# %%
class ClickFit(Module):
    """Clicked or not, of everything that was shown."""

    def __init__(self, model: Clicks, videos: Tensor, queries: Tensor) -> None:
        super().__init__()
        self.model, self.videos, self.queries = model, videos, queries

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of clicks."""
        video, query = batch["video"], batch["query"]
        logits = self.model(at(self.videos, video), at(self.queries, query))
        return F.binary_cross_entropy_with_logits(logits, batch["clicked"])


@cache
def token_tables() -> tuple[Tensor, Tensor]:
    """Tokens of all videos, none by its number, and of all queries. Shape: (V, S), (Q, L)."""
    none = np.zeros(len(corpus.videos.title), bool)
    return video_ids(none), query_ids(corpus.queries)


@cache
def model_of_clicks() -> Clicks:
    """Trained on every query that a bar of the log showed."""
    log, shown = corpus.log, len(TURNS)
    query = log.candidates[:, :shown].ravel()
    clicked = (np.arange(shown) == log.clicked[:, None]).ravel()
    video = np.repeat(log.video, shown)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(init_seed, "clicks"))
        model = Clicks(len(reader.alphabet))
    columns = {"video": video, "query": query, "clicked": clicked.astype(np.float32)}
    rows = {name: torch.from_numpy(values) for name, values in columns.items()}
    batches = Batches(rows, min(512, len(query)), derive_seed(init_seed, "clicks"))
    module = ClickFit(model, *token_tables())
    train(module, batches, settings.click_steps, 1e-2, init_seed)
    return model


# %%
class Rewarded(Sft):
    """The rival of stage 3: sampled queries are worth what the model of clicks says."""

    def __init__(
        self, model: Seq2Seq, table: Table, plan: Plan, draw_seed: int
    ) -> None:
        super().__init__(model, table, plan.style, draw_seed)
        self.judge = [model_of_clicks()]
        self.videos = token_tables()[0]

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Likelihood, and a policy gradient within groups; `reward` is the proxy's mean."""
        source, target = self.rows(batch, settings.distil_batch)
        logits = logits_of(self.model, read(self.model, source), target)
        likelihood = cross_entropy(logits, target)
        rows = batch["row"][: settings.distil_batch // settings.group].tolist()
        source = sources([self.table.prompts[row] for row in rows])
        source = source.repeat_interleave(settings.group, 0)
        text = sampled(self.model, source)
        reward = self.worth(rows, text)
        groups = reward.view(-1, settings.group)
        spread = groups.std(1, keepdim=True) + 1e-4
        advantage = ((groups - groups.mean(1, keepdim=True)) / spread).flatten()
        logits = logits_of(self.model, read(self.model, source), text)
        logits = logits.masked_fill(~reader.writable.to(logits.device), -1e9)
        chance = log_chance(logits, text) / (text != PAD).sum(1)
        total = likelihood - (advantage * chance).mean()
        return {"loss": total, "sft": likelihood.detach(), "reward": reward.mean()}

    def worth(self, rows: Sequence[int], text: Tensor) -> Tensor:
        """The proxy of written queries, a group for each row. Shape: (B * G, L) -> (B * G,)."""
        video = torch.from_numpy(corpus.log.video[self.table.views[rows]])
        seen = self.videos[video.repeat_interleave(settings.group)]
        bag = text.masked_fill(text == END, PAD).cpu()
        with torch.no_grad():
            return self.judge[0](seen, bag).sigmoid().to(text.device)


# %%
def rewarded(model: Seq2Seq, plan: Plan, draw_seed: int) -> History:
    """The rival's stage 3, in place."""
    table = table_of(plan.style)
    batches = batches_of(table, settings.distil_batch, draw_seed)
    module = Rewarded(model, table, plan, draw_seed)
    return train(
        module, batches, settings.distil_steps, settings.distil_rate, draw_seed
    )


# %% [markdown]
# **The cascade.** It retrieves the queries with the highest click rate under the video *and*, so that a new video has some, those nearest to it *and* those clicked most often under the author's videos. A logistic model of clicks ranks them by eight `features`. It learns from the log's last quarter. All that was retrieved goes through the {term}`gate` (step 8), in its order. A filter refuses videos that look like those which reviewers refused. A query that nobody clicked does not exist for it. `cached` retrieves without neighbours and author: what was clicked under the video, or nothing.


# %%
def features(
    video: np.ndarray, user: np.ndarray, query: np.ndarray, now: int
) -> np.ndarray:
    """What the cascade's ranker sees when so many views have passed. Shape: (N,) each -> (N, 8).

    The tower's part of the log has features of its own: a cosine knows its clicks already.
    """
    near = (space.videos[video] * space.queries[query]).sum(1)
    places, vectors = typed()
    means = {}
    for person in set(user.tolist()):
        own = [places[text] for text in sorted(set(corpus.searches[person]))]
        means[person] = vectors[own].mean(0) if own else np.zeros(vectors.shape[1])
    liked = [means[u] @ space.queries[q] for u, q in zip(user, query, strict=True)]
    pairs = list(zip(video.tolist(), query.tolist(), strict=True))
    first, later = past(0, early(corpus.log)), past(early(corpus.log), now)
    rate = [np.log(later.rate(*pair)) for pair in pairs]
    counts = [
        [np.log1p(part.clicks[pair]) for pair in pairs] for part in (first, later)
    ]
    every = [np.log1p(later.clicks[q]) for q in query.tolist()]
    authors, whole = corpus.videos.author, past(0, now).by_author
    by_author = [np.log1p(whole.get(authors[v], Counter())[q]) for v, q in pairs]
    length = [len(corpus.queries[q].split()) for q in query.tolist()]
    return np.stack([near, liked, rate, *counts, every, by_author, length], 1)


# %%
@dataclass(frozen=True, eq=False)
class Ranker:
    """A logistic model over standardised features."""

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray  # the last one is the constant

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Logits. Shape: (N, F) -> (N,)."""
        return ((rows - self.mean) / self.spread) @ self.weights[:-1] + self.weights[-1]


def logistic(rows: np.ndarray, labels: np.ndarray, ridge: float) -> Ranker:
    """Newton's method for logistic regression. Shape: (N, F), (N,)."""
    mean, spread = rows.mean(0), rows.std(0) + 1e-9
    inputs = np.concatenate([(rows - mean) / spread, np.ones((len(rows), 1))], 1)
    weights, penalty = np.zeros(inputs.shape[1]), ridge * np.eye(inputs.shape[1])
    penalty[-1, -1] = 1e-6
    for _ in range(12):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (labels - chance) - penalty @ weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + penalty
        weights = weights + np.linalg.solve(curve, slope)
    return Ranker(mean, spread, weights)


# %%
@cache
def ranker() -> Ranker:
    """The cascade's: what the last quarter of the log showed, by what was known before it."""
    log, shown = corpus.log, len(TURNS)
    now = round(0.75 * len(log.video))
    rows = np.repeat(np.arange(now, len(log.video)), shown)
    query = log.candidates[now:, :shown].ravel()
    clicked = (np.arange(shown) == log.clicked[now:, None]).ravel()
    inputs = features(log.video[rows], log.user[rows], query, now)
    return logistic(inputs, clicked.astype(float), settings.ridge)


# %%
@cache
def refuser() -> Ranker:
    """A model of reviewers' refusals by the video's vector, from videos that were reviewed."""
    met = ~corpus.videos.new
    return logistic(space.videos[met], corpus.videos.reviewed[met].astype(float), 10.0)


def retrieved(video: np.ndarray, cached_only: bool) -> list[list[int]]:
    """Queries clicked under each video, nearest to it, and clicked under its author's videos."""
    now, history = len(corpus.log.video), past()
    near, _ = nearest(pool_until(now), settings.neighbours)
    found = []
    for row in video.tolist():
        known = sorted(
            history.under.get(row, ()), key=lambda q: (-history.rate(row, q), q)
        )
        others: list[int] = []
        if not cached_only:
            habits = history.by_author.get(corpus.videos.author[row], Counter())
            often = sorted(habits, key=lambda q: (-habits[q], q))
            others = [*near[row].tolist(), *often[:8]]
        found.append(list(dict.fromkeys([*known[:16], *others])))
    return found


# %%
def cascade(
    views: Views, rows: np.ndarray, cached_only: bool = False
) -> tuple[list[list[str]], np.ndarray]:
    """All that is retrieved for each view in order, and how surely the video is refused, 0 to 1."""
    video = views.video[rows]
    pools = retrieved(video, cached_only)
    owner = np.repeat(np.arange(len(pools)), [len(own) for own in pools])
    query = np.array([q for own in pools for q in own], int)
    now, users = len(corpus.log.video), views.user[rows]
    lists: list[list[str]] = [[] for _ in rows]
    if len(query):
        scores = ranker()(features(video[owner], users[owner], query, now))
        for place in np.lexsort((query, -scores, owner)):
            lists[owner[place]].append(spelled(corpus.queries[query[place]]))
    return lists, 1 / (1 + np.exp(-refuser()(space.videos[video])))


def spelled(query: str) -> str:
    """A query as the generator would write it."""
    return " ".join(words(query))


# %% [markdown]
# **Pictures.** In the arm `frames` a small encoder, trained on the catalogue's pictures, writes the summary from two frames of a video, one of each thing. So it names the second thing, but no values of the first.


# %%
def drawn(rows: np.ndarray, draw_seed: int) -> np.ndarray:
    """A small picture of each product. Shape: (N,) -> (N, 3, 24, 24) in 0 to 1."""
    from minisearch.data.icons import icon_search_terms
    from minisearch.worlds.icon_drawing import HUES, Appearance, Painter

    goods, painter = corpus.world.goods, Painter(32, 24)
    random = np.random.default_rng(draw_seed)
    names = sorted(icon_search_terms().names)
    names = [names[n] for n in np.random.default_rng(0).permutation(len(names))]
    pictures = []
    for row in rows.tolist():
        family = int(goods.values[row, COLOUR]) % len(HUES)
        sprite = painter.sprite(names[goods.leaf[row]], family, Appearance(0, 0, 1))
        pictures.append(np.asarray(painter.crop(sprite, random)[0].convert("RGB")))
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255


COLOUR = 1  # the place of colour among a product's attributes


class Frames(Module):
    """Pictures to categories."""

    def __init__(self, pictures: Tensor, leaves: int) -> None:
        super().__init__()
        self.pictures = pictures
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 36, leaves),
        )  # fmt: skip

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the category."""
        pictures = at(self.pictures, batch["row"])
        return F.cross_entropy(self.net(pictures), batch["leaf"])


# %%
def named_frames(net: nn.Module, rows: np.ndarray, draw_seed: int) -> np.ndarray:
    """The category that each product's picture is taken for. Shape: (N,) -> (N,)."""
    with torch.no_grad():
        return net(torch.from_numpy(drawn(rows, draw_seed))).argmax(1).numpy()


@cache
def seen_summaries() -> list[str]:
    """Summaries from two frames of each video; where nothing is for sale, the typed words stay.

    Raises:
        InputError: for real talks, of which we have no frames.
    """
    if corpus.world is None:
        raise InputError("arm", "frames", "simulated videos", "leave out data.")
    goods, truth = corpus.world.goods, corpus.world.truth
    shown = np.random.default_rng(0).integers(0, len(goods.leaf), settings.pictures)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(init_seed, "frames"))
        module = Frames(torch.from_numpy(drawn(shown, 1)), len(goods.leaf_name))
    rows = {
        "row": torch.arange(len(shown)),
        "leaf": torch.from_numpy(goods.leaf[shown]),
    }
    batches = Batches(rows, min(64, len(shown)), init_seed)
    train(module, batches, settings.frame_steps, 3e-3, init_seed)
    found, some = list(corpus.videos.summary), np.flatnonzero(truth.item >= 0)
    main, other = (
        goods.leaf_name[named_frames(module.net, things[some], 2 + n)]
        for n, things in enumerate((truth.item, truth.aside))
    )
    for video, *names in zip(some.tolist(), main.tolist(), other.tolist(), strict=True):
        found[video] = " ".join(names)
    return found


# %% [markdown]
# ## Step 8: how it is judged
#
# *Requests* are later views with a click: is the clicked query among the eight? That is a hard measure, as another word for the same thing is a miss, and a narrow one: only what the bar of that time showed could be clicked. Who knows
# what the viewer wants, and says so in other words (the arm `oracle`), seldom hits it. So HR@8 says how well clicks under the *old* bar are foretold.
#
# *Bars* are later views of all kinds: a bar shows up to three queries in turn, and the simulated world says how often it would be clicked. A *bad case* is a bar whose first query names no thing of the video, or any bar under a video that sells nothing.


# %%
def edits(one: str, two: str) -> int:
    """Letters to insert, delete or exchange."""
    row = list(range(len(two) + 1))
    for number, letter in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(two, 1):
            now = min(row[place] + 1, row[place - 1] + 1, before + (letter != other))
            before, row[place] = row[place], now
    return row[-1]


def bleu(query: str, wanted: str) -> float:
    """Sentence BLEU of words: n-grams up to four or the shorter text's length.

    From pairs on, one is added to hits and counts, as in ORANGE.
    """
    said, right = query.split(), wanted.split()
    if not said or not right:
        return 0.0
    logs = []
    for n in range(1, min(4, len(said), len(right)) + 1):
        mine, theirs = (
            Counter(zip(*(text[i:] for i in range(n)), strict=False))
            for text in (said, right)
        )
        hits, extra = (mine & theirs).total(), int(n > 1)
        if hits + extra == 0:
            return 0.0
        logs.append(np.log((hits + extra) / (mine.total() + extra)))
    short = min(0.0, 1 - len(right) / len(said))
    return float(np.exp(short + np.mean(logs)))


# %%
def scores_of(
    lists: Sequence[Sequence[str]], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """How lists of queries meet the clicked one. Shape: Q lists -> (Q,) each."""
    found: dict[str, list[float]] = {
        n: [] for n in ("hr@8", "mrr@8", "ed_hr@8", "bleu@8")
    }
    for queries, right in zip(lists, wanted, strict=True):
        hit = list(queries).index(right) + 1 if right in queries else 0
        close = hit > 0 or any(
            abs(len(q) - len(right)) < 3 and edits(q, right) < 3 for q in queries if q
        )
        best = max((bleu(q, right) for q in queries), default=0.0)
        values = (float(hit > 0), 1 / hit if hit else 0.0, float(close), best)
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def per_view(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A ratio of sums as a mean of one value a view, whose error is that of the ratio.

    That is the delta method: the values of (a_i - R b_i) / mean(b), moved to the mean R.

    Shape: (S,), (S,) -> (S,).
    """
    if not below.sum():
        return np.zeros(len(above))
    ratio = above.sum() / below.sum()
    return np.asarray(ratio + (above - ratio * below) / below.mean())


# %% tags=["page-only", "nbval-check-output"]
print(edits("mini tent", "mini tents"), round(bleu("red mini tent", "mini tent"), 3))
print(per_view(np.array([1.0, 0.0, 2.0]), np.array([1.0, 1.0, 2.0])).round(3))

# %% [markdown]
# *One gate*, fixed before any arm runs, decides what bars may show. In a shop it would be a relevance model; ours looks into the truth (the query names a thing of the video, and nothing that is wrong about it) and is wrong for one pair in fifty, always the same ones. A gate learnt from the log would favour what was
# retrieved by it (trials on the card). Gate and rules (no word twice, six words at most) are the same for the cascade and for every generator. Beyond them, a generator shows nothing where it gives `reject` an even chance or more, and the cascade where its filter does.
#
# A gate that knows the truth forgives much: from a whole list it takes what fits. So `open_clicks` and `open_bad` count clicks and bad cases over all views without gate, rules and refusals, as if the first three of every list were shown.


# %%
def click_logits(video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """What the model of clicks says of texts under videos. Shape: (N,), N texts -> (N,)."""
    judge = model_of_clicks()
    with torch.no_grad():
        return judge(token_tables()[0][video], query_ids(texts)).numpy()


def passes(video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Whether the gate lets texts pass under videos. Shape: (N,), N texts -> (N,) bool.

    They have to name a thing of the video and nothing that is wrong about it.
    """
    truth, nothing = corpus.world.truth, np.full(len(texts), -1)
    right = np.zeros(len(texts), bool)
    for thing in (truth.item, truth.aside):
        right |= corpus.world.judge.fit(texts, thing[video], nothing)["plain"]
    pairs = [f"{row} {text}" for row, text in zip(video.tolist(), texts, strict=True)]
    luck = np.array([crc32(pair.encode()) % 10_000 for pair in pairs]) / 10_000
    return right ^ (luck < settings.gate)


def bars_of(
    lists: Sequence[Sequence[str]], video: np.ndarray, refused: np.ndarray
) -> list[list[str]]:
    """What bars show: at most three queries of each list that pass rules and gate, or nothing."""
    pairs = [
        (row, text)
        for row, own in enumerate(lists)
        for text in own
        if text and len(set(text.split())) == len(text.split()) <= 6
    ]
    shown: list[list[str]] = [[] for _ in lists]
    if not pairs:
        return shown
    rows, texts = zip(*pairs, strict=True)
    passed = passes(video[list(rows)], texts)
    for row, text, good in zip(rows, texts, passed, strict=True):
        if good and not refused[row] and len(shown[row]) < len(TURNS):
            shown[row].append(text)
    return shown


# %%
@dataclass(frozen=True, eq=False)
class Asked:
    """Test views of one kind."""

    rows: np.ndarray
    views: Views
    wanted: list[str]  # clicked queries, of requests

    @property
    def video(self) -> np.ndarray:
        """Shape: (Q,)."""
        return self.views.video[self.rows]

    @property
    def late(self) -> np.ndarray:
        """Whether the video is new. Shape: (Q,)."""
        return corpus.videos.new[self.video]


def asked(kind: str, count: int) -> Asked:
    """Requests: test views with a click. Bars: test views of any kind."""
    clicked = corpus.clicked(corpus.test)
    random = np.random.default_rng(derive_seed(world_seed, kind))
    rows = (
        np.flatnonzero(clicked >= 0) if kind == "requests" else np.arange(len(clicked))
    )
    rows = np.sort(random.permutation(rows)[:count])
    wanted = [spelled(corpus.queries[q]) for q in clicked[rows]]
    return Asked(rows, corpus.test, wanted if kind == "requests" else [])


requests = asked("requests", settings.requests)
bars = asked("bars", settings.bars if corpus.world else 0)


# %%
def write_lists(
    model: Seq2Seq, prompts: Sequence[Prompt], whole: bool = False
) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """Eight queries for each prompt, the chance of `reject`, and the entropy of the first word.

    Shape: Q prompts -> Q lists, (Q,) each.
    """
    lists, refused, spread = [], [], []
    for start in range(0, len(prompts), 128):
        source = sources(prompts[start : start + 128], whole)
        tokens, _ = written(model, source, settings.k)
        lists += [[reader.text(query) for query in row] for row in tokens.tolist()]
        with torch.no_grad():
            states = read(model, source)
            first = logits_of(model, states, torch.full((len(source), 1), END))[:, 0]
            chances = first[:, reader.writable].log_softmax(-1)
        place = int(reader.writable[: reader.reject].sum())
        refused.append(chances[:, place].exp())
        spread.append(-(chances.exp() * chances).sum(1))
    found = {
        "refused": torch.cat(refused).numpy(),
        "entropy": torch.cat(spread).numpy(),
    }
    return [[q for q in row if q] for row in lists], found


# %%
def copied(lists: Sequence[Sequence[str]], prompts: Sequence[Prompt]) -> np.ndarray:
    """Share of a list's queries that are an entry of the prompt, word for word. -> (Q,)."""
    values = []
    for own, prompt in zip(lists, prompts, strict=True):
        there = {reader.text(entry[1:]) for entry in prompt}
        values.append(np.mean([query in there for query in own]) if own else 0.0)
    return np.array(values)


def distinct(lists: Sequence[Sequence[str]]) -> np.ndarray:
    """Share of different words among all words of a list. Shape: -> (Q,)."""
    bags = [[word for query in own for word in query.split()] for own in lists]
    return np.array([len(set(bag)) / max(1, len(bag)) for bag in bags])


def brought(shown: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """What bars with these queries would bring in the views of the online test."""
    wants = corpus.world.test_wants
    wants = Wants(wants.item[bars.rows], wants.value[bars.rows])
    return outcomes(corpus.world, wants, bars.video, shown)


def online(
    lists: Sequence[Sequence[str]], refused: np.ndarray
) -> dict[str, np.ndarray]:
    """What bars bring, a view; and clicks and bad cases if nothing were held back (`open_`)."""
    found = brought(bars_of(lists, bars.video, refused >= 0.5))
    free = brought([own[: len(TURNS)] for own in lists])
    found |= {f"open_{name}": free[name] for name in ("clicks", "bad")}
    return found | {"ctr": per_view(found["clicks"], found["exposed"])}


# %%
def covered(
    lists: Sequence[Sequence[str]], bad: np.ndarray, refused: np.ndarray, share: float
) -> tuple[float, float]:
    """Views with a bar, and bad cases among them, if only `refused` holds any back.

    Args:
        bad: of each list, whether it would be a bad case.
        share: of views that are let through, the least refused first.

    Shape: Q lists, (Q,), (Q,).
    """
    some = np.array([len(own) > 0 for own in lists])
    order = np.argsort(refused, kind="stable")[: round(share * len(refused))]
    shown = some[order].sum()
    return float(shown / len(lists)), float(bad[order].sum() / max(1, shown))


def coverage(
    name: str, lists: list[list[str]], bad: np.ndarray, refused: np.ndarray
) -> None:
    """Record the curve of bad cases against coverage."""
    for share in (0.6, 0.7, 0.8, 0.9, 1.0):
        shown, wrong = covered(lists, bad, refused, share)
        record.metric(f"{name}/shown/at {share}", shown)
        record.metric(f"{name}/bad/at {share}", wrong)


# %%
def report(
    name: str,
    offline: dict[str, np.ndarray],
    lists: list[list[str]],
    refused: np.ndarray,
) -> None:
    """Record means, by new and old videos, and one row a view; requests first, then bars."""
    parts = [(requests, offline)]
    if len(bars.rows):
        parts.append((bars, online(lists, refused)))
        coverage(name, lists, parts[1][1]["open_bad"], refused)
    for views, found in parts:
        record_means(name, views, found)
    record_rows(name, parts)


# %%
def record_means(name: str, views: Asked, found: dict[str, np.ndarray]) -> None:
    """Means over views, and over those of new and of old videos."""
    for metric, values in found.items():
        record.metric(f"{name}/{metric}", float(values.mean()))
        for label, chosen in (("new", views.late), ("old", ~views.late)):
            part = values[chosen]
            if metric == "ctr":
                exposed = found["exposed"][chosen].sum()
                part = found["clicks"][chosen].sum(keepdims=True) / max(exposed, 1e-9)
            if len(part):
                record.metric(f"{name}/{metric}/{label}", float(part.mean()))


def record_rows(name: str, parts: list[tuple[Asked, dict[str, np.ndarray]]]) -> None:
    """One row a view; views of one video are a cluster."""
    sizes = [len(views.rows) for views, _ in parts]
    rows = {
        "query_row": np.concatenate(
            [10_000_000 * n + views.rows for n, (views, _) in enumerate(parts)]
        ),
        "cluster": np.concatenate(
            [1_000_000 * n + views.video for n, (views, _) in enumerate(parts)]
        ),
    }
    for number, (_, found) in enumerate(parts):
        for metric, values in found.items():
            column = np.full(sum(sizes), np.nan)
            start = sum(sizes[:number])
            column[start : start + len(values)] = values
            rows[metric] = column
    record.rows(name, rows)


# %%
def measure(name: str, model: Seq2Seq, style: Style) -> None:
    """Ask a generator for all test views; anchors are those of the whole log."""
    end = len(corpus.log.video)
    prompts = prompts_of(requests.views, requests.rows, style, end)
    lists, more = write_lists(model, prompts, style.whole)
    offline = scores_of(lists, requests.wanted) | {"entropy_first": more["entropy"]}
    offline |= {"copied": copied(lists, prompts), "distinct": distinct(lists)}
    offline["tokens"] = np.array(
        [float((row != PAD).sum()) for row in sources(prompts, style.whole)]
    )
    served, refused = [], np.zeros(0)
    if len(bars.rows):
        shown = prompts_of(bars.views, bars.rows, style, end)
        served, found = write_lists(model, shown, style.whole)
        refused = found["refused"]
    report(name, offline, served, refused)
    LISTS[name] = lists, served, refused
    MODELS[name] = model


def informed(name: str, model: Seq2Seq, label: str, how: str) -> None:
    """HR@8 of a model that reads the clicked query as well, and how often it writes just that first."""
    end, random = len(corpus.log.video), np.random.default_rng(0)
    prompts = prompts_of(requests.views, requests.rows, Style(), end)
    if how:
        queries = [target_of(query)[:-1] for query in requests.wanted]
        places = [place_in(prompt, how, random) for prompt in prompts]
        prompts = list(map(inserted, prompts, queries, places))
    lists, _ = write_lists(model, prompts, whole=True)
    found = scores_of(lists, requests.wanted)
    record.metric(f"{name}/{label}_hr@8", float(found["hr@8"].mean()))
    first = [
        own[:1] == [right] for own, right in zip(lists, requests.wanted, strict=True)
    ]
    record.metric(f"{name}/{label}_first", float(np.mean(first)))


# %%
def start_apart(model: Seq2Seq, how: str) -> float:
    """Forward divergence where stage 3 starts: the teacher is still the student.

    Args:
        how: where its prompt has the clicked query; "": nowhere, so that tau alone sets them apart.
    """
    table, random = table_of(Style()), np.random.default_rng(0)
    prompts = table.prompts[:256]
    source = sources(prompts)
    if how:
        places = [place_in(prompt, how, random) for prompt in prompts]
        queries = [target[:-1] for target in table.targets[:256]]
        prompts = list(map(inserted, prompts, queries, places))
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "apart"))
        text = rollout(model, source)
    with torch.no_grad():
        own, told = (
            logits_of(model, read(model, s), text)[..., reader.writable]
            for s in (source, sources(prompts, whole=True))
        )
    there = (text != PAD).to(own.device)
    student = settings.tau if settings.softened == "both" else 1.0
    return float(divergences(told, own, there, settings.tau, student)["forward"])


# %%
def latency(name: str, model: Seq2Seq, style: Style) -> None:
    """Processor seconds of one request at a time, from prompt to eight queries."""
    rows = requests.rows[: settings.timed]
    prompts, spent = prompts_of(requests.views, rows, style, len(corpus.log.video)), []
    for prompt in [*prompts[:3], *prompts]:
        began = time.process_time()
        written(model, sources([prompt], style.whole), settings.k)
        spent.append(time.process_time() - began)
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        record.metric(f"seconds/{name}/{label}", float(np.quantile(spent[3:], share)))


# %%
def listed(name: str, views: Asked) -> tuple[list[list[str]], np.ndarray]:
    """What an arm without a generator offers, and how surely it refuses."""
    lists, refused = cascade(views.views, views.rows, cached_only=name == "cached")
    if name == "ann":
        near, _ = nearest(pool_until(len(corpus.log.video)), settings.k)
        lists = [[spelled(corpus.queries[q]) for q in near[v]] for v in views.video]
    if name == "oracle":
        lists = [known_query(row) for row in views.rows]
        refused = (corpus.world.truth.kind[views.video] != 0).astype(float)
    return lists, refused


def reference(name: str) -> None:
    """Arms without a generator: cascades, nearest neighbours, and one who knows the viewer."""
    (lists, _), (served, refused) = listed(name, requests), listed(name, bars)
    first = [own[: settings.k] for own in lists]
    report(name, scores_of(first, requests.wanted), served, refused)
    LISTS[name] = lists, served, refused


def known_query(row: int) -> list[str]:
    """The queries that just say what a viewer wants, the usual word first."""
    world, wants = corpus.world, corpus.world.test_wants
    if wants.item[row] < 0:
        return []
    noun = world.goods.values[wants.item[row], -1]
    pairs = [
        f"{value} {name}"
        for value in world.words.forms[wants.value[row]]
        for name in world.words.forms[noun]
    ]
    of = np.full(len(pairs), wants.item[row]), np.full(len(pairs), wants.value[row])
    order = np.argsort(-world.judge.fit(pairs, *of)["logit"], kind="stable")
    return [spelled(pairs[n]) for n in order][: settings.k]


# %% [markdown]
# ## Train and watch
#
# | arm | what it does after stage 1 |
# |---|---|
# | `start` | nothing; also asked with the clicked query in its prompt |
# | `sft`; `sft_longer` | likelihood for as many steps as stages 2 and 3; for about as much time |
# | `onebar` | stage 2, then stage 3 |
# | `lists_only` | stage 2, then likelihood |
# | `off_policy` | distils on the clicked query, not on the student's |
# | `same_prompt` | a teacher that reads what the student reads |
# | `forward_only`, `reverse_only`, `no_entropy` | one term less |
# | `fixed` | the clicked query always at the prompt's end (a mild test: no served prompt holds its mark) |
# | `tau_both`; `tau_teacher` | $\tau$ divides the student's logits too; the teacher's alone, as in `onebar` |
# | `reward` | stage 3 maximises the model of clicks, beside likelihood |
# | `compressed`, `verbose`, `verbose_cut` | stage 1 alone, without hints, from their own start |
# | `no_T`, `no_M`, `no_A`, `no_H`, `frames`, `no_reject` | like `compressed`, with a field less, pictures for summaries, no refusals |
# | `cascade`, `cached`, `ann`, `oracle` | no generator: two cascades, the nearest queries, one who knows the viewer |


# %%
CHANGES: dict[str, dict] = {
    "onebar": {},
    "sft": {"lists": False, "distil": ""},
    "sft_longer": {"lists": False, "distil": "", "longer": True},
    "lists_only": {"distil": ""},
    "off_policy": {"distil": "clicked"},
    "forward_only": {"reverse": 0.0},
    "reverse_only": {"forward": 0.0},
    "no_entropy": {"entropy": 0.0},
    "fixed": {"insert": "last"},
    "same_prompt": {"insert": ""},
    "tau_both": {"softened": "both"},
    "tau_teacher": {"softened": "teacher"},
    "reward": {"rewards": True},
}
STYLES: dict[str, dict] = {
    "compressed": {},
    "verbose": {"verbose": True, "whole": True},
    "verbose_cut": {"verbose": True},
    "no_T": {"fields": "MAH"},
    "no_M": {"fields": "TAH"},
    "no_A": {"fields": "TMH"},
    "no_H": {"fields": "TMA"},
    "frames": {"frames": True},
    "no_reject": {},
}
REFERENCES = ("cascade", "cached", "ann", "oracle")
WATCHED = ("start", "sft", "onebar", "reward")  # what the model of clicks says of them
MAIN = ["cascade", "start", "sft", "onebar"]


def plan_of(name: str) -> Plan:
    """What an arm is."""
    if name in CHANGES:
        return Plan(**CHANGES[name])
    if name in STYLES:
        style = Style(**STYLES[name])
        return Plan(scratch=True, style=style, reject=name != "no_reject")
    raise one_of("arm", name, ["start", *CHANGES, *STYLES, *REFERENCES])


# %%
def trained(name: str, plan: Plan) -> Seq2Seq:
    """The arm's model; arms with one seed share their luck."""
    draw_seed, style = derive_seed(seed, "arm"), plan.style
    if plan.scratch:
        model = new_model(draw_seed)
        more = (settings.prompt_steps, settings.rate, draw_seed, plan.reject)
        HISTORIES[name] = supervised(model, style, *more)
        return model
    model, spent, began = base_model(), 0.0, time.process_time()
    if plan.lists:
        HISTORIES[f"{name}, lists"] = align(model, style, draw_seed)
        spent = time.process_time() - began
        if name == "onebar":
            told = {"before": "", "teacher": "random", "teacher_fixed": "last"}
            for label, how in told.items():
                informed(name, model, label, how)
            for label, how in (("same", ""), ("told", "random")):
                record.metric(f"{name}/forward_{label}", start_apart(model, how))
    began = time.process_time()
    HISTORIES[name] = last_stage(model, plan, draw_seed)
    spent += time.process_time() - began
    record.metric(f"seconds/{name}/training", spent)
    return model


def last_stage(model: Seq2Seq, plan: Plan, draw_seed: int) -> History:
    """Stage 3 or what takes its place, in place; without lists, likelihood for their steps too."""
    if plan.rewards:
        return rewarded(model, plan, draw_seed)
    if plan.distil:
        return distil(model, plan, draw_seed)
    steps = settings.distil_steps + (0 if plan.lists else settings.list_steps)
    steps = round(settings.longer * steps) if plan.longer else steps
    return supervised(model, plan.style, steps, settings.distil_rate, draw_seed)


# %%
def watch(name: str, lists: Sequence[Sequence[str]]) -> None:
    """What the model of clicks says of first queries, what is true of them, and its AUC."""
    rows = [row for row, own in enumerate(lists) if own]
    logits = click_logits(bars.video[rows], [lists[row][0] for row in rows])
    truth = brought([own[:1] for own in lists])["clicks"]
    record.metric(f"{name}/proxy", float((1 / (1 + np.exp(-logits))).mean()))
    record.metric(f"{name}/proxy_true", float(truth[rows].mean()))
    views, shown = corpus.test, len(TURNS)
    video, query = np.repeat(views.video, shown), views.candidates[:, :shown].ravel()
    clicked = (np.arange(shown) == views.clicked[:, None]).ravel()
    logits = click_logits(video, [corpus.queries[q] for q in query])
    record.metric(f"{name}/auc", roc_auc(logits, clicked))


# %%
def run_arm(name: str) -> None:
    """Train an arm, if it is to be trained, and measure it."""
    if name in REFERENCES:
        if corpus.world is None:
            remedy = "leave out data."
            raise InputError("arm", f"{name} with talks", "simulated videos", remedy)
        reference(name)
        return
    plan = Plan() if name == "start" else plan_of(name)
    model = base_model() if name == "start" else trained(name, plan)
    model.eval()
    measure(name, model, plan.style)
    if name == "start":
        informed(name, model, "teacher", "random")
        informed(name, model, "teacher_fixed", "last")
    if name in STYLES:
        latency(name, model, plan.style)
    if name in WATCHED and len(bars.rows):
        watch(name, LISTS[name][1])


# %% tags=["train"]
results = MAIN if arms == "main" else arms.split(",")
if corpus.world is None and arms == "main":
    results = ["start", "sft", "onebar"]
for name in results:
    with record.phase(f"arm {name}"):
        run_arm(name)

# %% [markdown]
# The cross entropy of stage 1 falls steeply, then slowly. In stage 3 the forward divergence up to the dotted line is the temperature's work, not the told query's; a student follows by growing flatter: its
# entropy rises. Entropy that falls to zero would be a collapse, eight versions of one query.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Left: cross entropy of stage 1, mean of 20 steps. Right: stage 3, both divergences from the teacher and the student's entropy on its own words, mean of 20 steps. Dotted: the forward divergence with which a teacher starts that was told nothing, made by the temperature alone.", "name": "fig-04-loss"}, "image": {"alt": "Two panels over optimiser steps. Left one line, the loss of stage 1. Right three lines, forward and reverse divergence and entropy, and a dotted level line for the start of a teacher that was told nothing."}}
from minisearch.plots import COLORS, figure

fig, (left, right) = figure(width=7, height=3.0, columns=2, layout="constrained")


def smooth(
    history: History, column: str, width: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """A running mean. Shape: -> (n,), (n,)."""
    at, values = history.column(column)
    width = max(1, min(width, len(values)))
    return at[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


if "base" in HISTORIES:
    left.plot(*smooth(HISTORIES["base"], "loss"), color=COLORS[0])
for number, column in enumerate(("forward", "reverse", "entropy")):
    if "onebar" in HISTORIES:
        right.plot(
            *smooth(HISTORIES["onebar"], column), label=column, color=COLORS[number]
        )
if "onebar" in HISTORIES:
    level = record.metrics["onebar/forward_same"]
    right.axhline(level, linestyle=":", color="0.4", label="forward, told nothing")
left.set(
    xlabel="step of stage 1", ylabel="cross entropy (nats a token)", ylim=(0, None)
)
right.set(xlabel="step of stage 3", ylabel="nats a token", ylim=(0, None))
right.legend()
record.figure(fig, "loss", "Losses of stages 1 and 3.")

# %% [markdown]
# ## Results
#
# ### On this page
#
# First the precondition: HR@8 of the model after stage 2 as it serves (`before_hr@8`) and as the teacher (`teacher_hr@8`; `teacher_fixed_hr@8` with the query at the end); `teacher_first` is how often the teacher writes that query first. `forward_told` and `forward_same` are the forward divergence at the start of stage 3, with the told query and without. Then all arms that ran here. `distinct` is the share of different words in a list; as eight beams differ by construction, a collapse shows sooner in `entropy_first`, that of the first word in nats. `exposed`, `clicks`, `orders` and `money` are expected, a view.

# %% tags=["page-only", "hide-input"]
import pandas as pd

from minisearch import pages
from minisearch.cards import load_cells

TEACHER = (
    "before_hr@8", "teacher_hr@8", "teacher_fixed_hr@8", "teacher_first",
    "forward_told", "forward_same",
)  # fmt: skip
pages.score_table(record.metrics, ["start", "onebar"], TEACHER)

# %% tags=["page-only", "hide-input"]
METRICS = (
    "hr@8", "mrr@8", "ed_hr@8", "bleu@8", "distinct", "copied", "entropy_first",
    "exposed", "clicks", "ctr", "orders", "money", "open_clicks", "open_bad",
)  # fmt: skip
pages.score_table(record.metrics, results, METRICS)

# %% tags=["page-only", "hide-input"]
by_age = {}
for arm in results:
    for metric in ("hr@8", "exposed", "clicks", "open_bad"):
        for label in ("old", "new"):
            value = record.metrics.get(f"{arm}/{metric}/{label}")
            by_age.setdefault(arm, {})[f"{metric}, {label}"] = value
pd.DataFrame(by_age).T.astype(float).round(3)

# %% [markdown]
# The first queries written for three requests:

# %% tags=["page-only", "hide-input"]
for number in range(min(3, len(requests.rows))):
    print(f"title    {corpus.videos.title[requests.video[number]]}")
    print(f"clicked  {requests.wanted[number]}")
    for arm in results:
        print(f"{arm:8s} {', '.join(LISTS[arm][0][number][:4])}")
    print()

# %% [markdown]
# ### Showing nothing
#
# Without the gate: let through the 60 to 100 % of views least likely to be refused, and count bad cases among the bars shown. At equal coverage a lower curve is better; refusals that know nothing give a flat one.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Bad cases among the bars shown, against the share of views with a bar, as more videos are let through. Each line lets the videos through in the order of its own chance of a rejection.", "name": "fig-04-cover"}, "image": {"alt": "One line an arm: bad cases among the bars shown, over the share of views with a bar."}}
fig, ax = figure(height=3.2)
for number, arm in enumerate(results):
    points = [
        [record.metrics.get(f"{arm}/{what}/at {share}") for what in ("shown", "bad")]
        for share in (0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    if all(None not in point for point in points):
        ax.plot(*zip(*points, strict=True), "o-", label=arm, color=COLORS[number])
ax.set(
    xlabel="share of views with a bar", ylabel="bad cases among them", ylim=(0, None)
)
if bars.rows.size:
    ax.legend()
record.figure(fig, "cover", "Coverage against bad cases.")

# %% [markdown]
# ### In the online experiment
#
# First all users get the cascade's bars (A/A), then half of them OneBar's (A/B). Then what no shop can do: everybody gets both, with the same luck (twins). Ratios are compared by the delta method over users. An interval reads `up` or `down` if it leaves
# out zero, else `equivalent` if it lies within 3 %, else `open`; `void` where the halves differed in the first period already.

# %% tags=["page-only", "hide-input"]
from minisearch.worlds.online import Ratio, ratio_metric, twin_metric


def happened(found: dict[str, np.ndarray], luck: np.ndarray) -> dict[str, tuple]:
    """What is counted in a period, with luck: sums above and below of each metric, a view."""
    clicks = (luck[0] < found["clicks"]).astype(float)
    orders = clicks * (luck[1] < found["orders"] / np.maximum(found["clicks"], 1e-9))
    views, shown = np.ones(len(clicks)), found["exposed"]
    return {
        "exposures a view": (shown, views), "clicks a view": (clicks, views),
        "CTR": (clicks, shown), "orders a view": (orders, views),
    }  # fmt: skip


# %% tags=["page-only", "hide-input"]
def experiment(
    control: dict[str, np.ndarray], treatment: dict[str, np.ndarray], draw_seed: int
) -> dict[str, dict[str, Ratio]]:
    """Half of the users get the treatment; then all get both, as twins with the same luck."""
    user, count = corpus.test.user[bars.rows], len(corpus.searches)
    random = np.random.default_rng(derive_seed(draw_seed, "split"))
    treated = random.permutation(count) < count // 2
    luck = random.random((2, 2, len(user)))
    mixed = {n: np.where(treated[user], treatment[n], control[n]) for n in control}
    periods = {"A/A": happened(control, luck[0]), "A/B": happened(mixed, luck[1])}
    found = {
        period: {
            name: ratio_metric(*pair, user, treated) for name, pair in part.items()
        }
        for period, part in periods.items()
    }
    old, new = (happened(part, luck[1]) for part in (control, treatment))
    found["twins"] = {name: twin_metric(old[name], new[name], user) for name in old}
    return found


# %% tags=["page-only", "hide-input"]
outcome, within = [], 0.03
both = [online(*LISTS[arm][1:]) for arm in ("cascade", "onebar") if arm in LISTS]
if len(both) == 2 and all(part["exposed"].sum() > 9 for part in both):
    tests = experiment(*both, seed)
    for period, ratios in tests.items():
        for metric, ratio in ratios.items():
            before = tests["A/A"][metric] if period == "A/B" else None
            outcome.append(
                {
                    "period": period, "metric": metric,
                    "over the cascade": f"{ratio.lift:+.1%} [{ratio.low:+.1%}, {ratio.high:+.1%}]",
                    "reading": ratio.reading(within, before),
                }
            )  # fmt: skip
pd.DataFrame(outcome)

# %% [markdown]
# So few views give a wide interval. The claims use expected clicks of the same views under both arms, without luck. That CTR is flat is a claim of *equivalence* {cite:p}`schuirmann1987`: "not significantly different" would not show it.
#
# More exposure need not come from writing: *anything* to show under a new video brings it. The paper's cascade lives on caches; ours also takes the nearest queries, and hardly ever has nothing. So exposure is compared with `cached`, and the full cascade is a refuter: if it gains as much, it was not the writing.
#
# ### What a prompt costs

# %% tags=["page-only", "hide-input"]
end = len(corpus.log.video)
for label, style in {
    "short": Style(), "verbose, cut": Style(verbose=True),
    "verbose, whole": Style(verbose=True, whole=True),
    "history alone": Style(fields="H"),
}.items():  # fmt: skip
    some = prompts_of(requests.views, requests.rows[:64], style, end)
    tokens = (sources(some, style.whole) != PAD).sum(1).float()
    print(f"{label:15s} {tokens.mean():5.1f} tokens, {tokens.max():.0f} at most")

# %% [markdown]
# Only the history depends on who watches: a reader that encoded the fields apart could prepare the others before (not built here).
#
# ### What the grid says

# %% tags=["page-only", "hide-input"]
from minisearch.showing import claims_markdown

Markdown(claims_markdown("04_onebar"))

# %% tags=["page-only", "hide-input"]
as_registered = not data and title_noise < 0 and gate < 0
print(pages.live_note("04_onebar", profile, world_seed, record.metrics, as_registered))

# %% tags=["page-only", "hide-input"]
pages.arm_table("04_onebar", METRICS)

# %% [markdown]
# What the model of clicks says of the first query of each list (`proxy`), and how often that is clicked (`proxy_true`):

# %% tags=["page-only", "hide-input"]
pages.arm_table("04_onebar", ("proxy", "proxy_true", "auc"), WATCHED)

# %% [markdown]
# Processor milliseconds are of one request at a time; no claim rests on them.

# %% tags=["page-only", "hide-input"]
logged = [run for run in load_cells("04_onebar") if not run.cell.overrides]


def grid_mean(name: str, factor: float = 1.0) -> float:
    """Mean of a metric over the grid's runs that have it."""
    found = [cell.metrics[name] for cell in logged if name in cell.metrics]
    return factor * float(np.mean(found)) if found else float("nan")


pd.DataFrame(
    {
        arm: {
            "HR@8": grid_mean(f"{arm}/hr@8"), "tokens": grid_mean(f"{arm}/tokens"),
            "ms, middle": grid_mean(f"seconds/{arm}/p50", 1000),
            "ms, slowest 1 %": grid_mean(f"seconds/{arm}/p99", 1000),
        }
        for arm in ("compressed", "verbose_cut", "verbose")
    }
).T.round(3)  # fmt: skip

# %% [markdown]
# And what follows stage 1, in processor seconds: is `sft_longer` given as much as the stages take?

# %% tags=["page-only", "hide-input"]
for arm in ("sft", "sft_longer", "onebar", "reward"):
    print(f"{arm:12s} {grid_mean(f'seconds/{arm}/training'):6.1f} s")

# %% [markdown]
# What are anchors worth where titles are noisier?

# %% tags=["page-only", "hide-input"]
pages.dose_chart(
    "04_onebar", "title_noise", 0.3, ("compressed", "no_A"), "hr@8",
    "chance of each wrong word in a title", "HR@8", "What fields are worth, by noise of titles",
    "Lines of HR@8 against the noise of titles, for all fields, and without anchors.",
)  # fmt: skip

# %% [markdown]
# ### What we take from it
#
# ### Where we deviate, and what was tuned

# %% tags=["page-only", "hide-input"]
pages.deviations_table("04_onebar")

# %% tags=["page-only", "hide-input"]
pages.tuning_table("04_onebar")

# %% [markdown]
# ## Exercises
#
# Each exercise checks itself. For stubs in place of the solutions: `minisearch assignment build 04 --out DIR`.
#
# ### Exercise 1: the list, by hand
#
# Write `candidate_loss`: the first term of the list's loss for *one* clicked candidate, from the scores $\frac{\beta}{h} r$ of a whole list, best first. Predict: by how much does it change if all scores grow by one? If a candidate *in front of* the clicked one gets likelier?

# %% tags=["page-only", "hide-input"]
from minisearch.classroom import check, checks


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch04-list", "locked": false, "schema_version": 3, "solution": true, "task": false}
def candidate_loss(scores: Sequence[float], place: int) -> float:
    """The loss of the candidate at a place (from 0) against those behind it, in nats."""
    ### BEGIN SOLUTION
    behind = np.array(scores[place + 1 :]) - scores[place]
    return float(np.log1p(np.exp(behind).sum()))
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch04-list-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch04-list")
def properties_of_lists(loss):
    yield "two equal candidates", lambda: np.isclose(loss([0.0, 0.0], 0), np.log(2))
    yield "nothing behind it", lambda: np.isclose(loss([1.0, 2.0], 1), 0)
    ### BEGIN HIDDEN TESTS
    yield "all behind it count", lambda: np.isclose(loss([0.0] * 4, 0), np.log(4))
    yield "none before it does", lambda: np.isclose(loss([9.0, 0.0, 0.0], 1), np.log(2))
    yield (
        "only differences count",
        lambda: np.isclose(loss([3.0, 1.0, 2.0], 0), loss([4.0, 2.0, 3.0], 0)),
    )
    yield (
        "a rival behind costs",
        lambda: loss([0.0, 1.0], 0) > 1.3 > loss([0.0, 0.0], 0),
    )
    given = [1.0, 0.0, 2.0]
    yield (
        "the scores stay as they were",
        lambda: [loss(given, 1), given][1] == [1.0, 0.0, 2.0],
    )
    yield (
        "by hand",
        lambda: np.isclose(
            loss([1.0, 0.0, -1.0], 0), np.log(1 + np.exp(-1) + np.exp(-2))
        ),
    )
    ### END HIDDEN TESTS


assert check("ch04-list", candidate_loss)

# %% [markdown]
# Neither changes it: only differences to candidates behind it count.
#
# ### Exercise 2: a silent bug
#
# For the training view of a video, a colleague's `anchors_with_a_bug` takes the queries clicked most often under it. HR@8 in training looks splendid, in the test it is worse than before. What did the prompts hold? Write `anchors_before`: the `k` queries that *others* clicked most often under the
# video in *earlier* views, not of the same moment. Somebody's two clicks count twice; ties go by the alphabet.


# %% tags=["page-only"]
def anchors_with_a_bug(clicks: list[dict], view: dict, k: int) -> list[str]:
    """Each click has a `time`, a `user`, a `video` and a `query`; so has the view's own."""
    counts = Counter(c["query"] for c in clicks if c["video"] == view["video"])
    return [query for query, _ in counts.most_common(k)]


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch04-leak", "locked": false, "schema_version": 3, "solution": true, "task": false}
def anchors_before(clicks: list[dict], view: dict, k: int) -> list[str]:
    """Anchors that know nothing of the view's own click, nor of what came later."""
    ### BEGIN SOLUTION
    counts = Counter(
        c["query"]
        for c in clicks
        if c["video"] == view["video"]
        and c["time"] < view["time"]
        and c["user"] != view["user"]
    )
    return sorted(counts, key=lambda query: (-counts[query], query))[:k]
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch04-leak-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch04-leak")
def properties_of_anchors(of):
    def click(time, user, query, video=1):
        return {"time": time, "user": user, "video": video, "query": query}

    view = click(5, 7, "mini tent")
    yield "its own click is none", lambda: of([view], view, 3) == []
    yield "an earlier one", lambda: of([click(1, 2, "lamp"), view], view, 3) == ["lamp"]
    ### BEGIN HIDDEN TESTS
    lamp, rugs = click(1, 2, "lamp"), [click(1, 3, "rug"), click(2, 4, "rug")]
    late, own = [click(9, n, "lamp") for n in (5, 6)], [click(1, 7, "rug")]
    beds = [click(4, 3, "rug"), click(1, 2, "bed")]
    same = [click(1, 2, "rug"), click(2, 2, "rug")]
    elsewhere = [click(n, n + 9, "lamp", 8) for n in range(1, 4)]
    own_lamps = [click(n, 7, "lamp") for n in (3, 4)]
    first = {
        "not the future": (late, []),
        "not the same moment": ([click(5, 2, "lamp")], []),
        "another video": (elsewhere, []),
        "the same user, earlier": (own, []),
        "its words, by another": ([click(1, 2, "mini tent")], ["mini tent"]),
        "most clicks first": ([lamp, *rugs], ["rug"]),
        "ties by the alphabet": (beds, ["bed"]),
        "clicks, not people": ([*same, click(3, 3, "bed")], ["rug"]),
        "other videos do not lift": ([lamp, *rugs, *elsewhere], ["rug"]),
        "nor what comes late": ([lamp, *rugs, *late], ["rug"]),
        "nor the user's own": ([lamp, *rugs, *own_lamps], ["rug"]),
        "somebody else clicked it too": ([*own, click(2, 2, "rug")], ["rug"]),
    }
    for label, (clicks, wanted) in first.items():
        yield label, lambda c=clicks, w=wanted: of(list(c), view, 1) == w
    yield "no more than k", lambda: of([lamp, *rugs], view, 0) == []
    given = [*rugs, lamp]
    yield "none is changed", lambda: [of(given, view, 1), given][1] == [*rugs, lamp]
    ### END HIDDEN TESTS


assert check("ch04-leak", anchors_before)

# %% [markdown]
# The prompts held the view's own click, and later ones: the answer stood in them, but not in the test's.
#
# ### Exercise 3: predict, then break it
#
# A teacher has two good queries and a bad one: $q = (.5, .5, 0)$, the zero being a millionth. One student covers all three evenly, one both good ones, one sits on a single good one, one has both and a tenth on the bad one. Predict: of the first and the third,
# which does the forward divergence prefer, which the reverse one? And which of the third and the fourth does the reverse one prefer? Then write `both_ways`, and look.


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch04-ways", "locked": false, "schema_version": 3, "solution": true, "task": false}
def both_ways(
    teacher: Sequence[float], student: Sequence[float]
) -> tuple[float, float]:
    """KL(teacher || student) and KL(student || teacher), nats; no probability is 0."""
    ### BEGIN SOLUTION
    told, own = np.asarray(teacher, float), np.asarray(student, float)
    return float((told * np.log(told / own)).sum()), float(
        (own * np.log(own / told)).sum()
    )
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch04-ways-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch04-ways")
def properties_of_ways(ways):
    yield "equal ones", lambda: np.allclose(ways([0.3, 0.7], [0.3, 0.7]), 0)
    ### BEGIN HIDDEN TESTS
    uneven = [0.9, 0.1], [0.5, 0.5]
    hand = 0.9 * np.log(1.8) + 0.1 * np.log(0.2), 0.5 * np.log(5 / 9) + 0.5 * np.log(5)
    yield "by hand", lambda: np.allclose(ways(*uneven), hand)
    yield "turned round", lambda: np.allclose(ways(*uneven[::-1]), hand[::-1])
    yield "never negative", lambda: min(ways([0.2, 0.8], [0.6, 0.4])) > 0
    three, even = ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]), [1 / 3] * 3
    yield "all of three", lambda: np.allclose(ways(*three), 0.2749, atol=1e-4)
    swapped = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    yield "a sum, no mean", lambda: np.allclose(ways(*swapped), 0.1733, atol=1e-4)
    rare = [0.5, 0.5 - 1e-6, 1e-6]
    yield "a rare one", lambda: np.isclose(ways(rare, even)[1], 3.97, atol=0.01)
    ### END HIDDEN TESTS


assert check("ch04-ways", both_ways)

# %% tags=["page-only", "hide-input"]
tiny_chance = 1e-6
told = [0.5, 0.5 - tiny_chance, tiny_chance]
students = {
    "covers everything": [1 / 3] * 3,
    "covers both good": [0.5, 0.5 - 0.01, 0.01],
    "sits on one": [1 - 2 * tiny_chance, tiny_chance, tiny_chance],
    "a tenth on the bad": [0.45, 0.45, 0.1],
}
for label, own in students.items():
    print(
        f"{label:18s} forward {both_ways(told, own)[0]:5.2f}  reverse {both_ways(told, own)[1]:5.2f}"
    )

# %% [markdown]
# The forward divergence punishes the student who dropped a query, and forgives who covers too much. The reverse one punishes who writes what the teacher rejects: a tenth on the bad query costs more than a good one dropped.
#
# ### Exercise 4: three figures that should be two
#
# Write `ctr_lift`, the relative change of clicks per exposure, from those of exposures and clicks; and `base_of`, the CTR before, if the reported change were in percentage *points*. What do the paper's +16.91 %, +18.68 % and +0.19 % give?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch04-ctr", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ctr_lift(exposures: float, clicks: float) -> float:
    """Relative change of clicks per exposure; changes as shares, .1691 for +16.91 %."""
    ### BEGIN SOLUTION
    return (1 + clicks) / (1 + exposures) - 1
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch04-ctr-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch04-ctr")
def properties_of_ctr(lift):
    yield "both rise alike", lambda: np.isclose(lift(0.2, 0.2), 0)
    ### BEGIN HIDDEN TESTS
    yield "clicks alone", lambda: np.isclose(lift(0.0, 0.1), 0.1)
    yield "exposures alone", lambda: np.isclose(lift(0.25, 0.0), -0.2)
    yield "not a difference", lambda: np.isclose(lift(1.0, 1.5), 0.25)
    exact = 0.0151399
    yield "not rounded", lambda: np.isclose(lift(0.1691, 0.1868), exact, rtol=1e-5)
    ### END HIDDEN TESTS


assert check("ch04-ctr", ctr_lift)


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch04-base", "locked": false, "schema_version": 3, "solution": true, "task": false}
def base_of(exposures: float, clicks: float, points: float) -> float:
    """The CTR before, if it changed by so many points (.0019 for 0.19 points)."""
    ### BEGIN SOLUTION
    return points / ctr_lift(exposures, clicks)
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch04-base-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch04-base")
def properties_of_base(base):
    yield (
        "one point of ten per cent more",
        lambda: np.isclose(base(0.0, 0.1, 0.01), 0.1),
    )
    ### BEGIN HIDDEN TESTS
    paper = 0.1691, 0.1868, 0.0019
    yield "the paper's figures", lambda: np.isclose(base(*paper), 0.1255, atol=1e-4)
    yield "exposures alone", lambda: np.isclose(base(0.25, 0.0, -0.02), 0.1)
    ### END HIDDEN TESTS


assert check("ch04-base", base_of)

# %% tags=["page-only", "hide-input"]
print(f"CTR changes by {ctr_lift(0.1691, 0.1868):+.2%}")
print(f"0.19 points would be from a CTR of {base_of(0.1691, 0.1868, 0.0019):.1%}")

# %% [markdown]
# ### Exercise 5: flat, or not known?
#
# Write `verdict_on` for an interval of a relative change and a margin: "flat" if all of it lies within the margin, "changed" if it lies beyond it on one side, else "not known", also if it just touches the margin. Unlike in the online table, a change that is clear and small is flat. Two tests report a change that is "not significant": [-9 %, +8 %] and [-.4 %, +.6 %]. With a margin of 2 %, what do they say?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch04-flat", "locked": false, "schema_version": 3, "solution": true, "task": false}
def verdict_on(low: float, high: float, margin: float) -> str:
    """flat, changed or not known."""
    ### BEGIN SOLUTION
    if -margin < low and high < margin:
        return "flat"
    return "changed" if low > margin or high < -margin else "not known"
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch04-flat-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch04-flat")
def properties_of_verdicts(of):
    yield "a wide interval", lambda: of(-0.09, 0.08, 0.02) == "not known"
    yield "a narrow one", lambda: of(-0.004, 0.006, 0.02) == "flat"
    ### BEGIN HIDDEN TESTS
    yield "significant, and flat all the same", lambda: of(0.002, 0.01, 0.02) == "flat"
    yield "beyond the margin", lambda: of(0.03, 0.05, 0.02) == "changed"
    yield "below it", lambda: of(-0.06, -0.03, 0.02) == "changed"
    yield "across the margin", lambda: of(0.01, 0.05, 0.02) == "not known"
    yield "significant, not beyond", lambda: of(-0.03, -0.01, 0.02) == "not known"
    yield "another margin", lambda: of(-0.03, 0.04, 0.05) == "flat"
    yield "a smaller one", lambda: of(0.01, 0.02, 0.005) == "changed"
    yield "one bound outside", lambda: of(-0.005, 0.03, 0.02) == "not known"
    ### END HIDDEN TESTS


assert check("ch04-flat", verdict_on)

# %% [markdown]
# ## At scale
#
# `small` reads the talks of step 1. They have no clicks, and so no online comparison, no refusal and no history. `full` has the shape of BART-base, not its weights, as its tokens are other ones,
# and prompts of 512 tokens; a log to train it on is not public.

# %% tags=["page-only", "hide-input"]
from transformers import BartForConditionalGeneration

from minisearch.models import describe
from minisearch.models.generative import bart_base_config

full = BarSettings.of("full")
size = describe(lambda: BartForConditionalGeneration(bart_base_config()))
state = size["weight_bytes"] + size["gradient_bytes"] + size["optimiser_bytes"]
steps = full.steps + full.list_steps * 5 + full.distil_steps * 2
tokens = steps * full.batch_size * (full.budget + full.query_words)
hours = 6 * size["parameters"] * tokens / (100e12 / 3) / 3600
print(
    f"{size['parameters'] / 1e6:.0f} M parameters; {state / 1e9:.1f} GB of state a GPU"
)
print(f"{tokens / 1e9:.0f} G tokens, about {hours:.0f} GPU-hours for all stages")

# %% [markdown]
# Hours are six floating-point operations a parameter and token over a third of what a GPU of 100 TFLOP/s could do: an order of magnitude.
#
# ```bash
# python data_scripts/pyvideo.py data/pyvideo
# minisearch run 04 --profile small -p data data/pyvideo
# minisearch run 04 --profile full -p data DIR  # DIR/talks.jsonl, in the same form
# ```
#
# Nobody has run `small` or `full` yet; their columns are configuration.

# %% tags=["page-only", "hide-input"]
pd.DataFrame(BarSettings.table()).set_index("setting")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# :list: bullet
# ```
