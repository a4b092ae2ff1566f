"""The world of icons: its products, what texts say and leave open, what pictures show and where."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minisearch.data.icons import icon_search_terms
from minisearch.errors import InputError
from minisearch.worlds import icon_sets, icons
from minisearch.worlds.icon_drawing import (
    APPEARANCES,
    HUES,
    SPRITE,
    Appearance,
    Painter,
    outlines_of,
)
from minisearch.worlds.icon_sets import make_sets, open_icons
from minisearch.worlds.icons import FAMILIES, SIGNS, VARIANTS, IconDials, IconWorld, signs, things

DIALS = IconDials(glyphs=12, new_glyphs=4, queries=30)
EVALUATED = ("normal", "mosaic", "new", "noisy", "many")


@pytest.fixture(scope="module")
def terms():
    return icon_search_terms()


@pytest.fixture(scope="module")
def chosen(terms):
    return things(terms)


@pytest.fixture(scope="module", autouse=True)
def _chosen_once(terms, chosen):
    """Which icons are things takes most of a small world's time, and is the same for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icons, "things", lambda _: chosen)
        patch.setattr(icons, "icon_search_terms", lambda: terms)
        yield


@pytest.fixture(scope="module")
def world(_chosen_once):
    return IconWorld(3, DIALS)


@pytest.fixture(scope="module")
def sets(_chosen_once):
    return make_sets(3, DIALS)


@pytest.fixture(scope="module")
def painter():
    return Painter(64, 32)


def product(listing):
    return int(listing.item_id.split("/")[0])


def by_picture(listings):
    found = {}
    for listing in listings:
        found.setdefault(listing.picture, []).append(listing)
    return found


def pixels(image):
    return np.asarray(image).astype(int)


# -- icons that products are made of ---------------------------------------------------------------


def test_signs_brands_variants_and_stems_are_no_things(terms, chosen):
    others = signs(terms)
    assert len(others) == 940
    assert {"plus", "github", "folder-plus", "arrow-up"} <= set(others)
    assert {"tree", "dog", "kiwi-bird"} <= chosen.keys()
    of = dict(zip(terms.names, terms.categories, strict=True))
    for name in chosen:
        assert of[name]
        assert not SIGNS & set(of[name])
        assert not VARIANTS & set(name.split("-"))
        assert not any(other == name or other.startswith(f"{name}-") for other in others)
    assert "folder" in set(terms.names) - set(others) - chosen.keys()


def test_a_thing_has_the_rarest_of_its_categories(terms, chosen):
    size = Counter(category for categories in terms.categories for category in categories)
    for name, category in chosen.items():
        of_name = terms.categories[terms.names.index(name)]
        assert category in of_name
        assert size[category] == min(size[other] for other in of_name)


def test_no_thing_looks_like_a_sign_or_like_another_thing(terms, chosen, painter):
    """Outlines drawn anew, at twice the resolution of the rule and with a little leeway."""
    assert 780 < len(chosen) < 820
    names = [*chosen, *signs(terms)]
    drawn = np.stack([np.asarray(painter.outline(name)).ravel() > 127 for name in names])
    drawn = drawn.astype(np.float32)
    shared = drawn[: len(chosen)] @ drawn.T
    union = drawn[: len(chosen)].sum(1)[:, None] + drawn.sum(1) - shared
    np.fill_diagonal(shared, 0)
    assert (shared / union).max() < 0.94


def test_what_looks_like_another_icon_is_left_out(terms, chosen):
    left_out = sorted(set(terms.names) - set(signs(terms)) - chosen.keys())
    outlines = outlines_of([*left_out, *sorted(set(terms.names) - set(left_out))])
    assert set(np.unique(outlines)) == {0, 1}
    rows = outlines[: len(left_out)]
    shared = rows @ outlines.T
    share = shared / (rows.sum(1)[:, None] + outlines.sum(1) - shared)
    np.fill_diagonal(share, 0)
    alike = share.max(1) > icons.ALIKE
    assert alike.sum() > 30
    stems = [
        name
        for name, is_alike in zip(left_out, alike, strict=True)
        if not is_alike and any(other.startswith(f"{name}-") for other in signs(terms))
    ]
    assert alike.sum() + len(stems) == len(left_out)  # nothing is left out without a reason


# -- products and splits ---------------------------------------------------------------------------


def test_splits_share_no_product_and_new_ones_no_icon(world):
    parts = (world.train, world.test, world.new)
    assert sorted(row for part in parts for row in part) == list(range(len(world.products)))
    assert [len(part) for part in parts] == [12 * 2 * 4, 12 * 2 * 3, 4 * 2 * 3]
    train, test, new = ({world.products[row].glyph for row in part} for part in parts)
    assert train == test
    assert len(train) == 12
    assert len(new) == 4
    assert not train & new


def test_products_differ_and_look_alikes_differ_in_appearance_alone(world):
    made = [(p.glyph, p.family, p.appearance) for p in world.products]
    assert len(set(made)) == len(made)
    alike = Counter((p.glyph, p.family) for p in world.products)
    assert set(alike.values()) == {7, 3}
    assert set(Counter(glyph for glyph, _ in alike).values()) == {2}  # in two colours each


def test_a_text_names_icon_category_and_half_of_the_time_the_colour(terms, chosen):
    large = IconWorld(4, IconDials(glyphs=100, new_glyphs=10))
    named = []
    for p in large.products:
        row = terms.names.index(p.glyph)
        assert p.category == chosen[p.glyph]
        assert terms.labels[row].lower() in p.text
        assert p.category.replace(" + ", " ").lower() in p.text
        assert p.text == p.text.lower()
        said = [term.lower() for term, of in terms.pairs if of == row]
        assert sum(term in p.text for term in said) >= min(2, len(said))
        others = f"{terms.labels[row]} {p.category} {' '.join(said)}".lower()
        if FAMILIES[p.family] not in others:
            named.append(FAMILIES[p.family] in p.text.split())
    assert np.mean(named) == pytest.approx(0.5, abs=0.06)


def test_no_word_depends_on_shade_texture_or_pose(world, monkeypatch):
    def another(*rows):
        return Appearance(*((n + 1) % size for n, size in zip(rows, APPEARANCES, strict=True)))

    monkeypatch.setattr(icons, "Appearance", another)
    turned = IconWorld(3, DIALS).products
    assert [p.text for p in turned] == [p.text for p in world.products]
    pairs = zip(turned, world.products, strict=True)
    assert not any(p.appearance == q.appearance for p, q in pairs)


def test_look_alikes_have_texts_in_different_words(world):
    texts = [p.text for p in world.products]
    assert len(set(texts)) == len(texts)


def test_groups_hold_each_row_once_and_categories_that_differ(world):
    groups = world.groups(world.train, np.random.default_rng(0))
    assert sorted(row for group in groups for row in group) == world.train
    for group in groups:
        assert 1 <= len(group) <= 4
        assert len({world.products[row].category for row in group}) == len(group)
    assert Counter(map(len, groups))[4] > 0.6 * len(groups)


# -- pictures --------------------------------------------------------------------------------------


def test_the_same_name_is_the_same_picture_in_whatever_order(world):
    names = ["normal/0", "crop/5/1", "crop/5/2", "mosaic/here"]
    again = IconWorld(3, DIALS)
    drawn = {}
    for one, order in ((world, names), (again, names[::-1])):
        one.add_mosaic("here", (0, 30, 60))
        for name in order:
            image = one.open(name)
            assert image.mode == "RGB"
            drawn.setdefault(name, []).append(pixels(image))
    assert [drawn[name][0].shape[0] for name in names] == [64, 32, 32, 64]
    assert all((first == second).all() for first, second in drawn.values())
    assert (drawn["crop/5/1"][0] != drawn["crop/5/2"][0]).any()
    assert again.products == world.products


def test_another_seed_is_another_world(world):
    other = IconWorld(4, DIALS)
    assert {p.glyph for p in other.products} != {p.glyph for p in world.products}
    same = IconWorld(3, DIALS)
    same.seed = 4  # the products of one seed, the draws of another
    assert same.products == world.products
    assert (pixels(same.open("normal/0")) != pixels(world.open("normal/0"))).any()


@pytest.mark.parametrize(
    "name",
    ["normal/one", "normal/²", "normal/999", "crop/-1/0", "mosaic/none", "picture/0", "", "normal"],
)
def test_an_unknown_picture_is_refused(world, name):
    with pytest.raises(InputError, match=r"picture: .*take it from a listing"):
        world.open(name)


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        (IconDials(glyphs=900, new_glyphs=2), "icons: found 902; expected at most ALL"),
        (IconDials(glyphs=2, new_glyphs=1, trained=50, tested=5), "products of an icon: found 55"),
        (IconDials(glyphs=2, new_glyphs=1, families=9), "families: found 9; expected at most 8"),
    ],
)
def test_more_than_there_is_is_refused(dials, said):
    with pytest.raises(InputError) as caught:
        IconWorld(0, dials)
    assert said.replace("ALL", str(len(icons.things(None)))) in str(caught.value)


def painted(level, shape):
    """A product of one grey, opaque where `shape` is."""
    sprite = Image.new("RGBA", (SPRITE, SPRITE), (level,) * 3)
    sprite.putalpha(shape)
    return sprite


@pytest.mark.parametrize("kind", ["alone", "crop"])
@given(seed=st.integers(0, 10_000), icon=st.sampled_from(["tree", "dog", "kiwi-bird", "ruler"]))
@settings(max_examples=25, deadline=None)
def test_a_box_is_where_another_colour_of_the_product_changes_the_picture(
    painter, kind, seed, icon
):
    shape = painter.outline(icon)
    paint = painter.alone if kind == "alone" else painter.crop
    (dark, box), (bright, same) = (
        paint(painted(level, shape), np.random.default_rng(seed)) for level in (0, 255)
    )
    assert box == same
    changed = np.argwhere((pixels(dark) != pixels(bright)).any(2))
    assert tuple(changed.min(0)) == (box.top, box.left)
    assert tuple(changed.max(0)) == (box.bottom - 1, box.right - 1)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_each_product_of_a_mosaic_changes_its_own_box_alone(painter, seed):
    names = ["tree", "dog", "kiwi-bird", "ruler"]
    shapes = [painter.outline(name) for name in names]

    def scene(bright):
        sprites = [painted(255 * (n == bright), shape) for n, shape in enumerate(shapes)]
        return painter.mosaic(sprites, np.random.default_rng(seed))

    dark, boxes = scene(None)
    for number, box in enumerate(boxes):
        assert 0 <= box.left < box.right <= 64
        assert 0 <= box.top < box.bottom <= 64
        changed = (pixels(dark) != pixels(scene(number)[0])).any(2)
        inside = changed[box.top : box.bottom, box.left : box.right]
        assert inside.any()
        assert inside.sum() == changed.sum()


def test_products_of_mosaics_are_seldom_hidden(sets):
    """Boxes of one mosaic overlap in a small part of their area."""
    hidden = []
    for members in by_picture(sets["train"].listings).values():
        for one, other in combinations([x.box for x in members], 2):
            across = min(one.right, other.right) - max(one.left, other.left)
            down = min(one.bottom, other.bottom) - max(one.top, other.top)
            area = (one.right - one.left) * (one.bottom - one.top)
            hidden.append(max(0, across) * max(0, down) / area)
    assert np.mean(hidden) < 0.1


def test_every_appearance_and_colour_looks_different(painter):
    drawn = {
        painter.sprite("dog", family, Appearance(*rows)).tobytes()
        for family in range(len(HUES))
        for rows in np.ndindex(*APPEARANCES)
    }
    assert len(drawn) == len(HUES) * np.prod(APPEARANCES)
    assert len(HUES) == len(FAMILIES)


def test_a_turned_product_keeps_all_of_itself(painter):
    area = np.asarray(painter.outline("tree")).sum()
    for pose in range(APPEARANCES[2]):
        sprite = painter.sprite("tree", 0, Appearance(0, 0, pose))
        assert sprite.size == (SPRITE, SPRITE)
        assert 0.4 < np.asarray(sprite)[..., 3].sum() / area < 1.05


# -- sets ------------------------------------------------------------------------------------------


def test_training_products_are_alone_once_and_in_mosaics_twice(sets, world):
    count = Counter((product(x), x.picture.split("/")[0]) for x in sets["train"].listings)
    assert count == {
        (row, kind): times for row in world.train for kind, times in (("normal", 1), ("mosaic", 2))
    }
    crops = Counter(int(q.query_id.split("/")[0]) for q in sets["train"].queries)
    assert crops == dict.fromkeys(world.train, DIALS.crops)
    of = {x.item_id: product(x) for x in sets["train"].listings}
    for query in sets["train"].queries:
        assert [of[item] for item in query.item_ids] == 3 * [int(query.picture.split("/")[1])]


def test_sets_hold_the_products_of_their_split(sets, world):
    for name, rows in (("normal", world.test), ("mosaic", world.test), ("noisy", world.test)):
        assert sorted(map(product, sets[name].listings)) == rows
    assert sorted(map(product, sets["new"].listings)) == sorted(world.new + world.test)
    asked = {int(q.query_id.split("/")[0]) for q in sets["new"].queries}
    assert asked == set(world.new)
    assert sets["new"].listings[-len(world.test) :] == sets["mosaic"].listings


def test_a_listing_says_what_its_product_is_and_where(sets, world):
    for name in ("train", "normal", "mosaic", "new"):
        for x in sets[name].listings:
            p = world.products[product(x)]
            assert (x.text, x.category) == (p.text, p.category)
            width, height = sets[name].open(x.picture).size
            assert 0 <= x.box.left < x.box.right <= width
            assert 0 <= x.box.top < x.box.bottom <= height


def test_mosaics_hold_up_to_four_products_of_different_categories(sets):
    for name, pictures in sets.items():
        for picture, members in by_picture(pictures.listings).items():
            assert len(members) == 1 or picture.startswith("mosaic/")
            assert len(members) <= 4
            assert len({x.category for x in members}) == len(members), name


def test_test_sets_ask_for_the_same_products_each_with_one_query(sets):
    asked = {name: [q.picture for q in sets[name].queries] for name in EVALUATED}
    assert asked["normal"] == asked["mosaic"] == asked["noisy"] == asked["many"]
    assert len(set(asked["mosaic"])) == 30
    assert len(set(asked["new"])) == 24  # fewer than the dial asks for, as there are no more
    drawn = {q.picture for q in sets["train"].queries}
    assert not drawn & {picture for of_set in asked.values() for picture in of_set}


def test_of_many_both_listings_are_wanted_in_other_pictures_and_words(sets):
    of = {x.item_id: x for x in sets["many"].listings}
    assert len(of) == 2 * len(sets["mosaic"].listings)
    for query in sets["many"].queries:
        first, second = (of[item] for item in query.item_ids)
        assert product(first) == product(second) == int(query.picture.split("/")[1])
        assert first.picture != second.picture
        assert first.text != second.text
        assert first.category == second.category


def test_a_query_is_another_drawing_than_any_listing(sets):
    for query in islice(sets["normal"].queries, 10):
        (item,) = query.item_ids
        listing = next(x for x in sets["normal"].listings if x.item_id == item)
        small = sets["normal"].open(listing.picture).crop(listing.box).resize((32, 32))
        assert (pixels(small) != pixels(sets["normal"].crop(query))).mean() > 0.5


def spelled(monkeypatch):
    """Texts become ten words each, none in two texts."""
    numbers = count()

    def text(*_):
        number = next(numbers)
        return " ".join(f"{number}:{word}" for word in range(10))

    monkeypatch.setattr(IconWorld, "text", text)


def test_noisy_texts_lose_words_and_get_those_of_one_other(monkeypatch):
    spelled(monkeypatch)
    sets = make_sets(3, IconDials(glyphs=24, new_glyphs=2, queries=5))
    kept, wrong, total = 0, 0, 0
    for clean, noisy in zip(sets["mosaic"].listings, sets["noisy"].listings, strict=True):
        assert (clean.item_id, clean.picture, clean.category, clean.box) == (
            noisy.item_id, noisy.picture, noisy.category, noisy.box,
        )  # fmt: skip
        own = clean.text.split()
        stayed = [word for word in noisy.text.split() if word in own]
        foreign = [word for word in noisy.text.split() if word not in own]
        assert len({word.split(":")[0] for word in foreign}) <= 1
        if foreign:
            assert stayed == [word for word in own if word in stayed]  # in their order
        kept, wrong, total = kept + len(stayed), wrong + len(foreign), total + len(own)
    assert total == 1440
    assert kept / total == pytest.approx(0.4, abs=0.05)
    assert wrong / total == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(("lost", "wrong"), [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_noise_may_be_none_or_everything(monkeypatch, lost, wrong):
    spelled(monkeypatch)
    dials = IconDials(glyphs=4, new_glyphs=1, queries=5, words_lost=lost, words_wrong=wrong)
    sets = make_sets(3, dials)
    for clean, noisy in zip(sets["mosaic"].listings, sets["noisy"].listings, strict=True):
        if lost:
            assert noisy.text == ""
        elif not wrong:
            assert noisy.text == clean.text
        else:
            assert len(noisy.text.split()) == 10
            assert noisy.text != clean.text


# -- the cache -------------------------------------------------------------------------------------


def test_the_cache_holds_what_is_drawn(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    first = open_icons(3, DIALS)
    monkeypatch.setattr(icon_sets, "make_sets", lambda *_: pytest.fail("drawn once more"))
    for found in (first, open_icons(3, DIALS)):
        assert found.keys() == sets.keys()
        for name, pictures in sets.items():
            assert found[name].listings == pictures.listings
            assert found[name].queries == pictures.queries
            for picture in {x.picture for x in [*pictures.listings, *pictures.queries]}:
                assert (pixels(found[name].open(picture)) == pixels(pictures.open(picture))).all()


def test_other_dials_and_seeds_are_kept_apart_and_unknown_pictures_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    few = IconDials(glyphs=2, new_glyphs=1, queries=5)
    found = [
        open_icons(*key)
        for key in ((0, few), (1, few), (0, IconDials(glyphs=2, new_glyphs=1, queries=4)))
    ]
    assert len(list((tmp_path / "cache" / "icons").glob("*/sets.json"))) == 3
    assert found[0]["train"].listings != found[1]["train"].listings
    assert len(found[2]["mosaic"].queries) == 4
    with pytest.raises(InputError, match="picture: found 'normal/99'"):
        found[0]["train"].open("normal/99")
