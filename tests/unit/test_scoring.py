"""Logits and log-probabilities of tokens that are already there, with and without an adapter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from grpo_example import ATTEMPTS, PROMPTS, Shelf, searching_lm
from peft import LoraConfig, get_peft_model
from toy_lm_example import ARCHITECTURES, tiny_model, toy_tokenizer

from minisearch.agents.protocol import TOY, plan_block
from minisearch.agents.rollout import rollout
from minisearch.agents.scoring import (
    PASS_TOKENS,
    log_prob_of,
    logits_before,
    passes,
    response_logits,
    token_log_probs,
)
from minisearch.agents.trajectory import Segment, Trajectory, collate
from minisearch.models.lm import LanguageModel

QUESTION = "who is the sister of the mayor ?"
PLAN = plan_block(["mayor of the employer", "sister of #1"])


def with_adapter(model, targets=("q_proj", "v_proj"), **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(targets), **changes)
        return get_peft_model(model, config).eval()


def drawn(lm, seed=1, count=6):
    """Attempts at several prompts, some with searches."""
    rows = rollout(lm, Shelf(), TOY, PROMPTS * (count // len(PROMPTS)), ATTEMPTS, seed)
    assert any(row.queries for row in rows)
    return rows


def marked(shape, seed=0):
    """Random ids, and random places, none of them in the first column."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, len(toy_tokenizer()), shape, generator=random)
    where = torch.rand(shape, generator=random) < 0.4
    where[:, 0] = False
    where[-1] = False  # a row without any
    return ids, where


# -- logits and log-probabilities --------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_before_a_token_are_the_models_own(architecture):
    model = tiny_model(architecture)
    ids, where = marked((4, 23))
    with torch.no_grad():
        found = logits_before(model, ids, where)
        whole = model(input_ids=ids).logits
    expected = [
        whole[row, place - 1] for row in range(4) for place in range(23) if where[row, place]
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj", "lm_head")])
def test_logits_before_a_token_go_through_an_adapter(targets):
    base = tiny_model("qwen2")
    model = with_adapter(copy.deepcopy(base), targets, init_lora_weights=False)
    ids, where = marked((3, 11))
    with torch.no_grad():
        found, without = logits_before(model, ids, where), logits_before(base, ids, where)
        whole = model(input_ids=ids).logits
    torch.testing.assert_close(found, whole[:, :-1][where[:, 1:]], rtol=1e-5, atol=1e-5)
    assert (found - without).abs().max() > 0.1


def test_logits_before_a_token_have_gradients():
    model = tiny_model("qwen2")
    ids, where = marked((3, 11))
    logits_before(model, ids, where).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_log_prob_of():
    logits = torch.tensor([[1.0, 3.0], [2.0, 2.0]], requires_grad=True)
    found = log_prob_of(logits, torch.tensor([0, 1]))
    expected = [1 - np.log(np.e + np.e**3), -np.log(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.requires_grad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_log_probs_are_those_of_each_row_alone(architecture):
    """Whatever rows stand beside it, however they are split into passes."""
    model = tiny_model(architecture)
    random = np.random.default_rng(0)
    rows = []
    for length in (300, 5, 120, 300, 260, 90, 300, 11):
        ids = random.integers(2, 400, length).tolist()
        cut = length // 2
        segments = [Segment("prompt", ids[:2]), Segment("think", ids[2:cut], [0.0] * (cut - 2))]
        rows.append(Trajectory([*segments, Segment("documents", ids[cut:])]))
    batch, calls = collate(rows, pad_id=0), []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, args, named: calls.append(named["input_ids"].shape), with_kwargs=True
    )
    found = token_log_probs(model, batch, batch.policy)
    hook.remove()
    assert len(calls) > 2
    assert max(rows * columns for rows, columns in calls) <= PASS_TOKENS
    assert not found.requires_grad
    for n, row in enumerate(rows):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0].log_softmax(-1)
        expected = torch.zeros(found.shape[1])
        for place in range(2, len(row.segments[1].ids) + 2):
            expected[place] = scores[place - 1, row.ids[place]]
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_passes_take_each_row_once_and_are_as_full_as_they_may(seed):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 60, (1 + 5 * seed,), generator=random)
    parts = list(passes(lengths, tokens=100))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    sizes = [(len(part), int(lengths[part].max())) for part in parts]
    assert all(rows * longest <= 100 for rows, longest in sizes)
    # The next row, the shortest of those left, would not have fitted:
    assert all(
        (rows + 1) * int(lengths[after].min()) > 100
        for (rows, _), after in zip(sizes, parts[1:], strict=False)
    )


def test_a_row_longer_than_a_pass_is_a_pass_of_its_own():
    parts = [part.tolist() for part in passes(torch.tensor([500, 3, 200, 3]), tokens=100)]
    assert parts == [[1, 3], [2], [0]]
    assert list(passes(torch.tensor([], dtype=torch.long))) == []


# -- the same response under another prompt ----------------------------------------------------


def test_an_empty_privileged_block_changes_no_bit():
    lm = searching_lm()
    attempts = rollout(lm, Shelf(), TOY, [TOY.prompt(lm.tokenizer, QUESTION)] * 6, ATTEMPTS, seed=1)
    student = response_logits(lm, attempts)
    empty = [TOY.prompt(lm.tokenizer, QUESTION, blocks=[])] * 6
    assert torch.equal(response_logits(lm, attempts, empty), student)
    planned = response_logits(lm, attempts, [TOY.prompt(lm.tokenizer, QUESTION, [PLAN])] * 6)
    assert planned.shape == student.shape
    assert ((planned - student).abs().amax(1) > 1e-3).all()
    assert not student.requires_grad


@pytest.mark.parametrize("length", [0, 7])
def test_logits_under_another_prompt_are_those_of_that_text(length):
    """Row by row, the sampled tokens in their order, also where prompts differ in length."""
    lm = searching_lm()
    attempts = drawn(lm)
    prompts = [f"{prompt} the{' of' * n * length}" for n, prompt in enumerate(PROMPTS * 2)]
    expected, tokens = [], []
    for attempt, prompt in zip(attempts, prompts, strict=True):
        ids = lm.encode(prompt)
        places = []
        for segment in attempt.segments[1:]:
            if segment.sampled:
                places += range(len(ids), len(ids) + len(segment.ids))
                tokens += segment.ids
            ids = ids + segment.ids
        with torch.no_grad():
            expected.append(lm.model(input_ids=torch.tensor([ids])).logits[0, :-1])
        expected[-1] = expected[-1][torch.tensor(places) - 1]
    found = response_logits(lm, attempts, prompts)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    batch = collate(attempts, lm.pad_id)
    assert batch.ids[batch.policy].tolist() == tokens


def test_logits_of_the_response_give_the_log_probs_recorded_while_sampling():
    lm = searching_lm()
    attempts = drawn(lm)
    batch = collate(attempts, lm.pad_id)
    found = log_prob_of(response_logits(lm, attempts), batch.ids[batch.policy])
    torch.testing.assert_close(found, batch.log_probs[batch.policy], rtol=1e-4, atol=1e-4)


def test_answers_are_scored_after_tokens_as_after_text():
    lm = searching_lm()
    attempts = [row for row in drawn(lm, count=12) if row.queries]
    answers = ["sister of the mayor", "mentor", "employer"]
    cases = [(row.prefix(0), answer) for row in attempts for answer in answers]
    tokens, wanted = zip(*cases, strict=True)
    texts = [lm.decode(list(ids)) for ids in tokens]
    assert all(text.endswith("</information>") for text in texts)
    by_tokens = lm.answer_log_prob(tokens, wanted)
    torch.testing.assert_close(by_tokens, lm.answer_log_prob(texts, wanted))
    assert len(set(by_tokens.tolist())) == len(set(zip(texts, wanted, strict=True)))


# -- an adapter --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted():
    """A policy with a LoRA adapter after a few steps, its base as it was, and attempts."""
    base = searching_lm()
    base.model.requires_grad_(False)  # as under an adapter; torch then multiplies in another order
    lm = LanguageModel(with_adapter(searching_lm().model), base.tokenizer)
    attempts = drawn(lm)
    batch = collate(attempts, lm.pad_id)
    optimiser = torch.optim.SGD([p for p in lm.model.parameters() if p.requires_grad], 1.0)
    for _ in range(3):
        logits = logits_before(lm.model, batch.ids, batch.policy)
        log_prob_of(logits, batch.ids[batch.policy]).mean().neg().backward()
        optimiser.step()
        optimiser.zero_grad()
    return lm, base, attempts


def test_without_its_adapter_a_model_is_its_base(adapted):
    lm, base, attempts = adapted
    expected = response_logits(base, attempts)
    with lm.model.disable_adapter():
        assert torch.equal(response_logits(lm, attempts), expected)
        again = rollout(lm, Shelf(), TOY, PROMPTS, ATTEMPTS, seed=3)
    assert again == rollout(base, Shelf(), TOY, PROMPTS, ATTEMPTS, seed=3)
    assert (response_logits(lm, attempts) - expected).abs().max() > 0.01


def test_a_model_writes_and_scores_with_its_adapter(adapted):
    lm, base, _ = adapted
    rows = drawn(lm)
    batch = collate(rows, lm.pad_id)
    found = token_log_probs(lm.model, batch, batch.policy)
    torch.testing.assert_close(found, batch.log_probs, rtol=1e-4, atol=1e-4)
    assert (token_log_probs(base.model, batch, batch.policy) - found).abs().max() > 0.01


def test_a_merged_adapter_gives_the_same_logits(adapted):
    lm, base, attempts = adapted
    merged = LanguageModel(copy.deepcopy(lm.model).merge_and_unload(), lm.tokenizer)
    assert type(merged.model) is type(base.model)
    found = response_logits(merged, attempts)
    torch.testing.assert_close(found, response_logits(lm, attempts), rtol=0, atol=1e-4)
