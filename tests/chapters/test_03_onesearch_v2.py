"""Chapter 3: thoughts, two prompts, what distillation minimises, credit by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minisearch import chapters
from minisearch.beam import Trie, beam_search
from minisearch.errors import InputError
from minisearch.models.generative import Alphabet
from minisearch.records import Ragged
from minisearch.worlds import needs, online

CHAPTER = "03_onesearch_v2"


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
        put(fresh=False, steps=0, settings=settings)
        put(shop=chapter.simulated_shop(0))
        put(space=chapter.make_space(chapter.shop))
        chapter.make_codes.cache_clear()
        chapter.tables.cache_clear()
        codes = chapter.make_codes()
        alphabet = Alphabet(len(chapter.space.vocabulary), ("retrieve", "think"), codes.sizes)
        identifiers = alphabet.tokens(codes.codes)
        trie = Trie(identifiers)
        rows = np.arange(len(identifiers))
        put(codes=codes, alphabet=alphabet, identifiers=identifiers, trie=trie)
        put(owners=Ragged.from_pairs(trie.find(identifiers), rows, len(trie)))
        yield chapter
        chapter.make_codes.cache_clear()
        chapter.tables.cache_clear()


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


def test_complex_requests_share_no_word_with_what_is_wanted(world, think):
    for form in world.forms[:40]:
        wanted = {word for keyword in think._words(think.meaning[form]) for word in keyword.split()}
        assert not wanted & set(form.split()), form


def test_wordings_that_are_unseen_are_in_no_log(world):
    assert world.seen[world.log.form].all()
    assert 0 < (~world.seen).sum() < len(world.seen) / 4
    assert not world.seen[world.test.form].all()


def test_the_engine_of_the_log_understands_less_than_that_of_the_test(page, world):
    judge = replace(page.shop.judge, noise=0.0)
    shares = []
    for traffic in (world.log, world.test):
        asked = [traffic.queries[row] for row in traffic.shown.rows]
        shares.append((judge(asked, traffic.shown.values) == 3).mean())
    assert shares[1] > 2 * shares[0]


def test_a_need_is_met_by_at_least_five_products(world, think):
    for need in world.needs:
        met = [needs.meets(think.goods, *sense, need.forbidden).sum() for sense in need.senses]
        assert sum(met) >= 5
    kinds = {needs.KINDS[need.kind] for need in world.needs}
    assert kinds == set(needs.KINDS)
    for need in world.needs:
        assert (need.forbidden != -1) == (needs.KINDS[need.kind] == "negation")
        assert len(need.senses) == 1 + (needs.KINDS[need.kind] in ("gift", "ambiguous"))


def test_what_meets_a_need_by_hand(think):
    goods = think.goods
    leaf = int(goods.leaf[0])
    value = int(next(v for v in goods.values[0] if v != -1))
    found = needs.meets(goods, leaf, [value])
    assert found[0]
    assert (goods.leaf[found] == leaf).all()
    assert (goods.values[found] == value).any(1).all()
    assert not needs.meets(goods, leaf, [], forbidden=value)[0]


def test_without_noise_a_thought_is_category_and_values_of_all_senses(world, think):
    clear = replace(think, noise=0.0, drop=0.0)
    goods = think.goods
    for form, n in zip(world.forms[::7], world.need[::7], strict=True):
        need = world.needs[n]
        for leaf, values in need.senses:
            words = {goods.leaf_name[leaf], *(goods.value_name[v] for v in values)}
            assert words <= set(clear(form))
        if need.forbidden != -1:
            assert goods.value_name[need.forbidden] not in clear(form)
        assert clear(form) == clear(form)
        same = [f for f, m in zip(world.forms, world.need, strict=True) if m == n]
        assert {tuple(clear(f)) for f in same} == {tuple(clear(form))}


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


def test_a_thought_never_changes_with_the_clicks(page, world, think):
    """It is a function of the text: another log over the same needs gives the same thoughts."""
    other = needs.Thinker(think.goods, dict(think.meaning), think.noise, think.drop)
    assert all(other(form) == think(form) for form in world.forms)


def test_grades_of_the_relevance_model_by_hand(think):
    goods = think.goods
    leaf, other = int(goods.leaf[0]), int(goods.leaf[-1])
    value = int(next(v for v in goods.values[0] if v != -1))
    column = goods.value_attribute[value]
    inside = np.flatnonzero(goods.leaf == leaf)
    meaning = {"q": needs.Need(0, ((leaf, (value,)),)), "n": needs.Need(0, ((leaf, ()),), value)}
    meaning["two"] = needs.Need(4, ((leaf, (value,)), (other, ())))
    judge = needs.Judge(goods, meaning, 0.0)
    has = goods.values[inside, column] == value
    assert (judge(["q"] * len(inside), inside) == np.where(has, 3, 2)).all()
    assert (judge(["n"] * len(inside), inside) == np.where(has, 1, 3)).all()
    outside = np.flatnonzero(goods.leaf != leaf)
    assert (judge(["q"] * len(outside), outside) == 0).all()
    assert judge(["two"], np.array([len(goods.leaf) - 1]))[0] == 3
    assert judge(["unknown"], np.array([0]))[0] == 0


def test_an_imperfect_relevance_model_errs_on_its_share_and_always_alike(think, world):
    perfect, judge = (needs.Judge(think.goods, think.meaning, noise) for noise in (0.0, 0.3))
    asked = [world.forms[n % len(world.forms)] for n in range(3000)]
    items = np.arange(3000) % len(think.goods.leaf)
    grades = judge(asked, items)
    assert (grades == judge(asked, items)).all()
    assert np.abs(grades - perfect(asked, items)).max() == 1
    # Steps below 0 and above 3 are cut off, so that fewer than the share differ.
    assert 0.05 < (grades != perfect(asked, items)).mean() < 0.3


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
    rates = page.click_rates(shown, clicked, 3)
    mean = 1 / 3
    assert rates == pytest.approx([(1 + 20 * mean) / 22, 20 * mean / 21, mean])


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


def test_written_keywords_stand_where_keywords_stand(page, model):
    source = page.sources(page.shop.traffic[:3])
    found = page.written_keywords(model, source)
    start = 1 + page.settings.query_words
    assert torch.equal(found[:, :start], source[:, :start])
    assert found.shape == source.shape
    assert (found[:, start:] < model.first).all()


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
    smooth = page.likelihood(logits, target, smoothing=0.2).item()
    assert smooth == pytest.approx(-0.9 * np.log(0.75) - 0.1 * np.log(0.25))


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
    assert found["traffic"].max() < len(rows["traffic"])
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
    queries, items = page.shop.complex_queries[:20], page.shop.complex_rows[:20]
    plain, none, leak = (
        page.query_rows(queries, items, reads) for reads in ("keywords", "nothing", "leaking")
    )
    assert torch.equal(none.student, none.teacher)
    assert not torch.equal(plain.student, plain.teacher)
    count = lambda rows: (rows.teacher != 0).sum().item()  # noqa: E731
    assert count(leak) > count(plain)
    assert torch.equal(leak.student, plain.student)  # the student never reads any
    clear = page.keywords_for(queries, "oracle")
    think = replace(page.shop.think, noise=0.0, drop=0.0)
    assert clear == [think(query) for query in queries]
    assert page.keywords_for(queries, "wrong") != clear


def test_the_student_of_every_plan_reads_the_same(page):
    for reads in ("keywords", "wrong", "leaking", "oracle"):
        rows = page.tables(reads)["complex"]
        assert torch.equal(rows.student, page.tables("nothing")["complex"].student)


def one_batch(page):
    return {name: rows[:1] for name, rows in page.schedule(page.tables("keywords"), 2, 0).items()}


def test_same_input_distillation_starts_with_nothing_to_learn(page):
    """The frozen base without keywords is the student itself, dropout aside."""
    model = page.new_model(0)
    for name, gap in (("same_input", 0.0), ("distilled", 1e-4)):
        plan = page.Plan(**page.CHANGES[name])
        training = page.Training(model, plan)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout"):
                module.dropout = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts = training.loss(one_batch(page))
        assert parts["kl"].item() >= gap - 1e-6
        if not gap:
            assert parts["kl"].item() == pytest.approx(0, abs=1e-5)
    assert model.training


@pytest.mark.parametrize("name", sorted(chapters.load(CHAPTER).CHANGES))
def test_every_plan_gives_a_finite_loss_that_reaches_the_table(page, name):
    model = page.new_model(0)
    training = page.Training(model, page.Plan(**page.CHANGES[name]))
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = training.loss(one_batch(page))["loss"]
    loss.backward()
    gradient = model.bart.model.shared.weight.grad
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


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


def test_targets_are_what_was_clicked_and_refused_is_what_was_not(page, prompts):
    for row in range(0, len(prompts.queries), 7):
        query = prompts.queries[row]
        items = {item for q, item in prompts.clicked if q == query}
        ids = {tuple(page.identifiers[item]) for item in items}
        targets = [tuple(t) for t in prompts.targets[row].tolist() if t[0] >= 0]
        assert targets
        assert set(targets) <= ids
        assert not items & set(prompts.refused[row].tolist())


def test_rewards_of_products_by_hand(page, prompts, monkeypatch):
    owner = page.owners[page.trie.find(page.identifiers[:2])[0]][0]
    other = page.owners[page.trie.find(page.identifiers[1:2])[0]][0]
    query = "q"
    made = replace(prompts, queries=[query], ordered={(query, owner)}, clicked=set())
    monkeypatch.setattr(page, "shop", replace(page.shop, judge=lambda _, items: 2 + 0 * items))
    written = torch.from_numpy(np.stack([page.identifiers[owner], page.identifiers[other]]))
    rates = page.shop.rates
    rows = np.array([0, 0])
    found = page.item_rewards(made, rows, written, "composite")
    assert found.tolist() == pytest.approx([4 + 2 + rates[owner], 2 + rates[other]])
    clicked = replace(made, clicked={(query, owner), (query, other)})
    found = page.item_rewards(clicked, rows, written, "composite")
    assert found.tolist() == pytest.approx([6 + rates[owner], 5 + rates[other]])
    found = page.item_rewards(made, rows, written, "ctr")
    assert found.tolist() == pytest.approx([rates[owner], rates[other]])
    nothing = torch.full_like(written, int(page.alphabet.first[0]))
    nothing[:, 1:] = torch.from_numpy(page.alphabet.first[1:])
    if page.trie.find(nothing.numpy())[0] < 0:
        assert page.item_rewards(made, rows, nothing, "composite").tolist() == [0, 0]


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
    assert gate[0, 0].tolist() == pytest.approx([1, 2, 2, 5 / 3, 6 / 4])  # above one
    open_ = page.tpma_terms(page.Alignment(gated=False), rollouts, targets, item)[1]
    assert (open_ == 1).all()


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
    source = page.sources(page.shop.traffic[:4])
    right = torch.from_numpy(page.identifiers[:4])
    wrong = torch.from_numpy(page.identifiers[4:8])[:, None]
    loss = page.preference(model, model, source, right, wrong)
    assert loss.item() == pytest.approx(np.log(2), abs=1e-4)
    four = page.preference(model, model, source, right, wrong.repeat(1, 4, 1))
    assert four.item() == pytest.approx(np.log(1 + 4), abs=1e-4)


@pytest.mark.parametrize("name", sorted(chapters.load(CHAPTER).ALIGNED))
def test_every_alignment_runs_and_changes_the_model(page, name):
    model = page.new_model(0)
    before = model.bart.model.shared.weight.detach().clone()
    history = page.align(model, page.Alignment(**page.ALIGNED[name]), 3)
    assert np.isfinite(history.column("loss")[1]).all()
    assert not torch.equal(model.bart.model.shared.weight, before)


def test_a_policy_step_makes_what_was_better_likelier(page, prompts):
    """One prompt, a reward for one first code alone: its chance must rise."""
    model = page.new_model(0).eval()
    rows = torch.zeros(64, dtype=torch.long)
    source = prompts.source[:1]
    target = prompts.targets[:1, :1]
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    plan = page.Alignment(w_item=0.0)
    before = page.log_chances(model, source, target[0])[0, 0].item()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = replace(prompts, targets=prompts.targets[:1, :1])
        for _ in range(3):
            loss, _ = page.policy_loss(model, plan, made, rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert page.log_chances(model, source, target[0])[0, 0].item() > before


# -- what it is judged by ------------------------------------------------------------------------


def test_hits_of_requests_without_orders_are_not_counted(page):
    asked = page.Asked(
        ["a", "b"], Ragged.from_lists([[3], [4]]), Ragged.from_lists([[], [9]]),
        np.zeros(2), np.arange(2), {},
    )  # fmt: skip
    ranked = np.tile(np.arange(10), (2, 1))
    found = page.scores_of(asked, ranked)
    assert found["hr@10"].tolist() == [1, 1]
    assert found["mrr@10"] == pytest.approx([1 / 4, 1 / 5])
    assert np.isnan(found["order_hr@10"][0])
    assert found["order_mrr@10"][1] == pytest.approx(1 / 10)
    assert page.mean_of(found["order_hr@10"]) == 1
    assert np.isnan(page.mean_of(np.array([np.nan])))


def test_cold_products_are_the_less_clicked_half_and_counted_alone(page, monkeypatch):
    cold = page.cold_products()
    count = np.bincount(page.shop.direct.train_rows, minlength=len(cold))
    count += np.bincount(page.shop.complex_rows, minlength=len(cold))
    assert cold.sum() == len(cold) // 2
    assert count[cold].max() <= count[~cold].min()
    mask = np.zeros(len(cold), bool)
    mask[:4] = True
    monkeypatch.setattr(page, "cold_products", lambda: mask)
    nothing = Ragged.from_lists([[], []])
    clicked = Ragged.from_lists([[3, 9], [8]])
    asked = page.Asked(["a", "b"], clicked, nothing, np.zeros(2), np.arange(2), {})
    ranked = np.array([[9, 8, 7, 6, 5, 4, 10, 11, 12, 13], [0, 1, 2, 3, 8, -1, -1, -1, -1, -1]])
    found = page.scores_of(asked, ranked)
    assert found["hr@10"].tolist() == [1, 1]
    assert found["cold_hr@10"][0] == 0  # 9 was hit, but it is not cold
    assert np.isnan(found["cold_hr@10"][1])
    assert found["long_tail"].tolist() == [0, 0.8]


def test_a_share_of_valid_identifiers(page, model):
    values = page.valid_share(model, page.sources(page.shop.traffic[:5]))
    assert values.shape == (5,)
    assert ((values >= 0) & (values <= 1)).all()
    assert set(np.round(values * 10, 6) % 1) == {0}


def test_requests_are_labelled_by_kind_and_by_what_the_log_holds(page):
    asked = page.complex_requests(1000)
    kinds = sum(asked.labels[f"kind: {kind}"].astype(int) for kind in needs.KINDS)
    heard = sum(asked.labels[f"clicks: {n}"].astype(int) for n in ("0", "1-2", "3+"))
    assert (kinds == 1).all()
    assert (heard == 1).all()
    assert (asked.clicked.lengths > 0).all()
    assert (asked.labels["unseen"] <= asked.labels["clicks: 0"]).all()
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


def test_the_same_list_has_the_same_luck_and_empty_places_have_none(page):
    truth = page.shop.world.truth
    sessions = truth.session_id[:200]
    lists = np.tile(truth.item_id[:10], (200, 1))
    one, two = (online.outcomes(truth, sessions, lists, 5) for _ in range(2))
    assert all((one[name] == two[name]).all() for name in one)
    assert one["clicks"].sum() >= one["orders"].sum()
    cut = lists.copy()
    cut[:, 3:] = -1
    short = online.outcomes(truth, sessions, cut, 5)
    assert (short["clicks"][:, :3] == one["clicks"][:, :3]).all()
    assert not short["views"][:, 3:].any()
    assert not short["clicks"][:, 3:].any()
    other = online.outcomes(truth, sessions, lists, 6)
    assert (other["clicks"] != one["clicks"]).any()


def test_better_lists_win_the_experiment_and_nothing_wins_before_it(page):
    truth = page.shop.world.truth
    rows = np.arange(len(truth.session_id))
    best = np.stack([
        np.argsort(-page.shop.judge([q] * len(truth.item_id), np.arange(len(truth.item_id))),
                   kind="stable")[:10] for q in truth.requests.query
    ])  # fmt: skip
    draw = np.random.default_rng(0)
    poor = draw.integers(len(truth.item_id), size=best.shape)
    lists = truth.item_id[poor], truth.item_id[best]
    found = online.experiment(truth, truth.session_id[rows], *lists, 0)
    assert set(found) == {"A/A", "A/B"}
    assert found["A/B"]["item CTR"].low > 0
    assert found["A/A"]["item CTR"].low < 0 < found["A/A"]["item CTR"].high


def test_unknown_arms_are_named(page):
    with pytest.raises(InputError, match="arm"):
        page.run_arm("nonsense")
