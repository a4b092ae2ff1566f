"""Letting a model think, search and answer: batched generation with a search engine in the loop.

    prompts -> keys and values, each prompt once
    for turn in range(searches + 1):
        sample until every row has closed a search or an answer   # rows that are done step aside
        search for all that asked; append the passages            # nothing is read twice
    open the answer's tag for rows that still ask

Every row draws from its own stream of random numbers: an attempt does not depend on the rows beside
it, the size of the batch or the number of processes, rounding aside.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minisearch.agents.cache import RowCache
from minisearch.agents.protocol import Piece, Protocol
from minisearch.agents.trajectory import (
    Segment,
    Trajectory,
    closed_blocks,
    not_carried_out,
    split_turn,
)
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel
from minisearch.retriever import Hit, Retriever, check_hits

_STOPS = ("</search>", "</answer>")
_WINDOW = max(map(len, _STOPS))  # tokens that hold a closing tag, even at one character each


class NotFiniteError(FloatingPointError):
    """The model gave something that is no number.

    `rows` are the attempts as far as they came, in the order of their prompts.
    """

    def __init__(self, rows: Sequence[Trajectory]) -> None:
        super().__init__("the model's logits are no numbers: its weights have gone astray")
        self.rows = list(rows)


@dataclass(frozen=True)
class RolloutConfig:
    """How far an attempt may go."""

    temperature: float = 1.0  # 0 takes the likeliest token
    searches: int = 5  # at most; who asks for one more has the answer's tag opened instead
    answer_at_once: bool = False  # the answer's tag is opened after the prompt
    topk: int = 2  # passages a search
    turn_tokens: int = 64  # at most, between two searches
    block_tokens: int = 512  # of one block of passages; what is beyond is cut off
    tokens: int = 4096  # of the whole row; no more than the model has positions for
    batch_size: int = 64  # rows at a time


def rollout(
    lm: LanguageModel,
    retriever: Retriever,
    protocol: Protocol,
    prompts: Sequence[str],
    config: RolloutConfig,
    seed: int | Sequence[Sequence[int]] = 0,
    seconds: defaultdict[str, float] | None = None,
) -> list[Trajectory]:
    """One attempt for each prompt, in the order of the prompts.

    A turn without a closed tag, or with an empty query, ends the attempt with an empty answer. A
    row that has no room for another turn is treated as one that has used up its searches.

    Args:
        seed: one number, or one entry a prompt of non-negative numbers.
        seconds: the wall time of "generate" and "retrieve" is added here.

    Raises:
        InputError: for a prompt that leaves no room, a retriever that breaks its protocol, or a
            tokenizer that cannot write the tags.
        NotFiniteError: where the model's output is no number.
    """
    streams = _streams(seed, len(prompts))
    _check_tags(lm)
    spent = defaultdict(float) if seconds is None else seconds
    was_training = lm.model.training
    lm.model.eval()
    done: list[Trajectory] = []
    try:
        for first in range(0, len(prompts), config.batch_size):
            part = slice(first, first + config.batch_size)
            engine = _Engine(lm, retriever, protocol, config, spent)
            done += engine.run(prompts[part], streams[part])
    except NotFiniteError as error:
        error.rows = done + error.rows
        raise
    finally:
        lm.model.train(was_training)
    return done


def _streams(seed: int | Sequence[Sequence[int]], count: int) -> list[np.random.Generator]:
    entries = [(seed, n) for n in range(count)] if isinstance(seed, int) else list(seed)
    if len(entries) != count:
        raise InputError("seed", f"{len(entries)} entries", f"one a prompt, {count}", "add some.")
    return [np.random.default_rng(list(entry)) for entry in entries]


def _check_tags(lm: LanguageModel) -> None:
    tags = " ".join(f"<{tag}> </{tag}>" for tag in ("search", "information", "answer"))
    found = lm.decode(lm.encode(tags))
    if "".join(found.split()) != "".join(tags.split()):
        remedy = "load the tokenizer that was saved with the model, or give it the tags."
        raise InputError("tokenizer", f"{tags!r} as {found!r}", "tags that can be read", remedy)


def _positions(lm: LanguageModel) -> int:
    return int(getattr(lm.model.config, "max_position_embeddings", None) or 1 << 30)


@dataclass
class _Row:
    """An attempt under way."""

    done: Trajectory
    stream: np.random.Generator
    waiting: list[int]  # tokens that the model has not read yet
    length: int  # of all tokens, read or not
    opened: str = ""  # a tag that stands open before the turn
    query: str = ""  # asked for and not answered
    ids: list[int] = field(default_factory=list)  # of the turn, as are the next two
    log_probs: list[float] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)

    def give(self, kind: str, ids: list[int]) -> None:
        """Append what the environment writes."""
        self.done.segments.append(Segment(kind, ids))
        self.waiting = self.waiting + ids
        self.length += len(ids)


class _Engine:
    """Attempts at one batch of prompts."""

    def __init__(
        self,
        lm: LanguageModel,
        retriever: Retriever,
        protocol: Protocol,
        config: RolloutConfig,
        seconds: defaultdict[str, float],
    ) -> None:
        self.lm, self.retriever, self.protocol = lm, retriever, protocol
        self.config, self.seconds = config, seconds
        self.limit = min(config.tokens, _positions(lm))
        self.answer_tag = lm.encode("<answer>")
        self.pad_id, self.end_ids = lm.pad_id, lm.end_ids  # a tokenizer takes its time to tell
        self.cache: RowCache | None = None
        self.rows: list[_Row] = []  # as the prompts
        self.order: list[_Row] = []  # as in the cache

    def run(
        self, prompts: Sequence[str], streams: Sequence[np.random.Generator]
    ) -> list[Trajectory]:
        """One attempt a prompt."""
        pairs = zip(prompts, streams, strict=True)
        self.rows = rows = live = [self._start(prompt, stream) for prompt, stream in pairs]
        self.order = list(rows)
        if self.config.answer_at_once:
            self._open_answer(rows)
        else:
            for _ in range(self.config.searches):
                self._turn(live)
                live = self._search(live)
            self._turn(live)
            asking = [row for row in rows if row.query]
            self._open_answer([row for row in asking if self._room(row) > len(self.answer_tag)])
        for row in rows:
            row.done.segments = not_carried_out(row.done.segments)
            row.done.text = self.lm.decode(row.done.ids[row.done.prompt_length :])
        return [row.done for row in rows]

    def _start(self, prompt: str, stream: np.random.Generator) -> _Row:
        ids = self.lm.encode(prompt)
        if not 0 < len(ids) < self.limit - len(self.answer_tag):
            expected = f"1 to {self.limit - len(self.answer_tag) - 1}, as a row holds {self.limit}"
            remedy = "shorten it, or raise `tokens` where the model has the positions."
            raise InputError(f"prompt {prompt[:40]!r}", f"{len(ids)} tokens", expected, remedy)
        return _Row(Trajectory([Segment("prompt", ids)]), stream, ids, len(ids))

    def _room(self, row: _Row) -> int:
        return self.limit - row.length

    def _open_answer(self, rows: list[_Row]) -> None:
        for row in rows:
            row.opened = "answer"
            row.give("answer", self.answer_tag)
        self._turn(rows)

    def _turn(self, rows: list[_Row]) -> None:
        """Sample for each row up to a closing tag of `_STOPS`, an end token or a limit."""
        if not rows:
            return
        began = time.perf_counter()
        for row in rows:
            row.ids, row.log_probs, row.query = [], [], ""
            row.draws = row.stream.random(self.config.turn_tokens).tolist()
        live, logits = self._read(rows)
        while live:
            self._write(live, logits)
            live = [row for row in live if not self._stopped(row)]
            if live:
                live, logits = self._read(live)
        for row in rows:
            self._end_turn(row)
        self.seconds["generate"] += time.perf_counter() - began

    def _end_turn(self, row: _Row) -> None:
        segments = split_turn(self.lm, row.ids, row.log_probs, row.opened)
        row.done.segments += segments
        row.length += len(row.ids)
        head = f"<{row.opened}>" if row.opened else ""
        closed = closed_blocks(head + self.lm.decode(row.ids))
        name, inside = closed[-1] if closed else ("", "")
        row.query = inside if name == "search" else ""
        row.done.answer = inside if name == "answer" else ""
        row.ids, row.opened = [], ""

    @torch.inference_mode()
    def _read(self, rows: list[_Row]) -> tuple[list[_Row], Tensor]:
        """Let the model read what rows wait with; the rows in the cache's order, next logits.

        Shape: -> B rows, (B, V).
        """
        if self.cache is None:
            return rows, self._read_prompts(rows)
        self._arrange(rows)
        rows = self.order[: len(rows)]
        return rows, self._forward(self.cache, [row.waiting for row in rows], rows)

    def _read_prompts(self, rows: list[_Row]) -> Tensor:
        """Read each different prompt once, then give every row its own copy."""
        different = {tuple(row.waiting): n for n, row in reversed(list(enumerate(rows)))}
        number = {waiting: n for n, waiting in enumerate(different)}
        sources = torch.tensor([number[tuple(row.waiting)] for row in rows])
        sources = sources.to(self.lm.model.device)
        self.cache = RowCache(len(different), self.lm.model.device)
        logits = self._forward(self.cache, list(map(list, different)), rows)
        self.cache.spread(sources)
        return logits[sources]

    def _forward(self, cache: RowCache, tokens: list[list[int]], rows: list[_Row]) -> Tensor:
        width = max(map(len, tokens))
        ids = torch.tensor([[self.pad_id] * (width - len(t)) + t for t in tokens])
        counts = torch.tensor([len(t) for t in tokens])
        device = self.lm.model.device
        places, mask = cache.advance(counts.to(device), width)
        if self.lm.model.config._attn_implementation == "eager":  # adds the mask
            mask = torch.where(mask, 0.0, torch.finfo(self.lm.model.dtype).min)
        output = self.lm.model(
            input_ids=ids.to(device), attention_mask=mask, position_ids=places,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        for row in rows:
            row.waiting = []
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _arrange(self, rows: list[_Row]) -> None:
        """Bring rows to the front of the cache."""
        assert self.cache is not None
        chosen, count = set(map(id, rows)), len(rows)
        free = [n for n in range(count) if id(self.order[n]) not in chosen]
        late = [n for n in range(count, len(self.order)) if id(self.order[n]) in chosen]
        self.cache.exchange(free, late)
        for a, b in zip(free, late, strict=True):
            self.order[a], self.order[b] = self.order[b], self.order[a]
        self.cache.active = count

    def _write(self, rows: list[_Row], logits: Tensor) -> None:
        """Add one token to each row. Shape: logits (B, V)."""
        drawn = [row.draws[len(row.ids)] for row in rows]
        draws = torch.tensor(drawn, dtype=torch.double, device=logits.device)  # float would reach 1
        tokens, log_probs = sample(logits, self.config.temperature, draws)
        for row, token, value in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if not math.isfinite(value):
                for unfinished in [row for row in self.rows if row.ids]:
                    self._end_turn(unfinished)
                raise NotFiniteError([row.done for row in self.rows])
            row.ids.append(token)
            row.log_probs.append(value)
            row.waiting = [token]

    def _stopped(self, row: _Row) -> bool:
        full = len(row.ids) == self.config.turn_tokens or len(row.ids) == self._room(row)
        if full or row.ids[-1] in self.end_ids:
            return True
        if ">" not in self.lm.pieces(row.ids[-1:])[0]:
            return False
        text = "".join(self.lm.pieces(row.ids[-_WINDOW:]))
        return any(stop in text for stop in _STOPS)

    def _search(self, rows: list[_Row]) -> list[_Row]:
        """Answer the searches of this turn; the rows that go on."""
        asked = [row for row in rows if row.query]
        if not asked:
            return []
        began = time.perf_counter()
        found = self.retriever.batch_search([row.query for row in asked], self.config.topk)
        check_hits(found, len(asked))
        self.seconds["retrieve"] += time.perf_counter() - began
        going = []
        for row, hits in zip(asked, found, strict=True):
            block = self._block(hits)
            if self._room(row) - len(block) <= len(self.answer_tag):
                continue
            row.done.queries.append(row.query)
            row.done.retrieved.append([hit["document"]["id"] for hit in hits])
            row.give("documents", block)
            row.query = ""
            going.append(row)
        return going

    def _block(self, hits: Sequence[Hit]) -> list[int]:
        """The passages as tokens, the closing tag in any case."""
        text = self.protocol.render([hit["document"] for hit in hits])
        ids = self.lm.encode(str(Piece("information", text)))
        if len(ids) <= self.config.block_tokens:
            return ids
        close = self.lm.encode("</information>")
        return [*ids[: max(1, self.config.block_tokens - len(close))], *close]


def sample(logits: Tensor, temperature: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability at temperature 1.

    The token is where the cumulated probabilities pass the row's draw, a number from 0 to 1.

    Shape: (B, V), (B,) -> (B,), (B,).
    """
    log_probs = logits.log_softmax(-1)
    if temperature == 0:
        token = log_probs.argmax(-1)
    else:
        reached = (logits.double() / temperature).softmax(-1).cumsum(-1)  # (B, V)
        point = draws.double()[:, None] * reached[:, -1:]
        token = torch.searchsorted(reached, point, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return token, log_probs.gather(1, token[:, None])[:, 0]
