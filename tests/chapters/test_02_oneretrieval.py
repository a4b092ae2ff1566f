"""Chapter 2: codes made of words, their edits, the table of products, and what trains on them."""

from __future__ import annotations

import ast
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minisearch import chapters
from minisearch.beam import Beams, beam_search
from minisearch.data.kuaisearch import positives
from minisearch.errors import InputError
from minisearch.records import EMPTY, Ragged
from minisearch.tasks import Collection
from minisearch.text import END, Vocabulary, words

CHAPTER = "02_oneretrieval"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The chapter as it stands after its dual encoder, at smoke; what it keeps is in a folder."""
    chapter = chapters.load(CHAPTER)
    (plans,) = (
        node
        for node in ast.parse(Path(chapter.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PLANS"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINISEARCH_BUILD", str(tmp_path_factory.mktemp("build")))
        # A plain table but for its calls, because of which `load` leaves it out.
        patch.setattr(chapter, "PLANS", None, raising=False)
        exec(compile(ast.Module([plans], []), CHAPTER, "exec"), vars(chapter))
        names = {
            "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "",
            "fresh": False, "settings": chapter.RetrievalSettings.of("smoke"),
        }  # fmt: skip
        shop, truth = chapter.open_world("smoke", 0, "")
        for name, value in (names | {"shop": shop, "clicks": shop.clicks, "truth": truth}).items():
            patch.setattr(chapter, name, value, raising=False)
        patch.setattr(chapter, "encoder", chapter.dual_encoder(shop), raising=False)
        chapter.make_scheme.cache_clear()
        made = chapter.make_trends(shop, chapter.make_scheme("kae").codes, 0)
        patch.setattr(chapter, "trends", made, raising=False)
        yield chapter
        chapter.make_scheme.cache_clear()


@pytest.fixture
def settings(page, monkeypatch):
    """A function that changes some of the chapter's settings."""

    def change(**values):
        monkeypatch.setattr(page, "settings", page.RetrievalSettings.of("smoke", **values))

    return change


@pytest.fixture(scope="module")
def kae(page):
    return page.make_scheme("kae")


@pytest.fixture(scope="module")
def model(page, kae):
    return page.new_model(kae, page.encoder.word_vectors(), 0).eval()


@pytest.fixture
def editor(page, kae):
    return page.Editor(kae, page.catalogue_index(kae))


def hashed(texts):
    """A vector of its own for each text."""
    draws = [np.random.default_rng(list(text.encode())) for text in texts]
    return np.stack([draw.normal(size=8) for draw in draws])


def marks_of(page):
    return tuple(n for names in page.STAGES.values() for n in names if n != "route")


def small_shop(page, titles, dictionary, clicks, leaf=None):
    """A shop without a log, from titles and (query, row) clicks."""
    queries, rows = zip(*clicks, strict=True)
    nothing = Ragged.from_lists([])
    task = Collection(titles, list(queries), np.array(rows), [], nothing, np.array([], int))
    return page.Shop(None, task, leaf or [""] * len(titles), dictionary)


def bind(editor, word, group, items=()):
    """Edit; the position and the code that the word got."""
    word = editor.edit(word, group, items)
    return editor.bound[word]


def everything(page, model, scheme, index, queries):
    """All identifiers of a table, best first, for each query."""
    sources = scheme.requests(queries, page.no_past(scheme, len(queries)))
    return beam_search(model.model, torch.from_numpy(sources), len(index.trie) + 3, index.trie)


# -- words in texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red wine glass", ["red wine"]),  # the longest at a place, and no overlap
        ("red glass wine glass", ["red", "wine glass"]),
        ("tailored redder ed", []),  # whole words only
        ("red red  red wine", ["red", "red", "red wine"]),  # neighbours share no space
        ("Red, (WINE-glass)!", ["red wine"]),
        ("", []),
    ],
)
def test_words_are_found_longest_first_from_left_to_right(page, text, found):
    assert page.Matcher(["red", "red wine", "wine glass", "ed wine"])(text) == found


def test_chinese_words_are_found_within_a_run(page):
    assert page.Matcher(["红色", "裙子"])("2024红色裙子") == ["红色", "裙子"]


def test_a_dictionary_without_words_is_refused(page):
    with pytest.raises(InputError, match="dictionary: found no word"):
        page.Matcher([])


def test_a_dictionary_is_read_from_two_columns(page, tmp_path):
    path = tmp_path / "dictionary.tsv"
    path.write_text("Red\tcolour\n\nWine-Glass\tcategory\n红色\tcolour\n", encoding="utf-8")
    found = page.read_dictionary(path)
    assert list(found.values()) == ["colour", "category", "colour"]
    assert list(found)[:2] == ["red", "wine glass"]
    matches = page.Matcher(found)("wine glass, RED")
    assert [found[word] for word in matches] == ["category", "colour"]


def test_chinese_words_of_a_dictionary_are_found(page, tmp_path):
    path = tmp_path / "dictionary.tsv"
    path.write_text("红色\tcolour\n", encoding="utf-8")
    found = page.read_dictionary(path)
    assert [found[word] for word in page.Matcher(found)("一件红色裙子")] == ["colour"]


def test_an_entry_of_signs_alone_is_no_word(page, tmp_path):
    """It must be refused or left out; kept as "", it is found between any two words."""
    path = tmp_path / "dictionary.tsv"
    path.write_text("red\tcolour\n!!!\tbrand\n", encoding="utf-8")
    with suppress(InputError):
        assert page.Matcher(page.read_dictionary(path))("blue red lamp") == ["red"]


@pytest.mark.parametrize("line", ["red", "red\t", "\tcolour", "red\tcolour\tdark"])
def test_a_bad_line_of_a_dictionary_is_named(page, tmp_path, line):
    path = tmp_path / "dictionary.tsv"
    path.write_text(f"blue\tcolour\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected word and category") as caught:
        page.read_dictionary(path)
    assert caught.value.where == f"{path}, line 3"  # as an editor counts, blank ones too
    with pytest.raises(InputError, match="no such file"):
        page.read_dictionary(tmp_path / "none.tsv")


def test_what_the_catalogue_says_is_title_brand_and_category(page):
    columns = {
        "item_title": ["red lamp", "cup"],
        "brand_name": ["acme", "other"],
        "category_level3_name": ["lamps", "UNKNOWN"],
    }
    assert page.described(columns) == ["red lamp acme lamps", "cup"]


def test_presence_says_which_categories_a_text_has(page):
    dictionary = {"red": "colour", "lamp": "category", "blue": "colour", "acme": "brand"}
    shop = small_shop(page, ["x"], dictionary, [("x", 0)])
    assert shop.categories == ["colour", "category", "brand"]
    found = page.presence(["red blue", "acme lamp", "none"], shop, page.Matcher(dictionary))
    assert found.tolist() == [[True, False, False], [False, True, True], [False, False, False]]


# -- merging categories --------------------------------------------------------------------------


def test_information_loss_by_hand(page):
    x, y = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool)
    # H(X, Y) of 1/2, 1/4, 1/4 is 1.5 bits; H(X) of 3/4 is 0.8113; H(Y) is 1.
    assert page.information_loss(x, y) == pytest.approx(1.5 - (0.8112781 + 1) / 2)
    assert page.information_loss(y, x) == pytest.approx(page.information_loss(x, y))
    assert page.information_loss(x, x) == pytest.approx(0)
    assert page.information_loss(x, ~x) == pytest.approx(0)
    always = np.ones(4, bool)
    assert page.information_loss(always, always) == 0  # though each product loses a word
    independent = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert page.information_loss(*independent) == pytest.approx(1)


def test_lost_requests_by_hand(page):
    x, y = np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 1], bool)
    assert page.lost_requests(x, y, [0.5, 0.2]) == pytest.approx(0.5 * 0.2)
    assert page.lost_requests(x, ~x, [1.0, 1.0]) == 0


@pytest.mark.parametrize("criterion", ["information", "requests"])
def test_each_merge_is_the_cheapest_and_counts_displaced_words(page, criterion):
    draw = np.random.default_rng(1)
    items, queries = draw.random((80, 6)) < 0.4, draw.random((50, 6)) < 0.3
    steps = page.merges(items, queries, criterion)
    assert [len(step.groups) for step in steps] == [6, 5, 4, 3, 2, 1]
    assert steps[0].collisions == 0
    for before, after in pairwise(steps):
        costs = {}
        for a, b in combinations(before.groups, 2):
            x, y = (items[:, list(g)].any(1) for g in (a, b))
            if criterion == "information":
                costs[frozenset(a + b)] = page.information_loss(x, y)
            else:
                asked = min(queries[:, list(g)].any(1).mean() for g in (a, b))
                costs[frozenset(a + b)] = (x & y).mean() * asked
        (made,) = {frozenset(g) for g in after.groups} - {frozenset(g) for g in before.groups}
        assert costs[made] == pytest.approx(min(costs.values()))
        assert after.loss == pytest.approx(costs[made])
        assert sorted(n for group in after.groups for n in group) == list(range(6))
        displaced = sum(
            max(0, sum(bool(row[n]) for n in group) - 1) for row in items for group in after.groups
        )
        assert after.collisions == pytest.approx(displaced / items.sum())


def test_more_positions_than_categories_are_refused(page):
    shop = small_shop(page, ["red lamp"], {"red": "colour", "lamp": "category"}, [("lamp", 0)])
    with pytest.raises(InputError, match="found 2 categories; expected at least 6"):
        page.read_words(shop, "requests")


def test_the_groups_that_are_asked_for_most_come_first(page, kae):
    groups = kae.codes.words.groups
    assert sorted(name for group in groups for name in group) == sorted(page.shop.categories)
    matcher = page.Matcher(page.shop.dictionary)
    named = page.presence(page.clicks.train_queries, page.shop, matcher)
    place = page.shop.categories.index
    shares = [named[:, [place(name) for name in group]].any(1).mean() for group in groups]
    assert shares == sorted(shares, reverse=True)
    assert kae.codes.words.items[3] == matcher(page.clicks.titles[3])
    assert kae.codes.words.queries[3] == matcher(page.clicks.train_queries[3])


def test_importance_by_hand(page):
    items = [["red", "lamp", "lamp"], ["blue", "lamp"]]
    queries = [["lamp"], ["red", "lamp", "blue"], ["lamp"]]
    found = page.importance(items, queries, np.array([0, 0, 1]))
    expected = {"red": 1.1 / 12, "lamp": 3.1 / 13, "blue": 0.1 / 11}
    assert found == pytest.approx(expected)


# -- keyword codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "solo", "clusters"), [(20, 6, 5), (7, 6, 1), (3, 3, 0)])
def test_blocks_of_a_position_do_not_overlap(page, count, solo, clusters):
    ranked = [f"word{n}" for n in range(count)]
    codes, vectors = page.fill_position(ranked, 12, hashed, 0)
    assert list(codes) == ranked
    alone = [codes[word] for word in ranked[:solo]]
    assert alone == list(range(1 + clusters, 1 + clusters + solo))
    assert {codes[word] for word in ranked[solo:]} == set(range(1, 1 + clusters))
    assert vectors.shape == (12, 8)
    np.testing.assert_allclose(vectors[alone], hashed(ranked[:solo]), rtol=1e-6)
    assert (np.abs(vectors).sum(1) > 0).sum() == solo + clusters
    assert not vectors[0].any()


def test_words_that_are_alike_share_a_cluster(page):
    ranked = [f"word{n}" for n in range(11)]
    near = {word: np.array([(-1) ** n, 0.01 * n]) for n, word in enumerate(ranked)}
    codes, _ = page.fill_position(ranked, 6, lambda texts: np.array([near[t] for t in texts]), 0)
    tail = ranked[3:]  # of size 6: three alone, two clusters
    for a, b in combinations(range(len(tail)), 2):
        assert (codes[tail[a]] == codes[tail[b]]) == (a % 2 == b % 2)


def test_a_position_without_words_has_no_code(page):
    codes, vectors = page.fill_position([], 12, hashed, 0)
    assert codes == {}
    assert not vectors.any()


def test_no_training_text_has_a_reserved_code(page, kae):
    codes = kae.codes
    assert codes.reserved == page.settings.reserved
    for position, (size, reserved) in enumerate(zip(codes.sizes, codes.reserved, strict=True)):
        own = codes.reserved_codes(position)
        assert own.tolist() == list(range(size - reserved, size))
        assert not np.isin(codes.items[:, position], own).any()
        assert not np.isin(codes.encode(page.clicks.train_queries)[:, position], own).any()
        slots = [code for at, code in codes.slots.values() if at == position]
        assert min(slots) > 0
        assert max(slots) < own[0]
        assert not codes.vectors[position][own].any()
        assert codes.vectors[position].shape[0] == size
    plain = np.array(codes.sizes) - codes.reserved
    most = np.argsort([-sum(at == p for at, _ in codes.slots.values()) for p in range(6)])
    assert set(plain[most[:3]]) == {page.settings.dense}
    assert set(plain[most[3:]]) == {page.settings.light}


def test_products_and_queries_are_encoded_alike(page, kae):
    np.testing.assert_array_equal(kae.codes.items, kae.codes.encode(page.clicks.titles))
    for text in page.clicks.titles[:20]:
        expected = [0] * 6
        weights = kae.codes.words.importance
        for word in sorted(kae.codes.words.matcher(text), key=lambda w: weights.get(w, 0)):
            position, code = kae.codes.slots[word]
            expected[position] = code
        assert kae.codes.encode([text])[0].tolist() == expected


def test_of_several_words_the_most_important_is_kept(page, settings):
    settings(positions=2, reserved=(2, 2), dense=8, light=8)
    dictionary = {"red": "colour", "blue": "colour", "lamp": "category", "new": "colour"}
    titles = ["red lamp", "blue red lamp", "lamp", "nothing"]
    clicks = [("red", 0), ("red lamp", 1), ("blue", 1), ("red", 1), ("lamp", 2)]
    shop = small_shop(page, titles, dictionary, clicks)
    codes = page.keyword_codes(shop, hashed, "requests")
    place, red = codes.slots["red"]
    for text in ("blue red", "red blue", "blue red blue"):
        assert codes.encode([text])[0, place] == red
    assert codes.encode(["blue"])[0, place] == codes.slots["blue"][1] != red
    assert "new" not in codes.slots  # of the dictionary, but in no text
    assert codes.encode(["nothing", "new"]).tolist() == [[0, 0], [0, 0]]
    assert codes.encode([]).shape == (0, 2)


# -- closed codes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rq_kmeans", "rq_opq", "rq_vae"])
def test_closed_codes_are_within_range_and_repeatable(page, kae, kind):
    closed = [
        page.closed_codes(kind, page.shop, page.encoder.vectors, kae.codes.sizes) for _ in range(2)
    ]
    one, again = closed
    assert one.items.shape == (len(page.clicks.titles), 6)
    assert (one.items >= 0).all()
    assert (one.items < np.array(one.sizes)).all()
    np.testing.assert_array_equal(one.items, again.items)
    # Of products the last level of k-means is spread evenly, of other texts it is not.
    exact = {"rq_vae": 6, "rq_kmeans": 5, "rq_opq": 3}[kind]
    encoded = one.encode(page.clicks.titles)
    np.testing.assert_array_equal(one.items[:, :exact], encoded[:, :exact])
    assert (one.items == encoded).mean() > 0.9
    np.testing.assert_array_equal(encoded[:1], one.encode(page.clicks.titles[:1]))
    assert len(np.unique(one.items, axis=0)) > len(one.items) / 2
    assert [len(vectors) for vectors in one.vectors] == list(one.sizes)
    same = one.sizes == kae.codes.sizes
    assert same or one.sizes[:4] == kae.codes.sizes[:4]


def test_a_vae_learns_to_give_back_its_vectors_and_leaves_the_generator(page, settings):
    settings(vae_epochs=60)
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(6, 16))
    which = draw.integers(6, size=300)
    vectors = (centres[which] + 0.05 * draw.normal(size=(300, 16))).astype(np.float32)
    state = torch.get_rng_state()
    vae = page.ResidualVAE(vectors, (8, 4), 3)
    assert torch.equal(torch.get_rng_state(), state)
    inputs = torch.from_numpy(vectors / vae.scale)
    with torch.no_grad():
        back = vae.decoder(vae.books(vae.encoder(inputs))[0])
    assert (back - inputs).pow(2).mean() < 0.2 * inputs.var()
    again, other = (page.ResidualVAE(vectors, (8, 4), seed) for seed in (3, 4))
    np.testing.assert_array_equal(again.codes, vae.codes)
    assert (other.codes != vae.codes).any()
    assert not any(part.training for part in (vae.encoder, vae.decoder, vae.books))


# -- training examples ---------------------------------------------------------------------------


def reserved_tokens(scheme):
    codes = scheme.codes
    parts = [scheme.alphabet.first[p] + codes.reserved_codes(p) for p in range(len(codes.sizes))]
    return np.concatenate(parts)


def test_no_task_but_the_routing_has_a_reserved_token(page, kae):
    tasks = page.examples(kae, page.shop) | page.word_examples(kae, page.shop)
    assert set(tasks) == {n for names in page.STAGES.values() for n in names} - {"route"}
    for name, (source, target) in tasks.items():
        assert len(source) == len(target) > 0
        assert (source[:, 0] == kae.alphabet.mark(name)).all()
        assert source.shape[1] == page.settings.source_tokens
        for side in (source, target):
            assert not np.isin(side, reserved_tokens(kae)).any()
            assert (side >= 0).all()
            assert (side < len(kae.alphabet)).all()


def test_tasks_pair_what_was_clicked(page, kae):
    task, tasks = page.clicks, page.examples(kae, page.shop)
    row = 17
    query, item = task.train_queries[row], task.train_rows[row]
    asked, wanted = kae.ids([query])[0], kae.ids([task.titles[item]])[0]
    title = kae.encode_text([task.titles[item]], 12, end=True)[0]
    spelled = kae.encode_text([query], 8)[0]
    source, target = (side[row] for side in tasks["retrieve"])
    assert source[1:7].tolist() == asked.tolist()
    assert source[13:21].tolist() == spelled.tolist()  # behind one past click of six codes
    assert target.tolist() == wanted.tolist()
    assert tasks["query id to item id"][0][row, 1:7].tolist() == asked.tolist()
    assert tasks["query id to item id"][1][row].tolist() == wanted.tolist()
    assert tasks["item id to query id"][0][row, 1:7].tolist() == wanted.tolist()
    assert tasks["item id to query id"][1][row].tolist() == asked.tolist()
    assert tasks["query to title"][0][row, 1:9].tolist() == spelled.tolist()
    assert tasks["query to title"][1][row].tolist() == title.tolist()
    title_end = kae.encode_text([query], 8, end=True)[0]
    assert tasks["title to query"][1][row].tolist() == title_end.tolist()
    assert tasks["title to id"][1][item].tolist() == wanted.tolist()
    assert tasks["id to title"][0][item, 1:7].tolist() == wanted.tolist()
    assert tasks["id to title"][1][item].tolist() == title.tolist()
    queries = sorted(set(task.train_queries))
    assert tasks["query to id"][1][queries.index(query)].tolist() == asked.tolist()
    assert tasks["id to query"][1][queries.index(query)].tolist() == title_end.tolist()


def test_products_without_a_category_name_none(page, kae):
    leaf = ["" if n % 2 else name for n, name in enumerate(page.shop.leaf)]
    shop = replace(page.shop, leaf=leaf)
    tasks = page.examples(kae, shop)
    named = [name for name in leaf if name]
    expected = kae.encode_text(named, 4)
    np.testing.assert_array_equal(tasks["title to category"][1], expected)
    clicked = [leaf[row] for row in page.clicks.train_rows if leaf[row]]
    expected = kae.encode_text(clicked, 4)
    np.testing.assert_array_equal(tasks["query to category"][1], expected)


def test_words_stand_for_their_codes_and_back(page, kae):
    tasks = page.word_examples(kae, page.shop)
    assert len(tasks["word to code"][0]) == len(kae.codes.slots)
    for row, (word, (position, code)) in enumerate(kae.codes.slots.items()):
        token = kae.alphabet.first[position] + code
        assert tasks["word to code"][1][row].tolist() == [token]
        assert tasks["code to word"][0][row, 1] == token
        text = kae.encode_text([f"{word} {page.shop.dictionary[word]}"], 6)[0]
        assert tasks["word to code"][0][row, 1:7].tolist() == text.tolist()
        text = kae.encode_text([word], 5, end=True)[0]
        assert tasks["code to word"][1][row].tolist() == text.tolist()


def listening(scheme):
    """The scheme, and a list of the texts that it is given to encode."""
    heard = []

    def encode_text(texts, longest, end=False):
        heard.extend(texts)
        return scheme.encode_text(texts, longest, end)

    return replace(scheme, encode_text=encode_text), heard


def test_a_rehearsal_changes_one_position_alike_on_both_sides(page, kae):
    scheme, texts = listening(kae)
    source, target = page.rehearsals(scheme, page.shop, 3, 200)
    assert 100 < len(source) == len(target) == len(texts) <= 200
    asked, wanted = (kae.alphabet.codes(side) for side in (source[:, 1:7], target))
    matcher, slots = kae.codes.words.matcher, kae.codes.slots
    before = kae.codes.encode(page.clicks.train_queries)
    clicked = kae.codes.items[page.clicks.train_rows]
    lone = 0
    for q, i, text in zip(asked, wanted, texts, strict=True):
        at = [p for p in range(6) if i[p] in kae.codes.reserved_codes(p)]
        assert len(at) == 1
        (p,), others = at, [n for n in range(6) if n != at[0]]
        assert q[p] == i[p]
        came_from = (clicked[:, others] == i[others]).all(1)  # the rest of the product is kept
        came_from &= (before[:, p] == clicked[:, p]) & (before[:, p] != 0)
        if len(words(text)) == 1 and not q[others].any():
            lone += 1
        else:
            came_from &= (before[:, others] == q[others]).all(1)
        assert came_from.any()
        left = [word for word in matcher(text) if slots.get(word, (6,))[0] == p]
        assert all(page.shop.dictionary[word] == "brand" for word in left)  # its words are gone
    assert 0.15 < lone / len(texts) < 0.6  # three of ten, and those of one word already
    np.testing.assert_array_equal(source[:, 7:13], 0)  # nothing was clicked before
    np.testing.assert_array_equal(source[:, 13:21], kae.encode_text(texts, 8))
    assert (source[:, 0] == kae.alphabet.mark("retrieve")).all()
    again, other = (page.rehearsals(kae, page.shop, seed, 200) for seed in (3, 4))
    np.testing.assert_array_equal(again[0], source)
    assert other[0].shape != source.shape or (other[0] != source).any()
    assert len(np.unique(wanted[np.isin(target, reserved_tokens(kae))])) > 20  # all are practised


def test_rehearsed_names_are_new(page, kae):
    """As in the test of edits: a name that is a brand of the shop has a code of its own."""
    scheme, texts = listening(kae)
    page.rehearsals(scheme, page.shop, 3, 200)
    known = {w for t in page.clicks.titles + page.clicks.train_queries for w in words(t)}
    assert all(set(words(text)) - known for text in texts)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("red tailored lamp", {"tailored", "lamp"}),  # "red" is a part of "tailored"
        ("Red lamp", {"lamp"}),
        ("wine-red lamp", {"lamp"}),
        ("red lamp", {"lamp"}),
    ],
)
def test_a_rehearsed_name_takes_the_place_of_whole_words(page, settings, query, kept):
    settings(positions=2, reserved=(2, 2), dense=8, light=8, history=0)
    dictionary = {"red": "colour", "wine red": "colour", "lamp": "category"}
    shop = small_shop(page, ["red cup", "wine red cup"], dictionary, [(query, 0), (query, 1)] * 100)
    codes = page.keyword_codes(shop, hashed, "requests")
    vocabulary = Vocabulary.build(shop.clicks.titles, min_count=1, pieces=8)
    alphabet = page.Alphabet(len(vocabulary), marks_of(page), codes.sizes)
    scheme, texts = listening(page.Scheme("kae", codes, alphabet, vocabulary.encode))
    page.rehearsals(scheme, shop, 0, 100)
    longer = [set(words(text)) for text in texts if len(words(text)) > 1]
    assert longer
    for found in longer:
        assert kept < found
        assert len(found - kept) == 1
        assert not found & {"red", "wine"}


def test_a_prefix_with_a_reserved_code_is_its_own_target(page, kae):
    source, target = page.prefixes(kae, page.shop, 5, 100)
    assert target.shape == (100, 6)
    np.testing.assert_array_equal(source[:, 1:7], target)
    assert not source[:, 7:].any()
    known = kae.alphabet.tokens(kae.codes.items)
    lengths = (target != 0).sum(1)
    assert set(lengths) == set(range(1, 7))
    for row, length in zip(target, lengths, strict=True):
        assert not row[length:].any()
        is_reserved = np.isin(row, reserved_tokens(kae))
        assert is_reserved.tolist() == [n == length - 1 for n in range(6)]
        assert (known[:, : length - 1] == row[: length - 1]).all(1).any()


@pytest.mark.parametrize("train", [True, False])
def test_the_past_is_what_the_user_clicked_last(page, kae, settings, train):
    settings(history=2)
    items, log = kae.alphabet.tokens(kae.codes.items), page.shop.log
    (found,) = page.past_ids(page.shop, items, train)
    done, place = positives(log.recall), {n: r for r, n in enumerate(log.items["item_id"].tolist())}
    user, time = log.recall["user_id"].tolist(), log.recall["time_index"].tolist()
    of_user = defaultdict(list)
    for row, name in enumerate(user):
        of_user[name].append(row)

    def past(row):
        earlier = [r for r in of_user[user[row]] if time[r] < time[row]]
        earlier.sort(key=lambda r: time[r])
        seen = [items[place[i]] for r in earlier for i in done[r].tolist()][-2:]
        flat = [token for ids in seen for token in ids.tolist()]
        return flat + [0] * (12 - len(flat))

    if train:
        rows = [r for r, split in enumerate(log.recall["split"]) if split == "train"]
        rows = [r for r in rows for _ in done[r]]
    else:
        rows = page.clicks.query_rows.tolist()
    assert found.tolist() == [past(row) for row in rows]
    assert (found[:, 6] > 0).any()  # somebody has two
    assert (found[:, 0] == 0).any()  # and somebody none


def test_without_history_there_is_no_past(page, kae, settings):
    settings(history=0)
    assert page.past_ids(page.shop, kae.alphabet.tokens(kae.codes.items), True) == []
    assert page.no_past(kae, 3).shape == (3, 0)


def test_tasks_are_blended_in_their_shares(page):
    width = page.settings.source_tokens

    def part(first, count, columns):
        source = np.full((count, width), first) + np.arange(count)[:, None]
        return source, source[:, :columns]

    parts = [(0.6, part(100, 40, 2)), (1.4, part(200, 50, 5)), (0.0, part(300, 9, 1))]
    table = page.blend(parts, 4000, 1)
    source, target = table["source"].numpy(), table["target"].numpy()
    assert source.shape == (4000, width)
    assert target.shape == (4000, 5)
    kind = source[:, 0] // 100
    assert (kind == 1).mean() == pytest.approx(0.3, abs=0.03)
    assert (kind == 2).mean() == pytest.approx(0.7, abs=0.03)
    assert len(np.unique(source)) == 90  # every example is drawn
    assert (target[kind == 2] == source[kind == 2, :5]).all()  # pairs stay together
    assert (target[kind == 1, :2] == source[kind == 1, :2]).all()
    assert not target[kind == 1, 2:].any()
    assert torch.equal(page.blend(parts, 4000, 1)["source"], table["source"])
    assert not torch.equal(page.blend(parts, 4000, 2)["source"], table["source"])


# -- models that are kept ------------------------------------------------------------------------


@pytest.fixture
def keeping(page, monkeypatch, tmp_path):
    """Keep in a folder of its own; a function that asks for a module and counts trainings."""
    monkeypatch.setenv("MINISEARCH_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(page, "ASSETS", tmp_path / "assets")
    trained = []

    def ask(digest="d", name="tiny"):
        module = torch.nn.Linear(3, 2)
        torch.nn.init.zeros_(module.weight)

        def train():
            trained.append(digest)
            with torch.no_grad():
                module.weight.fill_(len(trained) + 0.12345678)

        page.stored(name, module, train, digest)
        return module.weight.detach().clone()

    return ask, trained


def test_weights_are_trained_once_and_read_back_in_half_precision(keeping):
    ask, trained = keeping
    first, second = ask(), ask()
    assert trained == ["d"]
    assert torch.equal(first, second)
    assert torch.equal(first, torch.full((2, 3), 1.12345678).half().float())
    assert (first != 1.12345678).all()


def test_other_data_names_seeds_or_settings_are_trained_anew(page, settings, keeping, monkeypatch):
    ask, trained = keeping
    ask()
    ask("other")
    ask(name="another")
    monkeypatch.setattr(page, "world_seed", 1)
    ask()
    monkeypatch.setattr(page, "init_seed", 1)
    ask()
    settings(width=16)
    ask()
    assert len(trained) == 6
    ask()
    assert len(trained) == 6


def test_shipped_weights_are_used_for_the_usual_data_only(page, keeping, monkeypatch, capsys):
    ask, trained = keeping
    folder = page.ASSETS / "shop_0"
    folder.mkdir(parents=True)
    shipped = {"weight": torch.full((2, 3), 9.0).half(), "bias": torch.zeros(2).half()}
    save_file(shipped, folder / "tiny.safetensors", {"digest": "d"})
    monkeypatch.setattr(page, "profile", "toy")
    assert (ask() == 9).all()
    assert not trained
    ask("other data")
    assert "trained here instead" in capsys.readouterr().out
    for name, value in {"fresh": True, "world_seed": 1, "init_seed": 1, "profile": "smoke"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(page, name, value)
            assert (ask() != 9).all(), name
    assert len(trained) >= 4


def test_what_is_shipped_is_what_would_be_kept(page, keeping):
    ask, _ = keeping
    ask()
    (file,) = (page.ASSETS.parent / "build").rglob("weights.safetensors")
    assert {name: value.dtype for name, value in load_file(file).items()} == {
        "weight": torch.float16, "bias": torch.float16,
    }  # fmt: skip


def test_base_models_do_not_depend_on_the_training_seed(page, monkeypatch):
    seeds = []
    for seed in (1, 2):
        monkeypatch.setattr(page, "seed", seed)
        scheme, model = page.trained("kae")
        base = page.base_model(page.PLANS["kae"], scheme)
        seeds.append((page.weights_hash(base), page.weights_hash(model)))
    (base, model), (other_base, other_model) = seeds
    assert base == other_base
    assert model != other_model
    monkeypatch.setattr(page, "seed", 1)
    assert page.weights_hash(page.trained("kae")[1]) == model
    assert page.trained("kae_no_routing")[1] is not None
    assert page.weights_hash(page.trained("kae_no_routing")[1]) != model


def test_a_model_starts_from_words_and_codes_that_are_known(page, kae, model):
    table = model.model.model.shared.weight.detach().numpy()
    known = page.encoder.word_vectors()
    unit = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-9)
    there = np.abs(known).sum(1) > 0
    assert not there[: END + 1].any()
    np.testing.assert_allclose(table[: len(known)][there], unit[there], atol=1e-5)
    position, code = kae.codes.slots["dress"]
    vector = kae.codes.vectors[position][code]
    token = kae.alphabet.first[position] + code
    np.testing.assert_allclose(table[token], vector / np.linalg.norm(vector), atol=1e-5)
    reserved = table[reserved_tokens(kae)]
    assert (np.abs(reserved).sum(1) > 0).all()  # random, and not zero
    assert len(np.unique(reserved, axis=0)) == len(reserved)


# -- the table -----------------------------------------------------------------------------------


class SlowIndex:
    """Identifiers and products as a list of pairs."""

    def __init__(self, ids, owners, per_id):
        self.pairs, self.per_id = list(zip(map(tuple, ids.tolist()), owners, strict=True)), per_id

    def products(self, beams, k):
        found = []
        for beam in beams:
            held = [owner for ids, owner in self.pairs if ids == beam]
            found += held[: self.per_id]
        found = list(dict.fromkeys(found))
        return (found + [EMPTY] * k)[:k]


@pytest.mark.parametrize("seed", range(5))
def test_the_table_agrees_with_a_list_of_pairs(page, seed):
    draw = np.random.default_rng(seed)

    def some(count):
        return draw.integers(1, 4, (count, 3)), draw.integers(0, 25, count)

    first, more = some(60), some(40)
    index, slow = page.Index(*first, per_id=3), SlowIndex(*first, per_id=3)

    def compare():
        known = index.trie.identifiers()
        assert known.tolist() == sorted(map(list, {ids for ids, _ in slow.pairs}))
        leaves = np.stack([draw.permutation(len(known)) for _ in range(8)])
        leaves[:, -4:] = -1  # a beam wider than the table
        beams = Beams(known[leaves], np.zeros(leaves.shape), leaves)
        for k in (1, 7, 40):
            expected = [slow.products(map(tuple, known[row[:-4]].tolist()), k) for row in leaves]
            found = page.products(index, beams, k)
            assert found.tolist() == expected
            for row in found:
                real = row[row != EMPTY]
                assert len(set(real.tolist())) == len(real)

    compare()
    index.add(*more)
    slow.pairs += SlowIndex(*more, per_id=3).pairs
    compare()
    kept = draw.random(100) < 0.5
    index.keep(kept)
    slow.pairs = [pair for pair, keep in zip(slow.pairs, kept, strict=True) if keep]
    compare()


def test_products_come_in_the_order_in_which_they_were_added_and_few_of_one_identifier(page):
    index = page.Index(np.array([[1, 2], [1, 2], [3, 4]]), np.array([10, 11, 12]), per_id=2)
    index.add(np.array([[1, 2]]), np.array([5]))
    beams = Beams(np.zeros((1, 4, 2)), np.zeros((1, 4)), np.array([[0, 1, -1, -1]]))
    assert page.products(index, beams, 4).tolist() == [[10, 11, 12, EMPTY]]
    assert page.products(index, beams, 1).tolist() == [[10]]
    index.keep(np.array([False, True, True, True]))
    assert page.products(index, beams, 4).tolist() == [[11, 5, 12, EMPTY]]


def test_the_catalogue_lists_the_most_clicked_products_first(page, kae):
    codes = replace(kae.codes, items=np.zeros_like(kae.codes.items))
    index = page.catalogue_index(replace(kae, codes=codes))
    beams = Beams(np.zeros((1, 1, 6)), np.zeros((1, 1)), np.zeros((1, 1), int))
    (found,) = page.products(index, beams, 10)
    counts = np.bincount(page.clicks.train_rows, minlength=len(codes.items))
    assert (found >= 0).sum() == page.settings.per_id
    assert counts[found[:5]].tolist() == sorted(counts, reverse=True)[:5]


def test_search_gives_products_of_the_likeliest_identifiers(page, kae, model, settings):
    settings(beam_width=7)
    index = page.catalogue_index(kae)
    few = page.Index(index.ids[:4], index.owners[:4], per_id=5)  # a beam wider than the table
    queries = page.clicks.queries[:3]
    sources = kae.requests(queries, page.no_past(kae, 3))
    found = few.search(model, sources, 6)
    assert found.shape == (3, 6)
    for row, source in zip(found, sources, strict=True):
        target = torch.from_numpy(few.ids)
        with torch.no_grad():
            repeated = torch.from_numpy(source).expand(4, -1)
            likely = [-model.loss(repeated[n : n + 1], target[n : n + 1]).item() for n in range(4)]
        assert row.tolist() == [*few.owners[np.argsort(likely)[::-1]].tolist(), EMPTY, EMPTY]


# -- edits ---------------------------------------------------------------------------------------


def test_an_edit_gives_a_code_to_the_word_and_lists_its_products(page, kae, editor):
    position = page.position_of("colour", editor.original.words.groups)
    assert "colour" in kae.codes.words.groups[position]
    rows = len(editor.index.ids)
    at = bind(editor, "  Labubu ", "colour", [3, 1, 4])
    assert at == (position, kae.codes.reserved_codes(position)[0]) == editor.bound["labubu"]
    assert editor.index.owners[rows:].tolist() == [3, 1, 4]
    expected = kae.alphabet.tokens(kae.codes.items[[3, 1, 4]])
    expected[:, position] = kae.alphabet.first[position] + at[1]
    np.testing.assert_array_equal(editor.index.ids[rows:], expected)
    assert len(editor.index.trie) == len(page.catalogue_index(kae).trie) + 3
    assert (editor.index.trie.find(expected) >= 0).all()
    for text in ("labubu", "dress labubu white", "white labubu"):
        code = editor.scheme.codes.encode([text])[0]
        plain = kae.codes.encode([text.replace("labubu", "")])[0]
        assert code[position] == at[1]  # before white, which is of its group
        assert np.delete(code, position).tolist() == np.delete(plain, position).tolist()
    texts = page.clicks.titles + page.clicks.queries + ["labubuu"]
    np.testing.assert_array_equal(editor.scheme.codes.encode(texts), kae.codes.encode(texts))
    assert editor.scheme.requests(["labubu"])[0, 1 + position] == page.token_of(editor, "labubu")[1]
    assert "labubu" not in kae.codes.slots  # the scheme that was given is as it was
    assert kae.codes.encode(["labubu"]).tolist() == [[0] * 6]


def test_a_group_is_a_category_or_the_number_of_a_position(page, editor):
    assert bind(editor, "labubu", 2)[0] == 2
    assert bind(editor, "dimoo", np.int64(5))[0] == 5
    groups = editor.original.words.groups
    assert [page.position_of(g[-1], groups) for g in groups] == list(range(6))


def test_a_chinese_word_can_be_bound(editor):
    position, code = bind(editor, "拉布布", "colour")
    assert editor.scheme.codes.encode(["新款拉布布 dress"])[0, position] == code


MISTAKES = {
    "unknown group": (("dimoo", "colur"), "did you mean 'colour'"),
    "no such position": (("dimoo", 6), "group: found '6'"),
    "word of the dictionary": (("dress", "colour"), "has a code already"),
    "word bound already": (("Labubu", "brand"), "has a code already"),
    "no word": (("  ", "colour"), "word '': found no word"),
    "signs alone": (("!?", "colour"), "word '': found no word"),
    "unknown product": (("dimoo", "colour", [3, 5000]), "found no product 5000"),
    "product below 0": (("dimoo", "colour", [-1]), "found no product -1"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistaken_edit_is_refused_and_changes_nothing(editor, arguments, message):
    editor.edit("labubu", "colour", [3])
    bound, ids, slots = dict(editor.bound), editor.index.ids.copy(), editor.scheme.codes.slots
    with pytest.raises(InputError, match=message):
        editor.edit(*arguments)
    assert editor.bound == bound
    assert editor.scheme.codes.slots is slots
    np.testing.assert_array_equal(editor.index.ids, ids)


def test_unbinding_what_was_not_bound_is_refused(page, editor):
    editor.edit("labubu", "colour")
    for word in ("labubo", "dress"):
        with pytest.raises(InputError, match=f"word: found '{word}'"):
            page.unbind(editor, word)
    with pytest.raises(InputError, match="did you mean 'labubu'"):
        page.unbind(editor, "labubo")


def test_a_position_has_room_for_its_reserved_codes(page, editor):
    bound = [bind(editor, f"word{n}", 1) for n in range(10)]
    assert {at[0] for at in bound} == {1}
    assert sorted(at[1] for at in bound) == editor.original.reserved_codes(1).tolist()
    full = "position 1: found none of 10 reserved codes free; .* Remedy: unbind a word"
    with pytest.raises(InputError, match=full):
        editor.edit("word10", 1)
    assert bind(editor, "word10", 2)[0] == 2  # the others have room
    page.unbind(editor, "word4")
    assert bind(editor, "word11", 1) == bound[4]
    assert [bind(editor, f"front{n}", 0)[1] for n in range(60)]
    with pytest.raises(InputError, match="none of 60"):
        editor.edit("front60", 0)


def test_sixty_edits_leave_the_weights_and_the_lists_of_old_queries(page, kae, model):
    assert len(page.trends) == 60
    before = page.weights_hash(model)
    index, queries = page.catalogue_index(kae), page.clicks.queries[:4]
    old = everything(page, model, kae, index, queries)
    scheme, table, targets = page.edited(kae, False)
    assert len(scheme.codes.slots) == len(kae.codes.slots) + 60
    assert len(targets) == 60
    new = everything(page, model, scheme, table, queries)
    assert page.weights_hash(model) == before
    known = index.trie.identifiers()
    assert len(table.trie) > len(index.trie) + 250
    for row in range(4):
        kept = (table.trie.find(known)[:, None] == new.leaves[row]).any(0)
        real = old.leaves[row] >= 0
        np.testing.assert_array_equal(new.tokens[row][kept], old.tokens[row][real])
        np.testing.assert_allclose(new.scores[row][kept], old.scores[row][real], atol=1e-4)


def test_the_hash_notices_any_weight(page, kae):
    model = page.new_model(kae, page.encoder.word_vectors(), 0)
    before = page.weights_hash(model)
    assert page.weights_hash(page.new_model(kae, page.encoder.word_vectors(), 0)) == before
    for parameter in list(model.parameters())[::7]:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-6
        assert page.weights_hash(model) != before
        before = page.weights_hash(model)


def test_unbinding_restores_every_list_bit_for_bit(page, kae, model, editor):
    queries = [*page.clicks.queries[:4], "labubu dress"]
    first = everything(page, model, kae, editor.index, queries)
    ids, owners = editor.index.ids.copy(), editor.index.owners.copy()
    editor.edit("labubu", "colour", [3, 1, 4])
    editor.edit("dimoo", "category", [3, 200])
    changed = everything(page, model, editor.scheme, editor.index, queries)
    assert changed.tokens.shape != first.tokens.shape
    page.unbind(editor, "labubu")
    assert editor.scheme.codes.encode(["dimoo labubu"])[0].tolist()[0] == editor.bound["dimoo"][1]
    page.unbind(editor, "dimoo")
    np.testing.assert_array_equal(editor.index.ids, ids)
    np.testing.assert_array_equal(editor.index.owners, owners)
    assert editor.scheme.codes.slots == kae.codes.slots
    again = everything(page, model, editor.scheme, editor.index, queries)
    for part in ("tokens", "scores", "leaves"):
        np.testing.assert_array_equal(getattr(again, part), getattr(first, part))


def test_unbinding_leaves_nothing_behind_of_products_without_a_word_of_the_group(page, kae, editor):
    position = page.position_of("colour", kae.codes.words.groups)
    bare = np.flatnonzero(kae.codes.items[:, position] == 0)[:3]
    assert len(bare) == 3
    ids, owners = editor.index.ids.copy(), editor.index.owners.copy()
    editor.edit("labubu", "colour", bare)
    page.unbind(editor, "labubu")
    np.testing.assert_array_equal(editor.index.owners, owners)
    np.testing.assert_array_equal(editor.index.ids, ids)


def test_new_products_with_the_word_get_its_code(page, kae, editor):
    position, code = bind(editor, "labubu", "colour")
    assert len(editor.index.ids) == 300
    numbers = editor.add(["white labubu dress", "white dress"])
    assert numbers.tolist() == [300, 301]
    expected = kae.alphabet.tokens(kae.codes.encode(["white dress"] * 2))
    expected[0, position] = kae.alphabet.first[position] + code
    np.testing.assert_array_equal(editor.index.ids[-2:], expected)
    assert editor.add(["red dress"]).tolist() == [302]
    editor.edit("dimoo", "brand", [300])  # a new product can be bound to a further word
    assert editor.index.ids[-1, position] == page.token_of(editor, "labubu")[1]
    assert editor.index.owners[-1] == 300


def test_a_product_may_have_two_bound_words(page, kae, editor):
    one, two = (
        page.position_of("colour", editor.original.words.groups),
        page.position_of("brand", editor.original.words.groups),
    )
    editor.edit("labubu", "colour", [7])
    editor.edit("dimoo", "brand", [7])
    (number,) = editor.add(["labubu dimoo dress"])
    own = editor.index.ids[editor.index.owners == 7]
    plain = kae.alphabet.tokens(kae.codes.items[[7]])[0]
    assert own[:, one].tolist() == [plain[one], page.token_of(editor, "labubu")[1], plain[one]]
    assert own[:, two].tolist() == [plain[two], plain[two], page.token_of(editor, "dimoo")[1]]
    both = editor.index.ids[editor.index.owners == number]
    assert both[0, [one, two]].tolist() == [
        page.token_of(editor, "labubu")[1],
        page.token_of(editor, "dimoo")[1],
    ]
    page.unbind(editor, "labubu")
    assert (editor.index.owners == 7).sum() == 2
    (rest,) = editor.index.ids[editor.index.owners == number]
    assert rest[one] == kae.alphabet.first[one]
    assert rest[two] == page.token_of(editor, "dimoo")[1]


def test_unbinding_keeps_a_product_that_was_added_with_the_word(page, kae, model, editor):
    position, _ = bind(editor, "labubu", "colour", [5])
    (number,) = editor.add(["labubu dress"])
    editor.edit("dimoo", "category", [number])
    token = page.token_of(editor, "labubu")[1]
    page.unbind(editor, "labubu")
    assert not (editor.index.ids[:, position] == token).any()
    own = editor.index.ids[editor.index.owners == number]
    assert own.shape == (2, 6)  # its own identifier, and that with dimoo
    assert (own[:, 0] == page.token_of(editor, "dimoo")[1]).tolist() == [False, True]
    assert (own[:, position] == kae.alphabet.first[position]).all()
    np.testing.assert_array_equal(editor.identifier[number], kae.ids(["labubu dress"])[0])
    assert (editor.index.owners == 5).sum() == 1
    lists = page.products(editor.index, everything(page, model, kae, editor.index, ["dress"]), 400)
    assert number in lists[0]


def test_a_product_without_any_word_can_be_found(page, kae, model, editor):
    (number,) = editor.add(["qqq zzz"])
    np.testing.assert_array_equal(editor.identifier[number], kae.alphabet.first)
    lists = page.products(editor.index, everything(page, model, kae, editor.index, ["zzz"]), 400)
    assert number in lists[0]


def test_edits_are_saved_and_read_back(page, kae, model, editor, tmp_path):
    editor.edit("labubu", "colour", [3, 1, 4])
    editor.edit("dimoo", 1)
    (number,) = editor.add(["dimoo labubu dress"])
    path = tmp_path / "edits.npz"
    page.save_edits(editor, path)
    read = page.load_edits(path, kae, page.settings.per_id)
    assert read.bound == editor.bound
    np.testing.assert_array_equal(read.index.ids, editor.index.ids)
    np.testing.assert_array_equal(read.index.owners, editor.index.owners)
    texts = ["labubu white dress", "dimoo", *page.clicks.titles[:20]]
    np.testing.assert_array_equal(
        read.scheme.codes.encode(texts), editor.scheme.codes.encode(texts)
    )
    one, other = (
        page.products(made.index, everything(page, model, made.scheme, made.index, ["labubu"]), 50)
        for made in (read, editor)
    )
    np.testing.assert_array_equal(one, other)
    assert bind(read, "third", 1) == bind(editor, "third", 1)
    for made in (read, editor):  # goes on where the other stopped
        assert made.add(["white dress"]).tolist() == [number + 1]
        page.unbind(made, "labubu")
    np.testing.assert_array_equal(read.index.ids, editor.index.ids)
    np.testing.assert_array_equal(read.identifier[number], editor.identifier[number])


# -- the test of edits ---------------------------------------------------------------------------


def test_trends_are_new_words_for_products_of_the_less_clicked_half(page, kae):
    trends = page.make_trends(page.shop, kae.codes, 0)
    texts = page.clicks.titles + page.clicks.train_queries
    known = {word for text in texts for word in words(text)}
    assert len({trend.word for trend in trends} - known) == 60
    assert [trend.position for trend in trends] == [p for p in range(6) for _ in range(10)]
    counts = np.bincount(page.clicks.train_rows, minlength=300)
    leaf, groups = np.array(page.shop.leaf), kae.codes.words.groups
    for number, trend in enumerate(trends):
        bare, with_category, with_attribute = trend.queries
        assert bare == trend.word
        assert with_category.split(" ", 1)[0] == with_attribute.split(" ")[-1] == trend.word
        chosen = with_category.split(" ", 1)[1]
        assert bool(trend.texts) == (number % 2 == 0) == (len(trend.items) == 0)
        for text in trend.texts:
            assert trend.word in text.split()
            found = kae.codes.words.matcher(text.replace(trend.word, ""))
            assert not any(page.shop.dictionary[w] in groups[trend.position] for w in found)
        if not trend.texts:
            assert len(set(trend.items.tolist())) == page.settings.trend_items
            assert set(leaf[trend.items]) == {chosen}
            assert counts[trend.items].max() <= np.median(counts[leaf == chosen])
    assert [t.word for t in page.make_trends(page.shop, kae.codes, 0)] == [t.word for t in trends]
    others = page.make_trends(page.shop, kae.codes, 1)
    assert [t.queries for t in others] != [t.queries for t in trends]


def test_edits_in_front_all_take_the_first_position(page, kae):
    scheme, table, targets = page.edited(kae, True)
    slots = page.edited(kae, False)[0].codes.slots
    assert [slots[t.word][0] for t in page.trends] == [t.position for t in page.trends]
    for trend, wanted in zip(page.trends, targets, strict=True):
        position, code = scheme.codes.slots[trend.word]
        assert position == 0
        listed = table.owners[table.ids[:, 0] == kae.alphabet.first[0] + code]
        assert set(listed.tolist()) == set(wanted.tolist())


def test_each_gets_an_identifier_of_its_own_with_the_least_ranks_in_all(page):
    a, b, c = [1, 1], [2, 2], [3, 3]
    tokens = np.array([[a, b, c], [a, c, b], [b, a, c]])
    assert page.each_its_own(tokens).tolist() == [a, c, b]
    assert page.each_its_own(np.array([[a, b], [b, a]])).tolist() == [a, b]
    # the first come would take a and leave the second a beam that it does not have
    assert page.each_its_own(np.array([[a, b], [a, a]])).tolist() == [b, a]


@pytest.mark.parametrize("how", ["quantiser", "model"])
def test_products_are_pinned_to_the_identifiers_of_their_queries(page, settings, monkeypatch, how):
    settings(beam_width=60, listed=5)
    scheme = page.make_scheme("rq_kmeans")
    model = page.new_model(scheme, page.encoder.word_vectors(), 0).eval()
    trends = page.make_trends(page.shop, page.make_scheme("kae").codes, 0, each=1)
    monkeypatch.setattr(page, "trends", trends)
    same, index, targets = page.pinned(scheme, model, how)
    assert same is scheme
    plain = page.catalogue_index(scheme)
    np.testing.assert_array_equal(index.ids[:300], plain.ids)
    fresh = sum(len(t.texts) for t in trends)
    assert len(index.ids) == 300 + fresh + 2 * sum(map(len, targets))
    asked = [query for trend in trends for query in trend.queries[:2]]
    if how == "quantiser":
        expected = scheme.ids(asked)
    else:
        sources = torch.from_numpy(scheme.requests(asked, page.no_past(scheme, len(asked))))
        beams = beam_search(model.model, sources, page.settings.beam_width, plain.trie)
        expected = page.each_its_own(beams.tokens)
        assert len(np.unique(expected, axis=0)) == len(expected)
        assert (plain.trie.find(expected) >= 0).all()
    pinned_at = index.ids[300 + fresh :], index.owners[300 + fresh :]
    both = zip(trends, targets, expected[::2], expected[1::2], strict=True)
    for trend, wanted, bare, with_category in both:
        if trend.texts:
            assert wanted.min() >= 300
            for number, text in zip(wanted, trend.texts, strict=True):
                (own,) = index.ids[300 : 300 + fresh][index.owners[300 : 300 + fresh] == number]
                np.testing.assert_array_equal(own, scheme.ids([text])[0])
        else:
            assert wanted.tolist() == trend.items.tolist()
        for number in wanted:
            here = {tuple(ids) for ids in pinned_at[0][pinned_at[1] == number].tolist()}
            assert {tuple(bare.tolist()), tuple(with_category.tolist())} <= here
    everyone = np.concatenate(targets)
    assert set(pinned_at[1].tolist()) == set(everyone.tolist())


def test_a_request_is_hit_by_any_product_of_its_word(page):
    ranked = np.array([[1, 2, 3], [2, 3, 9], [EMPTY] * 3, [7, 8, 1], [8, 1, 7], [1, 2, 3]])
    targets = [np.array([9, 3]), np.array([7])]
    assert page.hits_of(ranked, targets, 3).tolist() == [1, 1, 0, 1, 1, 0]
    assert page.hits_of(ranked, targets, 2).tolist() == [0, 1, 0, 1, 0, 0]


# -- the merged stage ----------------------------------------------------------------------------


def test_lists_are_fused_by_weighted_reciprocal_ranks(page):
    one = np.array([[4, 5, EMPTY], [EMPTY] * 3])
    two = np.array([[5, 6, 7], [EMPTY] * 3])
    # 5: 1/12 + 2/11; 6: 2/12; 7: 2/13; 4: 1/11
    assert page.fused([one, two], (1.0, 2.0), 5).tolist() == [[5, 6, 7, 4, EMPTY], [EMPTY] * 5]
    assert page.fused([one, two], (9.0, 1.0), 2).tolist() == [[5, 4], [EMPTY] * 2]
    assert page.fused([one[:1, ::-1]], (1.0,), 2).tolist() == [[5, 4]]  # EMPTY takes no rank
    tied = np.array([[9, 3]]), np.array([[3, 9]])
    assert page.fused(tied, (1.0, 1.0), 2).tolist() == [[3, 9]]


def test_clicks_of_the_same_query_come_before_those_beside_it(page, monkeypatch):
    clicks = [("red", 3), ("red", 3), ("red", 1), *[("crimson", 3)] * 2, *[("crimson", 0)] * 9]
    clicks += [("blue", 2)]
    shop = small_shop(page, list("abcde"), {"red": "colour"}, clicks)
    monkeypatch.setattr(page, "clicks", shop.clicks)
    found = page.together(["red", "unknown", "blue", "crimson"], most=4)
    assert found[0].tolist() == [3, 1, 0, EMPTY]  # 0 is clicked for crimson, which shares 3
    assert found[1].tolist() == [EMPTY] * 4
    assert found[2].tolist() == [2, EMPTY, EMPTY, EMPTY]
    assert found[3].tolist() == [0, 3, 1, EMPTY]


def test_keywords_may_include_the_queries_that_were_clicked(page, settings, monkeypatch):
    settings(k=3)
    shop = small_shop(page, ["a lamp", "a cup", "hat"], {"cup": "x"}, [("glim", 1), ("lamp", 0)])
    monkeypatch.setattr(page, "clicks", shop.clicks)
    assert page.keyword_search(["glim", "hat"], False).tolist() == [[EMPTY] * 3, [2, EMPTY, EMPTY]]
    assert page.keyword_search(["glim"], True).tolist() == [[1, EMPTY, EMPTY]]


# -- learning ------------------------------------------------------------------------------------


def test_a_model_learns_and_finds_a_word_that_it_was_never_trained_on(page, settings, monkeypatch):
    """Eight colours and eight things; a ninth colour is bound after training, and asked for."""
    settings(
        positions=2, reserved=(6, 6), dense=17, light=17, history=0, steps=(0, 0, 300, 300),
        batch_size=32, warmup_steps=10, routing=0.3, beam_width=20,
    )  # fmt: skip
    colours = ["red", "blue", "green", "white", "black", "pink", "grey", "gold"]
    things = ["lamp", "cup", "hat", "shoe", "desk", "coat", "fork", "bed"]
    titles = [f"{colour} {thing}" for colour in colours for thing in things]
    dictionary = dict.fromkeys(colours, "colour") | dict.fromkeys(things, "thing")
    clicks = [(title, row) for row, title in enumerate(titles)] * 3
    clicks += [(title.split()[n], row) for row, title in enumerate(titles) for n in (0, 1)]
    shop = small_shop(page, titles, dictionary, clicks)
    monkeypatch.setattr(page, "shop", shop)
    monkeypatch.setattr(page, "clicks", shop.clicks)
    vocabulary = Vocabulary.build(titles, pieces=64)
    draw = np.random.default_rng(0)
    known = draw.normal(size=(len(vocabulary), page.settings.width)).astype(np.float32)
    known[: END + 1] = 0

    def vectors_of(texts):
        return np.stack([known[vocabulary.encode([text], 1)[0, 0]] for text in texts])

    codes = page.keyword_codes(shop, vectors_of, "requests")
    alphabet = page.Alphabet(len(vocabulary), marks_of(page), codes.sizes)
    scheme = page.Scheme("kae", codes, alphabet, vocabulary.encode)
    model = page.new_model(scheme, known, 0)
    tasks = page.examples(scheme, shop)
    tasks["route"] = page.rehearsals(scheme, shop, 0, 600)
    losses = {}
    for stage in ("S2", "S3"):
        losses[stage] = page.train_stage(model, stage, tasks, 1, 5e-3).column("loss")[1]
        assert len(losses[stage]) == 300
    model.eval()
    assert losses["S2"][-20:].mean() < 0.6 * losses["S2"][:5].mean()
    assert losses["S3"][-20:].mean() < 0.8
    editor = page.Editor(scheme, page.catalogue_index(scheme))
    before = page.weights_hash(model)
    (number,) = editor.add(["plain lamp"])
    editor.edit("labubu", "colour", [5, 14])
    (new,) = editor.add(["labubu desk"])
    queries = ["labubu", "labubu desk", "gold fork"]
    found = editor.index.search(model, editor.scheme.requests(queries), 3)
    assert set(found[0].tolist()) == {5, 14, new}
    assert found[1, 0] == new
    assert titles[found[2, 0]] == "gold fork"
    assert number not in found
    assert page.weights_hash(model) == before
