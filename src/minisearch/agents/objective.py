"""The arithmetic of group relative policy optimisation, on plain tensors.

Source: DeepSeekMath (arXiv 2402.03300); details as in Search-R1's code (arXiv 2503.09516).
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, standardise: bool = True, epsilon: float = 1e-6) -> Tensor:
    """How much better than its group each attempt was.

    The standard deviation is the unbiased one, as in Search-R1's code. A dead group, whose rewards
    are all the same, has advantages of exactly 0. Shape: (Q, G) -> (Q, G).
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    centred = torch.where(dead_groups(rewards)[:, None], 0.0, centred)
    return centred / (rewards.std(1, keepdim=True) + epsilon) if standardise else centred


def dead_groups(rewards: Tensor) -> Tensor:
    """Groups that teach nothing, all rewards being equal. Shape: (Q, G) -> (Q,) bool."""
    return (rewards == rewards[:, :1]).all(1)


def group_statistics(rewards: Tensor, most: float = 1.0) -> dict[str, float]:
    """Shares of groups that are dead, all at reward 0, all at the highest reward `most`."""
    return {
        "dead groups": float(dead_groups(rewards).float().mean()),
        "all wrong": float((rewards == 0).all(1).float().mean()),
        "all right": float((rewards == most).all(1).float().mean()),
    }


def clipped_loss(
    new: Tensor, old: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of every token, and where the clip took its gradient away.

    Shape: three (M,) -> (M,), (M,) bool. Source: PPO (arXiv 1707.06347), eq. 7.
    """
    ratio = (new - old).exp()
    free, held = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(free, held), held < free


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(new || reference) from tokens sampled by new, never negative.

    The difference is limited to 10 nats. Shape: (M,), (M,) -> (M,).

    Source: Schulman, "Approximating KL divergence" (2020); the limit is Search-R1's.
    """
    difference = (reference - new).clamp(-10, 10)
    return difference.expm1() - difference  # exp() - 1 would round to less than 0
