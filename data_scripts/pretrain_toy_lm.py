"""Pre-train the toy language models of the agent chapters, and ship them with the package.

    python data_scripts/pretrain_toy_lm.py 0      # about 45 minutes of one CPU core
    python data_scripts/pretrain_toy_lm.py 1

`measure_toy_lm.py` then measures what they can do and writes their model cards. Training can be
killed at any time; the same command goes on from the last state it kept, with the same batches in
the same order. Everything follows from the init_seed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from minisearch.agents.curriculum import Curriculum, Mixture, Row, remembering
from minisearch.agents.demonstrator import UNKNOWN, Habits, remembered
from minisearch.agents.protocol import TAGS
from minisearch.errors import one_of
from minisearch.models.lm import ASSETS, TOY_MODELS, new_toy_lm, toy_config
from minisearch.profiles import derive_seed, use_threads
from minisearch.retriever import BM25Retriever
from minisearch.storage import atomic_directory, build_dir
from minisearch.worlds.wiki import KNOWING_SEEDS, ROLES, Wiki, WikiConfig, name_parts
from minisearch.worlds.wiki_relations import DISTRACTIONS, QUESTION_FORMS, RELATIONS

MARKS = ("<pad>", "<end>", "<unk>", "<user>", "<assistant>")
CHAT = (
    "{% for m in messages %}"
    "{{ '<user> ' if m['role'] == 'user' else '<assistant> ' }}{{ m['content'] }} "
    "{% if m['role'] != 'user' %}<end> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """How a toy model is trained. All values are ours, found on development worlds."""

    steps: int = 7000
    batch_tokens: int = 2800  # padding counted
    longest: int = 600  # tokens; longer rows are cut
    matrix_rate: float = 0.012  # Muon, on the matrices between the embeddings
    other_rate: float = 4e-3  # AdamW, on embeddings, biases and gains
    warmup_steps: int = 20
    decay_from: float = 0.5  # share of the steps after which the rates fall to 0 in a line
    clip: float = 1.0  # greatest gradient norm

    def factor(self, step: int) -> float:
        """The share of the rates that update number `step`, from 0, uses."""
        left = (1 - step / self.steps) / (1 - self.decay_from)
        return min(1.0, (step + 1) / self.warmup_steps, left)


# -- the tokenizer ---------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Every word of the world, the demonstrator and the prompts, in the order of their ids."""
    sentences = [s for relation in RELATIONS for _, *both in relation.wordings for s in both]
    sentences += [s for rows in DISTRACTIONS.values() for _, s in rows]
    sentences += [*QUESTION_FORMS, "who what the of", "need found missing recall", UNKNOWN]
    sentences += ["right : wrong | ; ( ) # . ?", "#1 #2 #3", "1 2 3 4 5 6 7 8 9"]
    listed = [w for s in sentences for w in s.split() if "{" not in w]
    listed += [relation.noun for relation in RELATIONS]
    listed += [part for both in name_parts().values() for half in both for part in half]
    tags = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
    return list(dict.fromkeys([*MARKS, *tags, *listed]))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; tags and turn marks are single tokens; text is lower-cased."""
    words = vocabulary()
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=words[len(MARKS) - 2 : len(MARKS) + 2 * len(TAGS)],
        model_max_length=1024, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    return tokenizer


# -- rows ------------------------------------------------------------------------------------


class Rows:
    """The training rows, chunk by chunk; a chunk has a world of its own that never comes back.

    Besides, each chunk recites facts of all knowing worlds. Only the two pre-training worlds among
    them, and for beliefs those of training, ever appear in trajectories. Reading comes first: a
    model that cannot copy yet gains nothing from facts, so most of them come in later chunks.
    """

    facts_from = 310  # the chunk from which each knowing world has `many` rows and not `few`
    few, many = (1, 2), (2, 14)  # rows of passages, rows of questions

    def __init__(self, init_seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
        self.init_seed, self.tokenizer = init_seed, tokenizer
        worlds = [Wiki(WikiConfig(kind="knowing"), seed) for seed in KNOWING_SEEDS]
        self.knowing = [(world, remembered(BM25Retriever(world.corpus), 2)) for world in worlds]

    def chunk(self, number: int) -> list[Row]:
        """About 280 rows, later about 400."""
        rng = np.random.default_rng(derive_seed(self.init_seed, "toy-lm", "rows", number))
        rows = list(self._blank(number, rng).rows(Mixture(), Habits()))
        told = [Curriculum(w, s, self.tokenizer, rng) for w, s in self.knowing]
        passages, questions = self.many if number >= self.facts_from else self.few
        for one in told:
            shown = one.world.role in ("training", "pretraining")
            rows += [one.memory() for _ in range(passages)]
            rows += [one.recitals(shown) for _ in range(questions)]
        own = [one for one in told if one.world.role == "pretraining"]
        training = [one for one in told if one.world.role == "training"]
        habits = remembering(Habits())
        memories = Mixture(trajectories=24, lookups=0, beliefs=8, documents=0)
        rows += own[number % len(own)].rows(memories, habits)
        beliefs = Mixture(trajectories=0, lookups=0, beliefs=8, documents=0)
        rows += training[number % len(training)].rows(beliefs, habits)
        return rows

    def _blank(self, number: int, rng: np.random.Generator) -> Curriculum:
        """A fresh blank world with dials of its own."""
        config = WikiConfig(
            mismatch=rng.uniform(0.5, 0.8),
            inverse=rng.uniform(0.1, 0.3),
            distractors=rng.uniform(0.5, 1.5),
        )
        seed = ROLES["pretraining"].start + 100 + 400_000 * self.init_seed + number
        world = Wiki(config, seed)
        search = remembered(BM25Retriever(world.corpus), int(rng.choice([1, 2, 2, 3])))
        return Curriculum(world, search, self.tokenizer, rng)


def encode(row: Row, ids: dict[str, int], longest: int) -> tuple[list[int], list[bool]]:
    """Tokens and which of them to predict; the tokenizer's own result, faster."""
    tokens: list[int] = []
    learn: list[bool] = []
    for text, flag in row:
        part = [ids[word] for word in text.split()]
        tokens += part
        learn += [flag] * len(part)
    return tokens[:longest], learn[:longest]


def batches(rows: Rows, recipe: Recipe, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows of like length, from number `first`: tokens and what to predict.

    Shape: each (B, L) int64 and (B, L) bool.
    """
    ids, chunk, number = rows.tokenizer.get_vocab(), 0, 0
    while True:
        groups = _grouped([encode(r, ids, recipe.longest) for r in rows.chunk(chunk)], recipe)
        rng = np.random.default_rng(derive_seed(rows.init_seed, "toy-lm", "order", chunk))
        for n in rng.permutation(len(groups)):
            if number >= first:
                yield _padded(groups[n])
            number += 1
        chunk += 1


def _grouped(rows: list[tuple[list[int], list[bool]]], recipe: Recipe) -> list[list[Any]]:
    groups: list[list[Any]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > recipe.batch_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def _padded(group: Sequence[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    width = max(len(tokens) for tokens, _ in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    learn = torch.zeros(len(group), width, dtype=torch.bool)
    for n, (tokens, flags) in enumerate(group):
        ids[n, : len(tokens)] = torch.tensor(tokens)
        learn[n, : len(flags)] = torch.tensor(flags)
    return ids, learn


# -- training --------------------------------------------------------------------------------


def loss_of(model: Qwen2ForCausalLM, ids: Tensor, learn: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of the tokens to predict.

    Rows are padded on the right, where no token looks, so that no mask is needed.

    Shape: ids (B, L) int64, learn (B, L) bool -> scalar.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = learn[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[targets]), ids[:, 1:][targets])


def optimisers(model: Qwen2ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    named = [(p, p.ndim == 2 and "embed" not in name) for name, p in model.named_parameters()]
    matrices = [p for p, is_matrix in named if is_matrix]
    others = [p for p, is_matrix in named if not is_matrix]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Trainer:
    """The training of one model, with a state that can be kept and taken up again."""

    def __init__(self, init_seed: int, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.step = recipe, folder, 0
        self.tokenizer = make_tokenizer()
        self.model = new_toy_lm(toy_config(len(self.tokenizer)), init_seed).train()
        self.optimisers = optimisers(self.model, recipe)
        self.rows = Rows(init_seed, self.tokenizer)
        self.tokens, self.spent, self.losses = 0, 0.0, list[float]()

    def run(self, keep_every: int = 250) -> None:
        """Train to the end, keeping the state every so many steps."""
        self.resume()
        start = time.process_time() - self.spent
        stream = batches(self.rows, self.recipe, self.step)
        for _ in tqdm(range(self.step, self.recipe.steps), mininterval=30):
            self.update(*next(stream))
            if self.step % keep_every == 0 or self.step == self.recipe.steps:
                self.spent = time.process_time() - start
                self.keep()
                tqdm.write(self.progress())

    def update(self, ids: Tensor, learn: Tensor) -> None:
        """One optimiser step."""
        loss = loss_of(self.model, ids, learn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * self.recipe.factor(self.step)
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.tokens += ids.numel()
        self.losses.append(loss.item())

    def progress(self) -> str:
        mean = float(np.mean(self.losses[-250:]))
        return f"step {self.step}: loss {mean:.3f}, {self.tokens:,} tokens, {self.spent:,.0f} CPU-s"

    def keep(self) -> None:
        """Write the whole state; what was there stays until this is complete."""
        with atomic_directory(self.folder) as part:
            state = {
                "step": self.step, "tokens": self.tokens, "spent": self.spent,
                "losses": self.losses, "recipe": vars(self.recipe),
                "model": self.model.state_dict(),
                "optimisers": [o.state_dict() for o in self.optimisers],
            }  # fmt: skip
            torch.save(state, part / "state.pt")

    def resume(self) -> None:
        """Take up the kept state, if it is of this recipe."""
        file = self.folder / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        if state["recipe"] != vars(self.recipe):
            return
        self.model.load_state_dict(state["model"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.tokens = state["step"], state["tokens"]
        self.spent, self.losses = state["spent"], state["losses"]


def ship(trainer: Trainer, folder: Path) -> None:
    """Write weights in half precision, tokenizer, checksum and how it was trained."""
    with atomic_directory(folder) as part:
        trainer.model.half().save_pretrained(part)
        trainer.tokenizer.save_pretrained(part)
        digest = hashlib.sha256((part / "model.safetensors").read_bytes()).hexdigest()
        training = {
            "recipe": vars(trainer.recipe), "tokens": trainer.tokens,
            "cpu_seconds": round(trainer.spent), "sha256": digest,
            "loss": round(float(np.mean(trainer.losses[-250:])), 4),
        }  # fmt: skip
        (part / "model.safetensors").chmod(0o644)
        (part / "training.json").write_text(json.dumps(training, indent=1) + "\n")


def train(
    init_seed: Annotated[int, typer.Argument(help="0 or 1, the two shipped models.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = Recipe.steps,
    out: Annotated[Path | None, typer.Option(help="By default the package's assets.")] = None,
) -> None:
    """Train one model and write it as a transformers folder."""
    if not 0 <= init_seed < len(TOY_MODELS):
        raise one_of("init_seed", str(init_seed), ["0", "1"])
    use_threads(1)
    folder = build_dir() / "toy_lm" / f"{init_seed}-{steps}"
    trainer = Trainer(init_seed, Recipe(steps=steps), folder)
    trainer.run()
    ship(trainer, out or ASSETS / f"toy_lm_{init_seed}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(train)
