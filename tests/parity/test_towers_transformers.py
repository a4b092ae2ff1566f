"""Towers and generators compute what transformers computes, and read its checkpoints."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MT5ForConditionalGeneration,
)

from minisearch.models.seq2seq import QueryGenerator, toy_t5_config
from minisearch.models.towers import TextTower, bag_config

IDS = torch.tensor([[5, 6, 7, 8, 9], [8, 9, 0, 0, 0]])


@pytest.fixture
def config():
    torch.manual_seed(0)
    return BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )


def hidden_states(bert):
    return bert.eval()(input_ids=IDS, attention_mask=(IDS > 0).long()).last_hidden_state


def test_cls_and_mean_pooling_of_bert(config):
    tower = TextTower(config, pooling="cls").eval()
    torch.testing.assert_close(tower(IDS), hidden_states(tower.bert)[:, 0])
    tower = TextTower(config, pooling="mean").eval()
    hidden = hidden_states(tower.bert)
    expected = torch.stack([hidden[0].mean(dim=0), hidden[1, :2].mean(dim=0)])
    torch.testing.assert_close(tower(IDS), expected)


def test_the_fast_bag_is_bert_at_zero_layers():
    torch.manual_seed(0)
    tower = TextTower(bag_config(40, 16))
    torch.nn.init.normal_(tower.bert.embeddings.LayerNorm.weight)
    hidden = hidden_states(tower.bert)
    expected = torch.stack([hidden[0].mean(dim=0), hidden[1, :2].mean(dim=0)])
    torch.testing.assert_close(tower(IDS), expected)


@pytest.mark.parametrize("published", [BertModel, BertForMaskedLM])
def test_a_checkpoint_of_transformers_loads(config, published, tmp_path):
    model = published(config)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    tower = TextTower.from_checkpoint(tmp_path, pooling="cls").eval()
    bert = model if published is BertModel else model.bert
    torch.testing.assert_close(tower(IDS), hidden_states(bert)[:, 0])


@pytest.mark.parametrize("layers", [0, 2])
def test_a_saved_tower_loads_whole(config, tmp_path, layers):
    config.num_hidden_layers = layers
    tower = TextTower(config, projection=6).eval()
    tower.save_pretrained(tmp_path)
    again = TextTower.from_checkpoint(tmp_path).eval()
    assert (again.config.pooling, again.dimension) == ("mean", 6)
    torch.testing.assert_close(again(IDS), tower(IDS), rtol=0, atol=0)
    trained = {name: p.requires_grad for name, p in tower.named_parameters()}
    assert {name: p.requires_grad for name, p in again.named_parameters()} == trained


def test_generator_loss_is_cross_entropy_of_mt5(tmp_path):
    torch.manual_seed(0)
    generator = QueryGenerator(toy_t5_config(40, 16)).eval()
    titles, queries = IDS, torch.tensor([[7, 8, 1], [9, 1, 0]])
    shifted = torch.tensor([[0, 7, 8], [0, 9, 1]])  # what the decoder reads: start id first
    logits = generator.model(
        input_ids=titles, attention_mask=(titles > 0).long(), decoder_input_ids=shifted
    ).logits
    chosen = logits.log_softmax(dim=-1).gather(2, queries[:, :, None])[:, :, 0]
    expected = -chosen[queries > 0].mean()
    torch.testing.assert_close(generator.loss(titles, queries), expected)

    generator.model.save_pretrained(tmp_path)
    again = QueryGenerator(tmp_path).eval()
    assert isinstance(again.model, MT5ForConditionalGeneration)
    torch.testing.assert_close(again.loss(titles, queries), expected)
