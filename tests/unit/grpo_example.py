"""A tiny policy that searches now and then, a shelf of passages and questions, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from toy_lm_example import tiny_model, toy_tokenizer

from minisearch.agents.grpo import GRPO, GRPOConfig
from minisearch.agents.rollout import RolloutConfig
from minisearch.agents.trajectory import Trajectory
from minisearch.data.qa import Question
from minisearch.lit import Batches, Optimisation, fit
from minisearch.models.lm import LanguageModel
from minisearch.profiles import Settings

WORDS = ["sister", "mayor", "employer", "birthplace", "mentor", "architect"]
PROMPTS = [
    "<user> who is the sister of the mayor ? <assistant>",
    "<user> name the employer of the mentor of the architect ? <assistant>",
    "<user> mayor ? <assistant>",
]
QUESTIONS = [
    {"id": str(n), "question": f"the {word} of the mayor ?", "golden_answers": [word]}
    | {"metadata": {}}
    for n, word in enumerate(WORDS)
]
ATTEMPTS = RolloutConfig(searches=2, turn_tokens=8)


class Shelf:
    """Finds a passage of four words for a query of one word, and two passages for longer ones."""

    def batch_search(self, queries, topk):
        contents = '"shelf"\nthe sister of the'
        hit = {"document": {"id": "0", "contents": contents}, "score": 1.0}
        return [[hit] * (1 if len(query.split()) == 1 else 2) for query in queries]


@lru_cache(maxsize=1)
def _searching_weights() -> dict[str, torch.Tensor]:
    """Of a model that was shown random attempts."""
    model, encode = tiny_model("qwen2"), toy_tokenizer().encode
    random = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)

    def words(count: int) -> str:
        return " ".join(random.choice(WORDS, count))

    def attempt() -> list[int]:
        passage = f"( <unk> ) the {words(1)} of the"
        search = f"<search> {words(2)} </search> <information> {passage} </information>"
        searches = " ".join([search] * random.integers(0, 3))
        answer = f"<answer> {words(random.integers(1, 4))} </answer>"
        return encode(f"{random.choice(PROMPTS)} {searches} {answer}")

    for _ in range(60):
        rows = [torch.tensor(attempt()) for _ in range(8)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.state_dict()


def searching_lm() -> LanguageModel:
    """A new copy of it, which may be trained."""
    model = tiny_model("qwen2")
    model.load_state_dict(_searching_weights())
    return LanguageModel(model, toy_tokenizer())


def uneven(attempt: Trajectory, question: Question) -> float:
    """A reward of seven values by what was written; the group of question 0 is always dead."""
    return 0.5 if question["id"] == "0" else sum(attempt.ids[attempt.prompt_length :]) % 7 / 7


def train(
    lm: LanguageModel | None = None,
    config: GRPOConfig | None = None,
    steps: int = 3,
    questions: Sequence[int] = range(len(QUESTIONS)),
    learning_rate: float = 0.01,
    schedule: str = "constant",
    settings: Settings | None = None,
    epochs: int = 9,
    trainer: dict[str, Any] | None = None,
    **changes: Any,
) -> GRPO:
    """A module after some steps with two questions each."""
    config = config or GRPOConfig(group=4)
    changes = {"reward": uneven, "attempts": ATTEMPTS, **changes}
    module = changes.pop("method", GRPO)(
        lm or searching_lm(), Shelf(), QUESTIONS, config, **changes
    )
    batches = Batches({"question": torch.tensor(list(questions))}, 2, seed=0)
    optimisation = Optimisation(learning_rate, schedule=schedule, clip=None)
    limits = {"max_steps": steps * config.minibatches, **(trainer or {})}
    fit(module, batches, settings or Settings.of("smoke"), optimisation, epochs, **limits)
    return module


def same_weights(a: GRPO, b: GRPO) -> bool:
    """Bit for bit."""
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
