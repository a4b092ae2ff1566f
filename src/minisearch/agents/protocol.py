"""How a language model and a search engine talk: tags, prompts, and passages as text.

    <think> .. </think> <search> query </search> <information> passages </information> ..
    <answer> .. </answer>

The environment writes `<information>`, everything else is the model's. A prompt may hold privileged
blocks: a plan, sibling attempts with their outcome, or one whole attempt as a reference.

Source: tags and passages of Search-R1 (arXiv 2503.09516); attempts as in SD-Search (arXiv
2605.18299), the reference as in Search-E1 (arXiv 2605.22511), their wording ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from minisearch.data.qa import Document, Question, body_of, title_of

TAGS = ("think", "search", "information", "answer", "plan", "refine", "attempts", "reference")


class Piece(NamedTuple):
    """A tagged stretch of text; `kind` is one of `TAGS`."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"<{self.kind}> {self.text} </{self.kind}>"


class Attempt(NamedTuple):
    """What one attempt at a question searched for, and whether its answer was right."""

    queries: tuple[str, ...]
    correct: bool


@dataclass(frozen=True)
class Protocol:
    """What differs between the toy model and models that read English.

    Args:
        instructions: stands before the question in the user's turn.
        passage: one passage, with the fields n (from 1), title and text.
        separator: between passages.
    """

    instructions: str
    passage: str
    separator: str

    def render(self, documents: Sequence[Document]) -> str:
        """Passages as the model reads them, best first."""
        return self.separator.join(
            self.passage.format(n=n, title=title_of(document), text=body_of(document))
            for n, document in enumerate(documents, start=1)
        )

    def prompt(self, tokenizer: Any, question: str, blocks: Sequence[Piece] = ()) -> str:
        """The text up to where the model begins, through the tokenizer's own chat template."""
        parts = [self.instructions, question, *map(str, blocks)]
        message = {"role": "user", "content": " ".join(part for part in parts if part)}
        text: str = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )
        return text


TOY = Protocol(instructions="", passage="( {title} ) {text}", separator=" ")
ENGLISH = Protocol(
    instructions=(
        "Answer the question below. Think inside <think> and </think> first, and again whenever "
        "you have read something new. If a fact is missing, ask a search engine by writing "
        "<search> query </search>; its best passages come back between <information> and "
        "</information>. Search as often as you need. Once you know, write only the short answer "
        "inside <answer> and </answer>, for example <answer> Beijing </answer>. Question:"
    ),
    passage='Doc {n}(Title: "{title}") {text}',
    separator="\n",
)


def protocol_of(tokenizer: Any) -> Protocol:
    """`TOY` for a tokenizer whose tags are single tokens, else `ENGLISH`."""
    return TOY if f"<{TAGS[0]}>" in tokenizer.get_vocab() else ENGLISH


def plan_block(steps: Sequence[str]) -> Piece:
    """Sub-questions in their order; `#1` stands for the answer of the first."""
    return Piece("plan", " ; ".join(steps))


def plan_of(question: Question) -> list[str]:
    """The sub-questions of a question of the invented encyclopedia, in order."""
    entities = [question["metadata"]["entity"], "#1", "#2"]
    nouns = question["metadata"]["relations"]
    return [f"{noun} of {entity}" for noun, entity in zip(nouns, entities, strict=False)]


def attempts_block(attempts: Sequence[Attempt]) -> Piece:
    """The queries and the outcome of sibling attempts, and nothing else of them."""
    shown = [
        f"{'right' if a.correct else 'wrong'} : {' | '.join(a.queries)}".strip() for a in attempts
    ]
    return Piece("attempts", " ; ".join(shown))


def reference_block(attempt: str) -> Piece:
    """One whole attempt as it was written, documents and answer included."""
    return Piece("reference", " ".join(attempt.split()))
