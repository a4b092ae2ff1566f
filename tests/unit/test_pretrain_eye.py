"""Pre-training of the small eye: what it sees, and that its script ships what chapter 5 loads."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minisearch.data.icons import icon_search_terms
from minisearch.models.vision import PatchEncoder, toy_resnet_config
from minisearch.worlds.icon_drawing import Painter
from minisearch.worlds.icons import signs, things

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "pretrain_eye.py"


@pytest.fixture(scope="module")
def script():
    name = "pretrain_eye_script"
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)  # its dataclass looks up its module here
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def names():
    return sorted(signs(icon_search_terms()))


@pytest.fixture
def painted(monkeypatch):
    """The icons, colours and appearances that are drawn, in their order."""
    drawn = []
    sprite = Painter._sprite

    def recorded(self, *what):
        drawn.append(what)
        return sprite(self, *what)

    monkeypatch.setattr(Painter, "_sprite", recorded)
    return drawn


def test_a_batch_holds_scenes_their_boxes_and_each_object_again(script, names):
    painter = Painter(script.SIZE, script.CROP)
    batch = script.draw(painter, names, 3, np.random.default_rng(0))
    assert batch.pictures.shape == (3, 64, 64, 3)
    assert batch.crops.shape == (12, 32, 32, 3)
    assert batch.boxes.shape == (12, 4)
    assert batch.pictures.dtype == batch.crops.dtype == torch.uint8
    left, top, right, bottom = batch.boxes.T
    assert (left < right).all()
    assert (top < bottom).all()
    assert batch.boxes.min() >= 0
    assert batch.boxes.max() <= 64


def test_each_icon_is_there_twice_in_one_colour_and_in_two_scenes(script, names, painted):
    painter = Painter(script.SIZE, script.CROP)
    painter.sprite = painter._sprite  # not kept, so that all are seen
    script.draw(painter, names, 6, np.random.default_rng(0))
    assert len(painted) == 24
    assert set(Counter(name for name, *_ in painted).values()) == {2}
    assert set(Counter((name, family) for name, family, _ in painted).values()) == {2}
    scenes = {}
    for place, (name, *_) in enumerate(painted):
        scenes.setdefault(name, set()).add(place // script.OBJECTS)
    assert all(len(found) == 2 for found in scenes.values())
    assert any(
        painted[place][2] != painted[place + 12][2] for place in range(12)
    )  # in another appearance


def test_vectors_are_those_of_objects_and_of_crops(script, names):
    torch.manual_seed(0)
    encoder = PatchEncoder(toy_resnet_config(), script.DIMENSION).eval()
    painter = Painter(script.SIZE, script.CROP)
    batch = script.draw(painter, names, 2, np.random.default_rng(0))
    regions, crops = script.vectors(encoder, batch)
    assert regions.shape == crops.shape == (8, 128)
    for found in (regions, crops):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(8))
    patches = encoder(batch.pictures).view(2, 8, 8, 128)
    for number in (1, 6):  # of the first and of the second scene
        left, top, right, bottom = (edge / 8 for edge in batch.boxes[number].tolist())
        mean = torch.zeros(128)
        for row in range(8):
            down = max(0, min(bottom, row + 1) - max(top, row))
            for column in range(8):
                across = max(0, min(right, column + 1) - max(left, column))
                mean += down * across * patches[number // 4, row, column]
        torch.testing.assert_close(regions[number], mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_the_script_sees_no_product_and_ships_what_the_chapter_loads(
    script, painted, tmp_path, monkeypatch, capsys
):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setenv("MINISEARCH_ROOT", str(tmp_path))
    monkeypatch.setattr(script, "use_threads", lambda _: None)  # of this process: leave them
    script.main(steps=3, scenes=2)
    terms = icon_search_terms()
    assert len(painted) > 12
    assert not {name for name, *_ in painted} & things(terms).keys()
    assert {name for name, *_ in painted} <= set(signs(terms))
    path = tmp_path / "src" / "minisearch" / "assets" / "eye" / "model.safetensors"
    assert capsys.readouterr().out.split()[-1] == hashlib.sha256(path.read_bytes()).hexdigest()
    weights = {name: value.float() for name, value in load_file(path).items()}
    eye = PatchEncoder(toy_resnet_config(), 128)
    before = {name: value.clone() for name, value in eye.state_dict().items()}
    eye.load_state_dict(weights)
    assert eye.eval()(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).isfinite().all()
    averages = [name for name in weights if "running_mean" in name]
    assert averages
    assert not any(torch.equal(weights[name], before[name]) for name in averages)
