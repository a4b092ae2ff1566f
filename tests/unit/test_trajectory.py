"""Segments of what a model wrote, and the masks of attempts side by side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bpe_example import bpe_tokenizer
from toy_lm_example import toy_tokenizer

from minisearch.agents.trajectory import (
    Segment,
    Trajectory,
    closed_blocks,
    collate,
    not_carried_out,
    split_turn,
)
from minisearch.models.lm import LanguageModel


def cut(ids, tokenizer, opened="") -> list[tuple[str, str]]:
    """Kind and text of each segment; that no token and no log-probability is lost."""
    values = [-0.1 * n for n in range(len(ids))]
    segments = split_turn(LanguageModel(None, tokenizer), ids, values, opened)
    assert [token for s in segments for token in s.ids] == ids
    assert [value for s in segments for value in s.log_probs] == values
    assert all(s.sampled for s in segments)
    return [(s.kind, tokenizer.decode(s.ids)) for s in segments]


def toy(text: str, opened: str = "") -> list[tuple[str, str]]:
    return cut(toy_tokenizer().encode(text), toy_tokenizer(), opened)


def bpe(text: str, opened: str = "") -> list[tuple[str, str]]:
    tokenizer = bpe_tokenizer()
    return cut(tokenizer.encode(text, add_special_tokens=False), tokenizer, opened)


def pieces(*texts: str, opened: str = "") -> list[tuple[str, str]]:
    """Tokens cut at will."""
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(texts[n] for n in ids))
    return cut(list(range(len(texts))), tokenizer, opened)


# -- what the model wrote ----------------------------------------------------------------------


def test_a_turn_of_each_kind_of_block():
    found = toy(
        "<plan> sister of mayor </plan> <think> need sister </think> <refine> found </refine> "
        "<search> sister mayor </search>"
    )
    assert found == [
        ("plan", "<plan> sister of mayor </plan>"),
        ("think", "<think> need sister </think>"),
        ("refine", "<refine> found </refine>"),
        ("search", "<search>"),
        ("query", "sister mayor"),
        ("search", "</search>"),
    ]
    assert toy("<think> found </think> <answer> the mayor </answer>") == [
        ("think", "<think> found </think>"),
        ("answer", "<answer> the mayor </answer>"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # nothing at all, and nothing but text
        ("", []),
        ("who is", [("invalid", "who is")]),
        # text before, between and behind
        (
            "who <think> need </think> is <answer> mayor </answer> <end>",
            [
                ("invalid", "who"), ("think", "<think> need </think>"), ("invalid", "is"),
                ("answer", "<answer> mayor </answer>"), ("invalid", "<end>"),
            ],
        ),
        # never closed, never opened
        ("<think> need <answer> mayor", [("invalid", "<think> need <answer> mayor")]),
        ("need </think> mayor </search>", [("invalid", "need </think> mayor </search>")]),
        (
            "<think> need <search> mayor </search>",
            [
                ("invalid", "<think> need"), ("search", "<search>"), ("query", "mayor"),
                ("search", "</search>"),
            ],
        ),
        # its own tag inside: the inner pair is the block
        (
            "<think> need <think> found </think> </think>",
            [
                ("invalid", "<think> need"), ("think", "<think> found </think>"),
                ("invalid", "</think>"),
            ],
        ),
        # another tag inside belongs to the block, interleaved ones are broken
        (
            "<think> need <answer> mayor </answer> </think>",
            [("think", "<think> need <answer> mayor </answer> </think>")],
        ),
        (
            "<think> need <answer> </think> mayor </answer>",
            [("think", "<think> need <answer> </think>"), ("invalid", "mayor </answer>")],
        ),
        (
            "<search> mayor <think> found </search> need </think>",
            [
                ("search", "<search>"), ("query", "mayor <think> found"), ("search", "</search>"),
                ("invalid", "need </think>"),
            ],
        ),
        # a search for nothing is none
        ("<search> </search>", [("invalid", "<search> </search>")]),
        # tags of the environment and of prompts are text
        ("<information> mayor </information>", [("invalid", "<information> mayor </information>")]),
        ("<attempts> mayor </attempts>", [("invalid", "<attempts> mayor </attempts>")]),
        ("<think> <information> </think>", [("think", "<think> <information> </think>")]),
    ],
)  # fmt: skip
def test_what_is_outside_a_closed_block_is_invalid(text, expected):
    assert toy(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mayor </answer>", [("answer", "mayor </answer>")]),
        ("mayor", [("invalid", "mayor")]),
        ("</answer>", [("answer", "</answer>")]),
        (
            "mayor <answer> sister </answer>",
            [("invalid", "mayor"), ("answer", "<answer> sister </answer>")],
        ),
        ("<search> mayor </answer>", [("answer", "<search> mayor </answer>")]),
        ("mayor </answer> <end>", [("answer", "mayor </answer>"), ("invalid", "<end>")]),
    ],
)
def test_a_block_that_was_opened_for_the_model_needs_its_closing_tag_alone(text, expected):
    assert toy(text, opened="answer") == expected


def test_a_closing_tag_without_the_one_opened_for_the_model_closes_nothing():
    assert toy("mayor </think>", opened="answer") == [("invalid", "mayor </think>")]


# -- tags that are cut by tokens ---------------------------------------------------------------


def test_tags_of_several_tokens_are_found():
    assert bpe("<think> Ä, 北京? </think>\n<search> who of it </search>") == [
        ("think", "<think> Ä, 北京? </think>\n"),  # one token ">\n"
        ("search", "<search>"),
        ("query", " who of it"),
        ("search", " </search>"),
    ]


def test_a_token_across_the_end_of_a_tag_belongs_to_the_tag():
    assert bpe("<think>x</think><answer>y</answer>.") == [
        ("think", "<think>x</think><"),  # "><"
        ("answer", "answer>y</answer>."),  # ">."
    ]


def test_a_token_with_a_part_of_the_query_belongs_to_the_query():
    assert bpe("<search>sister?</search>") == [
        ("search", "<search"), ("query", ">sister?</"), ("search", "search>")
    ]  # fmt: skip
    assert pieces("<search>a</", "search>") == [("query", "<search>a</"), ("search", "search>")]
    assert pieces("<search> a </search>") == [("query", "<search> a </search>")]


def test_space_belongs_to_what_follows_it():
    found = pieces(
        "<think>", "a", "</think>", "\n", " ", "<search", ">", "  ", "b", " ", "\t", "</", "search>"
    )  # fmt: skip
    assert found == [
        ("think", "<think>a</think>"),
        ("search", "\n <search>"),
        ("query", "  b"),
        ("search", " \t</search>"),
    ]
    assert bpe("<search>\nwho </search>") == [
        ("search", "<search>\n"), ("query", "who"), ("search", " </search>")
    ]  # fmt: skip
    assert pieces("\n", "<answer>", "b </answer>\n") == [("answer", "\n<answer>b </answer>\n")]
    assert pieces("\n", "well", " <answer> b </answer>") == [
        ("invalid", "\nwell"), ("answer", " <answer> b </answer>")
    ]  # fmt: skip
    assert pieces(" ", "\n") == [("invalid", " \n")]


def test_tokens_without_text_do_not_cut_a_block_in_two():
    found = pieces("", "<search>", "", "a", "", "b", "", "</search>", "")
    assert found == [("search", "<search>"), ("query", "ab"), ("search", "</search>")]
    assert pieces("", "") == [("invalid", "")]


@pytest.mark.parametrize(
    "text", ["< search> a </search>", "<search > a </search>", "<SEARCH> a </SEARCH>", "<search> a"]
)
def test_what_only_looks_like_a_tag_is_text(text):
    assert bpe(text) == [("invalid", text)]


def test_blocks_are_listed_with_what_stands_inside():
    text = "x <think>\n a </think> <search> </search> <search> b <search> c\nd </search> <answer> e"
    assert closed_blocks(text) == [("think", "a"), ("search", ""), ("search", "c\nd")]
    assert closed_blocks("") == []


# -- attempts ----------------------------------------------------------------------------------


def an_attempt() -> Trajectory:
    return Trajectory(
        [
            Segment("prompt", [1, 2]),
            Segment("think", [3], [-0.3]),
            Segment("search", [4], [-0.4]),
            Segment("query", [5, 6], [-0.5, -0.6]),
            Segment("search", [7], [-0.7]),
            Segment("documents", [8, 9]),
            Segment("search", [4], [-1.4]),
            Segment("query", [6], [-1.6]),
            Segment("search", [7], [-1.7]),
            Segment("documents", [9]),
            Segment("search", [4], [-2.4]),
            Segment("query", [5], [-2.5]),
            Segment("search", [7], [-2.7]),
            Segment("answer", [10]),
            Segment("answer", [11, 12], [-3.1, -3.2]),
        ],
        queries=["a", "b"],
        retrieved=[["p"], ["q"]],
        answer="c",
    )


def test_a_search_without_passages_was_not_carried_out():
    attempt = an_attempt()
    before = [(s.kind, s.ids, s.log_probs) for s in attempt.segments]
    found = not_carried_out(attempt.segments)
    assert [(s.ids, s.log_probs) for s in found] == [(ids, values) for _, ids, values in before]
    changed = [n for n, s in enumerate(found) if s.kind != attempt.segments[n].kind]
    assert changed == [10, 11, 12]
    assert {found[n].kind for n in changed} == {"invalid"}
    assert [(s.kind, s.ids, s.log_probs) for s in attempt.segments] == before  # as it was
    only = not_carried_out([*attempt.segments[:5], Segment("invalid", [7], [-1.0])])
    assert [s.kind for s in only] == ["prompt", "think", *["invalid"] * 4]
    assert not_carried_out(attempt.segments[:6]) == attempt.segments[:6]


def test_the_tokens_of_an_attempt_are_in_order():
    attempt = an_attempt()
    assert attempt.ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 6, 7, 9, 4, 5, 7, 10, 11, 12]
    assert attempt.prompt_length == 2


def test_a_prefix_ends_with_the_passages_of_its_search():
    attempt = an_attempt()
    assert attempt.prefix(0) == attempt.ids[:9]
    assert attempt.prefix(1) == attempt.ids[:13]
    with pytest.raises(IndexError, match="search 2 of an attempt with 2"):
        attempt.prefix(2)
    with pytest.raises(IndexError, match="search 0 of an attempt with 0"):
        Trajectory([Segment("prompt", [1])]).prefix(0)


def test_another_prompt_leaves_the_response_and_the_attempt_as_they_were():
    attempt = an_attempt()
    other = attempt.with_prompt((20, 21, 22))
    assert other.ids == [20, 21, 22, *attempt.ids[2:]]
    assert other.prompt_length == 3
    assert (other.queries, other.retrieved, other.answer) == (["a", "b"], [["p"], ["q"]], "c")
    assert attempt == an_attempt()
    one, two = (collate([row], 0) for row in (attempt, other))
    for name in ("ids", "policy", "observation", "answer", "search", "log_probs"):
        assert torch.equal(getattr(one, name)[:, 2:], getattr(two, name)[:, 3:])


def test_attempts_side_by_side():
    short = Trajectory([Segment("prompt", [1]), Segment("think", [3, 7], [-1.0, -2.0])])
    batch = collate([an_attempt(), short], pad_id=99)
    assert batch.ids[0].tolist() == an_attempt().ids
    assert batch.ids[1].tolist() == [1, 3, 7, *[99] * 16]
    assert batch.real.sum(1).tolist() == [19, 3]
    assert batch.real[1].tolist() == [True] * 3 + [False] * 16
    assert batch.policy[1].nonzero()[:, 0].tolist() == [1, 2]
    marks = zip(batch.policy[0].tolist(), batch.observation[0].tolist(), strict=True)
    letters = {(True, False): "p", (False, True): "o", (False, False): "-"}
    assert "".join(letters[mark] for mark in marks) == "--pppppoopppopppopp"
    assert batch.answer[0].nonzero()[:, 0].tolist() == [16, 17, 18]
    assert batch.search[0].tolist() == [*[-1] * 4, 0, 0, *[-1] * 4, 1, *[-1] * 3, 2, *[-1] * 4]
    written = [-0.3, -0.4, -0.5, -0.6, -0.7, -1.4, -1.6, -1.7, -2.4, -2.5, -2.7, -3.1, -3.2]
    assert batch.log_probs[0][batch.policy[0]].tolist() == pytest.approx(written)
    assert batch.log_probs[~batch.policy].abs().sum() == 0
    assert not batch.observation[1].any()
    assert not batch.answer[1].any()


def test_rows_that_are_chosen_are_cut_to_the_longest_of_them():
    rows = [
        Trajectory([Segment("prompt", [1] * n), Segment("think", [2], [-n])]) for n in (2, 6, 4)
    ]
    batch = collate(rows, 0)
    part = batch.select(torch.tensor([2, 0]))
    assert part.ids.tolist() == [[1, 1, 1, 1, 2], [1, 1, 2, 0, 0]]
    assert part.log_probs[part.policy].tolist() == [-4.0, -2.0]
    assert {value.shape for value in vars(part).values()} == {(2, 5)}


def test_a_batch_moves_to_a_device_as_a_whole():
    moved = collate([an_attempt()], 0).to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values()} == {"meta"}
