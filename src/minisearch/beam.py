"""Beam search over the identifiers that exist: a trie of arrays, and BART decoded by hand.

A document's identifier is L tokens. What may follow what is a trie, kept as compressed sparse rows
so that the continuations of all beams are read at once. `nested_trie` is the same trie as
dictionaries, easy to read and slow.

Source: STATIC, arXiv 2602.22647, for a trie as sparse rows and rectangles cut out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minisearch.errors import InputError
from minisearch.models.bart import StepwiseBart
from minisearch.text import PAD


class Children(NamedTuple):
    """What may follow each of R prefixes.

    Shape: tokens (R, C) int64, or (1, C) for the same in each row, ascending, of which the first
    `counts`, (R,) or (1,), are meant; first (R,) int64, the node of the first child. The nodes of
    the others follow it.
    """

    tokens: np.ndarray
    counts: np.ndarray
    first: np.ndarray


class Trie:
    """Identifiers of one length, as a compressed sparse matrix for each of their positions.

    The different prefixes of a length are its nodes, numbered in lexicographic order. As siblings
    are neighbours then, where a node's children begin and the last token of each are all there is
    to keep. Nodes of full length are leaves.

    Shape: ids (N, L) int; one that occurs twice counts once.

    Raises:
        InputError: when ids are not a table of tokens, or hold none.

    Source: STATIC, arXiv 2602.22647.
    """

    def __init__(self, ids: np.ndarray) -> None:
        usable = ids.ndim == 2 and ids.size and ids.dtype.kind in "iu"
        if not usable or ids.min() < 0 or ids.max() >= 2**31:
            found = f"shape {ids.shape}, {ids.dtype}"
            found += f", from {ids.min()} to {ids.max()}" if usable else ""
            expected = "(N, L) integers, neither 0, from 0 to 2^31 - 1"
            raise InputError("Trie ids", found, expected, "check how identifiers are made.")
        self.vocab_size = int(ids.max()) + 1
        self.depth = ids.shape[1]
        self._lowest = ids.min(0).astype(np.int64)  # tokens are kept less the lowest of a position
        self._tokens: list[np.ndarray] = []
        self._pointers: list[np.ndarray] = []
        nodes, count = np.zeros(len(ids), dtype=np.int64), 1  # of each row's prefix
        for column in (ids.astype(np.int64) - self._lowest).T:
            keys, nodes = np.unique(nodes * self.vocab_size + column, return_inverse=True)
            parents, tokens = np.divmod(keys, self.vocab_size)
            pointers = np.append(0, np.bincount(parents, minlength=count).cumsum())
            count = len(keys)
            self._tokens.append(tokens.astype(np.min_scalar_type(tokens.max())))
            self._pointers.append(pointers.astype(np.min_scalar_type(count)))

    def __len__(self) -> int:
        """Different identifiers, M."""
        return len(self._tokens[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(part.nbytes for part in (*self._tokens, *self._pointers))

    def identifiers(self) -> np.ndarray:
        """All different identifiers in lexicographic order: a leaf's number is its row.

        Shape: (M, L) int64, made anew at each call.
        """
        ids, nodes = np.empty((len(self), self.depth), dtype=np.int64), np.arange(len(self))
        for level in reversed(range(self.depth)):
            ids[:, level] = self._tokens[level][nodes]
            nodes = self._pointers[level].searchsorted(nodes, side="right") - 1
        return ids + self._lowest

    def children(self, level: int, nodes: np.ndarray) -> Children:
        """What may follow prefixes of `level` tokens; nothing follows a number beyond the last.

        Shape: nodes (R,) int64 -> tokens (R, C), C the most children that one of them has.
        """
        pointers, tokens = self._pointers[level], self._tokens[level]
        first = pointers.take(nodes, mode="clip").astype(np.int64)
        counts = pointers.take(nodes + 1, mode="clip") - first
        kept = tokens.take(first[:, None] + np.arange(counts.max()), mode="clip")
        return Children(np.add(kept, self._lowest[level], dtype=np.int64), counts, first)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The leaf of each identifier, -1 for one that the trie does not hold.

        Shape: ids (Q, L) int -> (Q,) int64.

        Raises:
            InputError: for identifiers of another length.
        """
        if ids.ndim != 2 or ids.shape[1] != self.depth:
            found, expected = f"shape {ids.shape}", f"(Q, {self.depth})"
            raise InputError("Trie.find ids", found, expected, "pass whole identifiers.")
        nodes = np.zeros(len(ids), dtype=np.int64)
        for level, wanted in enumerate((ids.astype(np.int64) - self._lowest).T):
            pointers, tokens = self._pointers[level], self._tokens[level]
            low, end = (pointers[nodes + i].astype(np.int64) for i in (0, 1))
            high = end  # below `low` for node -1: the last pointer is above the first, 0
            while (unsure := low < high).any():  # halve all the ranges at once
                middle = (low + high) // 2
                below = unsure & (tokens.take(middle, mode="clip") < wanted)
                low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
            held = (low < end) & (tokens.take(low, mode="clip") == wanted)
            nodes = np.where(held, low, -1)
        return nodes


def nested_trie(ids: np.ndarray) -> dict[int, Any]:
    """The trie as a dictionary from a token to the dictionary of what may follow it.

    Shape: ids (N, L) int.
    """
    root: dict[int, Any] = {}
    for identifier in ids.tolist():
        node = root
        for token in identifier:
            node = node.setdefault(token, {})
    return root


def allowed_tokens(nested: dict[int, Any], start_length: int = 1) -> Callable[..., list[int]]:
    """The `prefix_allowed_tokens_fn` with which transformers' `generate` keeps to a nested trie.

    `generate` asks about lost beams too, which score -inf, and takes no empty list: they get PAD.

    Args:
        nested: what `nested_trie` returns.
        start_length: tokens before those of the identifier, such as the decoder's start token.
    """

    def allowed(_: int, written: Tensor) -> list[int]:
        node = nested
        for token in written.tolist()[start_length:]:
            node = node.get(token, {})
        return list(node) or [PAD]

    return allowed


# -- beam search -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beams:
    """Identifiers for each query, best first, those of equal score in lexicographic order.

    Shape: tokens (B, K, L) int64; scores (B, K) float32, natural log-probabilities; leaves (B, K)
    int64, rows of `Trie.identifiers()`, -1 after a search without a trie. Where fewer than K were
    found, the last places hold PAD, -inf and -1.
    """

    tokens: np.ndarray
    scores: np.ndarray
    leaves: np.ndarray


def beam_search(
    model: Any,
    input_ids: Tensor,
    width: int,
    constraint: Trie | Sequence[np.ndarray],
    batch_size: int = 64,
) -> Beams:
    """The most probable identifiers for each query, as far as a beam of `width` finds them.

    A score is the sum of the tokens' log-probabilities within the whole vocabulary, not only within
    the tokens allowed: that of transformers' `generate` with `length_penalty=0`.

    Shape: input_ids (B, S) int64, filled up with the model's `pad_token_id`.

    Args:
        model: a `BartForConditionalGeneration`, used as in evaluation.
        input_ids: the queries' tokens.
        width: prefixes kept at each step, and identifiers returned, K.
        constraint: the identifiers there are; or, for a search among all combinations, the tokens
            allowed at each position of an identifier, one array a position.
        batch_size: queries decoded at once, those of similar length together.

    Raises:
        InputError: for a width or batch size below 1, a query without tokens, tokens or lengths
            that the model does not know, or a model that returns what is no number.
    """
    allowed = constraint if isinstance(constraint, Trie) else _Combinations(constraint)
    _check(model, input_ids, width, allowed, batch_size)
    queries = input_ids.cpu().numpy()
    there = queries != model.config.pad_token_id
    lengths = (there * np.arange(1, queries.shape[1] + 1)).max(1, initial=0)
    if not lengths.all():
        found = f"nothing but padding in row {lengths.argmin()}"
        raise InputError("beam_search input_ids", found, "a token", "leave empty queries out.")
    order = lengths.argsort(kind="stable")
    shape = (len(queries), width)
    tokens, leaves = np.full((*shape, allowed.depth), PAD), np.full(shape, -1)
    scores = np.full(shape, -np.inf, dtype=np.float32)
    with torch.inference_mode():
        bart = StepwiseBart(model)
        for first in range(0, len(queries), batch_size):
            rows = order[first : first + batch_size]
            columns = slice(lengths[rows[-1]])
            bart.read(queries[rows, columns], there[rows, columns])
            best = _search(bart, width, allowed, len(rows))
            part = np.s_[rows, : best.scores.shape[1]]
            tokens[part], scores[part], leaves[part] = best.tokens, best.scores, best.leaves
    return Beams(tokens, scores, leaves)


def _search(bart: StepwiseBart, width: int, allowed: Trie | _Combinations, queries: int) -> Beams:
    """Beams of the queries read. They stand in lexicographic order until the last step is done."""
    line = np.arange(queries)[:, None]
    scores: np.ndarray = np.zeros((queries, 1), dtype=np.float32)
    nodes: np.ndarray = np.zeros((queries, 1), dtype=np.int64)
    tokens = np.full((queries, 1, 1), bart.start)
    parents = None
    for level in range(allowed.depth):
        last = torch.from_numpy(tokens[..., -1]).to(bart.device)
        following = torch.log_softmax(bart.step(last, parents), 1)  # (B * W, V)
        children = allowed.children(level, nodes.ravel())
        scores, columns = _best(_candidates(following, scores, children), width)  # (B, W) again
        beams, ranks = np.divmod(columns, children.tokens.shape[1])
        rows = beams + line * nodes.shape[1]
        written = children.tokens[rows % len(children.tokens), ranks]
        tokens = np.concatenate([tokens[line, beams], written[..., None]], axis=2)
        nodes = children.first[rows] + ranks
        parents = torch.from_numpy(rows.ravel()).to(bart.device)
    if np.isnan(scores).any():
        expected, remedy = "log-probabilities", "look at how the model was trained."
        raise InputError("beam_search model", "output that is no number", expected, remedy)
    order = (-scores).argsort(1, kind="stable")
    scores, leaves, tokens = (part[line, order] for part in (scores, nodes, tokens[..., 1:]))
    none = np.isneginf(scores)
    leaves[none if isinstance(allowed, Trie) else ...] = -1
    tokens[none] = PAD
    return Beams(tokens, scores, leaves)


def _candidates(following: Tensor, scores: np.ndarray, children: Children) -> Tensor:
    """Scores of all continuations, -inf beyond the last child of a beam.

    Shape: following (B * W, V) log-probabilities, scores (B, W) -> (B, W * C).
    """
    missing = np.arange(children.tokens.shape[1]) >= children.counts[:, None]
    parts = (children.tokens, missing, scores.reshape(-1, 1))
    tokens, hidden, before = (torch.from_numpy(part).to(following.device) for part in parts)
    values = following.gather(1, tokens.expand(following.shape[0], -1)).add_(before)
    return values.masked_fill_(hidden, -torch.inf).view(len(scores), -1)


def _best(candidates: Tensor, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` best of each row, in the order in which they stand; of equal ones the first.

    Shape: candidates (B, N) -> values and columns, both (B, min(width, N)).
    """
    count = candidates.shape[1]
    found = candidates.topk(min(width + 1, count), dim=1)
    values, columns = found.values.cpu().numpy(), found.indices.cpu().numpy()
    if count > width:  # topk takes any of those that are equal to the last one
        tied = np.flatnonzero((values[:, -1] == values[:, -2]) & (values[:, -1] > -np.inf))
        if len(tied):
            every = candidates[torch.from_numpy(tied).to(candidates.device)].cpu().numpy()
            columns[tied] = (-every).argsort(1, kind="stable")[:, : width + 1]
    order = columns[:, :width].argsort(1)
    line = np.arange(candidates.shape[0])[:, None]
    return values[line, order], columns[line, order]


class _Combinations:
    """All combinations of the tokens allowed at each position, in the form of a trie."""

    def __init__(self, allowed: Sequence[np.ndarray]) -> None:
        self._tokens = [np.unique(tokens).astype(np.int64) for tokens in allowed]
        self.depth = len(self._tokens)
        if not self._tokens or any(not len(part) or part[0] < 0 for part in self._tokens):
            found = f"at each position {[part[:1].tolist() for part in self._tokens]} and above"
            expected = "one or more tokens, none below 0"
            raise InputError("beam_search constraint", found, expected, "list what is allowed.")
        self.vocab_size = max(int(part[-1]) for part in self._tokens) + 1

    def children(self, level: int, nodes: np.ndarray) -> Children:
        tokens = self._tokens[level]
        return Children(tokens[None], np.full(1, len(tokens)), np.zeros_like(nodes))


def _check(
    model: Any, input_ids: Tensor, width: int, allowed: Trie | _Combinations, batch_size: int
) -> None:
    if input_ids.ndim != 2 or input_ids.dtype != torch.long:
        found = f"shape {tuple(input_ids.shape)}, {input_ids.dtype}"
        raise InputError("beam_search input_ids", found, "(B, S) int64", "pass tokenised queries.")
    config, longest = model.config, max(allowed.depth, input_ids.shape[1])
    for what, size, least, most in (
        ("width", width, 1, np.inf),
        ("batch_size", batch_size, 1, np.inf),
        ("vocabulary of the identifiers", allowed.vocab_size, 0, config.vocab_size),
        ("length of queries and identifiers", longest, 0, config.max_position_embeddings),
    ):
        if not least <= size <= most:
            expected, remedy = f"{least} to {most}", "change it, or the model's configuration."
            raise InputError(f"beam_search {what}", str(size), expected, remedy)
