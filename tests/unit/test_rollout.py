"""Attempts with a search engine in the loop: what is recorded, and how a turn ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from toy_lm_example import ARCHITECTURES, tiny_lm, tiny_model, toy_tokenizer

from minisearch.agents.protocol import ENGLISH, TOY
from minisearch.agents.rollout import RolloutConfig, Trajectory, rollout
from minisearch.models.lm import LanguageModel

WORDS = ["sister", "mayor", "employer", "birthplace", "need", "found", "missing", "unknown"]
PROMPTS = [
    "<user> who is the sister of the mayor of the employer ? <assistant>",
    "<user> name the employer . <assistant>",
    "<assistant>",
    "<user> who is the mayor ? <plan> mayor of employer ; sister of #1 </plan> <assistant>",
    "<user> what is the birthplace of the sister of the mayor ? <assistant>",
]


class Library:
    """A search engine that finds two passages for anything but the words in `nothing_for`."""

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
    """A model that writes given texts: one list of turns for each prompt, told by its question.

    It is called as transformers' models are, checks that ids, mask and places belong together, and
    writes the end token once a turn's text is used up.
    """

    training, device = False, torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=1)

    def __init__(self, turns: dict[str, list[str]]) -> None:
        self.config = tiny_model("qwen2").config
        self.tokenizer = toy_tokenizer()
        self.turns = {
            tuple(self.tokenizer.encode(question)): [self.tokenizer.encode(t) for t in texts]
            for question, texts in turns.items()
        }
        self.calls: list[tuple[int, ...]] = []

    def train(self, mode=True):
        return self

    def eval(self):
        return self

    def __call__(
        self, input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep
    ):
        assert use_cache
        assert logits_to_keep == 1
        if past_key_values.get_seq_length() == 0:
            everything = input_ids
        else:  # the cache holds token ids as keys, of the rows that are still there
            kept = past_key_values.layers[0].keys[:, 0, :, 0].long()
            everything = torch.cat([kept, input_ids], dim=1)
        rows = zip(everything, attention_mask, strict=True)
        seen = [ids[mask.bool()].tolist() for ids, mask in rows]
        state = input_ids[:, None, :, None].float()
        past_key_values.update(state, state, 0)
        last = torch.tensor([len(ids) - 1 for ids in seen])
        assert torch.equal(position_ids[:, -1], last)
        self.calls.append(tuple(input_ids.shape))
        logits = torch.full((len(seen), 1, self.config.vocab_size), -30.0)
        for n, ids in enumerate(seen):
            logits[n, 0, self.next_token(ids)] = 0.0
        return SimpleNamespace(logits=logits)

    def next_token(self, ids: list[int]) -> int:
        question = next(q for q in self.turns if tuple(ids[: len(q)]) == q)
        turns = self.turns[question]
        rest = ids[len(question) :]
        for turn in turns:
            if rest[: len(turn)] != turn:
                assert turn[: len(rest)] == rest, "the row holds something the script did not write"
                return turn[len(rest)]
            rest = self.without_given(rest[len(turn) :])
        assert not rest
        return 1

    def without_given(self, ids: list[int]) -> list[int]:
        """What comes after an information block or an opened answer that the environment wrote."""
        text = self.tokenizer.decode(ids)
        if text.startswith("<information>"):
            return ids[ids.index(self.tokenizer.encode("</information>")[0]) + 1 :]
        return ids[1:] if text.startswith("<answer>") else ids


def play(turns, config=None, library=None, protocol=TOY) -> tuple[list[Trajectory], Script]:
    model = Script(turns)
    lm = LanguageModel(model, toy_tokenizer())
    config = config or RolloutConfig(temperature=0)
    return rollout(lm, library or Library(), protocol, list(turns), config), model


def play_one(*turns: str, config=None, library=None) -> Trajectory:
    return play({"<user> who ? <assistant>": list(turns)}, config, library)[0][0]


def kinds(row: Trajectory) -> list[str]:
    return [segment.kind for segment in row.segments]


def parts(row: Trajectory) -> list[str]:
    return [toy_tokenizer().decode(segment.ids) for segment in row.segments]


def shown(query: str, texts=("sister", "mayor")) -> str:
    return " ".join(f"( {query} ) the {text} ." for text in texts)


def signature(rows: list[Trajectory]) -> list:
    return [[(s.kind, s.ids) for s in row.segments] for row in rows]


def up_to_two_searches(value: float = 0.0) -> RolloutConfig:
    return RolloutConfig(temperature=value, searches=2, turn_tokens=20)


@pytest.fixture
def eager_to_search():
    """Random models that lean to words inside a search and to tags outside, so that some search."""

    def make(architecture: str) -> LanguageModel:
        lm = tiny_lm(architecture)
        model = lm.model

        class Biased(torch.nn.Module):
            config, generation_config = model.config, model.generation_config
            device = model.device

            def forward(self, input_ids, **arguments):
                output = model(input_ids=input_ids, **arguments)
                kept = output.logits.shape[1]
                output.logits = output.logits + bias[input_ids[:, -kept:]]
                return output

        words = [lm.encode(word)[0] for word in WORDS]
        start, stop, answer = (lm.encode(t)[0] for t in ("<search>", "</search>", "</answer>"))
        bias = torch.full((model.config.vocab_size,) * 2, -20.0)  # by last token and next one
        bias[:, words] = 0.0
        bias[:, start], bias[:, answer] = 3.0, 1.0
        bias[start] = -20.0
        bias[start, words] = 0.0
        bias[words, stop] = 3.0
        return LanguageModel(Biased().eval(), lm.tokenizer)

    return make


# -- what is recorded --------------------------------------------------------------------------


def recomputed(lm: LanguageModel, row: Trajectory) -> list[list[float]]:
    """Log-probabilities of the sampled tokens by one pass over the whole row."""
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        scores = lm.model(input_ids=ids).logits[0].log_softmax(-1)
    place, found = 0, []
    for segment in row.segments:
        if segment.kind == "policy":
            found.append([scores[place + n - 1, t].item() for n, t in enumerate(segment.ids)])
        place += len(segment.ids)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_recorded_log_probs_are_those_of_one_pass_over_the_row(
    architecture, temperature, eager_to_search
):
    lm = eager_to_search(architecture)
    rows = rollout(lm, Library(), TOY, PROMPTS * 3, up_to_two_searches(temperature), seed=1)
    for row in rows:
        recorded = [s.log_probs for s in row.segments if s.kind == "policy"]
        for found, expected in zip(recorded, recomputed(lm, row), strict=True):
            assert found == pytest.approx(expected, abs=1e-4)
        assert all(not s.log_probs for s in row.segments if s.kind != "policy")
    if temperature == 1.0:
        turns = [len(s.ids) for row in rows for s in row.segments if s.kind == "policy"]
        assert len(turns) > len(rows)  # some searched
        assert len(set(turns)) > 2  # rows left the batch at various times


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_attempts_and_another_seed_others(
    architecture, eager_to_search
):
    lm = eager_to_search(architecture)

    def attempts(seed):
        return rollout(lm, Library(), TOY, PROMPTS, up_to_two_searches(1.0), seed)

    torch.manual_seed(1)
    first = attempts(0)
    torch.manual_seed(2)
    assert attempts(0) == first
    assert signature(attempts(1)) != signature(first)


def test_drawing_leaves_torchs_own_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rollout(tiny_lm("qwen2"), Library(), TOY, PROMPTS, up_to_two_searches(1.0), seed=1)
    assert torch.rand(1) == expected


def test_tokens_are_drawn_at_the_temperature_and_scored_at_temperature_one():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    vocabulary = len(toy_tokenizer())

    class Fixed(Script):
        def next_token(self, ids):
            return 0

        def __call__(self, **arguments):
            output = super().__call__(**arguments)
            output.logits[:] = -60.0
            output.logits[:, 0, 30:34] = logits
            return output

    def drawn(temperature):
        model = Fixed({"<user> who ? <assistant>": []})
        assert model.config.vocab_size == vocabulary
        config = RolloutConfig(temperature=temperature, turn_tokens=1, batch_size=4000)
        prompts = ["<user> who ? <assistant>"] * 4000
        rows = rollout(LanguageModel(model, toy_tokenizer()), Library(), TOY, prompts, config)
        ids = torch.tensor([row.segments[1].ids[0] for row in rows]) - 30
        scores = torch.tensor([row.segments[1].log_probs[0] for row in rows])
        torch.testing.assert_close(scores, logits.log_softmax(0)[ids])
        return torch.bincount(ids, minlength=4) / len(ids)

    for temperature in (1.0, 0.5, 2.0):
        expected = (logits / temperature).softmax(0)
        torch.testing.assert_close(drawn(temperature), expected, atol=0.03, rtol=0)
    assert drawn(0)[0] == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_likeliest_attempt_does_not_depend_on_batch_mates(architecture, eager_to_search):
    lm = eager_to_search(architecture)
    together = rollout(lm, Library(), TOY, PROMPTS, up_to_two_searches(), seed=0)
    again = rollout(lm, Library(), TOY, PROMPTS, up_to_two_searches(), seed=5)
    alone = [rollout(lm, Library(), TOY, [p], up_to_two_searches())[0] for p in PROMPTS]
    pairs = RolloutConfig(temperature=0, searches=2, turn_tokens=20, batch_size=2)
    in_pairs = rollout(lm, Library(), TOY, PROMPTS, pairs)
    assert signature(together) == signature(again) == signature(alone) == signature(in_pairs)
    assert len({len(s.ids) for row in together for s in row.segments if s.kind == "policy"}) > 1
    assert any(row.queries for row in together)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_given_back(training):
    lm = LanguageModel(tiny_model("qwen2").train(training), toy_tokenizer())
    modes = []
    lm.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    rollout(lm, Library(), TOY, PROMPTS[:1], up_to_two_searches())
    assert lm.model.training is training
    assert modes
    assert not any(modes)


def test_no_prompts_give_no_attempts():
    assert rollout(tiny_lm("qwen2"), Library(), TOY, [], RolloutConfig()) == []


# -- turns -------------------------------------------------------------------------------------

SEARCH = "<think> need employer </think> <search> {} </search>"
ANSWER = "<think> found employer </think> <answer> employer </answer>"


def test_two_searches_and_an_answer():
    library = Library()
    row = play_one(
        SEARCH.format("sister"), SEARCH.format("mayor employer"), ANSWER, library=library
    )
    assert kinds(row) == ["prompt", "policy", "information", "policy", "information", "policy"]
    assert row.queries == ["sister", "mayor employer"]
    assert library.asked == [["sister"], ["mayor employer"]]
    assert row.retrieved == [["sister/0", "sister/1"], ["mayor employer/0", "mayor employer/1"]]
    assert row.answer == "employer"
    expected = [
        "<user> who ? <assistant>",
        SEARCH.format("sister"),
        f"<information> {shown('sister')} </information>",
        SEARCH.format("mayor employer"),
        f"<information> {shown('mayor employer')} </information>",
        ANSWER,
    ]
    assert parts(row) == expected
    assert row.text == " ".join(expected[1:])
    assert row.ids == toy_tokenizer().encode(" ".join(expected))


@pytest.mark.parametrize(("topk", "count"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_a_search_brings_as_many_passages_as_asked_for(topk, count):
    config = RolloutConfig(temperature=0, topk=topk)
    row = play_one(SEARCH.format("sister"), ANSWER, config=config)
    assert row.retrieved == [[f"sister/{n}" for n in range(count)]]
    texts = ("sister", "mayor", "employer")[:count]
    assert parts(row)[2] == f"<information> {shown('sister', texts)} </information>"


def test_passages_are_written_as_the_protocol_says():
    class Tags(Script):
        def next_token(self, ids):
            return 1 if "</information>" in self.tokenizer.decode(ids) else super().next_token(ids)

    model = Tags({"<user> who ? <assistant>": [SEARCH.format("sister")]})
    lm = LanguageModel(model, toy_tokenizer())
    config = RolloutConfig(temperature=0)
    (row,) = rollout(lm, Library(), ENGLISH, ["<user> who ? <assistant>"], config)
    documents = [hit["document"] for hit in Library().hits("sister")[:2]]
    block = f"<information> {ENGLISH.render(documents)} </information>"
    assert row.segments[2].ids == toy_tokenizer().encode(block)


@pytest.mark.parametrize("searches", [1, 2])
def test_one_search_too_many_is_not_executed_and_the_answer_is_asked_for(searches):
    library = Library()
    turns = [SEARCH.format(WORDS[n]) for n in range(searches + 1)]
    config = RolloutConfig(temperature=0, searches=searches)
    row = play_one(*turns, "employer </answer>", config=config, library=library)
    assert kinds(row) == [
        "prompt", *["policy", "information"] * searches, "policy", "forced", "policy"
    ]  # fmt: skip
    assert row.queries == WORDS[:searches]
    assert library.asked == [[word] for word in WORDS[:searches]]
    assert parts(row)[-3:] == [turns[-1], "<answer>", "employer </answer>"]
    assert row.answer == "employer"
    assert row.text.endswith(f"{turns[-1]} <answer> employer </answer>")


def test_the_last_search_allowed_is_followed_by_a_turn_of_its_own():
    config = RolloutConfig(temperature=0, searches=1)
    row = play_one(SEARCH.format("sister"), ANSWER, config=config)
    assert kinds(row) == ["prompt", "policy", "information", "policy"]
    assert row.answer == "employer"


def test_without_searches_an_answer_is_taken_and_a_search_turned_into_one():
    config, library = RolloutConfig(temperature=0, searches=0), Library()
    assert kinds(play_one(ANSWER, config=config)) == ["prompt", "policy"]
    row = play_one(SEARCH.format("sister"), "employer </answer>", config=config, library=library)
    assert kinds(row) == ["prompt", "policy", "forced", "policy"]
    assert row.answer == "employer"
    assert not library.asked
    assert row.queries == row.retrieved == []


def test_an_answer_at_once_is_opened_after_the_prompt():
    library = Library()
    config = RolloutConfig(temperature=0, answer_at_once=True)
    turns = {
        "<user> who ? <assistant> <answer>": ["employer </answer>"],
        "<user> name the mayor . <assistant> <answer>": ["the sister </answer>"],
    }
    model = Script(turns)
    prompts = [question.removesuffix(" <answer>") for question in turns]
    rows = rollout(LanguageModel(model, toy_tokenizer()), library, TOY, prompts, config)
    assert [kinds(row) for row in rows] == [["prompt", "forced", "policy"]] * 2
    assert [row.answer for row in rows] == ["employer", "the sister"]
    assert rows[0].text == "<answer> employer </answer>"
    assert not library.asked


@pytest.mark.parametrize(
    "turn",
    [
        "<think> need employer </think> <search> sister <end>",  # never closed
        "<think> need employer </think> <search> </search>",
        "<think> need employer </think> </search>",
        "<think> need employer </think> <end>",
        "<end>",
        "<think> need employer </think> <answer> employer <end>",
        "<think> found employer </think> <answer> </answer>",
        "<think> found employer </think> </answer>",
    ],
)
def test_a_turn_that_asks_and_answers_nothing_ends_the_attempt(turn):
    library = Library()
    row = play_one(turn, library=library)
    assert kinds(row) == ["prompt", "policy"]
    assert (row.queries, row.retrieved, row.answer) == ([], [], "")
    assert row.text == turn
    assert not library.asked


def test_a_turn_is_cut_at_its_limit():
    config = RolloutConfig(temperature=0, turn_tokens=4)
    row = play_one(SEARCH.format("sister"), ANSWER, config=config)
    assert kinds(row) == ["prompt", "policy"]
    assert row.text == "<think> need employer </think>"
    assert row.answer == ""
    enough = RolloutConfig(temperature=0, turn_tokens=len(ANSWER.split()))
    assert play_one(ANSWER, config=enough).answer == "employer"


def test_a_search_that_finds_nothing_has_an_empty_block_and_goes_on():
    row = play_one(SEARCH.format("sister"), ANSWER, library=Library(nothing_for="sister"))
    assert kinds(row) == ["prompt", "policy", "information", "policy"]
    assert parts(row)[2] == "<information> </information>"
    assert row.queries == ["sister"]
    assert row.retrieved == [[]]
    assert row.answer == "employer"


def test_rows_of_a_batch_end_apart_and_keep_their_own():
    turns = {
        "<user> who ? <assistant>": [SEARCH.format("sister"), SEARCH.format("employer"), ANSWER],
        "<user> name the mayor of the employer . <assistant>": ["<answer> mayor </answer>"],
        "<user> what ? <assistant>": ["<end>"],
        "<user> what is the birthplace ? <assistant>": [
            "<think> need the birthplace of the mayor of the employer </think> "
            "<search> birthplace </search>",
            "<answer> birthplace </answer>",
        ],
    }
    library = Library()
    rows, model = play(turns, library=library)
    assert [row.answer for row in rows] == ["employer", "mayor", "", "birthplace"]
    assert [row.queries for row in rows] == [["sister", "employer"], [], [], ["birthplace"]]
    assert library.asked == [["sister", "birthplace"], ["employer"]]
    assert [row.retrieved[0][0] for row in (rows[0], rows[3])] == ["sister/0", "birthplace/0"]
    assert [parts(row)[0] for row in rows] == list(turns)
    assert parts(rows[3])[3] == "<answer> birthplace </answer>"
    widths = [rows for rows, _ in model.calls]
    assert widths[0] == 4
    assert widths[1] == 3  # the row that ended at once has left the batch
    assert [length for _, length in model.calls].count(1) == len(model.calls) - 3  # three turns


def test_the_last_answer_counts_and_not_one_in_the_prompt():
    question = "<user> who ? <reference> <answer> sister </answer> </reference> <assistant>"
    (row,), _ = play({question: ["<think> missing </think> <end>"]})
    assert row.answer == ""
    (row,), _ = play({question: [ANSWER]})
    assert row.answer == "employer"
