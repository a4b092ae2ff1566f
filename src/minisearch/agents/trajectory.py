"""One attempt as typed segments of tokens, and the masks that follow from them.

The ids and log-probabilities are those of sampling. Text is decoded to find the tags, and is never
tokenised again: a token belongs to the tag, or to the inside, that holds its first character, but
one that holds a part of a query is always the query's. White space belongs to what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minisearch.models.lm import LanguageModel

KINDS = ("prompt", "plan", "think", "search", "query", "documents", "refine", "answer", "invalid")
_OWN = ("plan", "think", "search", "refine", "answer")  # tags that the model may write
_BLOCK = re.compile(rf"<({'|'.join(_OWN)})>((?:(?!<\1>).)*?)</\1>", re.S)


@dataclass
class Segment:
    """Tokens of one kind and one author; what the environment wrote has no log-probabilities.

    `search` is the pair of tags, `query` what stands between them, every other block has its tags
    with it. `invalid` is whatever the model wrote outside a closed block, and a search that was not
    carried out.
    """

    kind: str  # of KINDS
    ids: list[int]
    log_probs: list[float] | None = None  # of sampled tokens, in nats, at temperature 1

    @property
    def sampled(self) -> bool:
        """Whether the model wrote it."""
        return self.log_probs is not None


@dataclass
class Trajectory:
    """One attempt at one prompt."""

    segments: list[Segment]
    queries: list[str] = field(default_factory=list)  # that were carried out
    retrieved: list[list[str]] = field(default_factory=list)  # ids of the passages of each search
    answer: str = ""
    text: str = ""  # everything after the prompt

    @property
    def ids(self) -> list[int]:
        """All tokens, the prompt's first."""
        return [token for segment in self.segments for token in segment.ids]

    @property
    def prompt_length(self) -> int:
        """Tokens before the model begins."""
        return len(self.segments[0].ids)

    def with_prompt(self, ids: Sequence[int]) -> Trajectory:
        """The same response to another prompt."""
        return replace(self, segments=[Segment("prompt", list(ids)), *self.segments[1:]])

    def prefix(self, search: int) -> list[int]:
        """All tokens up to and with the passages of search number `search`, counted from 0."""
        ids, seen = [], -1
        for segment in self.segments:
            ids += segment.ids
            seen += segment.kind == "documents"
            if seen == search:
                return ids
        raise IndexError(f"search {search} of an attempt with {seen + 1}")


@dataclass
class Batch:
    """Attempts as tensors, filled up on the right. Shape: every field (B, L).

    Of every token after the prompt exactly one of `policy` and `observation` is true.
    """

    ids: Tensor
    real: Tensor  # bool, not padding
    policy: Tensor  # bool, sampled by the model
    observation: Tensor  # bool, written by the environment after the prompt
    answer: Tensor  # bool, in an answer's block
    search: Tensor  # the number of the search whose query the token is in, else -1
    log_probs: Tensor  # as sampled; 0 elsewhere

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    def select(self, rows: Tensor) -> Batch:
        """Some rows, cut to the longest of them. Shape: rows (N,) -> fields (N, L')."""
        width = int(self.real[rows].sum(1).max())
        return Batch(**{name: value[rows, :width] for name, value in vars(self).items()})


def collate(rows: Sequence[Trajectory], pad_id: int) -> Batch:
    """Attempts side by side."""
    lengths = [sum(len(s.ids) for s in row.segments) for row in rows]
    shape = (len(rows), max(lengths))
    batch = Batch(
        ids=torch.full(shape, pad_id),
        real=torch.arange(shape[1]) < torch.tensor(lengths)[:, None],
        **{n: torch.zeros(shape, dtype=torch.bool) for n in ("policy", "observation", "answer")},
        search=torch.full(shape, -1),
        log_probs=torch.zeros(shape),
    )
    for n, row in enumerate(rows):
        place, searches = 0, 0
        for segment in row.segments:
            span = slice(place, place + len(segment.ids))
            place = span.stop
            batch.ids[n, span] = torch.tensor(segment.ids, dtype=torch.long)
            batch.answer[n, span] = segment.kind == "answer"
            if segment.log_probs is not None:
                batch.policy[n, span] = True
                batch.log_probs[n, span] = torch.tensor(segment.log_probs)
            elif segment.kind != "prompt":
                batch.observation[n, span] = True
            if segment.kind == "query":
                batch.search[n, span] = searches
                searches += 1
    return batch


def split_turn(
    lm: LanguageModel, ids: Sequence[int], log_probs: Sequence[float], opened: str = ""
) -> list[Segment]:
    """What the model wrote between two searches, as segments; together they are all its tokens.

    Args:
        opened: a tag that the environment opened before, such as `answer`.
    """
    head = f"<{opened}>" if opened else ""
    pieces = lm.pieces(ids)
    kinds = _kinds(head + "".join(pieces))
    segments: list[Segment] = []
    place = len(head)
    for token, value, piece in zip(ids, log_probs, pieces, strict=True):
        held = [kinds[place + n] for n, character in enumerate(piece) if not character.isspace()]
        held = held or kinds[place : place + 1] or kinds[-1:] or ["invalid"]
        kind = "query" if "query" in held else held[0]
        place += len(piece)
        if not segments or segments[-1].kind != kind:
            segments.append(Segment(kind, [], []))
        segments[-1].ids.append(token)
        assert segments[-1].log_probs is not None
        segments[-1].log_probs.append(value)
    return segments


def _kinds(text: str) -> list[str]:
    """The kind of every character. A block may not hold its own opening tag, nor be cut."""
    kinds = ["invalid"] * len(text)
    for block in _BLOCK.finditer(text):
        name, (start, stop) = block.group(1), block.span()
        kinds[start:stop] = [name] * (stop - start)
        if name == "search" and block.group(2).strip():
            inside = slice(*block.span(2))
            kinds[inside] = ["query"] * (inside.stop - inside.start)
        elif name == "search":
            kinds[start:stop] = ["invalid"] * (stop - start)
    for n in reversed(range(len(text) - 1)):
        if text[n].isspace():
            kinds[n] = kinds[n + 1]
    return kinds


def closed_blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of a turn, in order: the tag, and what stands inside without the space around."""
    return [(block.group(1), block.group(2).strip()) for block in _BLOCK.finditer(text)]


def not_carried_out(segments: Sequence[Segment]) -> list[Segment]:
    """The same attempt; a search that no passages came back for is `invalid`."""
    last = max((n for n, s in enumerate(segments) if s.kind == "documents"), default=0)
    return [
        Segment("invalid", s.ids, s.log_probs) if n > last and s.kind in ("search", "query") else s
        for n, s in enumerate(segments)
    ]
