"""What chapter 3 starts from in shop 0: the files are those of the card, and fit the shop."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from safetensors import safe_open

from minisearch import chapters
from minisearch.models.generative import Alphabet
from minisearch.models.lm import ASSETS

FOLDER = ASSETS / "needs_0"
FILES = ("base", "distilled")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_one_its_card_names_small_and_in_half_precision(name):
    path = FOLDER / f"{name}.safetensors"
    named = dict(
        re.findall(r"`(\w+)\.safetensors` .* (\w{64}) \|", (FOLDER / "README.md").read_text())
    )
    assert named.keys() == set(FILES)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == named[name]
    assert path.stat().st_size < 2e6
    with safe_open(path, "np") as file:
        weights = list(map(file.get_tensor, file.keys()))
        assert re.fullmatch(r"\w{16}", file.metadata()["digest"])
    assert all(array.dtype == np.float16 and np.isfinite(array).all() for array in weights)


def test_the_chapter_takes_the_shipped_models(monkeypatch):
    """Where identifiers, vocabulary and clicks are the shop's, nothing is trained."""
    page = chapters.load("03_onesearch_v2")
    values = {"profile": "toy", "world_seed": 0, "init_seed": 0, "data": "", "fresh": False}
    values |= {"noise": -1.0, "steps": 0, "rate": 0.0, "rl_rate": 0.0}
    values["settings"] = page.SearchSettings.of("toy")
    for name, value in values.items():
        monkeypatch.setattr(page, name, value, raising=False)
    monkeypatch.setattr(page, "shop", page.simulated_shop(0), raising=False)
    monkeypatch.setattr(page, "space", page.make_space(page.shop), raising=False)
    page.make_codes.cache_clear()
    codes = page.make_codes()
    page.make_codes.cache_clear()
    alphabet = Alphabet(len(page.space.vocabulary), ("retrieve", "think"), codes.sizes)
    monkeypatch.setattr(page, "codes", codes, raising=False)
    monkeypatch.setattr(page, "alphabet", alphabet, raising=False)
    identifiers = alphabet.tokens(codes.codes)
    monkeypatch.setattr(page, "identifiers", identifiers, raising=False)
    monkeypatch.setattr(page, "fit", lambda *_, **__: pytest.fail("it was trained"))
    start, base = page.distilled_model(), page.base_model()
    gap = start.bart.model.shared.weight - base.bart.model.shared.weight
    assert gap.abs().max() > 1e-3
