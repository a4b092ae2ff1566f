"""Attempts as HTML that opens and closes without a kernel: who wrote what, and what it earned."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import groupby

from minisearch.agents.trajectory import Trajectory
from minisearch.data.qa import Document, Question, body_of, title_of
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel

_TAG = re.compile(r"</?\w+>")


def group_html(
    lm: LanguageModel,
    question: Question,
    attempts: Sequence[Trajectory],
    rewards: Sequence[float],
    corpus: Sequence[Document],
    opened: int = 1,
) -> str:
    """All attempts at one question, best first; the first `opened` of them stand open.

    A passage that a step of the question needs has a star.

    Shape: one reward an attempt -> HTML with a `details` element an attempt.
    """
    gold = {i for hop in question["metadata"].get("hops", ()) for i in hop.get("gold_ids", ())}
    passages = {document["id"]: document for document in corpus}
    order = sorted(range(len(attempts)), key=lambda n: -rewards[n])
    steps = " → ".join(hop["answer"] for hop in question["metadata"].get("hops", ()))
    answers = steps or " or ".join(question["golden_answers"])
    rows = [
        _attempt(lm, attempts[n], rewards[n], gold, passages, place < opened)
        for place, n in enumerate(order)
    ]
    head = f"<p><b>{html.escape(question['question'])}</b><br>Right: {html.escape(answers)}</p>"
    return f'<div class="ms-group">{head}{"".join(rows)}</div>'


def tokens_html(lm: LanguageModel, attempt: Trajectory, values: Sequence[float]) -> str:
    """One attempt, each written token on a ground as strong as its value; what was read is grey.

    Above 0 the ground is blue, below orange. A token's value is its tooltip, and is printed where
    it changes within a turn.

    Shape: one value a token of the whole attempt, then 0s, as in a row of a batch -> HTML.

    Raises:
        InputError: for fewer values, or another one than 0 after the last token.
    """
    count = len(attempt.ids)
    if len(values) < count or any(values[count:]):
        found, expected = f"values of {len(values)} tokens", f"{count}, the attempt's, or 0s after"
        raise InputError("tokens_html", found, expected, "pass the row of this attempt.")
    most = max((abs(value) for value in values), default=0.0) or 1.0
    place, before, pieces = attempt.prompt_length, 0.0, []
    gap = " " if " " in lm.decode(attempt.ids[:2]).strip() else ""  # tokens that are whole words
    for segment in attempt.segments[1:]:
        for token in lm.pieces(segment.ids):
            value, text = values[place], html.escape(token) + gap
            place += 1
            if not segment.sampled:
                pieces.append(f'<span style="opacity:.55">{text}</span>')
                before = 0.0
                continue
            rgb = "0, 114, 178" if value > 0 else "213, 94, 0"
            ground = f"background: rgba({rgb}, {0.65 * abs(value) / most:.2f})"
            label = f"<sub>{value:+.2f}</sub>{gap}" if value != before else ""
            pieces.append(f'<span title="{value:+.3f}" style="{ground}">{text}</span>{label}')
            before = value
    return f'<div class="ms-group"><p>{"".join(pieces)}</p></div>'


def _attempt(
    lm: LanguageModel,
    attempt: Trajectory,
    reward: float,
    gold: set[str],
    passages: dict[str, Document],
    is_open: bool,
) -> str:
    count = len(attempt.queries)
    summary = (
        f"reward {reward:g} · {count} search{'' if count == 1 else 'es'} · "
        f"answer: {html.escape(attempt.answer) or 'none'}"
    )
    found, pieces = iter(attempt.retrieved), []
    for kind, text in _blocks(lm, attempt):
        inner = html.escape(text)
        if kind == "documents":
            body = "".join(_passage(passages[i], i in gold) for i in next(found) if i in passages)
            inner = f"<ul>{body or '<li>nothing found</li>'}</ul>"
        pieces.append(f'<div class="ms-piece ms-{kind}"><b>{kind}</b> {inner}</div>')
    mark, state = "right" if reward > 0 else "wrong", " open" if is_open else ""
    return (
        f'<details class="ms-try ms-{mark}"{state}><summary>{summary}</summary>'
        f'<div class="ms-attempt">{"".join(pieces)}</div></details>'
    )


def _blocks(lm: LanguageModel, attempt: Trajectory) -> list[tuple[str, str]]:
    """Kind and text of each block after the prompt, without tags."""
    blocks = []
    for kind, segments in groupby(attempt.segments[1:], key=lambda segment: segment.kind):
        text = lm.decode([token for segment in segments for token in segment.ids])
        text = text if kind == "invalid" else _TAG.sub("", text)
        if kind != "search":  # the tags of a query
            blocks.append((kind, text.strip()))
    return blocks


def _passage(document: Document, needed: bool) -> str:
    text = f"{title_of(document)}: {body_of(document)}"
    return f"<li>{'★ ' if needed else ''}{html.escape(text)}</li>"
