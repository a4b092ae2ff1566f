"""The two language models that come with the book: their files, and what they can do at least."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_lm_example import load_script, toy_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from minisearch.agents.protocol import TOY, Piece
from minisearch.agents.rewards import exact_match, is_well_formed
from minisearch.agents.rollout import RolloutConfig, Trajectory, rollout
from minisearch.models.lm import ASSETS, TOY_MODELS, LanguageModel, load_lm
from minisearch.retriever import BM25Retriever
from minisearch.worlds.wiki import Wiki, WikiConfig

pytestmark = pytest.mark.parametrize("name", TOY_MODELS)
GREEDY = RolloutConfig(temperature=0.0)
AT_ONCE = RolloutConfig(temperature=0.0, answer_at_once=True)


def folder_of(name: str) -> Path:
    return ASSETS / f"toy_lm_{TOY_MODELS.index(name)}"


@lru_cache
def shipped(name: str) -> LanguageModel:
    return load_lm(name)


def rows_of_text(count: int = 12) -> list[str]:
    """Texts of all kinds as the models have read them, of a world they have not."""
    world = Wiki(WikiConfig(), 102)
    texts = [TOY.render(world.corpus[n : n + 3]) for n in range(count)]
    prompts = [TOY.prompt(toy_tokenizer(), q["question"]) for q in world.questions(count)]
    return [f"{p} <information> {t} </information>" for p, t in zip(prompts, texts, strict=True)]


def attempts(name: str, world: Wiki, questions, config: RolloutConfig) -> list[Trajectory]:
    lm = shipped(name)
    prompts = [TOY.prompt(lm.tokenizer, question["question"]) for question in questions]
    return rollout(lm, BM25Retriever(world.corpus), TOY, prompts, config)


# -- the files ---------------------------------------------------------------------------------


def test_the_folder_is_a_qwen2_as_transformers_itself_opens_it(name):
    model = AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32)
    assert type(model) is Qwen2ForCausalLM
    assert model.num_parameters() <= 1_650_000
    assert model.config.vocab_size == len(load_script().vocabulary())
    assert (model.generation_config.eos_token_id, model.config.pad_token_id) == (1, 0)
    ids = torch.tensor([toy_tokenizer().encode(rows_of_text(1)[0])])
    with torch.no_grad():
        logits = [one(input_ids=ids).logits for one in (model, shipped(name).model)]
    assert torch.equal(*logits)


def test_transformers_class_that_the_card_names_splits_text_as_in_training(name):
    """Not `AutoTokenizer`: for a Qwen2 it takes Qwen2's own class, whatever the folder says."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder_of(name))
    for text in rows_of_text():
        assert tokenizer.encode(text) == toy_tokenizer().encode(text)


def test_the_tokenizer_is_that_of_the_script(name):
    tokenizer = shipped(name).tokenizer
    assert tokenizer.get_vocab() == toy_tokenizer().get_vocab()
    assert tokenizer.chat_template == toy_tokenizer().chat_template
    assert tokenizer.all_special_tokens == toy_tokenizer().all_special_tokens
    for text in rows_of_text():
        assert tokenizer.encode(text) == toy_tokenizer().encode(text)
        assert tokenizer.unk_token_id not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_weights_are_small_and_those_that_were_trained(name):
    file = folder_of(name) / "model.safetensors"
    assert file.stat().st_size < 8_000_000
    training = json.loads((folder_of(name) / "training.json").read_text())
    assert training["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert training["recipe"] == vars(load_script().Recipe())


def test_saved_and_loaded_again_it_is_the_same_model(name, tmp_path):
    lm = shipped(name)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = load_lm(str(tmp_path))
    for text in rows_of_text(4):
        with torch.no_grad():
            logits = [one.model(torch.tensor([one.encode(text)])).logits for one in (lm, again)]
        assert torch.equal(*logits)


def test_the_other_model_has_other_weights(name):
    mine, *others = (shipped(n).model.state_dict() for n in sorted(TOY_MODELS, key=name.__ne__))
    for other in others:
        assert mine.keys() == other.keys()
        assert not any(torch.equal(mine[part], other[part]) for part in mine)


# -- what they can do --------------------------------------------------------------------------


def test_attempts_are_well_formed_and_no_plan_is_written(name):
    world = Wiki(WikiConfig(), 100)
    done = attempts(name, world, world.questions(20), GREEDY)
    texts = [row.text.replace("<end>", "") for row in done]
    assert np.mean([is_well_formed(text) for text in texts]) > 0.85
    assert not any("plan>" in text for text in texts)
    assert np.mean([len(row.queries) > 0 for row in done]) > 0.85


def test_the_passage_that_answers_makes_the_answer_likelier_than_another_one(name):
    world, lm, rng = Wiki(WikiConfig(), 101), shipped(name), np.random.default_rng(0)
    corpus = {document["id"]: document for document in world.corpus}
    told, untold, answers = list[str](), list[str](), list[str]()
    for question in world.questions(40, hops=(1,)):
        answer, (hop,) = question["golden_answers"][0], question["metadata"]["hops"]
        query = f"{question['metadata']['entity']} {question['metadata']['relations'][0]}"
        others = [d for d in world.corpus if answer not in d["contents"]]
        start = f"{TOY.prompt(lm.tokenizer, question['question'])} {Piece('search', query)}"
        for prefixes, document in (
            (told, corpus[hop["gold_ids"][0]]),
            (untold, others[rng.integers(len(others))]),
        ):
            prefixes.append(f"{start} {Piece('information', TOY.render([document]))}")
        answers.append(answer)
    gain = lm.answer_log_prob(told, answers) - lm.answer_log_prob(untold, answers)
    assert (gain > 0).float().mean() > 0.8
    assert gain.mean() > 1.0


def right_at_once(name: str, world: Wiki, questions) -> float:
    done = attempts(name, world, questions, AT_ONCE)
    pairs = zip(done, questions, strict=True)
    return float(np.mean([exact_match(row.answer, q["golden_answers"]) for row, q in pairs]))


def test_of_a_knowing_world_the_facts_it_was_told_are_known_and_the_others_not(name):
    world = Wiki(WikiConfig(kind="knowing"), 100)
    questions = world.questions(200, hops=(1,))
    known = [q for q in questions if q["metadata"]["known"] == [True]]
    unknown = [q for q in questions if q["metadata"]["known"] == [False]]
    assert min(len(known), len(unknown)) > 70
    assert right_at_once(name, world, known) > 0.9
    assert right_at_once(name, world, unknown) < 0.1


def test_of_a_blank_world_nothing_is_known(name):
    world = Wiki(WikiConfig(), 100)
    assert right_at_once(name, world, world.questions(100, hops=(1,))) < 0.1
