"""Videos of the simulated shop: what is seen, what is wanted, and what bars bring."""

from __future__ import annotations

import numpy as np
import pytest

from minisearch.errors import InputError
from minisearch.worlds import video_truth
from minisearch.worlds.shop_catalogue import CATEGORY, NONE
from minisearch.worlds.video_truth import SHOP, TURNS, VideoConfig, Wants
from minisearch.worlds.videos import make_videos, outcomes


@pytest.fixture(scope="module")
def world():
    return make_videos("smoke", 3)


@pytest.fixture(scope="module")
def wish(world):
    """A product, a value of it that matters, and the words for its noun and for that value."""
    item = int(world.truth.item[world.truth.kind == SHOP][0])
    values = world.goods.values[item]
    attribute = next(a for a in np.flatnonzero(values != NONE) if a != CATEGORY)
    nouns = world.words.forms[values[CATEGORY]]
    return item, int(values[attribute]), nouns, world.words.forms[values[attribute]]


def fit(world, text, item, value):
    found = world.judge.fit([text], np.array([item]), np.array([value]))
    return {name: part[0] for name, part in found.items()}


def test_the_same_seed_gives_the_same_world_and_another_another(world):
    again, other = make_videos("smoke", 3), make_videos("smoke", 4)
    assert again.videos.title == world.videos.title
    assert again.queries == world.queries
    assert np.array_equal(again.log.clicked, world.log.clicked)
    assert other.videos.title != world.videos.title


def test_what_was_said_plainly_is_exact(world, wish):
    item, value, nouns, forms = wish
    found = fit(world, f"{forms[0]} {nouns[0]}", item, value)
    assert found["exact"]
    assert found["noun"]
    assert not found["plain"]


def test_the_noun_alone_is_plain(world, wish):
    item, value, nouns, _ = wish
    found = fit(world, nouns[0], item, value)
    assert found["plain"]
    assert not found["exact"]
    assert found["logit"] in (video_truth.PLAIN, video_truth.PLAIN + 0.5)


@pytest.mark.parametrize("extra", ["blurgh", "twice"], ids=["no word of the shop", "said twice"])
def test_a_wrong_word_spoils_it(world, wish, extra):
    item, value, nouns, forms = wish
    text = f"{forms[0]} {nouns[0]} {forms[0] if extra == 'twice' else extra}"
    found = fit(world, text, item, value)
    assert not found["exact"]
    assert not found["plain"]
    assert found["noun"]
    assert found["logit"] < video_truth.PLAIN


def test_nothing_fits_where_nothing_is_wanted(world, wish):
    _, _, nouns, forms = wish
    found = fit(world, f"{forms[0]} {nouns[0]}", NONE, NONE)
    assert not (found["exact"])
    assert not (found["plain"])
    assert not (found["noun"])
    assert found["logit"] == video_truth.WRONG


def test_people_prefer_the_usual_word(world, wish):
    item, value, nouns, forms = wish
    pairs = [f"{form} {noun}" for form in forms for noun in nouns]
    logits = [fit(world, pair, item, value)["logit"] for pair in pairs]
    exact = [fit(world, pair, item, value)["exact"] for pair in pairs]
    if len(pairs) > 1 and all(exact):
        assert len(set(logits)) == 2
        assert max(logits) == pytest.approx(min(logits) + 0.5)


def test_words_are_read_the_longest_first(world):
    long = max(world.judge.forms, key=lambda form: len(form.split()))
    entries, unknown = world.judge.entries(f"blurgh {long}")
    assert entries == [world.judge.forms[long]]
    assert unknown == 1


def test_clicks_follow_what_fits(world):
    clicked = world.log.clicked >= 0
    rows = np.flatnonzero(clicked)
    texts = [world.queries[world.log.candidates[r, world.log.clicked[r]]] for r in rows]
    taken = world.judge.fit(texts, world.log_wants.item[rows], world.log_wants.value[rows])
    all_first = [world.queries[q] for q in world.log.candidates[:, 0]]
    shown = world.judge.fit(all_first, world.log_wants.item, world.log_wants.value)
    assert taken["exact"].mean() > 2 * shown["exact"].mean()
    assert (world.log.clicked < len(TURNS)).all()
    assert not world.log.engaged[~clicked].any()


def test_new_videos_have_no_past_and_are_watched_later(world):
    assert not world.videos.new[world.log.video].any()
    assert world.videos.new[world.test.video].mean() > 0.1


def test_what_sells_nothing_is_about_nothing(world):
    idle = world.truth.kind != SHOP
    assert idle.any()
    assert (world.truth.item[idle] == NONE).all()
    assert (world.truth.aside[idle] == NONE).all()
    assert (world.truth.item[~idle] != NONE).all()
    wrong = world.videos.reviewed != idle
    assert 0 < wrong.mean() < 0.15  # reviewers err, seldom


def test_outcomes_of_one_query_by_hand(world, wish):
    item, value, nouns, forms = wish
    video = int(np.flatnonzero(world.truth.item == item)[0])
    wants, text = Wants(np.array([item]), np.array([value])), f"{forms[0]} {nouns[0]}"
    logit = fit(world, text, item, value)["logit"]
    found = outcomes(world, wants, np.array([video]), [[text]])
    click = world.config.attention / (1 + np.exp(-logit))
    order = click * 0.2 * 2 / (1 + np.exp(-world.goods.quality[item]))
    assert found["clicks"][0] == pytest.approx(click)
    assert found["orders"][0] == pytest.approx(order)
    assert found["money"][0] == pytest.approx(order * world.goods.price[item] / 100)
    assert (found["exposed"][0], found["bad"][0]) == (1, 0)


def test_a_second_query_gets_what_the_first_left(world, wish):
    item, value, nouns, forms = wish
    video = int(np.flatnonzero(world.truth.item == item)[0])
    wants, text = Wants(np.array([item]), np.array([value])), f"{forms[0]} {nouns[0]}"
    one, two, four = (
        outcomes(world, wants, np.array([video]), [[text] * n])["clicks"][0] for n in (1, 2, 4)
    )
    assert two == pytest.approx(one + (1 - one) * one * TURNS[1])
    three = outcomes(world, wants, np.array([video]), [[text] * 3])["clicks"][0]
    assert four == pytest.approx(three)  # a bar has three turns


def test_an_empty_bar_brings_nothing_and_is_not_bad(world):
    wants = Wants(world.test_wants.item[:2], world.test_wants.value[:2])
    found = outcomes(world, wants, world.test.video[:2], [[], []])
    assert all((values == 0).all() for values in found.values())


def test_any_bar_is_bad_where_nothing_is_sold(world, wish):
    _, _, nouns, _ = wish
    video = int(np.flatnonzero(world.truth.kind != SHOP)[0])
    wants = Wants(np.array([NONE]), np.array([NONE]))
    assert outcomes(world, wants, np.array([video]), [[nouns[0]]])["bad"][0] == 1


def test_the_second_thing_is_no_bad_case(world):
    video = int(np.flatnonzero(world.truth.kind == SHOP)[0])
    other = world.goods.values[world.truth.aside[video], CATEGORY]
    wants = Wants(world.truth.item[[video]], np.array([NONE]))
    shown = [[world.words.forms[other][0]]]
    assert outcomes(world, wants, np.array([video]), shown)["bad"][0] == 0


@pytest.mark.parametrize(
    ("change", "named"), [({"aside": 1.5}, "aside"), ({"candidates": 2}, "candidates")]
)
def test_bad_settings_are_named(change, named):
    with pytest.raises(InputError, match=named):
        VideoConfig.of("toy", **change)


def test_noise_of_titles_is_a_dial():
    quiet, loud = (make_videos("smoke", 3, title_noise=noise) for noise in (0.0, 1.0))
    words = [np.mean([len(t.split()) for t in w.videos.title]) for w in (quiet, loud)]
    assert words[1] > words[0] + 2
