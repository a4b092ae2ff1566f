"""The dictionary of a simulated shop: whose words it lists, and what it does not say."""

from __future__ import annotations

import pytest

from minisearch.text import words
from minisearch.worlds.dictionary import shop_dictionary
from minisearch.worlds.shop_catalogue import ATTRIBUTES, ShopConfig, make_words
from minisearch.worlds.stored import open_shop

SMOKE = ShopConfig.of("smoke")


@pytest.fixture(scope="module")
def dictionary():
    return shop_dictionary(SMOKE, 0)


def test_every_form_has_one_of_eighteen_categories(dictionary):
    assert len(ATTRIBUTES) == 18
    assert set(dictionary.values()) == set(ATTRIBUTES)
    made = make_words(SMOKE, 0)
    assert set(dictionary) == {form for forms in made.forms for form in forms}
    of_form = {}
    for attribute, forms in zip(made.attribute, made.forms, strict=True):
        for form in forms:
            of_form.setdefault(form, []).append(int(attribute))
    assert any(len(set(found)) > 1 for found in of_form.values())  # a fruit and a colour
    for form, found in of_form.items():
        assert dictionary[form] == ATTRIBUTES[max(found)]


def test_forms_of_one_value_are_words_of_their_own(dictionary):
    several = [forms for forms in make_words(SMOKE, 0).forms if len(forms) > 1]
    assert len(several) > 20
    for forms in several:
        assert len({form for form in forms if form in dictionary}) == len(set(forms))


def test_words_are_spelled_as_texts_are(dictionary):
    for form in dictionary:
        assert " ".join(words(form)) == form


def test_a_dictionary_is_repeatable_and_differs_between_shops(dictionary):
    assert list(shop_dictionary(SMOKE, 0).items()) == list(dictionary.items())
    assert shop_dictionary(SMOKE, 1) != dictionary  # brands are invented
    brands = [
        {form for form, kind in found.items() if kind == "brand"}
        for found in (dictionary, shop_dictionary(SMOKE, 1))
    ]
    assert brands[0] != brands[1]


def test_most_words_of_titles_are_in_the_dictionary(dictionary, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path))
    titles = open_shop(SMOKE, 0).items["item_title"]
    parts = {word for form in dictionary for word in words(form)}
    found = [word in parts for title in titles for word in words(title)]
    assert 0.75 < sum(found) / len(found) < 1  # the others describe nothing: sale, official
    joined = " ".join(f" {' '.join(words(title))} " for title in titles)
    kinds = {kind for form, kind in dictionary.items() if f" {form} " in joined}
    assert len(kinds) > 12  # not of all: a small shop sells little
    assert {"brand", "colour", "category"} <= kinds
