"""The icon package's search terms: counts, and a split that no term crosses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minisearch.data import assets, icons
from minisearch.data.icons import IconTerms
from minisearch.errors import InputError

PRESENT = any(a.name == "fontawesomefree" and assets.is_present(a) for a in assets.list_assets())
needs_package = pytest.mark.skipif(not PRESENT, reason="fontawesomefree is not installed")


@pytest.fixture(scope="module")
def terms() -> IconTerms:
    return icons.icon_search_terms()


@needs_package
def test_counts_of_the_pinned_release(terms):
    assert len(terms.names) == len(terms.labels) == len(terms.categories) == 1885
    assert len(terms.pairs) == 9540
    assert len({term for term, _ in terms.pairs}) == 3493
    assert len({category for of_item in terms.categories for category in of_item}) == 68
    assert {row for _, row in terms.pairs} <= set(range(1885))


@needs_package
def test_a_known_icon_has_its_terms(terms):
    row = terms.names.index("magnifying-glass")
    assert terms.labels[row] == "Magnifying Glass"
    assert "find" in {term for term, item in terms.pairs if item == row}
    assert "Maps" in terms.categories[row]


@needs_package
def test_no_term_is_in_both_parts_in_any_case(terms):
    train, test = terms.split_terms(seed=0)
    assert train | test == {term for term, _ in terms.pairs}
    assert not {t.casefold().strip() for t in train} & {t.casefold().strip() for t in test}
    assert 0.18 < len(test) / (len(train) + len(test)) < 0.22
    assert terms.split_terms(seed=0) == (train, test)
    assert terms.split_terms(seed=1)[1] != test
    assert len(terms.split_terms(0, test_share=0.5)[1]) > 2 * len(test)


def test_an_absent_package_names_the_command(monkeypatch):
    monkeypatch.setattr(icons, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="minisearch data get fontawesomefree"):
        icons.icon_search_terms()


def test_a_damaged_package_is_named(tmp_path, monkeypatch):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(icons, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"icons\.json"):
        icons.icon_search_terms()
