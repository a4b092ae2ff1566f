"""Contrastive objectives, on one process or many."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def in_batch_softmax(
    query_vectors: Tensor,
    item_vectors: Tensor,
    extra_negatives: Tensor | None = None,
    temperature: float = 1.0,
    same_item: Tensor | None = None,
) -> Tensor:
    """Mean negative log-probability of each query's own item among all items of the batch.

    L = -1/B sum_i log( exp(s_ii) / sum_j exp(s_ij) ),  s_ij = q_i . d_j / temperature,
    where j runs over the B items of the batch and the N extra negatives.

    Args:
        query_vectors: one query a row.
        item_vectors: row i is the positive of query i and a negative of the others.
        extra_negatives: items that are negatives of every query.
        temperature: divides the inner products.
        same_item: True where column j holds the positive of query i once more; such a column is
            left out of row i's sum. `same_items` makes it.

    Shape: query_vectors (B, D), item_vectors (B, D), extra_negatives (N, D), same_item (B, B + N)
    -> scalar.

    Source: DPR, Karpukhin et al. (2020), sec. 3.2.
    """
    items = item_vectors if extra_negatives is None else torch.cat([item_vectors, extra_negatives])
    logits = query_vectors @ items.T / temperature  # (B, B + N)
    if same_item is not None:
        logits = logits.masked_fill(same_item, float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def same_items(item_ids: Tensor, extra_ids: Tensor | None = None) -> Tensor:
    """Which columns repeat a row's own item; the diagonal, the positive itself, is False.

    Shape: item_ids (B,), extra_ids (N,) -> (B, B + N) bool.
    """
    columns = item_ids if extra_ids is None else torch.cat([item_ids, extra_ids])
    same = item_ids[:, None] == columns[None, :]
    return same.fill_diagonal_(False)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in rank order, with gradients; the rows themselves on one process.

    A process that sees only its slice of the batch has fewer negatives, which is another objective.
    When each of W processes computes the whole loss on the gathered rows, the backward pass adds up
    W equal gradients for every row, and the average over processes that DDP takes divides by W
    again: the step is that of one process with the whole batch.

    Shape: (B, ...) on each of W processes, equal B -> (W * B, ...).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.size = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # every process holds a part of what each row is to be told
        start = dist.get_rank() * ctx.size
        return gradient[start : start + ctx.size]
