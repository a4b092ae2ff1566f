"""Chapter 3: thoughts, two prompts, what distillation minimises, credit by position."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch

from minisearch import chapters
from minisearch.beam import Trie, beam_search
from minisearch.errors import InputError
from minisearch.models.generative import Alphabet
from minisearch.recorder import Recorder
from minisearch.records import EMPTY, Ragged
from minisearch.text import END, PAD, Vocabulary, words
from minisearch.worlds import needs, online
from minisearch.worlds.shop import make_shop
from minisearch.worlds.shop_catalogue import ShopConfig
from minisearch.worlds.shop_truth import grade
from minisearch.worlds.stored import open_truth

CHAPTER = "03_onesearch_v2"
SHOP = ShopConfig(  # that of the chapter at smoke
    items=300, sessions=1500, users=200, leaves=24, rank_share=0.0, relevance_pairs=100,
    query_mix=(0.27, 0.13, 0.38, 0.22, 0.0, 0.0, 0.0), click_bias=1.15,
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The chapter as it stands after its identifiers, at smoke; what it keeps is in a folder."""
    chapter = chapters.load(CHAPTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINISEARCH_BUILD", str(tmp_path_factory.mktemp("build")))

        def put(**values):
            for name, value in values.items():
                patch.setattr(chapter, name, value, raising=False)

        settings = chapter.SearchSettings.of("smoke")
        put(profile="smoke", seed=7, world_seed=0, init_seed=0, data="", noise=-1.0)
        put(fresh=False, steps=0, rate=0.0, rl_rate=0.0, settings=settings)
        put(RANKED={}, MODELS={}, HISTORIES={})
        forget(chapter)
        put(shop=chapter.simulated_shop(0))
        shop = chapter.shop
        put(behaviour=chapter.behaviour_of([shop.direct_log, shop.complex_log], settings.items))
        put(space=chapter.make_space(shop))
        codes = chapter.make_codes()
        alphabet = Alphabet(len(chapter.space.vocabulary), ("retrieve", "think"), codes.sizes)
        identifiers = alphabet.tokens(codes.codes)
        trie = Trie(identifiers)
        rows = np.arange(len(identifiers))
        put(codes=codes, alphabet=alphabet, identifiers=identifiers, trie=trie)
        put(owners=Ragged.from_pairs(trie.find(identifiers), rows, len(trie)))
        put(record=Recorder(tmp_path_factory.mktemp("record")))
        put(complex_set=chapter.complex_requests(), direct_set=chapter.direct_requests())
        yield chapter
        forget(chapter)


def forget(chapter):
    """Empty what the chapter remembers of a shop."""
    for value in list(vars(chapter).values()):
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture(scope="module")
def model(page):
    return page.new_model(0).eval()


@pytest.fixture(scope="module")
def world(page):
    return page.shop.world


@pytest.fixture(scope="module")
def think(page):
    return page.shop.think


# -- requests and thoughts -----------------------------------------------------------------------


def test_complex_requests_have_no_word_of_titles_brands_categories_and_direct_queries(page, world):
    task = page.shop.direct
    texts = [*page.shop.texts, *task.train_queries, *task.queries]
    known = {word for text in texts for word in words(text)}
    assert len(known) > 100
    said = [word for form in world.forms for word in words(form)]
    assert not known & set(said)


@pytest.mark.parametrize("seed", [1, 2])
def test_names_are_none_of_the_brands_in_other_shops_too(seed):
    """Brands are made of the same syllables: without a look at them some names would be brands."""
    truth = open_truth(ShopConfig.of("smoke", users=200), seed)
    made = needs.make_needs(truth, needs.NeedsConfig(60, 12, 100, 100))
    brands = {word for name in truth.goods.value_name for word in words(str(name))}
    said = [word for form in made.forms for word in words(form)]
    assert not brands & set(said)
    rng = np.random.default_rng(0)
    free, _ = needs._forms(made.needs, needs.NeedsConfig(60, 12), set(), rng)
    assert brands & {word for form in free for word in words(form)}
    counts = np.unique(np.array(made.forms), return_counts=True)[1]
    assert counts.max() == 1


def test_wordings_that_are_unseen_are_in_no_log(world):
    assert world.seen[world.log.form].all()
    assert 0 < (~world.seen).sum() < len(world.seen) / 4
    assert not world.seen[world.test.form].all()


def test_the_engine_of_the_test_shows_what_is_meant_and_that_of_the_log_does_not(page, world):
    goods, shares = page.shop.think.goods, []
    for traffic in (world.log, world.test):
        need = world.need[traffic.form[traffic.shown.rows]]
        met = [
            needs.fulfils(goods, world.needs[n], traffic.shown.values[need == n])
            for n in np.unique(need)
        ]
        shares.append(np.concatenate(met).mean())
    assert shares[1] > 2 * shares[0]
    grades = grade(world.truth, world.test.shown.rows, world.test.shown.values)
    first = np.r_[True, np.diff(world.test.shown.rows) > 0]
    assert (grades[first] == 3).mean() > 0.95  # the first place of each list


def test_a_need_is_met_by_at_least_five_products(world, think):
    for need in world.needs:
        met = [needs.meets(think.goods, *sense, need.forbidden).sum() for sense in need.senses]
        assert sum(met) >= 5
    kinds = {needs.KINDS[need.kind] for need in world.needs}
    assert kinds == set(needs.KINDS)
    goods = think.goods
    for need in world.needs:
        name = needs.KINDS[need.kind]
        assert (need.forbidden != -1) == (name in ("negation", "substitute"))
        assert len(need.senses) == 1 + (name in ("gift", "ambiguous"))
        if name == "substitute":  # the brand of a product that has all else
            assert goods.value_attribute[need.forbidden] == 0
            brand = goods.values[:, 0] == need.forbidden
            assert (needs.meets(goods, *need.senses[0]) & brand).any()


def test_what_meets_a_need_by_hand(think):
    goods = think.goods
    leaf = int(goods.leaf[0])
    value = int(next(v for v in goods.values[0] if v != -1))
    found = needs.meets(goods, leaf, [value])
    assert found[0]
    assert (goods.leaf[found] == leaf).all()
    assert (goods.values[found] == value).any(1).all()
    assert not needs.meets(goods, leaf, [], forbidden=value)[0]


def test_what_fulfils_a_need_is_what_meets_one_of_its_senses(world, think):
    goods = think.goods
    every = np.arange(len(goods.leaf))
    for need in world.needs:
        found = needs.fulfils(goods, need, every)
        by_hand = [
            any(
                goods.leaf[n] == leaf
                and set(wanted) <= set(goods.values[n])
                and need.forbidden not in set(goods.values[n]) - {-1}
                for leaf, wanted in need.senses
            )
            for n in every
        ]
        assert found.tolist() == by_hand
        assert (needs.fulfils(goods, need, every[::-1]) == found[::-1]).all()


def test_without_noise_a_thought_is_category_and_values_of_all_senses(world, think):
    clear = replace(think, noise=0.0, drop=0.0)
    goods = think.goods
    for form, n in zip(world.forms[::7], world.need[::7], strict=True):
        need = world.needs[n]
        spelled = [
            [str(goods.leaf_name[leaf]), *(str(goods.value_name[v]) for v in values)]
            for leaf, values in need.senses
        ]
        wanted = {word for sense in spelled for word in sense}
        more = set(clear(form)) - wanted
        if needs.KINDS[need.kind] == "negation":
            assert wanted <= set(clear(form))
            assert len(more) <= 2
        else:
            assert not more
            assert wanted == set(clear(form))
        if need.forbidden != -1:
            assert goods.value_name[need.forbidden] not in clear(form)
        same = [f for f, m in zip(world.forms, world.need, strict=True) if m == n]
        assert {tuple(clear(f)) for f in same} == {tuple(clear(form))}


def test_errors_stay_when_noise_grows_and_some_are_common_to_a_need(world, think):
    few, many = replace(think, noise=0.2, drop=0.0), replace(think, noise=0.6, drop=0.0)
    clear = replace(think, noise=0.0, drop=0.0)
    for form in world.forms:
        kept = zip(clear(form), few(form), many(form), strict=False)
        if len(set(few(form))) == len(set(many(form))) == len(clear(form)):
            assert all(b == c for a, b, c in kept if b != a)  # a wrong word stays that wrong word

    def forms_apart(common):
        wrong = replace(think, noise=0.5, drop=0.0, common=common)
        lists = [[wrong(f) for f in world.forms[12 * n : 12 * n + 12]] for n in range(10)]
        return np.mean([len({tuple(each) for each in own}) for own in lists])

    assert forms_apart(1.0) == 1
    assert 1 < forms_apart(0.5) < forms_apart(0.0)


def test_dials_of_thoughts(world, think):
    clear = replace(think, noise=0.0, drop=0.0)
    wrong, silent = replace(clear, noise=1.0), replace(clear, drop=1.0)
    assert all(silent(form) == [] for form in world.forms)
    shared = [len(set(wrong(f)) & set(clear(f))) / len(clear(f)) for f in world.forms]
    assert np.mean(shared) < 0.1
    some = replace(clear, drop=0.3)
    lengths = [len(some(f)) / len(clear(f)) for f in world.forms]
    assert 0.5 < np.mean(lengths) < 0.9
    assert think("a query that nobody knows") == []


def test_a_thought_never_changes_with_the_clicks(page, world):
    """Another log over the same needs: other clicks, equal thoughts."""
    truth = open_truth(SHOP, 0)
    other = needs.make_needs(truth, needs.NeedsConfig(10, 12, 250, 60, understood=1.0))
    assert other.forms == world.forms
    assert len(other.log.clicked.values) != len(world.log.clicked.values)
    think = needs.Thinker(truth.goods, needs.meanings(other, truth))
    assert all(think(form) == page.shop.think(form) for form in world.forms)


@pytest.mark.parametrize("values", [{"understood": 1.5}, {"unseen": -0.1}, {"forms": 0}])
def test_settings_of_needs_are_checked(values):
    with pytest.raises(InputError, match="NeedsConfig"):
        needs.NeedsConfig(**values)


def test_thoughts_are_read_from_a_file(page, tmp_path):
    path = tmp_path / "thoughts.tsv"
    path.write_text("anything\tface cream, lavender\n\nother\t\n", encoding="utf-8")
    assert page.read_thoughts(path) == {"anything": ["face cream", "lavender"], "other": []}
    path.write_text("anything\tcream\n\nno tab\n", encoding="utf-8")
    with pytest.raises(InputError, match="query and keywords") as caught:
        page.read_thoughts(path)
    assert caught.value.where == f"{path}, line 3"
    with pytest.raises(InputError, match="no such file"):
        page.read_thoughts(tmp_path / "none.tsv")


def test_click_rates_are_drawn_towards_the_mean(page):
    shown, clicked = Ragged.from_lists([[0, 1], [0]]), Ragged.from_lists([[0], []])
    nothing = Ragged.from_lists([[], []])
    log = needs.Traffic(["a", "a"], np.zeros(2, int), np.array([4, 9]), shown, clicked, nothing)
    found = page.behaviour_of([log], 3)
    mean = 1 / 3
    assert found.rates == pytest.approx([(1 + 20 * mean) / 22, 20 * mean / 21, mean])
    assert found.counts.tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert found.past[0].tolist() == [4]
    assert (found.shown, found.clicked, found.ordered) == ({"a": {0, 1}}, {"a": {0}}, {})


def test_what_the_log_says_is_what_both_of_its_parts_hold(page):
    parts = (page.shop.direct_log, page.shop.complex_log)
    clicks = np.concatenate([part.clicked.values for part in parts])
    assert page.behaviour.counts[1].tolist() == np.bincount(clicks, minlength=300).tolist()
    assert len(page.behaviour.past[0]) == len(page.behaviour.past[1]) == len(clicks)
    queries, rows = page.shop.complex_clicks
    for query, row in zip(queries[:50], rows[:50].tolist(), strict=True):
        assert row in page.behaviour.clicked[query]
        assert row in page.behaviour.shown[query]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """KuaiSearch files with thoughts about every third query."""
    folder = tmp_path_factory.mktemp("real") / "log"
    log, _ = make_shop(ShopConfig.of("smoke"), 3)
    log.write(folder)
    queries = list(dict.fromkeys(log.recall["query"]))[::3]
    lines = [f"{query}\t{', '.join(query.split()[:2])}" for query in queries]
    (folder / "thoughts.tsv").write_text("\n".join(lines), "utf-8")
    return folder, log, set(queries)


def test_real_files_are_split_by_thought_and_never_trained_on_their_test(page, real):
    folder, log, known = real
    shop = page.real_shop(folder)
    training = log.recall["split"] == "train"
    thought = np.array([query in known for query in log.recall["query"]])
    assert len(shop.traffic) == (training & thought).sum()
    assert len(shop.direct_log.queries) == (training & ~thought).sum()
    assert set(shop.traffic) <= known
    assert (~training & thought).sum() > 0
    last = log.recall["session_id"][~training]
    assert len(shop.test_users) == len(shop.direct.queries) <= len(last)
    count = len(shop.texts)
    behaviour = page.behaviour_of([shop.direct_log, shop.complex_log], count)
    assert (
        behaviour.counts[0].sum() == log.recall["impressed_item_ids"].select(training).lengths.sum()
    )
    assert behaviour.rates.std() > 0  # a reward of click rates alone says something
    assert shop.think("never heard of") == []


def test_thoughts_of_another_quality_are_refused_for_real_files(page, real, monkeypatch):
    monkeypatch.setattr(page, "shop", page.real_shop(real[0]))
    for reads in ("wrong", "errorless"):
        with pytest.raises(InputError, match="simulated shop"):
            page.keywords_for(["anything"], reads)
    assert page.keywords_for(["anything"], "leaking") == [[]]


# -- identifiers and prompts ---------------------------------------------------------------------


def test_enhancement_by_hand(page):
    vocabulary = page.space.vocabulary
    known = vocabulary.frequent[0]
    (number,) = vocabulary.ids_of(known)
    words = np.zeros((len(vocabulary), 2), np.float32)
    words[number] = [0, 1]
    space = page.Space(vocabulary, words, np.array([[1, 0], [1, 0]], np.float32))
    found = page.enhanced(space, [[known], []])
    assert found[0] == pytest.approx(np.sqrt([0.5, 0.5]))
    assert found[1] == pytest.approx([1, 0])  # no match: unchanged


def test_words_of_complex_requests_have_no_vector_of_their_own(page):
    """Else the decomposition would know by heart which products they were clicked for."""
    names = {w for f in page.shop.world.forms for w in f.split()}
    known = {w for t in page.shop.texts + page.shop.direct.train_queries for w in t.split()}
    for name in sorted(names - known)[:50]:
        ids = page.space.vocabulary.ids_of(name)
        if len(ids) == 1:
            assert not page.space.word_vectors[ids[0]].any(), name


def test_a_source_is_mark_query_and_keywords(page):
    settings, vocabulary = page.settings, page.space.vocabulary
    word = vocabulary.frequent[3]
    (row,) = page.sources([word], [[word]]).tolist()
    (number,) = vocabulary.ids_of(word)
    assert row[0] == page.alphabet.mark("retrieve")
    assert row[1] == row[1 + settings.query_words] == number
    assert len(row) == 1 + settings.query_words + settings.keyword_words
    assert sum(n != 0 for n in row) == 3
    with pytest.raises(InputError, match="2 lists for 1 queries"):
        page.sources([word], [[], []])


def test_some_names_are_spelled_as_unheard_ones_are(page):
    """In training rows, a share of them; for student and teacher, and for them alike."""
    vocabulary, start = page.space.vocabulary, 1 + page.settings.query_words
    name = sorted(page.names())[0]
    marked = f"^{name}$"
    pieces = Vocabulary((), vocabulary.pieces).ids_of(name)
    assert len(pieces) == len(marked) - 2
    query = f"anything but {name}"
    known = [n for word in ("anything", "but") for n in vocabulary.ids_of(word)]
    unheard = [*known, *(n - 2 + vocabulary.first_piece for n in pieces)]
    assert page.spelled_out(query) == unheard[: page.settings.query_words]
    never = next(w for w in ("zzyzzx", "qqwqqw") if len(vocabulary.ids_of(w)) > 1)
    assert min(vocabulary.ids_of(never)) >= vocabulary.first_piece
    rows, queries = page.tables("keywords")["traffic"], page.shop.traffic
    plain = page.sources(queries)
    changed = (rows.student != plain).any(1)
    assert 0.05 < changed.float().mean() < 0.15
    assert torch.equal(rows.teacher[:, :start], rows.student[:, :start])
    row = int(changed.nonzero()[0])
    there = [n for n in rows.student[row, 1:start].tolist() if n]
    assert there == page.spelled_out(queries[row])
    assert page.names() <= {w for form in page.shop.world.forms for w in words(form)}


def test_an_empty_query_is_still_a_source(page, model):
    ranked = page.ranked_products(model, page.sources(["", "zzzz"]), 5)
    assert (ranked >= 0).all()


def test_without_keywords_the_teacher_is_the_student_bit_for_bit(page, model):
    asked = page.shop.traffic[:4]
    target = torch.from_numpy(page.identifiers[:4])
    student = model(page.sources(asked), target)
    assert torch.equal(student, model(page.sources(asked, [[]] * 4), target))
    assert not torch.allclose(student, model(page.sources(asked, [["lamp"]] * 4), target))


def test_keywords_are_a_set_and_the_query_is_not(page, model):
    a, b = page.space.vocabulary.frequent[:2]
    target = torch.from_numpy(page.identifiers[:1])
    one, two = (model(page.sources([""], [k]), target) for k in ([a, b], [b, a]))
    assert torch.allclose(one, two, atol=1e-5)
    one, two = (model(page.sources([q]), target) for q in (f"{a} {b}", f"{b} {a}"))
    assert not torch.allclose(one, two, atol=1e-5)


def test_beams_score_what_the_model_says_of_codes(page, model):
    """Beam search knows nothing of the restricted softmax; both must agree."""
    source = page.sources(page.shop.traffic[:3], page.shop.thoughts(page.shop.traffic[:3]))
    beams = beam_search(model.bart, source, 5, page.trie)
    for row in range(3):
        written = torch.from_numpy(beams.tokens[row])
        logits = model(source[row : row + 1].expand(len(written), -1), written)
        codes = (written - model.first)[..., None]
        scores = logits.log_softmax(-1).gather(2, codes)[..., 0].sum(1)
        assert scores.detach().numpy() == pytest.approx(beams.scores[row], abs=1e-3)


def test_samples_have_a_code_of_its_position_at_each_place(page, model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        written = page.sample(model, page.sources(page.shop.traffic[:64])).numpy()
    codes = page.alphabet.codes(written)
    assert (codes >= 0).all()
    assert (codes < np.array(page.alphabet.sizes)).all()
    assert len(np.unique(written, axis=0)) > 20


def test_written_lists_end_behind_their_last_word_at_the_latest_after_twelve(page):
    lists = torch.tensor([[7, 8, 0], [0, 0, 0], [7, 8, 9]])
    assert page.with_end(lists).tolist() == [[7, 8, END, 0], [END, 0, 0, 0], [7, 8, 9, END]]


def test_nothing_is_written_behind_the_end(page, model, monkeypatch):
    """A model that wants two words, then END, then more: two words are read."""
    source, told = page.sources(page.shop.traffic[:3]), [5, 6, END, 7, 7]
    asked = []

    def logits(_, source, place, read=()):
        asked.append(source)
        found = torch.zeros(len(source), place.shape[1], 20)
        found[:, -1, PAD] = 99.0  # which must never be taken
        found[:, -1, told[min(place.shape[1] - 1, 4)]] = 9.0
        return found

    monkeypatch.setattr(page, "word_logits", logits)
    found = page.written_keywords(model, source)
    assert found.tolist() == [[5, 6] + [0] * (page.settings.keyword_words - 2)] * 3
    assert (asked[0][:, 0] == page.alphabet.mark("think")).all()
    assert torch.equal(asked[0][:, 1:], source[:, 1:])


def test_a_model_learns_to_write_a_list_and_to_end_it(page):
    model = page.new_model(0)
    rows = page.tables("keywords")["traffic"][torch.arange(4)]
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = page.writes(model, rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = page.written_keywords(model.eval(), rows.student)
    assert torch.equal(found, rows.teacher[:, 1 + page.settings.query_words :])


# -- losses --------------------------------------------------------------------------------------


def test_divergence_by_hand_and_its_direction(page):
    teacher = torch.tensor([[[0.75, 0.25]]]).log().requires_grad_()
    student = torch.tensor([[[0.5, 0.5]]]).log().requires_grad_()
    loss = page.divergence(teacher, student)
    assert loss.item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    back = page.divergence(student, teacher).item()
    assert back == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    loss.backward()
    assert teacher.grad is None  # the teacher is not drawn towards the student
    assert student.grad[0, 0].tolist() == pytest.approx([-0.25, 0.25])


def test_divergence_is_the_mean_over_positions_and_scaled_by_the_temperature(page):
    draw = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, 3, 5, generator=draw) for _ in range(2))
    each = [
        page.divergence(teacher[b, k][None, None], student[b, k][None, None]).item()
        for b in range(2)
        for k in range(3)
    ]
    assert page.divergence(teacher, student).item() == pytest.approx(np.mean(each))
    soft = page.divergence(teacher / 3, student / 3).item()
    assert page.divergence(teacher, student, 3.0).item() == pytest.approx(9 * soft)
    assert page.divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_r_drop_is_half_the_sum_of_both_directions(page):
    draw = torch.Generator().manual_seed(1)
    one, two = (torch.randn(2, 3, 5, generator=draw) for _ in range(2))
    expected = 0.5 * (page.divergence(one, two) + page.divergence(two, one))
    assert page.both_ways(one, two).item() == pytest.approx(expected.item())
    assert page.both_ways(one, one).item() == pytest.approx(0)


def test_focal_loss_by_hand(page):
    logits, target = torch.tensor([[[0.75, 0.25]]]).log(), torch.zeros(1, 1, dtype=torch.long)
    assert page.likelihood(logits, target).item() == pytest.approx(-np.log(0.75))
    by_hand = 2 * 0.25**3 * -np.log(0.75)
    assert page.likelihood(logits, target, focal=True).item() == pytest.approx(by_hand)


def test_smoothing_gives_its_share_to_the_codes_of_a_position_alone(page, monkeypatch):
    monkeypatch.setattr(page, "alphabet", Alphabet(5, (), (2, 1)))
    logits = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]]).log()
    found = page.likelihood(logits, torch.tensor([[0, 2]]), smoothing=0.2).item()
    first = -0.9 * np.log(0.5) - 0.1 * np.log(0.3)
    second = -np.log(0.8)  # one code: there is nothing to spread to
    assert found == pytest.approx((first + second) / 2)
    assert page.position_mask(torch.device("cpu")).tolist() == [
        [True, True, False], [False, False, True],
    ]  # fmt: skip


def test_the_adversarial_step_has_its_length_and_makes_the_loss_worse(page, model):
    rows = page.tables("keywords")["complex"][torch.arange(16)]
    codes = rows.target - model.first
    loss = page.likelihood(model(rows.student, rows.target), codes)
    moved = page.perturbed(model, loss, 0.6)
    before = model.bart.model.shared.weight.detach().clone()
    assert (moved[page.TABLE] - before).norm().item() == pytest.approx(0.6, rel=1e-4)
    logits = torch.func.functional_call(model, moved, (rows.student, rows.target))
    assert page.likelihood(logits, codes).item() > loss.item() + 0.01
    assert torch.equal(model.bart.model.shared.weight, before)  # the model itself stays


# -- rows and plans ------------------------------------------------------------------------------


def test_each_step_takes_its_share_of_titles_and_complex_clicks_where_they_are(page):
    rows = page.tables("keywords")
    titles, direct, complex_ = (len(rows[n]) for n in ("titles", "direct", "complex"))
    found = page.schedule(rows, 50, 3)
    of_titles = (found["log"] < titles).float().mean(1)
    assert of_titles.tolist() == [page.settings.title_share] * 50
    assert found["log"].max() < titles + direct + complex_
    assert found["extra"].min() >= titles + direct
    assert found["extra"].max() < titles + direct + complex_
    assert found["extra"].shape == (50, 2 * page.settings.extra)
    assert max(found["traffic"].max(), found["writing"].max()) < len(rows["traffic"])
    again = page.schedule(rows, 50, 3)
    assert all(torch.equal(found[n], again[n]) for n in found)
    assert not torch.equal(found["log"], page.schedule(rows, 50, 4)["log"])


def test_rows_of_titles_stand_in_for_queries_or_for_keywords(page):
    rows = page.tables("keywords")["titles"]
    start = 1 + page.settings.query_words
    asked, thought = (rows.student[:, 1:start] != 0).any(1), (rows.student[:, start:] != 0).any(1)
    assert (asked != thought).all()
    assert 0.55 < thought.float().mean() < 0.78
    assert torch.equal(rows.student, rows.teacher)


def test_what_a_teacher_reads(page):
    queries, items = (part[:20] for part in page.shop.complex_clicks)
    plain, leak = (page.query_rows(queries, items, reads) for reads in ("keywords", "leaking"))
    assert not torch.equal(plain.student, plain.teacher)
    count = lambda rows: (rows.teacher != 0).sum().item()  # noqa: E731
    assert count(leak) > count(plain)
    assert torch.equal(leak.student, plain.student)  # the student never reads any
    think = page.shop.think
    clear, wrong = replace(think, noise=0.0, drop=0.0), replace(think, noise=1.0)
    assert page.keywords_for(queries, "errorless") == [clear(query) for query in queries]
    assert page.keywords_for(queries, "wrong") == [wrong(query) for query in queries]
    assert page.keywords_for(queries, "leaking") == [think(query) for query in queries]


def test_keywords_are_written_for_the_requests_that_others_distil(page):
    changes = page.CHANGES
    assert (
        changes["keyword_task"]["writes"] == page.Plan(**changes["distilled"]).guided == "traffic"
    )
    found = {}
    for writes in ("traffic", "writing"):
        parts, _ = first_step(page, page.Plan(writes=writes))
        found[writes] = parts["writing"].item()
    assert found["traffic"] != found["writing"]


def test_the_student_of_every_plan_reads_the_same(page):
    for reads in ("wrong", "leaking", "errorless"):
        rows = page.tables(reads)["complex"]
        assert torch.equal(rows.student, page.tables("keywords")["complex"].student)


def one_batch(page):
    return {name: rows[:1] for name, rows in page.schedule(page.tables("keywords"), 2, 0).items()}


def without_dropout(model):
    """A model in training that computes what it computes in evaluation."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    return model


def first_step(page, plan):
    """The parts of the loss of one step from fresh weights, and the gradient of the table."""
    model = without_dropout(page.new_model(0))
    training = page.Training(model, plan)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = training.loss(one_batch(page))
    parts["loss"].backward()
    return parts, model.bart.model.shared.weight.grad


def test_a_guide_that_reads_no_keywords_has_nothing_to_tell(page):
    """It is the student itself, dropout aside; all else is as in the main arm."""
    plans = {n: page.Plan(**page.CHANGES[n]) for n in ("same_input", "distilled")}
    assert replace(plans["same_input"], prompt="both") == plans["distilled"]
    gaps = {name: first_step(page, plan)[0]["kl"].item() for name, plan in plans.items()}
    assert gaps["same_input"] == pytest.approx(0, abs=1e-5)
    assert gaps["distilled"] > 5e-5


def test_a_guide_reads_what_its_plan_says(page, monkeypatch):
    model, batch = page.new_model(0), one_batch(page)
    rows, asked = page.tables("keywords")["traffic"].taken(batch["traffic"][0]), []
    start = 1 + page.settings.query_words
    told = page.sample
    monkeypatch.setattr(page, "sample", lambda *a: asked.append(a[1:]) or told(*a))
    for prompt in ("both", "keywords", "query"):
        training = page.Training(model, page.Plan(guided="traffic", prompt=prompt))
        student, _, _ = page.guidance(training, rows, batch)
        assert torch.equal(student, rows.student)
    both, alone, query = (source for source, _ in asked)
    assert torch.equal(both, rows.teacher)
    assert torch.equal(query, rows.student)
    assert torch.equal(alone[:, start:], rows.teacher[:, start:])
    assert not torch.equal(alone, both)
    assert model.training


def test_hard_labels_are_the_likeliest_codes_and_the_same_each_time(page, model):
    source = page.sources(page.shop.traffic[:16])
    found = page.sample(model, source, True)
    assert torch.equal(found, page.sample(model, source, True))
    chances = page.log_chances(model, source, found)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = page.sample(model, source)
    assert (chances[:, 0] >= page.log_chances(model, source, drawn)[:, 0]).all()
    assert not torch.equal(found, drawn)


def test_a_slow_copy_follows_by_a_tenth(page):
    model = page.new_model(0)
    training = page.Training(model, page.Plan(guide="ema", guided="traffic"))
    with torch.no_grad():
        model.bart.model.shared.weight.add_(1.0)
    slow = page.guide_of(training)
    gap = model.bart.model.shared.weight - slow.bart.model.shared.weight
    assert gap.mean().item() == pytest.approx(0.9, abs=1e-4)
    assert slow is not model


@pytest.mark.parametrize("name", sorted(chapters.load(CHAPTER).CHANGES))
def test_every_plan_does_what_no_other_does(page, name):
    """A finite loss that reaches the table; not that of the baseline, from the same weights."""
    changes, plan = page.CHANGES, page.Plan(**page.CHANGES[name])
    _, gradient = first_step(page, plan)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    same = name in ("extra", "extra_longer")  # which differs in its length alone
    _, of_baseline = first_step(page, page.Plan(**changes["extra"]))
    assert torch.equal(gradient, of_baseline) == same
    assert sum(other == changes[name] for other in changes.values()) == 1


def test_regularisers_are_added_to_the_main_arm_one_by_one(page):
    ours = page.Plan(**page.CHANGES["distilled"])
    for name, field in (("rdrop", "rdrop"), ("fgm", "fgm"), ("focal", "focal")):
        plan = page.Plan(**page.CHANGES[f"distilled_{name}"])
        changed = [f.name for f in fields(plan) if getattr(plan, f.name) != getattr(ours, f.name)]
        assert changed == [field]
        assert getattr(plan, field) == page.PRINTED[field]


def test_the_adversarial_loss_holds_the_divergence_too(page, monkeypatch):
    moved = []
    told = page.guided
    monkeypatch.setattr(page, "guided", lambda *a: moved.append(len(a) > 5) or told(*a))
    first_step(page, page.Plan(**page.CHANGES["distilled_fgm"]))
    assert moved == [False, True]


def test_twice_the_clicked_pairs_are_the_same_ones_and_as_many_more(page, monkeypatch):
    taken, batch, real = [], one_batch(page), page.Rows.taken
    watch = lambda self, index: taken.append(index) or real(self, index)  # noqa: E731
    monkeypatch.setattr(page.Rows, "taken", watch)
    for name in ("plain", "extra", "extra_double"):
        page.Training(page.new_model(0), page.Plan(**page.CHANGES[name])).loss(batch)
    plain, extra, double = taken
    log, more = page.settings.batch_size, page.settings.extra
    assert [len(index) for index in taken] == [log, log + more, log + 2 * more]
    assert torch.equal(double[: log + more], extra)
    assert torch.equal(extra[:log], plain)


def test_a_teacher_without_a_loss_gets_no_gradient_through_its_keywords(page):
    """The vector of keyword places is read by the teacher alone."""
    model = page.new_model(0)
    model.train()
    for name, reached in (("distilled_alone", False), ("distilled", True)):
        model.zero_grad()
        plan = page.Plan(**page.CHANGES[name])
        training = page.Training(model, plan)
        batch = one_batch(page)
        batch["log"] = batch["extra"]  # no rows of titles, in which the student has keywords
        training.loss(batch)["loss"].backward()
        gradient = model.bart.model.encoder.embed_positions.keyword.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == reached


def test_blind_rows_keep_mark_and_keywords(page, monkeypatch):
    seen = []
    rows = page.tables("keywords")["complex"][torch.arange(8)]
    monkeypatch.setattr(page, "settings", replace(page.settings, blind=1.0))

    class Watched:
        first = page.new_model(0).first

        def __call__(self, source, target):
            seen.append(source)
            return torch.zeros(*target.shape, sum(page.alphabet.sizes))

    page.taught(Watched(), rows)
    start = 1 + page.settings.query_words
    thinking = (rows.teacher != rows.student).any(1)
    assert (seen[0][:, 1:start] == 0).all()
    assert torch.equal(seen[0][:, start:], rows.teacher[thinking][:, start:])
    assert (seen[0][:, 0] == page.alphabet.mark("retrieve")).all()


def test_a_blank_query_is_blank_only_where_there_are_keywords(page):
    rows = page.tables("keywords")["traffic"][torch.arange(6)]
    rows = page.Rows(rows.student, rows.teacher.clone(), rows.target)
    rows.teacher[0] = rows.student[0]  # one without a thought
    found, start = page.without_query(rows), 1 + page.settings.query_words
    assert torch.equal(found[0], rows.student[0])
    assert (found[1:, 1:start] == 0).all()
    assert torch.equal(found[:, start:], rows.teacher[:, start:])
    assert torch.equal(found[:, 0], rows.teacher[:, 0])
    assert (rows.teacher[1:, 1:start] != 0).any()  # a copy was changed


def test_equal_seeds_give_equal_weights(page):
    weights = []
    for seed in (1, 1, 2):
        model = page.new_model(0)
        page.train(model, page.Plan(teacher=True, guided="traffic"), 2, 1e-3, seed)
        weights.append(model.bart.model.shared.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.fixture
def ran(page, monkeypatch):
    """What arms were trained with, without training or asking them."""
    calls = {"trained": [], "measured": [], "informed": [], "rewarded": []}
    history = page.History()

    def train(model, plan, count, rate, train_seed):
        calls["trained"].append((plan, count, rate, train_seed))
        return history

    monkeypatch.setattr(page, "train", train)
    monkeypatch.setattr(page, "base_model", lambda reads="keywords": page.new_model(0))
    monkeypatch.setattr(page, "distilled_model", lambda: page.new_model(0))
    monkeypatch.setattr(page, "align", lambda *a: calls["trained"].append(a[1:]) or history)
    monkeypatch.setattr(page, "measure", lambda n, m, first=False: calls["measured"].append(first))
    monkeypatch.setattr(page, "measure_informed", lambda n, m, r: calls["informed"].append((n, r)))
    monkeypatch.setattr(page, "measure_ideal", lambda name: None)
    monkeypatch.setattr(page, "measure_rewards", lambda n, m: calls["rewarded"].append(n))
    return calls


def test_arms_share_their_seed_and_differ_in_length_where_they_say_so(page, ran):
    for name in ("extra", "distilled", "extra_longer"):
        page.run_arm(name)
    plans, counts, rates, seeds = zip(*ran["trained"], strict=True)
    assert len(set(seeds)) == len(set(rates)) == 1
    longer = page.Plan(**page.CHANGES["extra_longer"]).longer
    steps = page.settings.steps
    assert counts == (steps, steps, round(longer * steps))
    assert longer > 1
    assert plans[2] == replace(plans[0], longer=longer)


def test_whoever_has_a_teacher_has_it_measured_with_what_it_reads(page, ran):
    for name in ("base", "start", *page.CHANGES, *page.ALIGNED):
        page.run_arm(name)
    told = dict(ran["informed"])
    without = {"plain", "extra", "extra_double", "extra_longer", "smoothed", "keyword_task"}
    assert told.keys() == {"base", *page.CHANGES} - without
    assert {n: r for n, r in told.items() if r != "keywords"} == {
        "wrong": "wrong", "leaking": "leaking", "errorless": "errorless",
    }  # fmt: skip
    assert set(ran["rewarded"]) == {"start", *page.ALIGNED}
    assert sum(ran["measured"]) == 1  # writes_first alone


def test_arms_with_wrong_keywords_start_from_a_base_that_learnt_with_them(page, monkeypatch):
    asked = []
    monkeypatch.setattr(page, "stored", lambda name, model, plan, seed: asked.append((name, plan)))
    for reads in ("keywords", "wrong", "leaking", "errorless"):
        page.base_model(reads)
    assert [name for name, _ in asked] == ["base", "base_wrong", "base", "base"]
    assert [plan.reads for _, plan in asked] == ["keywords", "wrong", "keywords", "keywords"]
    assert all(plan.writes == "writing" and plan.teacher and not plan.extra for _, plan in asked)


def test_what_is_kept_is_read_back_and_made_anew_when_the_data_change(page, monkeypatch, tmp_path):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    plan, trained = page.Plan(teacher=True), []
    real = page.train
    monkeypatch.setattr(page, "train", lambda *a: trained.append(a[2:]) or real(*a))
    one = page.stored("base", page.new_model(0), plan, 0)
    assert trained == [(page.settings.base_steps, page.settings.base_rate, 0)]
    two = page.stored("base", page.new_model(0), plan, 0)
    assert len(trained) == 1
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    key = page.key_of("base")
    faster = replace(page.settings, rate=0.5, rl_rate=0.5)
    monkeypatch.setattr(page, "settings", faster)
    assert page.key_of("base") == key  # a base does not depend on what arms do later
    assert page.key_of("distilled")["settings"]["rate"] == 0.5
    monkeypatch.setattr(page, "settings", replace(faster, base_steps=7))
    assert page.key_of("base") != key
    monkeypatch.setattr(page, "shop", replace(page.shop, think=replace(page.shop.think, drop=0.9)))
    page.origin.cache_clear()
    assert page.key_of("base")["digest"] != key["digest"]
    page.origin.cache_clear()


def test_shipped_weights_for_other_data_are_left_aside(page, monkeypatch, tmp_path, capsys):
    """The file names the data it was made for."""
    folder = tmp_path / "needs_0"
    folder.mkdir()
    made = {n: p.detach().half() for n, p in page.new_model(5).named_parameters()}
    monkeypatch.setattr(page, "ASSETS", tmp_path)
    monkeypatch.setattr(page, "profile", "toy")
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    trained = []
    monkeypatch.setattr(page, "train", lambda *a: trained.append(a))
    for digest, used in (("another", False), (page.key_of("base")["digest"], True)):
        page.save_file(made, folder / "base.safetensors", {"digest": digest})
        model = page.stored("base", page.new_model(0), page.Plan(), 0)
        same = all(torch.equal(p, made[n].float()) for n, p in model.named_parameters())
        assert same == used
        assert ("trained here" in capsys.readouterr().out) == (not used)
    assert len(trained) == 1


# -- credit by position --------------------------------------------------------------------------


def test_position_terms_by_hand(page):
    target = torch.tensor([[1, 2, 3, 4, 5]])
    tried = torch.tensor([[1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [1, 0, 0, 0, 5]])
    reward, marginal, gate = page.position_terms(tried, target, page.WEIGHTS)
    assert reward.tolist() == [[2, 4, 6, 7, 8], [0, 2, 4, 5, 6], [2, 2, 2, 2, 3]]
    assert marginal.tolist() == [[2, 2, 2, 1, 1], [0, 2, 2, 1, 1], [2, 0, 0, 0, 1]]
    assert gate[0].tolist() == [1] * 5
    assert gate[1].tolist() == pytest.approx([1, 0, 1 / 2, 2 / 3, 3 / 4])
    assert gate[2].tolist() == pytest.approx([1, 1, 1 / 2, 1 / 3, 1 / 4])


def test_a_strict_prefix_ends_at_the_first_wrong_code(page):
    target, tried = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 0, 3, 4, 5]])
    _, marginal, gate = page.position_terms(tried, target, page.WEIGHTS, strict=True)
    assert marginal.tolist() == [[2, 0, 0, 0, 0]]
    assert gate[0].tolist() == pytest.approx([1, 1, 1 / 2, 1 / 3, 1 / 4])


def test_the_best_target_counts_and_filling_matches_nothing(page):
    targets = torch.tensor([[1, 2, 9, 9, 9], [0, 0, 3, 4, 5], [-1] * 5])
    tried = torch.tensor([[1, 2, 3, 4, 5], [7, 7, 7, 7, 7]])
    reward, marginal, _ = page.position_terms(tried, targets, page.WEIGHTS)
    assert reward[0].tolist() == [2, 4, 4, 4, 4]
    assert marginal[1].tolist() == [0] * 5


def test_released_weights_leave_the_last_token_without_an_advantage(page):
    target = torch.tensor([[1, 2, 3, 4, 5]])
    tried = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 0]])
    for weights, spread in ((page.RELEASED, 0.0), (page.WEIGHTS, 1.0)):
        marginal = page.position_terms(tried, target, weights)[1]
        assert page.in_group(marginal, 0)[:, -1].abs().max().item() == pytest.approx(spread)


def test_groups_are_normalised_and_equal_rewards_say_nothing(page):
    found = page.in_group(torch.tensor([1.0, 3.0]), 0)
    assert found.tolist() == pytest.approx([-1, 1])
    equal = torch.full((8,), 0.1) + 0.2  # sums that are not exact
    assert page.in_group(equal, 0).tolist() == [0] * 8
    with pytest.raises(InputError, match="no number"):
        page.in_group(torch.tensor([1.0, float("nan")]), 0)


@pytest.fixture(scope="module")
def prompts(page):
    return page.make_prompts()


def test_feedback_is_on_the_lists_of_the_model_that_alignment_starts_from(page, world):
    feedback = page.feedback()
    assert len(feedback.queries) == page.settings.feedback
    assert set(feedback.queries) <= set(world.log.queries)  # no wording of the test alone
    row = 5
    asked = page.sources([feedback.queries[row]])
    listed = page.ranked_products(page.distilled_model(), asked, page.settings.listed)[0]
    assert feedback.shown[row].tolist() == [item for item in listed if item != EMPTY]
    assert 0 < len(feedback.clicked.values) < len(feedback.shown.values)


def test_people_click_more_on_what_they_want(page, world):
    """Half of the lists begin with what is wanted, half hold popular products."""
    goods, count = page.shop.think.goods, len(world.forms)
    every, lists = np.arange(300), np.full((count, 8), EMPTY)
    for form, n in enumerate(world.need):
        met = np.flatnonzero(needs.fulfils(goods, world.needs[n], every))[:4]
        lists[form, : len(met)] = met
        lists[form, 4:] = np.argsort(-goods.demand)[:4]
    answered = needs.respond(world, lists, 3000)
    clicked = answered.clicked
    need = world.need[answered.form[clicked.rows]]
    wanted = [
        needs.fulfils(goods, world.needs[n], np.array([item]))[0]
        for n, item in zip(need, clicked.values, strict=True)
    ]
    assert np.mean(wanted) > 0.6
    assert (answered.shown.lengths <= 8).all()
    assert set(answered.form) <= set(world.log.form)
    with pytest.raises(InputError, match="lists"):
        needs.respond(world, lists[1:], 10)


def test_targets_are_what_was_clicked_and_refused_is_what_was_not(page, prompts):
    direct = set(page.shop.direct.train_queries)
    assert direct & set(prompts.queries)
    for row in range(0, len(prompts.queries), 7):
        query = prompts.queries[row]
        items, shown = page.heeded().clicked[query], page.heeded().shown[query]
        ids = {tuple(page.identifiers[item]) for item in items}
        targets = [tuple(t) for t in prompts.targets[row].tolist() if t[0] >= 0]
        assert targets
        assert set(targets) <= ids
        refused = prompts.refused[row].tolist()
        assert len(set(refused)) == 8
        assert not items & set(refused)
        # what was shown comes first, direct requests included
        assert len(shown & set(refused)) >= min(8, len(shown - items))


def test_calibrated_rates_and_urgency_by_hand(page, prompts):
    found = page.calibrated(np.array([[90.0], [10.0], [0.0]]))
    click = np.log(20) / np.log(100 * 20 * 10)
    order = np.log(10) / np.log(20)
    worth = 2 * click * order / (click + order)
    assert found == pytest.approx([worth])
    heeded = page.heeded()
    every = page.calibrated(heeded.counts)
    row = next(r for r, q in enumerate(prompts.queries) if len(heeded.shown[q]) > 9)
    item = int(prompts.refused[row, 0])
    assert item in heeded.shown[prompts.queries[row]]
    assert prompts.urgency[row, 0] == pytest.approx((1 - 0.5 * every[item]) ** -1.5 + 1, rel=1e-3)
    assert (prompts.urgency >= 2 - 1e-9).all()  # 2 for what nobody was shown


def test_the_relevance_model_counts_words_of_the_thought_that_the_product_has(page, monkeypatch):
    known = {"q": ["face cream", "mint", "red", "large"], "": []}
    monkeypatch.setattr(page, "shop", replace(
        page.shop, think=page.Written(known),
        keywords=[["face cream", "mint"], ["cream"], ["face cream", "mint", "red", "large"], []],
    ))  # fmt: skip
    page.product_words.cache_clear()
    page.thought_words.cache_clear()
    assert [page.relevance("q", item) for item in range(4)] == [2, 0, 3, 0]
    assert page.relevance("unknown", 0) == 0
    page.product_words.cache_clear()
    page.thought_words.cache_clear()


def test_the_relevance_model_is_no_oracle(page, world):
    """It errs where thoughts err or keywords are incomplete, and is better than nothing."""
    goods, every = page.shop.think.goods, np.arange(300)
    right = []
    for form, n in zip(world.forms, world.need, strict=True):
        met = needs.fulfils(goods, world.needs[n], every)
        grades = np.array([page.relevance(form, item) for item in every])
        right.append(
            (grades[met].mean(), grades[~met].mean(), grades[~met].max() > grades[met].min())
        )
    met, others, mistaken = np.mean(right, axis=0)
    assert met > others + 1
    assert mistaken > 0.1  # some product that is not wanted is graded above one that is


def test_rewards_of_products_by_hand(page, monkeypatch):
    ids = page.identifiers
    alone = [n for n in range(300) if len(page.owners[page.trie.find(ids[n : n + 1])[0]]) == 1]
    one, two = alone[:2]
    heard = replace(page.behaviour, ordered={"q": {one}}, clicked={"q": {one, two}})
    monkeypatch.setattr(page, "heeded", lambda: heard)
    monkeypatch.setattr(page, "relevance", lambda query, item: 2)
    written, rates = torch.from_numpy(ids[[one, two]]), heard.rates
    found = page.item_rewards(["q", "q"], written, "composite")
    assert found.tolist() == pytest.approx([4 + 2 + rates[one], 3 + 2 + rates[two]])
    found = page.item_rewards(["q", "other"], written, "composite")
    assert found.tolist() == pytest.approx([4 + 2 + rates[one], 2 + rates[two]])
    found = page.item_rewards(["q", "q"], written, "behaviour")
    assert found.tolist() == pytest.approx([4 + rates[one], 3 + rates[two]])
    found = page.item_rewards(["q", "q"], written, "ctr")
    assert found.tolist() == pytest.approx([rates[one], rates[two]])


def test_an_identifier_earns_what_its_best_product_earns_and_nothing_without_one(page, monkeypatch):
    counts = page.owners.lengths
    leaf = int(counts.argmax())
    held = page.owners[leaf].tolist()
    assert len(held) > 1  # several products share it
    last = held[-1]
    heard = replace(page.behaviour, ordered={"q": {last}}, clicked={"q": {last}})
    monkeypatch.setattr(page, "heeded", lambda: heard)
    taken = {tuple(row) for row in page.identifiers.tolist()}
    ranges = page.alphabet.ranges()
    absent = next(row for row in itertools.product(*ranges) if row not in taken)
    written = torch.tensor([page.identifiers[last].tolist(), absent])
    found = page.item_rewards(["q", "q"], written, "behaviour")
    assert found[0].item() == pytest.approx(4 + heard.rates[last])
    assert found[1].item() == 0
    assert page.item_rewards(["q"], written[1:], "composite").tolist() == [0]


def test_advantages_of_the_variants(page):
    rollouts = torch.tensor([[[1, 2, 3, 4, 5], [1, 9, 9, 9, 9]]])
    targets, item = torch.tensor([[[1, 2, 3, 4, 5]]]), torch.tensor([[[1.0], [-1.0]]])
    advantage, gate = page.tpma_terms(page.Alignment(), rollouts, targets, item)
    # All began right: the first token says nothing, the others do, and the product adds half.
    assert advantage[0, 0].tolist() == pytest.approx([0.5, 1.5, 1.5, 1.5, 1.5])
    assert gate[0, 1].tolist() == pytest.approx([1, 1, 1 / 2, 1 / 3, 1 / 4])
    printed = page.Alignment(**page.ALIGNED["tpma_printed"])
    advantage, gate = page.tpma_terms(printed, rollouts, targets, item)
    assert advantage[0, 0].tolist() == pytest.approx([0.5] * 5)  # the constant says nothing
    # Weights that count from one: 2, 4, 5, 6 so far, over 1, 2, 3, 4. Above one.
    assert gate[0, 0].tolist() == pytest.approx([1, 2, 2, 5 / 3, 6 / 4])
    none = page.tpma_terms(page.Alignment(w_item=0.0), rollouts, targets, item)[0]
    assert none[0, 0].tolist() == pytest.approx([0, 1, 1, 1, 1])


def test_log_chances_are_those_of_the_codes_of_a_position(page, model):
    source = page.sources(page.shop.traffic[:1])
    written = torch.from_numpy(page.identifiers[:1])
    size = page.alphabet.sizes[0]
    first = int(page.alphabet.first[0])
    every = torch.from_numpy(page.identifiers[:1]).repeat(size, 1)
    every[:, 0] = first + torch.arange(size)
    logs = page.log_chances(model, source.expand(size, -1), every)
    assert logs[:, 0].exp().sum().item() == pytest.approx(1, abs=1e-4)
    own = page.log_chances(model, source, written)
    assert own[0, 0].item() == pytest.approx(logs[int(written[0, 0]) - first, 0].item(), abs=1e-4)


def test_preference_is_log_two_at_the_reference_with_one_rejected(page, model):
    source, every = page.sources(page.shop.traffic[:4]), torch.from_numpy(page.identifiers[:8])
    pairs = torch.stack([every[:4], every[4:]], 1)
    for urgency in (1.0, 3.0):
        loss = page.preference(model, model, source, pairs, torch.full((4, 1), urgency))
        assert loss.item() == pytest.approx(np.log(2), abs=1e-4)
    four = torch.cat([pairs, pairs[:, 1:].repeat(1, 3, 1)], 1)
    loss = page.preference(model, model, source, four, torch.ones(4, 4))
    assert loss.item() == pytest.approx(np.log(1 + 4), abs=1e-4)


def test_preference_by_hand_away_from_the_reference(page, model):
    """Ratios of one prompt, and what each rejected identifier's urgency does with them."""
    other = page.new_model(3).eval()
    source = page.sources(page.shop.traffic[:1])
    every = torch.from_numpy(page.identifiers[:3])
    many = source.expand(3, -1)
    ratio = page.log_chances(model, many, every) - page.log_chances(other, many, every)
    won, *lost = ratio.sum(1).tolist()
    urgency = [2.0, 5.0]
    terms = [np.exp(0.1 * c * (each - won)) for c, each in zip(urgency, lost, strict=True)]
    by_hand = np.log1p(sum(terms))
    loss = page.preference(model, other, source, every[None], torch.tensor([urgency]))
    assert loss.item() == pytest.approx(by_hand, abs=1e-4)
    swapped = page.preference(other, model, source, every[None], torch.tensor([urgency]))
    assert swapped.item() != pytest.approx(by_hand, abs=1e-3)


@pytest.fixture
def larger(page, monkeypatch):
    """Groups that hold identifiers of products: one in thirty combinations is one."""
    monkeypatch.setattr(page, "settings", replace(page.settings, prompts=16, group=16))


@pytest.mark.parametrize("name", sorted(set(chapters.load(CHAPTER).ALIGNED) - {"anchor"}))
def test_every_alignment_does_more_than_its_anchor_and_what_no_other_does(page, larger, name):
    tables = []
    for plan in (page.Alignment(**page.ALIGNED[name]), page.Alignment(kind="none")):
        model = page.new_model(0)
        history = page.align(model, plan, 3)
        assert np.isfinite(history.column("loss")[1]).all()
        tables.append(model.bart.model.shared.weight)
    assert not torch.equal(*tables)
    assert sum(plan == page.ALIGNED[name] for plan in page.ALIGNED.values()) == 1


def test_two_stages_take_half_of_the_steps_each(page, monkeypatch):
    stages = []
    monkeypatch.setattr(
        page, "align_stage", lambda model, plan, count, seed: stages.append((plan, count, seed))
    )
    page.align(None, page.Alignment(**page.ALIGNED["dpo_then_tpma"]), 3)
    page.align(None, page.Alignment(), 3)
    kinds, counts, seeds = zip(*[(p.kind, n, s) for p, n, s in stages], strict=True)
    assert kinds == ("dpo", "tpma", "tpma")
    assert counts[0] == counts[1] == counts[2] // 2
    assert seeds[0] == seeds[2] != seeds[1]


def test_four_rejected_products_of_a_step_are_different_ones(page, monkeypatch):
    seen = {}
    page.make_prompts()  # which is remembered, of the identifiers that there are
    monkeypatch.setattr(page, "Batches", lambda batches, *_: batches)
    monkeypatch.setattr(page, "fit", lambda module, batches, *_: seen.update(batches))
    monkeypatch.setattr(page, "identifiers", np.arange(300)[:, None].repeat(5, 1))
    page.align_stage(page.new_model(0), page.Alignment(kind="dpo"), 6, 0)
    rejected = seen["rejected"][..., 0].reshape(-1, 4)
    assert all(len(set(row)) == 4 for row in rejected.tolist())
    assert seen["urgency"].shape == seen["rejected"].shape[:3]


def test_a_policy_step_makes_what_was_better_likelier(page, prompts):
    """One prompt, credit for one target: the chance of its first code must rise."""
    model = page.new_model(0).eval()
    query, source = prompts.queries[:1], prompts.source[:1]
    target = prompts.targets[:1, :1]
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    plan = page.Alignment(w_item=0.0)
    before = page.log_chances(model, source, target[0])[0, 0].item()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3):
            many = source.repeat(64, 1), target.repeat(64, 1, 1)
            loss, _ = page.policy_loss(model, plan, query * 64, *many)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert page.log_chances(model, source, target[0])[0, 0].item() > before


# -- what it is judged by ------------------------------------------------------------------------


def asked_of(page, clicked, ordered=None, user=(0, 0)):
    """Two requests with these clicks."""
    nothing = Ragged.from_lists([[], []])
    some = np.array([True, False])
    labels = {"unseen": some, "query: tail": some, "query: head": ~some}
    lists = Ragged.from_lists(clicked), Ragged.from_lists(ordered) if ordered else nothing
    return page.Asked(["a", "b"], *lists, np.zeros(2), np.arange(2), np.array(user), labels)


def test_hits_of_requests_without_orders_are_not_counted(page):
    asked = asked_of(page, [[3], [4]], [[], [9]])
    ranked = np.tile(np.arange(10), (2, 1))
    found = page.scores_of(asked, ranked)
    assert found["hr@10"].tolist() == [1, 1]
    assert found["mrr@10"] == pytest.approx([1 / 4, 1 / 5])
    assert np.isnan(found["order_hr@10"][0])
    assert found["order_mrr@10"][1] == pytest.approx(1 / 10)
    assert page.mean_of(found["order_hr@10"]) == 1
    assert np.isnan(page.mean_of(np.array([np.nan])))
    assert found["unseen_hr@10"][0] == 1
    assert np.isnan(found["unseen_hr@10"][1])


def test_products_are_cold_warm_or_hot_by_their_clicks(page, monkeypatch):
    third, clicks = page.product_thirds(), page.behaviour.counts[1]
    assert np.bincount(third).tolist() == [100, 100, 100]
    assert clicks[third == 0].max() <= clicks[third == 1].min()
    assert clicks[third == 1].max() <= clicks[third == 2].min()
    mine = np.full(300, 2)
    mine[:4] = 0
    monkeypatch.setattr(page, "product_thirds", lambda: mine)
    asked = asked_of(page, [[3, 9], [8]])
    ranked = np.array([[9, 8, 7, 6, 5, 4, 10, 11, 12, 13], [0, 1, 2, 3, 8, -1, -1, -1, -1, -1]])
    found = page.scores_of(asked, ranked)
    assert found["hr@10"].tolist() == [1, 1]
    assert found["cold_hr@10"][0] == 0  # 9 was hit, but it is not cold
    assert np.isnan(found["cold_hr@10"][1])
    assert found["hot_hr@10"].tolist() == [1, 1]
    assert found["long_tail"].tolist() == [0, 0.8]
    assert np.mean(found["cold_lead_hr@10"]) == pytest.approx(0 - 1)


def test_a_lead_is_the_difference_of_two_means(page):
    some, others = np.array([1, 0, np.nan, np.nan]), np.array([np.nan, 0, 1, 1])
    assert np.mean(page.apart(some, others)) == pytest.approx(1 / 2 - 2 / 3)
    assert np.isfinite(page.apart(some, np.full(4, np.nan))).all()


def test_what_lists_are_made_of_by_hand(page, monkeypatch):
    monkeypatch.setattr(page, "shop", replace(page.shop, category=np.arange(300) // 2))
    past = np.array([5, 6]), np.array([0, 7])
    monkeypatch.setattr(page, "behaviour", replace(page.behaviour, past=past))
    asked = asked_of(page, [[], []], user=(5, 6))
    ranked = np.array([[0, 1, 2, 3], [6, 8, -1, -1]])
    found = page.composition(asked, ranked)
    assert found["categories"].tolist() == [2 / 4, 2 / 2]
    assert found["novelty"].tolist() == [2 / 4, 1 / 2]  # 0 and 1 of category 0; 6 with 7


def test_thirds_keep_equal_values_together(page):
    found = page.thirds("x", np.array([0, 0, 0, 0, 3, 9]), ("low", "mid", "high"))
    assert found["x: low"].tolist() == [True] * 4 + [False] * 2
    assert sum(mask.astype(int) for mask in found.values()).tolist() == [1] * 6


def test_a_share_of_valid_identifiers(page, model):
    source = page.sources(page.shop.traffic[:5])
    values = page.valid_share(model, source)
    there = {tuple(row) for row in page.identifiers.tolist()}
    free = beam_search(model.bart, source, 10, page.alphabet.ranges()).tokens
    assert values.tolist() == [
        np.mean([tuple(row) in there for row in rows]) for rows in free.tolist()
    ]


def test_requests_are_labelled_by_kind_and_by_what_the_log_holds(page):
    asked = page.complex_requests()
    kinds = sum(asked.labels[f"kind: {kind}"].astype(int) for kind in needs.KINDS)
    heard = sum(asked.labels[f"log clicks: {n}"].astype(int) for n in ("0", "1-2", "3+"))
    assert (kinds == 1).all()
    assert (heard == 1).all()
    assert 0 < (asked.clicked.lengths > 0).mean() < 1  # nobody was chosen for having clicked
    assert len(asked.queries) == page.settings.test_complex
    for name, words_of in (("query", ("tail", "mid", "head")), ("user", ("low", "mid", "high"))):
        parts = sum(asked.labels[f"{name}: {word}"].astype(int) for word in words_of)
        assert (parts == 1).all()
    assert (asked.labels["unseen"] <= asked.labels["query: tail"]).all()
    assert (asked.labels["unseen"] <= asked.labels["log clicks: 0"]).all()
    known = set(page.shop.traffic)
    for query, new in zip(asked.queries, asked.labels["unseen"], strict=True):
        assert not (new and query in known)


def test_a_ratio_and_its_interval_by_hand():
    user = np.array([0, 0, 1, 2, 3, 3])
    clicks, views = np.array([1, 0, 1, 2, 1, 1]), np.array([2, 2, 4, 4, 2, 2])
    treated = np.array([False, True, False, True])
    found = online.ratio_metric(clicks, views, user, treated)
    assert found.control == pytest.approx(3 / 8)
    assert found.treatment == pytest.approx(3 / 8)
    assert found.lift == pytest.approx(0)
    # Control users have 1 of 4 and 2 of 4, treated ones 1 of 4 and 2 of 4: residuals over mean
    # views are -1/8 and 1/8, their variance 1/32, that of a mean of two 1/64.
    error = np.sqrt(2 / 64) / (3 / 8)
    assert found.high == pytest.approx(online.Z * error)
    assert found.equivalent(1.0)
    assert not found.equivalent(0.1)


def test_a_group_without_users_is_refused_and_without_clicks_has_no_lift():
    user, ones = np.arange(4), np.ones(4)
    with pytest.raises(InputError, match="two or more"):
        online.ratio_metric(ones, ones, user, np.zeros(4, bool))
    found = online.ratio_metric(0 * ones, ones, user, np.array([True, True, False, False]))
    assert np.isnan(found.lift)


def test_luck_is_uniform_and_belongs_to_its_keys():
    one, two = np.arange(20_000), np.arange(20_000) % 7
    draws = online.luck(3, one, two)
    assert 0 <= draws.min() < draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert np.quantile(draws, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.01)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03
    assert (online.luck(3, one[::-1], two[::-1]) == draws[::-1]).all()
    assert (online.luck(4, one, two) != draws).any()
    assert (online.luck(3, two, one) != draws).any()


def test_luck_belongs_to_the_product_and_not_to_its_place(page):
    truth = page.shop.world.truth
    count = len(truth.session_id)
    ids = np.tile(truth.item_id[:10], (count, 1))
    one, two = (online.outcomes(truth, truth.session_id, ids, 5) for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)
    assert one["clicks"].sum() >= one["orders"].sum()
    assert (one["views"] == 10).all()
    cut = ids.copy()
    cut[:, 3:] = -1
    short = online.outcomes(truth, truth.session_id, cut, 5)
    assert (short["views"] == 3).all()
    assert (short["clicks"] <= one["clicks"]).all()
    # A product that moves up keeps its luck: whoever clicked it below clicks it above.
    for item in truth.item_id[:40]:
        low = np.full((count, 10), -1)
        low[:, 9] = item
        high = np.full((count, 10), -1)
        high[:, 0] = item
        below, above = (
            online.outcomes(truth, truth.session_id, x, 5)["clicks"] for x in (low, high)
        )
        assert (below <= above).all()
    other = online.outcomes(truth, truth.session_id, ids, 6)
    assert (other["clicks"] != one["clicks"]).any()
    relevant = grade(truth, np.repeat(np.arange(count), 10), np.tile(np.arange(10), count)) == 3
    assert one["relevant"].sum() == relevant.sum()


def test_twins_by_hand_and_without_a_difference():
    user = np.array([0, 0, 1, 2])
    views = np.array([2, 2, 4, 4])
    before, after = np.array([1, 0, 1, 2]), np.array([1, 1, 1, 3])
    same = online.twin_metric((before, views), (before, views), user)
    assert (same.lift, same.low, same.high) == (0, 0, 0)
    found = online.twin_metric((before, views), (after, views), user)
    assert (found.control, found.treatment) == (4 / 12, 6 / 12)
    # Per user: clicks 1, 1, 2 and 2, 1, 3 of 4 views each; influence over mean views of 4.
    of_control = (np.array([1, 1, 2]) - 4 / 12 * 4) / 4
    of_treatment = (np.array([2, 1, 3]) - 6 / 12 * 4) / 4
    influence = (of_treatment - 1.5 * of_control) / (4 / 12)
    error = np.sqrt(influence.var(ddof=1) / 3)
    assert found.lift == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5 + online.Z * error)
    assert np.isnan(online.twin_metric((0 * before, views), (after, views), user).lift)
    with pytest.raises(InputError, match="two or more"):
        online.twin_metric((before, views), (after, views), np.zeros(4, int))


def test_a_reading_looks_at_the_period_before_and_at_the_margin():
    ratio = lambda low, high: online.Ratio(1.0, 1.0, (low + high) / 2, low, high)  # noqa: E731
    calm = ratio(-0.02, 0.02)
    assert ratio(0.01, 0.05).reading(0.02, calm) == "up"
    assert ratio(-0.05, -0.01).reading(0.02, calm) == "down"
    assert ratio(-0.01, 0.015).reading(0.02, calm) == "equivalent"
    assert ratio(-0.01, 0.03).reading(0.02, calm) == "open"
    assert ratio(0.01, 0.05).reading(0.02, ratio(0.001, 0.03)) == "void"
    assert ratio(0.01, 0.05).reading(0.02) == "up"


def test_better_lists_win_the_experiment_and_nothing_wins_before_it(page):
    shop = open_truth(SHOP, 0)
    world = needs.make_needs(shop, needs.NeedsConfig(10, 12, 100, 1500))
    truth, goods = world.truth, shop.goods
    every = np.arange(len(truth.item_id))
    best = np.stack([
        np.argsort(~needs.fulfils(goods, need, every), kind="stable")[:10] for need in world.needs
    ])[world.need[world.test.form]]  # fmt: skip
    draw = np.random.default_rng(0)
    poor = draw.integers(len(truth.item_id), size=best.shape)
    lists = truth.item_id[poor], truth.item_id[best]
    found = online.experiment(truth, truth.session_id, *lists, 0)
    assert set(found) == {"A/A", "A/B", "twins"}
    names = {"item CTR", "clicks a request", "orders a request", "relevant share of views"}
    assert all(set(ratios) == names for ratios in found.values())
    before = found["A/A"]["item CTR"]
    assert before.low < 0 < before.high
    assert found["A/B"]["item CTR"].reading(0.02, before) == "up"
    assert found["twins"]["item CTR"].reading(0.02) == "up"
    half = draw.random(poor.shape) < 0.1  # lists that differ a little
    mixed = np.where(half, lists[1], lists[0])
    found = online.experiment(truth, truth.session_id, lists[0], mixed, 0)
    width = {name: r["item CTR"].high - r["item CTR"].low for name, r in found.items()}
    assert width["twins"] < 0.7 * width["A/B"]
    unchanged = online.experiment(truth, truth.session_id, lists[0], lists[0], 0)["twins"]
    assert all(ratio.lift == 0 for ratio in unchanged.values())


# -- what is measured ----------------------------------------------------------------------------


def test_both_students_are_served_alike_and_writing_first_costs_more(page, model):
    source = page.sources(page.shop.traffic[:12])
    plain, twice = page.serve(model, source), page.serve(model, source, True)
    there = (source != PAD).sum().item() / 12
    assert (plain.read, plain.written) == (there, len(page.alphabet.sizes))
    assert torch.equal(plain.source, source)
    keywords = page.written_keywords(model, source)
    count = (keywords != PAD).sum().item() / 12
    ended = (page.with_end(keywords) != PAD).sum().item() / 12
    assert twice.read == pytest.approx(2 * there + count)
    assert twice.written == pytest.approx(plain.written + ended)
    assert ended > count
    start = 1 + page.settings.query_words
    assert torch.equal(twice.source[:, start:], keywords)
    informed = page.sources(page.shop.traffic[:12], page.shop.thoughts(page.shop.traffic[:12]))
    assert page.serve(model, informed).read > plain.read  # what the check on the page would catch
    assert plain.seconds > 0


@pytest.fixture
def measured(page, model, monkeypatch, tmp_path):
    """An arm of fresh weights, measured."""
    record = Recorder(tmp_path)
    monkeypatch.setattr(page, "record", record)
    page.measure("some", model)
    return record


def test_means_are_those_of_the_rows_and_outcomes_are_of_all_requests(page, measured, tmp_path):
    rows, metrics = pd.read_parquet(tmp_path / "rows" / "some.parquet"), measured.metrics
    asked, direct = page.complex_set, page.direct_set
    assert len(rows) == len(asked.queries) + len(direct.queries)
    assert rows["query_row"].is_unique
    for name in rows.columns.difference(["query_row", "cluster"]):
        values = rows[name].dropna()
        if len(values):
            assert metrics[f"some/{name}"] == pytest.approx(values.mean(), abs=1e-5)
    count = {name: rows[name].notna().sum() for name in rows}
    assert count["clicks"] == count["orders"] == count["relevance"] == len(asked.queries)
    assert count["hr@10"] == (asked.clicked.lengths > 0).sum() < len(asked.queries)
    assert count["direct_hr@10"] == len(direct.queries)
    tail = rows["tail_hr@10"].mean() - rows["head_hr@10"].mean()
    assert metrics["some/tail_lead_hr@10"] == pytest.approx(tail, abs=1e-5)
    own = rows["query_row"] < 10_000_000
    assert rows["cluster"][own].tolist() == asked.cluster.tolist()


def test_segments_are_recorded_of_two_metrics_and_time_outside_of_the_arm(page, measured):
    names = measured.metrics
    segments = {
        name.split("/", 2)[1] for name in names if name.count("/") == 2 and "cpu/" not in name
    }
    assert segments == set(page.LABELLED)
    assert {"some/clicks/user: low", "some/hr@10/kind: gift"} <= names.keys()
    assert names["cpu/some/ms_a_request"] > 0
    assert not [name for name in names if name.startswith("some/") and "second" in name]
    assert names["some/tokens_written"] == len(page.alphabet.sizes)


def test_written_words_are_compared_with_the_thought_and_with_another_ones(
    page, monkeypatch, tmp_path
):
    record = Recorder(tmp_path)
    monkeypatch.setattr(page, "record", record)
    queries = page.complex_set.queries
    told = page.sources(queries, page.shop.thoughts(queries))
    page.quality_of_writing("right", told)
    assert record.metrics["right/written_precision"] == pytest.approx(1, abs=0.02)
    assert record.metrics["right/written_recall"] == pytest.approx(1, abs=0.02)
    assert record.metrics["right/written_chance"] < 0.7
    one = told.clone()
    one[:, 2 + page.settings.query_words :] = PAD  # its first word alone
    page.quality_of_writing("short", one)
    assert record.metrics["short/written_precision"] == pytest.approx(1, abs=0.02)
    assert record.metrics["short/written_recall"] < 0.7


def test_rewards_headroom_and_teachers_are_measured(page, model, monkeypatch, tmp_path):
    record = Recorder(tmp_path)
    monkeypatch.setattr(page, "record", record)
    liked = page.make_prompts().targets[:, 0].repeat_interleave(2, 0)
    monkeypatch.setattr(page, "sample", lambda model, source: liked)
    page.measure_rewards("some", model)
    page.measure_ideal("base")
    page.measure_informed("base", model, "keywords")
    page.measure_informed("other", model, "wrong")
    found = record.metrics
    assert found["some/reward"] > 3 > found["some/reward_ctr"] > 0
    assert found["base/ideal_hr@10"] > 0.5
    asked = []
    monkeypatch.setattr(page, "serve", lambda model, source, *a: asked.append(source) or served)
    served = page.Served(None, page.RANKED.get("none", np.zeros((60, 10), int)), 0, 0, 0)
    page.measure_informed("base", model, "errorless")
    clear = page.keywords_for(page.complex_set.queries, "errorless")
    assert torch.equal(asked[0], page.sources(page.complex_set.queries, clear))
    assert torch.equal(asked[1], page.sources([""] * 60, clear))
    assert "other/blank_hr@10" not in found
    assert "base/blank_hr@10" in found


def test_unknown_arms_are_named(page):
    with pytest.raises(InputError, match="arm"):
        page.run_arm("nonsense")
