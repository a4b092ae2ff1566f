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
# # SD-Search: what would you have asked, had you known?
#
# Eight attempts at a question, three of them right. Whoever reads all eight sees at once which queries led somewhere. The
# search agent of [chapter 7](07_search_agent.py) sees less: each attempt is told whether it was better than its group, and every token of it is praised
# or blamed alike. SD-Search {cite:p}`sdsearch` lets the same model read the question again, with a {term}`hindsight block` in the prompt: what all eight searched for, and who was right. Its distributions over the next token at the places of the queries are then the
# teacher, those without the block the student, and at these tokens alone the student is drawn to the teacher. No larger model is needed, and nobody marks single steps.
# This chapter builds block and loss, asks first whether the teacher knows better, and then whether a policy that is taught so learns faster; and whether it is hindsight that does it.

# %% tags=["page-only", "hide-input"]
from IPython.display import HTML, Markdown

from minisearch.agents.viewer import group_html
from minisearch.showing import card_box

Markdown(card_box("10_sd_search"))

# %% tags=["hide-input"]
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# %% tags=["hide-input"]
from minisearch.agents.grpo import GRPO, Part, Step
from minisearch.agents.protocol import (
    Attempt,
    Piece,
    attempts_block,
    protocol_of,
    reference_block,
)
from minisearch.agents.queries import due_steps, record_test, scored
from minisearch.agents.rewards import exact_match_reward, f1_reward
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.scoring import log_prob_of, logits_before
from minisearch.agents.screening import hard_task, screened
from minisearch.agents.study import (
    AgentSettings,
    Task,
    invented_task,
    open_world,
    real_task,
    record_training,
    train,
)
from minisearch.agents.trajectory import Trajectory, collate
from minisearch.data.qa import Question
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.profiles import derive_seed, dial, quiet, use_threads
from minisearch.recorder import Recorder

# %% [markdown]
# ## One question, eight attempts
#
# World and model are those of chapter 7. Below is the first of four groups with two to five right attempts (open them by their triangles; a star marks a passage that a step of the question needs).

# %% tags=["page-only", "hide-input"]
start = load_lm("toy-0")
example, example_library = open_world("blank", 100)
shown_asked = [q for q in example.questions(4, hops=(2, 3), seed=4) for _ in range(8)]
shown = rollout(
    start, example_library, protocol_of(start.tokenizer),
    [protocol_of(start.tokenizer).prompt(start.tokenizer, q["question"]) for q in shown_asked],
    RolloutConfig(), seed=6,
)  # fmt: skip
shown_step = scored(start, shown, shown_asked, 8)
right = shown_step.rewards.view(-1, 8).sum(1)
mixed = 8 * int(((right >= 2) & (right <= 5)).nonzero()[0, 0])
part = slice(mixed, mixed + 8)
rewards = shown_step.rewards[part].tolist()
HTML(group_html(start, shown_asked[mixed], shown[part], rewards, example.corpus))

# %% [markdown]
# GRPO raises the probability of *every* token of the right ones, a useless query on the way included, and lowers that of every token of the others, among them queries that were as good.
#
# ## What the paper claims
#
# All of it is about Qwen2.5 models that were trained on NQ and HotpotQA and answer questions of seven sets with a search engine over Wikipedia.
#
# | exact match, mean of seven sets | 3B | 7B |
# |---|---|---|
# | {term}`AutoRefine`, base | .405 | |
# | {term}`MR-Search`, base | .414 | .460 |
# | {term}`Thinker`, instruct, taught by a model of 72B | .430 | .452 |
# | SD-Search, base | .428 | .471 |
# | SD-Search, instruct | .427 | .476 |
# | SD-Search, base, without the labels of right and wrong | .414 | |
# | base, with these labels shuffled | .405 | |
# | base, with thinking, documents and answers in view | .398 | |
# | base, the passages that a query brings in place of the block | .394 | |
# | base, the own attempt alone in the block; all but it | .418; .423 | |
# | base, forward {term}`KL`; reverse KL; squared difference | .418; .414; .407 | |
# | base, at all tokens that the model wrote | .421 | |
#
# AutoRefine and MR-Search learn from outcomes alone, Thinker also from the steps that a larger model marked. At 3B SD-Search is on a par with Thinker, without the large teacher. Over five seeds of the 3B base model it has .428 ± .008, AutoRefine .404 ± .008; what ± is, the notes do not say. (Thinker's .452 and the rows of changed blocks from .394 to .423 are worked out from differences.) Searches do not get more, so that the gain is put down to better queries. In a group whose attempts are all right or all wrong the labels have no contrast, say the authors. Training takes 15.5 % longer; answering costs nothing more.
#
# :::{admonition} What we could and could not read
# :class: note
# Title, abstract and the first line of the introduction were available to us, and notes that others made from the full text. From those come the block's contents, the divergence and its 50 tokens, the weight .001, the 50 steps of waiting and the
# ablations. **Not known to us** are the wording of the block, whose 50 tokens they are and what becomes of the rest, whether the teacher has a gradient (ours has none), whether the weight is switched or ramped, the batch and the rate. No verdict
# compares a toy number with the paper's.
# :::
#
# ## Symbols
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $x$, $G$ | a question in its prompt; attempts at it | `question`, `settings.group` |
# | $y_{<t}$ | what an attempt has before its token $t$ | `batch.ids` |
# | $\ell_i$ | label of attempt $i$: right or wrong | `Attempt.correct` |
# | $\varrho$ | {term}`F1` above which an answer is right | `settings.threshold` |
# | $H$ | hindsight block | `Hint.block` |
# | $\pi_\theta$, $\operatorname{stop}$ | the policy; no gradient goes through | `lm.model`, `no_grad` |
# | $p_S$, $p_T$, $M$ | distribution of the next token: student, teacher, their mean | `student`, `teacher`, `middle` |
# | $P$ | places at which queries are written | `positions` |
# | $K$ | tokens that are compared | `settings.top` |
# | $\alpha_{\mathrm{SD}}$ | weight of the loss | `settings.alpha` |
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
    """What chapter 7 has too; in the last column SD-Search's values, where they are known."""

    model: str = dial("toy", "toy", "smollm2", "Qwen/Qwen2.5-3B", source="3B and 7B")
    questions_a_step: int = dial(2, 8, 16, 256, source="not published; AutoRefine's")
    group: int = dial(4, 8, 5, 5, source="5; ours")
    steps: int = dial(2, 20, 100, 200, source="200; ours")
    minibatches: int = dial(2, 2, 2, 2, source="not published; ours")
    learning_rate: float = dial(6e-4, 6e-4, 1e-5, 1e-6, source="AutoRefine; sweep")
    warmup: float = dial(0.0, 0.0, 0.0, 0.0, source="none (AutoRefine)")
    clip_low: float = dial(0.2, 0.2, 0.2, 0.2, source="0.2 (AutoRefine)")
    clip_high: float = dial(0.28, 0.28, 0.2, 0.2, source="0.2 (AutoRefine); DAPO")
    kl: float = dial(0.0, 0.0, 0.001, 0.001, source="0.001 (AutoRefine); ours")
    searches: int = dial(5, 5, 5, 5, source="5 (AutoRefine)")
    passages: int = dial(2, 2, 3, 3, source="3; ours")
    turn_tokens: int = dial(48, 64, 128, 500, source="not published; ours")
    block_tokens: int = dial(256, 256, 512, 512, source="512 (AutoRefine); ours")
    row_tokens: int = dial(1024, 1024, 2048, 4096, source="not published; ours")
    one_hop: int = dial(6, 20, 100, 0, source="ours; test questions, 0: all there are")
    multi_hop: int = dial(12, 300, 200, 0, source="ours; test questions, 0: all")


# %%
@dataclass(frozen=True, kw_only=True)
class HindsightSettings(LoopSettings):
    """What SD-Search adds."""

    alpha: float = dial(0.3, 0.3, 1e-3, 1e-3, source="0.001; sweep")
    waits: int = dial(0, 5, 25, 50, source="50 of 200 steps; the same share")
    threshold: float = dial(0.0, 0.0, 0.0, 0.0, source="0; an F1 above it is right")
    top: int = dial(50, 50, 50, 50, source="50; tokens that are compared")
    looked_at: int = dial(4, 60, 100, 100, source="ours; questions of the diagnosis")
    tries: int = dial(1, 4, 4, 4, source="ours; new attempts at each of them")
    candidates: int = dial(16, 400, 0, 0, source="ours; screened for hard ones")


# %%
settings = HindsightSettings.of(profile, **({"steps": steps} if steps else {}))
use_threads(settings.threads)
record = Recorder.from_environment()

# %% [markdown]
# ## Step 1: what hindsight may see
#
# Of each attempt the block has its queries in their order, and a label:
#
# $$H = \bigl[\,(\text{queries of attempt } i,\; \ell_i)\,\bigr]_{i=1}^{G}, \qquad \ell_i = \text{right if } F_1(\text{answer}_i) > \varrho, \text{ else wrong}.$$ (eq-10-block)
#
# With $\varrho = 0$ one common word is enough, which is lenient. (The reward is exact match, and *right*, *wrong* and *mixed* mean that everywhere but in a block: half of a name of two words is wrong there, and called right in the block.) No thought, passage or answer may get in: a teacher that reads answers teaches to write them. This *future masking* is by construction here: `seen` takes the list of queries that were carried out, as the environment keeps it, and not the text of an attempt. The attempt that is taught is in the block too.
#
# What is masked are spans, and not facts: a query about the second hop names what the first one found, and shows it to whoever reads the block.
#
# The other kinds of block are for comparison: labels handed out at random within the group, none at all, the attempt's own line alone, or all lines but its own. Then there are two that break the rule: the whole text of one attempt, the first right one (in a group without any, the first); and for each query the passages that it is about to bring.


# %%
def seen(attempt: Trajectory, question: Question, threshold: float) -> Attempt:
    """An attempt's queries that were carried out, and whether its answer was right."""
    right = f1_reward(attempt, question) > threshold
    return Attempt(tuple(attempt.queries), right)


def hindsight_blocks(
    group: Sequence[Attempt], kind: str, random: np.random.Generator
) -> list:
    """The block that each attempt's teacher reads; any other `kind`: all labels as they are."""
    rows = range(len(group))
    if kind == "shuffled":
        labels = random.permutation([attempt.correct for attempt in group]).tolist()
        group = [a._replace(correct=c) for a, c in zip(group, labels, strict=True)]
    if kind == "unlabelled":
        queries = [" | ".join(attempt.queries) for attempt in group]
        return [Piece("attempts", " ; ".join(queries))] * len(group)
    if kind == "own":
        return [attempts_block([attempt]) for attempt in group]
    if kind == "others":
        return [attempts_block([group[n] for n in rows if n != row]) for row in rows]
    return [attempts_block(group)] * len(group)


# %%
@dataclass(frozen=True)
class Hint:
    """What the teacher of one attempt reads beside the question."""

    row: int  # of the attempt
    block: Piece
    search: int = -1  # for this query only; -1: for all


def hints_of(
    lm: LanguageModel,
    step: Step,
    group: int,
    kind: str,
    threshold: float,
    random: np.random.Generator,
) -> list[Hint]:
    """The hints of every attempt of a step, in order."""
    hints = []
    for first in range(0, len(step.attempts), group):
        part = slice(first, first + group)
        own = list(zip(step.attempts[part], step.questions[part], strict=True))
        if kind == "documents":
            hints += [
                h for n, (a, _) in enumerate(own) for h in brought(lm, first + n, a)
            ]
            continue
        told = [seen(attempt, question, threshold) for attempt, question in own]
        if kind == "whole":
            best = max(range(len(told)), key=lambda n: told[n].correct)
            text = own[best][0].text.replace(lm.tokenizer.eos_token, "")
            blocks = [reference_block(text)] * len(told)
        else:
            blocks = hindsight_blocks(told, kind, random)
        hints += [Hint(first + n, block) for n, block in enumerate(blocks)]
    return hints


# %%
def brought(lm: LanguageModel, row: int, attempt: Trajectory) -> list[Hint]:
    """For each query the passages that it was going to bring."""
    blocks = [s.ids for s in attempt.segments if s.kind == "documents"]
    texts = [re.sub(r"</?information>", "", lm.decode(ids)).strip() for ids in blocks]
    return [Hint(row, Piece("information", t), n) for n, t in enumerate(texts)]


# %% tags=["page-only", "hide-input"]
told = [
    seen(a, q, settings.threshold)
    for a, q in zip(shown[part], shown_asked[part], strict=True)
]
for kind in ("group", "shuffled", "unlabelled"):
    block = hindsight_blocks(told, kind, np.random.default_rng(0))[0]
    print(f"{kind}:", str(block).replace(" ; ", "\n  ; "), end="\n\n")
strict = [
    seen(a, q, settings.threshold).correct
    for a, q in zip(shown, shown_asked, strict=True)
]
odd = sum(
    c != (r > 0) for c, r in zip(strict, shown_step.rewards.tolist(), strict=True)
)
print(
    f"called right in a block and wrong by exact match: {odd} of {len(shown)} attempts"
)
bridges = [h["answer"] for h in shown_asked[mixed]["metadata"]["hops"]]
asked_for = [q for attempt in told for q in attempt.queries]
for what, names in {"a bridge": bridges[:-1], "the answer": bridges[-1:]}.items():
    count = sum(any(name in q for name in names) for q in asked_for)
    print(f"queries of this group that name {what}: {count} of {len(asked_for)}")

# %% [markdown]
# That form our models met in pre-training, in a quarter of the attempts that they learnt from, and more than the form. A scripted searcher there *followed* the useful queries of a right sibling, chosen with the true passages in hand, or else avoided the last queries of wrong ones. So the models were taught to use hindsight, by somebody who knew which queries were good: that the teacher below is better than its student is no discovery, but was built in, so that the rest can be tested. They have met one right attempt with up to three wrong ones, or wrong ones alone. Eight lines, several right ones, missing labels, and passages in the prompt are new to them, so that `unlabelled` and `documents` differ from `group` by an unfamiliar form too.

# %% [markdown]
# ## Step 2: one network, two prompts
#
# $$p_S(\cdot) = \pi_\theta(\cdot \mid x,\, y_{<t}), \qquad p_T(\cdot) = \operatorname{stop}\,\pi_\theta(\cdot \mid x, H,\, y_{<t}).$$ (eq-10-roles)
#
# Same weights, same response $y$, another prompt. The teacher reads every token that the student wrote, so that token $t$ of the one is token $t$ of the other, however long the block. A shift by one would go unnoticed by the loss, which would be finite and teach nonsense. Therefore the tokens to compare are found by their *kind* in either batch, not by counting. The tags of a search are not among them: what is taught is how to ask, and not whether.
#
# What the code of this step and the next ones takes from chapter 7:
#
# | name | meaning |
# |---|---|
# | `Piece(kind, text)` | a stretch of text between tags, as it stands in a prompt |
# | `step.batch.search` | for each token the number of the search whose query it is in, from 0; -1 elsewhere |
# | `step.mask`, `part.mask` | tokens that the model wrote, in the whole step or in the attempts of one pass |
# | `part.rows` | which attempts these are |
# | `part.of(values)` | values of the step's tokens, at those of the part |
# | `part.weights` | the weight of each token in the mean over all that the model wrote in one update |
# | `logits_before(model, ids, where)` | the logits from which the marked tokens are drawn |


# %%
def positions(step: Step, hints: Sequence[Hint], everywhere: bool = False) -> Tensor:
    """Tokens at which the student has a teacher. Shape: -> (N, L) bool."""
    search, found = step.batch.search, torch.zeros_like(step.batch.policy)
    for hint in hints:
        own = search[hint.row]
        found[hint.row] |= own == hint.search if hint.search >= 0 else own >= 0
        if everywhere:
            found[hint.row] |= step.batch.policy[hint.row]
    return found


@torch.no_grad()
def teacher_logits(
    lm: LanguageModel, step: Step, hints: Sequence[Hint], everywhere: bool = False
) -> Tensor:
    """Logits of the same tokens after a prompt with the hint.

    Shape: -> (T, V), the tokens of `positions` row by row, for hints in their rows' order.
    """
    if not hints:
        return torch.empty(0, lm.model.config.vocab_size, device=step.batch.ids.device)
    batch = collate([hinted(lm, step, hint) for hint in hints], lm.pad_id).to(
        lm.model.device
    )
    where = batch.policy if everywhere else batch.search >= 0
    one = torch.tensor([hint.search for hint in hints], device=where.device)[:, None]
    return logits_before(
        lm.model, batch.ids, where & ((one < 0) | (batch.search == one))
    )


# %%
def hinted(lm: LanguageModel, step: Step, hint: Hint) -> Trajectory:
    """The attempt as it was written, after a prompt that has the hint."""
    asked = step.questions[hint.row]["question"]
    prompt = protocol_of(lm.tokenizer).prompt(lm.tokenizer, asked, [hint.block])
    return step.attempts[hint.row].with_prompt(lm.encode(prompt))


def readable(lm: LanguageModel, step: Step, hints: Sequence[Hint]) -> list[Hint]:
    """The hints with which an attempt still fits into the model's context."""
    longest = lm.model.config.max_position_embeddings
    return [hint for hint in hints if len(hinted(lm, step, hint).ids) <= longest]


# %% [markdown]
# Three checks. With an empty block teacher and student are one and the same. With a true one the tokens that are compared are the same, though their places differ. And does a teacher that has read the answer want to *ask* for it? Below is the log-probability, at places where a query is written in mixed groups, of the first token of the right answer, and the largest probability that it has anywhere. With a whole attempt in view it should rise.

# %% tags=["page-only", "hide-input"]
asking = shown_step.batch.search >= 0
with torch.no_grad():
    student_all = logits_before(start.model, shown_step.batch.ids, asking)


class NoBlock(str):
    """A block of no text."""


same = [Hint(row, NoBlock("")) for row in range(len(shown))]
gap = (teacher_logits(start, shown_step, same) - student_all).abs().max().item()
record.check("without a block the teacher is the student", gap == 0, f"{gap:.0e}")
print(
    f"{len(student_all)} query tokens, largest difference of a logit without a block: {gap}"
)
true_hints = hints_of(start, shown_step, 8, "group", 0.0, np.random.default_rng(0))
there = collate([hinted(start, shown_step, hint) for hint in true_hints], start.pad_id)
same_tokens = there.ids[there.search >= 0].equal(shown_step.batch.ids[asking])
record.check("teacher and student read the same query tokens", same_tokens)

# %% tags=["page-only", "hide-input"]
import pandas as pd

owner = asking.nonzero()[:, 0]
golds = [start.encode(f" {q['golden_answers'][0]}") for q in shown_asked]
mass = {"no block": student_all}
for kind in ("group", "whole"):
    hints = hints_of(start, shown_step, 8, kind, 0.0, np.random.default_rng(0))
    mass[kind] = teacher_logits(start, shown_step, hints)
live_tokens = torch.tensor([0 < right[row // 8] < 8 for row in owner.tolist()])
named = torch.tensor([golds[row][0] for row in owner.tolist()])
table = {}
for kind, logits in mass.items():
    values = log_prob_of(logits, named)[live_tokens]
    largest = values.max().exp().item()
    table[kind] = {"mean, nats": values.mean().item(), "largest": largest}
pd.DataFrame(table).T.round(3)

# %% [markdown]
# The paper says that without future masking that happens. Here it is hardly to be seen: a query of our model consists of a name that it has just found and words of a relation, and a whole attempt in the prompt has shown it queries as well.

# %% [markdown]
# ## Step 3: how far apart
#
# The {term}`Jensen-Shannon divergence` compares both with their mean $M$, on the $K$ tokens that are likeliest to the teacher, among which both are made to sum to one:
#
# $$\operatorname{JSD}(p_T, p_S) = \tfrac12 \operatorname{KL}(p_T \,\|\, M) + \tfrac12 \operatorname{KL}(p_S \,\|\, M), \qquad M = \tfrac12 (p_T + p_S).$$ (eq-10-jsd)
#
# It is at least 0 and at most $\ln 2$. That bound seems to us its point: wherever the two disagree, the loss of a token is at most .69 nats, and no token can outweigh all others. A Kullback-Leibler divergence has no such limit: the *forward* one, $\operatorname{KL}(p_T \| p_S)$, grows where the student rules out what the teacher likes, the *reverse* one, $\operatorname{KL}(p_S \| p_T)$, where the teacher rules out what the student likes. A token beyond the teacher's $K$ does not enter at all; how much the student gives to these is printed below.


# %%
def divergence(
    student: Tensor, teacher: Tensor, kind: str = "jsd", top: int = 50
) -> Tensor:
    """How far two distributions are apart, on the teacher's likeliest tokens.

    Both are renormalised there. Shape: two (T, V) of logits -> (T,), nats (`mse`: no unit).
    """
    best = teacher.topk(min(top, teacher.shape[-1]), dim=-1).indices
    log_s = student.gather(-1, best).log_softmax(-1)
    log_t = teacher.gather(-1, best).log_softmax(-1)
    if kind == "forward":
        return kl(log_t, log_s)
    if kind == "reverse":
        return kl(log_s, log_t)
    if kind == "mse":
        return (log_t.exp() - log_s.exp()).square().sum(-1)
    middle = torch.logaddexp(log_s, log_t) - math.log(2)
    return (kl(log_t, middle) + kl(log_s, middle)) / 2


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q). Shape: two (T, K) of log-probabilities -> (T,), nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


# %% tags=["page-only", "hide-input"]
teacher_all = teacher_logits(start, shown_step, true_hints)
rows = {}
for kind in ("jsd", "forward", "reverse", "mse"):
    values = divergence(student_all, teacher_all, kind)
    free = student_all.clone().requires_grad_()
    divergence(free, teacher_all, kind).mean().backward()
    force = free.grad.norm().item() / (rows["jsd"]["gradient"] if rows else 1)
    rows[kind] = {
        "mean": values.mean().item(),
        "largest": values.max().item(),
        "gradient": force,
    }
rows["jsd"]["gradient"] = 1.0
record.check("JSD is at most ln 2", rows["jsd"]["largest"] <= math.log(2) + 1e-6)
best = teacher_all.topk(settings.top).indices
inside = student_all.softmax(-1).gather(-1, best).sum(-1)
print(
    f"of the student, inside the teacher's {settings.top} tokens: {inside.mean():.3f}, at least {inside.min():.3f}"
)
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# *gradient* is the norm of the gradient at the student's logits, that of the JSD set to one: at the same weight the other divergences pull much harder. Where do the two differ? The wrong attempt of the group above whose queries the teacher would change most: on each query token its divergence in {term}`nats <nat>`.

# %% tags=["page-only", "hide-input"]
from minisearch.agents.viewer import tokens_html

apart = torch.zeros(asking.shape)
apart[asking] = divergence(student_all, teacher_all)
wrong = [n for n in range(mixed, mixed + 8) if shown_step.rewards[n] == 0]
most = max(wrong, key=lambda n: float(apart[n].sum()))
HTML(tokens_html(start, shown[most], apart[most].tolist()))

# %% [markdown]
# ## Step 4: a loss beside GRPO's
#
# $$\mathcal{L} = \mathcal{L}_{\mathrm{GRPO}} + \alpha_{\mathrm{SD}}\, \frac{1}{|P|} \sum_{t \in P} \operatorname{JSD}\bigl(p_T^{(t)}, p_S^{(t)}\bigr),$$ (eq-10-loss)
#
# with $P$ the query tokens of all attempts, and only after some steps of waiting (50 of 200 in the paper, 5 of 20 here). The advantages of GRPO stay what they were. A step has two updates here, each on half of the attempts of every group; the factor `scale` turns the weights of a mean over all written tokens into those of a mean over query tokens. The teacher is read anew for each update, with the weights of that moment. An attempt whose text does not fit into the context together with the block is not taught at its queries, and counted.
#
# The loss is there in *every* group. In one that is all wrong the block says `wrong` eight times: there the labels tell nothing, and shuffling them changes nothing. The authors name that as a limit of the method. If it is the labels that teach, it has to be in mixed groups.


# %%
@dataclass(frozen=True)
class Distillation:
    """What a teacher reads and how it teaches; the defaults are those of `sd`."""

    block: str = (
        "group"  # what it reads; "": nothing, it is the student at `temperature`
    )
    kind: str = "jsd"  # or "forward", "reverse", "mse"
    everywhere: bool = False  # at all tokens that the model wrote, not at queries alone
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a step's teachers read, and where they teach."""

    hints: dict[int, list[Hint]]  # by attempt
    where: Tensor  # (N, L) bool
    tokens: int  # that are taught
    too_long: int  # hints that were left out

    @property
    def row(self) -> dict[str, float]:
        """Of the log, before anything is taught."""
        return {"divergence": 0.0, "tokens": self.tokens, "too long": self.too_long}


# %%
def lesson_of(
    lm: LanguageModel,
    step: Step,
    settings: HindsightSettings,
    how: Distillation,
    random: np.random.Generator,
) -> Lesson:
    """Write the blocks of a step, once for all its parts."""
    kind = how.block or "group"
    hints = hints_of(lm, step, settings.group, kind, settings.threshold, random)
    kept = readable(lm, step, hints) if how.block else hints
    of_row: dict[int, list[Hint]] = {row: [] for row in range(len(step.attempts))}
    for hint in kept:
        of_row[hint.row].append(hint)
    where = positions(step, kept, how.everywhere)
    return Lesson(of_row, where, int(where.sum()), len(hints) - len(kept))


# %%
class Hindsight:
    """The further loss of SD-Search, an `extra_loss` of GRPO.

    `log` has a row a step: mean divergence (0 while it waits), tokens taught, hints left out.
    """

    def __init__(
        self,
        lm: LanguageModel,
        settings: HindsightSettings,
        how: Distillation,
        seed: int,
    ) -> None:
        self.lm, self.settings, self.how = lm, settings, how
        self.random = np.random.default_rng(derive_seed(seed, "hindsight"))
        self.log: list[dict[str, float]] = []
        self.step, self.lesson = None, None  # type: Step | None, Lesson | None

    def __call__(self, step: Step, part: Part) -> Tensor:
        """The part's share of alpha times the mean over all query tokens of the step."""
        if step is not self.step:
            self.step = step
            self.lesson = lesson_of(self.lm, step, self.settings, self.how, self.random)
            self.log.append(self.lesson.row)
        where = part.of(self.lesson.where)
        if len(self.log) <= self.settings.waits or not where.any():
            return part.logits.sum() * 0
        student = part.logits[where]
        teacher = self._teacher(step, part, student)
        values = divergence(student, teacher, self.how.kind, self.settings.top)
        self.log[-1]["divergence"] += float(values.detach().sum()) / self.lesson.tokens
        scale = int(step.mask.sum()) / self.lesson.tokens
        return self.settings.alpha * scale * (values * part.weights[where]).sum()

    def _teacher(self, step: Step, part: Part, student: Tensor) -> Tensor:
        """Shape: -> (T, V), without a gradient."""
        if not self.how.block:
            return student.detach() / self.how.temperature
        hints = [hint for row in part.rows.tolist() for hint in self.lesson.hints[row]]
        return teacher_logits(self.lm, step, hints, self.how.everywhere)


# %% [markdown]
# Which tokens does the loss move? This loss alone, without that of GRPO, for the attempt just shown:

# %% tags=["page-only", "hide-input"]
one = torch.tensor([most])
batch, mask = shown_step.batch.select(one), shown_step.mask[one]
mask = mask[:, : batch.ids.shape[1]]
logits = logits_before(start.model, batch.ids, mask).detach().requires_grad_()
weights = torch.full((len(logits),), 1 / len(logits))
lone = Part(one, mask, logits, log_prob_of(logits, batch.ids[mask]), weights)
teach = Hindsight(start, replace(settings, waits=0, group=8), Distillation(), seed=0)
teach(shown_step, lone).backward()
moved = logits.grad.abs().sum(1) > 0
asks = batch.search[mask] >= 0
record.check(
    "queries alone are taught", moved.equal(asks), "all of them, no other token"
)
print(
    f"{int(moved.sum())} of {len(logits)} tokens have a gradient, {int(asks.sum())} are of queries"
)

# %% [markdown]
# ## Step 5: what it could be instead
#
# If the policy learns faster with this loss, four simpler reasons have to be ruled out.
#
# * *The sample is enough.* A right sibling's queries were good; why not raise their probability? `sft` does so: cross-entropy at the query tokens of right attempts, and no teacher. (To keep samples by their outcome and imitate them is called rejection sampling.)
# * *Queries needed more weight.* `heavier` adds GRPO's own advantage once more at query tokens.
# * *Any sharpening would do.* In `surer` the teacher is the student itself at temperature .4, without a block. Its weight makes both losses equally large at the start.
# * *Any labels would do.* `labels_shuffled` has the same queries and as many labels `right`, at random. Our models follow what is called right, so that false labels may also do harm: look at what it has over `grpo` as well. (A block about *another* question gains this model nothing, says its card: [the toy world](../book/toy_world.md).)
#
# `sft` and `heavier` do not wait: they are on from the first step, while `sd`, `surer` and `labels_shuffled` are GRPO alone for a quarter of training. Below the curves are therefore compared in parts, too. *Right* is exact match to `sft`, and F1 above 0 in the block. `sft` and `heavier` had the same sweep of three weights as `sd`; `surer` had none. The other divergences keep the weight of `sd`, at which they pull harder, and `all_positions` spreads the same weight over more tokens: these arms are no ranking.


# %%
def query_sft(alpha: float) -> Callable[[Step, Part], Tensor]:
    """Cross-entropy at the queries of right attempts, as a further loss."""

    def loss(step: Step, part: Part) -> Tensor:
        right = (step.batch.search >= 0) & (step.rewards > 0)[:, None]
        where, count = part.of(right), int(right.sum())
        if not count:
            return part.logits.sum() * 0
        scale = alpha * int(step.mask.sum()) / count
        return -scale * (part.log_probs * part.weights)[where].sum()

    return loss


def heavier_queries(alpha: float) -> Callable[[Step], Tensor]:
    """GRPO's own advantage once more, `alpha` times, at query tokens."""
    return lambda step: alpha * step.advantages * (step.batch.search >= 0)


# %%
TEACHERS = {
    "sd": Distillation(),
    "sd_10x": Distillation(),
    "sd_now": Distillation(),
    "labels_shuffled": Distillation("shuffled"),
    "labels_none": Distillation("unlabelled"),
    "own_only": Distillation("own"),
    "leave_one_out": Distillation("others"),
    "unmasked": Distillation("whole"),
    "documents": Distillation("documents"),
    "forward_kl": Distillation(kind="forward"),
    "reverse_kl": Distillation(kind="reverse"),
    "mse": Distillation(kind="mse"),
    "all_positions": Distillation(everywhere=True),
    "surer": Distillation("", temperature=0.4),
}
# What the sweep chose at toy scale, and for `surer` a loss as large as that of `sd`.
SWEPT: dict[str, dict[str, float]] = {
    "sft": {"alpha": 0.03},
    "heavier": {"alpha": 1.0},
    "surer": {"alpha": 0.85},
}


# %%
def settings_of(method: str) -> HindsightSettings:
    """The settings of an arm; `alpha` is also the weight of a rival's term."""
    if method == "sd_10x":
        return replace(settings, alpha=10 * settings.alpha)
    if method == "sd_now":
        return replace(settings, waits=0)
    own = SWEPT.get(method, {}) if profile in ("smoke", "toy") else {}
    return replace(settings, **own)


def added(name: str, lm: LanguageModel, own: HindsightSettings) -> dict:
    """What an arm adds to GRPO, as arguments of `train`."""
    if name in TEACHERS:
        return {"extra_loss": Hindsight(lm, own, TEACHERS[name], seed)}
    if name == "sft":
        return {"extra_loss": query_sft(own.alpha)}
    if name == "heavier":
        return {"extra_advantage": heavier_queries(own.alpha)}
    return {}


# %% tags=["page-only", "hide-input"]
toy = HindsightSettings.of("toy")
begin = divergence(student_all, teacher_all).mean().item()
sharp = (
    divergence(student_all, student_all / TEACHERS["surer"].temperature).mean().item()
)
print(f"loss before training: block {toy.alpha * begin:.4f}, ", end="")
print(f"own distribution at temperature .4 {SWEPT['surer']['alpha'] * sharp:.4f}")

# %% [markdown]
# ## Step 6: is the teacher better?
#
# Hindsight can be the reason only if the teacher knows more. Before any training, groups of eight attempts of the untrained policy are sorted by how they went: all wrong, mixed, all right. Then:
#
# 1. New attempts with the block in the prompt, and as many without: who is right more often?
# 2. A question needs one passage for each of its hops. A query is *good* if it brought the one that was due: that of the first hop whose passage had not come yet. By how much does the teacher raise the log-probability of good queries, and of others? What it *prefers* is the difference.
# 3. How far is it apart from the student?


# %%
TYPES = ("all wrong", "mixed", "all right")
SHOWN_BLOCKS = ("group", "shuffled", "unlabelled", "own", "others")


def first_attempts(lm: LanguageModel) -> Step:
    """Groups of the untrained policy in a training encyclopedia, scored as a step."""
    home, library = open_world("blank", 200 + world_seed)
    questions = home.questions(settings.looked_at, seed=derive_seed(0, "looked at"))
    asked = [question for question in questions for _ in range(settings.group)]
    protocol = protocol_of(lm.tokenizer)
    prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
    attempts = rollout(lm, library, protocol, prompts, settings.attempts(), 11)
    return scored(lm, attempts, asked, settings.group)


# %%
def types_of(step: Step, group: int) -> np.ndarray:
    """The type of each attempt's group, a place in `TYPES`. Shape: -> (N,)."""
    right = step.rewards.view(-1, group).sum(1)
    kind = (right > 0).int() + (right == group).int()
    return kind.repeat_interleave(group).numpy()


# %%
@dataclass(frozen=True, eq=False)
class Opinion:
    """What a teacher thinks of the student's queries. Shape: (S,) each, one a search."""

    row: np.ndarray  # of the attempt
    good: np.ndarray  # it brought the passage of the first step that was open
    due: np.ndarray  # some step was still open
    ratio: np.ndarray  # log p_T - log p_S of the query, mean over its tokens, nats
    apart: np.ndarray  # JSD, mean over its tokens, nats


def opinion(lm: LanguageModel, step: Step, kind: str, group: int) -> Opinion:
    """Compare teacher and student at every query of a step."""
    random = np.random.default_rng(derive_seed(0, "hindsight"))
    hints = hints_of(lm, step, group, kind, settings.threshold, random)
    rows, ratio, apart = [], [], []
    for first in range(0, len(hints), 16):
        some = hints[first : first + 16]
        batch = step.batch.select(torch.tensor([hint.row for hint in some]))
        asking = batch.search >= 0
        tokens = batch.ids[asking]
        with torch.no_grad():
            student = logits_before(lm.model, batch.ids, asking)
        teacher = teacher_logits(lm, step, some)
        ratio.append(log_prob_of(teacher, tokens) - log_prob_of(student, tokens))
        apart.append(divergence(student, teacher, top=settings.top))
        where = [hint.row for hint in some]
        rows += [
            (where[n], int(batch.search[n, p])) for n, p in asking.nonzero().tolist()
        ]
    return by_query(step, rows, torch.cat(ratio).numpy(), torch.cat(apart).numpy())


# %%
def by_query(
    step: Step, tokens: Sequence[tuple[int, int]], ratio: np.ndarray, apart: np.ndarray
) -> Opinion:
    """Means over the tokens of each query, `tokens` saying whose they are. Shape: (T,) each."""
    searches = sorted(set(tokens))
    number = {search: n for n, search in enumerate(searches)}
    place = np.array([number[token] for token in tokens], dtype=int)
    count = np.bincount(place)
    due = {r: due_steps(step.attempts[r], step.questions[r]) for r, _ in searches}
    return Opinion(
        row=np.array([row for row, _ in searches]),
        good=np.array([due[row][n][1] for row, n in searches]),
        due=np.array([due[row][n][0] >= 0 for row, n in searches]),
        ratio=np.bincount(place, ratio) / count,
        apart=np.bincount(place, apart) / count,
    )


# %%
def helped(lm: LanguageModel, step: Step, kind: str) -> np.ndarray:
    """Exact match of new attempts at each question with a block in the prompt. Shape: -> (Q,)."""
    group, tries = settings.group, settings.tries
    _, library = open_world("blank", 200 + world_seed)
    protocol, random = protocol_of(lm.tokenizer), np.random.default_rng(0)
    asked = step.questions[::group]
    if kind:
        hints = hints_of(lm, step, group, kind, settings.threshold, random)[::group]
    blocks = [[hint.block] for hint in hints] if kind else [[] for _ in asked]
    prompts = [
        protocol.prompt(lm.tokenizer, question["question"], block)
        for question, block in zip(asked, blocks, strict=True)
        for _ in range(tries)
    ]
    attempts = rollout(lm, library, protocol, prompts, settings.attempts(), 12)
    each = [question for question in asked for _ in range(tries)]
    pairs = zip(attempts, each, strict=True)
    right = [exact_match_reward(*pair) for pair in pairs]
    return np.array(right).reshape(-1, tries).mean(1)


# %%
def record_look(lm: LanguageModel, name: str) -> None:
    """Whether the block helps, whose queries the teacher prefers, how far it is apart."""
    step = first_attempts(lm)
    kinds = types_of(step, settings.group)
    alone = helped(lm, step, "")
    for kind in ("group", "shuffled", "unlabelled"):
        gain = helped(lm, step, kind) - alone
        for n, what in enumerate(TYPES):
            record_mean(
                f"{name}/em gain {kind}/{what}", gain[kinds[:: settings.group] == n]
            )
    for kind in SHOWN_BLOCKS:
        found = opinion(lm, step, kind, settings.group)
        for n, what in enumerate(TYPES):
            own = kinds[found.row] == n
            record_mean(f"{name}/jsd {kind}/{what}", found.apart[own])
            good, bad = (
                own & found.due & (found.good == flag) for flag in (True, False)
            )
            record_mean(f"{name}/ratio good {kind}/{what}", found.ratio[good])
            record_mean(f"{name}/ratio bad {kind}/{what}", found.ratio[bad])
            if good.any() and bad.any():
                gap = found.ratio[good].mean() - found.ratio[bad].mean()
                record.metric(f"{name}/prefers {kind}/{what}", float(gap))


def record_mean(name: str, values: np.ndarray) -> None:
    """Record a mean, where there is anything to average."""
    if len(values):
        record.metric(name, float(values.mean()))


# %% [markdown]
# The grid has these for three training encyclopedias and both models. Below are the means of the six. Groups that are all right are rare before training; a place is empty where there were none. The types go by exact match, so that a group that is all wrong may have a line that its block calls right.

# %% tags=["page-only", "hide-input"]
from minisearch.cards import load_cells


def grid_mean(name: str, seeds: Sequence[int] | None = None) -> float:
    """The mean of a metric over the grid's cells, of all seeds or some; NaN without any."""
    cells = [c for c in load_cells("10_sd_search") if name in c.metrics]
    found = [c.metrics[name] for c in cells if seeds is None or c.cell.seed in seeds]
    return float(np.mean(found)) if found else np.nan


ROWS = {
    "exact match gained": "em gain",
    "good queries, nats a token": "ratio good",
    "other queries, nats a token": "ratio bad",
    "prefers": "prefers",
    "JSD": "jsd",
}
looked = {
    (what, kind): {t: grid_mean(f"look/{key} {kind}/{t}") for t in TYPES}
    for what, key in ROWS.items()
    for kind in SHOWN_BLOCKS
}
pd.DataFrame(looked).T.dropna(how="all").round(2)

# %% [markdown]
# To *prefer* good queries may mean little: good queries are found in right attempts more often, and whose attempt was right GRPO knows as well. So the page's own mixed groups are taken apart by the attempt's outcome. What is left of the preference *within* wrong attempts is what hindsight adds about single queries; a page has few of them, so read that as an example. In the table above the block `own`, which shows no sibling, and `others`, which does not show the attempt itself, say the same with more runs.

# %% tags=["page-only", "hide-input"]
kinds, opinions, within = types_of(shown_step, 8), {}, {}
for kind in ("group", "own", "others"):
    found = opinions[kind] = opinion(start, shown_step, kind, 8)
    won = shown_step.rewards.numpy()[found.row] > 0
    for outcome, of_it in (("right", won), ("wrong", ~won)):
        live = found.due & (kinds[found.row] == 1) & of_it
        good, bad = found.ratio[live & found.good], found.ratio[live & ~found.good]
        within[kind, outcome] = {
            "good": good.mean() if len(good) else np.nan, "queries": len(good),
            "others": bad.mean() if len(bad) else np.nan, "queries ": len(bad),
        }  # fmt: skip
pd.DataFrame(within).T.round(2)

# %% [markdown]
# A block may also do something simpler: make the teacher *surer*. The entropy of both at query tokens of mixed groups, in nats:


# %% tags=["page-only", "hide-input"]
def entropy(logits: Tensor) -> Tensor:
    """Shape: (T, V) -> (T,), nats."""
    scores = logits.log_softmax(-1)
    return -(scores.exp() * scores).sum(-1)


sure = {"student": entropy(student_all)[live_tokens].mean().item()}
for kind in SHOWN_BLOCKS:
    hints = hints_of(start, shown_step, 8, kind, 0.0, np.random.default_rng(0))
    logits = teacher_logits(start, shown_step, hints)
    sure[f"teacher, {kind}"] = entropy(logits)[live_tokens].mean().item()
pd.Series(sure, name="entropy").to_frame().round(2)

# %% [markdown]
# How single queries fare, on questions of this page:

# %% tags=["page-only", "hide-input"] mystnb={"figure": {"caption": "By how much the teacher raises or lowers a query of a mixed group, one dot a query, good queries and others, with three blocks. Dark lines are means. Is the mean of the good ones above that of the others, and with which block?", "name": "fig-10-ratio"}, "image": {"alt": "Three panels of dots in two columns, good queries and others, with a dark line for each mean. The grid's means are in the table of step 6."}}
from minisearch.plots import COLORS, figure

fig, axes = figure(width=7, height=3.2, columns=3, sharey=True, layout="constrained")
spots = np.random.default_rng(0)
for ax, kind in zip(axes, ("group", "shuffled", "unlabelled"), strict=True):
    found = opinions.get(kind) or opinion(start, shown_step, kind, 8)
    live = found.due & (kinds[found.row] == 1)
    for place, good in enumerate((True, False)):
        values = found.ratio[live & (found.good == good)]
        where = place + spots.uniform(-0.3, 0.3, len(values))
        ax.plot(where, values, ".", color=COLORS[place], markersize=4)
        if len(values):
            ax.hlines(values.mean(), place - 0.38, place + 0.38, color="0.2", zorder=3)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_xticks((0, 1), ("good", "others"))
    ax.set_title(
        {"group": "true labels", "shuffled": "shuffled", "unlabelled": "none"}[kind]
    )
axes[0].set_ylabel("log p(teacher) - log p(student)\nnats a token")
record.figure(fig, "ratio", "what the teacher prefers")

# %% [markdown]
# ## Train and watch
#
# | arm | what it does |
# |---|---|
# | `look`, `cold` | the teacher, and how the model answers, before training |
# | `grpo` | chapter 7's loop and reward, nothing added; by this chapter's sweep at twice the rate, and two thirds of the steps |
# | `sd` | the paper's loss as we read it, weight .3 (the paper: .001, with models, steps and rates of another size) |
# | `sft`, `heavier`, `surer`, `labels_shuffled` | the four simpler reasons of step 5 |
# | `labels_none`, `own_only`, `leave_one_out` | another block: no labels; the own line alone; all but the own |
# | `unmasked`, `documents` | a block that breaks the rule: a whole attempt, the right attempt's own among them; the passages that the query will bring |
# | `forward_kl`, `reverse_kl`, `mse` | another divergence, at the same weight and therefore stronger |
# | `all_positions` | at all that the model wrote |
# | `sd_10x` | ten times the weight: does it fail? |
# | `sd_now` | without waiting, as `sft` does |
#
# An arm that ends in `@hard50` or `@hard95` trains on questions of three hops, 50 or 95 in 100 of which were answered by none of eight first attempts: the fewer mixed groups, the less the labels tell.


# %%
def open_task(kind: str, lm: LanguageModel) -> Task:
    """The task of an arm: blank, or hard and a percentage; of files, their own."""
    if settings.model != "toy" or data:
        if kind:
            what, remedy = "an invented encyclopedia", "leave out what follows the @."
            raise InputError("arm", f"@{kind} with real questions", what, remedy)
        return real_task(settings, data, service, seed)
    if not kind:
        return invented_task(settings, "blank", world_seed, seed)
    start = f"toy-{init_seed}"
    found = screened(lm, start, settings, world_seed, settings.candidates)
    share = int(kind.removeprefix("hard")) / 100
    return hard_task(found, settings, world_seed, seed, share)


def record_hindsight(name: str, module: GRPO, parts: int = 4) -> None:
    """What the loss and the policy's entropy were like by quarters of training; mixed groups."""
    mixed = 1 - module.history.column("dead groups")[1]
    record.metric(f"{name}/mixed_groups", float(mixed.mean()))
    series = {"entropy": module.history.column("entropy")[1]}
    taught = getattr(module.extra_loss, "log", [])
    if taught:
        series["divergence"] = np.array([row["divergence"] for row in taught])
        lost = sum(row["too long"] for row in taught)
        record.metric(f"{name}/too_long", lost)
    for what, values in series.items():
        for n, part in enumerate(np.array_split(values, parts)):
            record_mean(f"{name}/{what}/quarter {n + 1}", part)


# %%
MODULES: dict[str, GRPO] = {}  # trained on this page, by arm


def starting_model() -> LanguageModel:
    """The model that every arm starts from."""
    return load_lm(f"toy-{init_seed}" if settings.model == "toy" else settings.model)


def run_arm(name: str) -> None:
    """Run `method` on questions that nobody chose, or `method@hard50` on chosen ones."""
    method, _, kind = name.partition("@")
    lm = starting_model()
    if method == "look":
        record_look(lm, name)
        return
    task = open_task(kind, lm)
    if method != "cold":
        own = settings_of(method)
        module = train(lm, task, own, seed, **added(method, lm, own))
        record_training(record, name, module)
        record_hindsight(name, module)
        MODULES[name] = module
    record_test(record, name, lm, task, settings)


# %% tags=["train"]
MAIN = ["cold", "grpo", "sd"]
results = MAIN if arms == "main" else arms.split(",")
for name in results:
    with record.phase(f"arm {name}"):
        run_arm(name)

# %% [markdown]
# *Right answers* are the reward, on questions that never come twice. The *divergence* is what the student still has to learn from its teacher; it falls as both get alike, and where it rises the two run away from each other. *Entropy* is that of all that the policy writes: a loss that only sharpens brings it down faster than GRPO does. Healthy are the ranges of `grpo` and `sd` in the table below.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Training on this page, with and without hindsight: right answers and entropy, means of four steps, and, step by step, the divergence of student and teacher since the loss was switched on.", "name": "fig-10-training"}, "image": {"alt": "Three panels against attempts: right answers and entropy have two lines each, with and without hindsight; the divergence has one, and begins after a quarter of the attempts."}}
from minisearch import pages

fig, axes = figure(width=7, height=2.8, columns=3, layout="constrained")
for n, (run, module) in enumerate(MODULES.items()):
    x = module.history.column("rollouts")[1]
    for ax, column in zip(axes, ("em", "entropy"), strict=False):
        ax.plot(
            x,
            pages.smoothed(module.history.column(column)[1]),
            color=COLORS[n],
            label=run,
        )
    if log := getattr(module.extra_loss, "log", []):
        values, after = [row["divergence"] for row in log], slice(settings.waits, None)
        axes[2].plot(x[after], values[after], color=COLORS[n])
for ax, title in zip(
    axes, ("right answers", "entropy, nats", "JSD, nats"), strict=True
):
    ax.set(title=title, xlabel="attempts", ylim=(0, None))
if MODULES:
    axes[0].legend()
record.figure(fig, "training", "training with and without hindsight")

# %% [markdown]
# What it costs is counted in the same runs. The teacher is read in the update, with a longer prompt. That is not all: without a further loss an update leaves out the attempts of groups without an advantage, and with one it reads all, and learns from all, also while the loss still waits.

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
if {"grpo", "sd"} <= set(MODULES):
    more = cost.loc["sd", "together"] / cost.loc["grpo", "together"] - 1
    print(f"with hindsight: {more:.0%} longer on this page")
PARTS = ("generate", "retrieve", "score", "update")
whole = {a: sum(grid_mean(f"seconds/{a}/{p}") for p in PARTS) for a in ("grpo", "sd")}
if whole["grpo"] > 0:
    print(f"and {whole['sd'] / whole['grpo'] - 1:.0%} over the grid's runs; of these,")
    wrote = {arm: grid_mean(f"seconds/{arm}/generate") for arm in whole}
    print("writing, the same work:", {a: f"{s:.0f} s" for a, s in wrote.items()})
cost.round(1)

# %% [markdown]
# The paper's 15.5 % does not carry over: a large model spends its time on writing token by token, and one more reading is cheap beside it. When it answers there is no block, and no further cost. Whether GRPO alone would gain as much from that time was not tested.

# %% [markdown]
# ### Too much of it
#
# With ten times the weight, does anything break, and what goes first? Quarters of training, means over the runs that all arms of the table have. In the first one no arm is taught yet. `too long` counts attempts that did not fit into the context with their block.

# %% tags=["page-only", "hide-input"]
QUARTERS = [f"quarter {n}" for n in range(1, 5)]
warning = {}
for arm in ("grpo", "sd", "sd_10x", "surer", "labels_shuffled"):
    for what in ("entropy", "divergence"):
        values = {q: grid_mean(f"{arm}/{what}/{q}", (0,)) for q in QUARTERS}
        warning[arm, what] = values | (
            {"quarter 1": np.nan} if what == "divergence" else {}
        )
    _, curves = pages.training_curves("10_sd_search", arm, seeds=(0,))
    if curves:  # ten points of two steps each
        steps_of = np.repeat(np.concatenate(curves).mean(0), 2)
        means = [part.mean() for part in np.array_split(steps_of, 4)]
        warning[arm, "right answers"] = dict(zip(QUARTERS, means, strict=True))
lost = {a: grid_mean(f"{a}/too_long") for a in ("sd", "unmasked", "documents")}
print("too long, attempts a run:", {a: round(n, 1) for a, n in lost.items() if n == n})
pd.DataFrame(warning).T.dropna(how="all").sort_index().round(3)

# %% [markdown]
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
    "mixed_groups",
)
pages.score_table(record.metrics, results, SHOWN)

# %% [markdown]
# ### What the grid says
#
# `em_training` is the mean of the learning curve: how often attempts were right over the whole of training.

# %% tags=["page-only", "hide-input"]
from minisearch.showing import claims_markdown

Markdown(claims_markdown("10_sd_search"))

# %% tags=["page-only", "hide-input"]
as_registered = not (data or service or steps)
print(
    pages.live_note("10_sd_search", profile, world_seed, record.metrics, as_registered)
)

# %% tags=["page-only", "hide-input"]
pages.arm_table("10_sd_search", SHOWN)

# %% [markdown]
# These are means over different numbers of runs. `grpo` is one baseline in chapters 9, 10 and 11, the same code, questions and seeds: the luck of its runs is in all three verdicts. Fair is what an arm has over another in the runs that both have, with the same encyclopedia, model and seed. Runs that share an encyclopedia are not independent, so that the standard errors are the smallest they can be.

# %% tags=["page-only", "hide-input"]
ran = dict.fromkeys(log.cell.arm for log in load_cells("10_sd_search"))
plain = [arm for arm in ran if "@" not in arm and arm not in ("look", "cold", "grpo")]
TESTED = ["em_training", "em_greedy", "em_sampled"]
pages.paired_table("10_sd_search", plain, "grpo", TESTED)

# %% [markdown]
# And over `sd`:

# %% tags=["page-only", "hide-input"]
others = [arm for arm in plain if arm != "sd"]
pages.paired_table("10_sd_search", others, "sd", TESTED)


# %% [markdown]
# How much of the gain the registered interval of `labels` leaves to the labels:

# %% tags=["page-only", "hide-input"]
from minisearch.claims import Card
from minisearch.showing import to_json

claims = {c["id"]: c for c in to_json(Card.read("10_sd_search"))["claims"]}
gain, interval = claims["sd-over-grpo"]["effect"], claims["labels"]["interval"]
if gain and interval:
    low, high = interval
    print(f"{low:+.4f} to {high:+.4f} of {gain:+.4f}: at most {high / gain:.0%}")

# %% [markdown]
# In parts, over `grpo`: the first four steps, in which `sd` is GRPO, and the last fourteen.


# %% tags=["page-only", "hide-input"]
def part_of_training(arm: str, first: int, last: int) -> str:
    """Mean gain over GRPO between two points of the curve, with its standard error."""
    points = [128 * n for n in range(1, 11) if first <= n <= last]
    gains = [
        pages.paired("10_sd_search", arm, "grpo", f"em_training/rollouts: {p}")
        for p in points
    ]
    runs = np.mean(gains, axis=0) if len(gains[0]) else np.array([])
    if len(runs) < 2:
        return "-"
    return f"{runs.mean():+.3f} ± {runs.std(ddof=1) / len(runs) ** 0.5:.3f}"


pd.DataFrame(
    {
        arm: {
            "first 256 attempts": part_of_training(arm, 1, 2),
            "last 896": part_of_training(arm, 4, 10),
        }
        for arm in plain
    }
).T


# %% tags=["page-only"] mystnb={"figure": {"caption": "Right answers while training, over the 18 runs that all four arms have in the grid: interquartile mean with 95 % limits. Both blocks run together a little above GRPO; plain cross-entropy at right attempts' queries leads early, and all meet at the end.", "name": "fig-10-curves"}, "image": {"alt": "Four rising curves with bands. That of sft runs above the others until about two thirds of training; those of sd and labels shuffled run together, a little above that of grpo; at the end all four meet."}}
from minisearch.curves import interquartile_mean_curve
from minisearch.plots import curve_with_band

fig, ax = figure(height=3.8)
for n, arm in enumerate(("grpo", "sd", "sft", "labels_shuffled")):
    places, curves = pages.training_curves("10_sd_search", arm, seeds=(0, 1, 2))
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
# If it is the contrast of labels that teaches, the gain should grow with the share of mixed groups. Here that share is set by choosing questions of three hops by how often first attempts fail at them; beside them are the questions that nobody chose, in runs of the same seed.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Gain of hindsight over GRPO in right answers while training, by the share of mixed groups in GRPO's training: dots are runs, paired by encyclopedia, model and seed, squares their means (places that nearly coincide are drawn a little apart). The gain does not grow with the share; it is larger on hard questions.", "name": "fig-10-dose"}, "image": {"alt": "Three columns of six dots and their means against the share of mixed groups, smallest with 95 % hard questions: the means of both kinds of hard questions lie above that of those nobody chose."}}
fig, ax = figure(height=3.4)
for n, kind in enumerate(("@hard95", "@hard50", "")):
    gains = pages.paired(
        "10_sd_search", f"sd{kind}", f"grpo{kind}", "em_training", seeds=(0,)
    )
    if len(gains):
        x = grid_mean(f"grpo{kind}/mixed_groups", (0,)) + 0.005 * (n - 1)
        ax.plot(
            np.full(len(gains), x), gains, "o", color=COLORS[n], alpha=0.4, markersize=4
        )
        label = kind.replace("@hard", "hard: ") + " %" if kind else "none chosen"
        ax.plot([x], [gains.mean()], "s", color=COLORS[n], label=label)
ax.axhline(0, color="0.4", linewidth=1, linestyle="--")
ax.set(
    xlabel="share of mixed groups in GRPO's training",
    ylabel="gain in right answers",
    xlim=(0.4, 0.75),
)
if ax.get_legend_handles_labels()[0]:
    ax.legend()
record.figure(fig, "dose", "gain by share of mixed groups")

# %% [markdown]
# ### What we take from it
#
# * *It helps a little, while training.* With hindsight a policy is right slightly more often over the course of training, as the first claim says; on questions of three hops that are hard for it to begin with, six runs each, by more. In the test, in another encyclopedia, no lead is seen.
# * *Is it who was right?* The claim is inconclusive: with labels handed out at random (`labels_shuffled`) the policy gains about as much over GRPO, and no more than the share printed above is left to the labels. And yet the teacher is another one: with true labels in the prompt new attempts at mixed questions are right far more often, and with random ones hardly. That its student learns what makes it better is not seen. Two reasons can be seen in step 6. What the teacher prefers are for the most part queries of right attempts: the block `own`, without any sibling, has most of that preference, and `others`, which shows the siblings alone, less than half. But whose attempt was right GRPO teaches already. And the loss sees a token by itself: it pulls towards what the teacher would write *here*, not towards the attempt that it would make. The teacher moves with its student besides: their divergence falls by a few hundredths at most, and is no measure of what was learnt.
# * *Is it the siblings?* Six runs each cannot say. The own attempt's line alone (`own_only`) is ahead of the whole block, by twice its error, and of the siblings without it (`leave_one_out`) no effect can be seen. The gain does not grow with the share of mixed groups either.
# * *Is it any sharpening?* With a block, true or not, entropy falls faster in training than with GRPO alone, and it was near at hand that a surer policy is simply right more often. `surer`, which sharpens without any block, is level with `sd` in its first steps. Then it runs away: its teacher is surer than its student wherever the student goes, where that of a block comes to rest. In the last quarter its entropy is half that of GRPO, and in the test it is far behind. At this weight sharpening is no substitute, and whether a milder one were was not tested.
# * *More weight for queries may do as much.* `heavier`, GRPO's own advantage once more at query tokens, cannot be told from `sd` while training, nor from `grpo`, has no teacher, and is ahead of all others in the greedy test. That last comparison was not registered.
# * *Plain cross-entropy does better.* At the queries of right attempts (`sft`) it beats `sd` clearly over the course of training, for less further cost. A part of that lead is the wait of a quarter of training, as the paper has it: `sd_now`, which does not wait, gains more than `sd`, and is still behind `sft`. It is a lead in speed: the curves meet at the end, and in the test no lead is seen.
# * *Other teachers.* `unmasked`, which has seen a whole right attempt, and `all_positions` are level with `sd` in six runs; `documents`, which has seen what the query will bring, is worse in each of them: it has hardly an opinion on queries. At the weight of `sd` both Kullback-Leibler divergences ruin the policy, and squared differences are behind in each run. They pull several times as hard there (step 4), so that this says nothing of their kind.
# * *Ten times the weight* ruins the policy from the third quarter of training on. The divergence gives no warning, as it falls: student and teacher go astray together. Entropy does, which falls faster than with `sd` as soon as the loss is on.
#
# ### Where we deviate, and what was tuned

# %% tags=["page-only", "hide-input"]
pages.deviations_table("10_sd_search")

# %% [markdown]
# One run of each model a value; differences below .05 are within what seeds do, so that this sweep only rules out weights that are far off. Arms that are not named were not swept and have the weight of `sd`; that of `surer` makes its loss as large when it begins.

# %% tags=["page-only", "hide-input"]
pages.tuning_table("10_sd_search")

# %% [markdown]
# ## Exercises
#
# Each exercise checks itself: the cell after the answer names the property that fails, never the answer. For stubs in place of the
# solutions: `minisearch assignment build 10 --out DIR`.
#
# ### Exercise 1: a divergence with a bound
#
# Write `jensen_shannon` for two lists of probabilities, in nats. A probability may be 0. Before you do: what is it for two distributions that have no token in common, and what is a Kullback-Leibler divergence then?

# %% tags=["page-only", "hide-input"]
from minisearch.classroom import check, checks


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch10-jsd", "locked": false, "schema_version": 3, "solution": true, "task": false}
def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    """The divergence in nats; both lists sum to one."""
    ### BEGIN SOLUTION
    total = 0.0
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        total += sum(v * math.log(v / middle) for v in (a, b) if v > 0) / 2
    return total
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch10-jsd-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch10-jsd")
def properties_of_jensen_shannon(of):
    yield "equal distributions", lambda: np.isclose(of([0.3, 0.7], [0.3, 0.7]), 0)
    yield (
        "it is symmetric",
        lambda: np.isclose(of([0.9, 0.1], [0.4, 0.6]), of([0.4, 0.6], [0.9, 0.1])),
    )
    ### BEGIN HIDDEN TESTS
    yield (
        "nothing in common",
        lambda: np.isclose(of([1.0, 0.0], [0.0, 1.0]), math.log(2)),
    )
    yield "by hand", lambda: np.isclose(of([1.0, 0.0], [0.5, 0.5]), 0.215762, atol=1e-5)
    yield (
        "a token that is 0 in both",
        lambda: np.isclose(of([1, 0, 0], [0, 1, 0]), math.log(2)),
    )
    yield (
        "three tokens",
        lambda: np.isclose(of([0.5, 0.5, 0], [0, 0.5, 0.5]), 0.5 * math.log(2)),
    )
    ### END HIDDEN TESTS


assert check("ch10-jsd", jensen_shannon)

# %% [markdown]
# ### Exercise 2: a silent bug
#
# A colleague built the block from the *text* of an attempt, with `queries_with_a_bug`. Training runs, the loss is finite and falls nicely. Then a model begins to ask for answers that nobody has found yet. What gets into the block that must not? Write `queries_of`, from typed segments: pairs of a kind (`think`, `search`, `query`, `documents`, `answer`, `invalid`) and
# a text, in order. As in a `Trajectory` the two tags of a search are segments of their own, of kind `search`. A query counts if passages came back for it, that is if they are the next thing after its closing tag. Give it without white space at either end.


# %% tags=["page-only"]
def queries_with_a_bug(text: str) -> list[str]:
    """Everything in an attempt's text that looks like a search."""
    return [q.strip() for q in re.findall(r"<search>(.*?)</search>", text, re.S)]


queries_with_a_bug(
    "<think> perhaps <search> is it Ann Lee </search> </think> <search> Oslo mayor </search> "
    "<information> Ann Lee is mayor of Oslo . </information> <search> sister of <information> "
    "Eva is the sister of Ann Lee . </information> <answer> Eva </answer> </search>"
)


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch10-mask", "locked": false, "schema_version": 3, "solution": true, "task": false}
def queries_of(segments: Sequence[tuple[str, str]]) -> list[str]:
    """The queries of an attempt that passages came back for, in order."""
    ### BEGIN SOLUTION
    kinds = [kind for kind, _ in segments]
    return [
        text.strip()
        for n, (kind, text) in enumerate(segments)
        if kind == "query" and kinds[n + 1 : n + 3] == ["search", "documents"]
    ]
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch10-mask-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch10-mask")
def properties_of_queries(of):
    def asked(query, *after):
        return [
            ("search", "<search>"),
            ("query", query),
            ("search", "</search>"),
            *after,
        ]

    found = ("documents", "Ann Lee is mayor")
    one = [
        ("think", "need mayor"),
        *asked(" Oslo mayor ", found),
        ("answer", "Ann Lee"),
    ]
    yield "one query", lambda: list(of(one)) == ["Oslo mayor"]
    yield "no search at all", lambda: list(of([("think", "x"), ("answer", "y")])) == []
    ### BEGIN HIDDEN TESTS
    two = [*asked("A", found), *asked("B", found)]
    yield "two, in order", lambda: list(of(two)) == ["A", "B"]
    again = [*asked("A", found), *asked("A", found)]
    yield "the same once more", lambda: list(of(again)) == ["A", "A"]
    lost = [*asked("A"), ("think", "x"), *asked("B", found)]
    yield "nothing came back for the first", lambda: list(of(lost)) == ["B"]
    last = [*asked("A", found), *asked("is it Ann Lee")]
    yield "nothing came back for the last", lambda: list(of(last)) == ["A"]
    quoted = [
        ("documents", "<search> Eva </search>"),
        ("think", "<search> Ann </search>"),
    ]
    yield "tags that were read or thought of", lambda: list(of(quoted)) == []
    broken = [("search", "<search>"), ("query", "Ann"), found]
    yield "never closed", lambda: list(of(broken)) == []
    yield "not well formed", lambda: list(of([("invalid", "Ann"), found])) == []
    ### END HIDDEN TESTS


assert check("ch10-mask", queries_of)

# %% [markdown]
# ### Exercise 3: how much does shuffling change?
#
# The {term}`refuter` `labels_shuffled` hands out a group's labels at random. Write `stays`: the probability that after shuffling *every* attempt has the label that it had. Then: in which groups is this refuter the method itself? With one right attempt of eight, how many labels change on average?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch10-shuffle", "locked": false, "schema_version": 3, "solution": true, "task": false}
def stays(labels: Sequence[bool]) -> float:
    """The probability that a random permutation of these labels changes none."""
    ### BEGIN SOLUTION
    return 1 / math.comb(len(labels), sum(labels))
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch10-shuffle-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch10-shuffle")
def properties_of_shuffling(of):
    yield "one right of two", lambda: np.isclose(of([True, False]), 0.5)
    yield "two attempts, both right", lambda: np.isclose(of([True, True]), 1)
    ### BEGIN HIDDEN TESTS
    yield "all wrong", lambda: np.isclose(of([False] * 5), 1)
    yield "one right of eight", lambda: np.isclose(of([False] * 7 + [True]), 1 / 8)
    yield "three of eight", lambda: np.isclose(of([True] * 3 + [False] * 5), 1 / 56)
    yield "half of four", lambda: np.isclose(of([True, True, False, False]), 1 / 6)
    ### END HIDDEN TESTS


assert check("ch10-shuffle", stays)

# %% [markdown]
# ### Exercise 4: predict, then break it
#
# Write `places`: from the lengths of both prompts and the numbers of some response tokens (from 0), the places in either sequence whose logits *predict* these tokens. A model's logits at a place are about the next token. Predict first: if the teacher's places were too large by one, would its divergence from the student be larger or smaller before training? Would anything stop? The cell after the check shows the first.


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch10-places", "locked": false, "schema_version": 3, "solution": true, "task": false}
def places(student: int, teacher: int, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Of each token the place in the student's and in the teacher's sequence, from 0."""
    ### BEGIN SOLUTION
    return [(student + token - 1, teacher + token - 1) for token in tokens]
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch10-places-test", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
@checks("ch10-places")
def properties_of_places(of):
    yield "no block", lambda: list(map(tuple, of(5, 5, [3]))) == [(7, 7)]
    ### BEGIN HIDDEN TESTS
    yield "the first token", lambda: list(map(tuple, of(5, 9, [0]))) == [(4, 8)]
    yield (
        "a longer prompt",
        lambda: list(map(tuple, of(10, 60, [2, 5]))) == [(11, 61), (14, 64)],
    )
    yield "none", lambda: list(of(3, 4, [])) == []
    ### END HIDDEN TESTS


assert check("ch10-places", places)

# %% tags=["page-only"]
late = collate([hinted(start, shown_step, hint) for hint in true_hints], start.pad_id)
with torch.no_grad():
    shifted = logits_before(start.model, late.ids, (late.search >= 0).roll(1, 1))
for name, logits in {"as it should be": teacher_all, "one token late": shifted}.items():
    print(f"{name}: {divergence(student_all, logits).mean().item():.3f} nats")

# %% [markdown]
# ### Exercise 5: who pulls how hard
#
# Two tokens; the student gives the first the probability $p = \sigma(z)$, the teacher $q$. Write `pull`: the derivative with respect to $z$ of the forward KL, the reverse KL and the JSD. By the chain rule it is $p(1-p)\, \partial D / \partial p$ for each divergence $D$; for the forward KL that comes to $p - q$. (In exercise 1 $p$ and $q$ were lists of probabilities; here they are one probability each, of the first token.) Then let $q$ go to 0 with $p = .5$, a teacher who rules out what its student likes: whose pull grows without limit?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch10-pull", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pull(p: float, q: float, kind: str) -> float:
    """The derivative of "forward", "reverse" or "jsd" with respect to the student's logit."""
    ### BEGIN SOLUTION
    if kind == "forward":
        return p - q
    other = q if kind == "reverse" else (p + q) / 2
    slope = math.log(p / other) - math.log((1 - p) / (1 - other))
    return p * (1 - p) * slope * (1 if kind == "reverse" else 0.5)
    ### END SOLUTION


# %% tags=["page-only", "hide-input"]
def slope(p: float, q: float, distance: Callable[[float, float], float]) -> float:
    """The derivative of a divergence with respect to the student's logit, by small steps."""

    def at(z: float) -> float:
        return distance(1 / (1 + math.exp(-z)), q)

    z = math.log(p / (1 - p))
    return (at(z + 1e-5) - at(z - 1e-5)) / 2e-5


def two(p: float, q: float) -> float:
    """KL(p || q) over two tokens."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def middle(p: float, q: float) -> float:
    """JSD over two tokens."""
    return (two(p, (p + q) / 2) + two(q, (p + q) / 2)) / 2


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch10-pull-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch10-pull")
def properties_of_pull(of):
    yield "forward", lambda: np.isclose(of(0.5, 0.2, "forward"), 0.3)
    yield "forward, the other way", lambda: np.isclose(of(0.2, 0.5, "forward"), -0.3)
    yield (
        "agreed",
        lambda: all(
            np.isclose(of(0.3, 0.3, k), 0) for k in ("forward", "reverse", "jsd")
        ),
    )
    yield "reverse", lambda: np.isclose(of(0.5, 0.2, "reverse"), 0.25 * math.log(4))
    ### BEGIN HIDDEN TESTS
    for p, q in ((0.6, 0.1), (0.2, 0.7)):
        yield (
            f"forward at {p}, {q}",
            lambda p=p, q=q: np.isclose(of(p, q, "forward"), p - q),
        )
        yield (
            f"reverse at {p}, {q}",
            lambda p=p, q=q: np.isclose(
                of(p, q, "reverse"), slope(p, q, two), atol=1e-4
            ),
        )
        yield (
            f"jsd at {p}, {q}",
            lambda p=p, q=q: np.isclose(
                of(p, q, "jsd"), slope(p, q, middle), atol=1e-4
            ),
        )
    ### END HIDDEN TESTS


assert check("ch10-pull", pull)

# %% [markdown]
# ## At scale
#
# `small` is SmolLM2-135M on the World Factbook, `full` Qwen2.5-3B on NQ and HotpotQA against Wikipedia, as in chapter 7, whose arithmetic of memory holds here too. The teacher adds one reading of every attempt, with a longer prompt and without a gradient; its logits are kept at query tokens alone.

# %% tags=["page-only", "hide-input"]
full = HindsightSettings.of("full")
searches_each, tokens_each, query = 2.5, 1500, 12
rows_full = full.questions_a_step * full.group
block = full.group * searches_each * query
passes = {
    "write": 2 * rows_full * tokens_each,
    "reference": 2 * rows_full * tokens_each,
    "update": 6 * rows_full * tokens_each,
    "teacher": 2 * rows_full * (tokens_each + block),
}
share = passes["teacher"] / (sum(passes.values()) - passes["teacher"])
kept = rows_full * searches_each * query * 151_936 * 4 / full.minibatches / 8 / 1e9
print(
    f"a step: {rows_full:,} attempts, each teacher reads {block:.0f} tokens more than its student"
)
print(f"in operations {share:.0%} more than a step without")
print(
    f"logits of teachers at query tokens, one update on one of 8 GPUs: {kept:.1f} GB, were they all kept at once"
)

# %% [markdown]
# Reading a token takes two operations a parameter, learning from it six; writing is counted as reading, though it takes more time. Attempts of 1,500 tokens, 2.5 searches each and queries of 12 tokens are assumed. The paper measured 15.5 % of time. Teachers are read part by part, as the update is, so that their logits are never all there at once.
#
# ```bash
# minisearch run 10 --profile small
# minisearch run 10 --profile full -p data DIR -p service http://127.0.0.1:8000/retrieve
# ```
#
# Nobody has run `small` or `full` yet; their columns are configuration. As in chapter 7 the prompt of `small` has no worked examples, without which that model opens no tag; and neither model was taught to read a block of attempts, so that nobody knows whether its teacher is any better. The arm `look` measures that on invented encyclopedias and for the toy models alone.

# %% tags=["page-only", "hide-input"]
pd.DataFrame(HindsightSettings.table()).set_index("setting")

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# :list: bullet
# ```
