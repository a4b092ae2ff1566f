"""An attempt seen query by query: which step was due, what was written, how a policy asks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from minisearch.agents.grpo import Step
from minisearch.agents.objective import group_advantages
from minisearch.agents.rewards import exact_match_reward
from minisearch.agents.study import AgentSettings, Task, answers, judged, record_answers
from minisearch.agents.trajectory import Trajectory, collate
from minisearch.data.qa import Question
from minisearch.models.lm import LanguageModel
from minisearch.recorder import Recorder


def due_steps(attempt: Trajectory, question: Question) -> list[tuple[int, bool]]:
    """Of each search: the first step whose passage had not come, and whether it came now.

    The step is -1 once the passages of all steps have come, in whatever order.
    """
    gold = [set(hop["gold_ids"]) for hop in question["metadata"]["hops"]]
    seen: set[str] = set()
    found = []
    for brought in attempt.retrieved:
        due = next((n for n, ids in enumerate(gold) if not ids & seen), -1)
        found.append((due, due >= 0 and bool(gold[due] & set(brought))))
        seen |= set(brought)
    return found


def query_tokens(attempt: Trajectory) -> float:
    """Mean number of tokens of an attempt's queries, 0 without any."""
    lengths = [len(s.ids) for s in attempt.segments if s.kind == "query"]
    return float(np.mean(lengths)) if lengths else 0.0


def written_tokens(attempt: Trajectory) -> int:
    """Tokens that the model wrote."""
    return sum(len(s.ids) for s in attempt.segments if s.sampled)


def scored(
    lm: LanguageModel, attempts: Sequence[Trajectory], asked: Sequence[Question], group: int
) -> Step:
    """Attempts as GRPO scores them, those of one question side by side."""
    pairs = zip(attempts, asked, strict=True)
    rewards = torch.tensor([exact_match_reward(*pair) for pair in pairs])
    batch = collate(attempts, lm.pad_id)
    advantages = group_advantages(rewards.view(-1, group)).view(-1, 1) * batch.policy
    own = (batch.policy, advantages, batch.log_probs)
    return Step(list(attempts), list(asked), rewards, batch, *own)


def record_test(
    record: Recorder, name: str, lm: LanguageModel, task: Task, settings: AgentSettings
) -> None:
    """Let a policy answer the test questions from their plain prompts; record how it did.

    Every measure of `judged`, and the tokens of a query and of all that was written, once greedily
    and once at temperature 1.
    """
    columns = {}  # type: dict[str, np.ndarray]
    for how, temperature in {"greedy": 0.0, "sampled": 1.0}.items():
        attempts = answers(lm, task, settings.attempts(temperature))
        found = judged(attempts, task)
        found["query_tokens"] = np.array([query_tokens(a) for a in attempts])
        found["written"] = np.array([written_tokens(a) for a in attempts], float)
        columns |= {f"{metric}_{how}": values for metric, values in found.items()}
    record_answers(record, name, columns, task)
