"""What a model thinks of tokens that are already there.

Right-padded rows need no mask: no earlier token looks at the padding behind it. The same response
under another prompt is `Trajectory.with_prompt`; since masks follow from segments, they select the
same tokens in the same order under both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisearch.agents.trajectory import Batch, Trajectory, collate
from minisearch.models.lm import LanguageModel

PASS_TOKENS = 1024  # padded tokens in one pass: what stays in the cache of a CPU core


def logits_before(model: Any, ids: Tensor, where: Tensor) -> Tensor:
    """The logits from which each marked token was, or would be, drawn.

    Shape: ids and where (B, L), N of them true, none in the first column -> (N, V), row by row.
    """
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden[:, :-1][where[:, 1:]])
    return logits.float()


def log_prob_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token a row, in nats. Shape: (N, V), (N,) -> (N,)."""
    return -F.cross_entropy(logits, tokens, reduction="none")


@torch.no_grad()
def token_log_probs(model: Any, batch: Batch, where: Tensor) -> Tensor:
    """Log-probabilities of the marked tokens, 0 elsewhere. Shape: where (B, L) -> (B, L)."""
    found = torch.zeros(where.shape, device=batch.ids.device)
    for rows in passes(batch.real.sum(1)):
        part = batch.select(rows)
        width = part.ids.shape[1]
        marked = where[rows, :width]
        values = log_prob_of(logits_before(model, part.ids, marked), part.ids[marked])
        found[rows, :width] = found[rows, :width].masked_scatter(marked, values)
    return found


@torch.no_grad()
def response_logits(
    lm: LanguageModel, attempts: Sequence[Trajectory], prompts: Sequence[str] | None = None
) -> Tensor:
    """Logits of everything the model wrote, under the attempts' own prompts or other ones.

    Shape: -> (N, V), N the sampled tokens of all attempts, in their order.
    """
    if prompts is not None:
        pairs = zip(attempts, prompts, strict=True)
        attempts = [attempt.with_prompt(lm.encode(prompt)) for attempt, prompt in pairs]
    batch = collate(attempts, lm.pad_id).to(lm.model.device)
    return logits_before(lm.model, batch.ids, batch.policy)


def passes(lengths: Tensor, tokens: int = PASS_TOKENS) -> Iterator[Tensor]:
    """Row numbers, shortest rows first, in parts of at most `tokens` tokens when filled up.

    A longer row is a part of its own. Shape: lengths (B,) -> several (N,).
    """
    order = lengths.argsort(stable=True)
    ordered = lengths[order].tolist()
    start = 0
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or ordered[stop] * (stop + 1 - start) > tokens:
            yield order[start:stop]
            start = stop
