"""A scripted searcher for the invented encyclopedia, of mixed quality on purpose.

It knows the chain of a question and the words of each relation, but often picks a word that finds
nothing, misreads a passage, drifts, or gives up. A model that learns from it can search, read and
answer, and has something left to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from minisearch.agents.protocol import Attempt, Piece, Protocol
from minisearch.data.qa import Document, Question, body_of
from minisearch.retriever import Retriever
from minisearch.worlds.wiki import Fact, Wiki
from minisearch.worlds.wiki_relations import BY_NOUN

UNKNOWN = "unknown"
Search = Callable[[str], list[Document]]


@dataclass(frozen=True)
class Habits:
    """Probabilities of what the demonstrator does, right or wrong."""

    keywords: tuple[float, ...] = (0.15, 0.60, 0.18, 0.07)  # of 0, 1, 2, 3 words of the relation
    drift: float = 0.08  # searches for the word of another relation
    misread: float = 0.05  # takes another name of the right kind from a passage that states it
    believe: float = 0.20  # takes a name of the right kind from passages that do not state it
    retry: float = 0.45  # searches again after finding nothing
    recall: float = 0.0  # remembers a fact it knows instead of searching
    searches: int = 5  # at most


@dataclass
class Demonstration:
    """One attempt: its pieces, every query, those that found the step's passage, the answer."""

    pieces: list[Piece] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    useful: list[str] = field(default_factory=list)
    answer: str = ""
    correct: bool = False

    @property
    def attempt(self) -> Attempt:
        """What a sibling may be told of it."""
        return Attempt(tuple(self.queries), self.correct)


def remembered(retriever: Retriever, topk: int) -> Search:
    """Search for one query at a time; each different one reaches the retriever once."""
    found: dict[str, list[Document]] = {}

    def search(query: str) -> list[Document]:
        if query not in found:
            found[query] = [hit["document"] for hit in retriever.batch_search([query], topk)[0]]
        return found[query]

    return search


class Demonstrator:
    """Attempts questions of one world.

    Args:
        world: its chains and words are the demonstrator's knowledge.
        search: a query to the passages found, best first.
        protocol: how passages are written.
    """

    def __init__(self, world: Wiki, search: Search, protocol: Protocol) -> None:
        self.world, self.search, self.protocol = world, search, protocol

    def attempt(
        self,
        question: Question,
        rng: np.random.Generator,
        habits: Habits,
        follow: Sequence[str] = (),
        avoid: frozenset[str] = frozenset(),
    ) -> Demonstration:
        """Search, read, answer.

        Args:
            follow: queries to use, in this order, before any of its own.
            avoid: queries not to use, if another one comes to mind.
        """
        run = _Run(self, rng, habits, list(follow), avoid)
        done, here = run.done, question["metadata"]["entity"]
        for noun in question["metadata"]["relations"]:
            run.notes.append(f"need {noun} of {here}")
            fact = self.world.fact_of[noun, here]
            if fact in self.world.known and rng.random() < habits.recall:
                here = fact.object
                run.notes.append(f"recall {here}")
                continue
            found = run.look_up(fact)
            if not found:
                here = run.guess(noun)
                break
            here = found
            run.notes.append(f"found {here}")
        done.pieces += [Piece("think", " ; ".join(run.notes)), Piece("answer", here)]
        done.answer, done.correct = here, here in question["golden_answers"]
        return done


@dataclass
class _Run:
    """One attempt under way."""

    by: Demonstrator
    rng: np.random.Generator
    habits: Habits
    planned: list[str]
    avoid: frozenset[str]
    done: Demonstration = field(default_factory=Demonstration)
    notes: list[str] = field(default_factory=list)  # of the next thought
    seen: str = ""  # the passages so far

    def look_up(self, fact: Fact) -> str:
        """Search for one fact until something is found or patience ends; "" for nothing."""
        while len(self.done.queries) < self.habits.searches:
            query = self.next_query(fact)
            documents = self.by.search(query)
            self.done.queries.append(query)
            self.done.pieces += [
                Piece("think", " ; ".join(self.notes)),
                Piece("search", query),
                Piece("information", self.by.protocol.render(documents)),
            ]
            self.notes.clear()
            found = self.read(fact, documents)
            if found:
                return found
            self.notes.append("missing")
            if not self.planned and self.rng.random() >= self.habits.retry:
                return ""
            if len(self.done.queries) < self.habits.searches:
                self.notes.append(f"need {fact.noun} of {fact.subject}")
        return ""

    def next_query(self, fact: Fact) -> str:
        """The next of the planned queries, or a new one."""
        query = self.planned.pop(0) if self.planned else self.invent(fact)
        for _ in range(3):
            if query not in self.avoid and query not in self.done.queries:
                break
            query = self.invent(fact)
        return query

    def invent(self, fact: Fact) -> str:
        """The entity and some words of its relation, or of a wrong one."""
        nouns = list(BY_NOUN)
        drifts = self.rng.random() < self.habits.drift
        noun = nouns[self.rng.integers(len(nouns))] if drifts else fact.noun
        count = self.rng.choice(len(self.habits.keywords), p=self.habits.keywords)
        return " ".join([fact.subject, *self.rng.permutation(BY_NOUN[noun].keywords)[:count]])

    def read(self, fact: Fact, documents: Sequence[Document]) -> str:
        """The name taken from the passages, right or wrong, or "" for none."""
        text = " ".join(map(body_of, documents))
        self.seen += text
        gold = set(self.by.world.gold_ids[fact])
        stated = any(document["id"] in gold for document in documents)
        if stated:
            self.done.useful.append(self.done.queries[-1])
        right = fact.object if stated else ""
        if self.rng.random() >= (self.habits.misread if stated else self.habits.believe):
            return right
        names = self.named(fact.noun, text) - {fact.subject, fact.object}
        return self.one_of(names) if names else right

    def guess(self, noun: str) -> str:
        """Some name of the right kind that came up, or the admission that none did."""
        names = self.named(noun, self.seen)
        return self.one_of(names) if names else UNKNOWN

    def named(self, noun: str, text: str) -> set[str]:
        """Names in a text of the kind that a relation leads to."""
        return {name for name in self.by.world.entities[BY_NOUN[noun].object] if name in text}

    def one_of(self, names: set[str]) -> str:
        return sorted(names)[self.rng.integers(len(names))]
