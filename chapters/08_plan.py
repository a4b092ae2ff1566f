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
# # Plan before search: what reinforcement learning can teach, and what it cannot
#
# *What is the parent of the employer of the architect of the birthplace of Tiscas Danken?* Four searches, each of which needs the name that the one before has found. The search agent of
# [chapter 7](07_search_agent.py) begins at once and works out as it goes what comes next. A careful person would first write down the four sub-questions. Plan Before Search {cite:p}`plan` asks for just that, and asks
# more: if planning is so sensible, why does reinforcement learning not teach it by itself? Its answer is that a reward can only strengthen what is done at times. It names three conditions
# without which the same reward teaches nothing, and a way around them: let a small model in which planning did appear write attempts, keep the good ones, and tune other models on those first.
# This chapter builds the plan, its reward and that way around. It takes the three conditions away one at a time, and asks whether a plan helps at all once everybody was taught alike.
#
# :::{admonition} What we could and could not read
# :class: warning
# **Of all papers in this book this one is the least known to us.** The title, the abstract and one short summary made by a machine were available: no section of the text, no formula, no
# table and no code. From the abstract come the idea of a list of sub-questions before the first search, the three conditions, the small seed model whose attempts are filtered, and that the models have 3 to 14 billion
# parameters. From the summary come the model families (Qwen2.5, Llama 3, Qwen3) and that the reward looks at how searches agree with the planned sub-questions. **Everything that a programmer needs beyond that is ours**: the format, every formula on this
# page, the filter, the probes, all settings. A verdict here is about our reading, not about their system, and no figure of theirs is quoted because we know none.
# :::

# %% tags=["page-only", "hide-input"]
from IPython.display import HTML, Markdown, display

from minisearch.agents.viewer import group_html
from minisearch.showing import card_box

Markdown(card_box("08_plan"))

# %% tags=["hide-input"]
import json
import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# %% tags=["hide-input"]
from minisearch.agents.demonstrator import Demonstrator, Habits, remembered
from minisearch.agents.grpo import GRPO, Step
from minisearch.agents.objective import k3
from minisearch.agents.protocol import Piece, plan_block, protocol_of
from minisearch.agents.queries import due_steps, written_tokens
from minisearch.agents.rewards import (
    exact_match_reward,
    is_well_formed,
    normalise_answer,
)
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.scoring import (
    log_prob_of,
    logits_before,
    passes,
    token_log_probs,
)
from minisearch.agents.study import (
    AgentSettings,
    Task,
    answers,
    judged,
    open_world,
    real_task,
    record_answers,
    record_training,
    train,
)

# %% tags=["hide-input"]
from minisearch.agents.trajectory import (
    Segment,
    Trajectory,
    closed_blocks,
    collate,
)
from minisearch.data.qa import Document, Question
from minisearch.errors import InputError, one_of
from minisearch.lit import Batches, Module, Optimisation, fit
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.profiles import derive_seed, dial, quiet, use_threads
from minisearch.recorder import Recorder
from minisearch.retriever import BM25Retriever, Hit, Retriever
from minisearch.storage import cached

# %% [markdown]
# ## One question too long
#
# The world is the invented encyclopedia of chapter 7, the model the one that training starts from there. Its pre-training held questions of one to three steps. Here it is asked one of *four*. Its thoughts
# say what it is after: `need chief of ..`. We look at the first question that does not ask for the same relation twice. Watch the order in which it needs things.


# %% tags=["hide-input"]
def needs_of(attempt: Trajectory) -> list[str]:
    """What the thoughts need, in order; the same thing of the same name is one need."""
    blocks = closed_blocks(attempt.text)
    thoughts = " ; ".join(text for tag, text in blocks if tag == "think")
    pairs = re.findall(r"\bneed (\S+) of ([^;<]+)", thoughts)
    needs = [(noun, name.strip()) for noun, name in pairs]
    return [need[0] for n, need in enumerate(needs) if n == 0 or need != needs[n - 1]]


# %% tags=["page-only", "hide-input"]
start = load_lm("toy-0")
protocol = protocol_of(start.tokenizer)
example, library = open_world("blank", 100)
some = example.questions(12, hops=(4,), seed=2)
asked = next(q for q in some if len(set(q["metadata"]["relations"])) == 4)
prompt = protocol.prompt(start.tokenizer, asked["question"])
shown = rollout(start, library, protocol, [prompt] * 6, RolloutConfig(), seed=3)
rewards = [exact_match_reward(attempt, asked) for attempt in shown]
display(HTML(group_html(start, asked, shown, rewards, example.corpus)))
print("the question's steps:", ", ".join(asked["metadata"]["relations"]))
for number, attempt in enumerate(shown, 1):
    print(f"attempt {number} needs:     ", ", ".join(needs_of(attempt)))

# %% [markdown]
# Open the attempts by their triangles. An attempt that needs something other than the next step has lost its place in the question.
# Step 4 counts how often, by the number of steps. **That is what a plan could mend, and where this chapter asks whether it does.** Where an attempt does not lose its way there is nothing for a plan to do.
#
# ## What the paper claims
#
# * Agents *drift*: later searches follow passages that are only partly relevant, and no longer the question. A list of sub-questions, written before anything is retrieved, keeps each search tied to one of them.
# * Reinforcement learning with a reward for planning does not reliably teach it. With the identical reward, different models fail in *different ways*. Three conditions are needed: enough entropy at the start, so that a plan is
#   ever tried; stable training; and the sub-skills that a plan presupposes, such as joining a sub-question that stands ready with what was found later.
# * *Self-bootstrapping* works: a small model in which planning did emerge (the *seed model*) writes attempts, these are filtered, and tune any other model (the *target*), also larger ones and of other families, with no stronger teacher. All tested models plan then, and beat the baselines on questions of several steps.
#
# The order *first tune, then reinforcement learning* is our inference from the abstract. Whether a plan helps on its own, apart from all the tuning around it, the abstract does not say, and it is the first thing we ask: **the policy that plans has a twin that was
# tuned on the very same attempts with their plans cut out**, and rewarded for right answers alone.
#
# ## Symbols
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $s_1, \dots, s_J$ | sub-questions of a plan; `#j` in one stands for the answer of $s_j$ | `lines` |
# | $q_1, \dots, q_n$ | the searches of an attempt | `attempt.queries` |
# | $m(q, s)$ | how well a search carries out a sub-question, 0 to 1; not the mask of chapter 7 | `match` |
# | $C$ | coverage: how much of the plan was carried out, in order | `coverage`, `Reading.covered` |
# | $F$ | 1 for a *valid* plan (step 3), else 0 | `Reading.valid` |
# | $w_f, w_p$ | what form and coverage are worth | `settings.weight_form`, `weight_plan` |
# | $\mathrm{EM}_i$ | 1 for a right answer, else 0 (chapter 7) | `Reading.right` |
# | $r_i$ | reward of attempt $i$ (chapter 7), here with what its plan earns | `PlanReward` |
# | $A_i$ | advantage of attempt $i$ in its group (chapter 7) | `step.advantages` |
#
# ## Parameters
#
# In the settings, the four values of a `dial` are those of the profiles smoke, toy, small and full.

# %% tags=["parameters"]
profile: str = "toy"  # smoke | toy | small | full
seed: int = 1000  # training and sampling; the published grid uses other seeds
world_seed: int = 0  # which encyclopedia is asked about, and which one is trained on
init_seed: int = 0  # which toy model is the target; the other one is the seed model
arms: str = "main"  # "main", or arms of the card with commas between them
data: str = ""  # folder of question files; empty: the profile's own questions
service: str = ""  # address of a retrieval service; empty: an index in memory
steps: int = 0  # training steps; 0: the profile's

# %%
quiet()


@dataclass(frozen=True, kw_only=True)
class LoopSettings(AgentSettings):
    """What chapter 7 has too; of the paper's values none is known."""

    model: str = dial("toy", "toy", "smollm2", "Qwen/Qwen2.5-3B", source="3B to 14B")
    questions_a_step: int = dial(2, 8, 16, 256, source="not published; AutoRefine's")
    group: int = dial(4, 8, 5, 5, source="not published; AutoRefine's; ours")
    steps: int = dial(2, 16, 100, 200, source="not published; AutoRefine's; ours")
    minibatches: int = dial(2, 2, 2, 2, source="not published; ours")
    learning_rate: float = dial(6e-4, 6e-4, 1e-5, 1e-6, source="not published; sweep")
    warmup: float = dial(0.0, 0.0, 0.0, 0.0, source="not published; AutoRefine's")
    clip_low: float = dial(0.2, 0.2, 0.2, 0.2, source="not published; AutoRefine's")
    clip_high: float = dial(0.28, 0.28, 0.2, 0.2, source="not published; DAPO's")
    kl: float = dial(0.0, 0.0, 0.001, 0.001, source="not published; AutoRefine's; ours")
    searches: int = dial(5, 8, 5, 5, source="not published; AutoRefine's; ours")
    passages: int = dial(2, 2, 3, 3, source="not published; AutoRefine's; ours")
    turn_tokens: int = dial(64, 64, 128, 500, source="not published; ours")
    block_tokens: int = dial(256, 256, 512, 512, source="not published; ours")
    row_tokens: int = dial(1024, 1024, 2048, 4096, source="not published; ours")
    one_hop: int = dial(6, 60, 100, 0, source="ours; test questions, 0: all there are")
    multi_hop: int = dial(6, 150, 200, 0, source="ours; test questions, 0: all")


# %%
@dataclass(frozen=True, kw_only=True)
class PlanSettings(LoopSettings):
    """What planning adds; all of it ours."""

    longest: int = dial(
        4, 4, 0, 0, source="ours; steps of the longest question, invented"
    )
    weight_form: float = dial(0.1, 0.1, 0.1, 0.1, source="ours")
    weight_plan: float = dial(0.2, 0.2, 0.2, 0.2, source="ours")
    first_plans: int = dial(6, 720, 0, 0, source="ours; by hand, for the seed model")
    first_attempts: int = dial(
        6, 240, 0, 0, source="ours; of the seed model, told a plan"
    )
    first_epochs: int = dial(1, 3, 0, 0, source="ours; tuning of the seed model")
    first_rate: float = dial(
        1e-3, 1e-3, 0.0, 0.0, source="ours; tuning of the seed model"
    )
    pool_of: str = dial(
        "demonstrator", "seed", "seed", "seed", source="ours; smoke has no time for one"
    )
    pool: int = dial(12, 480, 0, 0, source="ours; attempts to be filtered")
    pool_temperature: float = dial(0.7, 0.7, 0.0, 0.0, source="ours; of the seed model")
    kept: int = dial(4, 48, 0, 0, source="ours; whole attempts for a target")
    openings: int = dial(4, 360, 0, 0, source="ours; openings for a target")
    epochs: int = dial(1, 3, 0, 0, source="ours; tuning of a target; sweep")
    tuning_rate: float = dial(1e-3, 1e-3, 0.0, 0.0, source="ours; sweep")
    tuning_rows: int = dial(2, 8, 0, 0, source="ours; lessons an update")
    share: float = dial(0.3, 0.3, 0.0, 0.0, source="ours; planned at first, step 7")
    drawn_at: float = dial(1.0, 1.0, 1.0, 1.0, source="1 (AutoRefine); temperature")
    sharp: float = dial(0.125, 0.125, 0.0, 0.0, source="ours; that of `sharp`")
    faster: float = dial(10.0, 10.0, 0.0, 0.0, source="ours; rate times this")
    injected: int = dial(2, 2, 2, 2, source="ours; distracting passages a search")
    looked_at: int = dial(3, 48, 0, 0, source="ours; questions of the probes")

    def attempts(self, temperature: float | None = None) -> RolloutConfig:
        """How far an attempt may go; without a temperature, as in training."""
        return super().attempts(self.drawn_at if temperature is None else temperature)


# %%
settings = PlanSettings.of(profile, **({"steps": steps} if steps else {}))
use_threads(settings.threads)
record = Recorder.from_environment()

# %% [markdown]
# ## Step 1: a plan, and how to read one
#
# A plan is a block that the model writes before its first search: sub-questions in the order in which they are to be answered, where `#1` stands for whatever answers the first.
# The tokeniser of our toy model has the tags and the signs up to `#3`. Its pre-training showed it plans of two or three lines in *prompts*, so that it can read one. No row taught it to write one, and a plan of four lines is new to it, as a question of four steps is.


# %%
def steps_of(question: Question) -> list[str]:
    """The sub-questions of a question of an invented encyclopedia, in order."""
    facts = question["metadata"]
    heads = [facts["entity"], *(f"#{n}" for n in range(1, len(facts["relations"])))]
    pairs = zip(facts["relations"], heads, strict=True)
    return [f"{noun} of {head}" for noun, head in pairs]


def lines_of(text: str) -> list[str]:
    """Sub-questions from a plan's text: one a line or between semicolons, without numbers."""
    parts = (re.sub(r"^\s*\d+\.\s*", "", part) for part in re.split(r"[;\n]", text))
    return [part.strip() for part in parts if part.strip()]


def plan_in(attempt: Trajectory) -> list[str]:
    """The lines of an attempt's only plan; none where there are two, or a search came first."""
    blocks = closed_blocks(attempt.text)
    tags = [tag for tag, _ in blocks]
    if tags.count("plan") != 1 or "search" in tags[: tags.index("plan")]:
        return []
    return lines_of(blocks[tags.index("plan")][1])


# %% tags=["page-only", "nbval-check-output"]
print(asked["question"])
print(plan_block(steps_of(asked)))

# %% [markdown]
# How likely is it that the model *ever* tries? One look at the first token it writes answers that, before any training:

# %% tags=["page-only"]
with torch.no_grad():
    ids = torch.tensor([start.encode(prompt)])
    first = start.model(ids).logits[0, -1].log_softmax(-1)
for tag in ("<think>", "<plan>"):
    print(f"{tag:8s} log-probability {first[start.encode(tag)[0]]:7.2f} nats")
gap = float(first[start.encode("<plan>")[0]])
record.check("the model does not plan by itself", gap < -10, f"{gap:.1f} nats")
attempts_needed = f"{np.exp(-gap):.0e}"
print(f"a plan would begin an attempt once in {attempts_needed}")

# %% [markdown]
# A reward for planning is never paid to this model, whatever it is worth: the first of the three conditions fails here without our doing.
#
# ## Step 2: what a search has to do with a plan
#
# To see whether a search carries out a sub-question, references have to be filled in first. Our model says in its thoughts what it took a passage to say (`found Bo Tarn`), so that the $j$-th name it found stands for `#j`. This trusts that one name is found for each line: after a wrong name and a second try all later numbers are shifted, and coverage falls without a worse search. Then we compare words: $m(q, s)$ is the share of
# the sub-question's words that the search has, small words aside.
#
# The usual measure of overlap would be F1, which also asks that the search has few *other* words. In our world, as in most, a search with more words for the same thing finds more. So F1 pays a search that finds less for looking more like the plan, and the share does not. We chose before any
# training, from this table.

# %%
SMALL_WORDS = ("of", "is", "in", "to", "what", "who", "which", "was")
FOUND = r"\b(?:found|recall) ([^;<]+)"
REFERENCE = r"#(\d+)"


def found_in(attempt: Trajectory) -> list[str]:
    """The names that an attempt's thoughts say it found, in order."""
    thoughts = [text for tag, text in closed_blocks(attempt.text) if tag == "think"]
    return [name.strip() for text in thoughts for name in re.findall(FOUND, text)]


def filled(line: str, found: Sequence[str]) -> str:
    """A sub-question with the answers of earlier ones; an unknown one is a word no search has."""

    def name(reference: re.Match[str]) -> str:
        number = int(reference[1])
        return found[number - 1] if 0 < number <= len(found) else "unresolved"

    return re.sub(REFERENCE, name, line)


def match(query: str, line: str, how: str = "share") -> float:
    """How much of a sub-question a search says: the share of its words, 0 to 1; F1 is for the table below."""
    asked, wanted = (
        Counter(w for w in normalise_answer(text).split() if w not in SMALL_WORDS)
        for text in (query, line)
    )
    shared = (asked & wanted).total()
    whole = wanted.total() if how == "share" else (asked.total() + wanted.total()) / 2
    return shared / whole if whole else 0.0


# %% tags=["page-only", "nbval-check-output"]
line = filled("mayor of #1", ["Luth Velloa"])
print(f"sub-question: {line}")
for query in (
    "Luth Velloa mayor",
    "Luth Velloa mayor governed elected",
    "Luth Velloa governed",
    "mayor",
    "Bo Tarn employer",
):
    both = "  ".join(f"{how} {match(query, line, how):.2f}" for how in ("share", "f1"))
    print(f"{query:36s} {both}")

# %% [markdown]
# ## Step 3: the reward
#
# Coverage goes through plan and searches side by side. Each sub-question may claim one search, each search serves one sub-question, and claims may not cross:
#
# $$C = \frac1J \max_{P} \sum_{(j, k) \in P} m(q_k, s_j), \qquad r_i = \mathrm{EM}_i + F_i\,(w_f + w_p\, C_i), \qquad w_f + w_p < 1.$$ (eq-08-reward)
#
# $P$ is any set of claims, sub-question $j$ with search $k$, in which both numbers rise from claim to claim. Sub-questions without a search count as 0. Searches that serve none are allowed, as a second try must be. Four words for form:
#
# | word | what it asks |
# |---|---|
# | *proper* | two to eight lines that differ; references point back; the answer does not stand in them |
# | *formed* | the attempt, its plan aside, has its blocks in order (chapter 7), all written by the model |
# | *valid*, $F = 1$ | one plan, before the first search; proper, formed, and something is searched |
# | *broken* | something stands outside the blocks, a search beyond the last one allowed apart |
#
# A plan of one line is never paid: a question of one step needs none, and training has no such questions.
#
# The limit on the weights is a gate: a wrong answer with a perfect plan (0.3) never beats a right one without (1). That bounds what can be *earned* by pretence. What it does to what is *learnt* is exercise 3.
#
# **The reward never asks whether the plan is the question's.** $C$ says that searches follow the plan. A short and easy plan that has little to do with the question, with both its lines searched, is paid in full. So beside the share of attempts with a plan we watch the share with *the* plan.


# %%
def coverage(matches: np.ndarray, order: bool = True) -> float:
    """How much of a plan was carried out. Shape: (J, n), sub-questions by searches -> 0 to 1.

    Without `order` claims may cross; each search still serves one sub-question.
    """
    lines, searches = matches.shape
    if not lines or not searches:
        return 0.0
    if not order:
        claims = linear_sum_assignment(matches, maximize=True)
        return float(matches[claims].sum() / lines)
    best = np.zeros((lines + 1, searches + 1))
    for k in range(lines):
        for t in range(searches):
            both = best[k, t] + matches[k, t]
            best[k + 1, t + 1] = max(both, best[k, t + 1], best[k + 1, t])
    return float(best[-1, -1] / lines)


@dataclass(frozen=True)
class Rules:
    """When a plan is paid; the defaults are those of `plan`."""

    fewest: int = 2
    most: int = 8
    order: bool = True


# %%
def holds_answer(lines: Sequence[str], question: Question) -> bool:
    """Whether a right answer stands in a plan already."""
    plan = f" {normalise_answer(' ; '.join(lines))} "
    names = [normalise_answer(name) for name in question["golden_answers"]]
    return any(f" {name} " in plan for name in names if name)


def rest_is_formed(attempt: Trajectory) -> bool:
    """Whether all but the plan is as in chapter 7, and written by the model itself."""
    written = [s for s in attempt.segments[1:] if s.kind != "documents"]
    own = all(s.sampled and s.kind != "invalid" for s in written)
    rest = re.sub(r"<plan>.*?</plan>", "", attempt.text, flags=re.S)
    return own and is_well_formed(rest)


# %%
def proper(lines: Sequence[str], question: Question, rules: Rules) -> bool:
    """Whether the lines of a plan, as far as they go, are as they should be."""
    back = all(
        0 < int(number) <= before
        for before, line in enumerate(lines)
        for number in re.findall(REFERENCE, line)
    )
    return (
        rules.fewest <= len(lines) <= rules.most
        and len(set(lines)) == len(lines)
        and (back or not rules.order)
        and not holds_answer(lines, question)
    )


def valid_plan(attempt: Trajectory, question: Question, rules: Rules) -> bool:
    """F in the formula."""
    planned = proper(plan_in(attempt), question, rules)
    return planned and bool(attempt.queries) and rest_is_formed(attempt)


# %%
@dataclass(frozen=True)
class Reading:
    """An attempt as the reward sees it, part by part."""

    planned: bool  # some plan stands before the first search
    valid: bool
    covered: float  # C, also where it is not paid
    right: float


def read(attempt: Trajectory, question: Question, rules: Rules) -> Reading:
    """Plan, form, coverage and answer of an attempt."""
    lines, found = plan_in(attempt), found_in(attempt)
    matches = [
        [match(query, filled(line, found)) for query in attempt.queries]
        for line in lines
    ]
    table = np.array(matches).reshape(len(lines), len(attempt.queries))
    return Reading(
        planned=bool(lines),
        valid=valid_plan(attempt, question, rules),
        covered=coverage(table, rules.order),
        right=exact_match_reward(attempt, question),
    )


# %%
@dataclass(frozen=True)
class PlanReward:
    """The reward of an attempt, as GRPO takes it.

    Raises:
        InputError: for weights with which a wrong answer could earn as much as a right one.
    """

    form: float
    plan: float
    rules: Rules = Rules()

    def __post_init__(self) -> None:
        if min(self.form, self.plan) < 0 or self.form + self.plan >= 1:
            found, remedy = f"{self.form:g} and {self.plan:g}", "lower one of them."
            raise InputError("weights", found, "none below 0, sum below 1", remedy)

    def __call__(self, attempt: Trajectory, question: Question) -> float:
        seen = read(attempt, question, self.rules)
        return seen.right + seen.valid * (self.form + self.plan * seen.covered)


# %% tags=["page-only", "nbval-check-output"]
table = np.array([[1.0, 0.2], [0.2, 0.8]])  # two sub-questions, two searches
for name, found in {"in order": table, "the other way round": table[:, ::-1]}.items():
    print(
        f"{name:20s} coverage {coverage(found):.2f}, without order {coverage(found, False):.2f}"
    )

# %% [markdown]
# ## Step 4: four sub-skills, and what to watch
#
# A plan that is carried out takes four skills, each of which can be probed by itself on questions that are not trained on:
#
# | | skill | how it is probed |
# |---|---|---|
# | S1 | to use the tool | share of attempts that are *formed* (step 3) |
# | S2 | to write a plan | in the same attempts: share of attempts with a plan; share with *the* plan |
# | S3 | to put what was found into the next sub-question | with a plan given: after a thought that says it found a name, the next search has that name |
# | S4 | to close | with the plan and every search done, and the right passages in sight: the answer is right |
#
# S1 and S2 look at attempts that are free. S3 and S4 are the easy versions: the plan is given, and in S4 each search shows the right passage alone.
#
# Two more measures need an invented world. An attempt is *in order* if the steps its thoughts need follow those of the question; the same need of the same name is a second try, the same need of another name a step of its own. A search is *on course* if it has the name that the first open step starts from. Open is a step whose passage has not come; once all have come, searches do not count, and an attempt without searches counts 0. A policy that drifts asks about something else. Both go as far as the attempt goes: one that gives up early can be in order, so that they have to be read beside the right answers.


# %%
def in_order(attempt: Trajectory, question: Question) -> float:
    """Whether the steps that the thoughts need are the question's, as far as they go."""
    needed, wanted = needs_of(attempt), question["metadata"]["relations"]
    return float(bool(needed) and wanted[: len(needed)] == needed)


def on_course(attempt: Trajectory, question: Question) -> float:
    """Of the searches with a step still open, the share with the name this step starts from."""
    facts, held = question["metadata"], []
    names = [facts["entity"], *(hop["answer"] for hop in facts["hops"])]
    pairs = zip(attempt.queries, due_steps(attempt, question), strict=True)
    for query, (due, _) in pairs:
        if due >= 0:
            name = normalise_answer(names[due])
            held.append(f" {name} " in f" {normalise_answer(query)} ")
    return float(np.mean(held)) if held else 0.0


# %%
def is_the_plan(attempt: Trajectory, question: Question) -> float:
    """Whether it has the question's own plan, line by line; 0 where that is not known."""
    known = "entity" in question["metadata"]
    return float(known and plan_in(attempt) == steps_of(question))


def filled_in(attempt: Trajectory) -> list[bool]:
    """Of each search right after a thought that found a name: whether it has that name."""
    blocks, held = closed_blocks(attempt.text), []
    for (before, thought), (tag, query) in pairwise(blocks):
        names = (
            re.findall(FOUND, thought) if (before, tag) == ("think", "search") else []
        )
        if names:
            name = normalise_answer(names[-1])
            held.append(f" {name} " in f" {normalise_answer(query)} ")
    return held


# %%
def all_but_the_answer(
    lm: LanguageModel, question: Question, passages: dict[str, Document]
) -> str:
    """A plan and each of its searches with the right passage, as the model might write it."""
    protocol, facts = protocol_of(lm.tokenizer), question["metadata"]
    pieces, here, said = [plan_block(steps_of(question))], facts["entity"], ""
    for noun, hop in zip(facts["relations"], facts["hops"], strict=True):
        shown = protocol.render([passages[hop["gold_ids"][0]]])
        pieces += [
            Piece("think", f"{said}need {noun} of {here}"),
            Piece("search", f"{here} {noun}"),
            Piece("information", shown),
        ]
        here = hop["answer"]
        said = f"found {here} ; "
    return " ".join(map(str, pieces))


# %%
def probes(lm: LanguageModel) -> dict[str, float]:
    """How well each sub-skill is mastered, in an encyclopedia that nothing is trained on."""
    home, library = open_world("blank", 100 + world_seed)
    hops = range(2, settings.longest + 1)
    asked = home.questions(settings.looked_at, hops, derive_seed(0, "probes"))
    passages = {document["id"]: document for document in home.corpus}
    protocol = protocol_of(lm.tokenizer)
    plain = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
    plans = [f" {plan_block(steps_of(q))}" for q in asked]
    done = [f" {all_but_the_answer(lm, q, passages)}" for q in asked]

    def made(given: Sequence[str]) -> list[Trajectory]:
        prompts = [f"{p}{g}" for p, g in zip(plain, given, strict=True)]
        return rollout(lm, library, protocol, prompts, settings.attempts(), 5)

    free, planned, closed = made([""] * len(asked)), made(plans), made(done)
    held = [value for attempt in planned for value in filled_in(attempt)]
    pairs = list(zip(free, asked, strict=True))
    return {
        "S1 tool": float(np.mean([rest_is_formed(a) for a in free])),
        "S2 a plan": float(np.mean([bool(plan_in(a)) for a in free])),
        "S2 the plan": float(np.mean([is_the_plan(*pair) for pair in pairs])),
        "S3 fill in": float(np.mean(held)) if held else np.nan,
        "S4 close": float(
            np.mean([exact_match_reward(*p) for p in zip(closed, asked, strict=True)])
        ),
    }


# %% tags=["page-only", "hide-input"]
import pandas as pd

if settings.model == "toy":
    found = probes(start)
    display(pd.DataFrame({"before any tuning": found}).round(2))
    for hops in (2, 3, 4):
        asked_so = example.questions(2 * settings.looked_at // 3, (hops,), seed=3)
        texts = [protocol.prompt(start.tokenizer, q["question"]) for q in asked_so]
        made = rollout(start, library, protocol, texts, settings.attempts(), 5)
        share = np.mean([in_order(*p) for p in zip(made, asked_so, strict=True)])
        print(f"{hops} steps: {share:.2f} of {len(made)} attempts are in order")

# %% [markdown]
# The tool is there, the first plan is not. Names are filled in from pre-training: a model like ours cannot lack S3 by nature, so that step 7 has to cover it up. Now the reward can be watched while it works. `Watch` adds nothing to the advantages; it writes down, step by step, how many attempts plan, how many plans are valid and lead to a right answer, the entropy of
# the first twenty tokens, where a plan would have to begin, and how far the policy is from where training began (the estimate of a divergence of chapter 7). From those a run is given a name. The thresholds are ours.


# %%
def is_broken(attempt: Trajectory) -> float:
    """Whether something stands outside the blocks, a search beyond the last one allowed apart."""
    used_up = len(attempt.queries) >= settings.searches
    return float(not used_up and any(s.kind == "invalid" for s in attempt.segments))


# %%
class Watch:
    """An `extra_advantage` of GRPO that adds none; `log` has a row a step."""

    def __init__(self, lm: LanguageModel, rules: Rules) -> None:
        self.start, self.pad_id, self.rules = deepcopy(lm.model), lm.pad_id, rules
        self.log: list[dict[str, float]] = []

    def __call__(self, step: Step) -> Tensor:
        """Shape: -> (N, L)."""
        pairs = list(zip(step.attempts, step.questions, strict=True))
        seen = [read(attempt, question, self.rules) for attempt, question in pairs]
        early = []
        for attempt in step.attempts:
            written = [p for s in attempt.segments for p in s.log_probs or ()]
            early.append(-float(np.mean(written[:20])) if written else 0.0)
        self.log.append(
            {
                "planned": float(np.mean([s.planned for s in seen])),
                "valid": float(np.mean([s.valid for s in seen])),
                "planned_right": float(np.mean([s.valid * s.right for s in seen])),
                "covered": float(np.mean([s.covered for s in seen])),
                "right": float(np.mean([s.right for s in seen])),
                "formed": float(np.mean([rest_is_formed(a) for a in step.attempts])),
                "broken": float(np.mean([is_broken(a) for a in step.attempts])),
                "early_entropy": float(np.mean(early)),
                "the_plan": float(np.mean([is_the_plan(*pair) for pair in pairs])),
                "kl": self.moved(step.attempts[::8]),
            }
        )
        return torch.zeros_like(step.advantages)

    def moved(self, attempts: Sequence[Trajectory]) -> float:
        """Divergence from the start over what was written, nats a token, an estimate."""
        batch = collate(attempts, self.pad_id).to(self.start.device)
        before = token_log_probs(self.start.eval(), batch, batch.policy)
        return float(k3(batch.log_probs, before)[batch.policy].mean())


# %%
def verdict_of(log: Sequence[dict[str, float]]) -> str:
    """What became of a run, from its first and its last quarter."""
    quarter = max(1, len(log) // 4)
    first, last = (
        {name: float(np.mean([row[name] for row in part])) for name in log[0]}
        for part in (log[:quarter], log[-quarter:])
    )
    if last["formed"] < 0.5:
        return "collapses"
    if last["planned"] < 0.1 and first["planned"] < 0.1:
        return "never explores"
    if last["right"] < first["right"] / 2:
        return "collapses"
    if last["planned"] > 0.9 and last["right"] <= first["right"]:
        return "plans but cannot execute"
    return "plans" if last["planned"] > 0.9 else "undecided"


# %% [markdown]
# ## Step 5: a seed model that plans
#
# In the paper planning *emerged* in some small model. In ours it cannot: see the log-probability above. So the first plans are written by hand (here by a script, as it knows the steps of every question). The seed model is given some of them in the *prompt*, makes
# attempts, and is tuned on these with the plan moved to where it should be: out of the prompt, into what the model writes. Kept are attempts that are formed and right, and formed ones whose thoughts go through the whole plan in order, whatever came of it, as few questions of four steps are answered yet. To these come *openings*: a plan, and the first thought that follows from it.
#
# Plans alone, with nothing behind them, teach a model to write plans, and nothing about how to stop: in our first tries a thought after a plan went on like a plan, `need mayor of #1 ; ..`, and was closed by `</plan>`. With the first thought behind each plan the way out of it is learnt too.
#
# The seed model is **not** the target: it is the other one of our two models. In the paper it is smaller than its targets and of another family; ours has the same size and class and another random beginning, which is the weakest form of that claim.

# %%
Lesson = tuple[list[int], list[bool]]  # tokens, and which of them are to be learnt
Pair = tuple[Question, Trajectory]


def with_plan(
    lm: LanguageModel, attempt: Trajectory, lines: Sequence[str]
) -> Trajectory:
    """The same attempt with these lines as its plan, or with none."""
    rest = [s for s in attempt.segments[1:] if s.kind != "plan"]
    text = re.sub(r"<plan>.*?</plan>", "", attempt.text, flags=re.S).strip()
    if lines:
        block = str(plan_block(lines))
        ids, text = lm.encode(block), f"{block} {text}".strip()
        rest.insert(0, Segment("plan", ids, [0.0] * len(ids)))
    return replace(attempt, segments=[attempt.segments[0], *rest], text=text)


def lesson(lm: LanguageModel, question: Question, attempt: Trajectory) -> Lesson:
    """An attempt under the plain prompt; only what the model wrote is learnt."""
    prompt = protocol_of(lm.tokenizer).prompt(lm.tokenizer, question["question"])
    before, own = lm.encode(prompt), attempt.segments[1:]
    ids = before + [token for segment in own for token in segment.ids]
    learn = [segment.sampled for segment in own for _ in segment.ids]
    return ids, [False] * len(before) + learn


# %%
class Tuning(Module):
    """Supervised tuning: the cross-entropy of what a model is to write itself."""

    def __init__(self, lm: LanguageModel, lessons: Sequence[Lesson]) -> None:
        super().__init__()
        self.model, self.pad_id, self.lessons = lm.model, lm.pad_id, lessons

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean over the learnt tokens of a batch, in nats."""
        rows = [self.lessons[n] for n in batch["lesson"].tolist()]
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        parts = [self.summed([rows[n] for n in part]) for part in passes(lengths)]
        return torch.stack(parts).sum() / sum(sum(learn) for _, learn in rows)

    def summed(self, rows: Sequence[Lesson]) -> Tensor:
        """The sum over the learnt tokens of some rows of about one length."""
        shape = len(rows), max(len(ids) for ids, _ in rows)
        ids = torch.full(shape, self.pad_id, device=self.device)
        learn = torch.zeros(shape, dtype=torch.bool, device=self.device)
        for n, (tokens, flags) in enumerate(rows):
            ids[n, : len(tokens)] = torch.tensor(tokens)
            learn[n, : len(flags)] = torch.tensor(flags)
        logits = logits_before(self.model, ids, learn)
        return -log_prob_of(logits, ids[learn]).sum()


def tune(
    lm: LanguageModel, lessons: Sequence[Lesson], rate: float, epochs: int, seed: int
) -> Tuning:
    """Tune in place; the rate falls to 0 in a line."""
    if not lessons:
        raise InputError(
            "lessons", "none", "at least one", "raise `pool`, or filter less."
        )
    numbers, rows = torch.arange(len(lessons)), min(settings.tuning_rows, len(lessons))
    module = Tuning(lm, lessons)
    batches = Batches({"lesson": numbers}, rows, seed)
    fit(module, batches, settings, Optimisation(rate), epochs)
    return module


# %%
def pool_questions(count: int, name: str) -> tuple[list[Question], Retriever]:
    """Questions of training for which a plan can be written, and their search engine.

    Raises:
        InputError: for real questions, whose steps are not known in this form.
    """
    if settings.model != "toy" or data:
        what, remedy = "an invented encyclopedia", "run an arm without lessons."
        raise InputError("plans by hand", "real questions", what, remedy)
    home, library = open_world("blank", 200 + world_seed)
    hops = range(2, settings.longest + 1)
    return home.questions(count, hops, derive_seed(0, name)), library


# %%
def written_by_hand(lm: LanguageModel, pieces: Sequence[Piece]) -> Trajectory:
    """Blocks of text as an attempt, as if the model had written all but the passages."""

    def own(kind: str, text: str) -> Segment:
        ids = lm.encode(text)
        return Segment(kind, ids, [0.0] * len(ids))

    attempt = Trajectory([Segment("prompt", [])], text=" ".join(map(str, pieces)))
    for kind, text in pieces:
        if kind == "information":
            attempt.segments.append(
                Segment("documents", lm.encode(str(Piece(kind, text))))
            )
        elif kind == "search":
            parts = ("search", "<search>"), ("query", text), ("search", "</search>")
            attempt.segments += [own(part, inside) for part, inside in parts]
            attempt.queries.append(text)
        else:
            attempt.segments.append(own(kind, str(Piece(kind, text))))
        attempt.answer = text if kind == "answer" else attempt.answer
    return attempt


# %%
def opened_by_hand(lm: LanguageModel, question: Question) -> Trajectory:
    """The plan, and the first thought that follows from it."""
    steps = steps_of(question)
    return written_by_hand(lm, [plan_block(steps), Piece("think", f"need {steps[0]}")])


def to_the_end(attempt: Trajectory, question: Question) -> bool:
    """Whether the thoughts need every step of the plan, in order, whatever came of it."""
    return needs_of(attempt) == question["metadata"]["relations"]


def first_lessons(lm: LanguageModel) -> list[Lesson]:
    """What the seed model is tuned on: its own attempts with a plan in the prompt, and openings."""
    asked, library = pool_questions(settings.first_plans, "first plans")
    protocol, tries = protocol_of(lm.tokenizer), asked[: settings.first_attempts]
    prompts = [
        protocol.prompt(lm.tokenizer, q["question"], [plan_block(steps_of(q))])
        for q in tries
    ]
    config = settings.attempts(settings.pool_temperature)
    attempts = rollout(lm, library, protocol, prompts, config, 21)
    lessons = [
        lesson(lm, question, with_plan(lm, attempt, steps_of(question)))
        for question, attempt in zip(tries, attempts, strict=True)
        if rest_is_formed(attempt)
        and (exact_match_reward(attempt, question) or to_the_end(attempt, question))
    ]
    return lessons + [lesson(lm, q, opened_by_hand(lm, q)) for q in asked]


# %% [markdown]
# The seed model, which plans now by itself, then answers fresh questions of training. This *pool* of attempts is all that a target ever sees of it. They are drawn at a temperature of 0.7, at which fewer break their form. The pool is made once for each encyclopedia and seed model, and kept on disk; all runs of the grid that share these share the pool, so that its luck is not in their intervals.


# %%
def stored(attempt: Trajectory) -> dict:
    """An attempt as plain values."""
    segments = [[s.kind, s.ids, s.sampled] for s in attempt.segments]
    return {**vars(attempt), "segments": segments}


def restored(row: dict) -> Trajectory:
    """The attempt again; its log-probabilities are gone."""
    segments = [
        Segment(kind, ids, [0.0] * len(ids) if own else None)
        for kind, ids, own in row["segments"]
    ]
    return Trajectory(**{**row, "segments": segments})


def seed_pool(name: str) -> tuple[list[Pair], dict[str, float]]:
    """Attempts of a seed model that was taught to plan; and how well it does, by sub-skill."""
    asked, library = pool_questions(settings.pool, "pool")

    def build(folder: Path) -> None:
        lm = load_lm(name)
        tune(lm, first_lessons(lm), settings.first_rate, settings.first_epochs, 0)
        protocol = protocol_of(lm.tokenizer)
        prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
        config = settings.attempts(settings.pool_temperature)
        made = rollout(lm, library, protocol, prompts, config, 22)
        rows = {"attempts": [stored(attempt) for attempt in made]}
        rows |= {"probes": probes(lm)}
        (folder / "pool.json").write_text(json.dumps(rows), encoding="utf-8")

    own = replace(settings, steps=0, kept=0, openings=0, epochs=0, tuning_rate=0.0)
    key = {"seed model": name, "world": world_seed, "settings": repr(own), "version": 3}
    file = cached("plan-pool", key, build) / "pool.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    made = [restored(row) for row in rows["attempts"]]
    return list(zip(asked, made, strict=True)), rows["probes"]


# %% [markdown]
# The recipe that the paper argues against tunes a target on what a *stronger, external* model wrote. Here that is a scripted searcher with good habits: it knows every question's steps, uses several words for a relation, tries again, and misreads nothing.


# %%
def demonstrated(lm: LanguageModel) -> list[Pair]:
    """Attempts of the scripted searcher, at the same questions as those of the pool."""
    asked, library = pool_questions(settings.pool, "pool")
    home, _ = open_world("blank", 200 + world_seed)
    skill = Habits(
        (0.0, 0.2, 0.5, 0.3),  # of asking with 0, 1, 2, 3 words of a relation
        drift=0,
        misread=0,
        believe=0,
        retry=1,
        searches=settings.searches,
    )
    search = remembered(library, settings.passages)
    demonstrator = Demonstrator(home, search, protocol_of(lm.tokenizer))
    rng, pairs = np.random.default_rng(derive_seed(0, "demonstrator")), []
    for question in asked:
        pieces = demonstrator.attempt(question, rng, skill).pieces
        plan = plan_block(steps_of(question))
        pairs.append((question, written_by_hand(lm, [plan, *pieces])))
    return pairs


# %% [markdown]
# ## Step 6: the filter, and tuning a target
#
# Of the pool an attempt is kept if it is right; its plan is valid; keeping the plan's order costs none of its coverage; no search comes twice; and there is at most one more search than sub-questions. Every arm that is tuned sees the **same number** of attempts, so that a filter changes how good they are and not how
# many. Where fewer are kept, they come again.
#
# The filter has a price that the paper names itself: it prefers what was easy. On questions of four steps the seed model is hardly ever right, so that next to no attempt of that length passes, and a target would see hardly a long plan. So each tuned arm gets *openings* of the pool besides: a plan and the thought after it, of attempts at questions of every length,
# if its plan is *proper* and nothing stands between the blocks. Whether such a plan is right, nobody checks. The twin without plans has these lessons too, with the plan cut out.


# %%
FILTERS = ("full", "answer", "none")


def keeps(question: Question, attempt: Trajectory, how: str = "full") -> bool:
    """Whether an attempt may teach a target."""
    if how not in FILTERS:
        raise one_of("filter", how, list(FILTERS))
    seen, free = (read(attempt, question, Rules(order=o)) for o in (True, False))
    if how != "full":
        return how == "none" or seen.right == 1
    return (
        seen.right == 1
        and seen.valid
        and np.isclose(seen.covered, free.covered)
        and len(set(attempt.queries)) == len(attempt.queries)
        and len(attempt.queries) <= len(plan_in(attempt)) + 1
    )


# %%
def opening(attempt: Trajectory) -> Trajectory:
    """An attempt as far as its first search: a plan and a thought."""
    kinds = [segment.kind for segment in attempt.segments]
    end = kinds.index("search") if "search" in kinds else None
    return replace(attempt, segments=attempt.segments[:end])


OPENED = ["plan", "think"]  # the segments of a good one


def opens(question: Question, attempt: Trajectory, how: str = "full") -> bool:
    """Whether the opening of an attempt may teach a target; nothing of its answer is asked."""
    formed = [s.kind for s in opening(attempt).segments[1:]] == OPENED
    return how != "full" or (formed and proper(plan_in(attempt), question, Rules()))


def drawn(good: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """So many of the pairs in random order; again from the start if there are too few."""
    if not good:
        found = "none passes the filter"
        raise InputError("pool", found, "at least one attempt", "raise `pool`.")
    order = np.random.default_rng(derive_seed(seed, "drawn")).permutation(len(good))
    return [good[n] for n in np.resize(order, count)]


# %%
def exchanged(ids: Sequence[int], old: Sequence[int], new: Sequence[int]) -> list[int]:
    """Tokens in which every run of `old` has become `new`."""
    found, place, old = [], 0, list(old)
    while place < len(ids):
        if old and list(ids[place : place + len(old)]) == old:
            found += new
            place += len(old)
        else:
            found.append(ids[place])
            place += 1
    return found


def unfilled(lm: LanguageModel, attempt: Trajectory) -> Trajectory:
    """The same attempt, but its searches say `#1` in place of the first name found, and so on."""
    names = [
        (lm.encode(name), lm.encode(f"#{n}"))
        for n, name in enumerate(found_in(attempt), 1)
    ]
    segments = []
    for segment in attempt.segments:
        ids = segment.ids
        for old, new in names if segment.kind == "query" else ():
            ids = exchanged(ids, old, new)
        own = [0.0] * len(ids) if segment.sampled else None
        segments.append(Segment(segment.kind, ids, own))
    queries = [lm.decode(s.ids).strip() for s in segments if s.kind == "query"]
    text = lm.decode([token for s in segments[1:] for token in s.ids])
    return replace(attempt, segments=segments, queries=queries, text=text)


def shuffled_plan(lm: LanguageModel, attempt: Trajectory, seed: int) -> Trajectory:
    """The same attempt with the lines of its plan in another order."""
    lines, random = plan_in(attempt), np.random.default_rng(seed)
    if len(set(lines)) < 2:
        return attempt
    order = lines
    while order == lines:
        order = [lines[n] for n in random.permutation(len(lines))]
    return with_plan(lm, attempt, order)


# %% [markdown]
# ## Step 7: one condition taken away
#
# Four ways to train with the same reward, on the same questions, with as many updates. All begin with the target tuned on the same filtered attempts; added are lessons of a single token, the `<think>` with which an attempt without a plan begins: so many that a plan begins three in ten of all lessons, and there is
# something left to learn. Three in ten, because it has to be well below one half (exercise 4).
#
# | arm | differs from `ready` in | the missing condition |
# |---|---|---|
# | `ready` | nothing | none |
# | `sharp` | its attempts are drawn at temperature 1/8 while it trains | entropy, all through training |
# | `unstable` | the learning rate is ten times as high | stability |
# | `unskilled` | in the searches of its lessons stands `#1` where a name ought to be filled in | a sub-skill, S3 |
#
# *Exactly one thing* differs each time. To draw at temperature 1/8 is to draw from a model with all logits multiplied by 8: it says nearly always what it finds likeliest. We do so in drawing only: in the model it would also make every update move the logits eight times as far, and that is the condition of `unstable`. It takes away more than the claim asks. Thoughts, searches and answers are no longer tried out either, and a group of eight like attempts is dead (chapter 7): the share of dead groups stands beside the results.
# `unskilled` is taught a wrong habit, which is more than not being taught a right one.
#
# How is one to tell that a run failed? Not from its attempts while it trains: `sharp` makes fewer plans from the very first one, before it could learn anything. So all are asked in the same way once training is over, at temperature 1, and so is the policy that they began with, `ready_start`. To give the missing condition back is, in each case, `ready`; that it *succeeds* means that it ends
# with more right answers after a valid plan than `ready_start` has. This is to have learnt *to plan*, also where it answers no better: for that look at `em_sampled`.


# %%
def hints_not_to_plan(
    lm: LanguageModel,
    planned: Sequence[Lesson],
    asked: Sequence[Question],
    share: float,
) -> list[Lesson]:
    """Lessons whose one learnt token begins a thought: so many that `share` of all begin a plan."""
    tag, prompt = lm.encode("<think>")[:1], protocol_of(lm.tokenizer).prompt
    count = round(len(planned) * (1 - share) / share)
    texts = [
        prompt(lm.tokenizer, asked[n % len(asked)]["question"]) for n in range(count)
    ]
    before = [lm.encode(text) for text in texts]
    return [(ids + tag, [False] * len(ids) + [True]) for ids in before]


# %% tags=["page-only"]
begins = torch.tensor([0.3, 0.7])  # a plan, or a thought
for temperature in (1.0, 0.125):
    drawn_so = torch.distributions.Categorical(logits=begins.log() / temperature)
    chance, entropy = drawn_so.probs[0].item(), drawn_so.entropy().item()
    print(
        f"temperature {temperature:5.3f}: a plan with probability {chance:.4f}, "
        f"entropy {entropy:.3f} nats"
    )

# %% [markdown]
# The first token of an attempt is hardly in doubt any more, and plans have become too rare to be strengthened.
#
# ## Train and watch
#
# | arm | tuned on | plans there | reward |
# |---|---|---|---|
# | `cold` | nothing | | not trained |
# | `told` | nothing | a plan written by hand begins every attempt | not trained |
# | `grpo` | nothing | | right or wrong |
# | `no_plan` | filtered attempts | cut out | right or wrong |
# | `plan` | filtered attempts | as they are | $r$ of step 3 |
# | `plan_answer` | filtered attempts | as they are | right or wrong |
# | `tuned` | filtered attempts | as they are | not trained further |
# | `direct` | nothing | | $r$ of step 3 |
# | `answer_filter` | right attempts | as they are | $r$ of step 3 |
# | `no_filter` | any attempts | as they are | $r$ of step 3 |
# | `shuffled` | filtered attempts | their lines in another order | $r$ of step 3; claims may cross, and references need not point back |
# | `distilled` | the scripted searcher's, filtered | as they are | $r$ of step 3 |
# | `ready_start` | as in step 7 | in a third of the attempts | not trained further |
# | `ready`, `sharp`, `unstable`, `unskilled` | as in step 7 | the same | $r$ of step 3 |
#
# All that are trained make as many attempts at the same questions. `plan` against `no_plan` is what a plan and its reward are worth together, `plan_answer` against `no_plan` the plan alone, `plan` against `grpo` the whole way, tuning on good attempts included.


# %%
@dataclass(frozen=True)
class Recipe:
    """What an arm does; the defaults are those of `grpo`."""

    lessons: str = ""  # "", "pool" or "demonstrator"
    filter: str = "full"
    plan: str = "own"  # or "none", "shuffled"
    reward: str = "answer"  # or "plan"
    rules: Rules = Rules()
    trained: bool = True  # by reinforcement learning
    mixed: bool = False  # lessons of not planning are added
    unfilled: bool = False
    sharp: bool = False
    fast: bool = False


READY = Recipe("pool", reward="plan", mixed=True)
RECIPES = {
    "cold": Recipe(trained=False),
    "grpo": Recipe(),
    "no_plan": Recipe("pool", plan="none"),
    "plan": Recipe("pool", reward="plan"),
    "plan_answer": Recipe("pool"),
    "tuned": Recipe("pool", trained=False),
    "direct": Recipe(reward="plan"),
    "answer_filter": Recipe("pool", "answer", reward="plan"),
    "no_filter": Recipe("pool", "none", reward="plan"),
    "shuffled": Recipe(
        "pool", plan="shuffled", reward="plan", rules=Rules(order=False)
    ),
    "distilled": Recipe("demonstrator", reward="plan"),
    "ready_start": replace(READY, trained=False),
    "ready": READY,
    "sharp": replace(READY, sharp=True),
    "unstable": replace(READY, fast=True),
    "unskilled": replace(READY, unfilled=True),
}


# %%
def taught_on(name: str, lm: LanguageModel, recipe: Recipe) -> list[Pair]:
    """Attempts of others that a target is tuned on: whole ones, then openings."""
    if settings.pool_of == "demonstrator" or recipe.lessons == "demonstrator":
        pool = demonstrated(lm)
    else:
        pool, _ = seed_pool(f"toy-{1 - init_seed}")
    whole = [pair for pair in pool if keeps(*pair, recipe.filter)]
    begun = [(q, opening(a)) for q, a in pool if opens(q, a, recipe.filter)]
    for what, good in (("kept", whole), ("opened", begun)):
        record.metric(f"{name}/{what}", len(good) / len(pool))
        for hops in sorted({len(q["metadata"]["hops"]) for q, _ in pool}):
            own = sum(len(q["metadata"]["hops"]) == hops for q, _ in good)
            record.metric(f"{name}/{what}/hops: {hops}", float(own))
    return drawn(whole, settings.kept, seed) + drawn(begun, settings.openings, seed)


def lessons_of(name: str, lm: LanguageModel, recipe: Recipe) -> list[Lesson]:
    """The lessons of an arm."""
    pairs, lessons = taught_on(name, lm, recipe), []
    for number, (question, attempt) in enumerate(pairs):
        if recipe.plan == "none":
            attempt = with_plan(lm, attempt, [])
        elif recipe.plan == "shuffled":
            attempt = shuffled_plan(lm, attempt, derive_seed(seed, "lines", number))
        if recipe.unfilled:
            attempt = unfilled(lm, attempt)
        lessons.append(lesson(lm, question, attempt))
    if recipe.mixed:
        asked = [question for question, _ in pairs]
        lessons += hints_not_to_plan(lm, lessons, asked, settings.share)
    return lessons


# %%
def reward_of(lm: LanguageModel, recipe: Recipe) -> dict:
    """The reward of an arm, and what watches it, as arguments of `train`."""
    watch = {"extra_advantage": Watch(lm, recipe.rules)}
    if recipe.reward == "answer":
        return watch
    weights = settings.weight_form, settings.weight_plan
    return {"reward": PlanReward(*weights, recipe.rules), **watch}


# %% [markdown]
# The task has questions of two to four steps, equally many of each; in the test also some of one. Eight searches are allowed, where chapter 7 has five: who was tuned on right attempts has seen nobody give up, and with five searches a question of four steps leaves one to spare. In our first tries 11 of the 12 badly formed
# attempts that we looked at had asked for a sixth search. What is measured in the test comes in three rounds: greedily; at temperature 1; and at temperature 1 with *distractors*, two further passages in each block that are about the words of the search but
# state no fact that any question asks for. Whoever drifts should drift there.


# %%
class Distracting:
    """A search engine that adds passages which state nothing that is asked for."""

    def __init__(self, library: Retriever, others: Retriever, count: int) -> None:
        self.library, self.others, self.count = library, others, count

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `Retriever`; the passages that were found come first."""
        found = self.library.batch_search(queries, topk)
        more = self.others.batch_search(queries, topk + self.count)
        both = []
        for hits, others in zip(found, more, strict=True):
            here = {hit["document"]["id"] for hit in hits}
            new = [hit for hit in others if hit["document"]["id"] not in here]
            both.append(hits + new[: self.count])
        return both


def distracted(task: Task) -> Task:
    """The same test with distractors: passages that no question of the world needs."""
    world, _ = open_world("blank", world_seed)
    needed = {name for names in world.gold_ids.values() for name in names}
    rest = [d for d in task.test_passages if d["id"] not in needed]
    library = Distracting(task.test_library, BM25Retriever(rest), settings.injected)
    return replace(task, test_library=library)


def open_task() -> Task:
    """Questions of two to `longest` steps of one encyclopedia; a test in another one."""
    if settings.model != "toy" or data:
        return real_task(settings, data, service, seed)
    home, library = open_world("blank", 200 + world_seed)
    away, test_library = open_world("blank", world_seed)
    hops = range(2, settings.longest + 1)
    count = settings.steps * settings.questions_a_step
    test = away.questions(settings.one_hop, (1,))
    test += away.questions(settings.multi_hop, hops)
    training = home.questions(count, hops, seed)
    return Task(training, library, home.corpus, test, test_library, away.corpus)


# %%
def told(lm: LanguageModel, task: Task, temperature: float) -> list[Trajectory]:
    """Attempts that begin with a plan written by hand."""
    protocol = protocol_of(lm.tokenizer)
    plain = [protocol.prompt(lm.tokenizer, q["question"]) for q in task.test]
    plans = [steps_of(question) for question in task.test]
    given = [
        f"{prompt} {plan_block(lines)}"
        for prompt, lines in zip(plain, plans, strict=True)
    ]
    made = answers(lm, task, settings.attempts(temperature), given)
    return [
        with_plan(lm, attempt.with_prompt(lm.encode(prompt)), lines)
        for attempt, prompt, lines in zip(made, plain, plans, strict=True)
    ]


def columns_of(attempts: Sequence[Trajectory], task: Task) -> dict[str, np.ndarray]:
    """Measures of attempts at the test questions. Shape: (Q,) each."""
    pairs = list(zip(attempts, task.test, strict=True))
    seen = [read(attempt, question, Rules()) for attempt, question in pairs]
    found = judged(attempts, task)
    found |= {
        "planned": np.array([float(s.planned) for s in seen]),
        "valid": np.array([float(s.valid) for s in seen]),
        "planned_right": np.array([s.valid * s.right for s in seen]),
        "covered": np.array([s.covered for s in seen]),
        "formed": np.array([float(rest_is_formed(a)) for a in attempts]),
        "broken": np.array([is_broken(a) for a in attempts]),
        "written": np.array([float(written_tokens(a)) for a in attempts]),
    }
    if settings.model == "toy" and not data:
        found["the_plan"] = np.array([is_the_plan(*pair) for pair in pairs])
        found["in_order"] = np.array([in_order(*pair) for pair in pairs])
        found["on_course"] = np.array([on_course(*pair) for pair in pairs])
    return found


# %%
def record_plans(name: str, lm: LanguageModel, task: Task, way: str) -> None:
    """The test in its three rounds."""

    def made(task: Task, temperature: float) -> dict[str, np.ndarray]:
        if way == "told":
            return columns_of(told(lm, task, temperature), task)
        return columns_of(answers(lm, task, settings.attempts(temperature)), task)

    rounds = {"greedy": made(task, 0.0), "sampled": made(task, 1.0)}
    if settings.model == "toy" and not data:
        rounds["distracted"] = made(distracted(task), 1.0)
        loss = {
            n: rounds["distracted"][n] - rounds["sampled"][n]
            for n in ("em", "on_course")
        }
        rounds["by_distraction"] = loss
    columns = {f"{n}_{r}": v for r, found in rounds.items() for n, v in found.items()}
    record_answers(record, name, columns, task)


def record_watch(name: str, watch: Watch, points: int = 10) -> None:
    """Plans while training: means over all steps, and in parts."""
    group = settings.questions_a_step * settings.group
    for key in watch.log[0] if watch.log else ():
        values = np.array([row[key] for row in watch.log])
        record.metric(f"{name}/{key}_training", float(values.mean()))
        for steps in np.array_split(np.arange(len(values)), min(points, len(values))):
            label = f"rollouts: {(steps[-1] + 1) * group}"
            record.metric(f"{name}/{key}_training/{label}", float(values[steps].mean()))


# %%
MODULES: dict[str, GRPO] = {}  # trained on this page, by arm


def starting_model() -> LanguageModel:
    """The target, which every arm starts from."""
    return load_lm(f"toy-{init_seed}" if settings.model == "toy" else settings.model)


def record_probes(name: str, lm: LanguageModel) -> None:
    """The four sub-skills of a target, and of its seed model."""
    found = {"": probes(lm)}
    if name == "tuned" and settings.pool_of == "seed":
        found[", seed"] = seed_pool(f"toy-{1 - init_seed}")[1]
    for whose, values in found.items():
        for skill, value in values.items():
            record.metric(f"{name}/{skill}{whose}", value)


# %%
def starved(recipe: Recipe) -> PlanSettings:
    """The settings of training, without what the recipe takes away."""
    rate = settings.learning_rate * (settings.faster if recipe.fast else 1)
    drawn_at = settings.sharp if recipe.sharp else settings.drawn_at
    return replace(settings, learning_rate=rate, drawn_at=drawn_at)


def run_arm(name: str) -> None:
    """Tune, train and test as the arm's recipe says."""
    if name not in RECIPES and name != "told":
        raise one_of("arm", name, [*RECIPES, "told"])
    recipe, lm, task = RECIPES.get(name, RECIPES["cold"]), starting_model(), open_task()
    if recipe.lessons:
        lessons = lessons_of(name, lm, recipe)
        tune(lm, lessons, settings.tuning_rate, settings.epochs, seed)
    if name in ("cold", "tuned") and settings.model == "toy" and not data:
        record_probes(name, lm)
    if recipe.trained:
        extra = reward_of(lm, recipe)
        module = MODULES[name] = train(lm, task, starved(recipe), seed, **extra)
        record_training(record, name, module)
        record_watch(name, extra["extra_advantage"])
    record_plans(name, lm, task, name)


# %% tags=["train"]
MAIN = ["no_plan", "plan"]
results = MAIN if arms == "main" else arms.split(",")
for name in results:
    with record.phase(f"arm {name}"):
        run_arm(name)

# %% [markdown]
# ### A failure that we keep
#
# The same reward from the model as it is (`direct`), for a few updates. Its curve of plans in the figure below is the flattest of this book.

# %% tags=["page-only", "train"]
if settings.model == "toy" and "plan" in MODULES:
    few = replace(settings, steps=min(settings.steps, 3))
    short = open_task()
    short = replace(short, training=short.training[: few.steps * few.questions_a_step])
    with record.phase("arm that never explores"):
        untaught = starting_model()
        extra = reward_of(untaught, RECIPES["direct"])
        MODULES["direct"] = train(untaught, short, few, seed, **extra)

# %% [markdown]
# Four curves. *Right answers* are comparable between arms. *Plans* should be near 1 from the start where the target was tuned on plans, and stay there: a reward that pays for them has no reason to lose them. *The question's plan* shows whether the reward buys easier plans instead: it is not paid for. *KL to the start* grows slowly in a healthy run; a leap is the
# first sign of a collapse. The short line is only there to show that its plans never begin.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Training on this page: right answers, attempts with a plan, with the question's own plan, and divergence from the start of training, means of four updates. The short line is the same reward from a model that never plans.", "name": "fig-08-training"}, "image": {"alt": "Four panels against attempts, one line an arm: right answers, attempts with a plan, with the question's own plan, and divergence from the start. The line of the untuned model lies at nought in both panels of plans."}}
from minisearch import pages
from minisearch.plots import figure

PANELS = {
    "right answers": "right",
    "attempts with a plan": "planned",
    "attempts with the question's plan": "the_plan",
    "KL to the start, nats": "kl",
}
fig, axes = figure(width=7, height=4.8, rows=2, columns=2, layout="constrained")
for ax, (title, column) in zip(axes.flat, PANELS.items(), strict=True):
    for run, module in MODULES.items():
        x = module.history.column("rollouts")[1]
        values = np.array([row[column] for row in module.extra_advantage.log])
        ax.plot(x, pages.smoothed(values), label=run.replace("_", " "))
    ax.set(title=title, xlabel="attempts", ylim=(0, None))
if MODULES:
    axes.flat[0].legend()
record.figure(fig, "training", "training with and without a plan")

# %% tags=["page-only", "hide-input"]
for run, module in MODULES.items():
    if run != "no_plan":  # nothing there is paid for a plan
        print(f"{run:10s} {verdict_of(module.extra_advantage.log)}")

# %% [markdown]
# And two attempts of the planner at the question from the top of this page. Does the plan name all four steps, and do the thoughts keep to it?

# %% tags=["page-only", "hide-input"]
if "plan" in MODULES and settings.model == "toy":
    planner = MODULES["plan"].lm
    config = settings.attempts()
    shown = rollout(planner, library, protocol, [prompt] * 2, config, seed=3)
    weights = settings.weight_form, settings.weight_plan
    rewards = [PlanReward(*weights)(attempt, asked) for attempt in shown]
    display(HTML(group_html(planner, asked, shown, rewards, example.corpus)))

# %% [markdown]
# ## Results
#
# First this page's own run: one pair of encyclopedias, one seed. `em` is exact match: greedily, at temperature 1, over all of training, and with distractors. At temperature 1 are also the shares of attempts with a plan, with the question's own plan, formed, and in order,
# the share of searches on course, and searches and tokens written in an attempt.

# %% tags=["page-only", "hide-input"]
SHOWN = (
    "em_greedy",
    "em_sampled",
    "em_training",
    "planned_sampled",
    "the_plan_sampled",
    "formed_sampled",
    "in_order_sampled",
    "on_course_sampled",
    "em_distracted",
    "searches_sampled",
    "written_sampled",
)
pages.score_table(record.metrics, results, SHOWN)

# %% [markdown]
# What the filter left of the seed model's pool, attempts by the number of steps:

# %% tags=["page-only", "hide-input"]
left = {
    what: pages.bucket_scores(record.metrics, "plan", name)
    for what, name in (("whole attempts", "kept"), ("openings", "opened"))
}
pd.DataFrame(left).T

# %% [markdown]
# By the number of steps, exact match at temperature 1 and the share of attempts that are in order. This is where a plan ought to show: the more steps, the more.

# %% tags=["page-only", "hide-input"]
rows = {
    f"{arm}, {what}": pages.bucket_scores(record.metrics, arm, f"{metric}_sampled")
    for arm in results
    for what, metric in (("right", "em"), ("in order", "in_order"))
}
pd.DataFrame(rows).T.astype(float).round(2)

# %% [markdown]
# ### What the grid says

# %% tags=["page-only", "hide-input"]
from minisearch.showing import claims_markdown

Markdown(claims_markdown("08_plan"))

# %% tags=["page-only", "hide-input"]
as_registered = not (data or service or steps)
print(pages.live_note("08_plan", profile, world_seed, record.metrics, as_registered))

# %% tags=["page-only", "hide-input"]
pages.arm_table("08_plan", SHOWN)

# %% [markdown]
# The same by target. *Kept* and *opened* are the shares of the seed model's pool that pass the filter, whole and up to the first search; `plans` the share of attempts with a plan at temperature 1.

# %% tags=["page-only", "hide-input"]
from minisearch.cards import load_cells


def grid_mean(name: str, init: int) -> float:
    """The mean of a metric over the grid's cells of one target; NaN where none has it."""
    cells = [c for c in load_cells("08_plan") if c.cell.init_seed == init]
    found = [c.metrics[name] for c in cells if name in c.metrics]
    return float(np.mean(found)) if found else np.nan


TARGETS = {
    "kept": "plan/kept",
    "opened": "plan/opened",
    "plans": "plan/planned_sampled",
    "right, greedy: cold": "cold/em_greedy",
    "right, greedy: grpo": "grpo/em_greedy",
    "right, greedy: no_plan": "no_plan/em_greedy",
    "right, greedy: plan": "plan/em_greedy",
}
by_target = {
    f"toy-{n}": {row: grid_mean(name, n) for row, name in TARGETS.items()}
    for n in (0, 1)
}
pd.DataFrame(by_target).round(3)

# %% [markdown]
# And the sub-skills of step 4, in the encyclopedias of the grid: of target `toy-0`, cold and tuned, and of its seed model.

# %% tags=["page-only", "hide-input"]
SKILLS = ("S1 tool", "S2 a plan", "S2 the plan", "S3 fill in", "S4 close")
WHO = {"cold": "cold/{}", "tuned": "tuned/{}", "seed": "tuned/{}, seed"}
skills = {
    who: {skill: grid_mean(name.format(skill), 0) for skill in SKILLS}
    for who, name in WHO.items()
}
pd.DataFrame(skills).round(2)

# %% [markdown]
# ### One reward, three failures
#
# While they train, and then all asked in the same way: attempts with a plan, right answers, and both together, at temperature 1. What is drawn at temperature 1/8 while it trains has fewer plans for that alone, so that the table decides, not the curves. `dead_groups` is the share of groups without a difference; `early_entropy_training` is of the first twenty tokens written, plan or thought alike, and for `sharp` it is scored at temperature 1 though drawn at 1/8.

# %% tags=["page-only"] mystnb={"figure": {"caption": "The same reward in four trainings that differ in one condition, and from the model as it is: attempts with a plan, right answers, and attempts with a valid plan and a right answer, while training; interquartile means over the grid's runs with 95 % limits.", "name": "fig-08-failures"}, "image": {"alt": "Three panels of learning curves, one line an arm: attempts with a plan, right answers, and both together."}}
from minisearch.curves import interquartile_mean_curve
from minisearch.plots import curve_with_band

STARTS = ("ready", "sharp", "unstable", "unskilled", "direct")
WATCHED = {
    "attempts with a plan": "planned_training",
    "right answers": "right_training",
    "valid plan, right answer": "planned_right_training",
}
fig, axes = figure(width=7, height=3, columns=3, layout="constrained")
for ax, (title, metric) in zip(axes, WATCHED.items(), strict=True):
    for n, arm in enumerate(STARTS):
        places, curves = pages.training_curves("08_plan", arm, metric)
        if curves:
            middle = interquartile_mean_curve(curves)
            curve_with_band(ax, places, *middle, label=arm, index=n)
    ax.set(title=title, xlabel="attempts", ylim=(0, None))
if axes[0].get_lines():
    axes[0].legend()
record.figure(fig, "failures", "one reward, three failures")

# %% tags=["page-only", "hide-input"]
after = (
    "planned_sampled",
    "em_sampled",
    "planned_right_sampled",
    "formed_sampled",
    "dead_groups",
    "early_entropy_training",
)
pages.arm_table("08_plan", after, ["ready_start", *STARTS])

# %% [markdown]
# ### What a plan is worth
#
# `em_by_distraction` is exact match with distractors less that without: below 0 is lost. What each arm has over `no_plan` in the runs that both have, with the same encyclopedia, target and seed of training. Runs that share an encyclopedia are not independent, so that the standard errors are the smallest they can be.

# %% tags=["page-only", "hide-input"]
others = [name for name in RECIPES if name not in ("cold", "no_plan")]
names = ["em_greedy", "em_sampled", "em_training", "em_by_distraction"]
pages.paired_table("08_plan", others, "no_plan", names)

# %% [markdown]
# And by the number of steps, right answers at temperature 1, then attempts in order:

# %% tags=["page-only", "hide-input"]
compared = ["cold", "told", "grpo", "no_plan", "plan"]
display(pages.bucket_table("08_plan", compared, "em_sampled"))
pages.bucket_table("08_plan", compared, "in_order_sampled")

# %% [markdown]
# ### What we take from it
#
# ### Where we deviate, and what was tuned

# %% tags=["page-only", "hide-input"]
pages.deviations_table("08_plan")

# %% tags=["page-only", "hide-input"]
pages.tuning_table("08_plan")

# %% [markdown]
# ## Exercises
#
# Each exercise checks itself: the cell after the answer names the property that fails, never the answer. For stubs in place of the
# solutions: `minisearch assignment build 8 --out DIR`.
#
# ### Exercise 1: filling in
#
# Write `fill`: a sub-question with each `#j` replaced by the $j$-th of the names found so far. It returns None where there is no such name, as for `#0` or a name not found yet. Before you do: what does replacing the text `#1` do to `#12`? (`filled` of step 2 comes near; try without.)

# %% tags=["page-only", "hide-input"]
from minisearch.classroom import check, checks


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch08-fill", "locked": false, "schema_version": 3, "solution": true, "task": false}
def fill(line: str, found: Sequence[str]) -> str | None:
    """The sub-question with the names, or None where one is missing."""
    ### BEGIN SOLUTION
    numbers = [int(number) for number in re.findall(r"#(\d+)", line)]
    if any(not 0 < number <= len(found) for number in numbers):
        return None
    return re.sub(r"#(\d+)", lambda r: found[int(r[1]) - 1], line)
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch08-fill-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch08-fill")
def properties_of_fill(fill):
    yield "one name", lambda: fill("mayor of #1", ["Luth"]) == "mayor of Luth"
    yield "nothing to fill", lambda: fill("twin of Ada", []) == "twin of Ada"
    yield "not found yet", lambda: fill("mayor of #2", ["Luth"]) is None
    ### BEGIN HIDDEN TESTS
    yield (
        "two references",
        lambda: fill("#2 and #1", ["Ada", "Bo"]) == "Bo and Ada",
    )
    many = [f"n{k}" for k in range(1, 13)]
    yield "more than nine", lambda: fill("twin of #12", many) == "twin of n12"
    yield "there is no number 0", lambda: fill("twin of #0", ["Ada"]) is None
    yield "a name with a sign", lambda: fill("#1 of #2", ["#2", "Bo"]) == "#2 of Bo"
    yield (
        "a name with a lower sign",
        lambda: fill("#2 of #1", ["Ada", "#1"]) == "#1 of Ada",
    )
    yield "a tuple of names", lambda: fill("mayor of #1", ("Luth",)) == "mayor of Luth"
    yield "a sign inside a word", lambda: fill("#1's mayor", ["Ada"]) == "Ada's mayor"
    yield (
        "a backslash in a name",
        lambda: fill("twin of #1", [r"A\1"]) == r"twin of A\1",
    )
    yield (
        "the last of several is missing",
        lambda: fill("#1 or #2", ["Ada"]) is None,
    )
    ### END HIDDEN TESTS


assert check("ch08-fill", fill)

# %% [markdown]
# ### Exercise 2: a silent bug
#
# A colleague pays a plan by `paid_with_a_bug`. Training runs, coverage rises to 1, the policy's searches become longer, and its plans stop using `#`. What has it learnt to search for? Write `paid_in_order`: claims may not cross, and a search serves one sub-question. (Step 3 has a solution; try without.)


# %% tags=["page-only"]
def paid_with_a_bug(matches: Sequence[Sequence[float]]) -> float:
    """Coverage of a plan; `matches` has a row a sub-question, a column a search."""
    return float(np.mean([max(row, default=0.0) for row in matches]))


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch08-order", "locked": false, "schema_version": 3, "solution": true, "task": false}
def paid_in_order(matches: Sequence[Sequence[float]]) -> float:
    """Coverage with claims in order, each search claimed once; 0 without a plan."""
    ### BEGIN SOLUTION
    from functools import cache

    @cache
    def best(line: int, search: int) -> float:
        if line == len(matches) or search == len(matches[line]):
            return 0.0
        claimed = matches[line][search] + best(line + 1, search + 1)
        return max(claimed, best(line + 1, search), best(line, search + 1))

    return best(0, 0) / len(matches) if len(matches) else 0.0
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch08-order-test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
@checks("ch08-order")
def properties_of_order(paid):
    yield "as planned", lambda: np.isclose(paid([[1, 0], [0, 1]]), 1)
    yield "the other way round", lambda: np.isclose(paid([[0, 1], [1, 0]]), 0.5)
    ### BEGIN HIDDEN TESTS
    yield "one search for all", lambda: np.isclose(paid([[1.0], [1.0]]), 0.5)
    yield "a second try between", lambda: np.isclose(paid([[1, 0, 0], [0, 0, 1]]), 1)
    yield (
        "a line is left out where that pays",
        lambda: np.isclose(paid([[0, 0.2], [1, 0], [0, 1]]), 2 / 3),
    )
    yield (
        "not greedily by line",
        lambda: np.isclose(paid([[0.6, 0.7], [0.0, 1.0]]), 0.8),
    )
    yield "a weak match counts", lambda: np.isclose(paid([[0.2]]), 0.2)
    yield (
        "not the best pair first",
        lambda: np.isclose(paid([[0.8, 1.0], [0, 0.8]]), 0.8),
    )
    yield (
        "a line in the middle is left out",
        lambda: np.isclose(paid([[1, 0], [0, 0], [0, 1]]), 2 / 3),
    )
    once = [[1.0, 0.0], [0.0, 1.0]]
    yield "the table is left as it was", lambda: paid(once) == paid(once) == 1
    yield "no plan", lambda: paid([]) == 0
    yield "nothing searched", lambda: np.isclose(paid([[], []]), 0)
    yield "more lines than searches", lambda: np.isclose(paid([[1.0], [0], [0]]), 1 / 3)
    ### END HIDDEN TESTS


assert check("ch08-order", paid_in_order)

# %% [markdown]
# ### Exercise 3: predict, then break it
#
# A group of four wrong attempts, one of them with a perfect plan: what is its advantage? And that of one right attempt among three wrong ones, all without a plan? Predict both before you write `advantages_of`: for each attempt whether it is right, whether its plan is valid, and its coverage. Then look for
# weights above .001 with which the first becomes small. Which step of your function would have to change so that it does?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch08-gate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def advantages_of(
    right: Sequence[float],
    valid: Sequence[bool],
    covered: Sequence[float],
    form: float,
    plan: float,
) -> list[float]:
    """Advantages of a group, with the unbiased standard deviation; 0 in a dead group."""
    ### BEGIN SOLUTION
    parts = zip(right, valid, covered, strict=True)
    rewards = np.array([r + v * (form + plan * c) for r, v, c in parts], float)
    if np.ptp(rewards) == 0:
        return [0.0] * len(rewards)
    return ((rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)).tolist()
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch08-gate-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch08-gate")
def properties_of_gate(of):
    none, one = [0.0] * 4, [True, False, False, False]

    def close(wanted, right, valid, covered, form=0.1, plan=0.2) -> bool:
        found = of(right, valid, covered, form, plan)
        return np.allclose(found[: len(wanted)], wanted, atol=5e-3)

    right, perfect = [1, 0, 0, 0], [1.0, 0, 0, 0]
    yield "a right answer among wrong ones", lambda: close([1.5], right, none, none)
    ### BEGIN HIDDEN TESTS
    yield "all wrong is dead", lambda: close(none, none, none, none)
    yield "a plan among wrong answers", lambda: close([1.5], none, one, perfect)
    yield (
        "however little it is worth",
        lambda: close([1.5], none, one, perfect, 0.01, 0.0),
    )
    yield (
        "coverage of a plan in bad form earns nothing",
        lambda: close(none, none, none, perfect),
    )
    second, of_second = [False, True, False, False], [0, 1.0, 0, 0]
    mixed = [1.434, -0.048, -0.693, -0.693]
    yield "right beats planned", lambda: close(mixed, right, second, of_second)
    half, both = 2**-0.5, [True, True, False, False]
    yield (
        "more coverage is more reward",
        lambda: close([0, 2 * half, -half, -half], none, both, of_second),
    )
    yield (
        "a plan adds to a right answer",
        lambda: np.diff(of([1, 1, 0, 0], one, perfect, 0.1, 0.2))[0] < -0.1,
    )
    yield "all right is dead", lambda: close(none, [1.0] * 4, none, none)
    ### END HIDDEN TESTS


assert check("ch08-gate", advantages_of)

# %% [markdown]
# ### Exercise 4: what a sharper start does
#
# A model begins with a plan with probability $p$ and with a thought otherwise. Write `rate_when_sharp`: that probability when all logits are multiplied by a factor. Then write `attempts_until`: how many attempts it takes on average until the first plan. For which $p$ does sharpening make the model *more* likely to plan? Why is the share of planned lessons in
# step 7 well below that?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch08-sharp", "locked": false, "schema_version": 3, "solution": true, "task": false}
def rate_when_sharp(p: float, factor: float) -> float:
    """The probability of a plan once all logits are multiplied."""
    ### BEGIN SOLUTION
    return p**factor / (p**factor + (1 - p) ** factor)
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch08-sharp-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch08-sharp")
def properties_of_sharp(rate):
    yield "not sharpened", lambda: np.isclose(rate(0.3, 1.0), 0.3)
    yield "rarer where it was rare", lambda: rate(0.3, 8.0) < 0.01
    ### BEGIN HIDDEN TESTS
    yield "a coin stays a coin", lambda: np.isclose(rate(0.5, 8.0), 0.5)
    yield "by hand", lambda: np.isclose(rate(0.2, 2.0), 0.04 / 0.68)
    yield (
        "more likely where it was likely",
        lambda: np.isclose(rate(0.8, 2.0), 0.64 / 0.68),
    )
    yield "flatter below 1", lambda: np.isclose(rate(0.2, 0.5), 1 / 3)
    yield "both sides sum to 1", lambda: np.isclose(rate(0.3, 3) + rate(0.7, 3), 1)
    yield "never stays never", lambda: rate(0.0, 3) == 0
    yield "always stays always", lambda: rate(1.0, 8.0) == 1
    ### END HIDDEN TESTS


assert check("ch08-sharp", rate_when_sharp)


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch08-until", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attempts_until(p: float) -> float:
    """The mean number of attempts up to and with the first plan."""
    ### BEGIN SOLUTION
    return 1 / p if p else float("inf")
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch08-until-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch08-until")
def properties_of_until(until):
    yield "one in four", lambda: np.isclose(until(0.25), 4)
    yield "never", lambda: until(0.0) == float("inf")
    ### BEGIN HIDDEN TESTS
    yield "not a whole number", lambda: np.isclose(until(0.4), 2.5)
    yield "always", lambda: np.isclose(until(1.0), 1)
    ### END HIDDEN TESTS


assert check("ch08-until", attempts_until)

# %% [markdown]
# ### Exercise 5: what a filter selects
#
# Of each number of steps the pool has some attempts, and a share of them is right. Write `after_filter`: the share of each number of steps among the right ones. With equally many of 2, 3 and 4 steps, right in 40, 10 and 1 of a hundred: what does a target see of the questions for which plans were invented? Openings (step 6) are our remedy. What do they not teach?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch08-filter", "locked": false, "schema_version": 3, "solution": true, "task": false}
def after_filter(pool: dict[int, int], right: dict[int, float]) -> dict[int, float]:
    """The share of each number of steps among attempts that are right; 0 for all if none is."""
    ### BEGIN SOLUTION
    kept = {steps: count * right[steps] for steps, count in pool.items()}
    return {steps: n / (sum(kept.values()) or 1) for steps, n in kept.items()}
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch08-filter-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch08-filter")
def properties_of_filter(after):
    yield (
        "equally hard",
        lambda: np.isclose(after({2: 10, 3: 30}, {2: 0.2, 3: 0.2})[3], 0.75),
    )
    yield "only one kind", lambda: np.isclose(after({2: 5}, {2: 0.4})[2], 1)
    ### BEGIN HIDDEN TESTS

    def found() -> dict[int, float]:
        return after({2: 100, 3: 100, 4: 100}, {2: 0.4, 3: 0.1, 4: 0.01})

    def untouched() -> bool:
        pool, right = {2: 10, 3: 10}, {2: 0.4, 3: 0.1}
        after(pool, right)
        return pool == {2: 10, 3: 10} and right == {2: 0.4, 3: 0.1}

    yield "the easy ones crowd in", lambda: np.isclose(found()[2], 40 / 51)
    yield "the long ones vanish", lambda: np.isclose(found()[4], 1 / 51)
    yield "they sum to 1", lambda: np.isclose(sum(found().values()), 1)
    yield "left as they were", untouched
    yield (
        "not whole numbers",
        lambda: np.isclose(after({2: 3, 3: 3}, {2: 0.5, 3: 0.25})[2], 2 / 3),
    )
    yield "few attempts", lambda: np.isclose(after({2: 1}, {2: 0.4})[2], 1)
    yield (
        "keys in another order",
        lambda: np.isclose(after({2: 10, 3: 30}, {3: 0.1, 2: 0.2})[3], 0.6),
    )
    yield (
        "sizes count",
        lambda: np.isclose(after({2: 10, 4: 400}, {2: 0.4, 4: 0.01})[4], 0.5),
    )
    yield "none is right", lambda: after({2: 10, 3: 5}, {2: 0, 3: 0}) == {2: 0, 3: 0}
    ### END HIDDEN TESTS


assert check("ch08-filter", after_filter)

# %% [markdown]
# ## At scale
#
# `small` is SmolLM2-135M on the World Factbook, `full` Qwen2.5-3B on NQ and HotpotQA against Wikipedia, as in chapter 7, whose arithmetic of memory holds here too. What planning adds is tokens: those of the plan in every attempt, the seed model's attempts, and a short tuning. We assume attempts of 1,500 tokens, plans of 60, a pool of 8,192 attempts and two passes over 2,048 of them; a small seed model's tokens are cheaper than the target's.

# %% tags=["page-only", "hide-input"]
full = PlanSettings.of("full")
tokens_each, plan_tokens, pool_size, learnt = 1500, 60, 8192, 2 * 2048
made = full.questions_a_step * full.group * full.steps
print(f"attempts of training: {made:,}, {made * tokens_each / 1e6:.0f} M tokens")
more = plan_tokens / tokens_each
print(f"their plans: {made * plan_tokens / 1e6:.1f} M tokens, {more:.0%} more")
print(f"a seed's pool: {pool_size:,} attempts, {pool_size / made:.1%} of training's")
print(f"tuning: {learnt:,} attempts read and learnt from, {learnt / made:.1%}")

# %% [markdown]
# ```bash
# minisearch run 8 --profile small --arms grpo
# minisearch run 8 --profile full -p data DIR -p service http://127.0.0.1:8000/retrieve --arms grpo
# ```
#
# Nobody has run `small` or `full` yet; their columns are configuration. Two things stand in the way of their planning arms. The prompt of chapter 7 does not say that a plan is wanted, and the first plans need questions whose steps are known, which NQ and HotpotQA do not have in this form: `plan`
# and its kin run on invented encyclopedias and say so elsewhere. And with English thoughts nobody says `found`, so that names have to be filled in by other means. What only lessons need has a 0 in those columns.

# %% tags=["page-only", "hide-input"]
pd.DataFrame(PlanSettings.table()).set_index("setting")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# :list: bullet
# ```
