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
# useful. The search agent of [chapter 7](07_search_agent.py) learns nothing from the eight: they have the same reward,
# and better than its group is none of them. And where one attempt is right, all of its queries are praised alike, the useless ones
# with the others. IG-Search {cite:p}`igsearch` gives each *query* a reward of its own: by how much did what came back
# raise the model's own belief in the right answer, compared with what a random search would have brought? No annotation is needed beyond the answer.
# This chapter builds that reward, asks first what it can see and what it cannot, and then whether a policy that gets it learns faster.

# %% tags=["page-only", "hide-input"]
from IPython.display import HTML, Markdown, display

from minisearch.showing import card_box

Markdown(card_box("11_ig_search"))

# %% tags=["hide-input"]
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# %% tags=["hide-input"]
from minisearch.agents.beliefs import Branch, branch_log_probs
from minisearch.agents.grpo import GRPO, Step
from minisearch.agents.objective import dead_groups, group_advantages
from minisearch.agents.protocol import protocol_of
from minisearch.agents.rewards import exact_match_reward, normalise_answer
from minisearch.agents.rollout import rollout
from minisearch.agents.study import (
    AgentSettings,
    Task,
    answers,
    chosen,
    invented_task,
    judged,
    open_world,
    real_task,
    record_answers,
    record_training,
    train,
)
from minisearch.agents.trajectory import Trajectory, collate
from minisearch.data.qa import Question
from minisearch.metrics import auc_by_group
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.profiles import derive_seed, dial, quiet, use_threads
from minisearch.recorder import Recorder
from minisearch.storage import cached

# %% [markdown]
# ## One attempt, query by query
#
# The world is the small invented encyclopedia of chapter 7, the model the one that its training starts from. Below, the first
# attempts at one question that no attempt answered. To each query belongs the gain that this chapter is about: a positive one
# says that after these passages the right answer is likelier than after those of other searches.


# %% [markdown]
# ## What the paper claims
#
# All of it is about Qwen2.5 models that were trained on NQ and HotpotQA and answer questions of seven sets with a search engine over
# Wikipedia.
#
# | exact match, mean of seven sets | 3B | 7B |
# |---|---|---|
# | AutoRefine, base | .405 | |
# | MR-Search, base | .414 | .460 |
# | GiGPO, instruct | .421 | |
# | IG-Search | **.430** (base) | **.479** (instruct) |
# | IG-Search, compared with an empty context instead of other passages | .403 | |
#
# On Bamboogle, 125 questions, IG-Search is at .424 and GiGPO at .641. Of the mechanism the abstract says that groups in which every
# attempt fails still give a signal, and of the cost that a step takes 6.4 % longer, an answer nothing.
#
# :::{admonition} What we could and could not read
# :class: note
# Title, abstract and the first line of the introduction were available to us, and two reading notes that others made from the
# full text. From those come the score, the counterfactual, the three draws, the weight 0.3, the restriction to query tokens and the
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
# | $C_t$ | an attempt up to and with what search $t$ brought | `Branch` |
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
    """What chapter 7 has too, with IG-Search's values in the last column."""

    model: str = dial("toy", "toy", "smollm2", "Qwen/Qwen2.5-3B", source="3B and 7B")
    questions_a_step: int = dial(2, 8, 16, 256, source="not published; AutoRefine's")
    group: int = dial(4, 8, 5, 5, source="5; ours")
    steps: int = dial(2, 20, 100, 200, source="200; ours")
    minibatches: int = dial(2, 2, 2, 2, source="not published; ours")
    learning_rate: float = dial(3e-4, 3e-4, 1e-5, 1e-6, source="1e-6; sweep")
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
    alpha: float = dial(0.3, 0.3, 0.3, 0.3, source="0.3; sweep")
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
    says: str  # the verdict of the thought: found, missing, or nothing


def searches_of(lm: LanguageModel, attempts: Sequence[Trajectory]) -> list[Search]:
    """Every search of every attempt, in their order."""
    found = []
    for row, attempt in enumerate(attempts):
        start, number = 0, 0
        for place, segment in enumerate(attempt.segments):
            if segment.kind == "documents":
                after = attempt.segments[place + 1 : place + 2]
                thought = after[0].ids if after and after[0].kind == "think" else []
                verdict = re.search(r"\b(found|missing)\b", lm.decode(thought))
                says = verdict.group() if verdict else ""
                shown = normalise_answer(lm.decode(segment.ids))
                ids = segment.ids
                found.append(Search(row, number, start, ids, thought, shown, says))
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
# attempt was read once already; a belief after other passages is a *branch* that leaves it where its passages begin.
# `branch_log_probs` reads every attempt once and lets all of its branches use the same keys and values.


# %% [markdown]
# ## Step 3: compared with what?
#
# The belief after the passages says little by itself: some answers are likelier than others whatever one reads. Neither does the
# difference to the belief before them. A block of passages is text, and text of the right form changes the belief even if it is about something else. So the
# comparison is with blocks that came back in *other questions'* searches of the same batch:
#
# $$\mathrm{IG}_t = L(a^* \mid C_t) - \frac1N \sum_{j=1}^{N} L(a^* \mid C_t^{(j)}), \qquad N = 3.$$ (eq-11-gain)
#
# In $C_t^{(j)}$ everything before the passages stays. As one of the notes has it, the unit that is exchanged is the passages *and* the block
# that the model wrote about them, its *refinement*; here, the thought after the passages. We draw from different questions, as far as there are so many, and only
# blocks without the answer: in a small world one would otherwise be there by accident.


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
            if not any(f" {name} " in f" {searches[n].shown} " for name in banned):
                groups.setdefault(question[n], []).append(n)
        pools = list(groups.values())
        pools = [pools[n] for n in random.permutation(len(pools))[:draws]]
        pools += [sum(groups.values(), [])] * (draws - len(pools) if groups else 0)
        found.append([pool[random.integers(len(pool))] for pool in pools])
    return found


# %%
@dataclass(frozen=True)
class Gain:
    """How a gain is measured; the defaults are the paper's."""

    opening: str = "<answer>"  # what stands between the passages and the name
    thought: bool = True  # the thought about the passages is exchanged with them
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


# %% [markdown]
# ## Step 4: taming it
#
# A gain of a hundredth of a nat is noise, a loss may be due to a name that happened to stand beside, and one gain of ten nats would
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
# The division keeps a longer query from earning more. Where all attempts fail, $A_i = 0$ and the second term is all
# there is. Below is the whole of it, with switches for what we compare it with: other values than the gain of the answer, other tokens, no
# stabilisers, and a *shuffle* that hands each query the value of a random one. A policy that learns as well from shuffled values never used the information.


# %%
@dataclass(frozen=True)
class Bonus:
    """What a search is rewarded for, and which tokens get it; the defaults are the paper's."""

    of: str = "answer"  # or "siblings", "steps": other names; "thought": no name
    gain: Gain = Gain()
    stabilise: bool = True
    centre: bool = False  # the mean over the step's searches is subtracted
    shuffle: bool = False  # each search gets the value of a random one
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
# annotation is used. *Steps*: the true answer of the step that is due, which only an invented world knows. That one is an upper bound, not a rival.


# %%
def found_names(attempt: Trajectory) -> list[str]:
    """Different names that an attempt's thoughts say it found."""
    names = re.findall(r"\bfound ([^;<]+)", attempt.text)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def due_steps(attempt: Trajectory, question: Question) -> list[tuple[int, bool]]:
    """Of each search: the first step whose passage had not come, and whether it came now.

    The step is -1 once the passages of all steps have come.
    """
    hops, due, found = question["metadata"]["hops"], 0, []
    for brought in attempt.retrieved:
        here = due < len(hops) and bool(set(hops[due]["gold_ids"]) & set(brought))
        found.append((due if due < len(hops) else -1, here))
        due += here
    return found


def wanted_names(
    step: Step, searches: Sequence[Search], of: str, group: int
) -> list[list[str]]:
    """The names whose probability each search ought to raise."""
    names = []
    told = [
        found_names(a) if r == 1 else []
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

    def values(self, step: Step, searches: Sequence[Search]) -> Tensor:
        """What each search is given, before the weight. Shape: -> (S,)."""
        bonus, settings = self.bonus, self.settings
        if bonus.of == "thought":
            told = {"found": 1.0, "missing": -1.0}
            return torch.tensor([told.get(s.says, 0.0) for s in searches])
        names = wanted_names(step, searches, bonus.of, settings.group)
        asked = [question["question"] for question in step.questions]
        others = strangers(searches, asked, names, settings.draws, self.random)
        values = gains(self.lm, step.attempts, searches, names, others, bonus.gain)
        if bonus.centre:
            values = values - values.mean()
        if bonus.stabilise:
            limits = (settings.dead_zone, settings.damping, settings.scale)
            values = stabilised(values, *limits)
        if bonus.shuffle:
            values = values[torch.from_numpy(self.random.permutation(len(values)))]
        return values

    def __call__(self, step: Step) -> Tensor:
        """Shape: -> (N, L)."""
        searches = searches_of(self.lm, step.attempts)
        extra = torch.zeros_like(step.advantages)
        if not searches:
            return extra
        values, turns = self.values(step, searches), turns_of(step)
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


# %% [markdown]
# ## Step 6: what can the gain see?
#
# Before anything is trained: does a gain tell a good query from a bad one? In an invented encyclopedia that can be checked, as the passage that
# each step of a question needs is known. A search is *good* if it brought the passage of the first step that is still open. That step may be the last one, whose passage holds the
# answer, or a *bridge* on the way. The area under the ROC curve (AUC) is the chance that a good search has a higher value than a bad one: .5 is a coin.
#
# Beside the gain of the answer stand what the paper decided against (an empty context), the passages without the thought, and three
# values that know nothing of the gold answer: whether the model's own next thought says *found* or *missing*, the siblings' names, and, with an
# annotation that only this world has, the true answer of the step.


# %%
@dataclass(frozen=True, eq=False)
class Looked:
    """Searches of the untrained policy. Shape: (S,) each, signals (S,) by name."""

    signals: dict[str, np.ndarray]
    due: np.ndarray  # a passage of some step was still to come
    good: np.ndarray  # and the first of these came
    bridge: np.ndarray  # its step is not the last
    known: np.ndarray  # all later facts were in the model's pre-training
    answer: np.ndarray  # the right answer stands in the passages
    question: np.ndarray


def first_attempts(lm: LanguageModel, kind: str, count: int, each: int) -> Step:
    """Attempts of the untrained policy in a training encyclopedia, scored as a step."""
    home, library = open_world(kind, 200 + world_seed)
    questions = home.questions(count, hops=(2, 3), seed=derive_seed(0, "looked at"))
    asked = [question for question in questions for _ in range(each)]
    protocol = protocol_of(lm.tokenizer)
    prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
    attempts = rollout(lm, library, protocol, prompts, settings.attempts(), 11)
    pairs = zip(attempts, asked, strict=True)
    rewards = torch.tensor([exact_match_reward(*pair) for pair in pairs])
    batch = collate(attempts, lm.pad_id)
    advantages = group_advantages(rewards.view(-1, each)).view(-1, 1) * batch.policy
    old = batch.log_probs
    return Step(attempts, asked, rewards, batch, batch.policy, advantages, old)


# %%
BONUSES = {
    "ig": Bonus(),
    "passages_only": Bonus(gain=Gain(thought=False)),
    "shuffled": Bonus(shuffle=True),
    "empty": Bonus(gain=Gain(empty=True)),
    "all_tokens": Bonus(tokens="turn"),
    "no_mean": Bonus(gain=Gain(mean=False)),
    "raw": Bonus(stabilise=False),
    "no_share": Bonus(share=False),
    "centred": Bonus(centre=True),
    "thought": Bonus(of="thought"),
    "siblings": Bonus(of="siblings", gain=Gain("<think> found", thought=False)),
    "sub_answers": Bonus(of="steps", gain=Gain("<think> found", thought=False)),
}
SIGNALS = {
    "answer": "ig",
    "answer, passages only": "passages_only",
    "answer, empty context": "empty",
    "own thought": "thought",
    "siblings": "siblings",
    "true sub-answer": "sub_answers",
}


def look(lm: LanguageModel, step: Step, each: int) -> Looked:
    """Every signal of every search, and what the search brought."""
    searches, signals = searches_of(lm, step.attempts), {}
    one = replace(settings, group=each)
    for name, arm in SIGNALS.items():
        meter = QueryBonus(lm, one, replace(BONUSES[arm], stabilise=False), 0)
        signals[name] = meter.values(step, searches).numpy()
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
            [d >= 0 and all(q["metadata"]["known"][d + 1 :]) for _, q, d in facts]
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


def area(values: np.ndarray, seen: Looked, case: np.ndarray) -> tuple[float, float]:
    """AUC as a detector of good searches, and half its 95 % interval, by question."""
    good = seen.good[case].astype(int)
    if not 0 < good.sum() < len(good):
        return np.nan, np.nan
    found = auc_by_group(values[case], good, seen.question[case])
    return float(found.mean()), float(1.96 * found.std(ddof=1) / len(found) ** 0.5)


def record_look(name: str, seen: Looked) -> None:
    """AUC of every signal, and its mean by what the search brought."""
    brought = {
        "last passage": seen.good & ~seen.bridge,
        "bridge passage": seen.good & seen.bridge,
        "answer by accident": ~seen.good & seen.answer,
        "useless": ~seen.good & ~seen.answer,
    }
    for signal, values in seen.signals.items():
        for case, rows in cases_of(seen).items():
            record.metric(f"{name}/auc {signal}/{case}", area(values, seen, rows)[0])
        for what, rows in brought.items():
            mean = float(values[rows].mean()) if rows.any() else np.nan
            record.metric(f"{name}/mean {signal}/{what}", mean)


# %% [markdown]
# ## Step 7: its rivals
#
# All of them add to the same GRPO, and take the same attempts.
#
# *Leave one out* is what MR-Search {cite:p}`mrsearch` does with a single attempt: an attempt is compared with the mean of the *others*, and not divided by a standard deviation. (Its
# sequences of three attempts, joined by a reflection, our model was not taught.) *Step groups* are GiGPO's {cite:p}`gigpo`: turns of one question that began with the same passages
# in view are a group of their own, and their rewards, discounted by .95 a turn, are compared within it. *Turn rewards* are IGPO's {cite:p}`igpo`: by how much did the belief in the answer change over a turn? Standardised within
# the question, summed over the turn and all that follow, on all tokens of the turn. That is a difference in time, not a counterfactual.


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
WEIGHTS = {"step_groups": 1.0, "turn_rewards": 1.0}  # GiGPO's own; IGPO's own
SWEPT: dict[str, float] = {}  # alpha of an arm, where the sweep chose another one


def added(name: str, lm: LanguageModel, settings: GainSettings, seed: int) -> dict:
    """What an arm adds to GRPO, as arguments of `train`."""
    group, weight = settings.group, WEIGHTS.get(name, 0.0)
    if name in BONUSES:
        chosen = replace(settings, alpha=SWEPT.get(name, settings.alpha))
        return {"extra_advantage": QueryBonus(lm, chosen, BONUSES[name], seed)}
    if name == "step_groups":
        return {"extra_advantage": lambda step: weight * step_groups(step, group)}
    if name == "turn_rewards":
        return {"extra_advantage": lambda step: weight * turn_rewards(lm, step, group)}
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
# | `grpo` | chapter 7's: exact match, nothing added |
# | `ig` | the paper's bonus on queries |
# | `shuffled` | the same values, each at a random query of the step |
# | `passages_only`, `empty`, `no_mean`, `raw`, `all_tokens`, `no_share`, `centred` | the bonus with one thing changed: the thought stays; an empty context to compare with; a sum over the answer's tokens; no stabilisers; on everything written for the search; not divided by the length; its mean subtracted |
# | `leave_one_out`, `step_groups`, `turn_rewards` | the rivals |
# | `thought`, `siblings` | ours, without annotation: the model's own verdict; names that right siblings found |
# | `sub_answers` | the true answer of the step: an upper bound |
#
# An arm that ends in `@knowing` runs in an encyclopedia half of whose facts the model has read before, on questions whose first step has to be looked up
# and whose other facts it knows. There a passage about a bridge *can* raise the belief in the answer. One that ends in `@hard0`, `@hard50`, `@hard95`
# trains on questions of which that percentage was beyond all of eight first attempts of the untrained policy.


# %%
def may_compose(question: Question) -> bool:
    """Whether only the first fact has to be looked up: the others were read before."""
    first, *rest = question["metadata"]["known"]
    return not first and all(rest)


def screened(lm: LanguageModel) -> list[tuple[Question, int]]:
    """Questions of the training encyclopedia, and how many of 8 first attempts were right."""
    home, library = open_world("blank", 200 + world_seed)
    count, seeded = settings.candidates, derive_seed(0, "screened")
    questions = home.questions(count, hops=(2, 3), seed=seeded)

    def build(folder: Path) -> None:
        protocol = protocol_of(lm.tokenizer)
        asked = [question for question in questions for _ in range(8)]
        prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
        attempts = rollout(lm, library, protocol, prompts, settings.attempts(), 8)
        pairs = zip(attempts, asked, strict=True)
        right = np.array([exact_match_reward(*pair) for pair in pairs]).reshape(-1, 8)
        (folder / "right.json").write_text(json.dumps(right.sum(1).tolist()))

    key = {"world": world_seed, "init": init_seed, "count": count}
    right = json.loads((cached("screened", key, build) / "right.json").read_text())
    return list(zip(questions, right, strict=True))


def hard_task(lm: LanguageModel, share: float) -> Task:
    """Questions to train on, a share of which all 8 first attempts failed."""
    rows, count = screened(lm), settings.steps * settings.questions_a_step
    random = np.random.default_rng(derive_seed(seed, "hard"))
    hard, easy = (
        [q for q, right in rows if (right == 0) == wanted] for wanted in (True, False)
    )
    drawn = []
    for pool, wanted in (
        (hard, round(share * count)),
        (easy, round((1 - share) * count)),
    ):
        turns = -(-wanted // len(pool))
        order = [random.permutation(len(pool)) for _ in range(turns)]
        drawn += [pool[n] for n in np.concatenate([*order, []]).astype(int)[:wanted]]
    task = invented_task(settings, "blank", world_seed, seed)
    return replace(task, training=drawn)


# %%
def open_task(kind: str, lm: LanguageModel) -> Task:
    """The task of an arm: blank, knowing, or hard and a percentage; of files, their own."""
    if settings.model != "toy" or data:
        return real_task(settings, data, service, seed)
    if kind.startswith("hard"):
        return hard_task(lm, int(kind.removeprefix("hard")) / 100)
    wanted = may_compose if kind == "knowing" else None
    return invented_task(settings, kind, world_seed, seed, wanted)


def query_tokens(attempt: Trajectory) -> float:
    """Mean number of tokens of an attempt's queries, 0 without any."""
    lengths = [len(s.ids) for s in attempt.segments if s.kind == "query"]
    return float(np.mean(lengths)) if lengths else 0.0


def written(attempt: Trajectory) -> int:
    """Tokens that the model wrote."""
    return sum(len(s.ids) for s in attempt.segments if s.sampled)


# %%
def measure(name: str, lm: LanguageModel, task: Task) -> None:
    """Let a policy answer the test questions, from their plain prompts."""
    columns = {}
    for how, temperature in {"greedy": 0.0, "sampled": 1.0}.items():
        attempts = answers(lm, task, settings.attempts(temperature))
        found = judged(attempts, task)
        found["query_tokens"] = np.array([query_tokens(a) for a in attempts])
        found["written"] = np.array([written(a) for a in attempts], float)
        columns |= {f"{metric}_{how}": values for metric, values in found.items()}
    record_answers(record, name, columns, task)


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
    task = open_task(kind or "blank", lm)
    if method != "cold":
        module = train(lm, task, settings, seed, **added(method, lm, settings, seed))
        record_training(record, name, module)
        record_bonus(name, module)
        MODULES[name] = module
    measure(name, lm, task)


# %% tags=["train"]
MAIN = ["cold", "grpo", "ig"]
results = MAIN if arms == "main" else arms.split(",")
for name in results:
    with record.phase(f"arm {name}"):
        run_arm(name)
