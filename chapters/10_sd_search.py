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
from minisearch.agents.rollout import rollout
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
    learning_rate: float = dial(1.2e-3, 1.2e-3, 1e-5, 1e-6, source="AutoRefine; sweep")
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
    looked_at: int = dial(4, 100, 100, 100, source="ours; questions of the diagnosis")
    tries: int = dial(1, 4, 4, 4, source="ours; new attempts at each of them")
    candidates: int = dial(16, 400, 0, 0, source="ours; screened for hard ones")


# %%
settings = HindsightSettings.of(profile, **({"steps": steps} if steps else {}))
use_threads(settings.threads)
record = Recorder.from_environment()

# %% [markdown]
# ## Step 1: what hindsight may see


# %%
def seen(attempt: Trajectory, question: Question, threshold: float) -> Attempt:
    """An attempt's queries that were carried out, and whether its answer was right."""
    right = f1_reward(attempt, question) > threshold
    return Attempt(tuple(attempt.queries), right)


def hindsight_blocks(
    group: Sequence[Attempt], kind: str, random: np.random.Generator
) -> list:
    """The block that each attempt's teacher reads, of `BLOCKS`."""
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


def brought(lm: LanguageModel, row: int, attempt: Trajectory) -> list[Hint]:
    """For each query the passages that it was going to bring."""
    blocks = [s.ids for s in attempt.segments if s.kind == "documents"]
    texts = [re.sub(r"</?information>", "", lm.decode(ids)).strip() for ids in blocks]
    return [Hint(row, Piece("information", t), n) for n, t in enumerate(texts)]


# %% [markdown]
# ## Step 2: one network, two prompts


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
# ## Step 3: how far apart


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


# %% [markdown]
# ## Step 4: a loss beside GRPO's


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


class Hindsight:
    """The further loss of SD-Search, an `extra_loss` of GRPO.

    `log` has a row a step that taught: mean divergence, tokens taught, hints that did not fit.
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
        self.steps, self._step = 0, None  # type: int, Step | None
        self.hints: dict[int, list[Hint]] = {}

    def __call__(self, step: Step, part: Part) -> Tensor:
        """The part's share of alpha times the mean over all query tokens of the step."""
        if step is not self._step:
            self._begin(step)
        where = part.of(self.where)
        if self.steps <= self.settings.waits or not where.any():
            return part.logits.sum() * 0
        student = part.logits[where]
        values = divergence(
            student,
            self._teacher(step, part, student),
            self.how.kind,
            self.settings.top,
        )
        self.log[-1]["divergence"] += (
            float(values.detach().sum()) / self.log[-1]["tokens"]
        )
        scale = int(step.mask.sum()) / self.log[-1]["tokens"]
        return self.settings.alpha * scale * (values * part.weights[where]).sum()

    def _begin(self, step: Step) -> None:
        """Write the blocks of a new step, once for all its parts."""
        self._step, self.steps = step, self.steps + 1
        own, kind = self.settings, self.how.block or "group"
        hints = hints_of(self.lm, step, own.group, kind, own.threshold, self.random)
        kept = readable(self.lm, step, hints) if self.how.block else hints
        self.hints = {row: [] for row in range(len(step.attempts))}
        for hint in kept:
            self.hints[hint.row].append(hint)
        self.where = positions(step, kept, self.how.everywhere)
        row = {"divergence": 0.0, "tokens": float(self.where.sum())}
        self.log.append(row | {"too long": float(len(hints) - len(kept))})

    def _teacher(self, step: Step, part: Part, student: Tensor) -> Tensor:
        """Shape: -> (T, V), without a gradient."""
        if not self.how.block:
            return student.detach() / self.how.temperature
        hints = [hint for row in part.rows.tolist() for hint in self.hints[row]]
        return teacher_logits(self.lm, step, hints, self.how.everywhere)


# %% [markdown]
# ## Step 5: what it could be instead


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
SWEPT: dict[str, dict[str, float]] = {
    "sft": {"alpha": 0.03},
    "heavier": {"alpha": 1.0},
    "surer": {"alpha": 0.57},
    "sd_10x": {"alpha": 3.0},
}


def settings_of(method: str) -> HindsightSettings:
    """The settings of an arm; `alpha` is also the weight of a rival's term."""
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


# %% [markdown]
# ## Step 6: is the teacher better?


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


def by_query(
    step: Step, tokens: Sequence[tuple[int, int]], ratio: np.ndarray, apart: np.ndarray
) -> Opinion:
    """Means over the tokens of each query, `tokens` saying whose they are. Shape: (T,) each."""
    searches = sorted(set(tokens))
    number = {search: n for n, search in enumerate(searches)}
    place = np.array([number[token] for token in tokens])
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
# ## Train and watch


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
