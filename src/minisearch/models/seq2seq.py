"""Text to text on transformers' T5 family: queries generated from titles (doc2query)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, MT5Config, MT5ForConditionalGeneration

from minisearch.profiles import derive_seed


def toy_t5_config(vocabulary_size: int, dimension: int = 64, layers: int = 1) -> MT5Config:
    """A T5 small enough to train on a CPU in a minute; ids as in `text.Vocabulary`."""
    return MT5Config(
        vocab_size=vocabulary_size, d_model=dimension, d_kv=dimension // 4, d_ff=2 * dimension,
        num_layers=layers, num_heads=4, dropout_rate=0.0,
    )  # fmt: skip


def mt5_base_config() -> MT5Config:
    """The configuration of google/mt5-base, the generator of KuaiSearch's DocT5Query baseline."""
    return MT5Config(
        vocab_size=250112, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip


class QueryGenerator(nn.Module):
    """Learns p(query | title) and samples queries from it.

    Args:
        model: an MT5Config for random weights, or the folder or hub name of a checkpoint of any
            sequence-to-sequence model with padding id 0.

    Source: docTTTTTquery, Nogueira and Lin (2019).
    """

    def __init__(self, model: MT5Config | str | Path) -> None:
        super().__init__()
        self.model: Any
        if isinstance(model, MT5Config):
            self.model = MT5ForConditionalGeneration(model)
            # mT5 has an output layer of its own; transformers ties it to the embedding unless a
            # checkpoint says otherwise.
            self.model.lm_head = nn.Linear(model.d_model, model.vocab_size, bias=False)
            nn.init.normal_(self.model.lm_head.weight, std=model.d_model**-0.5)
        else:
            self.model = AutoModelForSeq2SeqLM.from_pretrained(model)

    def loss(self, title_ids: Tensor, query_ids: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats of a query token; queries end with the end id.

        Shape: title_ids (B, L), query_ids (B, M) int64, 0 is padding -> scalar.
        """
        labels = query_ids.masked_fill(query_ids == 0, -100)  # -100: not a target
        mask = (title_ids != 0).long()
        loss: Tensor = self.model(input_ids=title_ids, attention_mask=mask, labels=labels).loss
        return loss

    @torch.inference_mode()
    def sample(
        self,
        title_ids: np.ndarray | Tensor,
        n: int,
        seed: int,
        top_k: int = 30,
        max_len: int = 32,
        batch_size: int = 128,
    ) -> np.ndarray:
        """Draw n queries for each title, token by token from the top_k likeliest.

        Shape: title_ids (N, L) int64 -> (N, n, max_len) int64, 0 after the end id.
        """
        was_training, device = self.training, self.model.device
        self.eval()
        titles = torch.as_tensor(title_ids).to(device)
        samples = np.zeros((len(titles), n, max_len), dtype=np.int64)
        # generate() draws from the global generators: give them our seed, then their state back.
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "doc2query"))
            for start in range(0, len(titles), batch_size):
                batch = titles[start : start + batch_size]
                drawn = self.model.generate(
                    input_ids=batch,
                    attention_mask=(batch != 0).long(),
                    do_sample=True,
                    top_k=top_k,
                    num_return_sequences=n,
                    max_new_tokens=max_len,
                )[:, 1:]  # without the start id
                rows = drawn.reshape(len(batch), n, -1).cpu().numpy()
                samples[start : start + batch_size, :, : rows.shape[2]] = rows
        self.train(was_training)
        return samples
