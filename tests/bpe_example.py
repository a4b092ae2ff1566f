"""A byte-level BPE that knows no tags, for tests: it cuts them, and some tokens span their ends."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MERGES = [
    "< /", "s e", "a r", "c h", "ar ch", "se arch", "t h", "i n", "th in", "thin k", "a n", "s w",
    "e r", "sw er", "an swer", "> Ċ", "> <", "> .", "> s", "? </", "Ġ <", "o f", "Ġ of",
]  # fmt: skip


@lru_cache(maxsize=1)
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """The 256 bytes, some merges, a padding and an end token."""
    pairs = [tuple(merge.split()) for merge in MERGES]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|pad|>", "<|end|>", *letters, *("".join(pair) for pair in pairs)]
    inner = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
