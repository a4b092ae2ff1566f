"""Does a model's belief in the true answer react to what its searches bring?

Source: the score is the information gain of IG-Search (arXiv 2604.15148); the test of it is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from minisearch.agents.probes import Exam, Score
from minisearch.agents.rollout import RolloutConfig
from minisearch.agents.trajectory import Trajectory
from minisearch.metrics import auc_by_group


@dataclass
class _Search:
    """One search of an attempt, as the evidence probe sees it."""

    number: int  # of the question
    before: list[int]  # tokens of the prompt and everything up to the query's closing tag
    block: list[int]  # tokens of the passages
    shown: str  # the passages as text
    found: bool  # the passage of the hop that was due
    last: bool  # that hop was the last one
    several: bool  # hops the question has
    known: bool  # all hops after it are known to the model
    says_found: bool  # the model's own next thought


def evidence(exam: Exam, config: RolloutConfig, seed: int = 7, draws: int = 3) -> dict[str, Any]:
    """Does the score of the gold answer rise when a search brings what was due?

    The gain of a search is the mean log-probability of the gold answer's tokens after its passages,
    less that after the passages of other questions' searches in the same world (without the
    answer), averaged over `draws`. Passages are due for the first hop whose passage has not come
    yet, whatever name the model searched for. In a blank world the bridge says nothing about the
    answer, so that no reader's gain could see it there.

    Returns:
        by case: the mean gain; for all, last and bridge hops: the ROC-AUC of the gain as a detector
        of "found what was due", and of the model's own next thought.
    """
    searches = _searches(exam, exam.attempts(config, seed))
    rng = np.random.default_rng(seed)
    gold = [exam.questions[s.number]["golden_answers"][0] for s in searches]
    real = exam.lm.answer_log_prob([s.before + s.block for s in searches], gold).numpy()
    prefixes: list[list[int]] = []
    for s, answer in zip(searches, gold, strict=True):
        others = [
            o.block
            for o in searches
            if o.number != s.number
            and exam.world_of[o.number] == exam.world_of[s.number]
            and answer not in o.shown
        ]
        picked = rng.choice(len(others), draws, replace=len(others) < draws)
        prefixes += [s.before + others[i] for i in picked]
    random = exam.lm.answer_log_prob(prefixes, list(np.repeat(gold, draws))).numpy()
    gain = real - random.reshape(-1, draws).mean(axis=1)
    return _evidence_table(searches, gain)


def _searches(exam: Exam, done: Sequence[Trajectory]) -> list[_Search]:
    found: list[_Search] = []
    for number, row in enumerate(done):
        hops, due = exam.questions[number]["metadata"]["hops"], 0
        known = exam.questions[number]["metadata"]["known"]
        places = [n for n, segment in enumerate(row.segments) if segment.kind == "documents"]
        for place, ids in zip(places, row.retrieved, strict=True):
            if due == len(hops):
                break
            hit = bool(set(hops[due]["gold_ids"]) & set(ids))
            block, turn = row.segments[place].ids, row.segments[place + 1 :]
            after = exam.lm.decode([t for s in takewhile(lambda s: s.sampled, turn) for t in s.ids])
            found.append(
                _Search(
                    number=number, before=[t for s in row.segments[:place] for t in s.ids],
                    block=block, shown=exam.lm.decode(block), found=hit,
                    last=due == len(hops) - 1, several=len(hops) > 1,
                    known=all(known[due + 1 :]),
                    says_found="found" in after.partition("</think>")[0],
                )
            )  # fmt: skip
            due += hit
    return found


def _evidence_table(searches: Sequence[_Search], gain: np.ndarray) -> dict[str, Any]:
    number = np.array([s.number for s in searches])
    found, last = (np.array([getattr(s, name) for s in searches]) for name in ("found", "last"))
    known = np.array([s.known for s in searches]) & ~last
    says = np.array([s.says_found for s in searches], float)
    several = np.array([s.several for s in searches])
    cases = {
        "all": found | True,
        "last hop": last,
        "last of several hops": last & several,
        "bridge hop": ~last,
    }
    if known.any():
        cases |= {"bridge, rest known": known, "bridge, rest not known": ~last & ~known}
    table: dict[str, Any] = {}
    for name, case in cases.items():
        table[name] = {
            "found, gain": Score.clustered(gain[case & found], number[case & found]),
            "not found, gain": Score.clustered(gain[case & ~found], number[case & ~found]),
            "AUC of the gain": _auc(gain, found, number, case),
            "AUC of the next thought": _auc(says, found, number, case),
        }
    return table


def _auc(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, case: np.ndarray) -> Score:
    if len(np.unique(labels[case])) < 2:
        return Score.of(np.array([]))
    return Score.of(auc_by_group(values[case], labels[case], groups[case]))
