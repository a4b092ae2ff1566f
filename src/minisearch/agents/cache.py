"""Keys and values of rows that advance at their own pace, for any transformers decoder.

Transformers' own cache joins new columns to old ones at every token, for all rows at once. Here
every row writes at its own length into room made in advance. Rows that pause are exchanged with
the last ones, so that those still at work stand together and are used without being copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

_GROWTH = 128  # columns added at a time


class RowCache(Cache):
    """Keys and values of `rows` rows, of which the first `active` take part.

    Column 0 is for padding: what lands there is seen by padding alone. Position p of a row is
    column p + 1.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.active = rows
        self._stores: list[list[Tensor]] = []  # a layer: keys, values, each (rows, columns, H, D)
        self._columns = self._width = 0  # with room for them, in use
        self._slots = self.lengths  # where new keys and values go, rows and columns as one

    def advance(self, counts: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Make room for `counts` new tokens a row, given in `width` columns filled up on the left.

        Shape: counts (active,) -> positions (active, width), mask (active, 1, width, columns).
        """
        start = self.lengths[: self.active]
        device = start.device
        offset = torch.arange(width, device=device) - (width - counts)[:, None]  # (active, width)
        places = torch.where(offset < 0, 0, start[:, None] + offset + 1)
        self.lengths[: self.active] = start + counts
        self._width = int(self.lengths[: self.active].max()) + 1
        if self._width > self._columns:
            self._make_room(slice(None))
        rows = torch.arange(self.active, device=device)[:, None]
        self._slots = (rows * self._columns + places).flatten()
        columns = torch.arange(self._width, device=device)
        seen = (columns >= 1) & (columns <= places[..., None])
        mask = torch.where(places[..., None] == 0, columns == 0, seen)
        return (places - 1).clamp(min=0), mask[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; all of the active rows. Called by the model's layers.

        Shape: (active, H, T, D) twice -> (active, H, columns, D) twice.
        """
        if layer_idx == len(self._stores):
            shape = (len(self.lengths), self._columns)
            both = (key_states, value_states)
            self._stores.append([s.new_zeros(*shape, *s.shape[1::2]) for s in both])
        store = self._stores[layer_idx]
        for part, states in zip(store, (key_states, value_states), strict=True):
            rows = states.transpose(1, 2).reshape(-1, *part.shape[2:])
            part.view(-1, *part.shape[2:]).index_copy_(0, self._slots, rows)
        keys, values = (part[: self.active, : self._width].transpose(1, 2) for part in store)
        return keys, values

    def spread(self, sources: Tensor) -> None:
        """Give each row a copy of another one. Shape: sources (rows,), old row numbers."""
        self.lengths = self.lengths[sources]
        self.active = len(sources)
        self._make_room(sources)

    def branched(self, sources: Tensor, lengths: Tensor) -> RowCache:
        """A new cache whose rows begin as the first tokens of rows of this one.

        Shape: sources and lengths (B,): row numbers, and how many tokens are taken over.
        """
        width = int(lengths.max()) + 1
        found = RowCache(len(sources), lengths.device)
        found.lengths, found._width, found._columns = lengths, width, width
        found._stores = [[part[sources, :width] for part in store] for store in self._stores]
        return found

    def _make_room(self, sources: Tensor | slice) -> None:
        """Copy rows into stores with columns to spare; once there are any, growth is to be rare."""
        self._columns = self._width + (_GROWTH if self._stores else 0)
        self._stores = [[self._roomy(part, sources) for part in store] for store in self._stores]

    def _roomy(self, part: Tensor, sources: Tensor | slice) -> Tensor:
        used = part.shape[1]
        grown = part.new_empty(len(self.lengths), self._columns, *part.shape[2:])
        grown[:, :used] = part[sources]
        grown[:, used:] = 0  # a mask hides numbers, but not what is none
        return grown

    def exchange(self, first: Sequence[int], second: Sequence[int]) -> None:
        """Exchange rows pairwise; no row may be named twice."""
        if not first:
            return
        a = torch.tensor([*first, *second], device=self.lengths.device)
        b = torch.tensor([*second, *first], device=self.lengths.device)
        used = int(self.lengths[b].max()) + 1
        self.lengths[a] = self.lengths[b]
        for store in self._stores:
            for part in store:
                part[a, :used] = part[b, :used]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest active row."""
        return int(self.lengths[: self.active].max())
