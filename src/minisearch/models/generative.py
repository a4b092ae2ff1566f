"""Generative retrieval: one BART that reads and writes words and identifiers alike.

Words of texts, marks of tasks and the codes of identifiers share one numbering, an `Alphabet`, and
one table of vectors, which can start from those of a dual encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from minisearch.errors import InputError, one_of
from minisearch.text import END, PAD


@dataclass(frozen=True)
class Alphabet:
    """One numbering for all that a model reads and writes: words, marks, and identifiers.

    Tokens: first the `text` ids of a tokeniser, of which 0 is padding; then one mark a task, which
    tells the model what is asked; then the codes of each identifier position, one position after
    the other. A code thus has a token of its own for each position it may stand at.
    """

    text: int
    marks: tuple[str, ...]
    sizes: tuple[int, ...]  # codes a position

    def __len__(self) -> int:
        """The number of tokens: what an embedding table needs."""
        return self.text + len(self.marks) + sum(self.sizes)

    @property
    def first(self) -> np.ndarray:
        """The token of code 0 of each position. Shape: (L,)."""
        start = self.text + len(self.marks)
        return start + np.cumsum([0, *self.sizes[:-1]])

    def mark(self, name: str) -> int:
        """The token of a task."""
        if name not in self.marks:
            raise one_of("mark", name, list(self.marks))
        return self.text + self.marks.index(name)

    def tokens(self, codes: np.ndarray) -> np.ndarray:
        """Identifiers as tokens. Shape: codes (N, L) int -> (N, L) int64.

        Raises:
            InputError: for another number of positions, or a code that a position does not have.
        """
        codes = np.asarray(codes, dtype=np.int64)
        sizes = np.array(self.sizes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            found, expected = f"shape {codes.shape}", f"(N, {len(sizes)})"
            raise InputError("Alphabet.tokens", found, expected, "check the identifiers.")
        if ((codes < 0) | (codes >= sizes)).any():
            found, expected = f"codes up to {codes.max(0)}", f"0 to {sizes - 1}, by position"
            raise InputError("Alphabet.tokens", found, expected, "check the identifiers.")
        return codes + self.first

    def codes(self, tokens: np.ndarray) -> np.ndarray:
        """What `tokens` was given. Shape: (N, L) int -> (N, L) int64."""
        return np.asarray(tokens, dtype=np.int64) - self.first

    def ranges(self) -> list[np.ndarray]:
        """The tokens that each position allows, for a search without a trie. Shape: L x (K_l,)."""
        return [
            np.arange(first, first + size)
            for first, size in zip(self.first, self.sizes, strict=True)
        ]


def toy_bart_config(size: int, **changes: Any) -> BartConfig:
    """A BART of about a million parameters over `size` tokens, numbered as in `text.Vocabulary`."""
    settings: dict[str, Any] = {
        "d_model": 128, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512,
        "dropout": 0.0, "max_position_embeddings": 64, "init_std": 0.05, "pad_token_id": PAD,
        "bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": END,
        "forced_eos_token_id": None,
    }  # fmt: skip
    return BartConfig(vocab_size=size, **{**settings, **changes})


def bart_base_config(size: int = 50_265) -> BartConfig:
    """The configuration of facebook/bart-base, with `size` tokens."""
    return BartConfig(
        vocab_size=size, d_model=768, encoder_layers=6, decoder_layers=6,
        encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
    )  # fmt: skip


class Seq2Seq(nn.Module):
    """A BART over an alphabet; token 0 is padding.

    Args:
        model: a BartConfig for random weights, or the folder or hub name of a BART checkpoint,
            whose table of tokens is made `size` rows long. Its token 0, the start of a text, is
            then never read, so that 0 can stand for padding here too.
        size: tokens of the alphabet.
    """

    def __init__(self, model: BartConfig | str | Path, size: int) -> None:
        super().__init__()
        self.model: Any
        if isinstance(model, BartConfig):
            self.model = BartForConditionalGeneration(model)
        else:
            self.model = BartForConditionalGeneration.from_pretrained(model)
        if self.model.config.vocab_size != size:
            self.model.resize_token_embeddings(size, mean_resizing=False)
        self.model.config.pad_token_id = PAD

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Mean negative log-likelihood of a target token, in nats.

        Shape: source (B, S), target (B, T) int64, 0 is padding -> scalar.
        """
        labels = target.masked_fill(target == PAD, -100)  # -100: not a target
        mask = (source != PAD).long()
        out = self.model(input_ids=source, attention_mask=mask, labels=labels, use_cache=False)
        loss: Tensor = out.loss
        return loss

    @torch.no_grad()
    def start_from(self, vectors: np.ndarray, first: int = 0) -> None:
        """Give tokens from `first` on the directions of known vectors; rows of zeros are left out.

        The table serves as input and as output, so that a model starts with an idea of which
        words and codes are close. Without it, minutes of training are not enough.

        Shape: vectors (M, D), D the width of the model.
        """
        table = self.model.model.shared.weight
        if vectors.ndim != 2 or vectors.shape[1] != table.shape[1]:
            found, expected = f"vectors of shape {vectors.shape}", f"(M, {table.shape[1]})"
            raise InputError("Seq2Seq.start_from", found, expected, "use a tower of that width.")
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = np.flatnonzero(length[:, 0] > 0)
        unit = torch.from_numpy((vectors[rows] / length[rows]).astype(np.float32))
        table[torch.from_numpy(first + rows)] = unit.to(table)


def padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Columns of tokens side by side, filled with 0 up to `width`, or cut there.

    Shape: rows (N, L_1), (N, L_2) ... -> (N, width).
    """
    joined = np.concatenate(list(rows), axis=1)[:, :width]
    return np.pad(joined, ((0, 0), (0, width - joined.shape[1])))
