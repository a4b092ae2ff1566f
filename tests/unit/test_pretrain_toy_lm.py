"""Pre-training of the toy models: its batches, its optimisers, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from toy_lm_example import load_script, toy_tokenizer

from minisearch.agents.protocol import TAGS
from minisearch.errors import InputError
from minisearch.models.lm import load_lm, new_toy_lm, toy_config

SCRIPT = load_script()
RECIPE = SCRIPT.Recipe(steps=11, batch_tokens=700, longest=120, warmup_steps=3)
TEXT = "<user> who is the mayor ? <assistant> <think> need birthplace </think> <end>"


@pytest.fixture(scope="module")
def rows():
    return SCRIPT.Rows(0, toy_tokenizer())


@pytest.fixture(scope="module")
def few_rows(rows):
    """Every ninth row of chunks 0, 1 and 2, over and over."""
    chunks = [rows.chunk(number)[::9] for number in range(3)]
    return SimpleNamespace(
        init_seed=0, tokenizer=toy_tokenizer(), chunk=lambda number: chunks[number % 3]
    )


@pytest.fixture
def small(monkeypatch, few_rows):
    """Makes trainers of a model of one narrow layer that reads few rows."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 64}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    monkeypatch.setattr(SCRIPT, "toy_config", lambda n: toy_config(n, **sizes, **heads))
    monkeypatch.setattr(SCRIPT, "Rows", lambda *_: few_rows)
    monkeypatch.setattr(SCRIPT, "use_threads", lambda _: None)  # of this process: leave them
    return lambda folder, recipe=RECIPE: SCRIPT.Trainer(0, recipe, folder)


# -- the tokenizer -----------------------------------------------------------------------------


def test_each_word_of_the_vocabulary_is_one_token_of_its_own():
    words = SCRIPT.vocabulary()
    assert len(set(words)) == len(words)
    assert words[:5] == ["<pad>", "<end>", "<unk>", "<user>", "<assistant>"]
    assert words[5 : 5 + 2 * len(TAGS)] == [f"<{s}{tag}>" for tag in TAGS for s in ("", "/")]
    assert toy_tokenizer().encode(" ".join(words)) == list(range(len(words)))
    assert not any("{" in word for word in words)


def test_text_is_lower_cased_tags_are_special_and_other_words_unknown():
    tokenizer = toy_tokenizer()
    assert tokenizer.encode("Who IS the Mayor ?") == tokenizer.encode("who is the mayor ?")
    assert tokenizer.encode("who is the submarine ?").count(tokenizer.unk_token_id) == 1
    tags = {f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")}
    assert tags | {"<user>", "<assistant>", "<pad>", "<end>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_the_chat_template_marks_turns_and_ends_those_of_the_model():
    turns = [("user", "who ?"), ("assistant", "<answer> mayor </answer>"), ("user", "what ?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    shown = toy_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert shown == (
        "<user> who ? <assistant> <answer> mayor </answer> <end> <user> what ? <assistant>"
    )


# -- rows --------------------------------------------------------------------------------------


def test_the_fast_encoding_is_the_tokenizers(rows):
    ids = toy_tokenizer().get_vocab()
    for row in rows.chunk(0):
        tokens, learn = SCRIPT.encode(row, ids, 10_000)
        assert tokens == toy_tokenizer().encode(" ".join(text for text, _ in row))
        assert learn == [flag for text, flag in row for _ in toy_tokenizer().encode(text)]
        assert SCRIPT.encode(row, ids, 7) == (tokens[:7], learn[:7])


def kinds(chunk) -> Counter:
    """Rows of passages, rows of questions answered at once, and all others."""
    kind = {True: "passages", False: "other"}
    return Counter(
        "recitals" if [t for t, _ in row[1::3]] == ["<answer>"] * 6 else kind[row[0][1]]
        for row in chunk
    )


def test_most_facts_come_in_the_later_chunks(rows):
    first, last, later = (kinds(rows.chunk(n)) for n in (0, 309, 310))
    assert first == last
    assert (first["recitals"], later["recitals"]) == (2 * 9, 14 * 9)
    assert (first["passages"], later["passages"]) == (12 + 9, 12 + 2 * 9)
    assert first["other"] == later["other"]
    assert (first.total(), later.total()) == (279, 396)


def test_rows_follow_from_the_seed_and_the_number(rows):
    assert SCRIPT.Rows(0, toy_tokenizer()).chunk(2) == rows.chunk(2)
    other = SCRIPT.Rows(1, toy_tokenizer()).chunk(2)
    mine = {" ".join(text for text, _ in row) for row in rows.chunk(2)}
    assert not mine & {" ".join(text for text, _ in row) for row in other}


# -- batches -----------------------------------------------------------------------------------


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches_of_chunk(few_rows, number: int = 0) -> int:
    encoded = [SCRIPT.encode(r, toy_tokenizer().get_vocab(), 120) for r in few_rows.chunk(number)]
    return len(SCRIPT._grouped(encoded, RECIPE))


@pytest.mark.parametrize(("chunks", "more"), [(0, 1), (0, 3), (1, 0), (1, 2)])
def test_batches_from_a_number_on_are_the_rest_of_all_batches(few_rows, chunks, more):
    count = batches_of_chunk(few_rows) + 5  # into the second chunk
    first = chunks * batches_of_chunk(few_rows) + more
    everything = list(islice(SCRIPT.batches(few_rows, RECIPE, 0), count))
    rest = list(islice(SCRIPT.batches(few_rows, RECIPE, first), count - first))
    assert all(same(a, b) for a, b in zip(everything[first:], rest, strict=True))
    assert not same(everything[0], everything[first])


def test_the_batches_of_a_chunk_hold_each_row_once(few_rows):
    ids, count = toy_tokenizer().get_vocab(), batches_of_chunk(few_rows)
    found = Counter()
    for tokens, learn in islice(SCRIPT.batches(few_rows, RECIPE, 0), count):
        assert tokens.numel() <= RECIPE.batch_tokens
        assert tokens.dtype == torch.long
        assert learn.dtype == torch.bool
        for row, flags in zip(tokens.tolist(), learn.tolist(), strict=True):
            length = len(row) - row[::-1].index(next(t for t in reversed(row) if t))
            assert not any(flags[length:])  # padding is never to be predicted
            found[tuple(row[:length]), tuple(flags[:length])] += 1
    encoded = [SCRIPT.encode(row, ids, RECIPE.longest) for row in few_rows.chunk(0)]
    assert found == Counter((tuple(tokens), tuple(flags)) for tokens, flags in encoded)
    assert max(len(tokens) for tokens, _ in found) == RECIPE.longest  # some were cut


def test_batches_come_in_no_order_of_length(few_rows):
    count = batches_of_chunk(few_rows)
    widths = [t.shape[1] for t, _ in islice(SCRIPT.batches(few_rows, RECIPE, 0), count)]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


# -- training ----------------------------------------------------------------------------------


def test_the_share_of_the_rates_rises_stays_and_falls_to_nothing():
    recipe = SCRIPT.Recipe(steps=100, warmup_steps=20, decay_from=0.6)
    expected = {0: 0.05, 9: 0.5, 19: 1.0, 40: 1.0, 60: 1.0, 70: 0.75, 80: 0.5, 99: 0.025}
    for step, share in expected.items():
        assert recipe.factor(step) == pytest.approx(share)


def test_the_loss_is_that_of_the_tokens_to_predict_alone(few_rows):
    model = new_toy_lm(toy_config(len(toy_tokenizer()), num_hidden_layers=1), 0).eval()
    ids, learn = next(SCRIPT.batches(few_rows, RECIPE, 2))
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids.masked_fill(~learn, -100)).loss
        found = SCRIPT.loss_of(model, ids, learn)
        wider = [torch.nn.functional.pad(x, (0, 9)) for x in (ids, learn)]
        padded = SCRIPT.loss_of(model, *wider)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(padded, found, rtol=1e-5, atol=0)
    assert 0 < learn.sum() < (ids > 0).sum()


def test_muon_has_the_matrices_of_the_layers_and_adamw_all_else():
    model = new_toy_lm(toy_config(len(toy_tokenizer())), 0)
    muon, adamw = SCRIPT.optimisers(model, SCRIPT.Recipe())
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    held = [{id(p) for group in one.param_groups for p in group["params"]} for one in (muon, adamw)]
    matrices = {
        id(module.weight)
        for module in model.model.layers.modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert len(matrices) == 4 * 7
    assert held[0] == matrices
    assert not held[0] & held[1]
    assert held[0] | held[1] == {id(p) for p in model.parameters()}
    assert sum(len(g["params"]) for one in (muon, adamw) for g in one.param_groups) == len(
        list(model.parameters())
    )


def test_every_update_uses_its_share_of_the_rates(small, tmp_path, few_rows):
    trainer = small(tmp_path)
    stream = SCRIPT.batches(few_rows, RECIPE, 0)
    for step in range(4):
        trainer.update(*next(stream))
        rates = [o.param_groups[0]["lr"] for o in trainer.optimisers]
        peaks = (RECIPE.matrix_rate, RECIPE.other_rate)
        assert rates == pytest.approx([peak * RECIPE.factor(step) for peak in peaks])
    assert trainer.step == 4
    assert all(p.grad is None for p in trainer.model.parameters())


def test_an_update_clips_the_gradient(small, tmp_path, few_rows, monkeypatch):
    trainer, norms = small(tmp_path, SCRIPT.Recipe(clip=0.01)), []

    def look(*_):
        grads = [p.grad for p in trainer.model.parameters()]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    monkeypatch.setattr(trainer.optimisers[0], "step", look)
    trainer.update(*next(SCRIPT.batches(few_rows, RECIPE, 0)))
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_the_loss_falls(small, tmp_path):
    trainer = small(tmp_path, SCRIPT.Recipe(steps=30, batch_tokens=1400, warmup_steps=3))
    trainer.run()
    assert trainer.losses[0] > 5.5  # about the logarithm of the vocabulary
    assert sum(trainer.losses[-5:]) / 5 < trainer.losses[0] - 1.8
    assert len(trainer.losses) == trainer.step == 30


class Killed(Exception):
    pass


def killed_after(trainer, steps: int, keep_every: int) -> None:
    """Run until an update that never ends."""
    update = trainer.update

    def stops(*batch):
        if trainer.step == steps:
            raise Killed
        update(*batch)

    trainer.update = stops
    with pytest.raises(Killed):
        trainer.run(keep_every)


def test_a_training_killed_and_taken_up_again_ends_with_the_same_weights(small, tmp_path):
    whole = small(tmp_path / "whole")
    whole.run(keep_every=4)
    killed_after(small(tmp_path / "cut"), 6, keep_every=4)
    killed_after(small(tmp_path / "cut"), 9, keep_every=4)
    again, made = small(tmp_path / "cut"), []
    update = again.update
    again.update = lambda *batch: made.append(again.step) or update(*batch)
    again.run(keep_every=4)
    assert made == [8, 9, 10]
    assert (again.step, again.tokens, again.losses) == (11, whole.tokens, whole.losses)
    expected, found = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    start = small(tmp_path / "new").model.state_dict()
    assert not any(torch.equal(found[name], start[name]) for name in start if "weight" in name)


def test_processor_time_adds_up_over_kills(small, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(SCRIPT, "time", SimpleNamespace(process_time=lambda: float(next(clock))))
    killed_after(small(tmp_path), 6, keep_every=4)  # starts at 0, keeps at 100
    again = small(tmp_path)
    again.run(keep_every=4)  # starts at 200, keeps at 300 and 400
    assert again.spent == 300


def test_the_state_of_another_recipe_is_not_taken_up(small, tmp_path):
    small(tmp_path).run()
    other = small(tmp_path, SCRIPT.Recipe(steps=12, batch_tokens=700, longest=120))
    other.resume()
    assert other.step == 0
    equal = small(tmp_path)
    equal.resume()
    assert equal.step == 11


# -- shipping ----------------------------------------------------------------------------------


def test_the_shipped_folder_holds_the_model_in_half_precision(small, tmp_path):
    trainer = small(tmp_path / "state")
    trainer.run()
    ids = torch.tensor([toy_tokenizer().encode(TEXT)])
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(input_ids=ids).logits
    weights = {name: w.clone() for name, w in trainer.model.state_dict().items()}
    SCRIPT.ship(trainer, tmp_path / "out")
    lm = load_lm(str(tmp_path / "out"))
    with torch.no_grad():
        found = lm.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert expected.std() > 0.2
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, weights[name].half().float())
    file = tmp_path / "out" / "model.safetensors"
    assert file.stat().st_size < 2.2 * sum(p.numel() for p in trainer.model.parameters()) + 10_000
    training = json.loads((tmp_path / "out" / "training.json").read_text())
    assert training["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert training["recipe"] == vars(RECIPE)
    assert training["tokens"] == trainer.tokens > 1000
    assert training["loss"] == pytest.approx(sum(trainer.losses) / 11, abs=1e-4)


def test_the_shipped_folder_holds_the_tokenizer(small, tmp_path):
    trainer = small(tmp_path / "state")
    trainer.losses.append(1.0)
    SCRIPT.ship(trainer, tmp_path / "out")
    tokenizer = load_lm(str(tmp_path / "out")).tokenizer
    assert tokenizer.encode(TEXT) == toy_tokenizer().encode(TEXT)
    assert tokenizer.get_vocab() == toy_tokenizer().get_vocab()
    assert tokenizer.chat_template == SCRIPT.CHAT


def test_the_command_ships_and_removes_its_state(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    SCRIPT.train(1, steps=2, out=tmp_path / "out")
    training = json.loads((tmp_path / "out" / "training.json").read_text())
    assert training["recipe"] == vars(SCRIPT.Recipe(steps=2))
    assert (tmp_path / "build" / "toy_lm").is_dir()
    assert not list((tmp_path / "build" / "toy_lm").iterdir())


def test_there_are_two_seeds(small, tmp_path):
    with pytest.raises(InputError, match="'2'"):
        SCRIPT.train(2, steps=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
