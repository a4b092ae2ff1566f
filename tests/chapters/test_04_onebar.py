"""Chapter 4: prompts, lists of behaviour, distillation, the cascade, and how bars are judged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from minisearch import chapters
from minisearch.claims import Card
from minisearch.errors import InputError
from minisearch.models.generative import bart_base_config
from minisearch.text import END, PAD

CHAPTER = "04_onebar"
ARMS = (
    "start", "onebar", "sft", "sft_longer", "lists_only", "off_policy", "same_prompt",
    "forward_only", "reverse_only", "no_entropy", "fixed", "tau_both", "tau_teacher", "reward",
    "compressed", "verbose", "verbose_cut", "no_T", "no_M", "no_A", "no_H", "frames",
    "no_reject", "cascade", "cached", "ann", "oracle",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The chapter as it stands before its arms run, at smoke, with a place to keep things."""
    chapter = chapters.load(CHAPTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINISEARCH_BUILD", str(tmp_path_factory.mktemp("build")))
        names = {
            "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "",
            "settings": chapter.BarSettings.of("smoke"), "HISTORIES": {}, "MODELS": {},
            "LISTS": {}, "record": chapter.Recorder(tmp_path_factory.mktemp("run")),
            "corpus": chapter.simulated("smoke", 0, -1.0),
        }  # fmt: skip
        for name, value in names.items():
            patch.setattr(chapter, name, value, raising=False)
        forget(chapter)
        patch.setattr(
            chapter, "reader", chapter.Reader(chapter.all_texts(chapter.corpus)), raising=False
        )
        patch.setattr(chapter, "space", chapter.make_space(0), raising=False)
        for kind, count in (("requests", 20), ("bars", 30)):
            patch.setattr(chapter, kind, chapter.asked(kind, count), raising=False)
        yield chapter
        forget(chapter)


def forget(chapter):
    """Nothing that was kept for other settings or data is used."""
    for value in vars(chapter).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@pytest.fixture(scope="module")
def model(page):
    return page.new_model(0).eval()


@pytest.fixture(scope="module")
def prompts(page):
    rows = page.requests.rows[:6]
    return page.prompts_of(page.corpus.test, rows, page.Style(), len(page.corpus.log.video))


# --- what is read ---------------------------------------------------------------------------------


def test_titles_lose_what_says_nothing(page):
    title = "omg mini mini tent @milo #viral #sale link in bio buy now"
    assert page.cleaned(title, "milo") == "omg mini tent milo"
    assert page.cleaned("#viral #sale", "") == ""
    assert page.cleaned("", "ann") == "ann"


def test_a_prompt_has_its_fields_in_order_and_no_empty_one(page):
    fields = {"T": ["mini tent"], "A": ["tent", "lamp"], "H": ["rug"]}
    entries = page.aligned(fields)
    marks = [page.reader.alphabet.mark(name) for name in "TAAH"]
    assert [entry[0] for entry in entries] == marks
    assert page.aligned({}) == []


def test_a_history_is_its_users_own(page):
    corpus = page.corpus
    for user in range(12):
        for video in (0, 5):
            own = page.history_of(user, video)
            assert set(own) <= set(corpus.searches[user])
            assert len(own) == len(set(own)) <= page.settings.history


def test_a_history_is_the_nearest_of_what_was_typed(page):
    user, video = 3, 1
    texts = sorted(set(page.corpus.searches[user]))
    near = page.space.of(texts) @ page.space.videos[video]
    best = [texts[n] for n in np.argsort(-near, kind="stable")[: page.settings.history]]
    assert page.history_of(user, video) == best


def test_prompts_hold_no_query_of_the_view_itself_beyond_what_the_tower_saw(page):
    """Anchors come from the tower's part of the log alone."""
    end = page.early(page.corpus.log)
    before = set(page.corpus.clicked(page.corpus.log)[:end].tolist())
    found, _ = page.anchors_now(end)
    assert set(found.ravel().tolist()) <= before
    table = page.table_of(page.Style())
    assert (table.views >= end).all()


def test_anchors_below_the_cut_are_left_out(page, monkeypatch):
    monkeypatch.setattr(page, "settings", replace(page.settings, similarity=1.1))
    page.anchors_now.cache_clear()
    try:
        assert "A" not in page.evidence(0, 0, 100, "lamp")
    finally:
        page.anchors_now.cache_clear()


@pytest.mark.parametrize("fields", ["", "TX"])
def test_unknown_fields_are_refused(page, fields):
    with pytest.raises(InputError, match="TMAH"):
        page.prompts_of(page.corpus.test, np.array([0]), page.Style(fields=fields), 10)


def test_a_field_that_is_left_out_is_nowhere_in_the_prompt(page):
    rows, mark = page.requests.rows[:8], page.reader.alphabet.mark
    for name in page.FIELDS:
        rest = page.FIELDS.replace(name, "")
        for prompt in page.prompts_of(page.corpus.test, rows, page.Style(fields=rest), 100):
            assert mark(name) not in [entry[0] for entry in prompt]


def test_a_verbose_prompt_has_the_same_entries_and_words_around_them(page):
    row = page.requests.rows[:1]
    (short,) = page.prompts_of(page.corpus.test, row, page.Style(), 100)
    (long,) = page.prompts_of(page.corpus.test, row, page.Style(verbose=True), 100)
    assert [entry for entry in long if entry in short] == short
    assert sum(map(len, long)) > sum(map(len, short)) + 20
    assert page.reader.text(long[0]) == page.OPENING
    kinds = page.kinds_of(page.sources([long], whole=True))[0].tolist()
    alone = page.kinds_of(page.sources([short], whole=True))[0].tolist()
    assert set(kinds) == {0, *alone}  # instructions in front are of no kind


def test_only_a_cut_prompt_fits_the_budget(page):
    row = page.requests.rows[:4]
    long = page.prompts_of(page.corpus.test, row, page.Style(verbose=True), 100)
    budget = page.settings.budget
    assert page.sources(long).shape[1] == budget
    assert page.sources(long, whole=True).shape[1] > budget


def test_a_video_of_hashtags_alone_has_no_title_and_can_be_answered(page, model):
    weak = next(n for n, text in enumerate(page.corpus.videos.summary) if not text)
    assert page.cleaned(page.corpus.videos.title[weak]) == ""
    fields = page.evidence(weak, 0, 100, page.corpus.videos.summary[weak])
    assert fields["T"] == [page.corpus.videos.author[weak]]
    assert "M" not in fields
    tokens, chances = page.written(model, page.sources([page.aligned(fields), []]), 4)
    assert torch.isfinite(chances).all()
    assert len(tokens) == 2
    assert page.rollout(model, page.sources([[]])).shape[0] == 1


def test_under_an_unsafe_video_only_a_rejection_is_learnt(page):
    table, log = page.table_of(page.Style()), page.corpus.log
    assert not page.corpus.videos.reviewed[log.video[table.views]].any()
    module = page.Sft(page.new_model(0), table, page.Style(), 0)
    batch = next(iter(page.batches_of(table, 16, 0)))
    source, target = module.rows(batch, 16)
    refused = target[-page.settings.refusals :]
    assert (refused[:, 0] == page.reader.reject).all()
    assert page.reader.reject not in target[: -page.settings.refusals].unique().tolist()
    rows = batch["refused"][: page.settings.refusals].tolist()
    told = page.sources([table.refused[row] for row in rows])
    assert torch.equal(source[-len(rows) :, : told.shape[1]], told)
    assert not page.table_of(page.Style(), False).refused


def test_what_is_written_can_be_read(page):
    query = page.corpus.queries[0]
    assert page.reader.text(page.target_of(query)) == page.spelled(query)
    assert page.reader.text((page.reader.reject, END)) == ""


# --- the generator --------------------------------------------------------------------------------


def test_beams_are_different_sorted_and_scored_as_the_model_does(page, model, prompts):
    source = page.sources(prompts)
    tokens, chances = page.written(model, source, 5)
    assert (chances[:, :-1] >= chances[:, 1:]).all()
    for row, rows in enumerate(tokens.tolist()):
        assert len({tuple(r) for r in rows}) == 5
        again = torch.from_numpy(page.padded([[t for t in r if t] for r in rows]))
        states = page.read(model, source[row : row + 1].expand(5, -1))
        with torch.no_grad():
            logits = page.logits_of(model, states, again)
        logits = logits.masked_fill(~page.reader.writable, -torch.inf)
        assert torch.allclose(page.log_chance(logits, again), chances[row], atol=1e-3)


def test_the_best_beam_is_no_worse_than_greedy(page, model, prompts):
    source = page.sources(prompts)
    one, wide = (page.written(model, source, width)[1][:, 0] for width in (1, 8))
    assert (wide >= one - 1e-4).all()


def test_rollouts_end_and_hold_no_padding_before_the_end(page, model, prompts):
    torch.manual_seed(0)
    text = page.rollout(model, page.sources(prompts))
    for row in text.tolist():
        place = row.index(END)
        assert PAD not in row[:place]
        assert set(row[place + 1 :]) <= {PAD}
        assert all(page.reader.writable[t] for t in row[: place + 1])


def test_every_token_has_the_kind_of_the_mark_before_it(page):
    title, anchor = (page.reader.alphabet.mark(name) for name in "TA")
    first = page.reader.alphabet.text
    found = page.kinds_of(torch.tensor([[title, 5, 6, anchor, 5], [5, 6, anchor, 7, PAD]]))
    one, two = title - first + 1, anchor - first + 1
    assert found.tolist() == [[one, one, one, two, two], [0, 0, two, two, two]]


def test_the_kind_of_a_word_is_read(page, model):
    one, two = (torch.tensor([[page.reader.alphabet.mark(name), 5]]) for name in "TA")
    with torch.no_grad():
        states = [page.read(model, source)[0] for source in (one, two)]
    assert not torch.allclose(states[0][0, 1], states[1][0, 1], atol=1e-3)


@pytest.mark.parametrize("profile", ["smoke", "toy", "small", "full"])
def test_models_of_every_profile_have_places_for_their_longest_texts(page, monkeypatch, profile):
    own = page.BarSettings.of(profile)
    monkeypatch.setattr(page, "settings", own)
    entry = own.query_words + 1
    longest = own.title_words + own.summary_words + 2 + entry * (own.anchors + own.history + 1)
    spoken = [page.OPENING, page.CLOSING, *page.LABELS.values()]
    longest += sum(len(text.split()) + 1 for text in spoken)  # whole, and with a hint
    tower, config = page.new_tower(100), page.shape(100)
    text = torch.ones(1, 1 + own.title_words + own.summary_words, dtype=torch.long)
    assert tower(text).shape == (1, own.width)
    assert config.max_position_embeddings >= longest
    if profile == "full":
        base = bart_base_config()
        for name in ("d_model", "encoder_layers", "decoder_attention_heads", "encoder_ffn_dim"):
            assert getattr(config, name) == getattr(base, name)


def test_logits_see_no_later_token(page, model, prompts):
    states = page.read(model, page.sources(prompts[:1]))
    one, two = (torch.tensor([[5, second, END]]) for second in (6, 7))
    with torch.no_grad():
        a, b = (page.logits_of(model, states, t) for t in (one, two))
    assert torch.allclose(a[:, :2], b[:, :2], atol=1e-5)
    assert not torch.allclose(a[:, 2], b[:, 2], atol=1e-3)


# --- lists ----------------------------------------------------------------------------------------


def test_levels_by_hand(page):
    found = page.levels_of([1, 2, 3], [4, 5], own=2, engaged=False, others={3: True, 9: False})
    assert found == {1: 5, 2: 2, 3: 3, 4: 6, 5: 6, 9: 4}
    assert page.levels_of([1], [], own=1, engaged=True, others={1: True}) == {1: 1}
    assert page.levels_of([1], [2], own=-1, engaged=False, others={}) == {1: 5, 2: 6}


def test_the_monotone_filter_by_hand(page):
    levels = {1: 1, 2: 4, 3: 5, 4: 5, 5: 6}
    assert page.monotone(levels, {1: 0.3, 2: 0.2, 3: 0.1, 4: 0.15, 5: 0.05}) == [1, 2, 4, 5]
    # 2 contradicts its level, and what follows is compared with what was kept
    assert page.monotone(levels, {1: 0.3, 2: 0.4, 3: 0.1, 4: 0.35, 5: 0.3}) == [1, 5]


def test_a_list_loss_by_hand(page):
    now = torch.tensor([[0.0, 1.0, -1.0]])
    before = torch.zeros(1, 3)
    clicked, there = torch.tensor([[True, True, False]]), torch.ones(1, 3, dtype=torch.bool)
    first = np.log1p(np.exp(0.5) + np.exp(-0.5))
    second = np.log1p(np.exp(-1.0))
    found = page.list_loss(now, before, clicked, there, 0.5, 0.0)
    assert float(found) == pytest.approx(first + second, abs=1e-5)
    with_sft = page.list_loss(now, before, clicked, there, 0.5, 2.0)
    assert float(with_sft) == pytest.approx(first + second - 2 * (0.0 + 1.0), abs=1e-5)


def test_the_last_candidate_and_padding_win_nothing(page):
    now = torch.tensor([[1.0, 2.0, 50.0]], requires_grad=True)
    clicked = torch.tensor([[True, True, True]])
    there = torch.tensor([[True, True, False]])
    loss = page.list_loss(now, torch.zeros(1, 3), clicked, there, 1.0, 0.0)
    assert float(loss.detach()) == pytest.approx(np.log1p(np.exp(1.0)), abs=1e-5)
    loss.backward()
    assert now.grad[0, 2] == 0
    assert torch.isfinite(now.grad).all()
    assert now.grad[0, 0] < 0 < now.grad[0, 1]


def test_gains_are_measured_against_the_reference(page):
    now = torch.tensor([[0.0, 3.0]])
    clicked, there = torch.tensor([[True, False]]), torch.ones(1, 2, dtype=torch.bool)
    same = page.list_loss(now, now.clone(), clicked, there, 1.0, 0.0)
    assert float(same) == pytest.approx(np.log(2), abs=1e-5)


def test_lists_begin_with_the_clicked_query_and_leave_its_own_click_out(page):
    prompts, candidates, clicked = page.lists_of(page.Style())
    table = page.table_of(page.Style())
    targets = dict(zip(map(repr, table.prompts), table.targets, strict=True))
    assert prompts
    for prompt, own, marks in zip(prompts, candidates, clicked, strict=True):
        assert len(own) > 1
        assert marks[0]
        assert sorted(marks, reverse=True) == marks
        assert len(set(own)) == len(own)
        assert repr(prompt) in targets
    share = np.mean([o[0] == targets[repr(p)] for p, o in zip(prompts, candidates, strict=True)])
    assert share > 0.9  # equal prompts share a key


def test_stage_two_begins_where_nothing_has_gained(page, monkeypatch):
    """No candidate is likelier than before: each clicked one has even odds against what follows."""
    monkeypatch.setattr(page, "settings", replace(page.settings, list_sft=0.0))
    module = page.Lists(page.new_model(0).eval(), page.table_of(page.Style()), page.Style(), 0)
    rows = torch.arange(5)
    with torch.no_grad():
        found = float(module.eval().loss({"row": rows}))
    sizes = [(len(module.lists[1][n]), sum(module.lists[2][n])) for n in rows.tolist()]
    terms = [sum(np.log(size - j) for j in range(min(own, size - 1))) for size, own in sizes]
    assert found == pytest.approx(np.mean(terms), abs=1e-4)


# --- distillation ---------------------------------------------------------------------------------


def test_a_temperature_on_both_sides_leaves_an_equal_student_alone(page):
    logits, there = torch.tensor([[[2.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    both, one = (page.divergences(logits, logits, there, 2.0, own) for own in (2.0, 1.0))
    assert float(both["forward"]) == pytest.approx(0, abs=1e-6)
    assert float(both["reverse"]) == pytest.approx(0, abs=1e-6)
    assert float(one["forward"]) > 0.05
    assert float(both["entropy"]) == pytest.approx(float(one["entropy"]))  # of what is served


@pytest.mark.parametrize(("softened", "equal"), [("both", True), ("teacher", False), ("", False)])
def test_what_the_temperature_divides_is_the_plans_or_the_settings(page, softened, equal):
    module, batch = distilling(page, insert="", softened=softened)
    module.model.eval()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.model, "train", lambda *_: module.model)  # no dropout
        found = module.loss(batch)
    assert (float(found["forward"]) < 1e-5) == equal


def test_where_stage_three_starts_the_temperature_alone_sets_equals_apart(page, model, monkeypatch):
    assert page.start_apart(model, "") > 1e-4
    for change in ({"tau": 1.0}, {"softened": "both"}):
        with monkeypatch.context() as patch:
            patch.setattr(page, "settings", replace(page.settings, **change))
            assert page.start_apart(model, "") == pytest.approx(0, abs=1e-6)
            assert page.start_apart(model, "random") > 1e-6


def test_divergences_by_hand(page):
    teacher = torch.log(torch.tensor([[[0.5, 0.5]]]))
    student = torch.log(torch.tensor([[[0.9, 0.1]]]))
    there = torch.ones(1, 1, dtype=torch.bool)
    found = page.divergences(teacher, student, there, 1.0)
    forward = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    reverse = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    for name, value in (("forward", forward), ("reverse", reverse), ("entropy", entropy)):
        assert float(found[name]) == pytest.approx(value, abs=1e-5)


def test_the_temperature_smooths_the_teacher_alone(page):
    teacher, there = torch.tensor([[[2.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    student = torch.tensor([[[1.0, 0.0]]])  # the teacher's logits over 2
    found = page.divergences(teacher, student, there, 2.0)
    assert float(found["forward"]) == pytest.approx(0, abs=1e-6)
    assert float(page.divergences(teacher, student, there, 1.0)["forward"]) > 0.01


def test_padding_has_no_say(page):
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    there = torch.tensor([[True, True, False], [True, False, False]])
    other = teacher.clone()
    other[~there] = 9.0
    one, two = (page.divergences(t, student, there, 1.0) for t in (teacher, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_inserted_query_may_stand_anywhere_and_breaks_no_entry(page):
    prompt = [(1, 2), (3,), (4, 5)]
    places = {page.place_in(prompt, "random", np.random.default_rng(n)) for n in range(60)}
    assert places == {0, 1, 2, 3}
    assert page.place_in(prompt, "last", np.random.default_rng(0)) == 3
    for place in places:
        found = page.inserted(prompt, (9,), place)
        assert [e for e in found if e[0] != page.reader.insert] == prompt
        assert found[place] == (page.reader.insert, 9)


def distilling(page, **changes):
    plan = page.Plan(**changes)
    module = page.Distil(page.new_model(0), page.table_of(page.Style()), plan, 0)
    batches = page.batches_of(module.table, page.settings.distil_batch, 0)
    return module, next(iter(batches))


def test_the_teacher_gets_no_gradient_and_stays_what_it_was(page):
    module, batch = distilling(page)
    torch.manual_seed(0)
    module.train()
    module.loss(batch)["loss"].backward()
    assert all(p.grad is None for p in module.teacher[0].parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.model.parameters())
    names = [name for name, _ in module.named_parameters()]
    assert len(names) == len(list(module.model.parameters()))  # it is not trained


def test_the_student_never_reads_the_clicked_query(page):
    module, batch = distilling(page)
    source, _target = module.rows(batch, page.settings.distil_batch)
    assert page.reader.insert not in source.unique().tolist()
    rows = batch["row"][: len(source) - page.settings.refusals].tolist()
    told = page.augmented(module, rows)
    assert (told == page.reader.insert).any(1).all()
    for row, line in zip(rows, told.tolist(), strict=True):
        place = line.index(page.reader.insert)
        query = module.table.targets[row][:-1]
        assert tuple(line[place + 1 : place + 1 + len(query)]) == query


def test_a_teacher_that_reads_the_same_agrees_at_first(page):
    module, batch = distilling(page, insert="")
    module.eval()
    rows = batch["row"][:4].tolist()
    source = page.sources([module.table.prompts[row] for row in rows])
    text = page.rollout(module.model, source)
    told = page.logits_of(module.teacher[0], page.read(module.teacher[0], source), text)
    own = page.logits_of(module.model, page.read(module.model, source), text)
    assert torch.equal(told, own)


def test_entropy_is_to_be_large(page):
    module, batch = distilling(page, forward=0.0, reverse=0.0)
    page_settings = page.settings
    try:
        values = []
        for weight in (0.0, 10.0):
            page.settings = replace(page_settings, entropy=weight)
            module.eval()
            torch.manual_seed(0)
            with torch.no_grad():
                found = module.loss(batch)
            values.append(float(found["loss"]))
        assert values[1] < values[0]
    finally:
        page.settings = page_settings


def test_off_policy_distils_on_the_clicked_query(page, monkeypatch):
    module, batch = distilling(page, distil="clicked")
    monkeypatch.setattr(page, "rollout", lambda *_: pytest.fail("the student wrote"))
    module.loss(batch)
    module, batch = distilling(page)
    with pytest.raises(pytest.fail.Exception):
        module.loss(batch)


def test_hints_are_right_half_of_the_time(page):
    table, random = page.table_of(page.Style()), np.random.default_rng(0)
    right = []
    for row in range(min(400, len(table.prompts))):
        prompt = page.hinted(table, row, random)
        (hint,) = [e[1:] for e in prompt if e[0] == page.reader.insert]
        right.append(hint == table.targets[row][:-1])
    assert 0.45 < np.mean(right) < 0.75  # the wrong ones are the clicked one now and then


def test_hints_follow_from_the_seed(page):
    def drawn(seed):
        module = page.Sft(None, page.table_of(page.Style()), page.Style(), seed, 1.0)
        return module.rows({"row": torch.arange(16)}, 16)[0]

    assert torch.equal(drawn(0), drawn(0))
    assert drawn(0).shape != drawn(1).shape or not torch.equal(drawn(0), drawn(1))


def test_the_start_is_trained_again_for_its_own_settings_alone(page, monkeypatch):
    calls = []
    real = page.supervised
    monkeypatch.setattr(page, "supervised", lambda *a, **k: calls.append(1) or real(*a, **k))
    page.base_model()
    before = len(calls)
    for changes in ({"tau": 9.0}, {"gate": 0.5}, {"distil_rate": 1.0}):
        monkeypatch.setattr(page, "settings", replace(page.settings, **changes))
        page.base_model()
    assert len(calls) == before
    monkeypatch.setattr(page, "settings", replace(page.settings, hints=0.3))
    page.base_model()
    assert len(calls) == before + 1


# --- rivals ---------------------------------------------------------------------------------------


def test_a_rewarded_model_keeps_likelihood_and_gains_from_what_is_rewarded(page, monkeypatch):
    table = page.table_of(page.Style())
    module = page.Rewarded(page.new_model(0), table, page.Plan(rewards=True), 0)
    batch = next(iter(page.batches_of(table, page.settings.distil_batch, 0)))
    monkeypatch.setattr(module, "worth", lambda rows, text: torch.full((len(text),), 0.5))
    found = module.loss(batch)
    total, likelihood = (float(found[name].detach()) for name in ("loss", "sft"))
    assert total == pytest.approx(likelihood, abs=1e-5)  # no query is better than another
    first = lambda rows, text: (torch.arange(len(text)) % page.settings.group == 0).float()  # noqa: E731
    monkeypatch.setattr(module, "worth", first)
    assert float(module.loss(batch)["reward"]) == pytest.approx(1 / page.settings.group)


def test_as_many_steps_without_lists_and_more_for_equal_time(page, monkeypatch):
    taken = []
    monkeypatch.setattr(page, "supervised", lambda m, style, steps, *_: taken.append(steps))
    s = page.settings
    for name in ("sft", "lists_only", "sft_longer"):
        page.last_stage(None, page.plan_of(name), 0)
    both = s.list_steps + s.distil_steps
    assert taken == [both, s.distil_steps, round(s.longer * both)]


def test_logistic_finds_known_weights(page):
    random = np.random.default_rng(0)
    rows = random.normal(size=(4000, 2))
    logits = 2 * rows[:, 0] - 1
    found = page.logistic(rows, random.random(4000) < 1 / (1 + np.exp(-logits)), 1.0)
    assert np.corrcoef(found(rows), logits)[0, 1] > 0.99
    assert abs(found(np.zeros((1, 2)))[0] + 1) < 0.2


def test_rates_are_drawn_to_what_is_known(page):
    past = page.past()
    video, query = next(pair for pair in past.clicks if isinstance(pair, tuple))
    assert 0 < past.rate(video, query) < 1
    assert past.rate(10**6, query) == pytest.approx(
        (past.clicks[query] + 4 * past.usual) / (past.shown[query] + 4)
    )
    assert past.rate(10**6, 10**6) == pytest.approx(past.usual)


def test_the_cascade_knows_clicked_queries_alone_but_also_for_new_videos(page):
    rows = np.flatnonzero(page.corpus.videos.new[page.corpus.test.video])[:5]
    lists, refused = page.cascade(page.corpus.test, rows)
    ever = {page.spelled(page.corpus.queries[q]) for q in page.past().clicks if isinstance(q, int)}
    assert all(own and set(own) <= ever for own in lists)
    assert ((refused >= 0) & (refused <= 1)).all()


def test_the_ranker_knows_no_click_that_comes_later(page):
    clicked, log = page.corpus.clicked(page.corpus.log), page.corpus.log
    last = np.flatnonzero(clicked >= 0)[-1]
    video, query = int(log.video[last]), int(clicked[last])
    earlier = (clicked[:last] == query) & (log.video[:last] == video)
    one = np.array([video]), np.array([int(log.user[last])]), np.array([query])
    before, after = (page.features(*one, now)[0] for now in (int(last), int(last) + 1))
    assert not earlier.any() or before[4] > 0
    assert after[4] > before[4]  # clicks under the video, after the tower's part
    assert after[5] > before[5]  # clicks in all
    assert after[6] > before[6]  # clicks under the author
    assert (before[[0, 1, 3, 7]] == after[[0, 1, 3, 7]]).all()


def test_what_is_cached_was_clicked_under_the_video_and_new_videos_have_nothing(page):
    rows = np.arange(40)
    lists, _ = page.cascade(page.corpus.test, rows, cached_only=True)
    for video, own in zip(page.corpus.test.video[rows].tolist(), lists, strict=True):
        under = {page.spelled(page.corpus.queries[q]) for q in page.past().under.get(video, ())}
        assert set(own) <= under
        assert not (page.corpus.videos.new[video] and own)
    assert any(lists)


def test_the_cascade_refuses_what_looks_like_what_reviewers_refused(page):
    refused = page.cascade(page.corpus.test, np.arange(150))[1]
    shop = page.corpus.world.truth.kind[page.corpus.test.video[:150]] == 0
    assert refused[~shop].mean() > refused[shop].mean()


# --- how it is judged -----------------------------------------------------------------------------


def test_edits_by_hand(page):
    assert page.edits("tent", "tent") == 0
    assert page.edits("kitten", "sitting") == 3
    assert page.edits("", "abc") == 3


def test_bleu_by_hand(page):
    assert page.bleu("mini tent", "mini tent") == pytest.approx(1)
    assert page.bleu("lamp", "mini tent") == 0
    # two of three words, one of two pairs; one is added to pairs
    expected = np.exp((np.log(2 / 3) + np.log((1 + 1) / (2 + 1))) / 2)
    assert page.bleu("red mini tent", "mini tent") == pytest.approx(expected)
    assert page.bleu("tent", "mini tent") == pytest.approx(np.exp(1 - 2))  # too short
    assert page.bleu("", "tent") == 0


def test_scores_by_hand(page):
    lists = [["a b", "mini tent"], ["mini tents"], []]
    found = page.scores_of(lists, ["mini tent"] * 3)
    assert found["hr@8"].tolist() == [1, 0, 0]
    assert found["mrr@8"].tolist() == [0.5, 0, 0]
    assert found["ed_hr@8"].tolist() == [1, 1, 0]
    assert found["bleu@8"][0] == 1
    assert found["bleu@8"][2] == 0


def test_a_ratio_as_a_mean_of_views(page):
    above, below = np.array([0.2, 0.0, 0.5]), np.array([1.0, 0.0, 1.0])
    values = page.per_view(above, below)
    assert values.mean() == pytest.approx(0.7 / 2)
    assert values[1] == pytest.approx(0.35)  # a view without an exposure says nothing
    assert page.per_view(above, np.zeros(3)).tolist() == [0, 0, 0]


def test_bars_keep_to_rules_gate_and_refusals(page, monkeypatch):
    monkeypatch.setattr(page, "passes", lambda video, texts: np.ones(len(texts), bool))
    lists = [["tent tent", "mini tent", "a b c d e f g", "lamp", "rug", "bed"]] * 2
    shown = page.bars_of(lists, np.array([0, 0]), np.array([False, True]))
    assert shown == [["mini tent", "lamp", "rug"], []]
    monkeypatch.setattr(page, "passes", lambda video, texts: np.zeros(len(texts), bool))
    assert page.bars_of(lists, np.array([0, 0]), np.array([False, False])) == [[], []]


def test_the_gate_asks_for_a_thing_of_the_video_and_nothing_wrong(page, monkeypatch):
    world = page.corpus.world
    video = int(np.flatnonzero(world.truth.kind == 0)[0])
    nouns = [
        world.words.forms[world.goods.values[thing[video], -1]][0]
        for thing in (world.truth.item, world.truth.aside)
    ]
    texts = [*nouns, f"{nouns[0]} blurgh", "blurgh", ""]
    for error, right in (
        (0.0, [True, True, False, False, False]),
        (1.0, [False, False] + [True] * 3),
    ):
        monkeypatch.setattr(page, "settings", replace(page.settings, gate=error))
        assert page.passes(np.full(5, video), texts).tolist() == right


def test_the_gate_is_wrong_about_its_share_of_pairs_and_always_the_same(page, monkeypatch):
    idle = np.flatnonzero(page.corpus.world.truth.kind != 0)
    monkeypatch.setattr(page, "settings", replace(page.settings, gate=0.2))
    texts = [page.corpus.queries[n] for n in range(1000)]
    video = idle[np.arange(1000) % len(idle)]
    found = page.passes(video, texts)
    assert 0.15 < found.mean() < 0.25
    assert np.array_equal(found, page.passes(video, texts))


def test_coverage_by_hand(page):
    lists, bad = [["a"], [], ["b"], ["c"]], np.array([1.0, 0.0, 0.0, 1.0])
    refused = np.array([0.9, 0.0, 0.1, 0.2])
    assert page.covered(lists, bad, refused, 0.75) == (0.5, 0.5)  # b and c of four
    assert page.covered(lists, bad, refused, 1.0) == (0.75, pytest.approx(2 / 3))


def test_open_clicks_do_without_gate_and_refusals(page, monkeypatch):
    monkeypatch.setattr(page, "passes", lambda video, texts: np.zeros(len(texts), bool))
    lists = [page.known_query(row) for row in page.bars.rows]
    found = page.online(lists, np.ones(len(lists)))
    assert found["exposed"].sum() == found["clicks"].sum() == 0
    assert found["open_clicks"].mean() > 0.3
    assert found["ctr"].tolist() == [0.0] * len(lists)


def test_a_refused_view_shows_nothing(page, monkeypatch):
    monkeypatch.setattr(page, "passes", lambda video, texts: np.ones(len(texts), bool))
    lists = [["mini tent"]] * len(page.bars.rows)
    refused = np.arange(len(lists)) % 2 * 1.0
    assert page.online(lists, refused)["exposed"].tolist() == (1 - refused).tolist()


def test_equal_bars_are_equal_twins_and_better_ones_are_seen(page):
    random = np.random.default_rng(0)
    clicks = random.random(len(page.bars.rows)) * 0.5
    part = {"exposed": np.ones(len(clicks)), "clicks": clicks, "orders": clicks / 4}
    found = page.experiment(part, part, 0)
    assert set(found) == {"A/A", "A/B", "twins"}
    assert all(ratio.lift == ratio.low == ratio.high == 0 for ratio in found["twins"].values())
    better = part | {"clicks": clicks * 2}
    twins = page.experiment(part, better, 0)["twins"]
    assert twins["clicks a view"].lift > 0
    assert twins["exposures a view"].lift == 0


def test_test_views_are_the_same_for_every_arm_and_requests_have_a_click(page):
    again = page.asked("requests", 20)
    assert np.array_equal(again.rows, page.requests.rows)
    clicked = page.corpus.clicked(page.corpus.test)
    assert (clicked[page.requests.rows] >= 0).all()
    assert len(page.requests.wanted) == 20
    assert not page.bars.wanted


def test_what_is_copied_and_what_is_distinct(page):
    query = page.spelled(page.corpus.queries[0])
    entry = (page.reader.alphabet.mark("A"), *page.reader.tokens(query, 7))
    assert page.copied([[query, "lamp post"], []], [[entry], []]).tolist() == [0.5, 0]
    assert page.distinct([["mini tent", "mini lamp"], []]).tolist() == [0.75, 0]


def test_every_arm_of_the_card_is_known_and_others_are_refused(page):
    for name in (*page.CHANGES, *page.STYLES):
        assert isinstance(page.plan_of(name), page.Plan)
    assert page.plan_of("sft").lists is False
    assert page.plan_of("sft").distil == ""
    assert page.plan_of("no_A").style.fields == "TMH"
    with pytest.raises(InputError, match="onebar"):
        page.plan_of("onebars")


def test_one_who_knows_beats_the_cascade(page):
    lists = [page.known_query(row) for row in page.bars.rows]
    cascade, _ = page.cascade(page.bars.views, page.bars.rows)
    nobody = np.zeros(len(lists))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "passes", lambda video, texts: np.ones(len(texts), bool))
        best, other = (page.online(part, nobody)["clicks"].mean() for part in (lists, cascade))
    assert best > other


def test_stages_train_and_leave_the_base_alone(page):
    """Every kind of arm takes its steps, and the base that arms share stays as it was."""
    weights = [p.clone() for p in page.base_model().parameters()]
    for name in ("onebar", "sft", "lists_only", "reward"):
        model = page.trained(name, page.plan_of(name) if name != "onebar" else page.Plan())
        moved = any(not torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
        assert moved, name
    again = page.base_model()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), weights, strict=True))


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_runs_and_records_what_claims_read(page, name, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "record", page.Recorder(tmp_path))
    monkeypatch.setattr(page, "settings", replace(page.settings, steps=2, prompt_steps=2))
    page.run_arm(name)
    found = page.record.metrics
    for metric in ("hr@8", "exposed", "clicks", "ctr", "open_clicks", "open_bad", "orders"):
        assert np.isfinite(found[f"{name}/{metric}"])
    rows = pd.read_parquet(tmp_path / "rows" / f"{name}.parquet")
    for metric in ("hr@8", "clicks", "ctr"):
        assert rows[metric].mean() == pytest.approx(found[f"{name}/{metric}"], abs=1e-5)
    if name in page.STYLES:
        assert 0 < found[f"seconds/{name}/p50"] <= found[f"seconds/{name}/p99"]
    if name in page.CHANGES:
        assert found[f"seconds/{name}/training"] > 0
    if name == "onebar":
        assert {"onebar/before_hr@8", "onebar/teacher_hr@8"} <= found.keys()
    if name in page.WATCHED:
        assert {f"{name}/{m}" for m in ("proxy", "proxy_true", "auc")} <= found.keys()


def test_the_card_and_the_chapter_have_the_same_arms(page):
    card = Card.read(CHAPTER)
    here = {"start", *page.CHANGES, *page.STYLES, *page.REFERENCES}
    assert set(card.arms) <= here
    assert here - set(card.arms) == {"tau_teacher"}  # what the main arm does


# --- real talks -----------------------------------------------------------------------------------


def rows_of_talks(count):
    return [
        {
            "title": f"Testing {n} in layers", "speakers": ["A. Person"], "summary": "How to test.",
            "tags": ["testing", f"topic{n}"] if n % 2 else [], "category": "group",
            "recorded": f"2017-03-{n + 1:02d}", "language": "eng",
        }
        for n in range(count)
    ]  # fmt: skip


def test_queries_are_constructed_from_tags_or_titles(page):
    counts = page.Counter({"testing": 9, "in": 9, "layers": 5, "4": 1})
    even, odd = rows_of_talks(6)[4], rows_of_talks(6)[5]
    assert page.constructed_queries(odd, counts) == ["testing", "topic5"]
    assert page.constructed_queries(even, counts) == ["4 layers"]
    assert page.constructed_queries(even | {"title": ""}, counts) == []


def test_talks_become_videos_and_the_latest_are_for_testing(page, tmp_path):
    lines = [json.dumps(row) for row in rows_of_talks(20)]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = page.talks_of(tmp_path, 100)
    assert found.videos.new.sum() == 2
    assert found.world is None
    assert not found.videos.new[found.log.video].any()
    assert found.videos.new[found.test.video].all()
    assert (found.clicked(found.log) == found.log.candidates[:, 0]).all()
    assert found.log.candidates.shape[1] == 8


@pytest.mark.parametrize(
    ("text", "named"),
    [(None, "no such file"), ("{", "line 1"), ('{"title": "x"}', "speakers"), ("[]", "line 1")],
)
def test_bad_talks_are_named(page, tmp_path, text, named):
    if text is not None:
        (tmp_path / "talks.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=named):
        page.talks_of(tmp_path, 100)


# --- exercises ------------------------------------------------------------------------------------


def in_place(function):
    """The same answer, but what was given is changed."""

    def wrong(given, *rest):
        found = function(given, *rest)
        given.sort(key=str)
        del given[1:]
        return found

    return wrong


def right_loss(scores, place):
    return float(np.log1p(np.exp(np.array(scores[place + 1 :]) - scores[place]).sum()))


def counted(clicks, view, k, *, key=None, anywhere=False, whole=False):
    """Anchors as they should be, or with one thing wrong."""
    good = [
        c for c in clicks if c["time"] < view["time"] and c["user"] != view["user"]
        if anywhere or c["video"] == view["video"]
    ]  # fmt: skip
    here = {c["query"] for c in good if c["video"] == view["video"]}
    counts = Counter(c["query"] for c in (clicks if whole else good) if c["query"] in here)
    return sorted(counts, key=key(good, counts) if key else lambda q: (-counts[q], q))[:k]


def of_people(clicks, view, k):
    once = {(c["user"], c["query"]): c for c in clicks}
    return counted(list(once.values()), view, k)


def of_new_queries(clicks, view, k):
    own = {c["query"] for c in clicks if c["user"] == view["user"] and c is not view}
    return counted([c for c in clicks if c["query"] not in own], view, k)


def latest(clicks, counts):
    return lambda q: (-counts[q], -max(c["time"] for c in clicks if c["query"] == q))


def two_entries(teacher, student):
    pairs = list(zip(teacher, student, strict=True))[:2]
    return tuple(
        sum(p * np.log(p / q) for p, q in side) for side in (pairs, [(q, p) for p, q in pairs])
    )


def clipped(teacher, student):
    t, s = (np.maximum(np.array(side), 1e-3) for side in (teacher, student))
    return float((t * np.log(t / s)).sum()), float((s * np.log(s / t)).sum())


def mean_twice(teacher, student):
    t, s = np.array(teacher), np.array(student)
    return 2 * float((t * np.log(t / s)).mean()), 2 * float((s * np.log(s / t)).mean())


def with_margin(low, high, margin):
    if -margin < low and high < margin:
        return "flat"
    return "changed" if low > margin or high < -margin else "not known"


WRONG = {
    "candidate_loss": [
        lambda s, p: float(np.log(np.exp(np.array(s) - s[p]).sum())),
        lambda s, p: float(np.log1p(np.exp(max(s[p + 1 :], default=-99) - s[p]))),
        in_place(right_loss),
    ],
    "ctr_lift": [
        lambda e, c: c - e,
        lambda e, c: c / e - 1 if e else c,
        lambda e, c: round((1 + c) / (1 + e) - 1, 4),
    ],
    "base_of": [
        lambda e, c, points: 100 * points / (c or 1),
        lambda e, c, points: points / (c - e),
        lambda e, c, points: points / (c - e - e * c + e * e),
        lambda e, c, points: points / round((1 + c) / (1 + e) - 1, 3),
    ],
    "verdict_on": [
        lambda low, high, m: "flat" if low < 0 < high else "changed",
        lambda low, high, m: "flat" if abs((low + high) / 2) < m else "changed",
        lambda low, high, m: with_margin(low, high, 0.02),
        lambda low, high, m: (
            "flat" if abs(low + high) / 2 < m and high - low < 2 * m else with_margin(low, high, m)
        ),
    ],
    "both_ways": [
        lambda t, s: (float(np.sum(np.array(t) * np.log(np.array(t) / np.array(s)))),) * 2,
        two_entries,
        mean_twice,
        clipped,
    ],
    "anchors_before": [
        lambda clicks, view, k: [
            c["query"] for c in clicks if c["video"] == view["video"] and c is not view
        ][:k],
        lambda clicks, view, k: counted(clicks, view, k, whole=True),
        lambda clicks, view, k: counted(clicks, view, k, anywhere=True),
        lambda clicks, view, k: counted(clicks, view, k, key=latest),
        lambda clicks, view, k: counted(clicks, view, max(k, 1)),
        of_people,
        of_new_queries,
        in_place(counted),
    ],
}
IDS = {
    "candidate_loss": "properties_of_lists", "ctr_lift": "properties_of_ctr",
    "base_of": "properties_of_base",
    "verdict_on": "properties_of_verdicts", "both_ways": "properties_of_ways",
    "anchors_before": "properties_of_anchors",
}  # fmt: skip


@pytest.mark.parametrize("name", IDS)
def test_solutions_pass_and_plausible_errors_do_not(page, name):
    def holds(function):
        for _, check in getattr(page, IDS[name])(function):
            try:
                if not check():
                    return False
            except Exception:
                return False
        return True

    assert holds(getattr(page, name))
    passed = [number for number, wrong in enumerate(WRONG[name]) if holds(wrong)]
    assert not passed
