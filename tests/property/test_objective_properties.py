"""Laws of group relative policy optimisation's arithmetic."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from minisearch.agents.objective import clipped_loss, dead_groups, group_advantages, k3

sizes = st.integers(2, 8)
groups = sizes.flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 10), min_size=size, max_size=size), min_size=1, max_size=5
    )
).map(lambda rows: torch.tensor(rows, dtype=torch.float64) / 2)
log_probs = st.floats(-60, 0, width=32)
near = st.floats(-(2.0**-10), 2.0**-10, width=32)
advantages = st.floats(-5, 5, width=32)
clips = st.floats(0.01, 0.5)


@given(groups)
def test_the_advantages_of_a_group_sum_to_zero_and_vary_by_one(rewards):
    found = group_advantages(rewards)
    torch.testing.assert_close(found.sum(1), torch.zeros(len(rewards)).double(), atol=1e-9, rtol=0)
    dead = dead_groups(rewards)
    assert (found[dead] == 0).all()
    assert ((found.std(1) - 1).abs()[~dead] < 1e-4).all()


@given(groups, st.integers(-50, 50), st.floats(0.5, 100))
def test_advantages_do_not_depend_on_the_rewards_scale(rewards, shift, scale):
    found = group_advantages(rewards * scale + shift)
    torch.testing.assert_close(found, group_advantages(rewards), atol=1e-4, rtol=0)
    centred = group_advantages(rewards + shift, standardise=False)
    torch.testing.assert_close(centred, group_advantages(rewards, standardise=False))


@given(groups)
def test_advantages_keep_the_order_of_the_rewards(rewards):
    found = group_advantages(rewards)
    assert torch.equal(rewards[:, :-1] < rewards[:, 1:], found[:, :-1] < found[:, 1:])


@given(log_probs, log_probs, near)
def test_k3_is_never_negative(new, reference, difference):
    """Not by rounding either, where both nearly agree."""
    new, other = torch.tensor([new]), torch.tensor([reference])
    assert k3(new, other) >= 0
    assert k3(new, new) == 0
    assert k3(new, new + difference) >= 0
    assert k3(new * 0, new * 0 + difference) >= 0


@given(log_probs, st.floats(-2, 2, width=32), advantages, clips, clips)
def test_the_clip_only_ever_makes_the_loss_greater(old, change, advantage, low, high):
    old, advantage = torch.tensor([old]), torch.tensor([advantage])
    new = old + change
    values, held = clipped_loss(new, old, advantage, low, high)
    free = -(new - old).exp() * advantage
    assert values >= free
    assert held.item() == (values > free).item()
