"""What the toy models read: which parts they learn, and what never stands in front of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from toy_lm_example import load_script, toy_tokenizer

from minisearch.agents.curriculum import END, Curriculum, Mixture, remembering
from minisearch.agents.demonstrator import Demonstration, Habits, remembered
from minisearch.agents.protocol import TAGS, TOY, plan_of
from minisearch.agents.rewards import is_well_formed
from minisearch.retriever import BM25Retriever
from minisearch.worlds.wiki import KNOWING_SEEDS, ROLES, Wiki, WikiConfig
from minisearch.worlds.wiki_relations import RELATIONS

PLAIN = Mixture(attempts=0, reference=0, plan=0)
FAITHFUL = replace(Habits(), misread=0, believe=0)
PROMPT = re.compile(r"<user> (.*?) <assistant>")


def curriculum(kind="blank", seed=1000, rng=0) -> Curriculum:
    world = Wiki(WikiConfig(kind=kind), seed)
    search = remembered(BM25Retriever(world.corpus), 2)
    return Curriculum(world, search, toy_tokenizer(), np.random.default_rng(rng))


NUMBERS = {"few": (0, 1, 2, 37), "many": (310, 311, 312, 420)}


@pytest.fixture(scope="module", params=["few", "many"])
def facts(request) -> str:
    """Whether the sample is of the chunks with few facts, or of the later ones with many."""
    return request.param


@pytest.fixture(scope="module")
def chunks(facts) -> list:
    """A large sample of what both models are trained on."""
    script = load_script()
    found = []
    for init_seed in (0, 1):
        rows = script.Rows(init_seed, toy_tokenizer())
        found += [rows.chunk(number) for number in NUMBERS[facts]]
    return found


def text_of(row) -> str:
    return " ".join(text for text, _ in row)


def answered(answer: str) -> list[tuple[str, bool]]:
    """An answer whose opening tag is given, so that no such row teaches when to answer."""
    return [("<answer>", False), (f"{answer} </answer> {END}", True)]


def inside(text: str, tag: str) -> list[str]:
    return [part.strip() for part in re.findall(rf"<{tag}>(.*?)</{tag}>", text)]


def sentences(world: Wiki, facts) -> set[str]:
    """Facts from the subject's side, as `memory` writes them."""
    return {f"( {f.subject} ) {f.sentence(wording)}" for f in facts for wording in range(3)}


# -- which parts are learned -------------------------------------------------------------------


def test_of_a_trajectory_the_models_own_words_are_learned():
    one = curriculum()
    for n in range(60):
        question = one._question(1 + n % 3)
        row = one.trajectory(question, PLAIN, Habits())
        assert row[0] == (f"<user> {question['question']} <assistant>", False)
        assert row[-1] == (END, True)
        assert is_well_formed("".join(text for text, _ in row[1:-1]))
        for text, learn in row[1:-1]:
            assert learn == (not text.startswith("<information>"))


def test_of_a_belief_the_true_answer_alone_is_learned():
    one = curriculum()
    lengths = set()
    for n in range(60):
        question = one._question(1 + n % 3)
        row = one.belief(question, Mixture(), Habits())
        gold = question["golden_answers"][0]
        assert row[-2:] == answered(gold)
        assert not any(learn for _, learn in row[:-2])
        assert row[0][0] == f"<user> {question['question']} <assistant>"
        if len(row) > 3:
            assert row[-3][0].startswith("<information>")
        lengths.add(len(row))
    assert len(lengths) > 3


@pytest.mark.parametrize(("unrelated", "low", "high"), [(0.0, 1, 1), (1.0, 0, 0.05)])
def test_some_beliefs_see_unrelated_passages(unrelated, low, high):
    one, same = curriculum(), []
    for n in range(60):
        mixture = Mixture(unrelated=unrelated)
        row = one.belief(one._question(1 + n % 3), mixture, Habits())
        if len(row) > 3:
            query, shown = inside(row[-4][0], "search")[0], inside(row[-3][0], "information")[0]
            same.append(shown == TOY.render(one.search(query)))
    assert low <= np.mean(same) <= high


def test_of_a_lookup_the_answers_are_learned_and_the_passages_state_them():
    one = curriculum()
    for _ in range(30):
        row = one.lookup()
        shown = row[0][0]
        assert shown.startswith("<information>")
        assert not row[0][1]
        turns = [row[i : i + 3] for i in range(1, len(row), 3)]
        assert 3 <= len(turns) <= 5
        for (prompt, learn), *answer in turns:
            assert not learn
            asked = re.fullmatch(r"<user> \w+ is the (\w+) of (.*) \? <assistant>", prompt)
            noun, subject = asked.groups()
            fact = one.world.fact_of[noun, subject]
            assert answer == answered(fact.object)
            wordings = [fact.sentence(w, inverse) for w in range(3) for inverse in (False, True)]
            assert sum(sentence in shown for sentence in wordings) == 1


def test_documents_are_eight_passages_of_the_world_all_learned():
    one = curriculum()
    for _ in range(10):
        (text, learn), end = one.documents()
        assert learn
        assert end == (END, True)
        known = {TOY.render([document]) for document in one.world.corpus}
        rest, count = text, 0
        while rest:
            start = next(passage for passage in known if rest.startswith(passage))
            rest, count = rest[len(start) :].strip(), count + 1
        assert count == 8


def test_all_rows_of_a_mixture_in_their_numbers():
    mixture = Mixture(trajectories=7, lookups=5, beliefs=3, documents=2)
    rows = list(curriculum().rows(mixture, Habits()))
    kinds = Counter(kind_of(row) for row in rows)
    assert kinds["lookup"] == 5
    assert kinds["passages"] == 2
    assert kinds["trajectory"] + kinds["belief"] == 10
    assert kinds["trajectory"] >= 7


def kind_of(row) -> str:
    """The kind of a row, by its form."""
    if row[0][1]:
        return "passages"
    if row[0][0].startswith("<information>"):
        return "lookup"
    if sum(text.startswith("<user>") for text, _ in row) > 1:
        return "recitals"
    return "trajectory" if any(t.startswith("<think>") and learn for t, learn in row) else "belief"


def test_the_shares_of_hops_are_those_of_the_mixture():
    one = curriculum()
    mixture = Mixture(trajectories=60, lookups=0, beliefs=0, documents=0, hops=(0.0, 1.0, 0.0))
    for row in one.rows(mixture, Habits()):
        question = PROMPT.search(row[0][0])[1].split(" <")[0]
        assert question.count("the ") == 2


# -- all that is ever read ---------------------------------------------------------------------


def test_a_chunk_has_its_rows(chunks, facts):
    memories, recitals = {"few": (1, 2), "many": (2, 14)}[facts]
    for chunk in chunks:
        kinds = Counter(map(kind_of, chunk))
        assert sum(kinds.values()) == 120 + 40 + 40 + 12 + (memories + recitals) * 9 + 32 + 8
        assert kinds["lookup"] == 40
        assert kinds["passages"] == 12 + 9 * memories
        assert kinds["recitals"] == 9 * recitals
        assert kinds["trajectory"] >= 120 + 24


def test_nothing_the_environment_writes_and_no_prompt_is_learned(chunks):
    for row in (row for chunk in chunks for row in chunk):
        for text, learn in row:
            if learn:
                given = r"<information>|<user>|<assistant>|<attempts>|<reference>"
                assert not re.search(given, text)
            else:
                assert text.startswith(
                    ("<user>", "<information>", "<think>", "<search>", "<answer>")
                )
        assert any(learn for _, learn in row)
        assert row[-1][1]
        assert row[-1][0].endswith(END)


def test_no_row_teaches_to_write_a_plan_though_prompts_hold_one(chunks):
    prompts = 0
    for row in (row for chunk in chunks for row in chunk):
        for text, learn in row:
            if learn:
                assert "plan>" not in text
            elif "plan>" in text:
                assert text.startswith("<user>")
                assert text.endswith("</plan> <assistant>")
                prompts += 1
    trajectories = sum(kind_of(row) == "trajectory" for chunk in chunks for row in chunk)
    assert 0.04 < prompts / trajectories < 0.13


def test_every_word_is_in_the_vocabulary_and_every_tag_is_closed(chunks):
    words = set(toy_tokenizer().get_vocab())
    for row in (row for chunk in chunks for row in chunk):
        text = text_of(row).split()
        assert set(text) <= words
        for tag in TAGS:
            assert text.count(f"<{tag}>") == text.count(f"</{tag}>")
        assert "<refine>" not in text


def pool(role: str) -> set[str]:
    """All names that blank worlds of a role can have."""
    config = WikiConfig(people=600, cities=266, companies=266, films=266)
    entities = Wiki(config, ROLES[role].start).entities
    return {name for names in entities.values() for name in names}


def names_in(row) -> set[str]:
    """Every two words that stand side by side: names, and more."""
    words = text_of(row).split()
    return {f"{a} {b}" for a, b in pairwise(words)}


def test_no_name_of_a_blank_world_that_judges_or_trains_is_ever_read(chunks):
    kept_apart = pool("evaluation") | pool("development") | pool("training")
    own, seen = pool("pretraining"), set()
    for row in (row for chunk in chunks for row in chunk):
        found = names_in(row)
        assert not found & kept_apart
        seen |= found & own
    assert len(seen) > 0.4 * len(own)  # the check sees names at all


def test_chunks_have_worlds_of_their_own(chunks, facts):
    first = [" ".join(map(text_of, chunk[:120])) for chunk in chunks]
    assert len(set(first)) == len(first)
    script = load_script()
    again = script.Rows(0, toy_tokenizer()).chunk(NUMBERS[facts][1])
    assert again == chunks[1]


def knowing_worlds(*roles: str) -> list[Wiki]:
    worlds = [Wiki(WikiConfig(kind="knowing"), seed) for seed in KNOWING_SEEDS]
    return [world for world in worlds if world.role in roles]


@pytest.mark.parametrize("role", ["evaluation", "development"])
def test_of_knowing_worlds_that_judge_the_known_facts_alone_are_read(chunks, facts, role):
    for world in knowing_worlds(role):
        everyone = {name for names in world.entities.values() for name in names}
        allowed = sentences(world, world.known)
        memories = recitals = 0
        told = set()
        for row in (row for chunk in chunks for row in chunk if names_in(row) & everyone):
            kind = kind_of(row)
            if kind == "passages":
                stated = re.findall(r"\( [^()]* \) [^()]* \.", row[0][0])
                assert len(stated) == 8
                assert set(stated) <= allowed
                memories += 1
            else:
                assert kind == "recitals"
                for n in range(0, len(row), 3):
                    question = PROMPT.fullmatch(row[n][0])[1]
                    noun, subject = re.search(r"the (\w+) of (\w+ \w+) [?.]$", question).groups()
                    fact = world.fact_of[noun, subject]  # of one hop: the subject is a name
                    assert fact in world.known
                    assert row[n + 1 : n + 3] == answered(fact.object)
                    told.add((noun, subject))
                recitals += 1
        rows = {"few": (1, 2), "many": (2, 14)}[facts]
        assert (memories, recitals) == (rows[0] * len(chunks), rows[1] * len(chunks))
        assert len(told) > 60


def test_unknown_facts_of_knowing_worlds_are_not_recited(chunks):
    """Of the worlds that are shown as well, recitals hold chains, all of known facts."""
    lengths = Counter()
    for world in knowing_worlds("training", "pretraining"):
        everyone = {name for names in world.entities.values() for name in names}
        for row in (row for chunk in chunks for row in chunk if names_in(row) & everyone):
            if kind_of(row) != "recitals":
                continue
            for n in range(0, len(row), 3):
                question = PROMPT.fullmatch(row[n][0])[1].removesuffix(" ?").removesuffix(" .")
                nouns = re.findall(r"the (\w+) of", question)[::-1]
                facts = world.chain(question.rsplit(" of ", 1)[1], nouns)
                assert set(facts) <= world.known
                assert row[n + 1 : n + 3] == answered(facts[-1].object)
                lengths[len(facts)] += 1
    assert lengths[1] > lengths[2] > 0
    assert lengths[3] > 0


def test_passages_and_questions_of_shown_knowing_worlds(chunks):
    """Trajectories are of the two pre-training worlds, beliefs of those and the training worlds."""
    kinds = {}
    for world in knowing_worlds("training", "pretraining"):
        everyone = {name for names in world.entities.values() for name in names}
        rows = [row for chunk in chunks for row in chunk if names_in(row) & everyone]
        kinds.setdefault(world.role, Counter()).update(map(kind_of, rows))
    assert kinds["training"]["belief"] > 0
    assert kinds["training"]["trajectory"] == 0
    assert kinds["pretraining"]["trajectory"] > 0
    recalls = [
        t for chunk in chunks for row in chunk for t, learn in row if "recall " in t and learn
    ]
    assert recalls


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_memory_and_recitals_tell_known_facts(share):
    world = Wiki(WikiConfig(kind="knowing", known_share=share), 100)
    search = remembered(BM25Retriever(world.corpus), 2)
    one = Curriculum(world, search, toy_tokenizer(), np.random.default_rng(0))
    allowed = sentences(world, world.known)
    for multi_hop in (False, True):
        for _ in range(20):
            (text, learn), end = one.memory()
            stated = re.findall(r"\( [^()]* \) [^()]* \.", text)
            assert set(stated) <= allowed
            assert (
                len({fact for fact in world.known if sentences(world, [fact]) & set(stated)}) == 8
            )
            assert learn
            assert end == (END, True)
            row = one.recitals(multi_hop)
            assert [learn for _, learn in row] == [False, False, True] * 6
            for n in range(0, 18, 3):
                question = PROMPT.fullmatch(row[n][0])[1].removesuffix(" ?").removesuffix(" .")
                nouns = re.findall(r"the (\w+) of", question)[::-1]
                facts = world.chain(question.rsplit(" of ", 1)[1], nouns)
                assert multi_hop or len(facts) == 1
                assert set(facts) <= world.known
                assert row[n + 1 : n + 3] == answered(facts[-1].object)


def test_remembering_changes_nothing_but_recall():
    habits = Habits(drift=0.3)
    assert remembering(habits) == replace(habits, recall=0.7)
    assert habits.recall == 0


# -- privileged prompts ------------------------------------------------------------------------


def hinted(mixture: Mixture, habits: Habits, count=150):
    """(question, siblings made, row) of trajectories with a block in the prompt."""
    one = curriculum()
    made: list[list[Demonstration]] = []
    siblings = one._siblings
    one._siblings = lambda *a, **k: made.append(siblings(*a, **k)) or made[-1]
    for n in range(count):
        question = one._question(1 + n % 3)
        row = one.trajectory(question, mixture, habits)
        yield one, question, made[-1] if made else [], row


def queries_of(row) -> list[str]:
    return inside(text_of(row[1:]), "search")


def test_an_attempts_block_holds_queries_and_labels_and_nothing_else():
    labels = Counter()
    keywords = {word for relation in RELATIONS for word in relation.keywords}
    for one, question, made, row in hinted(replace(PLAIN, attempts=1), Habits()):
        everyone = {name for names in one.world.entities.values() for name in names}
        assert row[0][0].startswith(f"<user> {question['question']} <attempts> ")
        assert row[0][0].endswith(" </attempts> <assistant>")
        shown = inside(row[0][0], "attempts")[0].split(" ; ")
        assert 1 <= len(shown) <= 4
        expected = {
            f"{'right' if d.correct else 'wrong'} : {' | '.join(d.queries)}".strip() for d in made
        }
        assert set(shown) <= expected
        for attempt in shown:
            label, *queries = re.split(r" : | \| ", attempt)
            labels[label] += 1
            for query in queries:
                first, second, *rest = query.split()
                assert f"{first} {second}" in everyone
                assert set(rest) <= keywords
    assert set(labels) == {"right", "wrong"}


def test_after_a_right_sibling_its_useful_queries_are_used():
    followed = 0
    for _, question, made, row in hinted(replace(PLAIN, attempts=1), FAITHFUL):
        right = [d for d in made if d.correct]
        if not right:
            continue
        assert "right :" in row[0][0]
        useful, queries = right[0].useful, queries_of(row)
        assert queries[: len(useful)] == useful[: len(queries)]
        if len(useful) == len(question["metadata"]["hops"]):
            assert queries == useful
            assert inside(text_of(row[1:]), "answer") == question["golden_answers"]
            followed += 1
    assert followed > 60


def test_after_wrong_siblings_their_last_query_is_shunned():
    habits = replace(FAITHFUL, keywords=(0.5, 0.5, 0, 0), drift=0)

    def share(shunned: str) -> float:
        one, used = curriculum(), []
        for question in (one._question(1) for _ in range(150)):
            query = question["metadata"]["entity"] + shunned
            wrong = Demonstration(queries=["something else", query], correct=False)
            one._siblings = lambda *a, wrong=wrong, **k: [wrong, wrong]
            row = one.trajectory(question, replace(PLAIN, attempts=1), habits)
            assert f"wrong : something else | {query}" in row[0][0]
            assert "right" not in row[0][0]
            used.append(queries_of(row)[0] == question["metadata"]["entity"])
        return float(np.mean(used))

    assert share("") < 0.14
    assert share(" and more") > 0.35


def test_a_reference_block_is_one_whole_sibling_whose_useful_queries_are_used():
    followed = 0
    for _, question, made, row in hinted(replace(PLAIN, reference=1), FAITHFUL):
        whole = " ".join(map(str, made[-1].pieces))
        assert row[0][0] == (
            f"<user> {question['question']} <reference> {whole} </reference> <assistant>"
        )
        useful, queries = made[-1].useful, queries_of(row)
        assert queries[: len(useful)] == useful[: len(queries)]
        followed += bool(useful)
    assert followed > 100


def test_a_plan_block_lists_the_sub_questions():
    world = Wiki(WikiConfig(), 1000)
    question = world.questions(1, hops=(3,))[0]
    nouns, name = question["metadata"]["relations"], question["metadata"]["entity"]
    assert plan_of(question) == [
        f"{nouns[0]} of {name}",
        f"{nouns[1]} of #1",
        f"{nouns[2]} of #2",
    ]
    for _, asked, _, row in hinted(replace(PLAIN, plan=1), Habits(), 12):
        steps = " ; ".join(plan_of(asked))
        assert row[0][0] == f"<user> {asked['question']} <plan> {steps} </plan> <assistant>"


@pytest.mark.parametrize("block", ["attempts", "reference", "plan"])
def test_shares_of_prompts_with_a_block(chunks, block):
    rows = [row for chunk in chunks for row in chunk[:120]]
    share = np.mean([f"<{block}>" in row[0][0] for row in rows])
    assert abs(share - getattr(Mixture(), block)) < 0.05
