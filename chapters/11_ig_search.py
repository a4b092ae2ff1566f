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
# # IG-Search: what was it worth to ask?
#
# Eight attempts at a question, all of them wrong. Some asked for the right thing and lost it later, some asked for nothing
# useful. The search agent of [chapter 7](07_search_agent.py) learns nothing from the eight: their rewards are equal, so that none is better than its group. And where one attempt is right, all of its queries are praised alike, useless ones
# too. IG-Search {cite:p}`igsearch` gives each *query* a reward of its own: by how much did what came back
# raise the model's own belief in the right answer, compared with passages that other questions' searches brought? No annotation is needed beyond the answer.
# This chapter builds that reward, asks first what it can see and what it cannot, and then whether a policy that gets it learns faster.

# %% tags=["page-only", "hide-input"]
from IPython.display import HTML, Markdown, display

from minisearch.agents.viewer import group_html
from minisearch.showing import card_box

Markdown(card_box("11_ig_search"))

# %% tags=["hide-input"]
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# %% tags=["hide-input"]
from minisearch.agents.beliefs import Branch, branch_log_probs
from minisearch.agents.grpo import GRPO, Step
from minisearch.agents.objective import group_advantages
from minisearch.agents.protocol import protocol_of
from minisearch.agents.queries import due_steps, record_test, scored
from minisearch.agents.rewards import exact_match_reward, gold_recall, normalise_answer
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.screening import composed, hard_task, knows_the_rest, screened
from minisearch.agents.study import (
    AgentSettings,
    Task,
    chosen,
    invented_task,
    open_world,
    real_task,
    record_training,
    train,
)
from minisearch.agents.trajectory import Trajectory
from minisearch.errors import InputError
from minisearch.metrics import auc_by_group
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.profiles import derive_seed, dial, quiet, use_threads
from minisearch.recorder import Recorder

# %% [markdown]
# ## One attempt, query by query
#
# The world is the small invented encyclopedia of chapter 7, the model the one that its training starts from. Below, eight first attempts at one question: the first of two dozen that nobody answered and at which the attempts differ
# clearly in what they found, the best of them first. What each query was worth follows in step 5.
# %% tags=["page-only", "hide-input"]
start = load_lm("toy-0")
example, example_library = open_world("blank", 100)
shown_asked = [q for q in example.questions(24, hops=(2, 3), seed=1) for _ in range(8)]
shown = rollout(
    start, example_library, protocol_of(start.tokenizer),
    [protocol_of(start.tokenizer).prompt(start.tokenizer, q["question"]) for q in shown_asked],
    RolloutConfig(), seed=5,
)  # fmt: skip
shown_rewards = [
    exact_match_reward(*pair) for pair in zip(shown, shown_asked, strict=True)
]
recalls = np.array(
    [gold_recall(*pair) for pair in zip(shown, shown_asked, strict=True)]
)
dead = [
    n for n in range(0, len(shown), 8)
    if not any(shown_rewards[n : n + 8]) and np.ptp(recalls[n : n + 8]) >= 0.5
]  # fmt: skip
failed = dead[0]  # of a group that never answered, and in parts knew better
part = slice(failed, failed + 8)
order = np.argsort(-recalls[part], kind="stable") + failed
HTML(
    group_html(
        start,
        shown_asked[failed],
        [shown[n] for n in order],
        [shown_rewards[n] for n in order],
        example.corpus,
    )
)

# %% [markdown]
# Eight attempts, no right answer (open them by their triangles; a star marks a passage that a step of the question needs).
# Some of the queries found what the first step asked for, others found nothing of use. To GRPO all of that is one and the same: eight zeros.

# %% [markdown]
# ## What the paper claims
#
# All of it is about Qwen2.5 models that were trained on NQ and HotpotQA and answer questions of seven sets with a search engine over
# Wikipedia.
#
# | exact match, mean of seven sets | 3B | 7B |
# |---|---|---|
# | {term}`AutoRefine`, base | .405 | |
# | {term}`MR-Search`, base | .414 | .460 |
# | {term}`GiGPO`, instruct | .421 | |
# | IG-Search | **.430** (base) | **.479** (instruct) |
# | IG-Search, compared with an empty context instead of other passages | .403 | |
#
# On Bamboogle, 125 questions, the 3B models: IG-Search .424, GiGPO .641. The abstract says that groups in which every attempt fails still give a signal, that a training step takes about 6.4 % longer, and that answering costs
# nothing more.
#
# :::{admonition} What we could and could not read
# :class: note
# Title, abstract and the first line of the introduction were available to us, and two reading notes that others made from the
# full text. From those come the score, the comparison with other passages (the {term}`counterfactual`) of which there are three, the weight 0.3, the restriction to query tokens and the
# table. The exact form of the stabilisers, their constants, the reward and the batch are not known to us: **dead zone,
# damping and soft clip below are our reading of their names**. Our rivals are built from their public code or papers. No verdict
# compares a toy number with the paper's.
# :::
#
# ## Symbols
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $a^*$ | the right answer, tokens $a^*_1 \dots$ | `names` |
# | $C_t$, $C_t^{(j)}$ | an attempt up to and with what search $t$ brought; with other passages in their place | a `Branch` each |
# | $p$ | position of a token | |
# | $L(a \mid C)$ | mean log-probability of the tokens of $a$ after $C$ | `branch_log_probs` |
# | $N$ | random blocks to compare with | `settings.draws` |
# | $\mathrm{IG}_t$ | information gain of search $t$ | `gains` |
# | $\delta, \eta, \lambda$ | dead zone, damping, scale of the soft clip | `dead_zone`, `damping`, `scale` |
# | $\widetilde{\mathrm{IG}}_t$ | the same, stabilised | `stabilised` |
# | $Q_t$ | tokens of query $t$ | `step.batch.search == t` |
# | $\alpha$ | weight of the gain | `settings.alpha` |
# | $A_i$ | advantage of attempt $i$ in its group (chapter 7) | `step.advantages` |
#
# ## Parameters
#
# In the settings, the four values of a `dial` are those of the profiles smoke, toy, small and full.

# %% tags=["parameters"]
profile: str = "toy"  # smoke | toy | small | full
seed: int = 1000  # training and sampling; the published grid uses other seeds
world_seed: int = 0  # which encyclopedia is asked about, and which one is trained on
init_seed: int = 0  # which of the two toy models training starts from
arms: str = "main"  # "main", or arms of the card with commas between them
data: str = ""  # folder of question files; empty: the profile's own questions
service: str = ""  # address of a retrieval service; empty: an index in memory
steps: int = 0  # training steps; 0: the profile's

# %%
quiet()


@dataclass(frozen=True, kw_only=True)
class LoopSettings(AgentSettings):
    """What chapter 7 has too; in the last column IG-Search's values, where they are known."""

    model: str = dial("toy", "toy", "smollm2", "Qwen/Qwen2.5-3B", source="3B and 7B")
    questions_a_step: int = dial(2, 8, 16, 256, source="not published; AutoRefine's")
    group: int = dial(4, 8, 5, 5, source="5; ours")
    steps: int = dial(2, 20, 100, 200, source="200; ours")
    minibatches: int = dial(2, 2, 2, 2, source="not published; ours")
    learning_rate: float = dial(6e-4, 6e-4, 1e-5, 1e-6, source="1e-6; sweep")
    warmup: float = dial(0.0, 0.0, 0.0, 0.0, source="none (AutoRefine)")
    clip_low: float = dial(0.2, 0.2, 0.2, 0.2, source="0.2 (AutoRefine)")
    clip_high: float = dial(0.28, 0.28, 0.2, 0.2, source="0.2 (AutoRefine); DAPO")
    kl: float = dial(0.0, 0.0, 0.001, 0.001, source="0.001; ours")
    searches: int = dial(5, 5, 5, 5, source="5")
    passages: int = dial(2, 2, 3, 3, source="3; ours")
    turn_tokens: int = dial(48, 64, 128, 500, source="not published; ours")
    block_tokens: int = dial(256, 256, 512, 512, source="512 (AutoRefine); ours")
    row_tokens: int = dial(1024, 1024, 2048, 4096, source="not published; ours")
    one_hop: int = dial(6, 20, 100, 0, source="ours; test questions, 0: all there are")
    multi_hop: int = dial(12, 300, 200, 0, source="ours; test questions, 0: all")


# %%
@dataclass(frozen=True, kw_only=True)
class GainSettings(LoopSettings):
    """What IG-Search adds."""

    draws: int = dial(3, 3, 3, 3, source="3")
    alpha: float = dial(3.0, 3.0, 0.3, 0.3, source="0.3; sweep")
    dead_zone: float = dial(0.05, 0.05, 0.05, 0.05, source="not published; ours; nats")
    damping: float = dial(0.5, 0.5, 0.5, 0.5, source="not published; ours")
    scale: float = dial(1.0, 1.0, 1.0, 1.0, source="not published; ours; nats")
    looked_at: int = dial(4, 80, 80, 80, source="ours; questions of the diagnosis")
    candidates: int = dial(16, 400, 0, 0, source="ours; screened for hard ones")


# %%
settings = GainSettings.of(profile, **({"steps": steps} if steps else {}))
use_threads(settings.threads)
record = Recorder.from_environment()

# %% [markdown]
# ## Step 1: the searches of an attempt
#
# An attempt is a list of segments, each with one author and one kind (chapter 7). A search needs four things of it: where its
# passages begin, the passages, what the model thought of them, and the tokens of its query.


# %%
@dataclass(frozen=True, eq=False)
class Search:
    """One search of an attempt, and what came of it."""

    row: int  # of the attempt
    number: int  # within the attempt, from 0
    start: int  # tokens of the attempt before the passages
    block: list[int]  # the passages
    thought: list[int]  # what the model wrote about them
    shown: str  # the passages as text, without case and punctuation
    opinion: str  # the thought, in the same way


def searches_of(lm: LanguageModel, attempts: Sequence[Trajectory]) -> list[Search]:
    """Every search of every attempt, in their order."""
    found = []
    for row, attempt in enumerate(attempts):
        start, number = 0, 0
        for place, segment in enumerate(attempt.segments):
            if segment.kind == "documents":
                after = attempt.segments[place + 1 : place + 2]
                thought = after[0].ids if after and after[0].kind == "think" else []
                texts = [normalise_answer(lm.decode(p)) for p in (segment.ids, thought)]
                found.append(Search(row, number, start, segment.ids, thought, *texts))
                number += 1
            start += len(segment.ids)
    return found


# %% [markdown]
# ## Step 2: how much the model believes in the answer
#
# Ask the model to answer at once, and see how likely the right answer's tokens are, on average {cite:p}`igsearch`:
#
# $$L(a^* \mid C) = \frac{1}{|a^*|} \sum_k \log \pi_{\text{old}}\bigl(a^*_k \mid C,\, \texttt{<answer>},\, a^*_{<k}\bigr).$$ (eq-11-belief)
#
# $\pi_{\text{old}}$ is the policy that wrote the attempts, and there is no gradient. That the tag of the answer is opened is our reading. The
# attempt is read once more, and a belief is a *branch* that leaves it after the query and goes on with passages and an answer of its own: in `branch_log_probs` all branches of an attempt share its keys and values. (The branch with the true passages can leave it after them: they have been read.)
#
# Our toy models were prepared for this: part of their pre-training were attempts cut short, then the true answer, a quarter of them with unrelated passages. A model from the shelf has not been taught to put a number on half of
# the evidence.

# %% tags=["page-only"]
import time

searches = searches_of(start, shown)
golds = [shown_asked[s.row]["golden_answers"][0] for s in searches]
cuts = [s.start + len(s.block) for s in searches]
began = time.process_time()
plain = start.answer_log_prob(
    [shown[s.row].ids[:cut] for s, cut in zip(searches, cuts, strict=True)], golds
)
middle = time.process_time()
ends = [start.encode(f" {name}") for name in golds]
branches = [
    Branch(s.row, cut, start.encode(" <answer>") + end, len(end))
    for s, cut, end in zip(searches, cuts, ends, strict=True)
]
shared = branch_log_probs(start, [a.ids for a in shown], branches)
gap = (plain - shared).abs().max().item()
record.check("beliefs of branches are those of whole texts", gap < 1e-4, f"{gap:.0e}")
print(f"{len(searches)} beliefs, largest difference below 0.0001")
print(f"each text by itself: {middle - began:.1f} s of one processor")
print(f"as branches:         {time.process_time() - middle:.1f} s")

# %% [markdown]
# ## Step 3: compared with what?
#
# The belief after the passages says little by itself: some answers are likelier than others whatever one reads. The
# difference to the belief before them is no better: a block of passages is text, and text of the right form changes the belief even if it is about something else. So the
# comparison is with blocks that came back in *other questions'* searches of the same batch:
#
# $$\mathrm{IG}_t = L(a^* \mid C_t) - \frac1N \sum_{j=1}^{N} L(a^* \mid C_t^{(j)}), \qquad N = 3.$$ (eq-11-gain)
#
# In $C_t^{(j)}$ everything before the passages stays. The three come from three other questions where there are so many. Blocks are left out that hold the answer, or were followed by a thought that names it; in a small world
# that happens by accident.
#
# One of the notes says that the unit that is exchanged is the passages *and* the block that the model wrote about them, its refinement. Our model writes no such block, only a
# thought, which is in part about the passages and in part a plan. We exchange the passages alone, and have an arm that exchanges the thought with them, `with_thought`. Step 6 shows the price of either: with the thought, useless passages get a gain too; without it, the gain sees less of steps before the last. We chose by the first, before any training.


# %%
def strangers(
    searches: Sequence[Search],
    asked: Sequence[str],
    names: Sequence[Sequence[str]],
    draws: int,
    random: np.random.Generator,
) -> list[list[int]]:
    """For each search, `draws` searches of other questions that brought none of its names.

    Of different questions, as far as there are so many. Empty where there is no such search.

    Args:
        asked: the question of each attempt.
        names: of each search, what the others may not have brought.
    """
    question = np.array([asked[s.row] for s in searches])
    found = []
    for number, own in enumerate(question):
        banned = [normalise_answer(name) for name in names[number]]
        groups: dict[str, list[int]] = {}
        for n in np.flatnonzero(question != own).tolist():
            text = f" {searches[n].shown}  {searches[n].opinion} "
            if not any(f" {name} " in text for name in banned):
                groups.setdefault(question[n], []).append(n)
        pools = list(groups.values())
        every = [n for pool in pools for n in pool]
        pools = [pools[n] for n in random.permutation(len(pools))[:draws]]
        pools += [every] * (draws - len(pools) if every else 0)
        found.append([pool[random.integers(len(pool))] for pool in pools])
    return found


# %%
@dataclass(frozen=True)
class Gain:
    """How a gain is measured; the defaults are those of `ig`, the paper's as far as we know it."""

    opening: str = "<answer>"  # what stands between the passages and the name
    thought: bool = False  # the thought about the passages is exchanged with them
    empty: bool = False  # compare with nothing at all, in place of other blocks
    mean: bool = True  # over the tokens of the name


def branches_of(
    lm: LanguageModel,
    searches: Sequence[Search],
    names: Sequence[Sequence[str]],
    others: Sequence[Sequence[int]],
    gain: Gain,
) -> dict[tuple[int, int], list[Branch]]:
    """Of each search and each of its names, the true branch and then the random ones."""
    opening = lm.encode(f" {gain.opening}")
    unit = [s.block + s.thought if gain.thought else s.block for s in searches]
    found = {}
    for number, search in enumerate(searches):
        blocks = [[]] if gain.empty else [unit[n] for n in others[number]]
        after = search.start + len(unit[number])  # what is true has been read already
        for place, name in enumerate(names[number] if blocks else []):
            end = lm.encode(f" {name}")
            found[number, place] = [
                Branch(search.row, after, opening + end, len(end)),
                *(
                    Branch(search.row, search.start, block + opening + end, len(end))
                    for block in blocks
                ),
            ]
    return found


# %%
def gains(
    lm: LanguageModel,
    attempts: Sequence[Trajectory],
    searches: Sequence[Search],
    names: Sequence[Sequence[str]],
    others: Sequence[Sequence[int]],
    gain: Gain,
) -> Tensor:
    """The gain of each search, the largest of its names; 0 without a name or a comparison.

    Shape: S searches, names and others of each -> (S,), nats a token (without `mean`: a name).
    """
    branches = branches_of(lm, searches, names, others, gain)
    every = [branch for those in branches.values() for branch in those]
    scores = branch_log_probs(lm, [a.ids for a in attempts], every)
    if not gain.mean:
        scores = scores * torch.tensor([float(branch.scored) for branch in every])
    values = torch.full((len(searches),), -torch.inf)
    parts = scores.split([len(those) for those in branches.values()])
    for (number, _), (real, *random) in zip(branches, parts, strict=True):
        values[number] = torch.maximum(
            values[number], real - torch.stack(random).mean()
        )
    return torch.where(values.isinf(), 0.0, values)


# %% tags=["page-only", "hide-input"]
names = [[name] for name in golds]
questions = [question["question"] for question in shown_asked]
others = strangers(searches, questions, names, 3, np.random.default_rng(0))
every = [
    branch
    for those in branches_of(start, searches, names, others, Gain()).values()
    for branch in those
]
began = time.process_time()
branch_log_probs(start, [attempt.ids for attempt in shown], every)
spent, own = time.process_time() - began, sum(len(a.ids) for a in shown)
read = sum(len(branch.ids) for branch in every)
print(
    f"a true and three random branches a search: {len(every)} branches, {spent:.1f} s"
)
print(f"tokens read: {own:,} of the attempts, {read:,} of their branches")

# %% [markdown]
# ## Step 4: taming it
#
# A gain of a hundredth of a {term}`nat` is noise, a loss may be due to a name that happened to stand in the true passages too, and one gain of ten nats would
# outweigh a batch. The paper names a dead zone, damping, and a logarithmic soft clip; we take them in this order:
#
# $$x = \begin{cases} 0 & |\mathrm{IG}| < \delta \\ \eta\, \mathrm{IG} & \mathrm{IG} \le -\delta \\ \mathrm{IG} & \text{else}\end{cases}
# \qquad \widetilde{\mathrm{IG}} = \operatorname{sign}(x)\, \lambda \log\Bigl(1 + \frac{|x|}{\lambda}\Bigr).$$ (eq-11-stable)


# %%
def stabilised(gain: Tensor, dead_zone: float, damping: float, scale: float) -> Tensor:
    """Small gains to 0, losses damped, large values compressed. Shape: (S,) -> (S,)."""
    kept = torch.where(gain.abs() < dead_zone, 0.0, gain)
    kept = torch.where(kept < 0, damping * kept, kept)
    return kept.sign() * scale * (kept.abs() / scale).log1p()


# %% [markdown]
# The gain of a search that brought nothing has a standard deviation of more than half a nat here, so that most of them are outside this dead zone; and as losses are halved and gains are not, useless asking may earn something on average. That is what the arms `raw` and
# `centred` and the {term}`refuter` `constant` are there for.

# %% tags=["page-only", "nbval-check-output"]
raw = torch.tensor([-3.0, -0.2, -0.01, 0.02, 0.2, 1.0, 4.0])
tame = stabilised(raw, settings.dead_zone, settings.damping, settings.scale)
for before, after in zip(raw.tolist(), tame.tolist(), strict=True):
    print(f"{before:+.2f} nats -> {after:+.2f}")

# %% [markdown]
# ## Step 5: on the tokens that asked
#
# The advantage of chapter 7 stays what it was, and the tokens of a query get something on top:
#
# $$\tilde A_{i,p} = A_i + \alpha\, \frac{\widetilde{\mathrm{IG}}_t}{|Q_t|} \quad \text{for } p \in Q_t, \qquad
# \tilde A_{i,p} = A_i \quad \text{elsewhere}.$$ (eq-11-advantage)
#
# The division keeps a longer query from earning more. Where all attempts fail (or all succeed), $A_i = 0$ and the second term is all
# there is. Below is the whole of it, with switches for what we compare it with: other values than the gain of the answer, other tokens, no
# stabilisers, and arms that hand out the same amounts with less of what they say (`control`). `constant` gives each query the mean of its step: nothing is left but that asking pays. `within`
# exchanges values among searches of the same question and number: what is lost is which attempt asked well, while hard questions and late searches keep theirs, and a search that has no other beside it keeps its own value.
# `all` exchanges them freely.


# %%
@dataclass(frozen=True)
class Bonus:
    """What a search is rewarded for, and which tokens get it; the defaults are those of `ig`."""

    of: str = (
        "answer"  # or "siblings", "steps": other names; "thought", "contains", "good"
    )
    gain: Gain = Gain()
    stabilise: bool = True
    centre: bool = False  # the mean over the step's searches is subtracted
    control: str = ""  # "constant", "within" or "all": the same amounts, no information
    tokens: str = "query"  # or "turn": everything that was written for the search
    share: bool = True  # divided by the number of these tokens


def turns_of(step: Step) -> Tensor:
    """Searches that were answered before each written token; -1 elsewhere. Shape: (N, L)."""
    turns = torch.full(step.batch.ids.shape, -1)
    for row, attempt in enumerate(step.attempts):
        place, turn = 0, 0
        for segment in attempt.segments:
            if segment.sampled:
                turns[row, place : place + len(segment.ids)] = turn
            turn += segment.kind == "documents"
            place += len(segment.ids)
    return turns.to(step.batch.ids.device)


# %% [markdown]
# Whose probability should a good query raise? The paper's answer is *the right answer's*. For a query on the way there that may not be so: who learns where Ada's sister was
# born does not know the mayor yet. Two further sources are **ours**. *Siblings*: names that a right attempt of the same group said it had found, in its own thoughts; no
# annotation is used beyond which attempts were right. In a group that failed there is no right sibling, so that this source is silent exactly where the paper's speaks. *Steps*: the true answer of the step that is due, which only an invented world knows. That one is an upper bound, not a rival.
#
# A thought of our model reads `need mayor of Luth Velloa`, and once it has read, `found Bo Tarn` or `missing`. So the belief in a name on the way is asked for after `<think> found`, not after `<answer>`, and of several names the likeliest counts, of at most four.


# %%
def found_names(lm: LanguageModel, attempt: Trajectory) -> list[str]:
    """Different names that an attempt's thoughts say it found."""
    thoughts = [lm.decode(s.ids) for s in attempt.segments if s.kind == "think"]
    names = [n for text in thoughts for n in re.findall(r"\bfound ([^;<]+)", text)]
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def wanted_names(
    lm: LanguageModel, step: Step, searches: Sequence[Search], of: str, group: int
) -> list[list[str]]:
    """The names whose probability each search ought to raise."""
    names = []
    told = [
        found_names(lm, a) if r == 1 else []
        for a, r in zip(step.attempts, step.rewards.tolist(), strict=True)
    ]
    for search in searches:
        attempt, question = step.attempts[search.row], step.questions[search.row]
        first = search.row // group * group
        siblings = [n for n in range(first, first + group) if n != search.row]
        if of == "answer":
            own = question["golden_answers"][:1]
        elif of == "siblings":
            own = [name for n in siblings for name in told[n]]
        else:
            due, _ = due_steps(attempt, question)[search.number]
            own = [question["metadata"]["hops"][due]["answer"]] if due >= 0 else []
        names.append([name for name in dict.fromkeys(own) if name.split()][:4])
    return names


# %%
def verdicts(step: Step, searches: Sequence[Search], of: str) -> Tensor:
    """Values that need no belief, about 1 or 0 in size. Shape: -> (S,)."""
    if of == "thought":  # the model's own: 1 for found, -1 for missing
        signs = [
            ("found" in s.opinion.split()) - ("missing" in s.opinion.split())
            for s in searches
        ]
    elif of == "contains":  # whether the right answer stands in the passages
        names = [step.questions[s.row]["golden_answers"] for s in searches]
        signs = [
            any(f" {normalise_answer(name)} " in f" {s.shown} " for name in own)
            for s, own in zip(searches, names, strict=True)
        ]
    else:  # "good": whether the passage that was due came
        rows = {s.row for s in searches}
        due = {row: due_steps(step.attempts[row], step.questions[row]) for row in rows}
        signs = [due[s.row][s.number][1] for s in searches]
    return torch.tensor(signs, dtype=torch.float32)


def controlled(
    values: Tensor, places: Sequence[tuple], control: str, random: np.random.Generator
) -> Tensor:
    """The same amounts without what they say; `within` exchanges those of equal `places`.

    Exchanged in a circle, so that none stays where it was unless it is alone.
    """
    if control == "constant":
        return values.mean().expand(len(values))
    groups: dict[tuple, list[int]] = {}
    for number, place in enumerate(places):
        groups.setdefault(place if control == "within" else (), []).append(number)
    found = values.clone()
    for members in groups.values():
        circle = random.permutation(members)
        found[circle] = values[np.roll(circle, 1)]
    return found


# %%
def raw_values(
    lm: LanguageModel,
    step: Step,
    searches: Sequence[Search],
    bonus: Bonus,
    settings: GainSettings,
    random: np.random.Generator,
) -> Tensor:
    """Gains, or verdicts, before anything is done to them. Shape: -> (S,)."""
    if bonus.of in ("thought", "contains", "good"):
        return verdicts(step, searches, bonus.of)
    names = wanted_names(lm, step, searches, bonus.of, settings.group)
    asked = [question["question"] for question in step.questions]
    others = strangers(searches, asked, names, settings.draws, random)
    return gains(lm, step.attempts, searches, names, others, bonus.gain)


def treated(
    values: Tensor,
    step: Step,
    searches: Sequence[Search],
    bonus: Bonus,
    settings: GainSettings,
    random: np.random.Generator,
) -> Tensor:
    """What each search is given, before the weight. Shape: (S,) -> (S,)."""
    if bonus.stabilise:
        limits = (settings.dead_zone, settings.damping, settings.scale)
        values = stabilised(values, *limits)
    if bonus.centre:
        values = values - values.mean()
    if bonus.control:
        places = [(step.questions[s.row]["question"], s.number) for s in searches]
        values = controlled(values, places, bonus.control, random)
    return values


# %%
class QueryBonus:
    """What each search was worth, on the tokens that asked: an `extra_advantage` of GRPO.

    `log` has a row a step: mean and spread of the values, share of searches that got one.
    """

    def __init__(
        self, lm: LanguageModel, settings: GainSettings, bonus: Bonus, seed: int
    ) -> None:
        self.lm, self.settings, self.bonus = lm, settings, bonus
        self.random = np.random.default_rng(derive_seed(seed, "strangers"))
        self.log: list[dict[str, float]] = []

    def __call__(self, step: Step) -> Tensor:
        """Shape: -> (N, L)."""
        searches = searches_of(self.lm, step.attempts)
        extra = torch.zeros_like(step.advantages)
        if not searches:
            return extra
        own = (step, searches, self.bonus, self.settings, self.random)
        values, turns = treated(raw_values(self.lm, *own), *own), turns_of(step)
        for search, value in zip(searches, values.tolist(), strict=True):
            place = turns if self.bonus.tokens == "turn" else step.batch.search
            where = place[search.row] == search.number
            count = int(where.sum()) if self.bonus.share else 1
            extra[search.row, where] = self.settings.alpha * value / max(count, 1)
        spread = float(values.std(unbiased=False))
        given = float((values != 0).float().mean())
        row = {"value": float(values.mean()), "spread": spread, "given": given}
        self.log.append(row)
        return extra


# %%
BONUSES = {
    "ig": Bonus(),
    "constant": Bonus(control="constant"),
    "shuffled_within": Bonus(control="within"),
    "shuffled": Bonus(control="all"),
    "contains": Bonus(of="contains"),
    "with_thought": Bonus(gain=Gain(thought=True)),
    "empty": Bonus(gain=Gain(empty=True)),
    "all_tokens": Bonus(tokens="turn"),
    "no_mean": Bonus(gain=Gain(mean=False)),
    "raw": Bonus(stabilise=False),
    "no_share": Bonus(share=False),
    "centred": Bonus(centre=True),
    "thought": Bonus(of="thought"),
    "siblings": Bonus(of="siblings", gain=Gain("<think> found")),
    "sub_answers": Bonus(of="steps", gain=Gain("<think> found")),
    "good": Bonus(of="good"),
}

# %% [markdown]
# Here is what becomes of the group at the top: the first two attempts, every token that the model wrote with its advantage. Without the bonus all of them would be 0.

# %% tags=["page-only", "hide-input"]
from minisearch.agents.viewer import tokens_html

untrained = scored(start, shown, shown_asked, 8)
bonus = QueryBonus(start, replace(settings, group=8), BONUSES["ig"], seed=0)
extra = bonus(untrained)
for row in order[:2].tolist():
    display(HTML(tokens_html(start, shown[row], extra[row].tolist())))

# %% [markdown]
# The claim about groups that failed can be checked at once: of which of this group's tokens does the loss have a gradient, without the bonus and with it? The bonus stands on tokens of
# queries alone, but the weights that it moves write thoughts and answers too.
#
# *Which* signal it is, is another question. In a blank world no reader can see in its belief about the mayor that it learnt where Ada's sister was born: as long as nobody of the group reaches the last passage, what is paid and fined for is noise and the form
# of passages. So it is also counted how many searches of failed groups are paid and how many fined, and in how many of those groups somebody did bring the last passage.

# %% tags=["page-only", "hide-input"]
from minisearch.agents.objective import clipped_loss
from minisearch.agents.scoring import log_prob_of, logits_before

rows = torch.arange(failed, failed + 8)
group = untrained.batch.select(rows)
mask, width = group.policy, group.ids.shape[1]
logits = logits_before(start.model, group.ids, mask).detach().requires_grad_()
taken = log_prob_of(logits, group.ids[mask])
moved = {}
for name, more in {"GRPO": 0 * extra, "with the bonus": extra}.items():
    values = (untrained.advantages + more)[rows, :width][mask]
    loss = clipped_loss(taken, taken.detach(), values, 0.2, 0.28)[0].sum()
    gradient = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    moved[name] = gradient.abs().sum(1) > 0
    print(f"{name}: {int(moved[name].sum())} of {int(mask.sum())} tokens")
asking = group.search[mask] >= 0
record.check(
    "GRPO learns nothing where all failed", not moved["GRPO"].any(), "no token"
)
only = (
    bool(moved["with the bonus"].any()) and not moved["with the bonus"][~asking].any()
)
record.check("the bonus moves tokens of queries alone", only, "no other token")

# %% tags=["page-only", "hide-input"]
lost = (untrained.rewards.view(-1, 8) == 0).all(1)
values = [
    float(extra[s.row, untrained.batch.search[s.row] == s.number][0])
    for s in searches
    if lost[s.row // 8]
]
last = {
    row // 8
    for row, (attempt, question) in enumerate(zip(shown, shown_asked, strict=True))
    for due, came in due_steps(attempt, question)
    if came and due == len(question["metadata"]["hops"]) - 1
}
reached = sum(n in last for n in lost.nonzero()[:, 0].tolist())
print(
    f"{int(lost.sum())} groups failed; in {reached} of them somebody had the last passage"
)
paid, fined = sum(v > 0 for v in values), sum(v < 0 for v in values)
print(f"of their {len(values)} searches {paid} are paid and {fined} fined")

# %% [markdown]
# ## Step 6: what can the gain see?
#
# Before anything is trained: does a gain tell a good query from a bad one? In an invented encyclopedia that can be checked, as the passage that
# each step of a question needs is known. A search is *good* if it brought the passage of the first step that is still open. That step may be the last one, whose passage holds the
# answer, or a *bridge* on the way. The area under the ROC curve (AUC) is the chance that a good search has a higher value than a bad one: .5 is a coin.
#
# Beside the gain of the answer stand the same with the thought exchanged too, and with an empty context to compare with, which the paper decided against. Four other values: whether the right answer
# simply stands in the passages; whether the model's own next thought says *found* or *missing*, which alone needs no answer at all; the belief in names that right siblings found; and, with an
# annotation that only this world has, the belief in the step's true answer.


# %%
@dataclass(frozen=True, eq=False)
class Looked:
    """Searches of the untrained policy. Shape: (S,) each, signals (S,) by name."""

    signals: dict[str, np.ndarray]
    due: np.ndarray  # a passage of some step was still to come
    good: np.ndarray  # and the first of these came
    bridge: np.ndarray  # its step is not the last
    known: (
        np.ndarray
    )  # and all facts after it were in the model's pre-training, itself not
    answer: np.ndarray  # the right answer stands in the passages
    question: np.ndarray


def first_attempts(lm: LanguageModel, kind: str, count: int, each: int) -> Step:
    """Attempts of the untrained policy in a training encyclopedia, scored as a step."""
    home, library = open_world(kind, 200 + world_seed)
    wanted = composed if kind == "knowing" else lambda _: True
    questions = chosen(home, count, derive_seed(0, "looked at"), wanted)
    asked = [question for question in questions for _ in range(each)]
    protocol = protocol_of(lm.tokenizer)
    prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
    attempts = rollout(lm, library, protocol, prompts, settings.attempts(), 11)
    return scored(lm, attempts, asked, each)


# %%
SIGNALS = {
    "answer": "ig",
    "answer, with thought": "with_thought",
    "answer, empty context": "empty",
    "answer in passages": "contains",
    "own thought": "thought",
    "siblings": "siblings",
    "true sub-answer": "sub_answers",
}


# %%
def look(lm: LanguageModel, step: Step, each: int) -> Looked:
    """Every signal of every search, and what the search brought."""
    searches, signals = searches_of(lm, step.attempts), {}
    one = replace(settings, group=each)
    for name, arm in SIGNALS.items():
        random = np.random.default_rng(derive_seed(0, "strangers"))
        found = raw_values(lm, step, searches, BONUSES[arm], one, random)
        signals[name] = found.numpy()
    asked = [step.questions[s.row] for s in searches]
    due = [
        due_steps(step.attempts[s.row], q)[s.number]
        for s, q in zip(searches, asked, strict=True)
    ]
    facts = list(zip(searches, asked, [place for place, _ in due], strict=True))
    gold = [normalise_answer(q["golden_answers"][0]) for q in asked]
    return Looked(
        signals,
        due=np.array([place >= 0 for place, _ in due]),
        good=np.array([came for _, came in due]),
        bridge=np.array([0 <= d < len(q["metadata"]["hops"]) - 1 for _, q, d in facts]),
        known=np.array(
            [d >= 0 and knows_the_rest(q["metadata"]["known"][d:]) for _, q, d in facts]
        ),
        answer=np.array(
            [
                f" {name} " in f" {s.shown} "
                for name, (s, *_) in zip(gold, facts, strict=True)
            ]
        ),
        question=np.array([s.row // each for s in searches]),
    )


# %%
def cases_of(seen: Looked) -> dict[str, np.ndarray]:
    """Which searches a table's columns are about. Shape: (S,) bool each."""
    cases = {"last step": seen.due & ~seen.bridge, "bridge": seen.bridge}
    if (seen.bridge & seen.known).any():
        cases["bridge, rest known"] = seen.bridge & seen.known
        cases["bridge, rest not known"] = seen.bridge & ~seen.known
    return cases


def brought(seen: Looked) -> dict[str, np.ndarray]:
    """Searches with a step still due, by what came back. Shape: (S,) bool each."""
    bad = seen.due & ~seen.good
    return {
        "last passage": seen.good & ~seen.bridge,
        "bridge passage": seen.good & seen.bridge,
        "answer by accident": bad & seen.answer,
        "useless": bad & ~seen.answer,
    }


def area(values: np.ndarray, seen: Looked, case: np.ndarray) -> tuple[float, float]:
    """AUC as a detector of good searches, and half its 95 % interval, by question."""
    good = seen.good[case].astype(int)
    if not 0 < good.sum() < len(good):
        return np.nan, np.nan
    found = auc_by_group(values[case], good, seen.question[case])
    return float(found.mean()), float(1.96 * found.std(ddof=1) / len(found) ** 0.5)


def record_look(name: str, seen: Looked) -> None:
    """AUC of every signal, and its mean by what the search brought."""
    for signal, values in seen.signals.items():
        for case, rows in cases_of(seen).items():
            record.metric(f"{name}/auc {signal}/{case}", area(values, seen, rows)[0])
        for what, rows in brought(seen).items():
            mean = float(values[rows].mean()) if rows.any() else np.nan
            record.metric(f"{name}/mean {signal}/{what}", mean)


# %% tags=["page-only", "hide-input"] mystnb={"figure": {"caption": "The gain of the answer before any training, one dot a search, by what the search brought; dark lines are means. Left the passages alone are exchanged, as `ig` does; middle the thought after them too, the nearest we have to the paper's unit; right the comparison is an empty context: an answer right after a query is a form that the model has never met. Compare useless passages between the panels, and bridge passages with last ones.", "name": "fig-11-gains"}, "image": {"alt": "Three panels of dots, each in four columns: last passage, bridge passage, answer by accident, useless. A dark line is the mean of a column. The grid's means are in a table below."}}
from minisearch.plots import COLORS, figure

if settings.model == "toy":
    few = min(settings.looked_at, 30)
    looked = first_attempts(start, "blank", few, 4)
    seen = look(start, looked, 4)
    columns = brought(seen)
    fig, axes = figure(
        width=7, height=3.4, columns=3, sharey=True, layout="constrained"
    )
    spots = np.random.default_rng(0)
    for ax, name in zip(axes, list(SIGNALS)[:3], strict=True):
        for place, rows in enumerate(columns.values()):
            values = seen.signals[name][rows]
            ax.plot(
                place + spots.uniform(-0.3, 0.3, len(values)),
                values,
                ".",
                color=COLORS[place],
                markersize=4,
            )
            if len(values):
                ax.hlines(
                    np.mean(values), place - 0.38, place + 0.38, color="0.2", zorder=3
                )
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_xticks(
            range(len(columns)), [c.replace(" ", "\n") for c in columns], fontsize=7
        )
        ax.set_title(name, fontsize=9)
    axes[0].set_ylabel("gain, nats a token")
    record.figure(fig, "gains", "gains by what a search brought")

# %% [markdown]
# Two checks on the same attempts. Does the *change* of the belief over a turn, which {term}`IGPO` rewards, see the same? Its first turn also pays for the mere form of an attempt with passages in it. And do three random blocks do better than one?


# %% tags=["page-only", "hide-input"]
def changes_of(lm: LanguageModel, step: Step) -> np.ndarray:
    """By how much each search changed the belief in the answer. Shape: -> (S,)."""
    places = [
        (row, cut)
        for row, attempt in enumerate(step.attempts)
        for cut in (
            attempt.prompt_length,
            *(len(attempt.prefix(n)) for n in range(len(attempt.retrieved))),
        )
    ]
    gold = [step.questions[row]["golden_answers"][0] for row, _ in places]
    cuts = [step.attempts[row].ids[:cut] for row, cut in places]
    beliefs = lm.answer_log_prob(cuts, gold).numpy()
    row = np.array([row for row, _ in places])
    return np.diff(beliefs)[row[1:] == row[:-1]]


# %% tags=["page-only", "hide-input"]
import pandas as pd

checks = {}
if settings.model == "toy":
    found = searches_of(start, looked.attempts)
    gold = [looked.questions[s.row]["golden_answers"][:1] for s in found]
    asked = [question["question"] for question in looked.questions]
    ways = {"change over the turn (IGPO)": [changes_of(start, looked)]}
    for draws in (1, 3):
        ways[f"gain, {draws} random blocks"] = [
            gains(
                start, looked.attempts, found, gold,
                strangers(found, asked, gold, draws, np.random.default_rng(seed)), Gain(),
            ).numpy()
            for seed in (0, 1)
        ]  # fmt: skip
    for way, (values, *again) in ways.items():
        row = {case: area(values, seen, r)[0] for case, r in cases_of(seen).items()}
        parts = {
            what: values[rows] for what, rows in brought(seen).items() if rows.any()
        }
        row |= {f"mean, {what}": own.mean() for what, own in parts.items()}
        row |= {f"spread, {w}": o.std() for w, o in parts.items() if w == "useless"}
        spread = np.std(values - again[0]) / 2**0.5 if again else np.nan  # of one draw
        checks[way] = row | {"error of the draw, nats": spread}
pd.DataFrame(checks).T.round(2)

# %% [markdown]
# The areas of all signals, means over the three training encyclopedias and both models, and the means of the gains in nats. In blank worlds the gain is little more than a soft version of a test whether the answer's words have come. At bridges it is a coin there:

# %% tags=["page-only", "hide-input"]
from minisearch import pages
from minisearch.cards import load_cells


def grid_mean(name: str) -> float:
    """The mean of a metric over the grid's cells; not a number where none has it."""
    found = [c.metrics[name] for c in load_cells("11_ig_search") if name in c.metrics]
    return float(np.mean(found)) if found else np.nan


CASES = {
    "last step": "last step",
    "bridge": "bridge",
    "bridge, rest known": "first step, rest known",
    "bridge, rest not known": "second step, itself known too",
}
aucs = {
    f"{signal} ({kind})": {
        shown: grid_mean(f"{arm}/auc {signal}/{case}") for case, shown in CASES.items()
    }
    for arm, kind in (("look", "blank"), ("look@knowing", "knowing"))
    for signal in SIGNALS
}
BROUGHT = ("last passage", "bridge passage", "answer by accident", "useless")
means = {
    signal: {what: grid_mean(f"look/mean {signal}/{what}") for what in BROUGHT}
    for signal in list(SIGNALS)[:3]
}
display(pd.DataFrame(aucs).T.dropna(how="all", axis=1).round(2))
pd.DataFrame(means).T.round(2)

# %% [markdown]
# ## Step 7: its rivals
#
# All make as many attempts at the same questions. Two add a term to GRPO; *leave one out* replaces its comparison, at a learning rate of its own.
#
# *Leave one out* is what MR-Search {cite:p}`mrsearch` does with a single attempt: an attempt is compared with the mean of the *others*. That is GRPO's comparison but for a constant factor; what changes is that nothing is divided by a standard deviation. (Its
# sequences of three attempts, joined by a reflection, our model was not taught.) *Step groups* are GiGPO's {cite:p}`gigpo`: turns of one question that began right after the same
# passages are a group of their own, and what their attempts earned, times .95 for each turn that followed, is compared within it. All first turns are one such group. *Turn rewards* are IGPO's {cite:p}`igpo`: by how much did the belief in the answer change over a turn? Standardised within
# the question, summed over the turn and all that follow, on all tokens of the turn, all that follow with full weight ($\gamma = 1$). That is a difference in time, not a counterfactual.
#
# Every arm had the same small sweep, on an encyclopedia of its own (it stands at the end of this page). Turn rewards were behind GRPO alone at every weight but the smallest, .01, at which they are nearly
# GRPO alone. The refuters and most ablations keep the weight that was found for `ig`.


# %%
def step_groups(step: Step, group: int, gamma: float = 0.95) -> Tensor:
    """Turns of a question that began with the same passages, compared. Shape: -> (N, L)."""
    turns, extra = turns_of(step), torch.zeros_like(step.advantages)
    places: dict[tuple, list[tuple[int, int, float]]] = {}
    for row, attempt in enumerate(step.attempts):
        last = int(turns[row].max())
        for turn in range(last + 1):
            seen = tuple(attempt.retrieved[turn - 1]) if turn else None
            reward = gamma ** (last - turn) * float(step.rewards[row])
            places.setdefault((row // group, seen), []).append((row, turn, reward))
    for members in places.values():
        if len(members) > 1:
            rewards = torch.tensor([[reward for *_, reward in members]])
            values = group_advantages(rewards)[0]
            for (row, turn, _), value in zip(members, values, strict=True):
                extra[row, turns[row] == turn] = value
    return extra


# %%
def turn_rewards(lm: LanguageModel, step: Step, group: int) -> Tensor:
    """Changes of the belief in the answer, over a turn and all that follow. Shape: -> (N, L)."""
    searches, turns = searches_of(lm, step.attempts), turns_of(step)
    places = [(row, -1, a.prompt_length) for row, a in enumerate(step.attempts)]
    places += [(s.row, s.number, s.start + len(s.block)) for s in searches]
    opening, branches = lm.encode(" <answer>"), []
    for row, _, start in places:
        end = lm.encode(f" {step.questions[row]['golden_answers'][0]}")
        branches.append(Branch(row, start, opening + end, len(end)))
    scores = branch_log_probs(lm, [a.ids for a in step.attempts], branches).tolist()
    belief = {(r, n): value for (r, n, _), value in zip(places, scores, strict=True)}
    extra = torch.zeros_like(step.advantages)
    for first in range(0, len(step.attempts), group):
        own = [s for s in searches if first <= s.row < first + group]
        change = [belief[s.row, s.number] - belief[s.row, s.number - 1] for s in own]
        if len(own) > 1:
            values = group_advantages(torch.tensor([change]))[0]
            for search, value in zip(own, values, strict=True):
                turn = turns[search.row]
                extra[search.row] += value * ((turn >= 0) & (turn <= search.number))
    return extra


# %%
OWN = {
    "step_groups": {"alpha": 1.0},
    "turn_rewards_full": {"alpha": 1.0},
}  # as published
# What the sweep chose at toy scale, where it is not the settings'; see the card.
SWEPT: dict[str, dict[str, float]] = {
    "leave_one_out": {"learning_rate": 1.2e-3},
    "turn_rewards": {"alpha": 0.01},
    "with_thought": {"alpha": 1.0},
    "no_share": {"alpha": 1.0},
    "siblings": {"alpha": 1.0},
    "sub_answers": {"alpha": 1.0},
    "good": {"alpha": 1.0},
}


def settings_of(method: str) -> GainSettings:
    """The settings of an arm; `alpha` is also the weight of a rival's term."""
    swept = SWEPT.get(method, {}) if profile in ("smoke", "toy") else {}
    own = OWN.get(method, {}) | swept
    if method == "grpo_longer":
        return replace(settings, steps=settings.steps * 3 // 2)
    return replace(settings, **own)


# %%
def added(name: str, lm: LanguageModel, settings: GainSettings, seed: int) -> dict:
    """What an arm adds to GRPO, as arguments of `train`."""
    group, strength = settings.group, settings.alpha
    if name in BONUSES:
        return {"extra_advantage": QueryBonus(lm, settings, BONUSES[name], seed)}
    if name == "step_groups":
        return {"extra_advantage": lambda step: strength * step_groups(step, group)}
    if name in ("turn_rewards", "turn_rewards_full"):
        return {
            "extra_advantage": lambda step: strength * turn_rewards(lm, step, group)
        }
    if name == "leave_one_out":  # from the mean of all attempts to that of the others
        share = 1 / (group - 1)
        return {
            "standardise": False,
            "extra_advantage": lambda step: share * step.advantages,
        }
    return {}


# %% [markdown]
# ## Train and watch
#
# | arm | what it does |
# |---|---|
# | `look`, `cold` | what signals see, and how the model answers, before training |
# | `grpo` | chapter 7's loop and reward, nothing added; by this chapter's sweep at twice the rate, and two thirds of the steps |
# | `grpo_longer` | the same for half as many steps more; the bonus takes more time than that. Its mean over training is one of more steps, and not comparable |
# | `ig` | the paper's bonus as we read it: the passages alone exchanged, weight 3 (the paper: 0.3) |
# | `constant`, `shuffled_within`, `shuffled` | the same amounts, differently handed out |
# | `contains` | a fixed bonus if the right answer stands in the passages: no belief is asked |
# | `with_thought`, `empty`, `no_mean`, `raw`, `all_tokens`, `no_share`, `centred` | the bonus with one thing changed: the thought is exchanged too (weight 1); an empty context to compare with; a sum over the answer's tokens, which are two in all names of our worlds, so that this doubles the gain; no stabilisers; on everything written for the search; not divided by the length (weight 1); its mean subtracted |
# | `leave_one_out`, `step_groups`, `turn_rewards` | the rivals |
# | `turn_rewards_full` | IGPO's term at its own weight of 1: a failure that we keep |
# | `thought`, `siblings` | ours, without annotation: the model's own verdict; names that right siblings found |
# | `sub_answers`, `good` | what only an invented world knows, as upper bounds: the belief in the true answer of the step; whether its passage came |
#
# An arm that ends in `@knowing` runs in an encyclopedia half of whose facts the model has read before, on questions whose first step has to be looked up
# and whose other facts it knows. There a passage about a bridge *can* raise the belief in the answer. These very encyclopedias also gave pre-training such beliefs, and questions about chains of known facts, so that `@knowing` is a best case. One that ends in `@hard25`, `@hard50` or `@hard95`
# trains on questions of three hops, of which that percentage was beyond all of eight first attempts of the untrained policy.


# %%
def open_task(kind: str, lm: LanguageModel, settings: GainSettings) -> Task:
    """The task of an arm: blank, knowing, or hard and a percentage; of files, their own."""
    if settings.model != "toy" or data:
        if kind != "blank":
            what, remedy = "an invented encyclopedia", "leave out what follows the @."
            raise InputError("arm", f"@{kind} with real questions", what, remedy)
        return real_task(settings, data, service, seed)
    if kind.startswith("hard"):
        start, count = f"toy-{init_seed}", settings.candidates
        found = screened(lm, start, settings, world_seed, count)
        share = int(kind.removeprefix("hard")) / 100
        return hard_task(found, settings, world_seed, seed, share)
    if kind == "knowing":
        return invented_task(settings, kind, world_seed, seed, composed)
    return invented_task(settings, kind, world_seed, seed)


def record_bonus(name: str, module: GRPO) -> None:
    """What the bonus was like, and groups without a right attempt, early and late."""
    for row in getattr(module.extra_advantage, "log", [])[:1]:
        for key in row:
            values = [r[key] for r in module.extra_advantage.log]
            record.metric(f"{name}/bonus {key}", float(np.mean(values)))
    wrong = module.history.column("all wrong")[1]
    for when, part in zip(("early", "late"), np.array_split(wrong, 2), strict=True):
        record.metric(f"{name}/all_wrong_{when}", float(part.mean()))


# %%
MODULES: dict[str, GRPO] = {}  # trained on this page, by arm


def starting_model() -> LanguageModel:
    """The model that every arm starts from."""
    return load_lm(f"toy-{init_seed}" if settings.model == "toy" else settings.model)


def run_arm(name: str) -> None:
    """Run `method` in a blank world, or `method@kind`."""
    method, _, kind = name.partition("@")
    lm = starting_model()
    if method == "look":
        step = first_attempts(lm, kind or "blank", settings.looked_at, 4)
        record_look(name, look(lm, step, 4))
        return
    own = settings_of(method)
    task = open_task(kind or "blank", lm, own)
    if method != "cold":
        module = train(lm, task, own, seed, **added(method, lm, own, seed))
        record_training(record, name, module)
        record_bonus(name, module)
        MODULES[name] = module
    record_test(record, name, lm, task, settings)


# %% tags=["train"]
MAIN = ["cold", "grpo", "ig"]
results = MAIN if arms == "main" else arms.split(",")
for name in results:
    with record.phase(f"arm {name}"):
        run_arm(name)

# %% [markdown]
# Three curves while training. *Right answers* are the reward, on questions that never come twice. *All wrong* is the share of groups in which no
# attempt was right: there GRPO learns nothing, and the bonus is alone. *Searches* an attempt shows whether a policy learns to ask for the sake of asking.


# %% tags=["page-only"] mystnb={"figure": {"caption": "Training on this page, with and without the bonus: right answers, groups without one, and searches, means of four steps.", "name": "fig-11-training"}, "image": {"alt": "Three panels against attempts, right answers, groups all wrong and searches, with a line for each trained arm."}}
PANELS = {"right answers": "em", "all wrong": "all wrong", "searches": "searches"}
fig, axes = figure(width=7, height=2.8, columns=3, layout="constrained")
for ax, (title, column) in zip(axes, PANELS.items(), strict=True):
    for run, module in MODULES.items():
        x = module.history.column("rollouts")[1]
        ax.plot(x, pages.smoothed(module.history.column(column)[1]), label=run)
    ax.set(title=title, xlabel="attempts", ylim=(0, None))
if MODULES:
    axes[0].legend()
record.figure(fig, "training", "training with and without the bonus")

# %% [markdown]
# What it costs is counted in the same runs. Scoring is where the beliefs come in, and the update sees more attempts: of a group that failed, all that have a gain. Writing differs only as far as the two policies do.

# %% tags=["page-only", "hide-input"]
spent = {
    arm: {
        part: record.metrics.get(f"seconds/{arm}/{part}")
        for part in ("generate", "retrieve", "score", "update")
    }
    for arm in MODULES
}
cost = pd.DataFrame(spent).T.astype(float)
if len(cost):
    cost["together"] = cost.sum(axis=1)
cost.round(1)

# %% tags=["page-only", "hide-input"]
if {"grpo", "ig"} <= set(MODULES):
    grpo, ig = cost.loc["grpo"], cost.loc["ig"]
    alone = (ig["score"] - grpo["score"]) / grpo["together"]
    print(f"scoring the beliefs alone: {alone:.0%} of what GRPO takes")
    more = ig["together"] / grpo["together"] - 1
    print(f"all that differs, updates and what is written included: {more:.0%} longer")

# %% [markdown]
# The abstract's 6.4 % does not carry over. As we read it, a large model spends its time on writing token by token, next to which a few more readings are cheap; ours writes cheaply, so that they weigh more. When it answers there
# is no bonus, and no further cost.
#
# ## Results
#
# First this page's own run: one pair of encyclopedias, one seed.

# %% tags=["page-only", "hide-input"]
SHOWN = (
    "em_training",
    "em_sampled",
    "em_greedy",
    "gold_sampled",
    "searches_sampled",
    "query_tokens_sampled",
    "written_sampled",
)
pages.score_table(record.metrics, results, SHOWN)

# %% [markdown]
# ### What the grid says
#
# `em_training` is the mean of the learning curve: how often attempts were right over the whole of training.

# %% tags=["page-only", "hide-input"]
from minisearch.showing import claims_markdown

Markdown(claims_markdown("11_ig_search"))

# %% tags=["page-only", "hide-input"]
as_registered = not (data or service or steps)
print(
    pages.live_note("11_ig_search", profile, world_seed, record.metrics, as_registered)
)

# %% tags=["page-only", "hide-input"]
pages.arm_table("11_ig_search", SHOWN)

# %% [markdown]
# These are means over different runs, and `grpo_longer` has half as many steps more in its mean over training. `grpo` is one baseline in chapters 9, 10 and 11, the same code, questions and seeds: the luck of its runs is in all three verdicts. Fair is what an arm has over
# another in the runs that both have, with the same encyclopedia, model and seed. Runs that share an encyclopedia are not independent, so that the standard errors are the smallest they can be.

# %% tags=["page-only", "hide-input"]
ran = dict.fromkeys(log.cell.arm for log in load_cells("11_ig_search"))
plain = [arm for arm in ran if "@" not in arm and arm not in ("look", "cold", "grpo")]
TESTED = ["em_training", "em_greedy", "em_sampled"]
pages.paired_table("11_ig_search", plain, "grpo", TESTED)

# %% [markdown]
# And over `ig`:

# %% tags=["page-only", "hide-input"]
others = [arm for arm in plain if arm != "ig"]
pages.paired_table("11_ig_search", others, "ig", TESTED)

# %% [markdown]
# `ig` over `grpo` by the model that training starts from and by encyclopedia, which no claim asks for:

# %% tags=["page-only", "hide-input"]
runs: dict[str, dict[tuple[int, int, int], dict[str, float]]] = {"grpo": {}, "ig": {}}
for logged in load_cells("11_ig_search"):
    cell = logged.cell
    if cell.arm in runs and not cell.overrides:
        own = {m: logged.metrics[f"{cell.arm}/{m}"] for m in TESTED}
        runs[cell.arm][cell.init_seed, cell.world_seed, cell.seed] = own


def with_error(values: pd.Series) -> str:
    """Mean and standard error."""
    return f"{values.mean():+.3f} ± {values.sem():.3f}"


if all(runs.values()):
    lead = pd.DataFrame(runs["ig"]).T - pd.DataFrame(runs["grpo"]).T
    lead.index.names = ["model", "encyclopedia", "seed"]
    by_model = lead.groupby("model").agg(with_error)
    by_model.index = [f"toy-{n}" for n in by_model.index]
    by_place = lead.groupby(["model", "encyclopedia"]).agg(with_error)
    by_place.index = [f"toy-{n}, encyclopedia {place}" for n, place in by_place.index]
    display(pd.concat([by_model, by_place]))

# %% [markdown]
# ### Counted in seconds
#
# The share of right answers in an arm's latest 384 attempts when its run ended, and of `ig` when that of `grpo` did. Seconds are logged by run, and are spread evenly over its attempts. Machines were not equally busy: see
# what writing alone took.

# %% tags=["page-only", "hide-input"]
PARTS = ("generate", "retrieve", "score", "update")
timed: dict[str, dict[tuple[int, int, int], tuple[float, float, np.ndarray]]] = {}
for logged in load_cells("11_ig_search"):
    cell, found = logged.cell, logged.metrics
    if cell.arm in ("grpo", "ig", "grpo_longer") and not cell.overrides:
        spent = [found[f"seconds/{cell.arm}/{part}"] for part in PARTS]
        name = f"{cell.arm}/em_training/rollouts: "
        points = {int(n.removeprefix(name)): v for n, v in found.items() if name in n}
        curve = np.repeat([v for _, v in sorted(points.items())], min(points))
        place = (cell.world_seed, cell.init_seed, cell.seed)
        timed.setdefault(cell.arm, {})[place] = (sum(spent), spent[0], curve)


def reached(arm: str, within: str = "") -> dict[str, object]:
    """Means over an arm's runs, each cut where another arm's run of that place ended."""
    rows, leads = [], []
    for place, (seconds, writing, curve) in timed[arm].items():
        budget = min(timed[within][place][0], seconds) if within else seconds
        made = round(len(curve) * budget / seconds)
        right = curve[max(0, made - 384) : made].mean()
        rows.append((budget, 1000 * writing / len(curve), made, right))
        leads.append(right - timed["grpo"][place][2][-384:].mean())
    means = np.mean(rows, axis=0)
    return {
        "runs": len(rows), "seconds": f"{means[0]:.0f}", "attempts": f"{means[2]:.0f}",
        "right": f"{means[3]:.3f}", "over grpo at its end": with_error(pd.Series(leads)) if arm != "grpo" else "-",
        "writing, seconds per 1,000": f"{means[1]:.0f}",
    }  # fmt: skip


if len(timed) == 3:
    table = {
        "grpo": reached("grpo"),
        "ig, as many attempts": reached("ig"),
        "ig, as many seconds": reached("ig", within="grpo"),
        "grpo_longer": reached("grpo_longer"),
    }
    display(pd.DataFrame(table).T)


# %% tags=["page-only"] mystnb={"figure": {"caption": "Right answers while training, over the runs of the grid in blank worlds: interquartile mean with 95 % limits; 30 runs of grpo and ig, 18 of the other two.", "name": "fig-11-curves"}, "image": {"alt": "Curves of right answers against attempts, with bands. Those of the bonus, with the true values, with exchanged ones and with the same for all, run together above that of GRPO, which meets them at the end."}}
from minisearch.curves import interquartile_mean_curve
from minisearch.plots import curve_with_band

fig, ax = figure(height=3.8)
for n, arm in enumerate(("grpo", "ig", "shuffled_within", "constant")):
    places, curves = pages.training_curves("11_ig_search", arm)
    if curves:
        middle = interquartile_mean_curve(curves)
        curve_with_band(ax, places, *middle, label=arm.replace("_", " "), index=n)
ax.set(
    xlabel="attempts made in training", ylabel="share of right attempts", ylim=(0, None)
)
if ax.get_lines():
    ax.legend()
record.figure(fig, "curves", "learning curves over the grid")

# %% [markdown]
# ### Dose and response
#
# If the bonus is worth most where every attempt fails, its gain over GRPO should grow with the share of such groups, as long as something is ever answered: with harder questions the room for a gain in right answers shrinks too. Here that share is set: questions of three hops, of which 25, 50 or 95 % were
# beyond the untrained policy in eight attempts. On the axis stands the share of groups without a right attempt that was measured in the first half of GRPO's training.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Gain of the bonus over GRPO in right answers while training, by how often whole groups fail: dots are runs, paired by encyclopedia, model and seed, lines their means. Beside it the same bonus without its information, where it ran.", "name": "fig-11-dose"}, "image": {"alt": "Dots of single runs, nearly all above nought, and lines of their means against the share of failing groups: the mean gain of the bonus is about the same at all three places; that of the bonus without its information stands beside it at the last."}}
DOSES = ("hard25", "hard50", "hard95")

fig, ax = figure(height=3.6)
for n, arm in enumerate(("ig", "constant")):
    dots = {
        grid_mean(f"grpo@{kind}/all_wrong_early"): pages.paired(
            "11_ig_search", f"{arm}@{kind}", f"grpo@{kind}", "em_training"
        )
        for kind in DOSES
    }
    dots = {x: y for x, y in sorted(dots.items()) if len(y)}
    for x, y in dots.items():
        places = np.full(len(y), x + 0.008 * n)
        ax.plot(places, y, "o", color=COLORS[n], alpha=0.35, markersize=4)
    if dots:
        places = [x + 0.008 * n for x in dots]
        means = [y.mean() for y in dots.values()]
        ax.plot(places, means, "-s", color=COLORS[n], label=f"{arm} over grpo")
ax.axhline(0, color="0.4", linewidth=1, linestyle="--")
ax.set(xlabel="share of groups all wrong, first half of GRPO's training", xlim=(0, 1))
ax.set(ylabel="gain in right answers")
if ax.get_legend_handles_labels()[0]:
    ax.legend()
record.figure(fig, "dose", "gain by share of failing groups")

# %% [markdown]
# ### What we take from it
#
# * *More right answers an attempt, fewer a second.* With the bonus a policy is right more often over the course of training, in each of the encyclopedias and from both models. But a run takes more than twice as long: when GRPO is done, the policy with the bonus is far behind, and `grpo_longer` ends
#   ahead of both in less time than the bonus takes. In the test no lead is seen, and the models disagree: from one of them the bonus is ahead, from the other behind (a split that was not registered).
# * *Is it the information?* The claim is inconclusive, and the upper end of its interval is the most that it leaves to the information. The same values exchanged among attempts, so that whoever asked well gets what somebody else earned, lead over GRPO by as much, within a question and step (`shuffled_within`) or among all (`shuffled`). So does the same amount for every query of a step (`constant`).
#   That fits what steps 5 and 6 found before any training: in a blank world the gain sees the last passage, as a look at its words does, and is a coin before. In groups that failed hardly anybody has seen the last passage, and what is paid and fined there is noise.
# * *It may be the payment.* On average a query is paid more than it is fined, and the tokens inside of it are paid while the tag that ends it is not. So queries grow (`query_tokens_sampled`), and a query with two words for a relation finds what one with a single word misses ([the toy world](../book/toy_world.md) counts
#   how often). Take the mean away (`centred`) and queries do not grow, and the lead is gone; pay all that is written for a search (`all_tokens`; each token gets less, as there are more of them) and they hardly grow, and the lead is small; do not divide by the length (`no_share`) and they grow so long that the test suffers.
# * *Another unit, other names.* With the thought exchanged too (`with_thought`), which a note gives as the paper's own unit (deviation 3), and with names on the way in place of the answer (`siblings`, ours; `sub_answers`, an upper bound), the leads in training are larger than that of `ig`. Queries grow there as well, and in the test all three are behind GRPO, within twice their errors.
# * *A signal that knows may help.* `good` is paid where the due passage came, which only an invented world tells, and `contains` where the right answer stands in the passages, for which no model is asked. Both lead over GRPO by about as much as the bonus does, with queries that grow less. But they pay more than they fine as well, and no arm has their values exchanged or their mean taken away: a hint, not a finding.
# * *The stabilisers* keep the payment small. Compared with an empty context (`empty`) nearly every query is paid, as any passages at all make the answer likelier: queries grow without end, and the policy is worse than without a bonus, by far in the test. Without all stabilisers (`raw`) no lead is seen; summed over the answer's tokens (`no_mean`) it stays in training, and queries grow more.
# * *The rivals* `leave_one_out`, `step_groups` and `turn_rewards` are near GRPO in training. In the test the first is behind it and the other two are ahead, each by twice its error or more. `turn_rewards_full`, IGPO's term at its own weight, collapses, and its row is kept.
# * *Where the rest is known*, and the gain does see a little of bridges, the policy leads over GRPO in training too, and is behind it in the test.
# * *Where nearly all first attempts fail* there is a lead, and `constant@hard95` has it as well. Groups that failed seem to teach something then; that it is what was worth asking is not seen, nor that the lead grows with the share of failing groups.
#
# Arms without a claim have six runs: read a difference of theirs with its standard error, not as a verdict.
#
# ### Where we deviate, and what was tuned

# %% tags=["page-only", "hide-input"]
pages.deviations_table("11_ig_search")

# %% tags=["page-only", "hide-input"]
pages.tuning_table("11_ig_search")

# %% [markdown]
# ## Exercises
#
# Each exercise checks itself: the cell after the answer names the property that fails, never the answer. For stubs in place of the
# solutions: `minisearch assignment build 11 --out DIR`.
#
# ### Exercise 1: a gain by hand
#
# Write `information_gain` from log-probabilities: those of the answer's tokens after the true passages, and after each of several random blocks. Before you do: two answers, of two and of six tokens, each token
# of which became likelier by the same factor. Which of them should have the greater gain? Which has, if you sum?

# %% tags=["page-only", "hide-input"]
from minisearch.classroom import check, checks


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch11-gain", "locked": false, "schema_version": 3, "solution": true, "task": false}
def information_gain(real: Sequence[float], random: Sequence[Sequence[float]]) -> float:
    """The gain in nats a token. `real`: one log-probability a token; `random`: such a list a block."""
    ### BEGIN SOLUTION
    return float(np.mean(real) - np.mean([np.mean(block) for block in random]))
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch11-gain-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch11-gain")
def properties_of_gain(gain):
    yield "one token, one block", lambda: np.isclose(gain([-1.0], [[-3.0]]), 2)
    yield (
        "as likely as before",
        lambda: np.isclose(gain([-1.0, -2.0], [[-1.0, -2.0]]), 0),
    )
    ### BEGIN HIDDEN TESTS
    yield (
        "a long answer earns what a short one does",
        lambda: np.isclose(gain([-1.0] * 6, [[-2.0] * 6]), gain([-1.0], [[-2.0]])),
    )
    yield (
        "the mean of the blocks, not the best",
        lambda: np.isclose(gain([-1.0], [[-2.0], [-6.0]]), 3),
    )
    yield (
        "the mean, not the middle one",
        lambda: np.isclose(
            gain([-1.0, -3.0], [[-2.0, -2.0], [-2.0, -2.0], [-8.0, -8.0]]), 2
        ),
    )
    yield "all tokens count", lambda: np.isclose(gain([-1.0, -3.0], [[-2.0, -8.0]]), 3)
    yield (
        "a loss is negative",
        lambda: np.isclose(gain([-5.0], [[-1.0], [-2.0], [-3.0]]), -3),
    )
    ### END HIDDEN TESTS


assert check("ch11-gain", information_gain)

# %% [markdown]
# ### Exercise 2: a silent bug
#
# A colleague drew the blocks to compare with by `drawn_with_a_bug`. Training runs, the loss is finite, and the gain of the best queries is close to nought. Which blocks are in there that must not be? Write `comparable`: whether
# a block may stand in for the passages of a search. A name counts as a whole, in any case, with its punctuation left out (`normalise_answer`): *Ann* does not stand in *Annex*. (`strangers` looks at the thought about a block too; leave that aside.)


# %% tags=["page-only"]
def drawn_with_a_bug(blocks: list[dict], draws: int) -> list[dict]:
    """Random blocks of the batch; each has the `question` it was found for, and its `text`."""
    picked = np.random.default_rng(0).choice(len(blocks), draws, replace=False)
    return [blocks[n] for n in picked]


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch11-leak", "locked": false, "schema_version": 3, "solution": true, "task": false}
def comparable(block: dict, question: str, answer: str) -> bool:
    """Whether a block may be compared with what a search for this question brought."""
    ### BEGIN SOLUTION
    text, name = normalise_answer(block["text"]), normalise_answer(answer)
    return block["question"] != question and f" {name} " not in f" {text} "
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch11-leak-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch11-leak")
def properties_of_comparison(may):
    def block(text, question="other"):
        return {"question": question, "text": text}

    yield "another topic", lambda: may(block("rain in spain"), "who ?", "Ann Lee")
    yield (
        "with the answer",
        lambda: not may(block("Ann Lee is mayor"), "who ?", "Ann Lee"),
    )
    ### BEGIN HIDDEN TESTS
    yield (
        "the same question",
        lambda: not may(block("rain", "who ?"), "who ?", "Ann Lee"),
    )
    yield (
        "in another case",
        lambda: not may(block("the mayor is ann lee."), "who ?", "Ann Lee"),
    )
    yield "a part of a word", lambda: may(block("the annex is closed"), "who ?", "Ann")
    yield "its end", lambda: may(block("joann is mayor"), "who ?", "Ann")
    yield "half of a name", lambda: may(block("Bob Lee met Ann"), "who ?", "Ann Lee")
    yield (
        "with marks in the name",
        lambda: not may(block("the u.s. president"), "who ?", "U.S."),
    )
    ### END HIDDEN TESTS


assert check("ch11-leak", comparable)

# %% [markdown]
# ### Exercise 3: who learns from a group that failed?
#
# Write `learners`: from the rewards (1 or 0) of one group and the stabilised gains of each attempt's searches, which attempts have a token with an advantage that is not 0, without the bonus and with it. Predict first: of which groups do
# both say the same?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch11-dead", "locked": false, "schema_version": 3, "solution": true, "task": false}
def learners(
    rewards: list[float], gains: list[list[float]]
) -> tuple[list[bool], list[bool]]:
    """Whether each attempt teaches anything: with GRPO alone, and with the bonus."""
    ### BEGIN SOLUTION
    mean = np.mean(rewards)
    alone = [not np.isclose(reward, mean) for reward in rewards]
    return alone, [
        a or any(g != 0 for g in own) for a, own in zip(alone, gains, strict=True)
    ]
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch11-dead-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch11-dead")
def properties_of_learners(who):
    yield (
        "a group that failed",
        lambda: list(who([0, 0], [[0.5], [0.0]])[1]) == [True, False],
    )
    yield (
        "without the bonus it is dead",
        lambda: not any(who([0, 0], [[0.5], [0.0]])[0]),
    )
    ### BEGIN HIDDEN TESTS
    mixed = [1, 0, 0], [[], [], [0.0]]
    yield (
        "a mixed group",
        lambda: [list(found) for found in who(*mixed)] == [[True] * 3] * 2,
    )
    yield (
        "a gain and as large a loss",
        lambda: list(who([0, 0], [[0.3, -0.3], []])[1]) == [True, False],
    )
    yield "all right is as dead as all wrong", lambda: not any(who([1, 1], [[], []])[0])
    yield "no search, no bonus", lambda: not any(who([0, 0], [[], []])[1])
    yield (
        "a loss teaches too",
        lambda: list(who([0, 0], [[0, -0.2], [0]])[1]) == [True, False],
    )
    yield "all right", lambda: list(who([1, 1], [[0.3], []])[1]) == [True, False]
    ### END HIDDEN TESTS


assert check("ch11-dead", learners)

# %% [markdown]
# ### Exercise 4: predict, then break it
#
# Write `bonus_of_query`: what all tokens of a query of `length` tokens get together, with and without the division by $|Q|$; the gain is stabilised already. Then predict: without it, how long do queries become? The closing tag is not a part of $Q_t$, so that
# tokens which go on with a query are rewarded, and the one that ends it is not. Look at `query_tokens_sampled` of
# `ig` (weight 3) and `no_share` (weight 1) in the table of all arms: at three tokens both hand out the same. Explain what you see.


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch11-share", "locked": false, "schema_version": 3, "solution": true, "task": false}
def bonus_of_query(gain: float, length: int, alpha: float, share: bool) -> float:
    """The sum of what is added to the advantages of a query's tokens."""
    ### BEGIN SOLUTION
    return alpha * gain * (1 if share else length)
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch11-share-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch11-share")
def properties_of_share(total):
    yield "one token", lambda: np.isclose(total(2.0, 1, 0.3, True), 0.6)
    yield (
        "a longer query is not worth more",
        lambda: np.isclose(total(2.0, 7, 0.3, True), 0.6),
    )
    ### BEGIN HIDDEN TESTS
    yield "unless it is not shared", lambda: np.isclose(total(2.0, 7, 0.3, False), 4.2)
    yield "a loss", lambda: np.isclose(total(-1.0, 3, 0.5, False), -1.5)
    yield "a loss, shared", lambda: np.isclose(total(-2.0, 4, 0.5, True), -1)
    ### END HIDDEN TESTS


assert check("ch11-share", bonus_of_query)

# %% [markdown]
# ### Exercise 5: where turn rewards cancel
#
# IGPO rewards a turn with the change of the belief, and gives each turn the sum of its own reward and those that follow, weighed by $\gamma$ a turn. Write `returns`. Then, for $\gamma = 1$: how much of what happened *between* a turn and the last does its return depend on?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch11-returns", "locked": false, "schema_version": 3, "solution": true, "task": false}
def returns(beliefs: Sequence[float], gamma: float) -> list[float]:
    """The return of each turn; `beliefs` begins with that before the first. Shape: T + 1 -> T."""
    ### BEGIN SOLUTION
    found, after = [], 0.0
    for change in np.diff(beliefs)[::-1].tolist():
        after = change + gamma * after
        found.append(after)
    return found[::-1]
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch11-returns-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch11-returns")
def properties_of_returns(of):
    yield "one turn", lambda: np.allclose(of([-3.0, -1.0], 1.0), [2])
    yield (
        "only itself, without what follows",
        lambda: np.allclose(of([0, 1.0, 3.0], 0.0), [1, 2]),
    )
    ### BEGIN HIDDEN TESTS
    yield (
        "they telescope",
        lambda: np.allclose(of([-4.0, 0.0, -2.0, -1.0], 1.0), [3, -1, 1]),
    )
    yield "discounted", lambda: np.allclose(of([0.0, 1.0, 3.0], 0.5), [2, 2])
    yield (
        "more for each turn",
        lambda: np.allclose(of([0.0, 0.0, 0.0, 4.0], 0.5), [1, 2, 4]),
    )
    ### END HIDDEN TESTS


assert check("ch11-returns", returns)

# %% [markdown]
# With $\gamma = 1$ a turn's return is the last belief less the belief before that turn: a useless turn before a useful one is paid as well as the useful one. Standardising first does not change that; it takes the same amount off for
# every turn that is left, so that a return depends on its two ends and on the number of turns.
#
# ## At scale
#
# `small` is SmolLM2-135M on the World Factbook, `full` Qwen2.5-3B on NQ and HotpotQA against Wikipedia, as in chapter 7, whose arithmetic of memory holds here too. What the bonus adds there is reading, not writing.

# %% tags=["page-only", "hide-input"]
full = GainSettings.of("full")
searches_each, tokens_each = 2.5, 1500
rows = full.questions_a_step * full.group
read = rows * (
    tokens_each
    + searches_each * (full.draws * full.block_tokens + (full.draws + 1) * 8)
)
passes = {
    "write": 2 * rows * tokens_each,
    "reference": 2 * rows * tokens_each,
    "update": 6 * rows * tokens_each,
    "beliefs": 2 * read,
}
share = passes["beliefs"] / (sum(passes.values()) - passes["beliefs"])
print(f"a step: {rows:,} attempts; beliefs read {read / 1e6:.1f} M tokens more")
print(
    f"in operations {share:.0%} more than a step without; in time less, as reading runs in parallel and writing does not"
)

# %% [markdown]
# Attempts of 1,500 tokens and 2.5 searches each are assumed.
#
# ```bash
# minisearch run 11 --profile small
# minisearch run 11 --profile full -p data DIR -p service http://127.0.0.1:8000/retrieve
# ```
#
# Nobody has run `small` or `full` yet; their columns are configuration. What chapter 7 says of the prompt of `small` is true here as well.

# %% tags=["page-only", "hide-input"]
pd.DataFrame(GainSettings.table()).set_index("setting")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# :list: bullet
# ```
