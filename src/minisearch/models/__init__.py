"""Models built from transformers configurations, and the arithmetic of their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Bytes a parameter for weights, gradients and one optimiser moment. Mixed precision keeps all
# three in 32 bits and casts copies layer by layer.
_BYTES = {"32-true": (4, 4, 4), "bf16-mixed": (4, 4, 4), "bf16-true": (2, 2, 2)}
_MOMENTS = {"adamw": 2, "sgd": 0}


def describe(
    factory: Callable[[], nn.Module], optimizer: str = "adamw", precision: str = "32-true"
) -> dict[str, int]:
    """Parameters of a model and the bytes of its training state, without building it.

    Args:
        factory: builds the model; it runs on the meta device, which allocates nothing.
        optimizer: "adamw" (two moments a parameter) or "sgd" (none).
        precision: "32-true", "bf16-mixed" or "bf16-true", as in `lightning.Trainer`.

    Returns:
        parameters, weight_bytes, gradient_bytes, optimiser_bytes; activations come on top.
    """
    import torch

    with torch.device("meta"):
        shapes = list(factory().parameters())  # a shared tensor is listed once
    total = sum(p.numel() for p in shapes)
    trained = sum(p.numel() for p in shapes if p.requires_grad)
    weight, gradient, moment = _BYTES[precision]
    return {
        "parameters": total,
        "weight_bytes": weight * total,
        "gradient_bytes": gradient * trained,
        "optimiser_bytes": moment * _MOMENTS[optimizer] * trained,
    }
