"""Judging what an agent wrote: the answer, the queries, the form.

Source: answer normalisation of SQuAD (Rajpurkar et al., 2016), as in Search-R1's exact match.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PASSAGES = r"<information>(?:(?!</information>).)*</information>"
_STEP = rf"<think>[^<]*</think>\s*<search>[^<]+</search>\s*{_PASSAGES}\s*"
_LAST = r"<think>[^<]*</think>\s*<answer>[^<]+</answer>"
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
