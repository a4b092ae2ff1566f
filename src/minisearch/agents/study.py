"""What the chapters about search agents share: a task, its training with GRPO, and the measures.

Arms of such a chapter differ in what they add to GRPO. All train on the same questions in the same
order, and answer the same test questions, which come from another encyclopedia or another split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.protocol import protocol_of
from minisearch.agents.rewards import (
    exact_match_reward,
    f1_reward,
    format_reward,
    gold_recall,
    searches,
)
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.trajectory import Trajectory
from minisearch.data.factbook import factbook_corpus, factbook_questions
from minisearch.data.qa import Document, Question, read_corpus, read_questions
from minisearch.errors import InputError
from minisearch.lit import Batches, Optimisation, fit
from minisearch.models.lm import LanguageModel
from minisearch.profiles import Settings, derive_seed
from minisearch.recorder import Recorder
from minisearch.retriever import BM25Retriever, RemoteRetriever, Retriever
from minisearch.worlds.wiki import Wiki, WikiConfig

ONE_HOP = ("hops: 1", "nq", "triviaqa", "popqa")  # groups of questions that take one search


@dataclass(frozen=True, kw_only=True)
class AgentSettings(Settings):
    """What a chapter's own settings say, each with its four columns."""

    questions_a_step: int
    group: int  # attempts at each of them
    steps: int
    minibatches: int  # updates a step
    learning_rate: float
    warmup: float  # share of the steps
    clip_low: float
    clip_high: float
    kl: float
    searches: int
    passages: int
    turn_tokens: int
    block_tokens: int
    row_tokens: int
    one_hop: int  # test questions, 0: all of the files
    multi_hop: int

    def attempts(self, temperature: float = 1.0) -> RolloutConfig:
        """How far an attempt may go."""
        return RolloutConfig(
            temperature=temperature, searches=self.searches, topk=self.passages,
            turn_tokens=self.turn_tokens, block_tokens=self.block_tokens, tokens=self.row_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What is trained on and what is asked in the end, each with its search engine."""

    training: list[Question]
    library: Retriever
    passages: list[Document]  # of that library, where they fit in memory
    test: list[Question]
    test_library: Retriever
    test_passages: list[Document]


def open_world(kind: str, world_seed: int) -> tuple[Wiki, BM25Retriever]:
    """An encyclopedia and its search engine."""
    world = Wiki(WikiConfig(kind=kind), world_seed)
    return world, BM25Retriever(world.corpus)


def invented_task(
    settings: AgentSettings,
    kind: str,
    world_seed: int,
    seed: int,
    wanted: Callable[[Question], bool] | None = None,
) -> Task:
    """Two encyclopedias of one kind; the test questions do not depend on the seed.

    Questions of two and three hops are trained on, in test also those of one.

    Args:
        wanted: which questions of several hops are trained on and asked; all, if not given.
    """
    home, library = open_world(kind, 200 + world_seed)
    away, test_library = open_world(kind, world_seed)

    def several(world: Wiki, count: int, seed: int) -> list[Question]:
        if wanted is None:
            return world.questions(count, hops=(2, 3), seed=seed)
        return chosen(world, count, seed, wanted)

    training = several(home, settings.steps * settings.questions_a_step, seed)
    test = away.questions(settings.one_hop, hops=(1,)) + several(away, settings.multi_hop, 0)
    return Task(training, library, home.corpus, test, test_library, away.corpus)


def chosen(
    world: Wiki, count: int, seed: int, wanted: Callable[[Question], bool]
) -> list[Question]:
    """Different questions of two and three hops for which `wanted` holds.

    Raises:
        InputError: where the world has too few of them.
    """
    found: dict[tuple[str, ...], Question] = {}  # by chain, as each has three wordings
    for part in range(20):
        for question in world.questions(400, hops=(2, 3), seed=derive_seed(seed, part)):
            facts = question["metadata"]
            if wanted(question):
                found.setdefault((facts["entity"], *facts["relations"]), question)
        if len(found) >= count:
            return list(found.values())[:count]
    raise InputError("questions", f"{len(found)} wanted ones", str(count), "ask for fewer.")


def questions_in(folder: Path, *names: str) -> list[Question]:
    """All questions of the files of these names, the name of their folder as `set`."""
    found = []
    for path in sorted(path for name in names for path in folder.rglob(name)):
        for question in read_questions(path):
            question["metadata"]["set"] = path.parent.name
            question["id"] = f"{path.parent.name}/{question['id']}"
            found.append(question)
    return found


def real_task(settings: AgentSettings, data: str, service: str, seed: int) -> Task:
    """Questions and passages in files or, without a folder, those of the World Factbook."""
    if data:
        training = questions_in(Path(data), "train.jsonl")
        test = questions_in(Path(data), "test.jsonl", "dev.jsonl")
        passages = [] if service else list(read_corpus(Path(data) / "corpus.jsonl"))
    else:
        passages, every = factbook_corpus(), factbook_questions()
        of = {s: [q for q in every if q["metadata"]["split"] == s] for s in ("train", "test")}
        training = [q for q in of["train"] if len(q["metadata"]["hops"]) > 1]
        one = [q for q in of["test"] if len(q["metadata"]["hops"]) == 1]
        more = [q for q in of["test"] if len(q["metadata"]["hops"]) > 1]
        test = one[: settings.one_hop or None] + more[: settings.multi_hop or None]
    for found, names in ((training, "train.jsonl"), (test, "test.jsonl or dev.jsonl")):
        if not found:
            raise InputError(f"folder {data}", f"no question in {names}", "some", "add the file.")
    library = RemoteRetriever(service) if service else BM25Retriever(passages)
    order = np.random.default_rng(derive_seed(seed, "order")).permutation(len(training))
    drawn = np.resize(order, settings.steps * settings.questions_a_step)
    return Task([training[n] for n in drawn], library, passages, test, library, passages)


def train(
    lm: LanguageModel,
    task: Task,
    settings: AgentSettings,
    seed: int,
    standardise: bool = True,
    mask_observations: bool = True,
    **options: Any,
) -> GRPO:
    """Train in place with GRPO; the module, whose `history` has a row a step.

    Args:
        standardise, mask_observations: as in `GRPOConfig`.
        options: what a method adds, as arguments of `GRPO`.
    """
    config = GRPOConfig(
        group=settings.group, minibatches=settings.minibatches, kl=settings.kl,
        clip_low=settings.clip_low, clip_high=settings.clip_high,
        standardise=standardise, mask_observations=mask_observations,
    )  # fmt: skip
    module = GRPO(
        lm, task.library, task.training, config, settings.attempts(),
        measures={"em": exact_match_reward, "format": format_reward},
        reference=deepcopy(lm.model) if settings.kl else None, seed=seed, **options,
    )  # fmt: skip
    numbers = torch.arange(len(task.training))
    batches = Batches({"question": numbers}, settings.questions_a_step, seed)
    warmup = round(settings.warmup * settings.steps * settings.minibatches)
    schedule = Optimisation(
        settings.learning_rate, warmup_steps=warmup, schedule="constant", clip=None
    )
    fit(module, batches, settings, schedule)
    return module


def answers(
    lm: LanguageModel, task: Task, config: RolloutConfig, prompts: Sequence[str] | None = None
) -> list[Trajectory]:
    """One attempt at every test question, from its own prompt or another one."""
    if prompts is None:
        ask = protocol_of(lm.tokenizer).prompt
        prompts = [ask(lm.tokenizer, q["question"]) for q in task.test]
    seed = derive_seed(0, "test")
    return rollout(lm, task.test_library, protocol_of(lm.tokenizer), prompts, config, seed)


def groups_of(task: Task) -> np.ndarray:
    """What each test question is counted with: its number of hops, or its data set. Shape: (Q,)."""
    facts = [question["metadata"] for question in task.test]
    return np.array([f.get("set") or f"hops: {len(f['hops'])}" for f in facts])


def judged(attempts: Sequence[Trajectory], task: Task) -> dict[str, np.ndarray]:
    """Measures of attempts at the test questions: em, f1, format, searches, gold. Shape: (Q,)."""
    measures = {
        "em": exact_match_reward,
        "f1": f1_reward,
        "format": format_reward,
        "searches": searches,
    }
    hops = [question["metadata"].get("hops") or [{}] for question in task.test]
    if all(hop.get("gold_ids") for steps in hops for hop in steps):
        measures["gold"] = gold_recall
    pairs = list(zip(attempts, task.test, strict=True))
    return {name: np.array([of(*pair) for pair in pairs]) for name, of in measures.items()}


def record_answers(record: Recorder, name: str, columns: dict[str, np.ndarray], task: Task) -> None:
    """Record means over questions of several hops, each by group, and the rows behind them.

    Rows are kept of `em_greedy` and `em_sampled`.
    """
    groups = groups_of(task)
    several = ~np.isin(groups, ONE_HOP)
    several |= not several.any()  # where no question takes several hops, all count
    for metric, values in columns.items():
        record.metric(f"{name}/{metric}", float(values[several].mean()))
        for group in np.unique(groups):
            record.metric(f"{name}/{metric}/{group}", float(values[groups == group].mean()))
    rows = {"query_row": np.flatnonzero(several)}
    for metric in ("em_greedy", "em_sampled"):
        if metric in columns:
            rows[metric] = columns[metric][several].astype(float)
    record.rows(name, rows)


def record_training(record: Recorder, name: str, module: GRPO, points: int = 10) -> None:
    """The learning curve: exact match while training, in parts; its mean; the first dead groups."""
    rollouts, em = module.history.column("rollouts")[1], module.history.column("em")[1]
    record.metric(f"{name}/em_training", float(em.mean()))
    for steps in np.array_split(np.arange(len(em)), min(points, len(em))):
        label = f"rollouts: {rollouts[steps[-1]]:.0f}"
        record.metric(f"{name}/em_training/{label}", float(em[steps].mean()))
    dead = module.history.column("dead groups")[1]
    record.metric(f"{name}/dead_groups", float(dead.mean()))
    record.metric(f"{name}/live_at_start", float(1 - dead[: max(1, len(dead) // 8)].mean()))
    for part in ("generate", "retrieve", "score", "update"):
        spent = module.history.column(f"seconds {part}")[1].sum()
        record.metric(f"seconds/{name}/{part}", float(spent))
