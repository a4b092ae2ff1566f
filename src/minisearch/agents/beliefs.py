"""What a model would think of tokens after other tokens than those that came: beliefs in an answer.

A *branch* leaves an attempt at some token and goes on with tokens of its own: other passages, then
an answer. Every attempt is read once, and its keys and values serve all of its branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minisearch.agents.cache import RowCache
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel


@dataclass(frozen=True)
class Branch:
    """`ids` in place of what followed the first `start` tokens of row `row`."""

    row: int
    start: int
    ids: list[int]
    scored: int  # the last so many of `ids`, whose log-probability is asked for


@torch.inference_mode()
def branch_log_probs(
    lm: LanguageModel,
    rows: Sequence[list[int]],
    branches: Sequence[Branch],
    rows_at_once: int = 8,
    branches_at_once: int = 64,
) -> Tensor:
    """Mean log-probability, in nats a token, of the scored tokens of every branch.

    Shape: -> (len(branches),) float32.

    Raises:
        InputError: for a branch that leaves its row nowhere in it, or has nothing to score.
    """
    for number, branch in enumerate(branches):
        if not 0 < branch.start <= len(rows[branch.row]):
            found, expected = str(branch.start), f"1 to {len(rows[branch.row])}, the row's tokens"
            raise InputError(f"branch {number}", f"a start of {found}", expected, "cut it there.")
        if not 0 < branch.scored < len(branch.ids):
            found = f"{branch.scored} of {len(branch.ids)} tokens to score"
            raise InputError(f"branch {number}", found, "one or more, not all", "add tokens.")
    was_training = lm.model.training
    lm.model.eval()
    found_of = torch.zeros(len(branches))
    try:
        order = sorted(range(len(branches)), key=lambda n: len(rows[branches[n].row]))
        used = list(dict.fromkeys(branches[n].row for n in order))
        for first in range(0, len(used), rows_at_once):
            some = used[first : first + rows_at_once]
            numbers = [n for n in order if branches[n].row in some]
            numbers.sort(key=lambda n: len(branches[n].ids))
            trunk = _read(lm, [rows[row] for row in some])
            for start in range(0, len(numbers), branches_at_once):
                part = numbers[start : start + branches_at_once]
                values = _branch(lm, trunk, some, [branches[n] for n in part])
                found_of[part] = values.cpu()
    finally:
        lm.model.train(was_training)
    return found_of


def _read(lm: LanguageModel, rows: Sequence[list[int]]) -> RowCache:
    cache = RowCache(len(rows), lm.model.device)
    _forward(lm, cache, rows, keep=1)
    return cache


def _branch(
    lm: LanguageModel, trunk: RowCache, rows: Sequence[int], branches: Sequence[Branch]
) -> Tensor:
    """Shape: -> (B,)."""
    device = lm.model.device
    cache = trunk.branched(
        torch.tensor([rows.index(branch.row) for branch in branches], device=device),
        torch.tensor([branch.start for branch in branches], device=device),
    )
    most = max(branch.scored for branch in branches)
    logits = _forward(lm, cache, [branch.ids for branch in branches], keep=most + 1)
    scores = logits[:, :-1].float().log_softmax(-1)  # (B, most, V), of the last `most` tokens
    padded = [[lm.pad_id] * (most - len(b.ids)) + b.ids[-most:] for b in branches]
    ids = torch.tensor(padded, device=device)
    place = torch.arange(most, 0, -1, device=device)
    counts = torch.tensor([branch.scored for branch in branches], device=device)
    mask = place <= counts[:, None]
    return (scores.gather(2, ids[..., None])[..., 0] * mask).sum(1) / counts


def _forward(lm: LanguageModel, cache: RowCache, tokens: Sequence[list[int]], keep: int) -> Tensor:
    """Logits of the last `keep` columns; rows are filled up on the left. Shape: -> (B, keep, V)."""
    width = max(map(len, tokens))
    device = lm.model.device
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + row for row in tokens])
    counts = torch.tensor([len(row) for row in tokens])
    places, mask = cache.advance(counts.to(device), width)
    if lm.model.config._attn_implementation == "eager":  # adds the mask
        mask = torch.where(mask, 0.0, torch.finfo(lm.model.dtype).min)
    output: Any = lm.model(
        input_ids=ids.to(device), attention_mask=mask, position_ids=places,
        past_key_values=cache, use_cache=True, logits_to_keep=keep,
    )  # fmt: skip
    logits: Tensor = output.logits
    return logits
