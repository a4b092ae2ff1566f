"""Train the small picture encoder that chapter 5 starts from, and ship it with the package.

    python data_scripts/pretrain_eye.py       # about ten minutes of one CPU core

No label, no text and none of the chapter's products: it sees the icons that no product is made of,
signs and brands. Four of them in random appearances are pasted into a scene. The vector of one of
them is the mean of the patches it was pasted on, and is to be closer to that of the same thing
drawn again on its own than to those of all others in the batch, half of which look alike.

Source of the idea: CP2, copy-paste contrastive pretraining, Wang et al. (2022).
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor

from minisearch.data.icons import icon_search_terms
from minisearch.models.vision import PatchEncoder, box_shares, toy_resnet_config
from minisearch.objectives import in_batch_softmax
from minisearch.profiles import derive_seed, use_threads
from minisearch.storage import project_root
from minisearch.worlds.icon_drawing import APPEARANCES, HUES, Appearance, Painter
from minisearch.worlds.icons import signs

SIZE, CROP, OBJECTS, DIMENSION = 64, 32, 4, 128


@dataclass(frozen=True)
class Scenes:
    """A batch: scenes, and each object drawn again. Shape: uint8 pixels, boxes (S * OBJECTS, 4)."""

    pictures: Tensor
    boxes: Tensor
    crops: Tensor


def draw(painter: Painter, names: list[str], scenes: int, random: np.random.Generator) -> Scenes:
    """Each icon twice in one colour, in two appearances, in different scenes."""
    count = scenes * OBJECTS // 2
    chosen = random.choice(len(names), count, replace=False)
    sprites = []
    for _ in "12":
        for row, icon in enumerate(chosen):
            family = row % len(HUES)
            appearance = Appearance(*(int(random.integers(0, size)) for size in APPEARANCES))
            sprites.append(painter.sprite(names[icon], family, appearance))
    pictures, boxes = [], []
    for number in range(scenes):
        image, found = painter.mosaic(sprites[OBJECTS * number :][:OBJECTS], random)
        pictures.append(np.asarray(image))
        boxes += found
    crops = [np.asarray(painter.crop(sprite, random)[0]) for sprite in sprites]
    return Scenes(*(torch.from_numpy(np.stack(part)) for part in (pictures, boxes, crops)))


def vectors(encoder: PatchEncoder, batch: Scenes) -> tuple[Tensor, Tensor]:
    """Of the objects in their scenes, and of their crops. Shape: (S * OBJECTS, D) twice."""
    patches = encoder(batch.pictures).repeat_interleave(OBJECTS, 0)
    shares = box_shares(batch.boxes, SIZE, patches.shape[1])
    regions = (shares[:, None] @ patches)[:, 0]
    return F.normalize(regions, dim=1), F.normalize(encoder(batch.crops).mean(1), dim=1)


def main(steps: int = 1500, scenes: int = 48, rate: float = 2e-3, seed: int = 0) -> None:
    """Train and ship."""
    use_threads(1)
    torch.manual_seed(derive_seed(seed, "eye"))
    encoder = PatchEncoder(toy_resnet_config(), DIMENSION, normalise=True)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=rate, weight_decay=0.01)
    painter, names = Painter(SIZE, CROP), sorted(signs(icon_search_terms()))
    random = np.random.default_rng(derive_seed(seed, "scenes"))
    started, right = time.process_time(), []
    for step in range(steps):
        if step == round(0.7 * steps):
            encoder.keep_averages()
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 + np.cos(np.pi * step / steps)) / 2
        regions, crops = vectors(encoder, draw(painter, names, scenes, random))
        loss = in_batch_softmax(crops, regions, temperature=0.07)
        loss = loss + in_batch_softmax(regions, crops, temperature=0.07)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            best = (crops @ regions.T).argmax(1)
        right.append(float((best == torch.arange(len(best))).float().mean()))
        if step % 50 == 49:
            spent = time.process_time() - started
            typer.echo(f"{step + 1:5d}  {np.mean(right[-50:]):.3f} right  {spent:.0f} CPU s")
    folder = project_root() / "src" / "minisearch" / "assets" / "eye"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() for name, value in encoder.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    typer.echo(hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


if __name__ == "__main__":
    typer.run(main)
