"""Whatever a model writes and however it is cut into tokens: nothing is lost, masks agree."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from bpe_example import bpe_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisearch.agents.trajectory import KINDS, Segment, Trajectory, collate, split_turn
from minisearch.models.lm import LanguageModel

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
OWN = ("plan", "think", "search", "refine", "answer")
FRAGMENTS = [
    *(f"<{tag}>" for tag in OWN), *(f"</{tag}>" for tag in OWN), "<search>", "</search>",
    "<information>", "</information>", "<", "</", ">", "search", "sister", "a", "?", ".", "é", "北",
    " ", " ", "\n", "",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
blocks = st.builds(
    "<{0}>{1}</{0}>".format, st.sampled_from(OWN), st.sampled_from(["", " ", "a b", " ?"])
)
turns = st.one_of(texts, st.lists(st.one_of(blocks, st.sampled_from(FRAGMENTS))).map("".join))


@st.composite
def cuts(draw) -> list[str]:
    """A text in random pieces, some of them empty."""
    text = draw(turns)
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=40)))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def parsed(text: str) -> list[str]:
    """The kind of every character, by a parser of its own: no regular expression."""
    kinds, place = ["invalid"] * len(text), 0
    while place < len(text):
        tag = next((t for t in OWN if text.startswith(f"<{t}>", place)), "")
        inside = place + len(tag) + 2
        close = text.find(f"</{tag}>", inside) if tag else -1
        if close < 0 or 0 <= text.find(f"<{tag}>", inside) < close:
            place += 1
            continue
        end = close + len(tag) + 3
        if tag != "search":
            kinds[place:end] = [tag] * (end - place)
        elif text[inside:close].strip():
            kinds[place:end] = ["search"] * (end - place)
            kinds[inside:close] = ["query"] * (close - inside)
        place = end
    return kinds


def kind_of(text: str, start: int, end: int) -> str:
    """Of the token that holds text[start:end]."""
    kinds = parsed(text)
    held = [kinds[n] for n in range(start, end) if not text[n].isspace()]
    if "query" in held:
        return "query"
    after = [kinds[n] for n in range(start, len(text)) if not text[n].isspace()]
    return (held or after or kinds[-1:] or ["invalid"])[0]


def check(tokens: list[int], pieces: list[str], tokenizer, opened: str) -> None:
    values = [-float(n) for n in range(len(tokens))]
    found = split_turn(LanguageModel(None, tokenizer), tokens, values, opened)
    assert [token for s in found for token in s.ids] == tokens
    assert [value for s in found for value in s.log_probs] == values
    assert all(s.ids and len(s.ids) == len(s.log_probs) for s in found)
    assert all(a.kind != b.kind for a, b in pairwise(found))
    assert {s.kind for s in found} <= {*OWN, "query", "invalid"}
    head = f"<{opened}>" if opened else ""
    text, place, expected = head + "".join(pieces), len(head), []
    for piece in pieces:
        expected.append(kind_of(text, place, place + len(piece)))
        place += len(piece)
    assert [s.kind for s in found for _ in s.ids] == expected
    searches = sum(a != "query" == b for a, b in pairwise(["", *parsed(text)]))
    queries = sum(s.kind == "query" for s in found)
    assert bool(queries) == bool(searches)
    assert queries <= searches  # fewer only where one token holds parts of two


@unhurried
@given(cuts(), st.sampled_from(["", "answer", "think"]))
def test_any_cut_of_any_text_into_tokens(pieces, opened):
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(pieces[n] for n in ids))
    check(list(range(len(pieces))), pieces, tokenizer, opened)


@unhurried
@given(turns, st.sampled_from(["", "answer"]))
def test_any_text_in_the_tokens_of_a_byte_level_tokenizer(text, opened):
    tokenizer = bpe_tokenizer()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    check(tokens, [tokenizer.decode([token]) for token in tokens], tokenizer, opened)


@unhurried
@given(st.lists(st.integers(0, len(bpe_tokenizer()) - 1), max_size=40))
def test_any_tokens_of_a_byte_level_tokenizer(tokens):
    tokenizer = bpe_tokenizer()
    check(tokens, [tokenizer.decode([token]) for token in tokens], tokenizer, "")


# -- attempts side by side ---------------------------------------------------------------------

token = st.integers(3, 99)
log_prob = st.floats(-20, 0, width=32)


@st.composite
def segments(draw) -> Segment:
    kind = draw(st.sampled_from(KINDS[1:]))
    ids = draw(st.lists(token, min_size=1, max_size=5))
    written = kind != "documents" and not (kind == "answer" and draw(st.booleans()))
    size = len(ids)
    values = draw(st.lists(log_prob, min_size=size, max_size=size)) if written else None
    return Segment(kind, ids, values)


prompts = st.lists(token, min_size=1, max_size=6)
attempts = st.builds(
    lambda ids, rest: Trajectory([Segment("prompt", ids), *rest]), prompts, st.lists(segments())
)


@unhurried
@given(st.lists(attempts, min_size=1, max_size=4))
def test_every_token_of_a_response_is_either_the_models_or_the_environments(rows):
    batch = collate(rows, pad_id=0)
    assert {value.shape for value in vars(batch).values()} == {batch.ids.shape}
    place = torch.arange(batch.ids.shape[1])
    response = batch.real & (place >= torch.tensor([row.prompt_length for row in rows])[:, None])
    assert not (batch.policy & batch.observation).any()
    assert torch.equal(batch.policy | batch.observation, response)
    for n, row in enumerate(rows):
        size = len(row.ids)
        assert batch.ids[n, :size].tolist() == row.ids
        assert (batch.ids[n, size:] == 0).all()
        assert batch.real[n].tolist() == [True] * size + [False] * (len(place) - size)
        by_token = [(s, t) for s in row.segments for t in s.ids]
        assert batch.policy[n, :size].tolist() == [s.sampled for s, _ in by_token]
        assert batch.answer[n, :size].tolist() == [s.kind == "answer" for s, _ in by_token]
        assert not batch.answer[n, size:].any()
        recorded = [v for s in row.segments if s.sampled for v in s.log_probs]
        assert batch.log_probs[n][batch.policy[n]].tolist() == recorded
        assert (batch.log_probs[n][~batch.policy[n]] == 0).all()


@unhurried
@given(st.lists(attempts, min_size=1, max_size=4))
def test_the_number_of_a_search_counts_the_queries_before(rows):
    batch = collate(rows, pad_id=0)
    for n, row in enumerate(rows):
        expected, count = [], 0
        for segment in row.segments:
            number = count if segment.kind == "query" else -1
            expected += [number] * len(segment.ids)
            count += segment.kind == "query"
        padding = [-1] * (batch.ids.shape[1] - len(expected))
        assert batch.search[n].tolist() == expected + padding


@unhurried
@given(attempts, prompts)
def test_another_prompt_selects_the_same_tokens_of_the_response(row, ids):
    other = row.with_prompt(ids)
    assert other.ids == ids + row.ids[row.prompt_length :]
    one, two = collate([row], 0), collate([other], 0)
    for name in set(vars(one)) - {"real"}:
        first, second = getattr(one, name), getattr(two, name)
        assert torch.equal(first[:, row.prompt_length :], second[:, len(ids) :])
    for name in ("policy", "observation", "answer"):
        assert torch.equal(one.ids[getattr(one, name)], two.ids[getattr(two, name)])


@unhurried
@given(attempts)
def test_a_prefix_is_all_that_came_before_and_the_passages_themselves(row):
    seen: list[int] = []
    count = 0
    for segment in row.segments:
        seen += segment.ids
        if segment.kind == "documents":
            assert row.prefix(count) == seen
            count += 1
    with pytest.raises(IndexError):
        row.prefix(count)


@unhurried
@given(st.lists(attempts, min_size=1, max_size=5), st.data())
def test_chosen_rows_are_those_rows_by_themselves(rows, data):
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    part = collate(rows, 0).select(torch.tensor(numbers))
    alone = collate([rows[n] for n in numbers], 0)
    assert all(torch.equal(getattr(part, name), getattr(alone, name)) for name in vars(alone))
