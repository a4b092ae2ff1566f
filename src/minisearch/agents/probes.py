"""What a model can do before any reinforcement learning, measured on worlds it has not met.

Each probe gives one value a question (or passage), and `Score` turns those into a mean with a 95 %
interval by a bootstrap over questions. A method whose teacher is no better than its student, or
whose reward does not react to evidence, cannot be tested with a model: these numbers tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from minisearch.agents.demonstrator import remembered
from minisearch.agents.protocol import (
    Attempt,
    Piece,
    attempts_block,
    plan_block,
    plan_of,
    protocol_of,
    reference_block,
)
from minisearch.agents.rewards import exact_match, is_well_formed
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.trajectory import Trajectory
from minisearch.data.qa import Question
from minisearch.models.lm import LanguageModel
from minisearch.retriever import BM25Retriever
from minisearch.worlds.wiki import Wiki, WikiConfig
from minisearch.worlds.wiki_relations import BY_NOUN

Blocks = Callable[[int], Sequence[Piece]]  # question number -> privileged blocks of its prompt


@dataclass(frozen=True)
class Score:
    """A mean over `count` questions and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: np.ndarray, seed: int = 0, samples: int = 2000) -> Score:
        """Percentile bootstrap over values; nan where there are none. Shape: values (Q,)."""
        values = np.asarray(values, dtype=np.float64)
        if not len(values):
            return cls(np.nan, np.nan, np.nan, 0)
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, len(values), (samples, len(values)))
        low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
        return cls(float(values.mean()), float(low), float(high), len(values))

    @classmethod
    def clustered(cls, values: np.ndarray, groups: np.ndarray) -> Score:
        """The mean of all values; those of one group are drawn together. Shape: (N,), (N,)."""
        if not len(values):
            return cls.of(values)
        _, label = np.unique(groups, return_inverse=True)
        sums, counts = np.bincount(label, values), np.bincount(label)
        mean = sums.sum() / counts.sum()
        return cls.of(mean + (sums - mean * counts) / counts.mean())


class Exam:
    """Questions on several worlds of one kind, equally many of 1, 2 and 3 hops.

    Args:
        lm: who sits it.
        kind: blank or knowing.
        world_seeds: one world each.
        count: questions in all.
    """

    def __init__(
        self, lm: LanguageModel, kind: str, world_seeds: Sequence[int], count: int
    ) -> None:
        self.lm, self.protocol = lm, protocol_of(lm.tokenizer)
        self.worlds = [Wiki(WikiConfig(kind=kind), seed) for seed in world_seeds]
        self.retrievers = [BM25Retriever(world.corpus) for world in self.worlds]
        sizes = [len(part) for part in np.array_split(np.arange(count), len(self.worlds))]
        sets = [w.questions(size) for w, size in zip(self.worlds, sizes, strict=True)]
        self.questions: list[Question] = [q for questions in sets for q in questions]
        self.world_of = np.repeat(np.arange(len(self.worlds)), sizes)
        self.hops = np.array([len(q["metadata"]["hops"]) for q in self.questions])

    def attempts(
        self,
        config: RolloutConfig,
        seed: int,
        blocks: Blocks = lambda number: (),
        only: np.ndarray | None = None,
    ) -> list[Trajectory]:
        """One attempt a question (or at those numbered in `only`), in order."""
        numbers = range(len(self.questions)) if only is None else only.tolist()
        done: list[Trajectory] = []
        for world, retriever in enumerate(self.retrievers):
            own = [n for n in numbers if self.world_of[n] == world]
            prompts = [self.prompt(n, blocks(n)) for n in own]
            done += rollout(self.lm, retriever, self.protocol, prompts, config, seed + world)
        return done

    def prompt(self, number: int, blocks: Sequence[Piece] = ()) -> str:
        """The prompt of one question."""
        question = self.questions[number]["question"]
        return self.protocol.prompt(self.lm.tokenizer, question, blocks)

    def correct(self, done: Sequence[Trajectory], only: np.ndarray | None = None) -> np.ndarray:
        """1.0 where the answer is right. Shape: (Q,)."""
        numbers = range(len(self.questions)) if only is None else only.tolist()
        golden = [self.questions[n]["golden_answers"] for n in numbers]
        pairs = zip(done, golden, strict=True)
        return np.array([exact_match(row.answer, answers) for row, answers in pairs], float)

    def by_hops(self, values: np.ndarray) -> dict[str, Score]:
        """All questions, and those of each number of hops. Shape: values (Q,)."""
        parts = {f"{n}-hop": Score.of(values[self.hops == n]) for n in (1, 2, 3)}
        return {"all": Score.of(values), **parts}


def policy(exam: Exam, config: RolloutConfig, seed: int = 0) -> dict[str, Any]:
    """Exact match by hops, share of well-formed attempts, searches, plans written.

    An answer whose tag had to be opened after one search too many counts as an answer, and as
    ill formed.
    """
    done = exam.attempts(config, seed)
    texts = [_written(row, exam) for row in done]
    return {
        "exact match": exam.by_hops(exam.correct(done)),
        "well formed": Score.of(np.array([is_well_formed(text) for text in texts])),
        "searches": Score.of(np.array([len(row.queries) for row in done])),
        "writes a plan": Score.of(np.array(["<plan>" in text for text in texts])),
    }


def closed_book(exam: Exam, config: RolloutConfig, seed: int = 0) -> dict[str, Score]:
    """Exact match of the answer given at once; also by hops where all facts are known."""
    values = exam.correct(exam.attempts(replace(config, answer_at_once=True), seed))
    known = np.array([all(q["metadata"]["known"]) for q in exam.questions])
    chains = {n: known & (exam.hops == n) for n in (1, 2, 3)}
    told = {f"{n}-hop, all known": Score.of(values[chain]) for n, chain in chains.items()}
    return {**exam.by_hops(values), **told}


def hints(
    exam: Exam, configs: dict[str, RolloutConfig], siblings: int = 4
) -> dict[str, dict[str, Score]]:
    """Exact match with privileged blocks in the prompt, on questions that some sibling got right.

    Siblings are drawn at temperature 1. The attempts without help are drawn apart from them: they
    share the questions, not the luck by which these were chosen.

    "The same, called wrong" has the queries and not the verdict; "a sibling of another question"
    is one of the same world, and shows what a block as such does.

    Returns:
        For each of `configs`: without help; each block; `gain: ...`, its paired difference to
        without help; `gain: the verdict`, that of a right sibling to the same called wrong.
    """
    warm = replace(next(iter(configs.values())), temperature=1.0)
    pool = [exam.attempts(warm, seed=1000 * (s + 1)) for s in range(siblings)]
    right = np.array([exam.correct(rows) for rows in pool]) > 0  # (G, Q)
    only = np.flatnonzero(right.any(axis=0))
    shown = {int(n): pool[int(np.argmax(right[:, n]))][n] for n in only}
    other: dict[int, int] = {}
    for world in range(len(exam.worlds)):
        own = only[exam.world_of[only] == world].tolist()
        other |= dict(zip(own, own[1:] + own[:1], strict=True))
    blocks: dict[str, Blocks] = {
        "one right sibling": lambda n: [_attempt(shown[n], True)],
        "the same, called wrong": lambda n: [_attempt(shown[n], False)],
        "a sibling of another question": lambda n: [_attempt(shown[other[n]], True)],
        "a right sibling as reference": lambda n: [reference_block(_written(shown[n], exam))],
        "the plan": lambda n: [plan_block(plan_of(exam.questions[n]))],
    }
    table: dict[str, dict[str, Score]] = {}
    for name, config in configs.items():
        alone = exam.correct(exam.attempts(config, 99_000, only=only), only)
        table[name] = {"without help": Score.of(alone)}
        helped = {
            kind: exam.correct(exam.attempts(config, 98_000, block, only), only)
            for kind, block in blocks.items()
        }
        for kind, values in helped.items():
            table[name][kind] = Score.of(values)
            table[name][f"gain: {kind}"] = Score.of(values - alone)
        verdict = helped["one right sibling"] - helped["the same, called wrong"]
        table[name]["gain: the verdict"] = Score.of(verdict)
    return table


def _attempt(row: Trajectory, correct: bool) -> Piece:
    return attempts_block([Attempt(tuple(row.queries), correct)])


def _written(row: Trajectory, exam: Exam) -> str:
    return row.text.replace(exam.lm.tokenizer.eos_token, "")


@torch.inference_mode()
def perplexity(lm: LanguageModel, texts: Sequence[str]) -> Score:
    """Perplexity of texts, each read by itself: exp of the mean negative log-likelihood a token."""
    values, counts = [], []
    for text in texts:
        ids = torch.tensor([lm.encode(text)], device=lm.model.device)
        scores = lm.model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        values.append(-scores.gather(1, ids[0, 1:, None]).sum().item())
        counts.append(ids.shape[1] - 1)
    total = np.array(values)
    mean = total.sum() / sum(counts)
    score = Score.of(mean + (total - mean * np.array(counts)) / np.mean(counts))
    low, middle, high = np.exp([score.low, score.mean, score.high]).tolist()
    return Score(middle, low, high, score.count)


def document_texts(world: Wiki, shuffled: bool, seed: int = 0) -> list[str]:
    """The passages as the toy model reads them; `shuffled` mixes the words of each sentence."""
    rng, texts = np.random.default_rng(seed), []
    for document in world.corpus:
        title, _, body = document["contents"].partition("\n")
        words = body.split()
        chosen = rng.permutation(words) if shuffled else words
        texts.append(f"( {title.strip(chr(34))} ) {' '.join(chosen)}")
    return texts


def retrieval_ceiling(exam: Exam, topk: int) -> dict[str, Score]:
    """Share of hops whose passage a search brings, by what the query says beside the entity."""
    hits: dict[str, list[bool]] = {}
    asked = np.concatenate([[n] * hops for n, hops in enumerate(exam.hops)])
    searches = [remembered(retriever, topk) for retriever in exam.retrievers]
    for number, question in enumerate(exam.questions):
        search = searches[exam.world_of[number]]
        here = question["metadata"]["entity"]
        for noun, hop in zip(
            question["metadata"]["relations"], question["metadata"]["hops"], strict=True
        ):
            words = BY_NOUN[noun].keywords
            queries = {
                "the whole question": question["question"],
                "the entity alone": here,
                "and the question's word": f"{here} {words[0]}",
                "and one other word": f"{here} {words[1]}",
                "and two words": " ".join([here, *words[:2]]),
                "and all three words": " ".join([here, *words]),
            }
            for name, query in queries.items():
                ids = {document["id"] for document in search(query)}
                hits.setdefault(name, []).append(bool(ids & set(hop["gold_ids"])))
            here = hop["answer"]
    return {name: Score.clustered(np.array(v, float), asked) for name, v in hits.items()}
