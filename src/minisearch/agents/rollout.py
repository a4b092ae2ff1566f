"""Letting a model think, search and answer: batched generation with a search engine in the loop.

Every row keeps its token ids and log-probabilities as sampled; nothing is tokenised twice.
Within a turn the keys and values of past tokens are cached, and rows that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from minisearch.agents.protocol import Piece, Protocol
from minisearch.agents.rewards import last_tagged
from minisearch.retriever import Retriever

if TYPE_CHECKING:
    from minisearch.models.lm import LanguageModel

_STOPS = ("</search>", "</answer>")
_WINDOW = 8  # tokens that hold a closing tag, however it is cut into tokens


@dataclass
class Segment:
    """Tokens of one origin: `prompt`, `policy` (sampled), `information` or `forced` (given)."""

    kind: str
    ids: list[int]
    log_probs: list[float] = field(default_factory=list)  # of sampled tokens, in nats


@dataclass
class Trajectory:
    """One attempt at one prompt."""

    segments: list[Segment]
    queries: list[str] = field(default_factory=list)
    retrieved: list[list[str]] = field(default_factory=list)  # ids of the passages of each search
    answer: str = ""
    text: str = ""  # everything after the prompt

    @property
    def ids(self) -> list[int]:
        """All tokens, the prompt's first."""
        return [token for segment in self.segments for token in segment.ids]


@dataclass(frozen=True)
class RolloutConfig:
    """How far an attempt may go."""

    temperature: float = 1.0  # 0 takes the likeliest token
    searches: int = 5  # at most; who asks for one more has the answer's tag opened instead
    answer_at_once: bool = False  # the answer's tag is opened after the prompt
    topk: int = 2  # passages a search
    turn_tokens: int = 64  # at most, between two searches
    batch_size: int = 64


def rollout(
    lm: LanguageModel,
    retriever: Retriever,
    protocol: Protocol,
    prompts: Sequence[str],
    config: RolloutConfig,
    seed: int = 0,
) -> list[Trajectory]:
    """One attempt for each prompt, in the order of the prompts.

    A turn without a closed tag, or with an empty query, ends the attempt with an empty answer.
    """
    generator = torch.Generator(device=lm.model.device).manual_seed(seed)
    was_training = lm.model.training
    lm.model.eval()
    done: list[Trajectory] = []
    for first in range(0, len(prompts), config.batch_size):
        batch = prompts[first : first + config.batch_size]
        rows = [Trajectory([Segment("prompt", lm.encode(prompt))]) for prompt in batch]
        live = [] if config.answer_at_once else rows
        for _ in range(config.searches):
            _generate(lm, live, config, generator)
            live = _observe(lm, retriever, protocol, live, config)
        _generate(lm, live, config, generator)
        unanswered = rows if config.answer_at_once else [r for r in live if _query(lm, r)]
        for row in unanswered:
            row.segments.append(Segment("forced", lm.encode("<answer>")))
        _generate(lm, unanswered, config, generator)
        done += rows
    for row in done:
        row.text = lm.decode([i for s in row.segments[1:] for i in s.ids])
        row.answer = last_tagged(row.text, "answer")
    lm.model.train(was_training)
    return done


def _query(lm: LanguageModel, row: Trajectory) -> str:
    """What the last turn asks the search engine; "" where it asks nothing."""
    text = lm.decode(row.segments[-1].ids).rstrip()
    return last_tagged(text, "search") if text.endswith("</search>") else ""


def _observe(
    lm: LanguageModel,
    retriever: Retriever,
    protocol: Protocol,
    rows: list[Trajectory],
    config: RolloutConfig,
) -> list[Trajectory]:
    """Answer the searches of this turn; the rows that go on."""
    asked = []
    for row in rows:
        query = _query(lm, row)
        if query:
            row.queries.append(query)
            asked.append(row)
    found = retriever.batch_search([row.queries[-1] for row in asked], config.topk) if asked else []
    for row, hits in zip(asked, found, strict=True):
        documents = [hit["document"] for hit in hits]
        row.retrieved.append([document["id"] for document in documents])
        text = str(Piece("information", protocol.render(documents)))
        row.segments.append(Segment("information", lm.encode(text)))
    return asked


@torch.inference_mode()
def _generate(
    lm: LanguageModel, rows: list[Trajectory], config: RolloutConfig, generator: torch.Generator
) -> None:
    """Add one sampled segment to each row, up to a closing tag of `_STOPS` or the limit."""
    if not rows:
        return
    ids, mask = _left_padded([row.ids for row in rows], lm.pad_id, lm.model.device)
    position = mask.cumsum(1) - 1
    cache, live = DynamicCache(config=lm.model.config), list(rows)
    for row in rows:
        row.segments.append(Segment("policy", []))
    inputs, places = ids, position.clamp(min=0)
    for _ in range(config.turn_tokens):
        output = lm.model(
            input_ids=inputs, attention_mask=mask, position_ids=places, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        token, log_prob = _sample(output.logits[:, -1].float(), config.temperature, generator)
        for row, t, value in zip(live, token.tolist(), log_prob.tolist(), strict=True):
            row.segments[-1].ids.append(t)
            row.segments[-1].log_probs.append(value)
        kept = [n for n, row in enumerate(live) if not _stopped(lm, row.segments[-1].ids)]
        if not kept:
            return
        places = places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        inputs = token[:, None]
        if len(kept) < len(live):
            index = torch.tensor(kept, device=token.device)
            live = [live[n] for n in kept]
            cache.batch_select_indices(index)
            inputs, mask, places = inputs[index], mask[index], places[index]


def _sample(
    logits: Tensor, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability at temperature 1. Shape: (B, V) -> (B,), (B,)."""
    log_probs = logits.log_softmax(-1)
    if temperature == 0:
        token = log_probs.argmax(-1)
    else:
        shares = (logits / temperature).softmax(-1)
        token = torch.multinomial(shares, 1, generator=generator)[:, 0]
    return token, log_probs.gather(1, token[:, None])[:, 0]


def _stopped(lm: LanguageModel, ids: list[int]) -> bool:
    if ids[-1] in lm.end_ids:
        return True
    return lm.decode(ids[-_WINDOW:]).rstrip().endswith(_STOPS)


def _left_padded(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids filled up on the left, and 1 where they are real. Shape: -> (B, L), (B, L)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, width - len(row) :] = torch.tensor(row)
        mask[n, width - len(row) :] = 1
    return ids.to(device), mask.to(device)
