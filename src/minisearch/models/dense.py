"""Training a dual encoder on clicks."""

from __future__ import annotations

import torch
from torch import Tensor

from minisearch.lit import Module
from minisearch.models.towers import DualEncoder
from minisearch.objectives import gather_rows, in_batch_softmax, same_items


class DenseRetriever(Module):
    """A dual encoder and its softmax over the other items of a batch and random ones.

    Batches hold `query` ids, and `row` and `negative`: rows of the titles that were clicked, and
    that were drawn at random.

    Args:
        encoder: towers for queries and items.
        titles: the word ids of every item.
        temperature: divides the inner products.

    Shape: titles (N, L) int64.

    Source: DPR, Karpukhin et al. (2020), sec. 3.2.
    """

    def __init__(self, encoder: DualEncoder, titles: Tensor, temperature: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.temperature, self.in_batch = encoder, temperature, True
        self.titles: Tensor
        self.register_buffer("titles", titles, persistent=False)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the clicked title. Shape: a scalar."""
        item_tower = self.encoder.item_tower
        queries = gather_rows(self.encoder.query_tower(batch["query"]))  # (B, D)
        items = gather_rows(item_tower(self.titles[batch["row"]]))  # (B, D)
        negatives = gather_rows(item_tower(self.titles[batch["negative"]]))  # (B, D)
        # A product that stands in the batch twice is not a negative of the query that clicked it.
        left_out = same_items(gather_rows(batch["row"]), gather_rows(batch["negative"]))  # (B, 2B)
        if not self.in_batch:  # an ablation: nothing but random negatives
            others = ~torch.eye(len(queries), dtype=torch.bool, device=queries.device)
            left_out[:, : len(queries)] = others
        return in_batch_softmax(queries, items, negatives, self.temperature, left_out)
