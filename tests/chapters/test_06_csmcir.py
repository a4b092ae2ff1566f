"""Chapter 6: captions, towers, the contrast and the bank by hand, recall, clouds, bad input."""

from __future__ import annotations

import ast
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from minisearch import chapters
from minisearch.errors import InputError
from minisearch.worlds.icon_edits import EditDials, IconEdits, Shown

CHAPTER = "06_csmcir"
DIALS = EditDials(
    families=12, dev_families=4, test_families=10, others=20, triplets=120, queries=40,
    dev_queries=12,
)  # fmt: skip
QUERIES = ("joint", "prompt", "image", "text", "sum", "concat")


@pytest.fixture(scope="module")
def page():
    """The chapter as it stands before training, at smoke, in a small world."""
    chapter = chapters.load(CHAPTER)
    plans = [
        node
        for node in ast.parse(Path(chapter.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PLANS"
    ]
    world = IconEdits(0, DIALS)
    names = list(dict.fromkeys(n for found in world.sets.values() for n in found.gallery))
    with pytest.MonkeyPatch.context() as patch:
        values = {
            "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "noise": 0.1,
            "data": "", "category": "dress", "protocol": "original",
            "settings": chapter.CirSettings.of("smoke"), "sets": world.sets, "shown": world.shown,
            "every_name": names, "PLANS": None, "record": None,
        }  # fmt: skip
        for name, value in values.items():
            patch.setattr(chapter, name, value, raising=False)
        # A plain table but for its calls, because of which `load` leaves it out.
        exec(compile(ast.Module(plans, []), CHAPTER, "exec"), vars(chapter))
        captions = {level: chapter.captions_of(names, level) for level in chapter.LEVELS}
        eye, width = chapter.frozen_eye()
        pixels = np.stack([chapter.fitted(world.open(n), 32)[0] for n in names])
        patches = chapter.in_parts(lambda x: eye(x).half(), torch.from_numpy(pixels))
        texts = [t.text for t in world.sets["train"].triplets] + list(captions["chain"].values())
        count, encode = chapter.text_reader(texts)
        ids = {level: encode([captions[level][n] for n in names]) for level in chapter.LEVELS}
        ids["wrong"] = ids["chain"].roll(1, 0)
        album = chapter.Album({n: i for i, n in enumerate(names)}, patches, ids)
        rows = {k: chapter.queries_of(v, album.row, encode) for k, v in world.sets.items()}
        values = {
            "captions": captions, "eye": eye, "patch_width": width, "album": album,
            "vocabulary_size": count, "encode": encode, "sets_of_rows": rows,
        }  # fmt: skip
        for name, value in values.items():
            patch.setattr(chapter, name, value, raising=False)
        yield chapter


def made(page, plan, seed=1):
    torch.manual_seed(seed)
    return page.Composed(plan, page.sets_of_rows["train"], 3).eval()


def unit(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=draw), dim=-1)


# -- captions ----------------------------------------------------------------------------------


def test_a_caption_without_noise_says_what_its_level_knows(page):
    real = Shown("address-book", "green", "plus")
    seeds = range(40)
    plain = {page.caption("generic", real, 0.0, s)["Final_Caption"] for s in seeds}
    flat = {page.caption("flat", real, 0.0, s)["Final_Caption"] for s in seeds}
    chain = {page.caption("chain", real, 0.0, s)["Final_Caption"] for s in seeds}
    assert plain == {"a small icon"}
    assert flat == {"a green address book", "a green object"}
    assert chain == {
        f"a green {thing} with {mark} in the corner"
        for thing in ("address book", "object") for mark in page.SEEN_AS["plus"]
    }  # fmt: skip


def test_a_chain_is_json_with_its_thoughts_and_at_most_thirty_words(page):
    for real in page.shown.values():
        reply = json.loads(json.dumps(page.caption("chain", real, 0.1, 0)))
        assert list(reply) == ["Global", "Parts", "Discriminative", "Final_Caption"]
        assert len(reply["Final_Caption"].split()) <= 30


def test_noise_is_as_frequent_as_it_says_and_never_right_by_accident(page):
    real = Shown("cup", "red", "minus")
    draws = [page.perceived(real, 0.3, np.random.default_rng(n)) for n in range(2000)]
    wrong = [np.mean([getattr(d, part) != getattr(real, part) for d in draws])
             for part in ("tint", "badge")]  # fmt: skip
    assert wrong == pytest.approx([0.3, 0.3], abs=0.04)
    unnamed = np.mean([d.thing == "object" for d in draws])
    assert unnamed == pytest.approx(page.settings.unnamed, abs=0.04)
    certain = page.perceived(real, 1.0, np.random.default_rng(0))
    assert certain.tint != "red"
    assert certain.badge != "minus"


def test_a_caption_knows_nothing_of_queries(page):
    assert set(inspect.signature(page.caption).parameters) == {"level", "real", "noise", "seed"}
    one = page.caption("chain", Shown("cup", "red", ""), 0.1, 5)
    assert one == page.caption("chain", Shown("cup", "red", ""), 0.1, 5)
    with pytest.raises(InputError, match="did you mean 'chain'"):
        page.caption("chains", Shown("cup", "red", ""), 0.1, 5)


def test_bm25_ranks_by_shared_words_without_the_reference(page, monkeypatch):
    found = page.sets["test"]
    triplet = next(t for t in found.triplets if t.kind == "colour")
    texts = dict.fromkeys(found.gallery, "nothing")
    texts[triplet.target] = triplet.text
    texts[triplet.reference] = triplet.text
    monkeypatch.setitem(page.captions, "chain", texts)
    one = type(found)(found.gallery, [triplet], found.open)
    assert page.bm25_ranks(one).tolist() == [1]


# -- towers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES)
def test_queries_have_length_one_and_depend_on_what_they_read(page, query):
    model, queries = made(page, page.Plan(query, bank="")), page.sets_of_rows["test"]
    with torch.no_grad():
        rows = torch.arange(6)
        own = page.asked_of(model.towers, queries, rows)[0]
        patches = page.album.patches[queries.reference[rows]].float()
        moved = page.ask(model.towers, patches.roll(1, 0), queries.texts[rows])[0]
        said = page.ask(model.towers, patches, queries.texts[rows].roll(1, 0))[0]
    torch.testing.assert_close(own.norm(dim=1), torch.ones(6))
    assert ((own - moved).abs().max() > 1e-4) == (query != "text")
    assert ((own - said).abs().max() > 1e-4) == (query != "image")


def test_the_sum_is_the_sum(page):
    queries, rows = page.sets_of_rows["test"], torch.arange(3)
    vectors = {}
    with torch.no_grad():
        for query in ("image", "text", "sum"):
            model = made(page, page.Plan(query, "", bank=""))
            vectors[query] = page.asked_of(model.towers, queries, rows)[0]
    both = F.normalize(vectors["image"] + vectors["text"], dim=1)
    torch.testing.assert_close(vectors["sum"], both)


def test_one_tower_is_one_and_two_are_two(page):
    one, two = page.Towers(page.Plan()), page.Towers(page.Plan(shared=False))
    assert one.asking is one.offering
    assert two.asking is not two.offering
    assert two.asking.embeddings is two.offering.embeddings
    assert page.size_of(two) == pytest.approx(page.size_of(one), rel=0.01)
    assert page.size_of(two.asking) < page.size_of(one.asking)


def test_a_gallery_picture_has_a_vector_a_token_and_captions_count(page):
    towers, rows = made(page, page.Plan()).towers, torch.arange(4)
    with torch.no_grad():
        vectors = {level: page.offered(towers, rows, level) for level in ("", "chain", "wrong")}
        alone = page.offered(page.Towers(page.Plan("words")), rows, "chain")
    assert vectors[""].shape == (4, page.settings.tokens, page.settings.dimension)
    assert alone.shape == (4, 1, page.settings.dimension)
    torch.testing.assert_close(vectors["chain"].norm(dim=2), torch.ones(4, page.settings.tokens))
    assert (vectors[""] - vectors["chain"]).abs().max() > 1e-4
    assert (vectors["wrong"] - vectors["chain"]).abs().max() > 1e-4


def test_two_texts_become_one_behind_one_start_mark(page):
    first = torch.tensor([[1, 5, 6, 0], [1, 7, 0, 0]])
    second = torch.tensor([[1, 8, 0, 0], [1, 9, 4, 3]])
    found = page.joined(first, second)
    assert found.tolist() == [[1, 5, 6, 8, 0, 0, 0], [1, 7, 9, 4, 3, 0, 0]]
    long = torch.ones(1, page.settings.longest, dtype=torch.long)
    assert page.joined(long, second[:1]).shape == long.shape


def test_a_reader_sees_no_picture_and_reads_the_reference_s_caption(page, monkeypatch):
    towers = made(page, page.Plan("words", bank="")).towers
    queries, rows = page.sets_of_rows["test"], torch.arange(4)
    with torch.no_grad():
        own = page.asked_of(towers, queries, rows)[0], page.offered(towers, rows, "chain")
        ids = page.album.captions
        other = {**ids, "chain": ids["chain"].roll(1, 0)}
        changed = page.Album(page.album.row, page.album.patches.flip(0), ids)
        monkeypatch.setattr(page, "album", changed)
        same = page.asked_of(towers, queries, rows)[0], page.offered(towers, rows, "chain")
        moved = page.Album(page.album.row, page.album.patches, other)
        monkeypatch.setattr(page, "album", moved)
        read = page.asked_of(towers, queries, rows)[0]
    for before, after in zip(own, same, strict=True):
        torch.testing.assert_close(before, after)
    assert (read - own[0]).abs().max() > 1e-4


def test_seldom_words_are_read_by_triples_that_training_knows(page):
    texts = ["make it red"] * 1000 + ["a red cup"] * 3  # thrice is seldom here
    _, encode = page.text_reader(texts)
    frequent, seldom = encode(["make it red", "a red cup"])
    assert (frequent != 0).sum() == 4  # a start mark and an id a word
    assert (seldom != 0).sum() > 4 + 1
    again = encode(["a red cup"])[0]
    assert again.tolist() == seldom.tolist()
    new = encode(["a red cupcap"])[0]
    assert set(new.tolist()) & (set(seldom.tolist()) - set(encode(["a red"])[0].tolist()))


def test_the_asymmetric_query_takes_two_passes(page):
    towers, queries = made(page, page.Plan("prompt", "", bank="")).towers, page.sets_of_rows["test"]
    texts, former = queries.texts[:2], towers.asking
    patches = page.album.patches[queries.reference[:2]].float()
    with torch.no_grad():
        found, fused = page.ask(towers, patches, texts)
        states = former(patches, texts)[0]
        torch.testing.assert_close(fused, states)
        second = former(None, texts, states)[1]
        torch.testing.assert_close(found, F.normalize(former.of_text(second[:, 0]), dim=1))


def test_a_score_is_the_best_of_the_vectors(page):
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[[0.5, 0.1], [0.2, 0.9]], [[-1.0, 0.0], [0.0, -1.0]]])
    expected = torch.tensor([[0.5, 0.0], [0.9, 0.0]])
    torch.testing.assert_close(page.scores(queries, vectors), expected)


def test_unknown_names_are_refused(page):
    with pytest.raises(InputError, match="did you mean 'joint'"):
        page.Towers(page.Plan("joined"))
    with pytest.raises(InputError, match="did you mean 'fifo'"):
        page.new_bank("fifa", 0)


# -- the contrast ------------------------------------------------------------------------------


def rows_of(logits):
    """The contrast of each row, its own target on the diagonal."""
    return logits.logsumexp(1) - logits.diagonal()


def test_the_contrast_by_hand(page):
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    logits = page.contrast(queries, vectors, torch.tensor([3, 4]), 0.5)
    first = math.log(1 + math.exp((0 - 1) / 0.5))
    second = math.log(1 + math.exp((0.6 - 0.8) / 0.5))
    assert page.own_first(logits).item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_an_entry_of_the_bank_counts_its_weight_times_its_exponential(page):
    queries, vectors = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.8, 0.6]]])
    bank = (
        torch.tensor([[[0.6, 0.8]], [[0.0, 1.0]]]),
        torch.tensor([8, 9]),
        torch.tensor([0.5, 0.25]),
    )
    targets = torch.tensor([7])
    logits = page.contrast(queries, vectors, targets, 0.1)
    logits = torch.cat([logits, page.beside(queries, targets, 0.1, bank)], 1)
    own, first, second = (math.exp(s / 0.1) for s in (0.8, 0.6, 0.0))
    expected = -math.log(own / (own + 0.5 * first + 0.25 * second))
    assert page.own_first(logits).item() == pytest.approx(expected, rel=1e-5)


def test_the_own_target_is_never_a_wrong_answer(page):
    queries, vectors = unit(4, 3), unit(4, 2, 3, seed=1)
    same = torch.tensor([5, 6, 5, 7])
    found = rows_of(page.contrast(queries, vectors, same, 0.2))
    part = [0, 1, 3]
    without = rows_of(page.contrast(queries[part], vectors[part], same[part], 0.2))
    torch.testing.assert_close(found[0], without[0])
    bank = (vectors[:1], torch.tensor([5]), torch.ones(1))
    beside = page.beside(queries, same, 0.2, bank)[:, 0]
    assert beside.isinf().tolist() == [True, False, True, False]


def test_the_contrast_within_a_bank_by_hand(page):
    bank = (
        torch.tensor([[[0.0, 1.0]], [[0.8, 0.6]], [[0.6, 0.8]], [[1.0, 0.0]]]),
        torch.tensor([7, 7, 8, 9]),  # of 7 the second entry is the newer one
        torch.tensor([0.1, 0.2, 0.5, 0.25]),
    )
    queries, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 3])
    found = page.recalled(queries, targets, 0.5, bank)
    right, first, second = (math.exp(s / 0.5) for s in (0.8, 0.6, 1.0))
    expected = -math.log(right / (right + 0.5 * first + 0.25 * second)) / 2  # of two queries
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert page.recalled(queries[1:], targets[1:], 0.5, bank).item() == 0


def test_moving_the_bank_away_as_a_whole_gains_nothing(page):
    queries = torch.tensor([[1.0, 0.0, 0.0]]).requires_grad_()
    targets, weights = torch.tensor([7]), torch.ones(3)
    vectors = torch.tensor([[[0.2, 0.1, 0.0]], [[0.1, 0.2, 0.0]], [[0.3, 0.0, 0.0]]])
    bank = vectors, torch.tensor([7, 8, 9]), weights
    near = page.recalled(queries, targets, 0.1, bank)
    moved = vectors - torch.tensor([0.5, 0.0, 0.0])
    far = page.recalled(queries, targets, 0.1, (moved, *bank[1:]))
    torch.testing.assert_close(near, far)
    one_sum = [page.beside(queries, targets, 0.1, (v, *bank[1:])) for v in (vectors, moved)]
    assert (one_sum[0][:, 1:] > one_sum[1][:, 1:] + 1).all()


# -- the bank ----------------------------------------------------------------------------------


def test_entropy_by_hand(page):
    table = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -200, -200], [300.0, 0, 0, 0]])
    torch.testing.assert_close(page.entropies(table), torch.tensor([1.0, 0.5, 0.0]))
    out = page.entropies(torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]]))
    assert out.item() == pytest.approx(0.5)
    three = page.entropies(torch.tensor([[math.log(3.0), 0.0]]))
    assert three.item() == pytest.approx(0.8112781, abs=1e-5)


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=5))
@trials(max_examples=30, deadline=None)
def test_entropy_lies_between_nought_and_one(page, rows):
    found = page.entropies(torch.tensor(rows))
    assert ((found >= -1e-6) & (found <= 1 + 1e-6)).all()


def test_a_repeated_answer_is_no_doubt(page):
    asked, found = torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 0, 1]][:, None]
    targets = torch.tensor([7, 7, 8])
    model = SimpleNamespace(
        bank=bank(page, "fifo"), temperature=0.01, global_step=3, total_steps=10,
        optimisation=page.Optimisation(1e-3),
    )  # fmt: skip
    page.remember(model, asked, found, targets)
    assert model.bank.pictures.tolist() == [7, 7, 8]
    torch.testing.assert_close(model.bank.entropy, torch.zeros(3))


def bank(page, name, capacity=4, share=0.5):
    return page.Bank(page.Policy(*page.POLICIES[name]), capacity, share, 0)


def feed(page, own, pictures, entropy, step, fade=10.0):
    vectors = torch.tensor(pictures, dtype=torch.float)[:, None, None].expand(-1, 2, 2)
    page.admit(own, vectors, torch.tensor(pictures), torch.tensor(entropy), step, fade)


@pytest.mark.parametrize(
    ("name", "expected"), [("full", {1, 3}), ("low", {0, 2}), ("fifo", {0, 1, 2, 3})]
)
def test_what_is_admitted(page, name, expected):
    own = bank(page, name)
    feed(page, own, [0, 1, 2, 3], [0.1, 0.9, 0.2, 0.8], 0)
    assert set(own.pictures.tolist()) == expected
    assert own.birth.tolist() == [0] * len(expected)
    assert (own.vectors[:, 0, 0] == own.pictures).all()  # columns stay together


def test_random_admission_takes_the_share_and_repeats_with_its_seed(page):
    one, again = bank(page, "random"), bank(page, "random")
    for own in (one, again):
        feed(page, own, list(range(4)), [0.1, 0.9, 0.2, 0.8], 0)
    assert len(one) == 2
    assert one.pictures.tolist() == again.pictures.tolist()


def test_a_full_bank_drops_what_is_worth_least(page):
    own = bank(page, "full", capacity=2, share=1.0)
    feed(page, own, [1, 2], [0.5, 0.9], 0)
    feed(page, own, [3], [0.6], 1, fade=1.0)  # of age 1 an entry counts a third: .18, .33, .60
    assert sorted(own.pictures.tolist()) == [2, 3]
    still = bank(page, "no_ageing", capacity=2, share=1.0)
    feed(page, still, [1, 2], [0.5, 0.9], 0)
    feed(page, still, [3], [0.4], 1, fade=1.0)  # without ageing entropy alone counts
    assert sorted(still.pictures.tolist()) == [1, 2]


def test_fifo_drops_the_oldest(page):
    own = bank(page, "fifo", capacity=3)
    for step in range(3):
        feed(page, own, [10 * step, 10 * step + 1], [0.9 - 0.3 * step] * 2, step)
    assert own.birth.tolist() == [1, 2, 2]
    assert own.weights(50, 1.0).tolist() == [1.0] * 3
    own.expire(99, 1)
    assert len(own) == 3  # a first-in-first-out bank knows no age


def test_ageing_weighs_and_expires(page):
    own = bank(page, "full", capacity=8, share=1.0)
    for step in (0, 2):
        feed(page, own, [step, step + 1], [0.5, 0.5], step)
    expected = torch.tensor([math.exp(-0.4)] * 2 + [math.exp(-0.2)] * 2)
    torch.testing.assert_close(own.weights(4, 10.0), expected)
    own.expire(4, 4)
    assert len(own) == 4  # of the greatest age itself, they are still there
    own.expire(5, 4)
    assert own.pictures.tolist() == [2, 3]


def test_entries_carry_no_gradient(page):
    own, vectors = bank(page, "full"), unit(2, 2, 2).requires_grad_()
    page.admit(own, vectors, torch.tensor([1, 2]), torch.tensor([0.1, 0.9]), 0, 1.0)
    assert not own.vectors.requires_grad


def test_a_bank_without_room_is_refused(page):
    for capacity, share in ((0, 0.5), (8, 0.0), (8, 1.5)):
        with pytest.raises(InputError, match="Bank"):
            page.Bank(page.Policy(), capacity, share, 0)


def test_the_horizon_grows_as_the_rate_falls(page, monkeypatch):
    model = made(page, page.Plan())
    model.optimisation, model.total_steps = page.Optimisation(1.0, warmup_steps=2), 12
    found = {}
    for step in (0, 2, 7, 11):
        at_step(model, step, monkeypatch)
        found[step] = page.horizon(model)[0] / page.settings.oldest
    assert found[0] == found[2] == 1
    assert found[7] == pytest.approx(2)
    assert found[11] == page.settings.stretch


# -- training ----------------------------------------------------------------------------------


def at_step(model, step, monkeypatch):
    monkeypatch.setattr(type(model), "global_step", property(lambda self: step))


def test_the_bank_waits_for_its_first_step(page, monkeypatch):
    model, plain = made(page, page.Plan()), made(page, page.Plan(bank=""))
    assert page.settings.starts == 1
    for step in (0, 1):
        at_step(model, step, monkeypatch)
        batch = {"row": torch.arange(8)}
        torch.testing.assert_close(model.loss(batch)["loss"], plain.loss(batch)["loss"])
        assert len(model.bank) == 4 * step  # from then on it takes in half of a batch


@pytest.mark.parametrize("one_sum", [False, True])
def test_a_batch_meets_the_bank_of_earlier_ones(page, monkeypatch, one_sum):
    model = made(page, page.Plan(bank="fifo", one_sum=one_sum))
    plain = made(page, page.Plan(bank=""))
    at_step(model, 1, monkeypatch)
    first, second = {"row": torch.arange(8)}, {"row": torch.arange(4, 12)}
    alone = plain.loss(second)["contrast"]
    model.loss(first)
    values = model.loss(second)
    assert set(values) == {"loss", "contrast"} | (set() if one_sum else {"bank"})
    assert (values["contrast"] > alone) == one_sum
    assert values["loss"] > alone
    total = values["contrast"] + values.get("bank", 0)
    torch.testing.assert_close(values["loss"], total)


def test_the_asymmetric_arm_has_three_losses_and_the_plain_one(page):
    batch = {"row": torch.arange(8)}
    three = made(page, page.PLANS["asymmetric"]).loss(batch)
    assert set(three) == {"loss", "contrast", "relative", "align"}
    weights = page.settings.relative, page.settings.align
    total = three["contrast"] + weights[0] * three["relative"] + weights[1] * three["align"]
    torch.testing.assert_close(three["loss"], total)
    assert set(made(page, page.PLANS["asymmetric_plain"]).loss(batch)) == {"loss", "contrast"}


def test_training_lowers_the_loss(page):
    model = made(page, page.Plan(bank="")).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model.loss({"row": torch.arange(0, 120, 8)})["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_fresh_entry_is_not_stale_and_a_moved_tower_makes_it_so(page, monkeypatch):
    model = made(page, page.Plan())
    at_step(model, 1, monkeypatch)
    with torch.no_grad():
        model.loss({"row": torch.arange(8)})
        assert page.staleness(model)[1].abs().max() < 1e-5
        model.towers.asking.of_tokens.weight.add_(
            torch.randn_like(model.towers.asking.of_tokens.weight)
        )
        ages, distances = page.staleness(model)
    assert (distances > 1e-3).all()
    assert ages.tolist() == [0] * 4


def test_the_temperature_stays_in_its_bounds(page):
    model = made(page, page.Plan())
    assert model.temperature.item() == pytest.approx(page.settings.temperature)
    with torch.no_grad():
        model.log_temperature.fill_(9.0)
    assert model.temperature.item() == pytest.approx(0.5)


def test_arms_differ_in_what_they_are_named_after(page):
    plans = page.PLANS
    full = vars(plans["csmcir"])
    for arm, part in (("no_bank", "bank"), ("no_captions", "caption"), ("not_shared", "shared")):
        own = vars(plans[arm])
        assert {name for name in full if own[name] != full[name]} == {part}
    cube = ("csmcir", "no_bank", "no_captions", "not_shared", "only_captions", "only_shared",
            "only_bank", "none")  # fmt: skip
    states = {(bool(plans[a].caption), plans[a].shared, bool(plans[a].bank)) for a in cube}
    assert len(states) == 8
    assert {n for n, v in vars(plans["one_sum"]).items() if v != full[n]} == {"one_sum"}
    assert set(page.POLICIES) == {"full", "low", "random", "ageing", "no_ageing", "fifo"}


# -- measures ----------------------------------------------------------------------------------


def test_ranks_with_and_without_the_reference(page):
    table = torch.tensor([[0.9, 0.8, 0.7, 0.8], [0.1, 0.5, 0.5, 0.5]])
    gallery = torch.tensor([10, 11, 12, 13])
    wanted = torch.tensor([12, 12])
    assert page.ranks_of(table, gallery, wanted).tolist() == [4, 2]
    reference = torch.tensor([10, 11])
    assert page.ranks_of(table, gallery, wanted, reference).tolist() == [3, 1]
    with pytest.raises(InputError, match="query 1: found no target"):
        page.ranks_of(table, gallery, torch.tensor([12, 99]))


def test_recall_and_subset_recall_by_hand(page):
    gallery = torch.tensor([4, 7, 2, 9])
    queries = page.Queries(
        reference=torch.tensor([7]), texts=torch.ones(1, 2, dtype=torch.long),
        target=torch.tensor([2]), gallery=gallery, subset=torch.tensor([[7, 2, 9]]), kinds=[""],
    )  # fmt: skip
    found = page.recalls(torch.tensor([[0.9, 0.8, 0.5, 0.1]]), queries)
    assert (found["r@1"], found["r@5"]) == (0, 1)  # second without the reference
    assert (found["kept@1"], found["kept@5"]) == (0, 1)
    assert found["subset@1"] == 1  # 4 is not in the subset, and 7 is the reference
    found = page.recalls(torch.tensor([[0.9, 0.8, 0.5, 0.6]]), queries)
    assert (found["subset@1"], found["subset@2"]) == (0, 1)


def test_silhouettes_are_those_of_scikit_learn(page):
    groups = [unit(7, 4, seed=1), unit(9, 4, seed=2), F.normalize(unit(5, 4, seed=3) + 1, dim=1)]
    labels = np.repeat([0, 1, 2], [7, 9, 5])
    expected = silhouette_samples(torch.cat(groups).numpy(), labels, metric="cosine")
    np.testing.assert_allclose(page.silhouettes(groups).numpy(), expected, atol=1e-5)


def test_clouds_apart_and_mixed(page):
    one, two = unit(200, 6, seed=1), unit(200, 6, seed=2)
    far = F.normalize(two + 3, dim=1)
    assert page.told_apart(one, two) < 0.65
    assert page.told_apart(one, far) > 0.85
    assert page.gap(one, two) < 0.3
    assert page.gap(one, far) > 0.8
    mixed, _ = page.geometry({"query": one, "target": two, "text": one.flip(0)})
    apart, sides = page.geometry({"query": one, "target": far, "text": one.flip(0)})
    assert mixed["silhouette"] < 0.05 < apart["silhouette"]
    assert sides.shape == (200,)


def test_centring_takes_both_means_away(page):
    found = page.Found(
        F.normalize(unit(50, 4) + 2, dim=1), F.normalize(unit(60, 3, 4, seed=1) - 2, dim=-1)
    )
    moved = found.centred()
    assert page.gap(found.asked, found.vectors[:, 0]) > 1
    assert page.gap(moved.asked, moved.vectors.flatten(0, 1)) < 0.3
    torch.testing.assert_close(moved.vectors.norm(dim=2), torch.ones(60, 3))
    apart = found.vectors + torch.eye(3, 4)  # each token in a cloud of its own
    apart = page.Found(found.asked, F.normalize(apart, dim=-1)).centred()
    assert apart.vectors.mean(0).abs().max() < 0.25


def test_a_probe_is_judged_on_rows_it_has_not_seen(page):
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 80, generator=draw), torch.arange(60) % 2
    fitted_on = torch.arange(60) < 30
    assert page.probe(features, labels, fitted_on) < 0.8
    features[:, 0] = labels * 8.0
    assert page.probe(features[:, :5], labels, fitted_on) > 0.9


def test_groups_are_of_the_same_queries(page):
    model, queries = made(page, page.Plan(bank="")), page.sets_of_rows["test"]
    found = page.passed(model, queries)
    groups = page.groups_of(model, queries, found)
    assert set(groups) == {"query", "target", "reference", "text"}
    assert {len(vectors) for vectors in groups.values()} == {len(queries)}
    with torch.no_grad():
        own = page.offered(model.towers, queries.target[:3], "chain").mean(1)
    torch.testing.assert_close(groups["target"][:3], F.normalize(own, dim=1), atol=1e-5, rtol=1e-4)


def test_steps_to_a_recall(page, monkeypatch):
    model = made(page, page.Plan())
    values = [0.1, 0.93, 0.95]  # .9 counts as reached
    model.history.rows = [{"step": 10.0 * n, "dev R@10": v} for n, v in enumerate(values, 1)]
    assert page.first_reached(model) == 20
    model.history.rows = model.history.rows[:1]
    never = page.settings.steps + page.settings.every
    assert page.first_reached(model) == never


def test_a_look_holds_the_answers_wherever_they_stand(page, monkeypatch):
    model, dev = made(page, page.Plan(bank="")), page.sets_of_rows["dev"]
    far = replace(dev, gallery=torch.cat([torch.arange(600) % len(page.every_name), dev.target]))
    monkeypatch.setitem(page.sets_of_rows, "dev", far)
    assert 0 <= page.looked(model)["dev R@10"] <= 1


def test_what_is_measured_of_a_query(page):
    queries = page.sets_of_rows["test"]
    model = made(page, page.PLANS["no_bank"])
    rows = page.measured(model, page.PLANS["no_bank"])
    assert {len(values) for values in rows.values()} == {len(queries)}
    assert (rows["lost@1"] == rows["r@1"] - rows["wrong@1"]).all()
    wrong = page.recalls(page.passed(model, queries, "wrong").table, queries)["r@1"]
    assert (rows["wrong@1"] == wrong).all()
    centred = page.recalls(page.passed(model, queries).centred().table, queries)["r@1"]
    assert (rows["centred@1"] == centred).all()
    assert (rows["laid@1"] == rows["r@1"]).all()
    plain = page.measured(made(page, page.PLANS["asymmetric"]), page.PLANS["asymmetric"])
    assert not plain["lost@1"].any()
    assert (plain["laid@1"] == plain["centred@1"]).all()


def test_training_reads_fashioniq_in_four_ways_and_testing_in_one(page, tmp_path):
    row = {"target": "B02", "candidate": "B01", "captions": ["is longer", "is red"]}
    for split in ("train", "val"):
        for folder, content in (("captions", [row]), ("image_splits", ["B01", "B02"])):
            name = {"captions": "cap", "image_splits": "split"}[folder]
            path = tmp_path / folder / f"{name}.dress.{split}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))
    found, shown = page.open_sets(0, str(tmp_path))
    texts = {split: [t.text for t in part.triplets] for split, part in found.items()}
    assert texts["train"] == [
        "Is longer and is red", "Is red and is longer", "Is longer", "Is red",
    ]  # fmt: skip
    assert texts["test"] == texts["dev"] == ["Is longer and is red"]
    assert shown == {}


def test_a_missing_folder_is_asked_for(page, monkeypatch):
    monkeypatch.setattr(page, "settings", page.CirSettings.of("small"))
    with pytest.raises(InputError, match="data: found nothing"):
        page.open_sets(0, "")


# -- exercises ---------------------------------------------------------------------------------


def unstable(scores, target):
    return 1 + int(np.flatnonzero(np.argsort(-scores) == target)[0])


def rank(scores, target):
    return 1 + int(np.flatnonzero(np.argsort(-scores, kind="stable") == target)[0])


def softmax(scores, temperature):
    logits = np.array(scores) / temperature
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def doubt_in_place(scores, temperature):
    for number, value in enumerate(scores):
        scores[number] = value / temperature
    shares = softmax(scores, 1.0)
    return float(-(shares * np.log(np.maximum(shares, 1e-300))).sum() / np.log(len(shares)))


def shift_in_place(gallery, a):
    gallery -= gallery.mean(0)
    return gallery @ a


def limited(entries, capacity):
    return (entries, "age") if entries < capacity else (capacity, "capacity")


WRONG = {
    "ch06-ranks": [
        lambda s, t, r: (1 + int((s > s[t]).sum()), 1 + int((s > s[t]).sum())),
        lambda s, t, r: (int((s >= s[t]).sum()) - int(s[r] >= s[t]), int((s >= s[t]).sum())),
        lambda s, t, r: (int((s > s[t]).sum()), 1 + int((s > s[t]).sum())),
        lambda s, t, r: (1 + int((np.delete(s, r) > s[t]).sum()), 1 + int((s > s[t]).sum())),
        lambda s, t, r: (unstable(np.where(np.arange(len(s)) == r, -np.inf, s), t), unstable(s, t)),
        lambda s, t, r: (rank(np.where(np.arange(len(s)) == r, -1.0, s), t), rank(s, t)),
    ],
    "ch06-weights": [
        lambda s, w, t: (s + w.log()) / t,
        lambda s, w, t: s / t + w,
        lambda s, w, t: s * w / t,
        lambda s, w, t: s / t + w.log().mean(),
        lambda s, w, t: s / t,
        lambda s, w, t: (w * (s / t).exp()).log(),
        lambda s, w, t: s / t + (w + 1e-6).log(),
        lambda s, w, t: s / t + w.clamp(min=0.2).log(),
    ],
    "ch06-doubt": [
        lambda s, t: 1 - np.ptp(s) / (np.ptp(s) + t),
        lambda s, t: 1.0,
        lambda s, t: float(len(set(s)) == 1),
        lambda s, t: doubt_in_place(s, t),
        lambda s, t: (1 - softmax(s, t).max()) * len(s) / (len(s) - 1),
        lambda s, t: float(-(softmax(s, t) * np.log(softmax(s, t))).sum() / np.log(len(s))),
    ],
    "ch06-shift": [
        lambda g, a: np.zeros(len(g)),
        lambda g, a: g @ a,
        lambda g, a: (g - g.mean(0)) @ a / np.linalg.norm(a),
        lambda g, a: (g - g.mean(0)).sum(1) * a.mean(),
        lambda g, a: np.array([1.0, -1.0]),
        lambda g, a: shift_in_place(g, a),
        lambda g, a: np.tile((g - g.mean(0)) @ a, (3, 1)),
    ],
    "ch06-full": [
        lambda n, s, c, o: (min(c, round(s * n) * o),
                            "capacity" if round(s * n) * o >= c else "age"),
        lambda n, s, c, o: (min(c, n * (o + 1)), "capacity" if n * (o + 1) >= c else "age"),
        lambda n, s, c, o: (c, "capacity"),
        lambda n, s, c, o: (min(c, round(s * n) * (o + 1)),
                            "age" if round(s * n) * (o + 1) <= c else "capacity"),
        lambda n, s, c, o: limited(int(s * n) * (o + 1), c),
        lambda n, s, c, o: limited(math.ceil(s * n) * (o + 1), c),
        lambda n, s, c, o: limited(round(s * n * (o + 1)), c),
        lambda n, s, c, o: limited(float(round(s * n) * (o + 1)), c),
    ],
}  # fmt: skip
RIGHT = {
    "ch06-ranks": "two_ranks", "ch06-weights": "weighed", "ch06-doubt": "doubt",
    "ch06-shift": "change", "ch06-full": "fullness",
}  # fmt: skip


@pytest.mark.parametrize("exercise", list(WRONG))
def test_exercises_take_the_right_answer_and_no_wrong_one(page, exercise):
    from minisearch.classroom import check

    assert check(exercise, getattr(page, RIGHT[exercise]))
    for number, wrong in enumerate(WRONG[exercise]):
        assert not check(exercise, wrong), f"wrong answer {number} passes"


def test_the_bug_of_the_exercise_is_one(page):
    from minisearch.classroom import check

    assert not check("ch06-weights", page.weighed_with_a_bug)
