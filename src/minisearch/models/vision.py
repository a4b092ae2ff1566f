"""Pictures to vectors of their patches, on the backbones of transformers.

The toy's is a small ResNet, whose patches are 8 pixels wide; a real checkpoint, such as DINOv3,
loads by name into the same class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, ResNetConfig

from minisearch.errors import InputError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, from 0 to 1


def toy_resnet_config() -> ResNetConfig:
    """Two stages of one block: 250,000 weights, one patch for 8 x 8 pixels."""
    sizes: dict[str, Any] = {
        "embedding_size": 32, "hidden_sizes": [48, 128], "depths": [1, 1], "layer_type": "basic",
        "out_features": ["stage2"],
    }  # fmt: skip
    return ResNetConfig(**sizes)


class StoredNorm(nn.BatchNorm2d):
    """Batch normalisation by the averages that it has stored, in training too."""

    def forward(self, maps: Tensor) -> Tensor:
        """Shape: (B, C, H, W) -> the same."""
        averages = (self.running_mean, self.running_var)
        return F.batch_norm(maps, *averages, self.weight, self.bias, False, 0.0, self.eps)


def load_backbone(name: str) -> Any:
    """A backbone by the name of a checkpoint on the hub, or of its folder.

    AutoBackbone asks the hub about either; the class that it stands for does not.
    """
    with torch.device("meta"):
        kind = type(AutoBackbone.from_config(AutoConfig.from_pretrained(name)))
    return kind.from_pretrained(name)


class PatchEncoder(nn.Module):
    """A backbone and a linear map of its last feature map to `dimension`.

    Batch normalisation, where the backbone has it, uses the averages it was pre-trained to: crops
    and whole pictures pass through the same weights, and have other statistics.

    Args:
        backbone: a configuration, or the name or folder of a checkpoint.
        dimension: of a patch's vector, D.
        normalise: whether batch normalisation goes by the batch, and learns its averages: in
            pre-training, until `keep_averages` is called.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: Any, dimension: int, normalise: bool = False) -> None:
        super().__init__()
        load = load_backbone if isinstance(backbone, str) else AutoBackbone.from_config
        self.backbone = load(backbone)
        self.project = nn.Linear(self.backbone.channels[-1], dimension)
        self.dimension = dimension
        if not normalise:
            self.keep_averages()
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) * 255, persistent=False)

    def keep_averages(self) -> None:
        """Normalise by the stored averages from now on; weights stay the same parameters."""
        for parent in list(self.backbone.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.BatchNorm2d:
                    kept = StoredNorm(child.num_features, child.eps)
                    kept.load_state_dict(child.state_dict())
                    kept.weight, kept.bias = child.weight, child.bias
                    setattr(parent, name, kept)

    def forward(self, pixels: Tensor) -> Tensor:
        """Shape: (B, H, W, 3) uint8 -> (B, N, D), the N patches row by row.

        Raises:
            InputError: for pixels of another shape or type.
        """
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
            found = f"shape {tuple(pixels.shape)}, {pixels.dtype}"
            remedy = "prepare pictures with `minisearch.pictures.fitted`."
            raise InputError("PatchEncoder pixels", found, "(B, H, W, 3) uint8", remedy)
        scaled = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        maps = self.backbone(scaled).feature_maps[-1]  # (B, C, H / 8, W / 8)
        patches: Tensor = self.project(maps.flatten(2).transpose(1, 2))
        return patches


def box_shares(boxes: Tensor, size: int, patches: int) -> Tensor:
    """How much of a box lies on each patch of a square picture; the shares of a box add up to 1.

    Shape: boxes (B, 4) left, top, right, bottom in pixels, of a picture of size x size
    -> (B, patches).
    """
    side = round(patches**0.5)
    edges = torch.arange(side + 1, device=boxes.device) * (size / side)
    low, high = edges[:-1], edges[1:]
    left, top, right, bottom = boxes.float().unbind(1)

    def covered(first: Tensor, last: Tensor) -> Tensor:  # (B, side)
        return (torch.minimum(last[:, None], high) - torch.maximum(first[:, None], low)).clamp(0)

    area = covered(top, bottom)[:, :, None] * covered(left, right)[:, None, :]
    return (area / area.sum((1, 2), keepdim=True)).flatten(1)
