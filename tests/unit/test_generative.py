"""The alphabet of words, marks and codes, and the BART that reads and writes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BartForConditionalGeneration

from minisearch.errors import InputError
from minisearch.models import describe
from minisearch.models.generative import (
    Alphabet,
    Seq2Seq,
    bart_base_config,
    padded,
    toy_bart_config,
)

ALPHABET = Alphabet(text=10, marks=("find", "say"), sizes=(4, 2, 3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Seq2Seq(toy_bart_config(21, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32), 21)


def table_of(model):
    return model.model.model.shared.weight.detach().clone()


# -- the alphabet --------------------------------------------------------------------------------


def test_words_marks_and_codes_share_one_numbering():
    assert len(ALPHABET) == 10 + 2 + 9
    assert ALPHABET.first.tolist() == [12, 16, 18]
    assert [ALPHABET.mark(name) for name in ALPHABET.marks] == [10, 11]
    ranges = ALPHABET.ranges()
    assert [part.tolist() for part in ranges] == [[12, 13, 14, 15], [16, 17], [18, 19, 20]]


def test_codes_become_tokens_and_codes_again():
    codes = np.array([[0, 0, 0], [3, 1, 2], [2, 0, 1]])
    tokens = ALPHABET.tokens(codes)
    assert tokens.tolist() == [[12, 16, 18], [15, 17, 20], [14, 16, 19]]
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(ALPHABET.codes(tokens), codes)
    for position, allowed in enumerate(ALPHABET.ranges()):
        assert np.isin(tokens[:, position], allowed).all()
    assert ALPHABET.tokens(np.empty((0, 3), dtype=np.int32)).shape == (0, 3)


@pytest.mark.parametrize("code", [[4, 0, 0], [0, 2, 0], [0, 0, -1]])
def test_a_code_that_a_position_does_not_have_is_refused(code):
    with pytest.raises(InputError, match=r"codes up to .* 0 to \[3 1 2\], by position"):
        ALPHABET.tokens(np.array([[0, 0, 0], code]))


@pytest.mark.parametrize("shape", [(5, 2), (5, 4), (3,)])
def test_another_number_of_positions_is_refused(shape):
    with pytest.raises(InputError, match=r"found shape .* expected \(N, 3\)"):
        ALPHABET.tokens(np.zeros(shape, dtype=int))


def test_an_unknown_mark_is_refused():
    with pytest.raises(InputError, match=r"mark: found 'fnid'.*did you mean 'find'"):
        ALPHABET.mark("fnid")


def test_columns_are_filled_up_or_cut():
    columns = [np.array([[1], [2]]), np.array([[3, 4], [5, 0]])]
    assert padded(columns, 5).tolist() == [[1, 3, 4, 0, 0], [2, 5, 0, 0, 0]]
    assert padded(columns, 2).tolist() == [[1, 3], [2, 5]]


# -- the model -----------------------------------------------------------------------------------


def test_the_loss_is_the_mean_cross_entropy_of_the_target_tokens(model):
    source = torch.tensor([[10, 4, 5], [11, 6, 0]])
    target = torch.tensor([[12, 16, 18], [13, 1, 0]])
    model.eval()
    start = torch.full((2, 1), model.model.config.decoder_start_token_id)
    read = torch.cat([start, target[:, :-1]], dim=1)
    with torch.no_grad():
        logits = model.model(
            input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=read
        ).logits
        logs = logits.log_softmax(2)
        expected = [-logs[row, at, target[row, at]] for row, at in
                    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]]  # fmt: skip
        torch.testing.assert_close(model.loss(source, target), torch.stack(expected).mean())


def test_padding_is_no_target_and_is_not_read(model):
    source, target = torch.tensor([[10, 4, 5]]), torch.tensor([[12, 16]])
    pad = torch.nn.functional.pad
    torch.testing.assert_close(
        model.loss(pad(source, (0, 4)), pad(target, (0, 3))), model.loss(source, target)
    )
    changed = model.loss(pad(source, (0, 1), value=7), target)
    assert (changed - model.loss(source, target)).abs() > 1e-6


def test_tokens_start_in_known_directions_and_rows_of_zeros_are_left_out(model):
    before = table_of(model)
    vectors = np.zeros((3, 16))
    vectors[0, 2], vectors[2, :2] = 5.0, (3.0, -4.0)
    model.start_from(vectors, first=12)
    after = table_of(model)
    assert after[12].tolist() == [float(n == 2) for n in range(16)]
    torch.testing.assert_close(after[14, :2], torch.tensor([0.6, -0.8]))
    assert not after[14, 2:].any()
    others = [n for n in range(21) if n not in (12, 14)]
    assert torch.equal(after[others], before[others])
    assert model.model.lm_head.weight.data_ptr() == model.model.model.shared.weight.data_ptr()
    model.start_from(vectors[:1])
    assert table_of(model)[0, 2] == 1


@pytest.mark.parametrize("shape", [(3, 8), (16,)])
def test_vectors_of_another_width_are_refused(model, shape):
    with pytest.raises(InputError, match=r"vectors of shape .* expected \(M, 16\)"):
        model.start_from(np.ones(shape))


def test_a_model_learns_to_copy_a_code(model):
    source = torch.tensor([[10, code] for code in range(12, 21)])
    target = source[:, 1:]
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    first = model.loss(source, target).item()
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(source, target).backward()
        optimiser.step()
    assert model.loss(source, target).item() < 0.3 * first


def test_a_saved_checkpoint_is_read_and_its_table_grows(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    same, larger = Seq2Seq(tmp_path, 21).eval(), Seq2Seq(str(tmp_path), 30).eval()
    assert torch.equal(table_of(same), table_of(model))
    assert table_of(larger).shape == (30, 16)
    assert torch.equal(table_of(larger)[:21], table_of(model))
    assert larger.model.config.vocab_size == 30
    assert larger.model.final_logits_bias.shape == (1, 30)
    assert larger.model.lm_head.weight.data_ptr() == larger.model.model.shared.weight.data_ptr()
    source, target = torch.tensor([[10, 29]]), torch.tensor([[25, 12]])
    assert torch.isfinite(larger.loss(source, target))
    known = torch.tensor([[10, 4]]), torch.tensor([[12, 16]])
    torch.testing.assert_close(same.loss(*known), model.eval().loss(*known))
    assert {p.shape for p in larger.model.parameters()} >= {torch.Size((30, 16))}


def test_a_checkpoints_token_0_becomes_padding(tmp_path):
    """BART's own padding is 1; here 1 ends a text and 0 is not read."""
    config = toy_bart_config(21, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32)
    config.pad_token_id, config.bos_token_id = 1, 0
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    model = Seq2Seq(tmp_path, 21).eval()
    assert model.model.config.pad_token_id == 0
    source, target = torch.tensor([[10, 4]]), torch.tensor([[12, 16]])
    pad = torch.nn.functional.pad
    torch.testing.assert_close(
        model.loss(pad(source, (0, 2)), pad(target, (0, 2))), model.loss(source, target)
    )


def test_configurations():
    config = toy_bart_config(50, d_model=32)
    assert (config.vocab_size, config.d_model, config.pad_token_id) == (50, 32, 0)
    assert config.decoder_start_token_id == config.eos_token_id == 1
    toy = describe(lambda: Seq2Seq(toy_bart_config(2000), 2000))
    assert 0.5e6 < toy["parameters"] < 2e6
    base = describe(lambda: BartForConditionalGeneration(bart_base_config()))
    assert base["parameters"] == 139_420_416  # the published checkpoint
