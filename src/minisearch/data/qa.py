"""Questions and passages in the format of FlashRAG, which Search-R1 shares.

Both are few enough to be lists of rows.

Source: FlashRAG (arXiv 2405.13576), Search-R1 (arXiv 2503.09516), the published files.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Document(TypedDict):
    """One passage; `contents` is its title in double quotes, a line break, and the text."""

    id: str
    contents: str


class Question(TypedDict):
    """One question; any of `golden_answers` is right, `metadata` differs between data sets.

    Where the passages that answer it are known, `metadata["hops"]` is a list of `Hop`.
    """

    id: str
    question: str
    golden_answers: list[str]
    metadata: dict[str, Any]


class Hop(TypedDict):
    """One step of a question: what it asks, its answer, and the ids of passages that state it."""

    question: str
    answer: str
    gold_ids: list[str]


def title_of(document: Document) -> str:
    """The title: the first line of the contents, without its quotes."""
    return document["contents"].partition("\n")[0].strip().strip('"')


def body_of(document: Document) -> str:
    """The contents without the title's line."""
    return document["contents"].partition("\n")[2].strip()
