"""The pre-training script as a module, and tiny models with the toy tokenizer, for tests."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from minisearch.models.lm import LanguageModel

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "pretrain_toy_lm.py"
ARCHITECTURES = ("qwen2", "llama", "gpt_neox")


def load_script() -> Any:
    """The script, executed once a process."""
    name = "pretrain_toy_lm_script"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its dataclasses look up their module here
        spec.loader.exec_module(module)
    return sys.modules[name]


@lru_cache(maxsize=1)
def toy_tokenizer() -> PreTrainedTokenizerFast:
    return load_script().make_tokenizer()


def tiny_model(architecture: str, vocabulary_size: int = 0, seed: int = 0) -> Any:
    """Two random layers; weights large enough that the next token depends on the context."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary_size or len(toy_tokenizer()), "hidden_size": 32,
        "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
        "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
        "initializer_range": 0.3,
    }  # fmt: skip
    grouped = {"num_key_value_heads": 2}
    config = {
        "qwen2": lambda: Qwen2Config(**sizes, **grouped),
        "llama": lambda: LlamaConfig(**sizes, **grouped),
        "gpt_neox": lambda: GPTNeoXConfig(**sizes),
    }[architecture]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


@lru_cache(maxsize=3)
def tiny_lm(architecture: str) -> LanguageModel:
    return LanguageModel(tiny_model(architecture), toy_tokenizer())
