"""The Q-Former: what reads what, padding, and a BLIP-2 checkpoint in the same class."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig

from minisearch.errors import InputError
from minisearch.models.qformer import QFormer, qformer_config


@pytest.fixture
def former():
    torch.manual_seed(0)
    return QFormer(qformer_config(50, 12, width=16, heads=2, longest=10), 3, 8).eval()


PATCHES = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[1, 7, 9, 0], [1, 4, 0, 0]])


@torch.no_grad()
def test_shapes_and_lengths(former):
    tokens, text = former(PATCHES, IDS)
    assert tokens.shape == (2, 3, 16)
    assert text.shape == (2, 4, 16)
    vectors, vector = former.token_vectors(tokens), former.text_vector(text)
    assert vectors.shape == (2, 3, 8)
    assert vector.shape == (2, 8)
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones(2, 3))
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(2))


@torch.no_grad()
def test_what_is_not_given_is_not_there(former):
    tokens, text = former(PATCHES)
    assert tokens.shape == (2, 3, 16)
    assert text is None
    tokens, text = former(None, IDS)
    assert tokens is None
    assert text.shape == (2, 4, 16)


@torch.no_grad()
def test_picture_and_text_both_matter_to_both(former):
    tokens, text = former(PATCHES, IDS)
    for patches, ids in ((PATCHES + 1, IDS), (PATCHES, IDS.clamp(max=5))):
        other_tokens, other_text = former(patches, ids)
        assert (tokens - other_tokens).abs().max() > 1e-4
        assert (text[:, 0] - other_text[:, 0]).abs().max() > 1e-4


@torch.no_grad()
def test_padding_is_not_read(former):
    longer = torch.cat([IDS, torch.zeros(2, 3, dtype=torch.long)], 1)
    for patches in (PATCHES, None):
        own, other = former(patches, IDS), former(patches, longer)
        torch.testing.assert_close(own[1][:, 0], other[1][:, 0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tokens_start_apart_from_each_other(former):
    vectors = former.token_vectors(former(PATCHES)[0])[0]
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_prompt_is_read_before_the_words(former):
    prompt = torch.randn(2, 3, 16)
    text = former(None, IDS, prompt)[1]
    assert text.shape == (2, 4, 16)
    assert (text - former(None, IDS)[1]).abs().max() > 1e-4
    assert (text - former(None, IDS, prompt.flip(2))[1]).abs().max() > 1e-4


@torch.no_grad()
def test_an_empty_text_is_one_blank_and_finite(former):
    text = former(None, torch.zeros(2, 4, dtype=torch.long))[1]
    assert text[:, 0].isfinite().all()


def test_mixtures_without_sense_are_refused(former):
    with pytest.raises(InputError, match="another mixture"):
        former()
    with pytest.raises(InputError, match="another mixture"):
        former(PATCHES, IDS, torch.zeros(2, 3, 16))
    with pytest.raises(InputError, match="use_qformer_text_input"):
        QFormer(Blip2QFormerConfig(hidden_size=16, num_attention_heads=2), 3, 8)


def test_the_size_of_the_book_s():
    count = sum(weight.numel() for weight in QFormer(qformer_config(500, 128), 8, 64).parameters())
    assert 200_000 < count < 300_000


@torch.no_grad()
def test_a_blip2_checkpoint_loads_and_gives_its_scores(tmp_path):
    torch.manual_seed(2)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={**small, "hidden_size": 12, "intermediate_size": 24, "image_size": 16,
                       "patch_size": 8},
        qformer_config={**small, "intermediate_size": 24, "encoder_hidden_size": 12,
                        "vocab_size": 50, "use_qformer_text_input": True},
        num_query_tokens=3, image_text_hidden_size=8, image_token_index=None,
    )  # fmt: skip
    whole = Blip2ForImageTextRetrieval(config).eval()
    whole.query_tokens.data.normal_()
    whole.save_pretrained(tmp_path)
    former, eye = QFormer.from_blip2(tmp_path)
    former.eval()
    pixels = torch.randn(2, 3, 16, 16)
    patches = eye(pixel_values=pixels).last_hidden_state
    mask = (IDS != 0).long()
    expected = whole(pixel_values=pixels, input_ids=IDS, attention_mask=mask)
    vectors = former.token_vectors(former(patches)[0])
    text = former.text_vector(former(None, IDS)[1])
    found = torch.einsum("ikd,td->itk", vectors, text).amax(2)
    torch.testing.assert_close(found, expected.logits_per_image, atol=1e-5, rtol=1e-4)
    assert not any(weight.requires_grad for weight in eye.parameters())
