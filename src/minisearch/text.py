"""Text to words to ids, for Latin and Chinese text, without a dictionary.

A run of Chinese or Japanese characters has no spaces, so it becomes its characters and its pairs of
neighbouring characters. Pairs act as words in an index, single characters catch what pairs miss.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from minisearch.errors import InputError
from minisearch.storage import atomic_write

PAD, END = 0, 1  # as in T5, so that one vocabulary serves towers and generators

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUNS = re.compile(rf"([{_CJK}]+)|[^\W_{_CJK}]+")


def normalise(text: str) -> str:
    """Compatibility forms unified (full-width letters become plain), lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def words(text: str) -> list[str]:
    """Lower-cased words and numbers; Chinese runs as characters and pairs, in text order.

    >>> words("iPhone 15 手机壳")
    ['iphone', '15', '手', '手机', '机', '机壳', '壳']
    """
    found: list[str] = []
    for match in _RUNS.finditer(normalise(text)):
        run = match.group()
        if match.lastindex is None:
            found.append(run)
            continue
        for start in range(len(run) - 1):
            found += (run[start], run[start : start + 2])
        found.append(run[-1])
    return found


class Vocabulary:
    """Words to ids; a word that is rare or unknown becomes the ids of its letter triples instead.

    Ids: 0 padding, 1 end of text, then one id a frequent word, then `pieces` buckets that triples
    are hashed into. Only rare and unknown words are cut into pieces: cutting every word would make
    texts five times longer. The pieces are still trained, by the rare words of the training texts,
    so that `min_count` should be 2 or more where unknown words are expected.

    Args:
        frequent: the words that have an id of their own, in id order.
        pieces: number of buckets for letter triples.
    """

    def __init__(self, frequent: Sequence[str], pieces: int) -> None:
        self.frequent, self.pieces = tuple(frequent), pieces
        self.first_piece = END + 1 + len(self.frequent)
        self._ids = {word: (END + 1 + i,) for i, word in enumerate(self.frequent)}

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 2, pieces: int = 1024) -> Vocabulary:
        """Give an id to every word that occurs `min_count` times or more, most frequent first.

        Raises:
            InputError: when the texts hold no word at all.
        """
        counts = Counter(word for text in texts for word in words(text))
        if not counts:
            raise InputError(
                "texts", "no word", "at least one text with a word", "check the texts."
            )
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return cls([word for word, count in ranked if count >= min_count], pieces)

    def __len__(self) -> int:
        """The number of ids: what an embedding table needs."""
        return self.first_piece + self.pieces

    def ids_of(self, word: str) -> tuple[int, ...]:
        """One id for a frequent word, else one for each letter triple of `^word$`."""
        known = self._ids.get(word)
        if known is not None:
            return known
        marked = f"^{word}$"
        # CRC-32 and not hash(), which differs between processes.
        triples = [marked[i : i + 3].encode() for i in range(len(marked) - 2)]
        return tuple(self.first_piece + zlib.crc32(triple) % self.pieces for triple in triples)

    def encode(self, texts: Iterable[str], max_len: int, end: bool = False) -> np.ndarray:
        """The ids of each text, cut at `max_len` and filled with 0.

        Args:
            end: close each text with `END`, as a generator's target needs.

        Shape: N texts -> (N, max_len) int64.
        """
        seen: dict[str, tuple[int, ...]] = {}
        rows = []
        for text in texts:
            row: list[int] = []
            for word in words(text):
                if word not in seen:
                    seen[word] = self.ids_of(word)
                row += seen[word]
            rows.append(row[: max_len - end] + [END] * end)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        encoded = np.zeros((len(rows), max_len), dtype=np.int64)
        encoded[np.arange(max_len) < lengths[:, None]] = [i for row in rows for i in row]
        return encoded

    def decode(self, ids: np.ndarray) -> list[list[str]]:
        """The frequent words of each row; padding, end and pieces are left out. Shape: (N, L)."""
        first = END + 1
        return [
            [self.frequent[i - first] for i in row if first <= i < self.first_piece]
            for row in ids.tolist()
        ]

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        content = {"pieces": self.pieces, "frequent": self.frequent}
        atomic_write(path, json.dumps(content, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            InputError: when the file is not a vocabulary.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["frequent"], content["pieces"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            found, expected = f"{type(error).__name__}: {error}", "a vocabulary written by save()"
            raise InputError(str(path), found, expected, "build and save it again.") from error
