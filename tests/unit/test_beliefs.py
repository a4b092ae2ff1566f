"""Beliefs after branches of an attempt are those of the whole text, and reading leaves no trace."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from toy_lm_example import tiny_lm, tiny_model, toy_tokenizer

from minisearch.agents.beliefs import Branch, branch_log_probs
from minisearch.agents.cache import RowCache
from minisearch.errors import InputError
from minisearch.models.lm import LanguageModel, load_lm

MODELS = ("toy-0", "llama", "gpt_neox")
ANSWERS = ("sister", "mayor of the employer", "birthplace mentor", "the architect of the sister")


@cache
def model_of(name: str) -> LanguageModel:
    return load_lm(name) if name.startswith("toy") else tiny_lm(name)


def drawn_rows(lm: LanguageModel, lengths=(37, 5, 61, 18, 1, 44)) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(2, len(lm.tokenizer), length).tolist() for length in lengths]


def answer_branch(lm: LanguageModel, row: int, start: int, block: list[int], answer: str) -> Branch:
    """Other passages, the opened tag of the answer, and an answer, which is scored."""
    end = lm.encode(f" {answer}")
    return Branch(row, start, [*block, *lm.encode(" <answer>"), *end], len(end))


def drawn_branches(lm: LanguageModel, rows: list[list[int]]) -> tuple[list[Branch], list, list]:
    """Four of each row but one, in no order: at its end, at its first token, and in between.

    Returns: the branches, and the prefixes and answers of the same texts.
    """
    random = np.random.default_rng(1)
    branches, prefixes, answers = [], [], []
    cases = list(product([n for n in range(len(rows)) if n != 3], range(4)))
    for place in random.permutation(len(cases)).tolist():
        row, kind = cases[place]
        ends = (len(rows[row]), 1, *random.integers(1, len(rows[row]) + 1, 2).tolist())
        block = random.integers(2, len(lm.tokenizer), random.integers(0, 25)).tolist()
        answer = ANSWERS[random.integers(len(ANSWERS))]
        branches.append(answer_branch(lm, row, ends[kind], block, answer))
        prefixes.append([*rows[row][: ends[kind]], *block])
        answers.append(answer)
    return branches, prefixes, answers


def mean_log_prob(lm: LanguageModel, rows: list[list[int]], branch: Branch) -> float:
    """Of one text, token by token."""
    ids = rows[branch.row][: branch.start] + branch.ids
    with torch.no_grad():
        scores = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(ids) - branch.scored, len(ids))
    return float(np.mean([scores[place - 1, ids[place]].item() for place in places]))


# -- branches are whole texts ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("rows_at_once", "branches_at_once"), [(8, 64), (1, 1), (2, 3), (64, 7)])
def test_a_branch_is_the_whole_text_whatever_is_read_at_once(name, rows_at_once, branches_at_once):
    lm = model_of(name)
    rows = drawn_rows(lm)
    branches, prefixes, answers = drawn_branches(lm, rows)
    found = branch_log_probs(lm, rows, branches, rows_at_once, branches_at_once)
    expected = lm.answer_log_prob(prefixes, answers)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1  # any two exchanged would show
    assert found.shape == (len(branches),)
    assert found.dtype == torch.float32


def test_a_branch_is_the_whole_text_where_attention_adds_its_mask():
    lm = LanguageModel(tiny_model("llama"), toy_tokenizer())
    lm.model.set_attn_implementation("eager")
    rows = drawn_rows(lm)
    branches, prefixes, answers = drawn_branches(lm, rows)
    found = branch_log_probs(lm, rows, branches, 3, 5)
    torch.testing.assert_close(found, lm.answer_log_prob(prefixes, answers), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_branch_at_the_rows_end_scores_what_would_follow_it(name):
    lm = model_of(name)
    (row,) = drawn_rows(lm, (29,))
    found = branch_log_probs(lm, [row], [answer_branch(lm, 0, len(row), [], "the sister")])
    torch.testing.assert_close(found, lm.answer_log_prob([row], ["the sister"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_branch_of_the_rows_own_tokens_scores_the_row(name):
    lm = model_of(name)
    (row,) = drawn_rows(lm, (30,))
    branches = [Branch(0, start, row[start:], 6) for start in (1, 2, 11, 23)]
    found = branch_log_probs(lm, [row], branches)
    torch.testing.assert_close(found, found[:1].expand(4), rtol=0, atol=1e-4)
    assert found[0].item() == pytest.approx(mean_log_prob(lm, [row], branches[0]), abs=1e-4)


@pytest.mark.parametrize("scored", [1, 2, 8])
def test_only_the_last_tokens_count_each_as_much_as_the_others(scored):
    """Beside a branch with fewer tokens than the other's scored ones, and one with many more."""
    lm = model_of("llama")
    rows = drawn_rows(lm, (12, 20))
    ids = drawn_rows(lm, (9, 40, 2))
    branches = [
        Branch(0, 7, ids[0], scored),
        Branch(1, 20, ids[1], 30),
        Branch(1, 3, ids[2], 1),
    ]
    found = branch_log_probs(lm, rows, branches).tolist()
    assert found == pytest.approx([mean_log_prob(lm, rows, b) for b in branches], abs=1e-4)


def test_branches_of_one_row_at_several_places_do_not_see_each_other():
    lm = model_of("gpt_neox")
    rows = drawn_rows(lm, (50,))
    starts = (50, 3, 27, 3, 1, 49)
    blocks = drawn_rows(lm, (4, 9, 0, 15, 2, 7))
    branches = [
        answer_branch(lm, 0, start, block, "sister of the mayor")
        for start, block in zip(starts, blocks, strict=True)
    ]
    found = branch_log_probs(lm, rows, branches)
    alone = torch.cat([branch_log_probs(lm, rows, [branch]) for branch in branches])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-4)
    assert len({round(value, 3) for value in found.tolist()}) == len(branches)


def test_results_are_in_the_order_of_the_branches():
    lm = model_of("toy-0")
    rows = drawn_rows(lm)
    branches, *_ = drawn_branches(lm, rows)
    found = branch_log_probs(lm, rows, branches, 2, 3)
    again = branch_log_probs(lm, rows, branches[::-1], 2, 3)
    torch.testing.assert_close(again, found.flip(0), rtol=0, atol=1e-4)
    assert (found - found.flip(0)).abs().max() > 0.5


def test_no_branch_is_no_result():
    lm = model_of("llama")
    for rows in ([], drawn_rows(lm, (3, 4))):
        found = branch_log_probs(lm, rows, [])
        assert found.shape == (0,)
        assert found.dtype == torch.float32


@pytest.mark.parametrize(("rows_at_once", "passes"), [(1, 3), (2, 2), (8, 1)])
def test_every_row_with_branches_is_read_once_and_no_other(rows_at_once, passes):
    lm, calls = LanguageModel(tiny_model("llama"), toy_tokenizer()), []
    lm.model.get_decoder().register_forward_pre_hook(
        lambda _, args, named: calls.append(named["input_ids"]), with_kwargs=True
    )
    rows = drawn_rows(lm, (20, 30, 25, 40))
    branches = [
        answer_branch(lm, row, 7, [], answer) for row in (2, 0, 3) for answer in ANSWERS[:3]
    ]
    branch_log_probs(lm, rows, branches, rows_at_once)
    reads = [ids for ids in calls if ids.shape[1] >= 20]
    assert len(reads) == passes
    assert sum(int((ids != lm.pad_id).sum()) for ids in reads) == 20 + 25 + 40
    assert len(calls) == 2 * passes  # and all branches of these rows in one pass


# -- what stays as it was --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_given_back(training):
    lm = LanguageModel(tiny_model("llama").train(training), toy_tokenizer())
    rows = drawn_rows(lm, (8,))
    branch_log_probs(lm, rows, [answer_branch(lm, 0, 4, [], "sister")])
    assert lm.model.training is training
    branch_log_probs(lm, rows, [])
    assert lm.model.training is training


def test_the_mode_of_the_model_is_given_back_after_an_error():
    lm = LanguageModel(tiny_model("llama").train(), toy_tokenizer())
    unknown = [len(lm.tokenizer) + 5]
    with pytest.raises(IndexError):
        branch_log_probs(lm, [[2, 3]], [Branch(0, 2, [4, *unknown], 1)])
    assert lm.model.training
    with pytest.raises(InputError):
        branch_log_probs(lm, [[2, 3]], [Branch(0, 3, [4, 5], 1)])
    assert lm.model.training


def test_beliefs_are_without_dropout_though_the_model_trains():
    lm = LanguageModel(tiny_model("llama"), toy_tokenizer())
    rows = drawn_rows(lm, (8, 13))
    branches = [answer_branch(lm, row, 4, [], "sister") for row in (0, 1)]
    expected = branch_log_probs(lm, rows, branches)
    for layer in lm.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    lm.model.train()
    assert torch.equal(branch_log_probs(lm, rows, branches), expected)


def test_no_gradient_is_kept_and_the_model_can_still_be_trained():
    lm = LanguageModel(tiny_model("llama"), toy_tokenizer())
    rows = drawn_rows(lm, (8, 13))
    found = branch_log_probs(lm, rows, [answer_branch(lm, 0, 4, [], "sister")])
    assert not found.requires_grad
    assert found.grad_fn is None
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters())
    loss = lm.model(input_ids=torch.tensor([rows[1]])).logits.logsumexp(-1).mean()
    (loss * (found + 1).sum()).backward()  # as an advantage
    assert all(p.grad is not None for p in lm.model.parameters())


def read(lm: LanguageModel, cache: RowCache, tokens: list[list[int]]) -> torch.Tensor:
    """Logits of the last token of each row."""
    width = max(map(len, tokens))
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + row for row in tokens])
    places, mask = cache.advance(torch.tensor([len(row) for row in tokens]), width)
    with torch.no_grad():
        output = lm.model(
            input_ids=ids, attention_mask=mask, position_ids=places,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
    return output.logits[:, -1]


@pytest.mark.parametrize("name", MODELS)
def test_branches_leave_the_trunk_as_it_was(name):
    lm = model_of(name)
    rows = drawn_rows(lm, (9, 4, 15))
    trunk, untouched = (RowCache(3, lm.model.device) for _ in range(2))
    for both in (trunk, untouched):
        read(lm, both, rows)
    lengths = trunk.lengths.tolist()
    more = drawn_rows(lm, (6, 11, 3, 8))
    sources, starts = [2, 0, 2, 1], [15, 3, 2, 4]
    for _ in range(2):
        branched = trunk.branched(torch.tensor(sources), torch.tensor(starts))
        found = read(lm, branched, more)
        assert branched.get_seq_length() == 21
        assert trunk.lengths.tolist() == lengths
        assert trunk.get_seq_length() == 15
        for n, (row, start) in enumerate(zip(sources, starts, strict=True)):
            whole = read(lm, RowCache(1, lm.model.device), [rows[row][:start] + more[n]])
            torch.testing.assert_close(found[n], whole[0], rtol=1e-4, atol=1e-4)
    after = drawn_rows(lm, (2, 5, 3))
    assert torch.equal(read(lm, trunk, after), read(lm, untouched, after))


# -- what is no branch -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [-1, 0, 6, 100])
def test_a_branch_that_leaves_its_row_nowhere_in_it_is_an_error(start):
    lm = model_of("llama")
    rows = [[2] * 9, [3] * 5]
    branches = [Branch(0, 6, [4, 5], 1), Branch(1, start, [4, 5], 1)]
    with pytest.raises(InputError) as caught:
        branch_log_probs(lm, rows, branches)
    assert caught.value.where == "branch 1"
    assert caught.value.found == f"a start of {start}"
    assert caught.value.expected.startswith("1 to 5")
    assert len(branch_log_probs(lm, rows, [branches[0], Branch(1, 5, [4, 5], 1)])) == 2


@pytest.mark.parametrize(("ids", "scored"), [([4, 5], 0), ([4, 5], -1), ([4, 5], 2), ([], 0)])
def test_a_branch_of_which_nothing_or_everything_is_scored_is_an_error(ids, scored):
    with pytest.raises(InputError) as caught:
        branch_log_probs(model_of("llama"), [[2, 3]], [Branch(0, 1, ids, scored)])
    assert caught.value.where == "branch 0"
    assert caught.value.found == f"{scored} of {len(ids)} tokens to score"
