"""Advantages, clip and divergence against numbers worked out by hand."""

import math

import pytest
import torch

from minisearch.agents.objective import (
    clipped_loss,
    dead_groups,
    group_advantages,
    group_statistics,
    k3,
)


def test_advantages_by_hand():
    """The first group has mean 1/2 and variance 4 * (1/4) / 3, the second mean 1 and variance 2."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 3.0]])
    centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [-1.0, 0.0, -1.0, 2.0]])
    deviation = torch.tensor([[math.sqrt(1 / 3)], [math.sqrt(2)]])
    torch.testing.assert_close(group_advantages(rewards), centred / deviation, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(group_advantages(rewards, standardise=False), centred)


def test_epsilon_is_added_to_the_standard_deviation():
    """Rewards 0 and 2e-6: mean 1e-6, standard deviation sqrt(2) * 1e-6."""
    found = group_advantages(torch.tensor([[0.0, 2e-6]]))
    expected = 1 / (math.sqrt(2) + 1)
    assert found.tolist() == [pytest.approx([-expected, expected], rel=1e-4)]
    wide = group_advantages(torch.tensor([[0.0, 2e-6]]), epsilon=1.0)
    assert wide.tolist() == [pytest.approx([-1e-6, 1e-6], rel=1e-4)]


@pytest.mark.parametrize("standardise", [True, False])
def test_a_dead_group_has_advantages_of_exactly_zero(standardise):
    """Although the rounded mean of seven times 0.1 is not 0.1."""
    rewards = torch.tensor([[0.1] * 7, [0.7] * 7, [0.1] * 6 + [0.2]])
    assert (rewards.mean(1) != rewards[:, 0])[:2].all()
    found = group_advantages(rewards, standardise)
    assert found[:2].tolist() == [[0.0] * 7] * 2
    assert found[2].abs().min() > 0.01


def test_group_statistics():
    rewards = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0], [0.0, 0.0]])
    assert dead_groups(rewards).tolist() == [True, True, True, False, True]
    found = group_statistics(rewards)
    assert found == pytest.approx({"dead groups": 0.8, "all wrong": 0.4, "all right": 0.2})
    assert group_statistics(rewards, most=0.5)["all right"] == pytest.approx(0.2)
    assert group_statistics(rewards * 2)["all right"] == pytest.approx(0.2)  # those at 0.5 before


CLIP = [  # ratio, advantage, loss with low 0.2 and high 0.3, held by the clip
    (1.5, 2.0, -2.6, True),
    (0.5, 2.0, -1.0, False),
    (0.5, -2.0, 1.6, True),
    (1.5, -2.0, 3.0, False),
    (1.25, 2.0, -2.5, False),
    (0.75, -2.0, 1.6, True),
    (0.9, -2.0, 1.8, False),
    (1.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "held"), CLIP)
def test_the_clip_by_hand(ratio, advantage, loss, held):
    """It holds what has gone far enough in the wanted direction, and nothing else."""
    old = torch.tensor([-3.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    values, clipped = clipped_loss(new, old, torch.tensor([advantage]), low=0.2, high=0.3)
    assert values.item() == pytest.approx(loss)
    assert clipped.item() is held
    values.sum().backward()
    assert new.grad.item() == (0 if held else pytest.approx(-ratio * advantage))


def test_k3_by_hand():
    half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert k3(half, quarter).item() == pytest.approx(0.5 + math.log(2) - 1, rel=1e-5)
    assert k3(quarter, half).item() == pytest.approx(2 - math.log(2) - 1, rel=1e-5)
    assert k3(half, half).item() == 0


def test_k3_is_limited_at_ten_nats():
    new = torch.tensor([-12.0, -10.5, -9.5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.0, 0.0, -12.0, -9.5], dtype=torch.float64)
    values = k3(new, reference)
    most, least = math.exp(10) - 11, math.exp(-10) + 9
    inside = [math.exp(9.5) - 10.5, math.exp(-9.5) + 8.5]
    assert values.tolist() == pytest.approx([most, most, inside[0], least, inside[1]])
    values.sum().backward()
    slopes = [0, 0, 1 - math.exp(9.5), 0, 1 - math.exp(-9.5)]
    assert new.grad.tolist() == pytest.approx(slopes)


def test_the_mean_of_k3_is_the_divergence():
    """Weighted by the probability of each token, it is KL(new || reference), not its reverse."""
    random = torch.Generator().manual_seed(0)
    new, reference = torch.randn(2, 50, generator=random, dtype=torch.float64).log_softmax(1)
    divergence = (new.exp() * (new - reference)).sum()
    torch.testing.assert_close((new.exp() * k3(new, reference)).sum(), divergence)
    reverse = (reference.exp() * (reference - new)).sum()
    assert (divergence - reverse).abs() > 0.01
