"""A model that writes from a script, and a search engine to go with it, for tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from toy_lm_example import tiny_model, toy_tokenizer

from minisearch.agents.protocol import TOY
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.trajectory import Trajectory
from minisearch.models.lm import LanguageModel

WHO = "<user> who ? <assistant>"


class Library:
    """A search engine that finds three passages for anything but the words in `nothing_for`."""

    def __init__(self, nothing_for: str = "-") -> None:
        self.nothing_for, self.asked = nothing_for, []

    def batch_search(self, queries, topk):
        self.asked.append(list(queries))
        return [self.hits(query)[:topk] for query in queries]

    def hits(self, query):
        texts = [] if query == self.nothing_for else ["sister", "mayor", "employer"]
        return [
            {"document": {"id": f"{query}/{n}", "contents": f'"{query}"\nthe {text} .'}, "score": 1}
            for n, text in enumerate(texts)
        ]


class Script:
    """A model that writes given texts: one list of turns for each prompt, told by its beginning.

    It is called as transformers' models are, and keeps the tokens themselves as keys. What a row
    has said so far is what its mask lets it see of the cache; ids, mask and places must belong
    together. It writes the end token once a turn's text is used up.
    """

    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=1)

    def __init__(self, turns: dict[str, list[str]], tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer or toy_tokenizer()
        self.config = tiny_model("qwen2", len(self.tokenizer)).config
        self.training = False
        self.turns = {
            tuple(self.encode(question)): [self.encode(text) for text in texts]
            for question, texts in turns.items()
        }
        self.calls: list[tuple[int, ...]] = []  # rows, columns
        self.read = 0  # tokens, without padding

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def train(self, mode=True):
        self.training = mode
        return self

    def eval(self):
        return self.train(False)

    def __call__(
        self, input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep
    ):
        assert use_cache
        assert logits_to_keep == 1
        assert not self.training
        state = input_ids[:, None, :, None].float()
        keys, values = past_key_values.update(state, -state, 0)
        assert torch.equal(values, -keys)
        assert attention_mask.shape == (*input_ids.shape[:1], 1, input_ids.shape[1], keys.shape[2])
        logits = []
        for ids, mask, places, kept in zip(
            input_ids, attention_mask[:, 0], position_ids, keys[:, 0, :, 0].long(), strict=True
        ):
            seen = kept[mask[-1]]
            count = int((mask[:, 1:].any(1)).sum())  # padding sees nothing but column 0
            assert (ids[:-count] == self.tokenizer.pad_token_id).all()
            own = torch.arange(len(seen) - count, len(seen))
            assert torch.equal(places[-count:], own)
            for place, row in zip(own[:-1].tolist(), mask[-count:-1], strict=True):
                assert torch.equal(kept[row], seen[: place + 1])
            self.read += count
            logits.append(self.logits(seen.tolist()))
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=torch.stack(logits)[:, None])

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Near certain of the next token."""
        row = torch.full((len(self.tokenizer),), -30.0)
        row[self.next_token(ids)] = 0.0
        return row

    def next_token(self, ids: list[int]) -> int:
        question = next(q for q in self.turns if tuple(ids[: len(q)]) == q)
        rest = ids[len(question) :]
        for turn in self.turns[question]:
            if rest[: len(turn)] != turn:
                assert turn[: len(rest)] == rest, "the row holds something the script did not write"
                return turn[len(rest)]
            rest = self.without_given(rest[len(turn) :])
        assert not rest
        return 1

    def without_given(self, ids: list[int]) -> list[int]:
        """What comes after the passages or the answer's tag that the environment wrote."""
        for tag, end in (("<information>", "</information>"), ("<answer>", "<answer>")):
            if self.tokenizer.decode(ids).startswith(tag):
                ends = range(1, len(ids) + 1)
                return ids[next(n for n in ends if self.tokenizer.decode(ids[:n]).endswith(end)) :]
        return ids


def play(turns, config=None, library=None, protocol=TOY, tokenizer=None, model=None, **options):
    """The attempts at all prompts, and the model that made them."""
    model = model or Script(turns, tokenizer)
    lm = LanguageModel(model, model.tokenizer)
    config = config or RolloutConfig(temperature=0)
    return rollout(lm, library or Library(), protocol, list(turns), config, **options), model


def play_one(*turns: str, config=None, library=None, **options) -> Trajectory:
    return play({WHO: list(turns)}, config, library, **options)[0][0]


def kinds(row: Trajectory) -> list[str]:
    return [segment.kind for segment in row.segments]


def parts(row: Trajectory) -> list[str]:
    return [toy_tokenizer().decode(segment.ids) for segment in row.segments]


def signature(rows: list[Trajectory]) -> list:
    """Everything but the log-probabilities, which rounding may change."""
    return [([(s.kind, s.ids) for s in row.segments], row.queries, row.answer) for row in rows]
