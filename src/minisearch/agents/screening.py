"""Training questions chosen by how the untrained policy does on them, or by what it knows.

How often whole groups fail is what a method's signal depends on; here it is set, not met.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from minisearch.agents.protocol import protocol_of
from minisearch.agents.rewards import exact_match_reward
from minisearch.agents.rollout import rollout
from minisearch.agents.study import AgentSettings, Task, invented_task, open_world
from minisearch.data.qa import Question
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel
from minisearch.profiles import derive_seed
from minisearch.storage import cached

TRIES = 8  # first attempts at each question


def knows_the_rest(known: Sequence[bool]) -> bool:
    """Whether only the first of these facts has to be looked up: the others were read before."""
    return not known[0] and all(known[1:])


def composed(question: Question) -> bool:
    """Whether all facts of a question but the first were read before."""
    return knows_the_rest(question["metadata"]["known"])


def screened(
    lm: LanguageModel, start: str, settings: AgentSettings, world_seed: int, count: int
) -> list[tuple[Question, int]]:
    """Questions of three hops of a training encyclopedia, and how many first attempts were right.

    The attempts are made once and kept on disk.

    Args:
        start: the name of the untrained policy `lm`, part of the key on disk.
        count: how many questions.
    """
    home, library = open_world("blank", 200 + world_seed)
    questions = home.questions(count, hops=(3,), seed=derive_seed(0, "screened"))

    def build(folder: Path) -> None:
        protocol = protocol_of(lm.tokenizer)
        asked = [question for question in questions for _ in range(TRIES)]
        prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
        attempts = rollout(lm, library, protocol, prompts, settings.attempts(), TRIES)
        pairs = zip(attempts, asked, strict=True)
        right = np.array([exact_match_reward(*pair) for pair in pairs]).reshape(-1, TRIES)
        (folder / "right.json").write_text(json.dumps(right.sum(1).tolist()))

    key = {"world": world_seed, "start": start, "count": count}
    key |= {"attempts": repr(settings.attempts())}
    right = json.loads((cached("screened", key, build) / "right.json").read_text())
    return list(zip(questions, right, strict=True))


def hard_task(
    found: Sequence[tuple[Question, int]],
    settings: AgentSettings,
    world_seed: int,
    seed: int,
    share: float,
) -> Task:
    """The task of a blank world, trained on screened questions.

    Args:
        found: questions, and how many first attempts at each were right.
        share: of the training questions, those at which no first attempt was right.

    Raises:
        InputError: where too few were found.
    """
    count = settings.steps * settings.questions_a_step
    random = np.random.default_rng(derive_seed(seed, "hard"))
    pools: dict[bool, list[Question]] = {True: [], False: []}
    for question, right in found:
        pools[right == 0].append(question)
    sizes, drawn = {True: round(share * count)}, []
    sizes[False] = count - sizes[True]
    for hard, wanted in sizes.items():
        if len(pools[hard]) < wanted:
            had = f"{len(pools[hard])} {'hard' if hard else 'other'} questions"
            raise InputError("questions", had, str(wanted), "screen more candidates.")
        order = random.permutation(len(pools[hard]))[:wanted]
        drawn += [pools[hard][n] for n in order]
    return replace(invented_task(settings, "blank", world_seed, seed), training=drawn)
