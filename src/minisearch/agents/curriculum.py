"""What the toy language models read before anything else: rows of text, and which of it to predict.

A row is a list of parts (text, learn): tokens of a part with `learn` off are context only, as what
the environment writes is. Kinds of rows, and what each is for:

* documents: passages, predicted word by word; facts of knowing worlds enter the memory here
* recitals: questions answered from memory, about facts the model has read
* lookups: passages, then questions about them: reading and copying
* trajectories: think, search, read, answer, as the demonstrator does it, plain or with a plan,
  sibling attempts or a whole reference attempt in the prompt
* beliefs: a trajectory cut after some passages, then the true answer: what is it likely to be,
  given that much evidence?

Plans stand in prompts only, so that no row teaches the model to write one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from minisearch.agents.demonstrator import Demonstration, Demonstrator, Habits, Search
from minisearch.agents.protocol import (
    TOY,
    Piece,
    attempts_block,
    plan_block,
    plan_of,
    reference_block,
)
from minisearch.data.qa import Question
from minisearch.worlds.wiki import Fact, Wiki
from minisearch.worlds.wiki_relations import ask

Row = list[tuple[str, bool]]
END = "<end>"


@dataclass(frozen=True)
class Mixture:
    """Rows of each kind for one world, and how trajectories are prompted."""

    trajectories: int = 120
    lookups: int = 40
    beliefs: int = 40
    documents: int = 12
    hops: tuple[float, ...] = (0.2, 0.4, 0.4)  # shares of 1, 2 and 3 hops
    attempts: float = 0.25  # of the trajectories: siblings' queries and outcomes in the prompt
    reference: float = 0.10  # one whole sibling in the prompt
    plan: float = 0.08  # the sub-questions in the prompt
    unrelated: float = 0.25  # of the beliefs: passages that have nothing to do with the question


class Curriculum:
    """Rows about one world.

    Args:
        world: its passages and questions.
        search: a query to passages, best first, in this world.
        tokenizer: for its chat template.
        rng: of every choice.
    """

    def __init__(
        self, world: Wiki, search: Search, tokenizer: Any, rng: np.random.Generator
    ) -> None:
        self.world, self.search, self.tokenizer, self.rng = world, search, tokenizer, rng
        self.demonstrator = Demonstrator(world, search, TOY)

    def rows(self, mixture: Mixture, habits: Habits) -> Iterator[Row]:
        """All rows of one mixture, in no order that matters."""
        count = mixture.trajectories + mixture.beliefs
        lengths = self.rng.choice(len(mixture.hops), count, p=mixture.hops) + 1
        questions = [self._question(int(length)) for length in lengths]
        for question in questions[: mixture.trajectories]:
            yield self.trajectory(question, mixture, habits)
        for question in questions[mixture.trajectories :]:
            yield self.belief(question, mixture, habits)
        for _ in range(mixture.lookups):
            yield self.lookup()
        for _ in range(mixture.documents):
            yield self.documents()

    def _question(self, hops: int) -> Question:
        facts: list[Fact] = []
        while not facts:
            facts = self.world.random_chain(hops, self.rng)
        return self.world.question(facts, "0", int(self.rng.integers(3)))

    def prompt(self, question: str, blocks: Sequence[Piece] = ()) -> str:
        """The user's turn as the tokenizer's template writes it."""
        return TOY.prompt(self.tokenizer, question, blocks)

    def trajectory(self, question: Question, mixture: Mixture, habits: Habits) -> Row:
        """One attempt, under a plain prompt or one with a privileged block."""
        draw, blocks = self.rng.random(), list[Piece]()
        follow, avoid = list[str](), frozenset[str]()
        if draw < mixture.attempts:
            blocks, follow, avoid = self._with_attempts(question, habits)
        elif draw < mixture.attempts + mixture.reference:
            blocks, follow = self._with_reference(question, habits)
        elif draw < mixture.attempts + mixture.reference + mixture.plan:
            blocks = [plan_block(plan_of(question))]
        done = self.demonstrator.attempt(question, self.rng, habits, follow, avoid)
        return [(self.prompt(question["question"], blocks), False), *learned(done.pieces)]

    def _siblings(self, question: Question, habits: Habits, tries: int) -> list[Demonstration]:
        """Attempts until one is right, or `tries` are made."""
        made: list[Demonstration] = []
        while len(made) < tries and not any(d.correct for d in made):
            made.append(self.demonstrator.attempt(question, self.rng, habits))
        return made

    def _with_attempts(
        self, question: Question, habits: Habits
    ) -> tuple[list[Piece], list[str], frozenset[str]]:
        """Follow a sibling that was right; else shun the last query of those that were wrong."""
        made = self._siblings(question, habits, tries=6)
        right = [d for d in made if d.correct]
        wrong = [d for d in made if not d.correct][: int(self.rng.integers(0, 4))]
        shown = right + wrong if right else wrong or made[:1]
        order = self.rng.permutation(len(shown))
        block = attempts_block([shown[i].attempt for i in order])
        if right:
            return [block], right[0].useful, frozenset()
        return [block], [], frozenset(d.queries[-1] for d in shown if d.queries)

    def _with_reference(self, question: Question, habits: Habits) -> tuple[list[Piece], list[str]]:
        made = self._siblings(question, habits, tries=6)[-1]
        return [reference_block(" ".join(map(str, made.pieces)))], made.useful

    def belief(self, question: Question, mixture: Mixture, habits: Habits) -> Row:
        """What the answer is likely to be after some passages, or after unrelated ones."""
        row: Row = [(self.prompt(question["question"]), False)]
        pieces: list[Piece] = []
        if self.rng.random() < 0.2:  # the question itself as the only query
            query = question["question"]
            found = TOY.render(self.search(query))
            pieces = [Piece("search", query), Piece("information", found)]
        else:
            done = self.demonstrator.attempt(question, self.rng, habits)
            cuts = [n for n, piece in enumerate(done.pieces) if piece.kind == "information"]
            if cuts:
                pieces = done.pieces[: cuts[self.rng.integers(len(cuts))] + 1]
        if pieces and self.rng.random() < mixture.unrelated:
            rows = self.rng.choice(len(self.world.corpus), 2, replace=False)
            others = [self.world.corpus[i] for i in rows]
            pieces[-1] = Piece("information", TOY.render(others))
        row += [(str(piece), False) for piece in pieces]
        return row + given_answer(question["golden_answers"][0])

    def lookup(self) -> Row:
        """Passages, then questions about facts they state."""
        count = int(self.rng.integers(3, 9))
        facts = [self.world.facts[i] for i in self.rng.choice(len(self.world.facts), count, False)]
        shown = [
            f"( {f.object if inverse else f.subject} ) {f.sentence(int(wording), bool(inverse))}"
            for f, wording, inverse in zip(
                facts,
                self.rng.integers(0, 3, count),
                self.rng.random(count) < self.world.config.inverse,
                strict=True,
            )
        ]
        row: Row = [(str(Piece("information", " ".join(shown))), False)]
        for i in self.rng.permutation(count)[:5]:
            row += recital(self.prompt(ask([facts[i].noun], facts[i].subject, 0)), facts[i].object)
        return row

    def documents(self) -> Row:
        """Eight passages of the world."""
        rows = self.rng.choice(len(self.world.corpus), 8, replace=False)
        return [(TOY.render([self.world.corpus[i] for i in rows]), True), (END, True)]

    def memory(self) -> Row:
        """Eight known facts as passages, in any wording."""
        chosen = [self._known[i] for i in self.rng.choice(len(self._known), 8, replace=False)]
        text = " ".join(f"( {f.subject} ) {f.sentence(int(self.rng.integers(3)))}" for f in chosen)
        return [(text, True), (END, True)]

    def recitals(self, multi_hop: bool) -> Row:
        """Six questions about known facts, or chains of them, answered from memory."""
        row: Row = []
        for _ in range(6):
            facts = self._known_chain(int(self.rng.choice([1, 1, 2, 3])) if multi_hop else 1)
            question = self.world.question(facts, "0", int(self.rng.integers(3)))
            row += recital(self.prompt(question["question"]), facts[-1].object)
        return row

    def _known_chain(self, length: int) -> list[Fact]:
        """Known facts in a chain, shorter where no such chain is found soon."""
        for _ in range(20 if length > 1 else 0):
            facts = self.world.random_chain(length, self.rng)
            if facts and set(facts) <= self.world.known:
                return facts
        return [self._known[self.rng.integers(len(self._known))]]

    @cached_property
    def _known(self) -> list[Fact]:
        return sorted(self.world.known, key=lambda fact: (fact.noun, fact.subject))


def recital(prompt: str, answer: str) -> Row:
    """A question and its answer at once, nothing in between."""
    return [(prompt, False), *given_answer(answer)]


def given_answer(answer: str) -> Row:
    """An answer whose opening tag is given: when to answer is for trajectories alone to teach."""
    return [("<answer>", False), (f"{answer} </answer> {END}", True)]


def learned(pieces: Sequence[Piece]) -> Row:
    """The pieces of one turn: everything but the passages is to be predicted, and the end."""
    return [*((str(p), p.kind != "information") for p in pieces), (END, True)]


def remembering(habits: Habits) -> Habits:
    """The same habits of somebody who uses what they know."""
    return replace(habits, recall=0.7)
