"""The world of named changes on icons: answers differ in what is asked for, and in nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from minisearch.data.fugue import BADGES
from minisearch.errors import InputError
from minisearch.worlds.icon_edits import CALLED, KINDS, TINTS, EditDials, IconEdits, tinted

DIALS = EditDials(
    families=20, dev_families=4, test_families=12, others=30, triplets=200, queries=80,
    dev_queries=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return IconEdits(0, DIALS)


def asked(world):
    return [(split, t) for split, found in world.sets.items() for t in found.triplets]


def test_an_answer_differs_from_its_reference_in_what_the_kind_says(world):
    for _, triplet in asked(world):
        one, other = world.shown[triplet.reference], world.shown[triplet.target]
        assert one.thing == other.thing
        tint, badge = one.tint != other.tint, one.badge != other.badge
        expected = {
            "badge": (False, True, one.badge == ""), "swap": (False, True, one.badge != ""),
            "colour": (True, False, True), "both": (True, True, True),
        }  # fmt: skip
        assert (tint, badge, True) == (*expected[triplet.kind][:2], expected[triplet.kind][2])
        assert other.badge or triplet.kind == "colour"  # no badge is ever taken away


def test_the_text_names_the_new_and_not_the_thing(world):
    for _, triplet in asked(world):
        one, other = world.shown[triplet.reference], world.shown[triplet.target]
        if one.tint != other.tint:
            assert other.tint in triplet.text.split()
        if one.badge != other.badge:
            assert any(called in triplet.text for called in CALLED[other.badge])
        assert one.thing not in triplet.text.split() or one.thing in BADGES


def test_kinds_are_asked_for_equally(world):
    for split, count in (("train", 200), ("dev", 20), ("test", 80)):
        kinds = Counter(t.kind for t in world.sets[split].triplets)
        assert kinds == dict.fromkeys(KINDS, count // 4)


def test_no_family_is_in_two_splits_and_others_are_in_none(world):
    things = {
        split: {world.shown[t.target].thing for t in found.triplets}
        for split, found in world.sets.items()
    }
    assert not things["train"] & things["test"]
    assert not things["train"] & things["dev"]
    assert not things["dev"] & things["test"]
    families = {
        split: {world.shown[n].thing for n in found.gallery} for split, found in world.sets.items()
    }
    assert not families["train"] & families["test"]
    others = [n for n in world.sets["test"].gallery if n in set(world.sets["dev"].gallery)]
    assert len(others) == 30
    assert all(world.shown[name].badge == "" for name in others)


def test_a_gallery_holds_every_state_and_tint_of_its_families(world):
    shown = Counter(world.shown[name].thing for name in world.sets["train"].gallery)
    assert set(shown.values()) == {3 * 6}
    assert len(shown) == 20


def test_subsets_hold_reference_target_and_near_misses(world):
    for split, triplet in asked(world):
        assert len(set(triplet.subset)) == 6
        assert triplet.subset[:2] == (triplet.reference, triplet.target)
        assert set(triplet.subset) <= set(world.sets[split].gallery)
        target = world.shown[triplet.target]
        for name in triplet.subset[2:]:
            near = world.shown[name]
            same = (near.thing == target.thing) + (near.tint == target.tint)
            assert same + (near.badge == target.badge) == 2


def test_the_same_seed_gives_the_same_world_and_another_another(world):
    again, other = IconEdits(0, DIALS), IconEdits(1, DIALS)
    assert again.shown == world.shown
    assert again.sets["test"].triplets == world.sets["test"].triplets
    assert other.sets["test"].triplets != world.sets["test"].triplets


def test_pictures_are_what_their_names_say(world):
    triplet = next(t for t in world.sets["test"].triplets if t.kind == "badge")
    one, other = (np.asarray(world.open(n)) for n in (triplet.reference, triplet.target))
    assert one.shape == (16, 16, 3)
    changed = (one != other).any(-1)
    assert 10 < changed.sum() < 160
    with pytest.raises(InputError, match="a picture of this world"):
        world.open("cup/no-such-tint")


def test_a_tint_colours_the_thing_and_leaves_the_badge():
    plain = np.full((16, 16, 4), 200, np.uint8)
    plain[..., 3] = 255
    plain[0, 0, 3] = 0
    icon = plain.copy()
    icon[12:, 12:] = (0, 255, 0, 255)
    found = tinted(plain, icon, "red")
    assert found[13, 13].tolist() == [0, 255, 0]
    assert found[5, 5, 0] > 2 * found[5, 5, 1]
    assert found[0, 0].tolist() == [255, 255, 255]  # white behind what is transparent
    grey = tinted(plain, icon, "grey")[5, 5]
    assert len(set(grey.tolist())) == 1
    assert set(TINTS) >= {"red", "grey"}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"families": 500}, "506 families"),
        ({"others": 9000}, "9000 others"),
        ({"queries": 2800}, "test triplets: found .* of kind badge"),
    ],
)
def test_more_than_there_is_is_refused(changes, found):
    sizes = {"families": 4, "dev_families": 4, "test_families": 2, "triplets": 40, "others": 10,
             "queries": 8, "dev_queries": 4}  # fmt: skip
    with pytest.raises(InputError, match=found):
        IconEdits(0, EditDials(**(sizes | changes)))
