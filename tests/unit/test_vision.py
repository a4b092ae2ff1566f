"""Patches of pictures: their order, what training leaves alone, shares of boxes, and the eye."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoBackbone

from minisearch.errors import InputError
from minisearch.models.lm import ASSETS
from minisearch.models.vision import PatchEncoder, box_shares, toy_resnet_config
from minisearch.worlds.icons import IconDials, IconWorld

EYE = ASSETS / "eye" / "model.safetensors"


def noise(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), generator=draw, dtype=torch.uint8)


def averages(encoder):
    return {
        name: value.clone() for name, value in encoder.state_dict().items() if "running" in name
    }


def shipped():
    """The eye as the chapter takes it: half precision on the disk, single in memory."""
    eye = PatchEncoder(toy_resnet_config(), 128)
    eye.load_state_dict({n: v.float() for n, v in load_file(EYE).items()})
    return eye.eval()


# -- the encoder -------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "patches"), [(64, 64, 64), (32, 32, 16), (16, 40, 10)])
def test_there_is_one_vector_for_eight_by_eight_pixels(height, width, patches):
    encoder = PatchEncoder(toy_resnet_config(), 24).eval()
    assert encoder(noise(3, height, width)).shape == (3, patches, 24)
    assert encoder.dimension == 24


def test_the_toy_has_250_000_weights():
    weights = sum(p.numel() for p in AutoBackbone.from_config(toy_resnet_config()).parameters())
    assert 240_000 < weights < 260_000


def test_patches_come_row_by_row():
    """What changes in one place of the picture changes most in the patch of that place."""
    torch.manual_seed(0)
    encoder = PatchEncoder(toy_resnet_config(), 32).eval()
    picture = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    for row, column in ((2, 5), (5, 2), (3, 3)):
        changed = picture.clone()
        changed[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
        with torch.no_grad():
            gap = (encoder(changed) - encoder(picture))[0].norm(dim=1).view(8, 8)
        rows, columns = gap.sum(1), gap.sum(0)
        assert float((rows * torch.arange(8)).sum() / rows.sum()) == pytest.approx(row, abs=0.6)
        assert float((columns * torch.arange(8)).sum() / columns.sum()) == pytest.approx(
            column, abs=0.6
        )


def test_pixels_are_scaled_as_those_of_imagenet():
    encoder = PatchEncoder(toy_resnet_config(), 8).eval()
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    encoder(noise(1, 16, 16))
    expected = noise(1, 16, 16).permute(0, 3, 1, 2) / 255
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        torch.testing.assert_close(
            seen[0][:, channel], (expected[:, channel] - mean) / deviation, atol=1e-5, rtol=1e-4
        )


def test_in_training_batch_normalisation_keeps_its_averages():
    encoder = PatchEncoder(toy_resnet_config(), 8).train()
    before = averages(encoder)
    pictures = noise(4, 32, 32)
    together = encoder(pictures)
    assert len(before) > 4
    for name, value in averages(encoder).items():
        assert torch.equal(value, before[name])
    alone = torch.cat([encoder(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_inside_another_module_they_are_kept_too():
    outer = nn.Sequential(PatchEncoder(toy_resnet_config(), 8)).train()
    before = averages(outer)
    outer(noise(4, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in averages(outer).items())


def test_before_anybody_calls_train_they_are_kept_too():
    encoder = PatchEncoder(toy_resnet_config(), 8)
    assert encoder.training
    before = averages(encoder)
    encoder(noise(4, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in averages(encoder).items())


def test_in_pre_training_they_are_learnt():
    encoder = PatchEncoder(toy_resnet_config(), 8, normalise=True).train()
    before = averages(encoder)
    encoder(noise(4, 32, 32))
    assert all(not torch.equal(value, before[name]) for name, value in averages(encoder).items())
    encoder.eval()
    after = averages(encoder)
    encoder(noise(4, 32, 32))
    assert all(torch.equal(value, after[name]) for name, value in averages(encoder).items())


def test_gradients_reach_every_weight():
    encoder = PatchEncoder(toy_resnet_config(), 8).train()
    encoder(noise(2, 32, 32)).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(2, 32, 32, 3),
        torch.zeros(2, 32, 32, 4, dtype=torch.uint8),
    ],
)
def test_other_pixels_are_refused(pixels):
    encoder = PatchEncoder(toy_resnet_config(), 8)
    with pytest.raises(InputError, match=r"PatchEncoder pixels: .*fitted") as caught:
        encoder(pixels)
    assert str(tuple(pixels.shape)) in caught.value.found


def saved(folder):
    """An encoder, and its backbone in a folder."""
    torch.manual_seed(1)
    encoder = PatchEncoder(toy_resnet_config(), 8).eval()
    encoder.backbone.save_pretrained(folder)
    return encoder


def features(encoder):
    return encoder.backbone(noise(2, 32, 32).permute(0, 3, 1, 2) / 255).feature_maps[-1]


def test_a_checkpoint_has_the_features_that_were_saved(tmp_path, monkeypatch):
    """The hub, which transformers asks even about a folder, is taken to know it."""
    hub = SimpleNamespace(repo_exists=lambda _: True)
    asked = "transformers.models.auto.auto_factory.hf_api"
    monkeypatch.setattr(asked, lambda: hub, raising=False)
    encoder, found = saved(tmp_path), PatchEncoder(str(tmp_path), 8).eval()
    assert torch.equal(features(found), features(encoder))
    fresh = PatchEncoder(toy_resnet_config(), 8).eval()
    assert not torch.equal(features(fresh), features(encoder))


def test_a_checkpoint_loads_by_the_name_of_its_folder(tmp_path):
    encoder = saved(tmp_path)
    assert torch.equal(features(PatchEncoder(str(tmp_path), 8).eval()), features(encoder))


# -- shares of boxes ---------------------------------------------------------------------------


@st.composite
def boxes_on_grids(draw):
    """A side in patches, a size in pixels that it need not divide, and a box within it."""
    side = draw(st.integers(1, 6))
    size = draw(st.integers(side, 30))
    edges = []
    for _ in "xy":
        first = draw(st.integers(0, size - 1))
        edges.append((first, draw(st.integers(first + 1, size))))
    (left, right), (top, bottom) = edges
    return side, size, (left, top, right, bottom)


@given(case=boxes_on_grids())
@settings(max_examples=80, deadline=None)
def test_shares_are_counts_of_pixels(case):
    """Each pixel is cut into side x side parts, so that no part lies on two patches."""
    side, size, (left, top, right, bottom) = case
    parts = np.zeros((size * side, size * side))
    parts[top * side : bottom * side, left * side : right * side] = 1
    expected = parts.reshape(side, size, side, size).sum((1, 3)) / parts.sum()
    found = box_shares(torch.tensor([[left, top, right, bottom]]), size, side * side)
    np.testing.assert_allclose(found[0].numpy(), expected.ravel(), atol=1e-5)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_shares_of_several_boxes_are_those_of_each():
    boxes = torch.tensor([[0, 0, 8, 8], [56, 0, 64, 8], [0, 0, 64, 64], [4, 8, 12, 16]])
    found = box_shares(boxes, 64, 64)
    assert found.shape == (4, 64)
    assert torch.equal(found[0], F.one_hot(torch.tensor(0), 64).float())
    assert torch.equal(found[1], F.one_hot(torch.tensor(7), 64).float())  # right, not down
    assert torch.allclose(found[2], torch.full((64,), 1 / 64))
    assert found[3].nonzero()[:, 0].tolist() == [8, 9]
    for row, box in enumerate(boxes):
        assert torch.equal(box_shares(box[None], 64, 64)[0], found[row])


# -- the pre-trained eye -----------------------------------------------------------------------


def test_the_shipped_eye_is_small_complete_and_finite():
    assert EYE.stat().st_size < 4e6
    expected = PatchEncoder(toy_resnet_config(), 128).state_dict()
    with safe_open(EYE, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(value.isfinite().all() for value in weights.values())
    assert {value.dtype for value in weights.values()} == {torch.float16}


def found_in_its_picture(encoder):
    """Share of products whose box is, of those of its mosaic, the nearest to their crop."""
    world = IconWorld(5, IconDials(glyphs=24, new_glyphs=2))
    groups = world.groups(world.test, world.random("groups"))
    right = []
    for number, members in enumerate(group for group in groups if len(group) == 4):
        image, boxes = world.paint(world.add_mosaic(str(number), members))
        crops = torch.stack(
            [torch.tensor(np.array(world.open(f"crop/{row}/0"))) for row in members]
        )
        with torch.inference_mode():
            patches = encoder(torch.tensor(np.array(image))[None])[0]
            shares = box_shares(torch.tensor(boxes), 64, len(patches))
            regions = F.normalize(shares @ patches, dim=1)
            queries = F.normalize(encoder(crops).mean(1), dim=1)
        right += ((queries @ regions.T).argmax(1) == torch.arange(4)).tolist()
    assert len(right) > 100
    return np.mean(right)


def test_patches_of_the_shipped_eye_say_what_lies_on_them():
    torch.manual_seed(0)
    untrained = PatchEncoder(toy_resnet_config(), 128).eval()
    assert found_in_its_picture(shipped()) > 0.9 > 0.7 > found_in_its_picture(untrained)
