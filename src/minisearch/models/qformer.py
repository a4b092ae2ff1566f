"""A Q-Former: a few learnt tokens that read a text and look at the patches of a picture.

All of it is built from transformers' parts, at any size; the weights of a BLIP-2 checkpoint load
into the same class.

Source: BLIP-2 (arXiv 2301.12597), sec. 3.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from minisearch.errors import InputError


def qformer_config(
    vocabulary_size: int, patch_width: int, width: int = 64, layers: int = 2, heads: int = 4,
    inner: int | None = None, longest: int = 64,
) -> Blip2QFormerConfig:  # fmt: skip
    """A small Q-Former's configuration; the default of `inner` is four times the width.

    Args:
        vocabulary_size: ids, 0 for padding.
        patch_width: of the vectors that it looks at.
        inner: width between the two maps of a feed-forward network.
        longest: most ids of a text.
    """
    return Blip2QFormerConfig(
        vocab_size=vocabulary_size, encoder_hidden_size=patch_width, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner or 4 * width,
        max_position_embeddings=longest, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=width**-0.5 / 2, cross_attention_frequency=2, use_qformer_text_input=True,
    )  # fmt: skip


class QFormer(nn.Module):
    """Learnt tokens and a text that attend to each other; the tokens also attend to patches.

    Args:
        config: of transformers; `use_qformer_text_input` must be set.
        tokens: number of learnt tokens, K.
        dimension: D, of the two heads' vectors: `of_tokens` and `of_text`.

    Raises:
        InputError: for a configuration that reads no text.
    """

    def __init__(self, config: Blip2QFormerConfig, tokens: int, dimension: int) -> None:
        super().__init__()
        if not config.use_qformer_text_input:
            found, expected = "use_qformer_text_input=False", "True, as texts are read"
            raise InputError("QFormer config", found, expected, "set it.")
        self.config, self.dimension, width = config, dimension, config.hidden_size
        self.tokens = nn.Parameter(torch.randn(1, tokens, width) * config.initializer_range)
        self.embeddings = Blip2TextEmbeddings(config)
        nn.init.normal_(self.embeddings.word_embeddings.weight, std=config.initializer_range)
        nn.init.normal_(self.embeddings.position_embeddings.weight, std=config.initializer_range)
        self.trunk = Blip2QFormerModel(config)
        self.of_tokens, self.of_text = nn.Linear(width, dimension), nn.Linear(width, dimension)

    @classmethod
    def from_blip2(cls, name_or_path: str | Path) -> tuple[QFormer, nn.Module]:
        """The Q-Former of a checkpoint such as `Salesforce/blip2-itm-vit-g`, and its eye.

        Returns:
            the Q-Former, and the frozen vision model, whose last hidden states it looks at.
        """
        whole = Blip2ForImageTextRetrieval.from_pretrained(name_or_path)
        config: Any = whole.config.qformer_config
        made = cls(config, whole.query_tokens.shape[1], whole.config.image_text_hidden_size)
        made.tokens.data = whole.query_tokens.data
        pairs = (
            (made.embeddings, whole.embeddings), (made.trunk, whole.qformer),
            (made.of_tokens, whole.vision_projection), (made.of_text, whole.text_projection),
        )  # fmt: skip
        for own, theirs in pairs:
            own.load_state_dict(theirs.state_dict())
        return made, whole.vision_model.eval().requires_grad_(False)

    def forward(
        self, patches: Tensor | None = None, ids: Tensor | None = None, prompt: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Last hidden states of the tokens and of the text, None for what is not there.

        With patches the learnt tokens look at them. Without, the text is read alone, or after a
        `prompt`, vectors that then pass through the layers as words do.

        Shape: patches (B, N, P), ids (B, L) int64 with 0 for padding, prompt (B, K, W)
        -> (B, K, W) and (B, L, W).

        Raises:
            InputError: where there is neither a picture nor a text, or both patches and a prompt.
        """
        if (patches is None and ids is None) or (patches is not None and prompt is not None):
            expected = "patches, ids, or both; a prompt with ids alone"
            raise InputError("QFormer", "another mixture of inputs", expected, "see its arguments.")
        front = prompt if patches is None else self.tokens.expand(len(patches), -1, -1)
        vectors = self.embeddings(input_ids=ids, query_embeds=front)
        count = 0 if front is None else front.shape[1]
        mask = torch.ones(vectors.shape[:2], dtype=torch.long, device=vectors.device)
        if ids is not None:
            mask[:, count:] = ids != 0
            mask[:, count] = 1  # an empty text is read as one blank
        states = self.trunk(
            query_embeds=vectors,
            query_length=count if patches is not None else 0,
            attention_mask=mask,
            encoder_hidden_states=patches,
        ).last_hidden_state
        return (
            states[:, :count] if count else None,
            states[:, count:] if ids is not None else None,
        )

    def token_vectors(self, states: Tensor) -> Tensor:
        """One vector of length 1 a token. Shape: (B, K, W) -> (B, K, D)."""
        return F.normalize(self.of_tokens(states), dim=-1)

    def text_vector(self, states: Tensor) -> Tensor:
        """The first position of a text as a vector of length 1. Shape: (B, L, W) -> (B, D)."""
        return F.normalize(self.of_text(states[:, 0]), dim=-1)
