"""Chapter 5: towers that see no box, losses by hand, batches, the simulated detector, measures."""

from __future__ import annotations

import ast
import inspect
import math
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from PIL import Image

from minisearch import chapters
from minisearch.errors import InputError
from minisearch.pictures import Box, CropQuery, Listing, PictureSet
from minisearch.records import Ragged
from minisearch.worlds.icon_sets import make_sets
from minisearch.worlds.icons import IconDials

CHAPTER = "05_tiger_fg"
DIALS = IconDials(glyphs=12, new_glyphs=4, queries=60)
FUSIONS = ("text", "image", "sum", "concat", "guided", "late", "pooling")
BLIND = ("image",)  # to the text


@pytest.fixture(scope="module")
def page():
    """The chapter as it stands after its teacher, at smoke, in a smaller shop."""
    chapter = chapters.load(CHAPTER)
    (plans,) = (
        node
        for node in ast.parse(Path(chapter.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PLANS"
    )
    with pytest.MonkeyPatch.context() as patch:
        names = {
            "profile": "smoke", "seed": 7, "world_seed": 0, "init_seed": 0, "data": "",
            "settings": chapter.PictureSettings.of("smoke"), "sets": make_sets(0, DIALS),
            "PLANS": None,
        }  # fmt: skip
        for name, value in names.items():
            patch.setattr(chapter, name, value, raising=False)
        # A plain table but for its calls, because of which `load` leaves it out.
        exec(compile(ast.Module([plans], []), CHAPTER, "exec"), vars(chapter))
        words, encode = chapter.text_ids([x.text for x in names["sets"]["train"].listings])
        shelves = {name: chapter.shelf_of(found, encode) for name, found in names["sets"].items()}
        names = {"words": words, "encode_texts": encode, "shelves": shelves}
        names |= {"train": shelves["train"], "tests": [name for name in shelves if name != "train"]}
        for name, value in names.items():
            patch.setattr(chapter, name, value, raising=False)
        teacher = chapter.new_eye().eval().requires_grad_(False)
        patch.setattr(chapter, "teacher", teacher, raising=False)
        patch.setattr(chapter, "seen", chapter.teach(chapter.train, teacher), raising=False)
        yield chapter


@pytest.fixture
def settings(page, monkeypatch):
    """A function that changes some of the chapter's settings."""

    def change(**values):
        monkeypatch.setattr(page, "settings", page.PictureSettings.of("smoke", **values))

    return change


@pytest.fixture(scope="module")
def towers(page):
    """Two towers of each fusion as they are before training, all losses, in evaluation mode."""
    made = {}
    for fusion in FUSIONS:
        torch.manual_seed(1)
        plan = page.Plan(fusion, losses=page.ALL)
        made[fusion] = page.TwoTowers(plan, page.train, page.seen, page.words).eval()
    return made


@pytest.fixture(scope="module")
def mosaic(page):
    """Rows of the training listings that share one picture."""
    return page.batches_of(page.Plan(), page.train, 0).tensors["first"][0]


def unit(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=draw), dim=-1)


# -- a shelf -----------------------------------------------------------------------------------


def hand_made():
    """Pictures of several modes and sizes, two listings of one, a query for two listings."""
    images = {
        "grey": Image.new("L", (64, 64), 200),
        "clear": Image.new("RGBA", (64, 64), (255, 0, 0, 0)),
        "wide": Image.new("RGB", (100, 50), (10, 20, 30)),
        "crop": Image.new("LA", (40, 20), (90, 255)),
    }
    listings = [
        Listing("a", "wide", "red cup", "cup", Box(0, 0, 50, 50)),
        Listing("b", "grey", "", "cup"),
        Listing("c", "wide", "lamp", "lamp", Box(50, 0, 100, 50)),
        Listing("d", "clear", "red cup", "hat"),
    ]
    queries = [
        CropQuery("q1", "crop", ("d", "b")),
        CropQuery("q2", "wide", ("c",), Box(0, 0, 10, 10)),
        CropQuery("q3", "grey", ("a",)),
    ]
    return PictureSet(listings, queries, images.__getitem__)


def test_a_shelf_holds_pictures_of_any_mode_once_and_boxes_moved_with_them(page):
    shelf = page.shelf_of(hand_made(), page.encode_texts)
    assert len(shelf) == 4
    assert shelf.pictures.shape == (3, 64, 64, 3)
    assert shelf.pictures.dtype == shelf.crops.dtype == torch.uint8
    assert shelf.crops.shape == (3, 32, 32, 3)
    assert shelf.picture.tolist() == [0, 1, 0, 2]
    assert shelf.pictures[1].unique().tolist() == [200]
    assert shelf.pictures[2].unique().tolist() == [128]  # what is transparent lies on grey
    assert shelf.pictures[0, 32, 5].tolist() == [10, 20, 30]
    assert shelf.boxes.tolist() == [
        [0, 16, 32, 48], [0, 0, 64, 64], [32, 16, 64, 48], [0, 0, 64, 64],
    ]  # fmt: skip
    assert shelf.category.tolist() == [0, 0, 1, 2]
    assert [rows.tolist() for rows in shelf.wanted] == [[1, 3], [2], [0]]
    assert shelf.product.tolist() == [0, 1, 2, 1]
    assert shelf.texts[1].tolist() == [0] * page.settings.longest
    assert shelf.crops[1].unique(dim=0).shape[0] >= 1
    assert shelf.crops[1, 5, 5].tolist() == [10, 20, 30]


def test_a_shelf_of_the_shop_keeps_products_together(page):
    train, listings = page.train, page.sets["train"].listings
    products = [int(x.item_id.split("/")[0]) for x in listings]
    assert len(set(zip(products, train.product.tolist(), strict=True))) == len(set(products))
    assert set(Counter(train.product.tolist()).values()) == {3}
    assert len(train.pictures) == len({x.picture for x in listings})
    for query, rows in zip(page.sets["train"].queries, train.wanted, strict=True):
        assert {listings[row].item_id for row in rows} == set(query.item_ids)


def test_crops_of_listings_are_of_their_product(page):
    crops = page.crops_of(page.train)
    assert crops.shape == (len(page.train), DIALS.crops)
    for listing, queries in enumerate(crops.tolist()):
        assert all(listing in page.train.wanted[query] for query in queries)
        assert len(set(queries)) == DIALS.crops


def test_a_listing_without_a_query_is_named(page):
    shelf = page.shelf_of(hand_made(), page.encode_texts)
    lonely = replace(shelf, wanted=Ragged.from_lists([[0], [1, 3]]))
    with pytest.raises(InputError, match="listing 2: found no query"):
        page.crops_of(lonely)


# -- the teacher -------------------------------------------------------------------------------


def test_what_the_teacher_keeps_is_what_it_sees(page):
    shelf = page.train
    row = int((shelf.picture == 3).nonzero()[0])
    with torch.no_grad():
        patches = page.teacher(shelf.pictures[3][None])[0]
        crop = page.teacher(shelf.crops[5][None])[0].mean(0)
    kept = page.seen
    torch.testing.assert_close(
        kept.patches[3].float(), F.normalize(patches, dim=1), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(kept.crops[5], F.normalize(crop, dim=0), atol=1e-5, rtol=1e-4)
    share = page.shares_of(shelf, 64)[row]
    expected = F.normalize(share @ F.normalize(patches, dim=1), dim=0)
    torch.testing.assert_close(kept.regions[row], expected, atol=2e-3, rtol=0)
    assert not any(weight.requires_grad for weight in page.teacher.parameters())


def test_the_teacher_finds_the_box_in_its_picture_and_less_often_among_all(page):
    shelf = page.shelves["mosaic"]
    among_all, within = page.identity(shelf, page.teach(shelf, page.teacher))
    assert len(among_all) == len(within) == len(shelf.crops)
    assert within.mean() > 0.9
    assert not (among_all & ~within).any()  # the best of all is the best of its picture
    assert among_all.mean() < within.mean()


def test_identity_compares_with_the_right_boxes(page):
    shelf = SimpleNamespace(
        picture=torch.tensor([0, 0, 1]), wanted=Ragged.from_lists([[0], [1], [2]])
    )
    regions = torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1]])
    crops = torch.tensor([[0.5, 0.6], [0.0, 1.0], [1.0, 0.0]])
    among_all, within = page.identity(shelf, page.Seen(None, crops, regions))
    assert among_all.tolist() == [False, True, False]
    assert within.tolist() == [False, True, True]


# -- towers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_vectors_have_length_one_and_depend_on_what_the_fusion_reads(page, towers, mosaic, fusion):
    tower, shelf = towers[fusion].item_tower, page.train
    texts = shelf.texts[mosaic]
    picture = shelf.picture[mosaic]
    assert len(picture.unique()) == 1
    with torch.no_grad():
        own = tower(shelf.pictures[picture[:1]], torch.zeros(4, dtype=torch.long), texts)
        other = tower(shelf.pictures[:1], torch.zeros(4, dtype=torch.long), texts)
    assert int(picture[0]) != 0
    torch.testing.assert_close(own.norm(dim=1), torch.ones(4))
    apart = (own[0] - own[1:]).abs().amax(1)
    assert (apart == 0).all() if fusion in BLIND else (apart > 1e-3).all()
    moved = (own - other).abs().amax(1)
    assert (moved == 0).all() if fusion == "text" else (moved > 1e-3).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_empty_text_gives_one_finite_vector_however_it_is_padded(page, towers, fusion):
    tower, shelf = towers[fusion].item_tower, page.train
    empty = torch.zeros(2, page.settings.longest, dtype=torch.long)
    place = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        vectors = tower(shelf.pictures[:1], place, empty)
        shorter = tower(shelf.pictures[:1], place, empty[:, :3])
    assert vectors.isfinite().all()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(vectors, shorter)


@pytest.mark.parametrize("fusion", ["sum", "concat", "guided"])
def test_padding_is_not_read(page, towers, fusion):
    tower, shelf = towers[fusion].item_tower, page.train
    texts = shelf.texts[:5]
    length = int((texts != 0).sum(1).max())
    longer = F.pad(texts[:, :length], (0, 20))
    with torch.no_grad():
        expected = tower(shelf.pictures[:1], torch.zeros(5, dtype=torch.long), texts[:, :length])
        found = tower(shelf.pictures[:1], torch.zeros(5, dtype=torch.long), longer)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_pooled_words_are_the_mean_of_those_that_are_there(page):
    tokens = torch.arange(12.0).view(1, 4, 3)
    there = torch.tensor([[True, False, True, False]])
    torch.testing.assert_close(page.pooled(tokens, there), (tokens[:, 0] + tokens[:, 2]) / 2)


def test_an_unknown_fusion_is_refused(page):
    with pytest.raises(InputError, match="did you mean 'guided'"):
        page.ItemTower(page.Plan("guide"), page.words)


def test_towers_start_where_the_eye_sees(page, towers):
    shelf, eye = page.train, page.new_eye().eval()
    with torch.no_grad():
        crops = F.normalize(eye(shelf.crops[:5]).mean(1), dim=1)
        pictures = F.normalize(eye(shelf.pictures[:5]).mean(1), dim=1)
        for fusion in FUSIONS:
            found = towers[fusion].query_tower(shelf.crops[:5])
            torch.testing.assert_close(found, crops, atol=1e-5, rtol=1e-4)
        tower = towers["image"].item_tower
        found = tower(shelf.pictures[:5], torch.arange(5), shelf.texts[:5])
    torch.testing.assert_close(found, pictures, atol=1e-5, rtol=1e-4)


def test_cross_attention_is_that_of_torch(page):
    torch.manual_seed(3)
    layer, width, heads = page.CrossAttention(), page.settings.width, page.settings.heads
    tokens, others = torch.randn(2, 3, width), torch.randn(2, 5, width)
    there = torch.tensor([[True, True, False, True, False], [True] * 5])
    found, attention = layer(tokens, layer.key(others), layer.value(others), there)
    torch_layer = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    parts = (layer.query, layer.key, layer.value)
    torch_layer.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    torch_layer.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    torch_layer.out_proj = layer.out
    expected, weights = torch_layer(
        layer.norm(tokens), others, others, key_padding_mask=~there, need_weights=True
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention, weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_attention_is_shared_out_among_the_patches(page, towers, mosaic, fusion):
    tower, shelf = towers[fusion].item_tower, page.train
    with torch.no_grad():
        sight = tower.see(shelf.pictures[shelf.picture[mosaic[:1]]])
        looked = tower.join(sight, torch.zeros(4, dtype=torch.long), shelf.texts[mosaic])[2]
    if fusion not in ("guided", "late", "pooling"):
        assert looked is None
        return
    for attention in looked:
        assert attention.shape == (4, 64)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(1), torch.ones(4))
        moved = (attention[0] - attention[1:]).abs().amax(1)
        assert (moved == 0).all() if fusion == "late" else (moved > 0).all()


@pytest.mark.parametrize("fusion", ["late", "pooling"])
def test_towers_without_guidance_or_slots_get_the_text_s_mean(page, towers, mosaic, fusion):
    """`late` adds it to what the slots found without it; `pooling` asks the patches with it."""
    tower, shelf = towers[fusion].item_tower, page.train
    own = tower.fusion
    with torch.no_grad():
        patches = tower.eye(shelf.pictures[shelf.picture[mosaic[:1]]])
        sight = tower.see(shelf.pictures[shelf.picture[mosaic[:1]]])
        found = tower.join(sight, torch.zeros(1, dtype=torch.long), shelf.texts[mosaic[1:2]])[0]
        tokens, there = tower.texts(shelf.texts[mosaic[1:2]])
        text = own.of_text(tokens[there].mean(0)[None])
        focus = text
        if fusion == "late":
            slots = own.slots[None]
            slots = slots + own.look(slots, own.look.key(patches), own.look.value(patches))[0]
            focus = (own.score(slots).softmax(1) * slots).sum(1)
        guide = own.guide(torch.cat([focus, patches.mean(1)], 1))
        share = ((own.key(patches) @ guide[0]) / guide.shape[1] ** 0.5).softmax(1)
        vector = focus + share @ patches[0] + (text if fusion == "late" else 0)
        expected = F.normalize(tower.out(vector), dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_guided_vector_by_hand(page, towers, mosaic):
    """Focus of the slots and patches pooled under its guidance, from the parts of the equations."""
    tower, shelf = towers["guided"].item_tower, page.train
    fusion = tower.fusion
    with torch.no_grad():
        sight = tower.see(shelf.pictures[shelf.picture[mosaic[:1]]])
        found = tower.join(sight, torch.zeros(1, dtype=torch.long), shelf.texts[mosaic[2:3]])[0]
        patches = tower.eye(shelf.pictures[shelf.picture[mosaic[:1]]])
        tokens, there = tower.texts(shelf.texts[mosaic[2:3]])
        words = tokens[there][None]
        slots = fusion.slots[None]
        slots = slots + fusion.read(slots, fusion.read.key(words), fusion.read.value(words))[0]
        look = fusion.look(slots, fusion.look.key(patches), fusion.look.value(patches))[0]
        slots = (slots + look)[0]
        focus = fusion.score(slots)[:, 0].softmax(0) @ slots
        guide = fusion.guide(torch.cat([focus, patches[0].mean(0)]))
        share = (fusion.key(patches[0]) @ guide / math.sqrt(len(guide))).softmax(0)
        expected = F.normalize(tower.out(focus + share @ patches[0]), dim=0)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


# -- no box to index, none to search -----------------------------------------------------------


def blind(page, shelf):
    """A shelf of which nobody may read the boxes."""

    class Blind(page.Shelf):
        def __getattribute__(self, name):
            if name == "boxes":
                pytest.fail("a box was read")
            return super().__getattribute__(name)

    return Blind(**{field.name: getattr(shelf, field.name) for field in fields(shelf)})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_box_is_read_to_index_or_to_search(page, towers, monkeypatch, fusion):
    shelf, model = page.shelves["mosaic"], towers[fusion]
    parts = (shelf.pictures, shelf.picture, shelf.texts)
    items = page.item_vectors(model.item_tower, *parts)
    queries = page.query_vectors(model.query_tower, shelf)
    hits = page.searched(model, shelf)
    for name in ("box_shares", "shares_of", "regions", "cut", "detected", "fitted"):
        monkeypatch.setattr(page, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    for boxes in (torch.full((len(shelf), 4), torch.nan), torch.full((len(shelf), 4), -9)):
        garbled = replace(shelf, boxes=boxes)
        parts = (garbled.pictures, garbled.picture, garbled.texts)
        assert (page.item_vectors(model.item_tower, *parts) == items).all()
        assert (page.query_vectors(model.query_tower, garbled) == queries).all()
    hidden = blind(page, shelf)
    assert (page.query_vectors(model.query_tower, hidden) == queries).all()
    found = page.searched(model, hidden)
    assert all((found[k] == hits[k]).all() for k in hits)
    page.follows(model, hidden, shelf.texts)
    page.searched(model, hidden, page.shuffled(hidden))


def test_the_pipeline_with_a_detector_does_read_boxes(page, towers):
    with pytest.raises(pytest.fail.Exception, match="a box was read"):
        page.searched_by_boxes(towers["sum"], blind(page, page.shelves["mosaic"]), 0.0)


def test_no_argument_lets_a_box_in(page):
    functions = (
        page.item_vectors, page.query_vectors, page.ItemTower.forward, page.ItemTower.see,
        page.ItemTower.join, page.QueryTower.forward, page.Guided.forward, page.Guided.see,
        page.Global.forward, page.Global.see, page.ranked, page.searched,
    )  # fmt: skip
    for function in functions:
        names = inspect.signature(function).parameters
        assert not any("box" in name or "share" in name for name in names), function
    assert list(inspect.signature(page.item_vectors).parameters) == [
        "tower", "pictures", "picture", "texts",
    ]  # fmt: skip


def test_the_main_loss_alone_sees_no_box_in_training_either(page, mosaic):
    torch.manual_seed(1)
    model = page.TwoTowers(page.Plan(), page.train, page.seen, page.words).eval()
    model.shelf, model.shares = blind(page, page.train), None
    (loss,) = page.losses_of(model, model.encode(mosaic)).values()
    assert loss.isfinite()


@pytest.mark.parametrize("fusion", ["sum", "guided"])
def test_listings_that_share_a_picture_get_the_vectors_of_each_alone(page, towers, fusion):
    shelf, tower = page.shelves["mosaic"], towers[fusion].item_tower
    together = page.item_vectors(tower, shelf.pictures, shelf.picture, shelf.texts)
    assert len(shelf.pictures) < len(shelf)
    for row in range(0, len(shelf), 7):
        picture = shelf.pictures[shelf.picture[row]][None]
        with torch.no_grad():
            alone = tower(picture, torch.zeros(1, dtype=torch.long), shelf.texts[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0].numpy(), atol=1e-5)


def test_vectors_stand_in_the_order_of_the_listings(page, towers):
    """Pictures are passed through in parts; listings of one picture need not stand together."""
    shelf, tower = page.shelves["mosaic"], towers["guided"].item_tower
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(shelf)))
    expected = page.item_vectors(tower, shelf.pictures, shelf.picture, shelf.texts)
    many = torch.cat([shelf.pictures] * 12)  # more than one part
    moved = shelf.picture[order] + len(shelf.pictures) * (torch.arange(len(shelf)) % 12)
    found = page.item_vectors(tower, many, moved, shelf.texts[order])
    assert len(many) > 128
    np.testing.assert_allclose(found, expected[order], atol=1e-5)


# -- losses ------------------------------------------------------------------------------------


def nce_by_hand(a, b, product, extra, temperature):
    total = 0.0
    for row in range(len(a)):
        scores = [
            float(a[row] @ b[column])
            for column in range(len(b))
            if column == row or product[column] != product[row]
        ]
        scores += [float(score[row]) for score in extra]
        own = float(a[row] @ b[row])
        total -= own / temperature - math.log(sum(math.exp(s / temperature) for s in scores))
    return total / len(a)


@pytest.mark.parametrize("extras", [0, 1, 2])
def test_contrast_by_hand(page, settings, extras):
    settings(temperature=0.2)
    a, b = unit(5, 6), unit(5, 6, seed=1)
    product = torch.tensor([3, 1, 3, 0, 1])
    extra = list(unit(2, 5, seed=2))[:extras]
    if extras:
        extra[0][2] = -torch.inf  # nothing there
    expected = nce_by_hand(a, b, product.tolist(), extra, 0.2)
    assert float(page.contrast(a, b, product, *extra)) == pytest.approx(expected, rel=1e-5)
    assert product.tolist() == [3, 1, 3, 0, 1]


def test_contrast_of_equal_items_is_the_logarithm_of_their_number(page):
    a, b = unit(4, 6), unit(1, 6, seed=1).expand(4, 6)
    assert float(page.contrast(a, b, torch.arange(4))) == pytest.approx(math.log(4), rel=1e-5)
    assert float(page.contrast(a, b, torch.zeros(4))) == pytest.approx(0, abs=1e-6)


def test_relations_are_those_of_the_teacher_whatever_the_rotation_and_length(page):
    taught = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    shares = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0.25, 0.25, 0.25, 0.25, 0]])
    assert float(page.relation_loss(taught, taught, shares)) == pytest.approx(0, abs=1e-6)
    assert float(page.relation_loss(3 * taught @ turn, taught, shares)) == pytest.approx(
        0, abs=1e-6
    )
    outside = taught.clone()
    outside[0, 2:] = 7.0
    outside[1, [0, 5]] = -3.0
    assert float(page.relation_loss(outside, taught, shares)) == pytest.approx(0, abs=1e-6)
    wider = torch.cat([taught, torch.zeros(2, 6, 3)], 2)
    assert float(page.relation_loss(wider, taught, shares)) == pytest.approx(0, abs=1e-6)
    inside = taught.clone()
    inside[0, 0] = -inside[0, 0]
    assert float(page.relation_loss(inside, taught, shares)) > 0.01


def test_relations_by_hand(page):
    own, taught = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    shares = shares / shares.sum(1, keepdim=True)
    expected = 0.0
    for row in range(2):
        for m in range(5):
            for n in range(5):
                gap = F.cosine_similarity(own[row, m], own[row, n], dim=0)
                gap = gap - F.cosine_similarity(taught[row, m], taught[row, n], dim=0)
                expected += float(shares[row, m] * shares[row, n] * gap**2) / 2
    assert float(page.relation_loss(own, taught, shares)) == pytest.approx(expected, rel=1e-4)


def test_distributions_by_hand_and_zero_where_they_are_the_teachers(page):
    q, i, u, v = (unit(4, 6, seed=n) for n in range(4))
    assert float(page.distribution_loss(u, v, u, v)) == pytest.approx(0, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9)))[0]
    assert float(page.distribution_loss(u @ turn, v @ turn, u, v)) == pytest.approx(0, abs=1e-5)
    wanted = (u @ v.T / page.settings.soft).softmax(1)
    found = (q @ i.T / page.settings.soft).softmax(1)
    expected = float((wanted * (wanted / found).log()).sum(1).mean())
    assert expected > 0.1
    assert float(page.distribution_loss(q, i, u, v)) == pytest.approx(expected, rel=1e-4)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
@trials(max_examples=60, deadline=None)
def test_strangers_are_of_another_category_and_picture(page, rows, seed):
    category, picture = torch.tensor(rows).T
    other, there = page.strangers(category, picture, torch.Generator().manual_seed(seed))
    again = page.strangers(category, picture, torch.Generator().manual_seed(seed))
    assert torch.equal(other, again[0])
    for row, (kind, shown) in enumerate(rows):
        possible = [n for n, (k, s) in enumerate(rows) if k != kind and s != shown]
        assert bool(there[row]) == bool(possible)
        assert 0 <= int(other[row]) < len(rows)
        if possible:
            assert int(other[row]) in possible


def test_any_stranger_may_be_drawn(page):
    category, picture = torch.tensor([0, 1, 2, 0, 3]), torch.tensor([0, 1, 2, 3, 0])
    draw = torch.Generator().manual_seed(0)
    drawn = {int(page.strangers(category, picture, draw)[0][0]) for _ in range(60)}
    assert drawn == {1, 2}


def test_own_scores_are_inner_products_where_something_is_there(page):
    a, b = unit(3, 4), unit(3, 4, seed=1)
    found = page.own_scores(a, b, torch.tensor([True, False, True]))
    torch.testing.assert_close(found[[0, 2]], (a @ b.T).diagonal()[[0, 2]])
    assert found[1] == -torch.inf


def test_each_arm_has_its_losses_and_the_total_weighs_them(page, towers, mosaic, settings):
    settings(v2t=0.3, i2v=0.7, srd=2.0, sdd=0.1)
    alone = page.batches_of(page.Plan(), page.train, 0).pools["second"][0]
    batch = {"first": mosaic[None], "second": alone[None]}
    model = towers["guided"]
    for name, plan in page.PLANS.items():
        if plan.cut or plan.fusion != "guided":
            continue
        model.plan = plan
        with torch.no_grad():
            values = model.loss(batch)
        named = [loss for loss in page.ALL if loss in plan.losses and loss != "mismatch"]
        assert list(values) == ["loss", "q2i", *named], name
        expected = values["q2i"] + sum(
            getattr(page.settings, loss) * values[loss] for loss in named
        )
        assert float(values["loss"]) == pytest.approx(float(expected), rel=1e-5)
    model.plan = page.Plan(losses=page.ALL)


def test_losses_of_a_batch_are_those_of_its_parts(page, towers, mosaic):
    """What goes into each loss: whose vectors, which boxes, which foreign texts and pictures."""
    model, shelf = towers["guided"], page.train
    alone = page.batches_of(page.Plan(), shelf, 0).pools["second"][0]
    with torch.no_grad():
        step = model.encode(torch.cat([mosaic, alone]))
        found = page.losses_of(model, step)
        tower = model.item_tower
        items = tower(shelf.pictures, shelf.picture[step.rows], shelf.texts[step.rows])
        torch.testing.assert_close(step.items, items, atol=1e-5, rtol=1e-4)
        queries = model.query_tower(shelf.crops[step.asked])
        torch.testing.assert_close(step.queries, queries, atol=1e-5, rtol=1e-4)
        patches = tower.eye(shelf.pictures[shelf.picture[step.rows]])
        shares = page.shares_of(shelf, 64)[step.rows]
        boxed = F.normalize((shares[:, None] @ patches)[:, 0], dim=1)
        drawn = page.generator_of(model, "strangers")
        other, there = page.strangers(shelf.category[step.rows], shelf.picture[step.rows], drawn)
        assert there.all()
        text = tower(shelf.pictures, shelf.picture[step.rows], shelf.texts[step.rows[other]])
        picture = tower(shelf.pictures, shelf.picture[step.rows[other]], shelf.texts[step.rows])
        product = shelf.product[step.rows]
        words = F.normalize(page.pooled(*tower.texts(shelf.texts[step.rows])), dim=1)
    main = page.contrast(
        queries, items, product, (queries * text).sum(1), (queries * picture).sum(1)
    )
    regions = page.contrast(items, boxed, product, (boxed * text).sum(1))
    pairs = page.contrast(boxed, words, product) + page.contrast(words, boxed, product)
    taught = page.seen.patches[shelf.picture[step.rows]].float()
    soft = (page.seen.crops[step.asked], page.seen.regions[step.rows])
    expected = {
        "q2i": main, "v2t": pairs / 2, "i2v": regions,
        "srd": page.relation_loss(patches, taught, shares),
        "sdd": page.distribution_loss(queries, items, *soft),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("name", ["tiger_fg", "sum", "detector"])
def test_a_batch_of_one_has_finite_losses_and_gradients(page, name):
    torch.manual_seed(1)
    model = page.TwoTowers(page.PLANS[name], page.train, page.seen, page.words).train()
    values = model.loss({"first": torch.tensor([[5]])})
    values["loss"].backward()
    assert all(value.isfinite() for value in values.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_an_empty_text_does_not_drown_the_gradients_of_the_others(page, mosaic):
    texts = page.train.texts.clone()
    texts[mosaic[0]] = 0
    torch.manual_seed(1)
    shelf = replace(page.train, texts=texts)
    model = page.TwoTowers(page.PLANS["tiger_fg"], shelf, page.seen, page.words).train()
    model.loss({"first": mosaic[None]})["loss"].backward()
    assert all(p.grad.norm() < 1e4 for p in model.parameters() if p.grad is not None)


# -- draws -------------------------------------------------------------------------------------


def test_draws_depend_on_seed_use_step_and_rank_alone(page, monkeypatch):
    def first(use="view", step=0, rank=0):
        module = SimpleNamespace(global_step=step, global_rank=rank)
        return int(torch.randint(2**40, (1,), generator=page.generator_of(module, use)))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = [first(), first("strangers"), first(step=1), first(rank=1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(drawn)) == 4
    assert first() == drawn[0]
    monkeypatch.setattr(page, "seed", 8)
    assert first() != drawn[0]


def test_arms_see_the_same_crops_and_strangers(page, mosaic, monkeypatch):
    alone = page.batches_of(page.Plan(), page.train, 0).pools["second"][0]
    rows, asked, drawn = torch.cat([mosaic, alone]), [], []
    strangers = page.strangers

    def recorded(*arguments):
        drawn.append(strangers(*arguments))
        return drawn[-1]

    monkeypatch.setattr(page, "strangers", recorded)
    for place, name in enumerate(("tiger_fg", "no_v2t", "sum_losses", "sum", "detector")):
        torch.manual_seed(place)
        model = page.TwoTowers(page.PLANS[name], page.train, page.seen, page.words).eval()
        with torch.no_grad():
            step = model.encode(rows)
            page.losses_of(model, step)
        asked.append(step.asked)
    assert all(torch.equal(crops, asked[0]) for crops in asked)
    assert len(drawn) == 3
    assert all(torch.equal(other, drawn[0][0]) for other, _ in drawn)


# -- batches -----------------------------------------------------------------------------------


def pictures_of(page, groups):
    return page.train.picture[groups]


def size_of(page):
    return torch.bincount(page.train.picture)[page.train.picture]


def test_products_of_a_mosaic_stay_together(page):
    batches = page.batches_of(page.PLANS["tiger_fg"], page.train, 0)
    groups = batches.tensors["first"]
    pictures = pictures_of(page, groups)
    assert (pictures == pictures[:, :1]).all()
    assert sorted(groups.flatten().tolist()) == (size_of(page) == 4).nonzero()[:, 0].tolist()
    for rows in groups:
        assert len(page.train.category[rows].unique()) == 4


def test_without_the_rule_the_same_listings_come_one_by_one(page):
    together = page.batches_of(page.PLANS["tiger_fg"], page.train, 0).tensors["first"]
    apart = page.batches_of(page.PLANS["no_together"], page.train, 0).tensors["first"]
    assert apart.shape == together.shape
    assert sorted(apart.flatten().tolist()) == sorted(together.flatten().tolist())
    pictures = pictures_of(page, apart)
    assert (pictures[:, 1:] == pictures[:, :1]).float().mean() < 0.2


@pytest.mark.parametrize("shared", [[2, 2, 2, 2], [3, 3, 2], [3, 4, 5], [2, 2, 1, 1, 1, 1]])
def test_pictures_of_any_number_of_listings_are_learnt_from(page, shared):
    picture = torch.arange(len(shared)).repeat_interleave(torch.tensor(shared))
    shelf = replace(page.train, picture=picture)
    batches = page.batches_of(page.PLANS["tiger_fg"], shelf, 0)
    rows = {*batches.tensors["first"].flatten().tolist()}
    rows |= {*batches.pools["second"].flatten().tolist()}
    assert rows == set(range(len(picture)))
    groups = picture[batches.tensors["first"]]
    whole = (groups == groups[:, :1]).all(1).sum()
    assert whole == sum(count // 4 for count in shared if count > 1)


def test_too_few_listings_for_a_group_are_named(page):
    shelf = replace(page.train, picture=torch.tensor([0, 0, 1]))
    with pytest.raises(InputError, match="four or more"):
        page.batches_of(page.PLANS["tiger_fg"], shelf, 0)


def test_a_profile_without_icons_asks_for_a_folder(page, monkeypatch):
    small = replace(page.settings, glyphs=0)
    monkeypatch.setattr(page, "settings", small)
    with pytest.raises(InputError, match="a folder"):
        page.open_sets(0, "")


@pytest.mark.parametrize("name", ["no_mosaics", "sum_no_mosaics"])
def test_an_arm_without_mosaics_never_sees_one(page, name):
    for batch in page.batches_of(page.PLANS[name], page.train, 0):
        for rows in batch.values():
            assert (size_of(page)[rows] == 1).all()


def test_batches_of_all_plans_have_the_same_size_and_half_of_them_alone(page):
    for name, plan in page.PLANS.items():
        batches = page.batches_of(plan, page.train, 0)
        assert len(batches) > 0
        for batch in batches:
            assert list(batch) == ["first", "second"]
            assert [part.shape for part in batch.values()] == 2 * [(page.settings.groups, 4)]
            assert (size_of(page)[batch["second"]] == 1).all(), name
            assert (size_of(page)[batch["first"]] == (4 if plan.mosaics else 1)).all(), name


def test_arms_take_the_same_steps_one_of_them_twice_as_many(page, monkeypatch, settings):
    settings(steps=37)
    called = []

    def fit(model, batches, settings, optimisation, epochs, max_steps):
        called.append((max_steps, epochs * len(batches)))

    monkeypatch.setattr(page, "fit", fit)
    monkeypatch.setattr(page, "TwoTowers", lambda *_: SimpleNamespace(eval=lambda: None))
    for name in page.PLANS:
        page.trained(name)
        steps, possible = called[-1]
        assert steps == (74 if name == "sum_longer" else 37)
        assert possible >= steps


def test_rates_of_the_sweep_are_those_of_the_fusion_and_of_toy_alone(page, monkeypatch):
    rates = []
    monkeypatch.setattr(page, "RATES", {"sum": 0.004})
    monkeypatch.setattr(page, "fit", lambda *a, **_: rates.append(a[3].learning_rate))
    monkeypatch.setattr(page, "TwoTowers", lambda *_: SimpleNamespace(eval=lambda: None))
    for profile in ("smoke", "toy"):
        monkeypatch.setattr(page, "profile", profile)
        for name in ("sum", "sum_losses", "detector", "tiger_fg"):
            page.trained(name)
    usual = page.settings.learning_rate
    assert rates == [*4 * [usual], *3 * [0.004], usual]


@pytest.mark.parametrize("kept", ["alone", "mosaics"])
def test_shelves_of_one_layout_fill_both_halves(page, kept):
    rows = (size_of(page) == (1 if kept == "alone" else 4)).nonzero()[:, 0]
    shelf = replace(page.train, picture=page.train.picture[rows])
    batch = next(iter(page.batches_of(page.Plan(), shelf, 0)))
    assert [part.shape for part in batch.values()] == 2 * [(page.settings.groups, 4)]
    sizes = torch.bincount(shelf.picture)[shelf.picture]
    assert all((sizes[part] == (1 if kept == "alone" else 4)).all() for part in batch.values())


# -- learning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [(), ("v2t", "i2v", "srd", "sdd", "mismatch")])
def test_a_guided_tower_learns_to_tell_the_products_of_a_mosaic_apart(page, mosaic, losses):
    torch.manual_seed(0)
    plan = page.Plan(losses=losses)
    model = page.TwoTowers(plan, page.train, page.seen, page.words).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    started = None
    for _ in range(30):
        values = page.losses_of(model, model.encode(mosaic))
        started = started or values["q2i"].item()
        optimiser.zero_grad()
        sum(values.values()).backward()
        optimiser.step()
    assert started > 1.0
    assert values["q2i"].item() < 0.3


@pytest.mark.parametrize("fusion", BLIND)
def test_a_tower_that_reads_no_text_cannot(page, towers, mosaic, fusion):
    model = towers[fusion]
    with torch.no_grad():
        step = model.encode(mosaic)
        loss = page.contrast(step.queries, step.items, step.product)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-4)


def test_training_is_repeatable_and_moves_the_weights(page, settings):
    settings(steps=2)
    first, again = (page.trained("tiger_fg").state_dict() for _ in "12")
    assert all(torch.equal(first[name], again[name]) for name in first)
    fresh = page.fresh_tower(page.PLANS["tiger_fg"]).state_dict()
    moved = [
        name for name, value in fresh.items() if not torch.equal(first[f"item_tower.{name}"], value)
    ]
    assert not any("running" in name for name in moved)
    assert {"out.weight", "fusion.slots", "texts.table.weight", "eye.project.weight"} <= set(moved)


# -- the simulated detector --------------------------------------------------------------------


@given(data=st.data())
@trials(max_examples=60, deadline=None)
def test_a_cut_holds_all_of_its_box_at_one_scale(page, data):
    """Of a picture whose pixels are their own coordinates."""
    (left, right), (top, bottom) = (
        sorted(data.draw(st.lists(st.integers(0, 64), min_size=2, max_size=2, unique=True)))
        for _ in "xy"
    )
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    picture = torch.stack([columns, rows, torch.zeros(64, 64)], 2).to(torch.uint8)
    found = page.cut(picture[None], torch.tensor([[left, top, right, bottom]]))
    assert found.shape == (1, 32, 32, 3)
    assert found.dtype == torch.uint8
    x, y = found[0, ..., 0].float(), found[0, ..., 1].float()
    assert x.min() <= left
    assert x.max() >= right - 1
    assert y.min() <= top
    assert y.max() >= bottom - 1
    assert (x - x[:1]).abs().max() <= 1  # halves may be rounded either way
    assert (y - y[:, :1]).abs().max() <= 1
    reach = 1.1 * max(right - left, bottom - top)
    assert float(x.max() - x.min()) <= reach + 1  # both ends are rounded
    assert float(y.max() - y.min()) <= reach + 1
    middle = float(x[0, 15:17].mean()), float(y[15:17, 0].mean())
    expected = (left + right) / 2 - 0.5, (top + bottom) / 2 - 0.5
    assert middle == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize("errors", [0.0, 0.3, 1.0])
def test_a_detector_errs_at_its_rate(page, errors):
    shelf = page.shelves["mosaic"]
    before = shelf.boxes.clone()
    wrong = np.mean(
        [(page.detected(shelf, errors, seed) != before).any(1).float().mean() for seed in range(30)]
    )
    assert torch.equal(shelf.boxes, before)
    assert wrong == pytest.approx(errors, abs=0.03)


def test_a_wrong_box_is_that_of_another_product_of_the_mosaic(page):
    shelf = page.shelves["mosaic"]
    found = page.detected(shelf, 1.0, 0)
    for row, box in enumerate(found.tolist()):
        members = (shelf.picture == shelf.picture[row]).nonzero()[:, 0].tolist()
        others = [shelf.boxes[other].tolist() for other in members if other != row]
        assert box in others or not others


def test_a_wrong_box_of_a_normal_picture_is_a_quarter_of_it(page):
    shelf = page.shelves["normal"]
    found = page.detected(shelf, 1.0, 0)
    left, top, right, bottom = found.T
    assert ((right - left == 32) & (bottom - top == 32)).all()
    assert found.min() >= 0
    assert found.max() <= 64
    assert len(found.unique(dim=0)) > 20


def test_vectors_of_cuts_are_those_of_the_cut_pictures(page, towers):
    shelf, tower = page.shelves["mosaic"], towers["sum"].item_tower
    found = page.cut_vectors(tower, shelf, shelf.boxes)
    cuts = page.cut(shelf.pictures[shelf.picture[9]][None], shelf.boxes[9:10])
    with torch.no_grad():
        expected = tower(cuts, torch.zeros(1, dtype=torch.long), shelf.texts[9:10])
    np.testing.assert_allclose(found[9], expected[0].numpy(), atol=1e-5)
    wrong = page.cut_vectors(tower, shelf, page.detected(shelf, 1.0, 0))
    assert (np.abs(wrong - found).max(1) > 1e-3).mean() > 0.9


# -- measures ----------------------------------------------------------------------------------


def test_hits_are_found_by_hand(page):
    shelf = SimpleNamespace(wanted=Ragged.from_lists([[0], [1, 4], [5]]))
    found = page.scores(np.array([[0, 1, 2], [2, 4, 1], [0, 1, 2]]), shelf)
    assert {k: hits.tolist() for k, hits in found.items()} == {1: [1, 0, 0], 3: [1, 1, 0]}


@pytest.mark.parametrize("fusion", BLIND)
def test_a_tower_that_ignores_texts_follows_them_by_chance(page, towers, fusion):
    shelf = page.shelves["mosaic"]
    asked = {int(rows[0]) for rows in shelf.wanted}
    known = Counter(shelf.picture[row].item() for row in asked)
    several = [count for count in known.values() if count > 1]
    followed = page.follows(towers[fusion], shelf, page.shuffled(shelf))
    assert len(followed) == sum(several)
    assert followed.sum() == len(several)  # one product of each picture, whatever the text


def test_a_tower_that_goes_where_the_text_sends_it_always_follows(page, monkeypatch):
    shelf = page.shelves["mosaic"]
    texts = torch.arange(len(shelf))[:, None]
    told = np.eye(len(shelf))
    monkeypatch.setattr(page, "item_vectors", lambda *parts: told[parts[3][:, 0]])
    rows = [int(rows[0]) for rows in shelf.wanted]
    monkeypatch.setattr(page, "query_vectors", lambda *_: told[rows])
    model = SimpleNamespace(item_tower=None, query_tower=None)
    assert page.follows(model, shelf, texts).all()
    moved = page.follows(model, shelf, texts.roll(1, 0))
    assert moved.mean() < 0.5
    louder = told + (np.arange(len(shelf)) % 2)[:, None]  # nearer to every query than its rivals
    monkeypatch.setattr(page, "item_vectors", lambda *parts: louder[parts[3][:, 0]])
    assert page.follows(model, shelf, texts).all()


def test_rewritten_texts_are_those_of_the_second_listing(page):
    shelf, many = page.shelves["mosaic"], page.shelves["many"]
    found = page.rewritten(shelf, many)
    listings = page.sets["many"].listings
    second = {x.item_id.split("/")[0]: n for n, x in enumerate(listings) if n >= len(shelf)}
    asked = {int(rows[0]) for rows in shelf.wanted}
    for row in range(len(shelf)):
        other = second[listings[row].item_id.split("/")[0]]
        if row in asked:
            assert torch.equal(found[row], many.texts[other])
            assert not torch.equal(found[row], shelf.texts[row])
        else:
            assert torch.equal(found[row], shelf.texts[row])
    assert len(asked) == 60


def test_shuffled_texts_are_all_texts_nearly_all_at_another_listing(page):
    shelf = page.shelves["mosaic"]
    found = page.shuffled(shelf)
    assert sorted(found.tolist()) == sorted(shelf.texts.tolist())
    assert (found != shelf.texts).any(1).float().mean() > 0.9


def test_looks_measure_attention_inside_the_box(page, monkeypatch):
    """A picture of 8 x 8 patches, attention on one of them, a box that covers two columns."""
    boxes = torch.tensor([[0, 0, 16, 64], [0, 0, 16, 64], [4, 4, 12, 12]])
    shelf = replace(
        page.train, boxes=boxes, picture=torch.tensor([0, 1, 1]), texts=page.train.texts[:3]
    )
    pooling = F.one_hot(torch.tensor([8, 2, 9]), 64).float()
    pooling[0] = 0.4 * pooling[0]
    pooling[0, 7], pooling[0, 6] = 0.35, 0.25
    slots = torch.full((3, 64), 1 / 64)
    tower = SimpleNamespace(
        see=lambda pictures: (pictures,), join=lambda *_: (None, None, (slots, pooling))
    )
    found = page.looks(tower, shelf)
    np.testing.assert_allclose(found.even, [16 / 64, 16 / 64, 4 / 64])
    np.testing.assert_allclose(found.slots, found.even, atol=1e-6)
    np.testing.assert_allclose(found.pooling, [0.4, 0, 1], atol=1e-6)
    assert found.pointed.tolist() == [1, 0, 1]


def test_views_show_each_listing_of_a_picture_with_its_own_text(page, towers):
    shelf = page.shelves["mosaic"]
    texts = [x.text for x in page.sets["mosaic"].listings]
    rows = (shelf.picture == 2).nonzero()[:, 0].tolist()
    views = page.views_of(towers["guided"], shelf, texts, 2)
    assert [view.text for view in views] == [texts[row] for row in rows]
    assert [list(view.box) for view in views] == shelf.boxes[rows].tolist()
    queries = page.query_vectors(towers["guided"].query_tower, shelf)
    items = page.item_vectors(
        towers["guided"].item_tower, shelf.pictures, shelf.picture, shelf.texts
    )
    for row, view in zip(rows, views, strict=True):
        assert view.attention.shape == (8, 8)
        assert view.attention.sum() == pytest.approx(1, abs=1e-5)
        near = np.argsort(-queries @ items[row])[:5]
        assert (np.stack(view.nearest) == shelf.crops[near].numpy()).all()
        assert view.right == [row in shelf.wanted[q] for q in near]
    assert page.looks_html([(shelf.pictures[2].numpy(), views)], "t").count("data-text") >= 8


def test_rows_of_an_arm_stand_at_their_queries(page):
    main, new = page.shelves["mosaic"], page.shelves["new"]
    asked, more = len(main.crops), len(new.crops)
    draw = np.random.default_rng(0)
    found = {
        name: {k: draw.integers(0, 2, count).astype(float) for k in (1, 10)}
        for name, count in (("normal", asked), ("mosaic", asked), ("new", more), ("many", asked))
    }
    shuffled = draw.integers(0, 2, asked)
    rows = page.rows_of_arm(found, {"shuffled@1": shuffled})
    assert set(rows) == {
        "query_row", "cluster", "gap@1", "shuffled@1",
        *(f"{name}@{k}" for name in found for k in (1, 10)),
    }  # fmt: skip
    assert all(len(values) == asked + more for values in rows.values())
    for name, of_set in found.items():
        part = np.arange(asked + more) >= asked
        part = part if name == "new" else ~part
        for k, hits in of_set.items():
            assert (rows[f"{name}@{k}"][part] == hits).all()
            assert np.isnan(rows[f"{name}@{k}"][~part]).all()
    gap = found["mosaic"][1] - found["normal"][1]
    assert set(gap) == {-1, 0, 1}
    assert (rows["gap@1"][:asked] == gap).all()
    assert (rows["shuffled@1"][:asked] == shuffled).all()
    wanted = [main.category[int(found[0])] for found in main.wanted]
    assert rows["cluster"][:asked].tolist() == wanted
    assert (rows["cluster"][asked:] >= 1000).all()
    assert (rows["query_row"] == np.arange(asked + more)).all()


def test_one_row_is_one_product_in_every_layout(page):
    ids = {name: [q.query_id for q in page.sets[name].queries] for name in page.tests}
    assert ids["normal"] == ids["mosaic"] == ids["noisy"] == ids["many"]
    for name in ("normal", "noisy", "many"):
        for mine, its in zip(page.shelves["mosaic"].wanted, page.shelves[name].wanted, strict=True):
            listing = page.sets[name].listings[int(its[0])]
            mosaic = page.sets["mosaic"].listings[int(mine[0])]
            assert listing.item_id.split("/")[0] == mosaic.item_id.split("/")[0]


def test_a_detector_is_evaluated_at_every_rate_and_other_arms_once(page, towers, monkeypatch):
    monkeypatch.setattr(page, "tests", ["normal", "mosaic"])
    found = page.evaluate(towers["sum"], page.Plan("sum"))
    assert list(found) == ["normal", "mosaic"]
    assert {k: len(hits) for k, hits in found["mosaic"].items()} == {1: 60, 10: 60}
    found = page.evaluate(towers["sum"], page.Plan("sum", cut=True))
    assert list(found) == [
        f"{name}{wrong}"
        for name in ("normal", "mosaic")
        for wrong in ("", " 10% wrong", " 30% wrong")
    ]
    assert found["mosaic"][1].mean() > found["mosaic 30% wrong"][1].mean()


def test_a_detector_costs_a_pass_more_than_the_tower_that_looks_itself(page, towers):
    shelf = page.shelves["normal"]
    guided = page.operations(towers["guided"], page.Plan(), shelf)
    alone = page.operations(towers["sum"], page.Plan("sum"), shelf)
    cut = page.operations(towers["sum"], page.Plan("sum", cut=True), shelf)
    assert 0 < alone <= guided < cut
    assert cut == pytest.approx(1.25 * alone, rel=0.05)  # a cut has a quarter of the pixels
    assert page.operations(towers["sum"], page.Plan("sum"), page.shelves["mosaic"]) < alone / 2
