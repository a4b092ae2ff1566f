"""Judging what an agent wrote: the answer, the queries, the form.

Source: answer normalisation of SQuAD (Rajpurkar et al., 2016), as in Search-R1's exact match.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from minisearch.agents.trajectory import Trajectory
from minisearch.data.qa import Question

Reward = Callable[[Trajectory, Question], float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PASSAGES = r"<information>(?:(?!</information>).)*</information>"
_STEP = rf"<think>[^<]*</think>\s*<search>[^<]+</search>\s*{_PASSAGES}\s*"
_LAST = r"<think>[^<]*</think>\s*<answer>[^<]+</answer>"
_WHOLE = {"yes", "no", "noanswer"}
_FORM = re.compile(rf"\s*(?:{_STEP})*{_LAST}\s*", re.S)


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; single spaces.

    >>> normalise_answer("The U.S.  dollar")
    'us dollar'
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, golden_answers: Sequence[str]) -> bool:
    """Whether the answer, normalised, equals a golden one; an empty one never does."""
    given = normalise_answer(answer)
    return bool(given) and any(given == normalise_answer(gold) for gold in golden_answers)


def last_tagged(text: str, tag: str) -> str:
    """What stands in the last closed pair of a tag; "" where there is none.

    Give it the response alone: a prompt may hold the same tags, as instructions or examples.
    """
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.S)
    return found[-1].strip() if found else ""


def is_well_formed(response: str) -> bool:
    """Whether it is any number of think, search, information, then think and one answer."""
    return _FORM.fullmatch(response) is not None


def f1_score(answer: str, golden_answers: Sequence[str]) -> float:
    """Overlap of words with the best golden answer: harmonic mean of precision and recall.

    "yes", "no" and "noanswer" count as right or wrong as a whole.

    Source: HotpotQA (arXiv 1809.09600), as in AutoRefine's reward (arXiv 2505.11277).
    """
    return max(
        (_f1(normalise_answer(answer), normalise_answer(g)) for g in golden_answers), default=0.0
    )


def _f1(given: str, gold: str) -> float:
    if given != gold and {given, gold} & _WHOLE:
        return 0.0
    words, wanted = given.split(), gold.split()
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def cover_exact_match(answer: str, golden_answers: Sequence[str]) -> bool:
    """Whether a golden answer stands in the answer, both normalised, as whole words.

    Source: Search-R1's `subem` and the papers' cover-EM; they also count parts of words.
    """
    given = f" {normalise_answer(answer)} "
    golden = [normalise_answer(gold) for gold in golden_answers]
    return any(gold and f" {gold} " in given for gold in golden)


# -- of a whole attempt: these are rewards, `Reward`, and measures alike --------------------------


def exact_match_reward(attempt: Trajectory, question: Question) -> float:
    """1 for the right answer, else 0. Source: Search-R1 (arXiv 2503.09516)."""
    return float(exact_match(attempt.answer, question["golden_answers"]))


def f1_reward(attempt: Trajectory, question: Question) -> float:
    """Partial credit for a part of the name."""
    return f1_score(attempt.answer, question["golden_answers"])


def format_reward(attempt: Trajectory, question: Question) -> float:
    """1 for an attempt that the model closed itself, each block in its place."""
    written = [s for s in attempt.segments[1:] if s.kind != "documents"]
    own = all(s.sampled and s.kind != "invalid" for s in written)
    return float(own and is_well_formed(attempt.text))


def searches(attempt: Trajectory, question: Question) -> float:
    """Number of searches that were carried out."""
    return float(len(attempt.queries))


def gold_recall(attempt: Trajectory, question: Question) -> float:
    """Share of the hops of which some search brought a passage that states the fact.

    Raises: KeyError for a question whose hops are not known.
    """
    brought = {passage for found in attempt.retrieved for passage in found}
    hops = question["metadata"]["hops"]
    return sum(bool(brought & set(hop["gold_ids"])) for hop in hops) / len(hops)
