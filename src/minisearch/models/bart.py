"""BART by hand, for searches that extend many beams of the same few queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class StepwiseBart:
    """Queries encoded together, then W beams of each extended token by token.

    Keys and values of a query's tokens are computed once for all of its beams, those of a beam's
    tokens once for all of its continuations.

    Args:
        model: a `BartForConditionalGeneration`; what it drops out in training is kept here.

    Source: `transformers.models.bart.modeling_bart`.
    """

    def __init__(self, model: Any) -> None:
        encoder, decoder = model.model.encoder, model.model.decoder
        self._embed_query, self._embed = _Embedding(encoder), _Embedding(decoder)
        self._encoder = [(_Attention(x, "self"), _Inner(x)) for x in encoder.layers]
        self._decoder = [
            (_Attention(x, "self"), _Attention(x, "encoder"), _Inner(x)) for x in decoder.layers
        ]
        self._head = (model.lm_head.weight, model.final_logits_bias[0])
        self.device, self.start = model.device, model.config.decoder_start_token_id

    def read(self, queries: np.ndarray, there: np.ndarray) -> None:
        """Encode queries. Shape: both (B, S), int64 and bool."""
        count, self._now = len(queries), 0
        self._mask = None if there.all() else torch.from_numpy(there).to(self.device)[:, None, None]
        states = self._embed_query(torch.from_numpy(queries).to(self.device), 0)  # (B * S, D)
        for own, inner in self._encoder:
            states = inner(own(states, own.keys_and_values(states, count), self._mask))
        self._query = [query.keys_and_values(states, count) for _, query, _ in self._decoder]
        self._own = dict[int, tuple[Tensor, Tensor]]()  # of each layer, filled by the steps

    def step(self, tokens: Tensor, parents: Tensor | None) -> Tensor:
        """Logits of what follows `tokens`; `parents` are the rows of the step before they continue.

        Shape: tokens (B, W), parents (B * W,) -> (B * W, V) float32.
        """
        states = self._embed(tokens.view(-1, 1), self._now)  # (R, D)
        for number, (own, query, inner) in enumerate(self._decoder):
            keys, values = own.keys_and_values(states, tokens.numel())
            if parents is not None:
                before = [part.index_select(0, parents) for part in self._own[number]]
                keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
            self._own[number] = (keys, values)
            states = own(states, (keys, values))
            states = inner(query(states, self._query[number], self._mask))
        self._now += 1
        return F.linear(states, *self._head).float()


class _Embedding:
    """Tokens at their places, and the norm after them. Shape: (B, S) -> (B * S, D)."""

    def __init__(self, part: Any) -> None:
        self._tokens, self._norm = part.embed_tokens, _Norm(part.layernorm_embedding)
        self._places = part.embed_positions.weight[part.embed_positions.offset :]

    def __call__(self, tokens: Tensor, start: int) -> Tensor:
        states = self._tokens(tokens).add_(self._places[start : start + tokens.shape[1]])
        return self._norm(states.flatten(0, 1))


class _Attention:
    """An attention, and the norm after it. Weights are attributes here: a module's are slow."""

    def __init__(self, layer: Any, name: str) -> None:
        attention = getattr(layer, f"{name}_attn")
        self._shape = (-1, attention.num_heads, attention.head_dim)
        self._q, self._k = _pair(attention.q_proj), _pair(attention.k_proj)
        self._v, self._out = _pair(attention.v_proj), _pair(attention.out_proj)
        self._norm = _Norm(getattr(layer, f"{name}_attn_layer_norm"))

    def keys_and_values(self, states: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Shape: (count * S, D) -> (count, H, S, D / H) twice."""
        shape = (count, *self._shape)
        keys, values = F.linear(states, *self._k), F.linear(states, *self._v)
        return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)

    def __call__(
        self, states: Tensor, read: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Shape: states (B * W, D), read (B, H, S, D / H) twice -> (B * W, D)."""
        keys, values = read
        queries = F.linear(states, *self._q).view(keys.shape[0], *self._shape).transpose(1, 2)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        found = found.transpose(1, 2).reshape(states.shape)
        return self._norm(F.linear(found, *self._out).add_(states))


class _Inner:
    """The two inner linear layers, and the norm after them."""

    def __init__(self, layer: Any) -> None:
        self._first, self._second = _pair(layer.fc1), _pair(layer.fc2)
        self._activation, self._norm = layer.activation_fn, _Norm(layer.final_layer_norm)

    def __call__(self, states: Tensor) -> Tensor:
        inner = self._activation(F.linear(states, *self._first))
        return self._norm(F.linear(inner, *self._second).add_(states))


class _Norm:
    def __init__(self, norm: Any) -> None:
        self._parts = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def __call__(self, states: Tensor) -> Tensor:
        return torch.layer_norm(states, *self._parts)


def _pair(module: Any) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias
