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
# # OneSearch-V2: think before training, not before answering
#
# "Anything but zuora", "a surprise for danphavel fans": some people ask a shop for what they want in words that stand in no title.
# A large language model could say what they mean, *face cream, lavender*, but it takes seconds, and a search engine has milliseconds.
# OneSearch-V2 {cite:p}`onesearchv2` lets the large model think beforehand. Its keywords are shown to the retriever in training,
# and the retriever learns to answer as if it had read them. When a customer asks, no keyword is there, and none is needed. A second part
# aligns the retriever with clicks and orders, token by token, without a reward model.
# This chapter builds both, and asks what the student learns from a teacher that reads more, beyond what the same extra data would have taught it.

# %% tags=["page-only", "hide-input"]
from IPython.display import Markdown

from minisearch.showing import card_box

Markdown(card_box("03_onesearch_v2"))

# %% tags=["hide-input"]
import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.func import functional_call

# %% tags=["hide-input"]
from minisearch.beam import Trie, beam_search
from minisearch.data.kuaisearch import KuaiSearch
from minisearch.errors import InputError, one_of
from minisearch.identifiers import ResidualKMeans, ResidualOPQ, quality
from minisearch.lit import Batches, History, Module, Optimisation, fit
from minisearch.metrics import hit_rate_at_k, reciprocal_rank_at_k, relevance_matrix
from minisearch.models.generative import Alphabet, Seq2Seq, toy_bart_config
from minisearch.models.lm import ASSETS
from minisearch.profiles import Settings, derive_seed, dial, quiet, use_threads
from minisearch.recorder import Recorder
from minisearch.records import EMPTY, Ragged
from minisearch.storage import cached
from minisearch.tasks import Collection, recall_task
from minisearch.text import END, PAD, Vocabulary, words
from minisearch.worlds.market import expected_outcomes
from minisearch.worlds.needs import (
    KINDS,
    Judge,
    NeedsConfig,
    NeedsWorld,
    Thinker,
    make_needs,
    meanings,
    product_keywords,
)
from minisearch.worlds.online import experiment
from minisearch.worlds.shop_catalogue import ShopConfig
from minisearch.worlds.stored import open_shop, open_truth

RECIPE = 1  # raised whenever kept models must be trained anew

# %% [markdown]
# ## One request that says nothing
#
# The shop is simulated, as in the chapters before. To its ordinary requests, which name what they want, we add *complex* ones: a dozen
# wordings for each of a set of needs, none of which shares a word with what is wanted. Below, one wording of each kind, what a large model
# would write about it, and a product that the customer had in mind.

# %% tags=["page-only", "hide-input"]
tiny = open_truth(ShopConfig.of("smoke", users=200), 0)
tiny_items = open_shop(ShopConfig.of("smoke", users=200), 0).items
tiny_world = make_needs(tiny, NeedsConfig(10, 4, 400, 100))
tiny_think = Thinker(tiny.goods, meanings(tiny_world, tiny))
tiny_judge = Judge(tiny.goods, tiny_think.meaning, 0.0)
for n, kind in enumerate(KINDS):
    said = tiny_world.forms[4 * n]
    grades = tiny_judge([said] * len(tiny.item_id), np.arange(len(tiny.item_id)))
    title = tiny_items["item_title"][int(grades.argmax())]
    print(
        f"{kind:11s} {said}\n    thought: {', '.join(tiny_think(said))}\n    wanted:  {title}"
    )

# %% [markdown]
# A log teaches what such words mean only as far as people who said them clicked on something. Most wordings are rare, the engine that made the log did not
# understand them either, and so the few clicks are mostly on what happened to be popular. But *every* request that came in can be shown to the
# large model, clicked or not, and all wordings of one need get about the same keywords. That is the opening that the method uses.
#
# ## What the paper claims
#
# OneSearch answers a query by writing the identifier of a product; complex queries are a third of the page views of Kuaishou's mall search, the
# paper says, and 8 % of its conversions. Version 2 adds thoughts, self-distillation and alignment. Rows add up from top to bottom:
#
# | offline, orders | HR@10 | MRR@10 |
# |---|---|---|
# | OneSearch V1 | .2046 | .0985 |
# | + tasks that write keywords | .2094 | .1008 |
# | + self-distillation | .2163 | .1017 |
# | + R-Drop, adversarial step, focal loss | .2214 | .1048 |
# | + GRPO | .2248 | .1106 |
# | + TPMA | .2265 | .1136 |
# | the whole | .2314 | .1151 |
#
# The distilled model without keywords (.2163) is above the undistilled one *with* them (.2139), and writing the keywords before the identifier
# ruins it (.0898). In the online test item CTR rose by 3.98 %, buyers by 2.07 %, most on rare queries and cold products. What the whole
# adds over "+ TPMA" is not said.
#
# :::{admonition} What we could and could not read
# :class: note
# Available to us were the abstract of both versions, the authors' project page with these tables and the method's figure, descriptions of
# their released code, and four reading notes by others. The full text was not. The prompts of the large model, the weight of the product's
# reward beside the position's, group size and learning rate of the alignment are not known to us. The notes contradict each other on the
# adversarial loss; the printed formulas of TPMA contradict the figure and the code in three places (step 6). All code here is ours,
# from the formulas. The paper's figures are context: no verdict compares a toy number with them.
# :::
#
# ## Symbols
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $x_S$, $x_T$ | what the student reads; the same with keywords | `rows.student`, `rows.teacher` |
# | $y = (y_1, \dots, y_L)$ | identifier of a product, $L = 5$ codes | `rows.target` |
# | $z_S$, $z_T$ | logits of student and teacher | `Retriever.forward` |
# | $\tau$, $\alpha$, $\alpha_R$ | temperature; weights of distillation and R-Drop | `settings.temperature`, `plan.alpha`, `plan.rdrop` |
# | $r_{adv}$, $\varepsilon$ | adversarial step in the table of tokens, its length | `plan.fgm` |
# | $o_i$ | one of $G$ sampled identifiers of a request | `rollouts[i]` |
# | $\mathcal T$ | identifiers clicked or ordered for the request | `targets` |
# | $R_{i,l}$, $m_{i,l}$, $g_{i,l}$ | prefix reward, marginal, gate at position $l$ | `position_terms` |
# | $w_{item}$ | weight of the product's own reward | `plan.w_item` |
#
# ## Parameters
#
# In the settings, the four values of a `dial` are those of the profiles smoke, toy, small and full.


# %% tags=["parameters"]
profile: str = "toy"  # smoke | toy | small | full
seed: int = 1000  # training and sampling; the published grid uses other seeds
world_seed: int = 0  # which simulated shop
init_seed: int = 0  # which base model; the first of shop 0 is shipped
arms: str = "main"  # "main", or arms of the card with commas between them
data: str = ""  # folder of KuaiSearch files and thoughts.tsv; empty: the simulated shop
noise: float = -1.0  # share of wrong words in thoughts; -1: the profile's
steps: int = 0  # steps of an arm after the base; 0: the profile's
fresh: bool = False  # train what is shipped anew

# %%
quiet()


@dataclass(frozen=True, kw_only=True)
class WorldSettings(Settings):
    """How large the shop is, and what is asked in it."""

    items: int = dial(300, 2500, 10_000, 0, source="real logs; ours")
    leaves: int = dial(24, 40, 90, 0, source="ours; categories of the shop")
    users: int = dial(200, 1500, 6000, 0, source="ours")
    direct: int = dial(1500, 16_000, 70_000, 0, source="ours; ordinary requests")
    needs: int = dial(10, 120, 400, 0, source="ours; things people have in mind")
    complex: int = dial(600, 16_000, 60_000, 0, source="a third of page views; ours")
    tested: int = dial(200, 5000, 10_000, 0, source="30,000 page views; ours")
    noise: float = dial(0.1, 0.1, 0.1, 0.0, source="ours; wrong words in thoughts")
    drop: float = dial(0.1, 0.1, 0.1, 0.0, source="ours; words left out of thoughts")


# %%
@dataclass(frozen=True, kw_only=True)
class ModelSettings(WorldSettings):
    """Identifiers, model, and the base that all arms start from."""

    coarse: tuple = dial(
        (16, 8, 4), (64, 32, 16), (256, 64, 32), (4096, 1024, 512),
        source="4096-1024-512; ours",
    )  # fmt: skip
    fine: int = dial(4, 16, 64, 256, source="256, twice; ours")
    width: int = dial(32, 64, 256, 768, source="BART-base; ours")
    layers: tuple = dial((1, 1), (1, 2), (3, 3), (6, 6), source="BART-base; ours")
    dropout: float = dial(0.1, 0.1, 0.1, 0.1, source="BART-base")
    query_words: int = dial(8, 8, 16, 32, source="ours; tokens")
    keyword_words: int = dial(12, 12, 16, 32, source="ours; tokens")
    base_steps: int = dial(6, 1500, 20_000, 100_000, source="not published; ours")
    base_rate: float = dial(3e-3, 3e-3, 5e-4, 1e-4, source="1e-4 (release); sweep")
    batch_size: int = dial(8, 64, 128, 512, source="512; ours")
    title_share: float = dial(0.25, 0.25, 0.25, 0.25, source="ours; rows from titles")
    title_rows: int = dial(4, 20, 20, 20, source="ours; a product")
    keyword_rows: float = dial(
        *[2 / 3] * 4, source="ours; of them in the keywords' place"
    )
    blind: float = dial(
        *[0.5] * 4, source="ours; teacher rows of the base without query"
    )


# %%
@dataclass(frozen=True, kw_only=True)
class SearchSettings(ModelSettings):
    """What arms do after the base, and how they are judged."""

    steps: int = dial(4, 500, 5000, 20_000, source="10 epochs (release); ours")
    rate: float = dial(1e-3, 1e-3, 2e-4, 1e-4, source="1e-4 (release); sweep")
    extra: int = dial(4, 48, 96, 256, source="ours; complex requests a step")
    temperature: float = dial(1.0, 1.0, 1.0, 1.0, source="1.0")
    warmup: int = dial(1, 30, 500, 500, source="500 (release); ours")
    rl_steps: int = dial(2, 120, 1000, 5000, source="not published; ours")
    rl_rate: float = dial(3e-4, 3e-4, 1e-5, 1e-5, source="1e-5 (release); sweep")
    prompts: int = dial(4, 32, 64, 256, source="256; ours")
    group: int = dial(4, 8, 8, 4, source="4 (release); ours")
    anchor: float = dial(0.1, 0.1, 0.1, 0.1, source="0.1 (release); weight of CE")
    beam_width: int = dial(10, 50, 100, 512, source="512; ours")
    requests: int = dial(40, 1200, 4000, 20_000, source="30,000 page views; ours")
    straight: int = dial(20, 300, 1000, 10_000, source="ours; ordinary test requests")
    k: int = dial(10, 10, 10, 10, source="10")


# %%
given = {"noise": noise} if noise >= 0 else {}
given |= {"steps": steps} if steps else {}
settings = SearchSettings.of(profile, **given)
use_threads(settings.threads)
record = Recorder.from_environment()

# %% [markdown]
# ## Step 1: requests, clicks, and thoughts
#
# A *need* is one or two senses, each a category and one or two values, and for negations a value that must not be. Each need has a dozen wordings around a name that
# nobody else uses, so that words alone say nothing. The engine that made the log understood every tenth complex request and showed popular
# products to the others. A tenth of the wordings occur in the test alone.
#
# A *thought* is what stands in for the large model: category and value words of every sense (of a negation, two values that may be had instead), with a tenth of the
# words left out and a tenth of the rest replaced by wrong ones. It is a function of the query's text. It never sees the clicked product; what happens when it does is an arm of its own.


# %%
@dataclass(frozen=True, eq=False)
class Shop:
    """A catalogue, its clicks, and what a large model writes about queries.

    Shape: clicks are pairs of a query and a product's row; traffic are all complex requests.
    """

    texts: list[str]  # of each product: title, brand, category
    keywords: list[list[str]]  # of each product, as an extractor lists them
    direct: Collection
    complex_queries: list[str]  # one a click
    complex_rows: np.ndarray
    traffic: list[str]  # one a complex request, clicked or not
    ordered: set[tuple[str, int]]  # complex query and product
    shown: dict[str, list[int]]  # products shown for a complex query
    rates: np.ndarray  # smoothed click rate of each product, (N,)
    think: Callable[[str], list[str]]
    judge: Callable | None  # an existing relevance model, grades 0 to 3
    world: NeedsWorld | None  # of a simulated shop: later requests and the truth

    def thoughts(self, queries: Sequence[str]) -> list[list[str]]:
        """The keywords of each query."""
        known = {query: self.think(query) for query in set(queries)}
        return [known[query] for query in queries]


# %%
def described(items: dict) -> list[str]:
    """Title, brand and category of each product, in one line."""
    columns = (items["item_title"], items["brand_name"], items["category_level3_name"])
    return [
        " ".join([title, *(name for name in names if name not in ("other", "UNKNOWN"))])
        for title, *names in zip(*columns, strict=True)
    ]


def simulated_shop(world_seed: int) -> Shop:
    """The shop of the settings, its direct log, and complex requests on top."""
    config = ShopConfig(
        items=settings.items, sessions=settings.direct, users=settings.users,
        leaves=settings.leaves, query_mix=(0.27, 0.13, 0.38, 0.22, 0.0, 0.0, 0.0),
        rank_share=0.0, relevance_pairs=100, click_bias=1.15,
    )  # fmt: skip
    log, truth = open_shop(config, world_seed), open_truth(config, world_seed)
    sizes = (settings.needs, 12, settings.complex, settings.tested)
    world = make_needs(truth, NeedsConfig(*sizes))
    known, asked = meanings(world, truth), world.log
    think = Thinker(truth.goods, known, settings.noise, settings.drop)
    ordered = zip(
        asked.ordered.rows.tolist(), asked.ordered.values.tolist(), strict=True
    )
    shown: dict[str, list[int]] = {}
    for query, items in zip(asked.queries, asked.shown, strict=True):
        shown.setdefault(query, []).extend(items.tolist())
    return Shop(
        described(log.items), product_keywords(truth), recall_task(log),
        [asked.queries[row] for row in asked.clicked.rows], asked.clicked.values,
        asked.queries, {(asked.queries[row], item) for row, item in ordered}, shown,
        click_rates(asked.shown, asked.clicked, settings.items),
        think, Judge(truth.goods, known), world,
    )  # fmt: skip


# %%
def click_rates(shown: Ragged, clicked: Ragged, count: int) -> np.ndarray:
    """Clicks over impressions of each product, drawn towards the mean. Shape: -> (count,)."""
    views = np.bincount(shown.values, minlength=count)
    clicks = np.bincount(clicked.values, minlength=count)
    mean = clicks.sum() / max(1, views.sum())
    return (clicks + 20 * mean) / (views + 20)


def real_shop(folder: Path) -> Shop:
    """KuaiSearch files, and thoughts.tsv with a query, a tab and keywords a line."""
    log = KuaiSearch.read(folder, tables=("users", "items", "recall"))
    known = read_thoughts(folder / "thoughts.tsv")
    task = recall_task(log)
    hard = [n for n, query in enumerate(task.train_queries) if query in known]
    texts = described(log.items)
    rates = np.full(len(texts), 0.04)
    queries = [task.train_queries[n] for n in hard]
    traffic = [query for query in log.recall["query"] if query in known]
    return Shop(
        texts, [words(text)[:8] for text in texts], task, queries, task.train_rows[hard],
        traffic, set(), {}, rates, lambda query: known.get(query, []), None, None,
    )  # fmt: skip


# %%
def read_thoughts(path: Path) -> dict[str, list[str]]:
    """Keywords of queries: a query, a tab, and words with commas between them, one a line."""
    if not path.is_file():
        remedy = "write one query, a tab and its keywords a line."
        raise InputError(str(path), "no such file", "thoughts of queries", remedy)
    found = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        query, *rest = line.split("\t")
        if line.strip() and (not query.strip() or len(rest) != 1):
            where, remedy = f"{path}, line {number}", "separate them by one tab."
            raise InputError(where, repr(line), "query and keywords", remedy)
        if line.strip():
            found[query] = [word.strip() for word in rest[0].split(",") if word.strip()]
    return found


# %%
with record.phase("open the shop"):
    shop = real_shop(Path(data)) if data else simulated_shop(world_seed)
print(f"{len(shop.texts):,} products; {len(shop.direct.train_rows):,} direct clicks,")
print(f"{len(shop.complex_rows):,} clicks of {len(shop.traffic):,} complex requests")

# %% tags=["page-only", "hide-input"]
if shop.world:
    clicked = shop.judge(shop.complex_queries, shop.complex_rows) == 3
    heard = np.array(shop.complex_queries)
    counts = Counter(shop.complex_queries)
    labels = [counts[form] for form in shop.world.forms]
    print(f"clicks of the log on products that meet the need: {clicked.mean():.0%}")
    print(f"clicks a wording, quartiles: {np.percentile(labels, [25, 50, 75])}")
    print(f"wordings only heard in the test: {(~shop.world.seen).mean():.0%}")
    same = all(shop.think(q) == shop.think(q) for q in shop.traffic[:100])
    record.check("a thought is a function of the query", same)

# %% [markdown]
# ## Step 2: identifiers with keywords in them
#
# The identifier of a product comes from its vector. Ours are from a singular value decomposition of what the catalogue says and which ordinary queries were clicked (the paper
# distils a text encoder). *Keyword enhancement* draws a vector towards its keywords,
#
# $$e^\circ = \mathrm{normalise}\Bigl(\tfrac12 e + \tfrac12 \operatorname{mean}_j e_k^j\Bigr),$$ (eq-03-enhance)
#
# with $e_k^j$ the vector of keyword $j$; without a match $e$ stays. Then residual k-means on three levels, of which only the last is balanced, and an optimised product quantiser on what
# is left: five codes, three coarse and two fine.


# %%
@dataclass(frozen=True, eq=False)
class Space:
    """Vectors of words and products in one space. Shape: (V, D), (N, D), unit length or zero."""

    vocabulary: Vocabulary
    word_vectors: np.ndarray
    item_vectors: np.ndarray


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one; rows of zeros stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


# %%
def make_space(shop: Shop) -> Space:
    """Words and products by their singular vectors; words of complex queries have none."""
    spelled = [
        f"{t} {' '.join(k)}" for t, k in zip(shop.texts, shop.keywords, strict=True)
    ]
    heard = [*shop.direct.train_queries, *shop.traffic]
    vocabulary = Vocabulary.build([*spelled, *heard], min_count=1, pieces=64)
    documents = [words(text) for text in spelled]
    for query, row in zip(
        shop.direct.train_queries, shop.direct.train_rows, strict=True
    ):
        documents[row] += words(query)
    counts = [Counter(n for w in d for n in vocabulary.ids_of(w)) for d in documents]
    row = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
    column = np.array([n for count in counts for n in count])
    value = 1 + np.log([c for count in counts for c in count.values()])
    shape = (len(counts), len(vocabulary))
    spread = np.bincount(column, minlength=shape[1])
    rarity = np.log(shape[0] / np.maximum(spread, 1)) * (spread > 0)
    matrix = sparse.csr_matrix((value * rarity[column], (row, column)), shape)
    length = np.sqrt(matrix.multiply(matrix).sum(1))
    matrix = sparse.csr_matrix(matrix / np.maximum(length, 1e-9))
    left, size, right = svds(matrix, k=settings.width, v0=np.ones(min(shape)))
    scale = np.sqrt(size)
    there = (rarity > 0)[
        :, None
    ]  # the rest is rounding, which must not be made unit length
    vectors = (unit(right.T * scale * there), unit(left * scale))
    return Space(vocabulary, *(v.astype(np.float32) for v in vectors))


# %%
def enhanced(space: Space, keywords: Sequence[Sequence[str]]) -> np.ndarray:
    """Product vectors drawn halfway towards the mean of their keywords' vectors. (N, D)."""
    result = space.item_vectors.copy()
    for row, found in enumerate(keywords):
        vectors = [
            unit(space.word_vectors[list(space.vocabulary.ids_of(word))].mean(0))
            for keyword in found
            for word in words(keyword)
        ]
        if vectors:
            result[row] = unit(0.5 * result[row] + 0.5 * np.mean(vectors, axis=0))
    return result


@cache
def make_codes() -> ResidualOPQ:
    """Five codes a product, from enhanced vectors."""
    fine = (settings.fine, settings.fine)
    codes_seed = derive_seed(world_seed, "identifiers")
    return ResidualOPQ.fit(
        enhanced(space, shop.keywords), settings.coarse, fine, codes_seed
    )


# %%
with record.phase("identifiers"):
    space = make_space(shop)
    codes = make_codes()
    alphabet = Alphabet(len(space.vocabulary), ("retrieve", "think"), codes.sizes)
    identifiers = alphabet.tokens(codes.codes)
    trie = Trie(identifiers)
    owners = Ragged.from_pairs(
        trie.find(identifiers), np.arange(len(identifiers)), len(trie)
    )

# %% [markdown]
# The paper's quality table, redone: *CUR* is the share of codes (of pairs, of triples) in use, *ICR* the share of products
# with an identifier of their own. Triples can reach at most the number of products over that of triples.

# %% tags=["page-only", "hide-input"]
import pandas as pd

compared = {}
for label, vectors in (
    ("vectors", space.item_vectors),
    ("enhanced", enhanced(space, shop.keywords)),
):
    coarse_only = ResidualKMeans.fit(vectors, settings.coarse, 0, balance_last=False)
    balanced = ResidualKMeans.fit(vectors, settings.coarse, 0)
    both = ResidualOPQ.fit(vectors, settings.coarse, (settings.fine,) * 2, 0)
    for name, found in (
        ("k-means", coarse_only),
        ("balanced", balanced),
        ("with OPQ", both),
    ):
        compared[f"{label}, {name}"] = quality(found.codes, found.sizes, 3)
table = pd.DataFrame(compared).T[["CUR_L1", "CUR_pairs", "CUR_total", "ICR"]]
table.round(3)

# %% [markdown]
# Most of the gain comes from the fine codes, as in the paper, whose ICR rose from .43 over .68 (balanced) to .92 (with OPQ).
#
# ## Step 3: two prompts, one model
#
# Teacher and student are the same weights. They differ in what they read: a mark, the words of the query, and (the teacher alone) keywords. The paper's
# prompt holds the user as well, by identifiers of recent clicks and three soft tokens of a long history; ours leaves the user out, so that nothing but the keywords differs.
#
# Two details of the input are ours. Keywords are a set, so they get *no positions*, and instead one vector of their
# own that tells them from the query. And in half of the teacher's rows of the base the query is blank: a model that can learn the query's rare name by heart has
# otherwise little reason to look at the keywords. In a first version without blanks, in which the decomposition had seen what complex queries were clicked for, the teacher was no
# better than the student (see the card). There would have been nothing to distil.


# %%
class Places(nn.Module):
    """Positions of a mark and a query, and one vector for all keywords behind them.

    It stands in for BART's learned positions, whose interface it keeps.

    Shape: weight (alone + together, D).
    """

    offset = 0

    def __init__(self, alone: int, together: int, width: int) -> None:
        super().__init__()
        self.own = nn.Parameter(0.05 * torch.randn(alone, width))
        self.keyword = nn.Parameter(0.05 * torch.randn(1, width))
        self.together = together

    @property
    def weight(self) -> Tensor:
        """What is added to the token at each place."""
        return torch.cat([self.own, self.keyword.expand(self.together, -1)])

    def forward(self, ids: Tensor, past_key_values_length: int = 0) -> Tensor:
        """Shape: (B, S) -> (B, S, D)."""
        return self.weight[: ids.shape[1]].expand(len(ids), -1, -1)


# %%
def bart_config(size: int):
    """A BART of the settings' shape over `size` tokens."""
    layers = dict(
        zip(("encoder_layers", "decoder_layers"), settings.layers, strict=True)
    )
    feed = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * settings.width)
    shape = {"d_model": settings.width, "dropout": settings.dropout}
    return toy_bart_config(size, **shape, **layers, **feed)


# %%
class Retriever(nn.Module):
    """A BART that writes identifiers: its softmax runs over codes alone, not over words.

    Shape: source (B, S) int64, 0 where nothing stands; target (B, L) tokens of codes.
    """

    def __init__(self, alphabet: Alphabet) -> None:
        super().__init__()
        size = len(alphabet)
        self.seq2seq = Seq2Seq(bart_config(size), size)
        self.first = int(alphabet.first[0])
        alone, together = 1 + settings.query_words, settings.keyword_words
        places = Places(alone, together, settings.width)
        self.bart.model.encoder.embed_positions = places
        self.bart.final_logits_bias[:, : self.first] = -1e4  # beams write no words

    @property
    def bart(self):
        """The transformers model, for beam search."""
        return self.seq2seq.model

    def read(self, source: Tensor) -> tuple:
        """What the encoder makes of sources. Shape: (B, S) -> (B, S, D), in a tuple."""
        mask = (source != PAD).long()
        return self.bart.model.encoder(input_ids=source, attention_mask=mask).to_tuple()

    def states(self, source: Tensor, target: Tensor, read: tuple = ()) -> Tensor:
        """Decoder states before each target token. Shape: (B, S), (B, L) -> (B, L, D)."""
        start = target.new_full((len(target), 1), END)
        found = self.bart.model.decoder(
            input_ids=torch.cat([start, target[:, :-1]], 1), use_cache=False,
            encoder_hidden_states=(read or self.read(source))[0],
            encoder_attention_mask=(source != PAD).long(),
        )  # fmt: skip
        return found.last_hidden_state

    def forward(self, source: Tensor, target: Tensor, read: tuple = ()) -> Tensor:
        """Logits of all codes at each position, teacher-forced. Shape: -> (B, L, codes)."""
        codes = self.bart.model.shared.weight[self.first :]
        return F.linear(self.states(source, target, read), codes)


# %%
def new_model(seed: int) -> Retriever:
    """A model whose words and codes start where the decomposition has them."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "initial weights"))
        model = Retriever(alphabet)
    model.seq2seq.start_from(space.word_vectors)
    for level, first in enumerate(alphabet.first):
        model.seq2seq.start_from(codes.code_vectors(level), int(first))
    return model


def sources(queries: Sequence[str], keywords: Sequence[Sequence[str]] = ()) -> Tensor:
    """What the model reads: mark, query, keywords if there are any. Shape: -> (n, S) int64.

    Raises:
        InputError: for another number of keyword lists than of queries.
    """
    keywords = keywords or [[]] * len(queries)
    if len(keywords) != len(queries):
        found = f"{len(keywords)} lists for {len(queries)} queries"
        raise InputError(
            "keywords", found, "one list a query", "pass an empty list for none."
        )
    encode = space.vocabulary.encode
    mark = np.full((len(queries), 1), alphabet.mark("retrieve"))
    said = encode(queries, settings.query_words)
    thought = encode([" ".join(found) for found in keywords], settings.keyword_words)
    return torch.from_numpy(np.concatenate([mark, said, thought], axis=1))


# %% tags=["page-only"]
model = new_model(0).eval()
asked, target = shop.traffic[:8], torch.from_numpy(identifiers[:8])
with torch.no_grad():
    student = model(sources(asked), target)
    teacher = model(sources(asked, [[]] * 8), target)
    informed = model(sources(asked, shop.thoughts(asked)), target)
    shuffled = model(sources(asked, [k[::-1] for k in shop.thoughts(asked)]), target)
record.check(
    "without keywords the teacher is the student", torch.equal(student, teacher)
)
gap = (informed - shuffled).abs().max().item()
record.check("the order of keywords does not matter", gap < 1e-4, f"{gap:.1e}")
print(f"keywords change logits by up to {(informed - student).abs().max():.2f}")

# %% [markdown]
# ## Step 4: what distillation minimises
#
# The teacher's distribution at every position of the identifier is the target of the student's {cite:p}`hinton`:
#
# $$\mathcal L_{KL} = \frac{\tau^2}{L} \sum_{l=1}^{L} \mathrm{KL}\bigl(\mathrm{softmax}(z_{T,l}/\tau)\,\|\,\mathrm{softmax}(z_{S,l}/\tau)\bigr).$$ (eq-03-kl)
#
# No gradient goes through $z_T$. Around it stand three regularisers, each with a forward pass of its own: *R-Drop* {cite:p}`rdrop` makes two passes with different dropout agree,
#
# $$\mathcal L_{R} = \tfrac12\bigl[\mathrm{KL}(P_1 \| P_2) + \mathrm{KL}(P_2 \| P_1)\bigr];$$ (eq-03-rdrop)
#
# *FGM* {cite:p}`fgm` takes a step of length $\varepsilon$ in the table of tokens that makes the loss worse, $r_{adv} = \varepsilon\, g / \lVert g \rVert_2$, and adds the
# loss there (one of the notes reads it as a divergence; we add cross entropy and divergence); and *focal* loss {cite:p}`focal`, $2\,(1-p)^3$ times the cross entropy, cares less about what is already known.


# %%
def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over positions of KL(teacher || student) at a temperature, times its square.

    Shape: logits (B, L, C) twice -> scalar. The teacher gets no gradient.
    """
    target = F.log_softmax(teacher.detach() / temperature, -1)
    found = F.log_softmax(student / temperature, -1)
    each = F.kl_div(found, target, reduction="none", log_target=True).sum(-1)
    return temperature**2 * each.mean()


def both_ways(first: Tensor, second: Tensor) -> Tensor:
    """R-Drop: half the sum of both divergences, with gradients through both. -> scalar."""
    one, two = F.log_softmax(first, -1), F.log_softmax(second, -1)
    return 0.5 * ((one.exp() - two.exp()) * (one - two)).sum(-1).mean()


# %%
def likelihood(
    logits: Tensor, target: Tensor, focal: bool = False, smoothing: float = 0.0
) -> Tensor:
    """Mean cross entropy of the codes, or focal loss with alpha 2 and gamma 3.

    Shape: (B, L, C), (B, L) codes -> scalar.
    """
    every, wanted = logits.flatten(0, 1), target.flatten()
    if not focal:
        return F.cross_entropy(every, wanted, label_smoothing=smoothing)
    loss = F.cross_entropy(every, wanted, reduction="none")
    return (2 * (1 - torch.exp(-loss)) ** 3 * loss).mean()


# %%
TABLE = "seq2seq.model.model.shared.weight"


def perturbed(model: Retriever, loss: Tensor, length: float) -> dict[str, Tensor]:
    """The table of tokens, moved by `length` in the direction that makes `loss` worse."""
    table = model.bart.model.shared.weight
    (gradient,) = torch.autograd.grad(loss, table, retain_graph=True)
    step = length * gradient / gradient.norm().clamp_min(1e-12)
    return {TABLE: table + step}


# %% tags=["page-only"]
logits = torch.tensor([[[2.0, 0.0, 0.0]]])
other = torch.tensor([[[0.0, 0.0, 0.0]]])
p = logits.softmax(-1)[0, 0]
by_hand = float((p * (p / (1 / 3)).log()).sum())
found = float(divergence(logits, other))
record.check("divergence by hand", abs(found - by_hand) < 1e-6, f"{found:.4f}")
wanted = torch.zeros(1, 1, dtype=torch.long)
print(
    f"KL {found:.4f}; cross entropy of the first code {likelihood(logits, wanted):.4f},"
)
print(f"focal {likelihood(logits, wanted, focal=True):.4f}: it is known well enough")

# %% [markdown]
# ## Step 5: on which requests?
#
# Printed, the loss is cross entropy plus $0.1$ times the divergence, on clicked pairs. Along a clicked pair the student is told the answer anyway; what the
# teacher adds is small. It has more to say where there is *no* click. The requests of the log that nobody answered are the greater part by far, each of
# them has a thought, and the teacher can be asked what it would write. So our main arm, `distilled`, departs from the recipe:
#
# * the divergence is taken on all complex requests of the log, along identifiers that the teacher samples, with $\alpha = 1$;
# * the teacher keeps learning, by cross entropy on its own prompt (the released code has a switch for that, without effect).
#
# A gain could come from the data alone: an arm that sees 48 complex requests more a step than its baseline leans towards complex requests. The fair control,
# `extra`, therefore gets 48 more *clicked* complex pairs a step, and so does every other arm.
#
# | arm | what it does in its steps, all from one base |
# |---|---|
# | `plain` | cross entropy on the log as it is, a quarter of the rows from titles |
# | `extra` | the same, and 48 clicked complex pairs: the baseline |
# | `extra_longer` | the same for 2.5 times the steps: equal compute |
# | `distilled` | `extra`, the teacher's cross entropy, and divergence on 48 unclicked or clicked requests |
# | `distilled_blank` | the teacher reads the keywords alone, not the query |
# | `distilled_clicks` | the divergence on clicked pairs instead |
# | `distilled_alone`, `distilled_ema` | the teacher without a loss of its own; a slow copy as teacher |
# | `hard` | the sampled identifier itself as label, no divergence |
# | `same_input` | a teacher that reads no keywords, the frozen base |
# | `smoothed` | label smoothing .1 |
# | `teacher_only` | `extra` and the teacher's cross entropy |
# | `keyword_task` | `extra`, and naming the keywords of 48 requests |
# | `writes_first` | writes keywords, reads them, then answers: two passes |
# | `printed`, `printed_no_...` | the printed recipe, and with one regulariser less |
# | `wrong`, `leaking`, `oracle` | every keyword wrong; with two words of the clicked title; without errors |


# %%
@dataclass(frozen=True)
class Plan:
    """How an arm is trained after the base."""

    extra: bool = True  # clicked complex pairs on top of the log
    teacher: bool = False  # cross entropy on the prompt with keywords too
    guided: str = ""  # divergence on "traffic" or "clicks"
    alpha: float = 1.0
    blank: bool = False  # the teacher reads keywords without the query
    guide: str = "self"  # or "frozen", the base; "ema", a slow copy
    reads: str = "keywords"  # the teacher; or "nothing", "wrong", "leaking", "oracle"
    hard: bool = False
    rdrop: float = 0.0
    fgm: float = 0.0
    focal: bool = False
    smoothing: float = 0.0
    names: float = 0.0  # weight of naming the keywords
    writes: bool = False  # writes keywords before it answers
    longer: float = 1.0


# %%
PRINTED = {"guided": "clicks", "alpha": 0.1, "rdrop": 0.5, "fgm": 0.6, "focal": True}
OURS = {"teacher": True, "guided": "traffic"}
CHANGES = {
    "plain": {"extra": False},
    "extra": {},
    "extra_longer": {"longer": 2.5},
    "distilled": OURS,
    "distilled_blank": OURS | {"blank": True},
    "distilled_clicks": OURS | {"guided": "clicks"},
    "distilled_alone": {"guided": "traffic"},
    "distilled_ema": OURS | {"guide": "ema"},
    "hard": OURS | {"hard": True},
    "same_input": {"guided": "traffic", "guide": "frozen", "reads": "nothing"},
    "smoothed": {"smoothing": 0.1},
    "teacher_only": {"teacher": True},
    "keyword_task": {"names": 0.5},
    "writes_first": {"teacher": True, "writes": True},
    "printed": PRINTED,
    "printed_no_rdrop": PRINTED | {"rdrop": 0.0},
    "printed_no_fgm": PRINTED | {"fgm": 0.0},
    "printed_no_focal": PRINTED | {"focal": False},
    "wrong": OURS | {"reads": "wrong"},
    "leaking": OURS | {"guided": "clicks", "reads": "leaking"},
    "oracle": OURS | {"reads": "oracle"},
}


# %%
@dataclass(frozen=True, eq=False)
class Rows:
    """Training rows. Shape: student, teacher (N, S) int64, target (N, L) tokens of codes."""

    student: Tensor
    teacher: Tensor
    target: Tensor

    def __getitem__(self, index: Tensor) -> "Rows":
        return Rows(self.student[index], self.teacher[index], self.target[index])

    def __len__(self) -> int:
        return len(self.student)


def joined(*parts: Rows) -> Rows:
    """Rows one after the other."""
    names = ("student", "teacher", "target")
    return Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


# %%
def query_rows(queries: Sequence[str], items: np.ndarray | None, reads: str) -> Rows:
    """Rows of queries with clicked products, or of queries alone, whose targets are zeros."""
    keywords = keywords_for(queries, reads)
    if reads == "leaking" and items is not None:
        titles = [shop.texts[item].split()[:2] for item in items]
        keywords = [
            found + title for found, title in zip(keywords, titles, strict=True)
        ]
    rows = np.zeros((len(queries), identifiers.shape[1]), dtype=np.int64)
    target = rows if items is None else identifiers[items]
    student = sources(queries)
    return Rows(student, sources(queries, keywords), torch.from_numpy(target))


def keywords_for(queries: Sequence[str], reads: str) -> list[list[str]]:
    """What a teacher reads beside each query."""
    if reads == "nothing":
        return [[] for _ in queries]
    dials = {"oracle": {"noise": 0.0, "drop": 0.0}, "wrong": {"noise": 1.0}}
    if reads in dials and isinstance(shop.think, Thinker):
        think = replace(shop.think, **dials[reads])
        return replace(shop, think=think).thoughts(queries)
    return shop.thoughts(queries)


# %% [markdown]
# Rows from titles tie words to products that nobody clicked: a few words of a title stand in for a query, or, in two of three rows, a few of
# the product's own keywords stand where the keywords stand. These teach what a keyword means.


# %%
def title_rows() -> Rows:
    """Words of titles as queries, or keywords of products in the keywords' place."""
    draw = np.random.default_rng(derive_seed(init_seed, "titles"))
    queries, keywords, items = [], [], []
    for item, (text, known) in enumerate(zip(shop.texts, shop.keywords, strict=True)):
        for _ in range(settings.title_rows):
            as_keywords = bool(known) and draw.random() < settings.keyword_rows
            found = known if as_keywords else text.split()
            kept = draw.permutation(len(found))[: draw.integers(1, 5)]
            chosen = [found[n] for n in kept]
            queries.append("" if as_keywords else " ".join(chosen))
            keywords.append(chosen if as_keywords else [])
            items.append(item)
    source = sources(queries, keywords)
    return Rows(source, source, torch.from_numpy(identifiers[np.array(items)]))


# %%
@cache
def tables(reads: str) -> dict[str, Rows]:
    """All rows there are to train on: titles, direct clicks, complex clicks, complex traffic."""
    task = shop.direct
    return {
        "titles": title_rows(),
        "direct": query_rows(task.train_queries, task.train_rows, reads),
        "complex": query_rows(shop.complex_queries, shop.complex_rows, reads),
        "traffic": query_rows(shop.traffic, None, reads),
    }


def schedule(rows: dict[str, Rows], steps: int, draw_seed: int) -> dict[str, Tensor]:
    """Which rows each step takes. Shape: log (steps, B), extra and traffic (steps, extra)."""
    draw = np.random.default_rng(derive_seed(draw_seed, "schedule"))
    sizes = [len(rows[name]) for name in ("titles", "direct", "complex")]
    shape = (steps, settings.batch_size)
    of_log = sizes[0] + draw.integers(sizes[1] + sizes[2], size=shape)
    from_titles = np.arange(shape[1]) < round(settings.title_share * shape[1])
    log = np.where(from_titles, draw.integers(sizes[0], size=shape), of_log)
    more = (steps, settings.extra)
    found = {
        "log": log,
        "extra": sizes[0] + sizes[1] + draw.integers(sizes[2], size=more),
        "traffic": draw.integers(len(rows["traffic"]), size=more),
    }
    return {name: torch.from_numpy(index) for name, index in found.items()}


# %%
@torch.no_grad()
def sample(model: Retriever, source: Tensor) -> Tensor:
    """An identifier for each row, code by code, of the codes a position has. (B, S) -> (B, L)."""
    written, read = source.new_zeros((len(source), 0)), model.read(source)
    for first, size in zip(alphabet.first.tolist(), alphabet.sizes, strict=True):
        place = torch.cat([written, source.new_zeros((len(source), 1))], 1)
        logits = model(source, place, read)[:, -1]
        start = first - model.first
        chance = logits[:, start : start + size].softmax(-1)
        written = torch.cat([written, first + torch.multinomial(chance, 1)], 1)
    return written


# %%
class Training(Module):
    """The loss of a plan, one step a batch: which rows it takes is in the batch."""

    def __init__(self, model: Retriever, plan: Plan) -> None:
        super().__init__()
        self.model, self.plan, self.rows = model, plan, tables(plan.reads)
        self.labelled = joined(*(self.rows[n] for n in ("titles", "direct", "complex")))
        self.other = [copy.deepcopy(model).eval()] if plan.guide != "self" else []

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross entropy, and whatever the plan adds."""
        plan, rows = self.plan, self.labelled[batch["log"][0]]
        if plan.extra:
            rows = joined(rows, self.labelled[batch["extra"][0]])
        codes = rows.target - self.model.first
        logits = self.model(rows.student, rows.target)
        total = likelihood(logits, codes, plan.focal, plan.smoothing)
        parts = {"own": total.detach()}
        if plan.guided:
            parts["kl"] = kl = distillation(self, rows, batch, logits)
            total = total + plan.alpha * kl
        if plan.fgm:
            total = total + adversarial(self, rows, codes, total)
        if plan.rdrop:
            again = self.model(rows.student, rows.target)
            total = total + plan.rdrop * both_ways(logits, again)
        if plan.teacher:
            total = total + taught(self.model, rows)
        if plan.names or plan.writes:
            total = total + named(
                self.model, self.rows["traffic"][batch["traffic"][0]], plan
            )
        return {"loss": total} | {name: value.detach() for name, value in parts.items()}


# %%
def guide_of(training: Training) -> Retriever:
    """Whose predictions are the target: the model itself, or a frozen or slow copy of it."""
    if training.plan.guide == "self":
        return training.model
    (other,) = training.other
    if training.plan.guide == "ema":
        with torch.no_grad():
            for slow, now in zip(
                other.parameters(), training.model.parameters(), strict=True
            ):
                slow.lerp_(now, 0.1)
    return other


def distillation(
    training: Training, rows: Rows, batch: dict[str, Tensor], logits: Tensor
) -> Tensor:
    """Divergence from the teacher, or cross entropy of what the teacher wrote. -> scalar."""
    guide, of_clicks = guide_of(training), training.plan.guided == "clicks"
    if not of_clicks:
        rows = training.rows["traffic"][batch["traffic"][0]]
    read = without_query(rows) if training.plan.blank else rows.teacher
    with torch.no_grad():
        guide.eval()
        path = rows.target if of_clicks else sample(guide, read)
        told = guide(read, path)
        training.model.train()
    found = logits if of_clicks else training.model(rows.student, path)
    if training.plan.hard:
        return likelihood(found, path - training.model.first)
    return divergence(told, found, settings.temperature)


# %%
def adversarial(training: Training, rows: Rows, codes: Tensor, loss: Tensor) -> Tensor:
    """The loss at the worse table of tokens: cross entropy and, on clicks, the divergence."""
    moved = perturbed(training.model, loss, training.plan.fgm)
    logits = functional_call(training.model, moved, (rows.student, rows.target))
    total = likelihood(logits, codes, training.plan.focal)
    if training.plan.guided == "clicks":
        with torch.no_grad():
            guide = guide_of(training).eval()
            told = guide(rows.teacher, rows.target)
            training.model.train()
        total = total + training.plan.alpha * divergence(told, logits)
    return total


# %%
def without_query(rows: Rows) -> Tensor:
    """The teacher's sources with a blank query, where they have keywords. Shape: -> (B, S)."""
    start = 1 + settings.query_words
    source = rows.teacher.clone()
    source[:, 1:start] *= (rows.teacher == rows.student).all(1)[:, None]
    return source


def taught(model: Retriever, rows: Rows) -> Tensor:
    """Cross entropy of rows with keywords, some with a blank query. -> scalar."""
    thinking = (rows.teacher != rows.student).any(1)
    if not thinking.any():
        return torch.zeros(())
    rows = rows[thinking]
    blank = torch.rand(len(rows)) < settings.blind
    source = torch.where(blank[:, None], without_query(rows), rows.teacher)
    return likelihood(model(source, rows.target), rows.target - model.first)


def named(model: Retriever, rows: Rows, plan: Plan) -> Tensor:
    """Keywords from the query alone: as a bag from the mean state, or written one by one."""
    wanted = rows.teacher[:, 1 + settings.query_words :]
    words_table = model.bart.model.shared.weight[: model.first]
    if plan.writes:
        states = model.states(thinking_sources(rows.student), wanted)
        logits = F.linear(states, words_table)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
    there = (rows.student != PAD).float()
    mean = (model.read(rows.student)[0] * there[..., None]).sum(1) / there.sum(
        1, keepdim=True
    )
    chances = F.linear(mean, words_table).log_softmax(-1).gather(1, wanted)
    return (
        -plan.names
        * (chances * (wanted != PAD)).sum()
        / (wanted != PAD).sum().clamp_min(1)
    )


# %%
def thinking_sources(source: Tensor) -> Tensor:
    """The same queries under the mark that asks for keywords."""
    source = source.clone()
    source[:, 0] = alphabet.mark("think")
    return source


@torch.no_grad()
def written_keywords(model: Retriever, source: Tensor) -> Tensor:
    """Sources with the likeliest keywords that the model writes itself. (B, S) -> (B, S)."""
    asked, table = (
        thinking_sources(source),
        model.bart.model.shared.weight[: model.first],
    )
    written, read = source.new_zeros((len(source), 0)), model.read(asked)
    for _ in range(settings.keyword_words):
        place = torch.cat([written, source.new_zeros((len(source), 1))], 1)
        logits = F.linear(model.states(asked, place, read)[:, -1], table)
        logits[:, PAD] = -torch.inf
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], 1)
    ended = (written == END).cumsum(1) > 0
    keywords = written.masked_fill(ended, PAD)
    return torch.cat([source[:, : 1 + settings.query_words], keywords], 1)


# %%
def train(
    model: Retriever, plan: Plan, count: int, rate: float, train_seed: int
) -> History:
    """Train in place; all that is random follows from the seed."""
    steps = schedule(tables(plan.reads), count, train_seed)
    module = Training(model, plan)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(train_seed, "dropout"))
        optimisation = Optimisation(rate, warmup_steps=settings.warmup)
        fit(module, Batches(steps, 1, train_seed), settings, optimisation)
    model.eval()
    return module.history


# %%
def stored(name: str, model: Retriever, make: Callable[[], None]) -> Retriever:
    """A model with the weights shipped or kept under a name; else they are made and kept.

    Weights are kept in half precision and read back, so that all three ways end alike.
    """
    digest = digest_of(identifiers, space.vocabulary.frequent, shop.complex_rows)
    shipped = ASSETS / "needs_0" / f"{name}.safetensors"
    usual = profile == "toy" and not (
        data or fresh or world_seed or init_seed or steps or noise >= 0
    )
    if usual and shipped.is_file():
        with safe_open(shipped, "pt") as file:
            if file.metadata()["digest"] == digest:
                return with_weights(model, shipped)
        print(f"{name}: shipped for other data than this machine makes; trained here")
    key = {"name": name, "world": world_seed, "init": init_seed, "digest": digest}
    key |= {"recipe": RECIPE, "settings": json.loads(json.dumps(asdict(settings)))}

    def build(folder: Path) -> None:
        make()
        kept = {n: p.detach().half().contiguous() for n, p in model.named_parameters()}
        save_file(kept, folder / "weights.safetensors", {"digest": digest})

    return with_weights(model, cached("onesearch", key, build) / "weights.safetensors")


# %%
def with_weights(model: Retriever, path: Path) -> Retriever:
    """Read what `stored` wrote."""
    weights = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model.eval()


def digest_of(*parts: object) -> str:
    """A short hash of texts and arrays."""
    whole = sha256()
    for part in parts:
        whole.update(
            part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
        )
    return whole.hexdigest()[:16]


# %%
def base_model(reads: str = "keywords") -> Retriever:
    """The model that all arms start from: both prompts learnt from the log, equally often."""
    model = new_model(init_seed)
    plan = Plan(extra=False, teacher=True, reads=reads)
    name = "base" if reads == "keywords" else f"base_{reads}"

    def make() -> None:
        train(model, plan, settings.base_steps, settings.base_rate, init_seed)

    return stored(name, model, make)


def distilled_model() -> Retriever:
    """The distilled student that alignment starts from: the same for every training seed."""
    model = base_model()

    def make() -> None:
        plan = Plan(**CHANGES["distilled"])
        train(
            model, plan, settings.steps, settings.rate, derive_seed(init_seed, "start")
        )

    return stored("distilled", model, make)


# %% [markdown]
# ## Step 6: credit for every position
#
# After distillation the paper aligns the model with behaviour. The policy samples $G$ identifiers for a request. Each gets a reward for the product it names,
#
# $$R_{item}(o) = R_{C\&O}(o) + R_{CTR}(o) + R_{Rel}(o),$$ (eq-03-reward)
#
# 4 if the product was ordered for this query, 3 if it was clicked only; its smoothed click rate; and the grade, 0 to 3, of an existing relevance model (ours errs on a tenth of the pairs, and is no part of the truth by which
# we judge). An identifier without a product gets nothing. *GRPO* {cite:p}`deepseekmath` normalises that in the group and praises all five tokens alike.
#
# *TPMA* asks which tokens were right. With $\mathcal T$ the identifiers clicked or ordered for the request and weights $\Delta R = (2, 2, 2, 1, 1)$, coarse codes first,
#
# $$R_{i,l} = \max_{t \in \mathcal T} \sum_{k \le l} [o_i^k = t^k]\, \Delta R_k, \qquad m_{i,l} = R_{i,l} - R_{i,l-1}, \qquad
# g_{i,l} = \frac{\text{tokens matched before } l}{l - 1},\; g_{i,1} = 1,$$ (eq-03-tpma)
#
# $\hat A_{i,l}$ is $m_{i,l}$ normalised in the group at each position, and with $\hat A_i^{item}$ the normalised product reward
#
# $$\mathcal L = -\frac1{GL} \sum_{i,l} g_{i,l}\, \frac{\pi_\theta(o_i^l)}{\pi_{old}(o_i^l)} \bigl(\hat A_{i,l} + w_{item} \hat A_i^{item}\bigr) + 0.1\, \mathcal L_{CE}.$$ (eq-03-loss)
#
# Four things do not fit together in what is published, and each is a variant here:
#
# * the figure shows $\Delta R = (2,2,2,1,1)$, the printed formula counts differently and gives $(2,2,1,1,1)$, the released code counts from one once more and gives
#   $(2,2,1,1,0)$: its last token never has an advantage (`tpma_released`);
# * as printed, it is the constant $\Delta R$ that is normalised, whose spread is zero: no advantage is left but the product's (`tpma_printed`);
# * the printed gate divides the *weighted* reward by $l-1$ and exceeds one; the code divides the count;
# * the released default is $w_{item} = 0$, so that the composite reward is off.
#
# "Prefix" is not strict, by the way: matches count position by position, and a wrong first code does not silence the later ones. `tpma_strict` is the variant with a strict prefix.


# %%
WEIGHTS = (2.0, 2.0, 2.0, 1.0, 1.0)
RELEASED = (2.0, 2.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Alignment:
    """How an arm is aligned."""

    kind: str = "tpma"  # or "grpo", "dpo", "none": the anchor alone
    weights: tuple[float, ...] = WEIGHTS
    w_item: float = 0.5  # 0 in the release
    gated: bool = True
    strict: bool = False  # matches count only after a right beginning
    printed: bool = False  # the printed formulas, word for word
    reward: str = "composite"  # or "ctr"


ALIGNED = {
    "anchor": {"kind": "none"},
    "grpo": {"kind": "grpo"},
    "tpma": {},
    "tpma_released": {"weights": RELEASED, "w_item": 0.0},
    "tpma_printed": {"weights": (2.0, 2.0, 1.0, 1.0, 1.0), "printed": True},
    "tpma_strict": {"strict": True},
    "tpma_ungated": {"gated": False},
    "tpma_no_item": {"w_item": 0.0},
    "grpo_ctr": {"kind": "grpo", "reward": "ctr"},
    "dpo": {"kind": "dpo"},
}


# %%
def position_terms(
    rollouts: Tensor, targets: Tensor, weights: Sequence[float], strict: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefix rewards, their marginals, and the gates.

    Shape: rollouts (..., G, L), targets (..., T, L), filled up with -1 -> (..., G, L) each.
    """
    match = (rollouts[..., :, None, :] == targets[..., None, :, :]).float()
    if strict:
        match = match.cumprod(-1)
    reward = (match * torch.tensor(weights)).cumsum(-1).amax(-2)
    marginal = reward.diff(dim=-1, prepend=torch.zeros_like(reward[..., :1]))
    matched = match.cumsum(-1).amax(-2)[..., :-1]
    before = torch.arange(1, rollouts.shape[-1])
    gate = torch.cat([torch.ones_like(matched[..., :1]), matched / before], -1)
    return reward, marginal, gate


def in_group(values: Tensor, dim: int) -> Tensor:
    """Less the group's mean, over its standard deviation; 0 where all are equal.

    Raises:
        InputError: for a value that is not finite.
    """
    if not torch.isfinite(values).all():
        found, remedy = "a reward that is no number", "look at what computes it."
        raise InputError("group rewards", found, "finite numbers", remedy)
    mean, spread = (
        values.mean(dim, keepdim=True),
        values.std(dim, correction=0, keepdim=True),
    )
    return torch.where(spread > 1e-6, (values - mean) / (spread + 1e-8), 0.0)


# %% tags=["page-only"]
one = torch.tensor([[1, 2, 3, 4, 5]])
tried = torch.tensor(
    [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9], [0, 2, 3, 4, 5], [0, 0, 0, 0, 0]]
)
rewards, marginals, gates = position_terms(tried, one, WEIGHTS)
for row, gate, marginal in zip(tried.tolist(), gates, marginals, strict=True):
    shares = " ".join(f"{value:.2f}" for value in gate)
    print(f"{row}  gates {shares}  marginals {marginal.int().tolist()}")
record.check("a whole match earns all weights", rewards[0, -1] == sum(WEIGHTS))
record.check("gates stay between 0 and 1", bool(((gates >= 0) & (gates <= 1)).all()))


# %% [markdown]
# The third row begins wrong and is right from there on: its later tokens are gated, not silenced.
#
# For *list-wise preference optimisation*, `dpo`, no sampling is needed: with $\rho(y)$ the log of the ratio of policy and reference, one clicked identifier $w$ and
# shown ones $l$ that nobody clicked,
#
# $$\mathcal L_{DPO} = -\log \sigma\Bigl(-\log \sum_l e^{\beta (\rho(l) - \rho(w))}\Bigr).$$ (eq-03-dpo)
#
# The release can also weigh the rejected ones by their scores; ours are equal.


# %%
@dataclass(frozen=True, eq=False)
class Prompts:
    """Queries with clicks, and their targets. Shape: source (P, S), targets (P, T, L), -1 filled."""

    queries: list[str]
    source: Tensor
    targets: Tensor
    ordered: set[tuple[str, int]]
    clicked: set[tuple[str, int]]
    refused: np.ndarray  # products shown and not clicked, (P, 8)


def make_prompts() -> Prompts:
    """The complex queries of the log that have a click, and as many direct ones."""
    clicks: dict[str, list[int]] = {}
    for query, item in zip(
        shop.complex_queries, shop.complex_rows.tolist(), strict=True
    ):
        clicks.setdefault(query, []).append(item)
    straight, task = {}, shop.direct
    for query, item in zip(task.train_queries, task.train_rows.tolist(), strict=True):
        straight.setdefault(query, []).append(item)
    clicks |= dict(list(straight.items())[: len(clicks)])
    kept = {query: list(dict.fromkeys(items))[:8] for query, items in clicks.items()}
    targets = torch.full((len(kept), 8, identifiers.shape[1]), -1)
    for row, items in enumerate(kept.values()):
        targets[row, : len(items)] = torch.from_numpy(identifiers[items])
    pairs = {(query, item) for query, items in clicks.items() for item in items}
    refused = [shop.shown.get(query, range(len(identifiers))) for query in kept]
    draw = np.random.default_rng(derive_seed(world_seed, "refused"))
    pool = [np.setdiff1d(r, clicks[q]) for r, q in zip(refused, kept, strict=True)]
    wrong = np.array([draw.choice(found, 8) for found in pool])
    queries = list(kept)
    return Prompts(queries, sources(queries), targets, shop.ordered, pairs, wrong)


# %%
def item_rewards(
    prompts: Prompts, rows: np.ndarray, written: Tensor, kind: str
) -> Tensor:
    """The reward of the product that each identifier names, 0 where there is none.

    Shape: rows (B,) of prompts, written (B, L) -> (B,).
    """
    leaves = trie.find(written.numpy())
    reward = torch.zeros(len(leaves))
    real = np.flatnonzero(leaves >= 0)
    if not len(real):
        return reward
    items = np.array([owners[leaf][0] for leaf in leaves[real]])
    values = shop.rates[items].copy()
    if kind == "composite":
        asked = [prompts.queries[row] for row in rows[real]]
        pairs = list(zip(asked, items.tolist(), strict=True))
        values += [
            4 if p in prompts.ordered else 3 * (p in prompts.clicked) for p in pairs
        ]
        if shop.judge is not None:
            values += shop.judge(asked, items)
    reward[torch.from_numpy(real)] = torch.from_numpy(values).float()
    return reward


# %%
class Aligning(Module):
    """One alignment step a batch: sample, score, and step towards what was better."""

    def __init__(self, model: Retriever, plan: Alignment, prompts: Prompts) -> None:
        super().__init__()
        self.model, self.plan, self.prompts = model, plan, prompts
        self.reference = [copy.deepcopy(model).eval()] if plan.kind == "dpo" else []

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The plan's loss, and a tenth of the cross entropy of one clicked identifier."""
        self.model.eval()  # the policy that samples is the one that learns: no dropout
        rows, prompts = batch["rows"][0], self.prompts
        source, right = prompts.source[rows], prompts.targets[rows, 0]
        anchor = likelihood(self.model(source, right), right - self.model.first)
        total = settings.anchor * anchor
        parts = {"anchor": anchor.detach()}
        if self.plan.kind == "dpo":
            rejected = batch["rejected"][0]
            total = total + preference(
                self.model, self.reference[0], source, right, rejected
            )
        elif self.plan.kind != "none":
            found, extra = policy_loss(self.model, self.plan, prompts, rows)
            total, parts = total + found, parts | extra
        return {"loss": total} | parts


# %%
def log_chances(model: Retriever, source: Tensor, written: Tensor) -> Tensor:
    """Log-probability of each token, among the codes of its position. (B, S), (B, L) -> (B, L)."""
    logits = model(source, written)
    position = torch.from_numpy(
        np.repeat(np.arange(len(alphabet.sizes)), alphabet.sizes)
    )
    other = position[None, :] != torch.arange(len(alphabet.sizes))[:, None]
    logits = logits.masked_fill(other, -torch.inf)
    return logits.log_softmax(-1).gather(2, (written - model.first)[..., None])[..., 0]


# %%
def policy_loss(
    model: Retriever, plan: Alignment, prompts: Prompts, rows: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sample a group for each prompt; GRPO or TPMA. Shape: rows (P,) -> scalar, and curves."""
    group = settings.group
    many = rows.repeat_interleave(group)
    source = prompts.source[many]
    written = sample(model, source)
    reward = item_rewards(prompts, many.numpy(), written, plan.reward)
    shape = (len(rows), group)
    item = in_group(reward.view(shape), 1)[..., None]  # (P, G, 1)
    rollouts = written.view(*shape, -1)
    if plan.kind == "grpo":
        advantage, gate = item.expand_as(rollouts), torch.ones(1)
    else:
        advantage, gate = tpma_terms(plan, rollouts, prompts.targets[rows], item)
    logs = log_chances(model, source, written).view_as(rollouts)
    ratio = (logs - logs.detach()).exp()  # one step a batch: the old policy is this one
    valid = torch.from_numpy(trie.find(written.numpy()) >= 0).float().mean()
    matched = (
        (rollouts[:, :, None] == prompts.targets[rows][:, None])
        .any(2)
        .float()
        .mean((0, 1))
    )
    curves = {f"matched {n + 1}": share for n, share in enumerate(matched)}
    curves |= {"reward": reward.mean(), "valid": valid}
    return -(gate * ratio * advantage).mean(), curves


# %%
def tpma_terms(
    plan: Alignment, rollouts: Tensor, targets: Tensor, item: Tensor
) -> tuple[Tensor, Tensor]:
    """Advantage and gate of every token. Shape: (P, G, L), (P, T, L), (P, G, 1) -> (P, G, L) x 2."""
    reward, marginal, gate = position_terms(
        rollouts, targets, plan.weights, plan.strict
    )
    place = in_group(marginal, 1)
    if plan.printed:  # a constant is normalised; the gate divides the weighted reward
        place = torch.zeros_like(marginal)
        before = torch.arange(1, rollouts.shape[-1])
        gate = torch.cat(
            [torch.ones_like(gate[..., :1]), reward[..., :-1] / before], -1
        )
    gate = gate if plan.gated else torch.ones_like(gate)
    return place + plan.w_item * item, gate


def preference(
    model: Retriever, reference: Retriever, source: Tensor, right: Tensor, wrong: Tensor
) -> Tensor:
    """List-wise DPO, beta .1. Shape: (P, S), (P, L), (P, K, L) -> scalar."""
    every = torch.cat([right[:, None], wrong], 1)  # (P, 1 + K, L)
    many, flat = source.repeat_interleave(every.shape[1], 0), every.flatten(0, 1)
    with torch.no_grad():
        before = log_chances(reference, many, flat).sum(-1)
    ratio = (log_chances(model, many, flat).sum(-1) - before).view(every.shape[:2])
    worse = torch.logsumexp(0.1 * (ratio[:, 1:] - ratio[:, :1]), 1)
    return -F.logsigmoid(-worse).mean()


# %%
def align(model: Retriever, plan: Alignment, train_seed: int) -> History:
    """Align in place."""
    prompts = make_prompts()
    draw = np.random.default_rng(derive_seed(train_seed, "prompts"))
    shape = (settings.rl_steps, settings.prompts)
    batches = {
        "rows": torch.from_numpy(draw.integers(len(prompts.queries), size=shape))
    }
    if plan.kind == "dpo":
        index = batches["rows"].numpy()[..., None]
        wrong = prompts.refused[index, draw.integers(8, size=(*shape, 4))]
        batches["rejected"] = torch.from_numpy(identifiers[wrong])
    module = Aligning(model, plan, prompts)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(train_seed, "rollouts"))
        optimisation = Optimisation(settings.rl_rate, warmup_steps=2)
        fit(module, Batches(batches, 1, train_seed), settings, optimisation)
    model.eval()
    return module.history


# %% [markdown]
# ## Step 7: how it is judged
#
# Test requests come later than the log, from an engine that understands, so that their clicks say what was wanted. *HR@10* is the share of requests with a clicked product
# among the first ten, *MRR@10* the mean of one over its rank; both also for orders, and for *cold* products alone, the half with the fewest clicks. The *valid-identifier rate* is the share of the ten best identifiers, written without a trie, that
# belong to a product; lists themselves come from a beam over identifiers that exist. As the shop is simulated, expected clicks, orders and the share of fully relevant products are known without noise.


# %%
@dataclass(frozen=True, eq=False)
class Asked:
    """Test requests. Shape: Q requests."""

    queries: list[str]
    clicked: Ragged
    ordered: Ragged
    cluster: np.ndarray  # requests of one need share their luck
    rows: np.ndarray
    labels: dict[str, np.ndarray]  # masks of requests, by name


def complex_requests(count: int) -> Asked:
    """Later complex requests with a click, and their kinds."""
    if shop.world is None:
        known = [bool(shop.think(query)) for query in shop.direct.queries]
        return of_task(np.flatnonzero(known)[:count], 0)
    draw = np.random.default_rng(derive_seed(world_seed, "asked"))
    test = shop.world.test
    rows = np.flatnonzero(test.clicked.lengths > 0)
    rows = np.sort(draw.permutation(rows)[:count])
    form = test.form[rows]
    need, queries = shop.world.need[form], [test.queries[row] for row in rows]
    kind = np.array([shop.world.needs[n].kind for n in need])
    counts = Counter(shop.complex_queries)
    heard = np.array([counts[query] for query in queries])
    labels = {f"kind: {name}": kind == n for n, name in enumerate(KINDS)}
    labels |= {"seen": shop.world.seen[form], "unseen": ~shop.world.seen[form]}
    labels |= {"clicks: 0": heard == 0, "clicks: 1-2": (heard > 0) & (heard < 3)}
    labels["clicks: 3+"] = heard > 2
    found = test.clicked.select(rows), test.ordered.select(rows)
    return Asked(queries, *found, need, rows, labels)


# %%
def of_task(rows: np.ndarray, first: int) -> Asked:
    """Some test requests of the ordinary log; equal queries are a cluster, from `first` on."""
    task = shop.direct
    queries = [task.queries[row] for row in rows]
    nothing = Ragged.from_lists([[] for _ in rows])
    cluster = first + np.unique(np.array(queries), return_inverse=True)[1]
    return Asked(queries, task.positives.select(rows), nothing, cluster, rows, {})


def straight_requests(count: int) -> Asked:
    """Ordinary test requests with a click."""
    draw = np.random.default_rng(derive_seed(world_seed, "straight"))
    rows = np.sort(draw.permutation(len(shop.direct.queries))[:count])
    return of_task(rows, 1_000_000)


# %%
def ranked_products(model: Retriever, source: Tensor, k: int) -> np.ndarray:
    """The k likeliest products of each source, EMPTY where there are no more. (Q, S) -> (Q, k)."""
    beams = beam_search(model.bart, source, settings.beam_width, trie)
    ranked = np.full((len(source), k), EMPTY)
    for row, leaves in enumerate(beams.leaves):
        found = [
            item for leaf in leaves[leaves >= 0] for item in owners[leaf].tolist()
        ][:k]
        ranked[row, : len(found)] = found
    return ranked


def valid_share(model: Retriever, source: Tensor) -> np.ndarray:
    """Share of the ten best identifiers, written freely, that a product has. (Q, S) -> (Q,)."""
    beams = beam_search(model.bart, source, 10, alphabet.ranges())
    leaves = trie.find(beams.tokens.reshape(-1, beams.tokens.shape[2]))
    return (leaves >= 0).reshape(len(source), 10).mean(1)


# %%
def scores_of(asked: Asked, ranked: np.ndarray) -> dict[str, np.ndarray]:
    """Hits of clicks, of orders and of cold products, NaN where there was none to hit.

    `long_tail` is the share of a list's places that cold products have.
    """
    found, k, cold = {}, settings.k, cold_products()
    kept = cold[asked.clicked.values]
    pairs = asked.clicked.rows[kept], asked.clicked.values[kept]
    chilly = Ragged.from_pairs(*pairs, len(asked.clicked))
    every = {"": asked.clicked, "order_": asked.ordered, "cold_": chilly}
    for name, wanted in every.items():
        hits = relevance_matrix(ranked, wanted)
        for metric, of in (("hr", hit_rate_at_k), ("mrr", reciprocal_rank_at_k)):
            values = np.where(wanted.lengths > 0, of(hits, k), np.nan)
            found[f"{name}{metric}@{k}"] = values
    shown = ranked != EMPTY
    found["long_tail"] = (cold[ranked] & shown).sum(1) / np.maximum(1, shown.sum(1))
    return found


def cold_products() -> np.ndarray:
    """The half of the products with the fewest clicks in the log. Shape: -> (N,) bool."""
    count = len(identifiers)
    clicks = np.bincount(shop.direct.train_rows, minlength=count)
    clicks += np.bincount(shop.complex_rows, minlength=count)
    return np.argsort(np.argsort(clicks, kind="stable"), kind="stable") < count // 2


def public_ids(ranked: np.ndarray) -> np.ndarray:
    """Item ids of product rows, EMPTY kept. Shape: (Q, k) -> (Q, k)."""
    return np.where(ranked == EMPTY, EMPTY, shop.world.truth.item_id[ranked])


# %%
def measure(
    name: str, model: Retriever, keywords: bool = False, writes: bool = False
) -> None:
    """Ask an arm all test requests; record means by kind, and one row a request.

    With `keywords` it reads them, and its metrics begin with "keywords_".
    """
    parts = []
    for asked, prefix in ((hard_requests, ""), (easy_requests, "direct_")):
        thoughts = shop.thoughts(asked.queries) if keywords else ()
        source = sources(asked.queries, thoughts)
        if writes:
            source = written_keywords(model, source)
        found = judged(name, model, asked, source, keywords)
        mark = "keywords_" * keywords + prefix
        parts.append({f"{mark}{metric}": values for metric, values in found.items()})
        for metric, values in parts[-1].items():
            record.metric(f"{name}/{metric}", mean_of(values))
            for label in () if prefix else asked.labels:
                chosen = values[asked.labels[label]]
                record.metric(f"{name}/{metric}/{label}", mean_of(chosen))
    if not keywords:
        record_rows(name, parts)


# %%
def judged(
    name: str, model: Retriever, asked: Asked, source: Tensor, keywords: bool
) -> dict[str, np.ndarray]:
    """All metrics of one set of requests, one value a request."""
    ranked = ranked_products(model, source, settings.k)
    found = scores_of(asked, ranked)
    if asked is hard_requests and not keywords:
        RANKED[name] = ranked
        found["valid"] = valid_share(model, source)
        if shop.world is not None:
            sessions = shop.world.truth.session_id[asked.rows]
            found |= expected_outcomes(shop.world.truth, sessions, public_ids(ranked))
    return found


# %%
def mean_of(values: np.ndarray) -> float:
    """Mean of what is known, NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def record_rows(name: str, parts: list[dict[str, np.ndarray]]) -> None:
    """One row a request: complex ones, then direct ones, each with values of its own metrics."""
    asked = (hard_requests, easy_requests)
    rows = {
        "query_row": np.concatenate([asked[0].rows, 10_000_000 + asked[1].rows]),
        "cluster": np.concatenate([part.cluster for part in asked]),
    }
    before, after = (len(part.queries) for part in asked)
    for metric, values in parts[0].items():
        rows[metric] = np.append(values, np.full(after, np.nan))
    for metric, values in parts[1].items():
        rows[metric] = np.append(np.full(before, np.nan), values)
    record.rows(name, rows)


# %% [markdown]
# The *online experiment* splits users at random. In a first period both halves get the same lists (A/A), in a second one half gets the treatment's (A/B). Both use the same random numbers, so that a
# request with an unchanged list does the same. Ratios (clicks over views) are compared by the delta method over users, who are what was split; a request is no unit of its own.

# %% [markdown]
# ## Train and watch
#
# All arms start from one base model that has learnt both prompts. It is shipped with the book for shop 0, and so is the distilled model from
# which alignment starts; `-p fresh true` trains both anew. Whether there is anything to distil is asked first: the *base with keywords* must be clearly better than the *base without*.


# %%
RANKED, MODELS, HISTORIES = {}, {}, {}  # of this page, by arm
ON_PAGE = ["base", "extra", "distilled", "grpo", "tpma"]


def run_arm(name: str) -> None:
    """Train an arm and measure it; where it was taught with keywords, with them as well."""
    writes = False
    if name in ("base", "start"):
        model = base_model() if name == "base" else distilled_model()
    elif name in ALIGNED:
        model = distilled_model()
        plan = Alignment(**ALIGNED[name])
        HISTORIES[name] = align(model, plan, derive_seed(seed, "aligning"))
    elif name in CHANGES:
        plan, model = Plan(**CHANGES[name]), base_model()
        count, writes = round(plan.longer * settings.steps), plan.writes
        arm_seed = derive_seed(seed, "arms")
        HISTORIES[name] = train(model, plan, count, settings.rate, arm_seed)
    else:
        raise one_of("arm", name, ["base", "start", *CHANGES, *ALIGNED])
    measure(name, model, writes=writes)
    if name in ("base", "distilled", "teacher_only"):
        measure(name, model, keywords=True)
    MODELS[name] = model


# %% tags=["train"]
hard_requests = complex_requests(settings.requests)
easy_requests = straight_requests(settings.straight)
for name in ON_PAGE if arms == "main" else arms.split(","):
    with record.phase(f"arm {name}"):
        run_arm(name)

# %% [markdown]
# Healthy curves: the cross entropy of both arms falls slowly and stays above the base's own noise, since two of three clicks of the log are on the wrong product; the divergence falls by a good
# part at first and then more slowly. A divergence that starts near zero means a teacher that does not look at its keywords: there is nothing to distil.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Left: cross entropy of the student's prompt, mean of 20 steps. Right: the divergence of the student from its own predictions with keywords. It starts well above zero, which is what there is to learn, and falls.", "name": "fig-03-loss"}, "image": {"alt": "Two panels over optimiser steps. Left two falling lines, for the arms extra and distilled. Right one line that falls steeply and then slowly."}}
from minisearch.plots import COLORS, figure

fig, (left, right) = figure(width=7, height=3.0, columns=2, layout="constrained")
for ax, column, names in (
    (left, "own", ("extra", "distilled")),
    (right, "kl", ("distilled",)),
):
    for name in names:
        if name in HISTORIES:
            at, values = HISTORIES[name].column(column)
            width = min(20, len(values))
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            color = COLORS[("extra", "distilled").index(name)]
            ax.plot(at[width - 1 :], smooth, label=name, color=color)
    ax.set_xlabel("optimiser step")
    ax.legend()
left.set_ylabel("cross entropy (nats a code)")
right.set_ylabel("divergence (nats a code)")
record.figure(fig, "loss", "Cross entropy and divergence.")

# %% [markdown]
# Alignment is watched by position: of the rollouts, the share whose code at a position is that of some clicked product. Coarse codes are matched most often; a curve that
# rises for the first codes and falls for the last would say that the policy learns categories and forgets products.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Share of sampled codes that a clicked product of the request has, by position, over alignment with TPMA and with GRPO, mean of 10 steps. Coarse codes come first and are matched most often.", "name": "fig-03-positions"}, "image": {"alt": "Two panels, GRPO and TPMA, with five lines each over optimiser steps; the line of position 1 lies highest."}}
fig, axes = figure(width=7, height=3.0, columns=2, layout="constrained")
for ax, name in zip(axes, ("grpo", "tpma"), strict=True):
    for position in range(len(alphabet.sizes)):
        if name in HISTORIES:
            at, values = HISTORIES[name].column(f"matched {position + 1}")
            width = min(10, len(values))
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            label = f"position {position + 1}"
            ax.plot(at[width - 1 :], smooth, label=label, color=COLORS[position])
    ax.set_title(name)
    ax.set_xlabel("alignment step")
axes[0].set_ylabel("share of codes matched")
axes[1].legend(fontsize="small")
record.figure(fig, "positions", "Matched codes by position.")

# %% [markdown]
# ## Results
#
# ### On this page
#
# What is served reads no keywords: `hr@10`. Beside it stands the same model with them, its teacher. `grpo` and `tpma` begin from the shipped distilled model.

# %% tags=["page-only", "hide-input"]
from minisearch import pages

SHOWN = ("base", "extra", "distilled", "grpo", "tpma")
METRICS = (
    "hr@10", "keywords_hr@10", "mrr@10", "order_hr@10", "valid", "relevance", "orders",
    "cold_hr@10", "long_tail", "direct_hr@10",
)  # fmt: skip
pages.score_table(record.metrics, SHOWN, METRICS)

# %% tags=["page-only", "hide-input"]
by_label = {}
for label in hard_requests.labels:
    for arm, metric in (
        ("base", "hr@10"), ("base", "keywords_hr@10"), ("extra", "hr@10"),
        ("distilled", "hr@10"),
    ):  # fmt: skip
        name = f"{arm}, with keywords" if metric.startswith("key") else arm
        value = record.metrics.get(f"{arm}/{metric}/{label}")
        by_label.setdefault(label, {})[name] = value
pd.DataFrame(by_label).T.astype(float).round(3)

# %% [markdown]
# HR@10 by kind of request, and by how many clicks of the log had the same words. `unseen` are wordings that no request of the log had: their names mean nothing to the student, whatever it was taught. What is distilled is knowledge about *these queries*,
# and about the words they share with others. The teacher, who reads keywords, does not mind.
#
# ### What serving costs

# %% tags=["page-only"]
few, cost = hard_requests.queries[:16], {}
for name in ("extra", "distilled"):
    if name in MODELS:
        cost[name] = tuple(sources(few).shape), len(alphabet.sizes)
record.check("both students read and write equally much", len(set(cost.values())) <= 1)
print(f"tokens read, codes written: {cost}")

# %% [markdown]
# ### In the online experiment
#
# Half of the users get the distilled model's lists in place of `extra`'s. One such experiment, with its A/A period:

# %% tags=["page-only", "hide-input"]
outcome = []
if {"extra", "distilled"} <= RANKED.keys() and shop.world is not None:
    lists = [public_ids(RANKED[name]) for name in ("extra", "distilled")]
    sessions = shop.world.truth.session_id[hard_requests.rows]
    for period, ratios in experiment(shop.world.truth, sessions, *lists, seed).items():
        for metric, ratio in ratios.items():
            spread = f"{ratio.lift:+.1%} [{ratio.low:+.1%}, {ratio.high:+.1%}]"
            outcome.append(
                {"period": period, "metric": metric, "treatment over control": spread}
            )
pd.DataFrame(outcome)

# %% [markdown]
# With so few requests the interval of such an experiment is wide. The claims use the expected clicks and orders of all requests under both models, which have no luck in them.
#
# ### What the grid says

# %% tags=["page-only", "hide-input"]
from minisearch.showing import claims_markdown

Markdown(claims_markdown("03_onesearch_v2"))

# %% tags=["page-only", "hide-input"]
as_registered = not data and noise < 0 and not steps
print(
    pages.live_note(
        "03_onesearch_v2", profile, world_seed, record.metrics, as_registered
    )
)

# %% tags=["page-only", "hide-input"]
pages.arm_table("03_onesearch_v2", METRICS)

# %% [markdown]
# How much depends on the thoughts being right: the share of wrong words is turned from none to all, each time with a base of its own.

# %% tags=["page-only", "hide-input"]
pages.dose_chart(
    "03_onesearch_v2", "noise", 0.1, ("extra", "distilled"), "hr@10",
    "share of wrong words in thoughts", "HR@10, complex requests",
    "What distillation brings, by the quality of thoughts",
    "Lines of HR@10 against the share of wrong words, for the arms extra and distilled.",
)  # fmt: skip

# %% [markdown]
# ### What we take from it
#
# ### Where we deviate, and what was tuned

# %% tags=["page-only", "hide-input"]
pages.deviations_table("03_onesearch_v2")

# %% tags=["page-only", "hide-input"]
pages.tuning_table("03_onesearch_v2")

# %% [markdown]
# ## Exercises
#
# Each exercise checks itself: the cell after the answer names the property that fails, never the
# answer. For stubs in place of the solutions: `minisearch assignment build 03 --out DIR`.
#
# ### Exercise 1: which way the divergence goes
#
# Write `guided_loss` for the logits of teacher and student at the positions of one identifier: $\tau^2$ times the mean over positions of
# KL(teacher || student), both softened by $\tau$. What changes if the two are swapped?

# %% tags=["page-only", "hide-input"]
from minisearch.classroom import check, checks


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch03-kl", "locked": false, "schema_version": 3, "solution": true, "task": false}
def guided_loss(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """Temperature squared times the mean divergence. Shape: (L, C), (L, C)."""
    ### BEGIN SOLUTION

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        scaled = logits / temperature
        scaled = scaled - scaled.max(1, keepdims=True)
        return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student)
    return float(temperature**2 * (np.exp(p) * (p - q)).sum(1).mean())
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch03-kl-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch03-kl")
def properties_of_guidance(loss):
    sure, fair = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    yield "nothing to learn from oneself", lambda: np.isclose(loss(sure, sure, 1.0), 0)
    by_hand = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    yield "one position by hand", lambda: np.isclose(loss(sure, fair, 1.0), by_hand)
    ### BEGIN HIDDEN TESTS
    back = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    yield "the other way round", lambda: np.isclose(loss(fair, sure, 1.0), back)
    two = np.vstack([sure, fair]), np.vstack([fair, fair])
    yield "the mean over positions", lambda: np.isclose(loss(*two, 1.0), by_hand / 2)
    root = np.sqrt([0.75, 0.25]) / np.sqrt([0.75, 0.25]).sum()
    soft = 4 * (root * np.log(root / 0.5)).sum()
    yield "softened and scaled back", lambda: np.isclose(loss(sure, fair, 2.0), soft)
    yield "large logits", lambda: np.isclose(loss(sure + 1e4, fair - 1e4, 1.0), by_hand)
    yield "shifts mean nothing", lambda: np.isclose(loss(sure + 3, fair, 1.0), by_hand)
    ### END HIDDEN TESTS


assert check("ch03-kl", guided_loss)

# %% [markdown]
# Swapped, the loss would not mind a student that leaves out what the teacher holds possible. A request with two senses has two likely products; both should survive.
#
# ### Exercise 2: a silent bug
#
# The cell below weighs matched tokens as a trainer does that counts positions from one. It runs, the loss falls, and most tokens improve. Print the marginals of a
# rollout that matches its target everywhere. Which token is never told that it was right, however right it is? Write `marginals`, with weights 2, 2, 2, 1, 1:
# what each position adds to the best prefix reward over all targets.


# %% tags=["page-only"]
def weight_at(position: int) -> int:
    """Two for early positions, one for late ones."""
    return 2 * (position < 3) + (3 <= position < 5)


released = [weight_at(position) for position in (1, 2, 3, 4, 5)]


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch03-marginal", "locked": false, "schema_version": 3, "solution": true, "task": false}
def marginals_of(rollout: list[int], targets: list[list[int]]) -> list[int]:
    """What each of five positions adds to the best prefix reward of any target."""
    ### BEGIN SOLUTION
    best, added = 0, []
    for length in range(1, 6):
        now = max(
            sum(
                weight
                for weight, code, wanted in zip(
                    (2, 2, 2, 1, 1)[:length], rollout, target, strict=False
                )
                if code == wanted
            )
            for target in targets
        )
        added.append(now - best)
        best = now
    return added
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch03-marginal-test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
@checks("ch03-marginal")
def properties_of_marginals(of):
    one = [[1, 2, 3, 4, 5]]
    yield "a whole match", lambda: list(of([1, 2, 3, 4, 5], one)) == [2, 2, 2, 1, 1]
    yield "nothing right", lambda: list(of([0, 0, 0, 0, 0], one)) == [0, 0, 0, 0, 0]
    ### BEGIN HIDDEN TESTS
    yield (
        "the last token alone",
        lambda: list(of([0, 0, 0, 0, 5], one)) == [0, 0, 0, 0, 1],
    )
    yield "a wrong start", lambda: list(of([0, 2, 3, 4, 5], one)) == [0, 2, 2, 1, 1]
    two = [[1, 2, 9, 9, 9], [0, 0, 3, 4, 5]]
    # After three positions the first target has 4, at the end both have 4: nothing is added.
    yield (
        "the best of two targets",
        lambda: list(of([1, 2, 3, 4, 5], two)) == [2, 2, 0, 0, 0],
    )
    late = [[1, 9, 9, 9, 9], [0, 2, 3, 4, 5]]
    yield (
        "another target overtakes",
        lambda: list(of([1, 2, 3, 4, 5], late)) == [2, 0, 2, 1, 1],
    )
    yield (
        "codes of other places",
        lambda: list(of([5, 4, 3, 2, 1], one)) == [0, 0, 2, 0, 0],
    )
    ### END HIDDEN TESTS


assert check("ch03-marginal", marginals_of)

# %% tags=["page-only", "hide-input"]
print(
    f"weights that count from one: {released}; the figure of the paper: [2, 2, 2, 1, 1]"
)

# %% [markdown]
# The last token's marginal is always 0, so that its normalised advantage is 0 too. Cross entropy still trains it, and nothing looks broken. Only a curve by position would show it.
#
# ### Exercise 3: the gate
#
# Write `gates`: 1 at the first position, then the share of the tokens before it that match, for the best target at that point. Then look at the printed formula, which
# divides the weighted reward by $l - 1$: how large can it get?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch03-gate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def gates_of(rollout: list[int], targets: list[list[int]]) -> list[float]:
    """The gate of every position."""
    ### BEGIN SOLUTION
    found = [1.0]
    for length in range(1, len(rollout)):
        matches = [
            sum(a == b for a, b in zip(rollout[:length], target[:length], strict=True))
            for target in targets
        ]
        found.append(max(matches) / length)
    return found
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch03-gate-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch03-gate")
def properties_of_gates(of):
    one = [[1, 2, 3, 4, 5]]
    yield "a whole match", lambda: np.allclose(of([1, 2, 3, 4, 5], one), 1)
    wrong = [1, 0, 1 / 2, 2 / 3, 3 / 4]
    yield "a wrong start", lambda: np.allclose(of([0, 2, 3, 4, 5], one), wrong)
    ### BEGIN HIDDEN TESTS
    yield (
        "the last token does not count",
        lambda: np.allclose(of([1, 2, 3, 4, 0], one), 1),
    )
    two = [[1, 9, 9, 9, 9], [9, 2, 3, 9, 9]]
    best = [1, 1, 1 / 2, 2 / 3, 2 / 4]
    yield "the best target so far", lambda: np.allclose(of([1, 2, 3, 4, 5], two), best)
    yield "nothing right", lambda: np.allclose(of([7, 7, 7], [[1, 2, 3]]), [1, 0, 0])
    yield (
        "three positions",
        lambda: np.allclose(of([1, 7, 3], [[1, 2, 3]]), [1, 1, 0.5]),
    )
    ### END HIDDEN TESTS


assert check("ch03-gate", gates_of)

# %% [markdown]
# After one right coarse code the printed gate is 2: a factor that was meant to damp would double.
#
# ### Exercise 4: predict, then break it
#
# In the paper's training data the large model has seen the product that was clicked, so that its words survive among the keywords. Write `named_in`: the share of rows in which some keyword stands in the
# product's title, as whole words in their order. Then predict: how much higher is it with leaking keywords than with honest ones? What will a teacher learn to do with
# keywords that always name the product, and what becomes of that when nobody has clicked yet?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch03-leak", "locked": false, "schema_version": 3, "solution": true, "task": false}
def named_in(keywords: list[list[str]], titles: list[str]) -> float:
    """Share of rows with a keyword in the title, as whole words."""
    ### BEGIN SOLUTION
    rows = [
        any(f" {keyword} " in f" {title} " for keyword in found)
        for found, title in zip(keywords, titles, strict=True)
    ]
    return sum(rows) / len(rows)
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch03-leak-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch03-leak")
def properties_of_leaks(share):
    yield (
        "one of two",
        lambda: share([["red"], ["blue"]], ["red lamp", "green lamp"]) == 0.5,
    )
    yield "two keywords count once", lambda: share([["red", "lamp"]], ["red lamp"]) == 1
    ### BEGIN HIDDEN TESTS
    yield "a word inside a word", lambda: share([["red"]], ["shredded wheat"]) == 0
    yield "two words in order", lambda: share([["power bank"]], ["new power bank"]) == 1
    yield "two words apart", lambda: share([["power bank"]], ["bank of power"]) == 0
    yield "no keyword", lambda: share([[], ["cup"]], ["cup", "cup"]) == 0.5
    yield (
        "at either end",
        lambda: share([["cup"], ["cup"]], ["cup red", "red cup"]) == 1,
    )
    ### END HIDDEN TESTS


assert check("ch03-leak", named_in)

# %% tags=["page-only", "hide-input"]
titles = [shop.texts[item] for item in shop.complex_rows[:500]]
honest = shop.thoughts(shop.complex_queries[:500])
leaky = [found + title.split()[:2] for found, title in zip(honest, titles, strict=True)]
print(f"honest {named_in(honest, titles):.0%}, leaking {named_in(leaky, titles):.0%}")

# %% [markdown]
# A leaking teacher learns to trust keywords that are always right in training. At test they are not, and a comparison of student and teacher there speaks about the leak: a
# distilled student above its own teacher, as in the paper's table, can come from that alone.
#
# ### Exercise 5: what was split
#
# In the online test users are split, not views. Write `user_ratio`: clicks over views of one group, and its standard error by the delta method over users,
# $\mathrm{se} = \frac{1}{\bar y \sqrt n}\, \mathrm{sd}(x_u - r\, y_u)$ with $x_u$, $y_u$ a user's clicks and views, $r$ the ratio and the standard deviation with $n - 1$.


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch03-ratio", "locked": false, "schema_version": 3, "solution": true, "task": false}
def user_ratio(
    clicks: np.ndarray, views: np.ndarray, user: np.ndarray
) -> tuple[float, float]:
    """Ratio and standard error; one row a request. Shape: (Q,) each."""
    ### BEGIN SOLUTION
    every, place = np.unique(user, return_inverse=True)
    x, y = np.bincount(place, clicks), np.bincount(place, views)
    ratio = x.sum() / y.sum()
    error = (x - ratio * y).std(ddof=1) / (y.mean() * np.sqrt(len(every)))
    return float(ratio), float(error)
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch03-ratio-test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
@checks("ch03-ratio")
def properties_of_ratios(of):
    clicks, views, user = (
        np.array([1, 0, 1, 2]),
        np.array([2, 2, 4, 4]),
        np.array([5, 5, 8, 8]),
    )
    yield "the ratio of sums", lambda: np.isclose(of(clicks, views, user)[0], 4 / 12)
    # Users have 1 click of 4 and 3 of 8: residuals -1/3 and 1/3, their sd sqrt(2)/3, mean views 6.
    by_hand = np.sqrt(2) / 3 / (6 * np.sqrt(2))
    yield "the error by hand", lambda: np.isclose(of(clicks, views, user)[1], by_hand)
    ### BEGIN HIDDEN TESTS
    order = np.array([2, 0, 3, 1])
    mixed = clicks[order], views[order], user[order]
    yield "requests in any order", lambda: np.isclose(of(*mixed)[1], by_hand)
    alike = np.array([1, 2, 3]), np.array([2, 4, 6]), np.array([0, 1, 2])
    yield "users of one rate", lambda: np.allclose(of(*alike), (0.5, 0))
    draw = np.random.default_rng(0)
    heavy = np.repeat(np.arange(20), 50)
    rate = draw.random(20)[heavy]
    many = (draw.random(1000) < rate).astype(float), np.ones(1000), heavy
    naive = np.sqrt(0.25 / 1000)
    yield "users who differ", lambda: of(*many)[1] > 2 * naive
    ### END HIDDEN TESTS


assert check("ch03-ratio", user_ratio)

# %% [markdown]
# ## At scale
#
# `small` is a larger simulated shop and model; `full` takes KuaiSearch files and a file of thoughts that a large model wrote, has the paper's codebook (4096-1024-512 and twice 256) and beam, and BART-base's shape. The checkpoint's weights are
# not loaded: its words are another alphabet. What a step costs, counted in forward passes of the student: cross entropy one, R-Drop one more, the adversarial step one, the teacher one without a gradient. Serving
# costs what it cost before.

# %% tags=["page-only", "hide-input"]
from transformers import BartForConditionalGeneration

from minisearch.models import describe

full = SearchSettings.of("full")
codes_there = sum(full.coarse) + 2 * full.fine
size = describe(
    lambda: BartForConditionalGeneration(
        toy_bart_config(
            50_000 + codes_there, d_model=full.width, encoder_layers=6, decoder_layers=6,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072, encoder_attention_heads=12,
            decoder_attention_heads=12,
        )
    )
)  # fmt: skip
state = size["weight_bytes"] + size["gradient_bytes"] + size["optimiser_bytes"]
tokens = 1 + full.query_words + full.keyword_words + 5
rows = full.steps * (2 * full.batch_size + 3 * full.extra)
hours = 6 * size["parameters"] * rows * tokens / (100e12 / 3) / 3600
print(f"{codes_there:,} codes; {size['parameters'] / 1e6:.0f} M parameters,")
print(
    f"{state / 1e9:.1f} GB of weights, gradients and AdamW a GPU; activations come on top"
)
print(f"{full.steps:,} steps of distillation: about {hours:.0f} GPU-hours")

# %% [markdown]
# Hours are six floating-point operations a parameter and token over a third of what a GPU of 100 TFLOP/s could do: an order of magnitude.
#
# ```bash
# minisearch run 03 --profile small
# minisearch run 03 --profile full -p data DIR   # KuaiSearch files and DIR/thoughts.tsv (query, tab, keywords)
# ```
#
# Nobody has run `small` or `full` yet; their columns are configuration.

# %% tags=["page-only", "hide-input"]
pd.DataFrame(SearchSettings.table()).set_index("setting")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# :list: bullet
# ```
