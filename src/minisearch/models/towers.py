"""Text towers on transformers' BERT: a bag of words at 0 layers, bert-base at 12, by one class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel

from minisearch.errors import one_of


def bag_config(vocabulary_size: int, dimension: int = 128, **changes: Any) -> BertConfig:
    """BERT without layers: a text is the mean of its normalised word vectors."""
    sizes = {"num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": dimension}
    settings = {"hidden_dropout_prob": 0.0, "max_position_embeddings": 64, **sizes, **changes}
    return BertConfig(vocab_size=vocabulary_size, hidden_size=dimension, **settings)


def bert_base_chinese_config() -> BertConfig:
    """The configuration of bert-base-chinese, the encoder of KuaiSearch's DPR baselines."""
    return BertConfig(
        vocab_size=21128, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=3072, max_position_embeddings=512,
    )  # fmt: skip


class TextTower(BertPreTrainedModel):
    """Token ids to one vector a text; id 0 is padding.

    A subclass of transformers' BERT classes, so that `save_pretrained` works as usual, and the
    checkpoint of any BERT loads as it is. With 0 layers nothing can use the order of the words, so
    position and segment vectors are fixed at zero: a true bag.

    Args:
        config: sizes; `pooling` and `projection` are kept in it, and so in its config.json.
        pooling: "mean" over the tokens, or "cls", the first token's vector (not for a bag).
        projection: dimension of a linear map behind the pooling, None for none.
    """

    def __init__(
        self, config: BertConfig, pooling: str | None = None, projection: int | None = None
    ) -> None:
        super().__init__(config)
        config.pooling = pooling or getattr(config, "pooling", "mean")
        config.projection = size = projection or getattr(config, "projection", None)
        poolings = ["mean", "cls"] if config.num_hidden_layers else ["mean"]
        if config.pooling not in poolings:
            raise one_of("parameter pooling", config.pooling, poolings)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.projection = nn.Linear(config.hidden_size, size) if size else nn.Identity()
        self.dimension: int = size or config.hidden_size
        self.post_init()
        self._fix_order()

    @classmethod
    def from_checkpoint(cls, name_or_path: str | Path, **changes: Any) -> TextTower:
        """Load a folder or hub name; `pooling` and `projection` replace its config.json's."""
        tower: TextTower = cls.from_pretrained(name_or_path, **changes)
        tower._fix_order()  # loading makes new parameters
        return tower

    def _fix_order(self) -> None:
        if not self.config.num_hidden_layers:
            for table in ("position_embeddings", "token_type_embeddings"):
                getattr(self.bert.embeddings, table).weight.requires_grad_(False).zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Shape: ids (B, L) int64 -> (B, dimension)."""
        if self.config.num_hidden_layers:
            mask = ids != 0
            hidden = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
            mean = (weights[:, :, None] * hidden).sum(dim=1)
            pooled = hidden[:, 0] if self.config.pooling == "cls" else mean
        else:
            pooled = self._bag(ids)
        vectors: Tensor = self.projection(pooled)
        return vectors

    def _bag(self, ids: Tensor) -> Tensor:
        """What mean pooling gives at 0 layers, with each different word normalised only once.

        On a CPU this takes half the time of BertModel, most of which goes into (B, L, D) arrays.
        """
        padded = F.pad(ids, (0, 1))  # so that row 0 of the table is always the padding
        different, places = torch.unique(padded, return_inverse=True)
        layer = self.bert.embeddings
        table = layer.dropout(layer.LayerNorm(layer.word_embeddings(different)))
        return F.embedding_bag(places, table, mode="mean", padding_idx=0)


class DualEncoder(nn.Module):
    """A tower for queries and one for items, (B, L) -> (B, D); give one twice to share it."""

    def __init__(self, query_tower: nn.Module, item_tower: nn.Module) -> None:
        super().__init__()
        self.query_tower, self.item_tower = query_tower, item_tower

    def encode_queries(self, ids: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Vectors of the queries. Shape: (N, L) int64 -> (N, D) float32."""
        return encode(self.query_tower, ids, batch_size)

    def encode_items(self, ids: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
        """Vectors of the items. Shape: (N, L) int64 -> (N, D) float32."""
        return encode(self.item_tower, ids, batch_size)


def encode(tower: nn.Module, ids: np.ndarray | Tensor, batch_size: int = 1024) -> np.ndarray:
    """Run a tower over many texts in batches, without gradients and without dropout.

    Shape: ids (N, L) int64 -> (N, D) float32.
    """
    device = next(tower.parameters()).device
    was_training = tower.training
    tower.eval()
    with torch.inference_mode():
        batches = torch.as_tensor(ids).split(batch_size)
        parts = [tower(batch.to(device)).float().cpu() for batch in batches]
    tower.train(was_training)
    return torch.cat(parts).numpy()
